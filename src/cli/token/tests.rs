use super::*;
use crate::apiserver::{self, ApiServer, Role, User};
use crate::object::{Key, Origin};
use crate::store::{self, Store};
use crate::trust::authority::Authority;
use crate::trust::certificate::peer_user;
use crate::trust::clock::BUILD_TIME;
use crate::trust::names::ClusterUid;
use crate::trust::record::{redeem, secret_name};
use crate::trust::tls;
use data_encoding::BASE64;
use futures_rustls::TlsAcceptor;
use proptest::prelude::*;
use smol::Executor;
use std::fs;
use std::sync::Arc;

fn published() -> Published {
    let when = IssueTime::check(BUILD_TIME, Floor::INITIAL).unwrap();
    let authority = Authority::create(&ClusterUid::random().unwrap(), when).unwrap();
    Published {
        cluster: authority.cluster_uid().clone(),
        endpoints: vec!["cloud.example.com".parse().unwrap()],
        authorities: vec![authority.certificate().clone()],
    }
}

/// A directory that is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let name = data_encoding::HEXLOWER.encode(&crate::trust::random::<8>().unwrap());
        let path = std::env::temp_dir().join(format!("holm-token-{name}"));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// What `holm token create` says with this kubeconfig.
    fn create(&self, kubeconfig: &str) -> TokenError {
        let file = self.0.join("config");
        fs::write(&file, kubeconfig).unwrap();
        smol::block_on(create(&Options { kubeconfig: Some(file), ..Options::default() })).unwrap_err()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn times_to_live_are_minutes_hours_and_days() {
    let minutes = |text| parse_ttl(text).map(|ttl| ttl.as_secs() / 60);
    assert_eq!(minutes("30m"), Ok(30));
    assert_eq!(minutes("24h"), Ok(24 * 60));
    assert_eq!(minutes("7d"), Ok(7 * 24 * 60));
    assert_eq!(minutes("366d"), Ok(366 * 24 * 60));
    for bad in
        ["", "m", "0m", "30", "30s", "-1h", "+1h", "1.5h", "367d", "1 h", "99999999999999999999d", "1ä"]
    {
        assert!(parse_ttl(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn what_was_typed_comes_before_the_environment() {
    let options = |kubeconfig: Option<&str>, data_dir: Option<&str>| Options {
        kubeconfig: kubeconfig.map(Into::into),
        data_dir: data_dir.map(Into::into),
        ..Options::default()
    };
    let files = |options: &Options, environment: Option<&str>| {
        let files = kubeconfig_files(options, environment.map(OsStr::new));
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(files(&options(Some("a"), Some("b")), Some("c")), ["a"]);
    assert_eq!(files(&options(None, Some("b")), Some("c")), ["b/admin.kubeconfig"]);
    assert_eq!(files(&options(None, None), Some("c:d:")), ["c", "d"]);
    assert_eq!(files(&options(None, None), Some("")), ["/var/lib/holm/cloud/admin.kubeconfig"]);
    assert_eq!(files(&options(None, None), None), ["/var/lib/holm/cloud/admin.kubeconfig"]);
}

#[test]
fn the_code_and_its_record_fit_each_other() {
    let published = published();
    let node: NodeName = "pi".parse().unwrap();
    let (code, record) = new_code(published.clone(), Some(node.clone()), DEFAULT_TTL, BUILD_TIME).unwrap();
    let read: JoinCode = code.to_text().unwrap().parse().unwrap();
    assert_eq!((&read.cluster, &read.endpoints), (&published.cluster, &published.endpoints));
    assert_eq!(read.pins, published.pins().unwrap());
    assert_eq!(read.expires.as_secs(), BUILD_TIME.as_secs() + 24 * 60 * 60);
    let stored = SecretRecord::from_secret(&record.to_secret(&read.id)).unwrap();
    let key = read.pins[0];
    assert!(redeem(&stored, &read.secret, &node, &key, BUILD_TIME).is_ok());
    assert!(redeem(&stored, &read.secret, &"other".parse().unwrap(), &key, BUILD_TIME).is_err());
}

#[test]
fn a_clock_in_1970_makes_no_code() {
    let made = new_code(published(), None, DEFAULT_TTL, unix(0));
    assert!(matches!(made, Err(TokenError::Clock(_))));
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_one_line() {
    let scratch = Scratch::new();
    let nowhere = Options { data_dir: Some(scratch.0.clone()), ..Options::default() };
    let missing = smol::block_on(create(&nowhere)).unwrap_err();
    assert!(
        matches!(&missing, TokenError::NoKubeconfig(file) if file.ends_with(ADMIN_KUBECONFIG)),
        "{missing}"
    );
    for damaged in ["", "{", "a: [", "clusters: 7\nusers: secret-key"] {
        let error = scratch.create(damaged);
        assert!(matches!(error, TokenError::Kubeconfig { .. }), "{error}");
        assert!(!error.to_string().contains('\n') && !error.to_string().contains("secret-key"), "{error}");
    }
}

#[test]
fn an_api_that_is_not_there_is_called_so_with_its_address() {
    // A port that nobody listens on: bound, and closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}], users: [{{name: u, user: {{}}}}]}}"
    );
    let error = Scratch::new().create(&kubeconfig);
    assert!(matches!(error, TokenError::Unreachable { .. }), "{error:?}");
    let line = error.to_string();
    assert!(line.contains(&format!("127.0.0.1:{port}")) && line.contains("refused"), "{line}");
}

/// The real API over the real TLS, with what `holm cloud` puts into both.
struct Cloud {
    scratch: Scratch,
    store: Store,
    authority: Authority,
    address: std::net::SocketAddr,
    executor: Arc<Executor<'static>>,
}

impl Cloud {
    fn new() -> Cloud {
        let scratch = Scratch::new();
        let store = Store::open(&scratch.0.join("store"), store::Options::default()).unwrap();
        let api =
            ApiServer::new(store.clone(), apiserver::Options { role: Role::Cloud, version: "0".into() });
        let cluster = crate::cloud::cluster::Cluster::embedded(store.clone());
        smol::block_on(crate::cloud::found::namespaces(&cluster)).unwrap();
        let when = IssueTime::check(UnixTime::now(), Floor::INITIAL).unwrap();
        let authority = Authority::create(&ClusterUid::random().unwrap(), when).unwrap();
        let names = ["127.0.0.1".try_into().unwrap()];
        let credentials = authority.issue_cloud(&names, when, DEFAULT_TTL).unwrap();
        let tls = tls::api_server(&credentials, &[authority.certificate().clone()]).unwrap();
        let listener = smol::block_on(smol::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let executor = Arc::new(Executor::new());
        let accepting = executor.clone();
        executor.spawn(serve(listener, TlsAcceptor::from(tls), api, accepting)).detach();
        Cloud { scratch, store, authority, address, executor }
    }

    fn publish(&self) {
        let published = Published {
            cluster: self.authority.cluster_uid().clone(),
            endpoints: vec!["cloud.example.com".parse().unwrap()],
            authorities: vec![self.authority.certificate().clone()],
        };
        let key = Key::core("configmaps", NAMESPACE, CONFIG_MAP).unwrap();
        let action = store::Action::Put {
            value: published.to_config_map(),
            origin: Origin::Cloud,
            durability: store::Durability::Durable,
        };
        let write = store::Write { key, expect: store::Expect::Absent, action };
        smol::block_on(self.store.write(write)).unwrap();
    }

    fn kubeconfig(&self, user: &str) {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority-data: {}}}}}], \
             users: [{{name: u, user: {{{user}}}}}]}}",
            self.address,
            BASE64.encode(self.authority.certificate_pem().as_bytes()),
        );
        fs::write(self.scratch.0.join(ADMIN_KUBECONFIG), text).unwrap();
    }

    fn create(&self, options: Options) -> Result<String, TokenError> {
        let options = Options { data_dir: Some(self.scratch.0.clone()), ..options };
        smol::block_on(self.executor.run(create(&options)))
    }
}

async fn serve(
    listener: smol::net::TcpListener,
    tls: TlsAcceptor,
    api: ApiServer,
    executor: Arc<Executor<'static>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, api) = (tls.clone(), api.clone());
        let connection = async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let user = stream.get_ref().1.peer_certificates().and_then(|chain| peer_user(chain).ok());
            let user =
                user.map_or_else(User::anonymous, |user| User { name: user.name, groups: user.groups });
            let _ = api.serve_connection(stream, user).await;
        };
        executor.spawn(connection).detach();
    }
}

#[test]
fn a_code_made_through_the_api_is_one_that_the_cloud_redeems() {
    let cloud = Cloud::new();
    let when = IssueTime::check(UnixTime::now(), Floor::INITIAL).unwrap();
    let admin = cloud.authority.issue_admin(when, DEFAULT_TTL).unwrap();

    cloud.kubeconfig("");
    assert!(matches!(cloud.create(Options::default()), Err(TokenError::Refused { .. })));
    cloud.kubeconfig(&format!(
        "client-certificate-data: {}, client-key-data: {}",
        BASE64.encode(admin.certificate_pem().as_bytes()),
        BASE64.encode(admin.key_pem().as_bytes()),
    ));
    assert!(matches!(cloud.create(Options::default()), Err(TokenError::NotACloud(_))));

    cloud.publish();
    let node: NodeName = "pi".parse().unwrap();
    let ttl = Some(Duration::from_secs(60));
    let text = cloud.create(Options { node: Some(node.clone()), ttl, ..Options::default() }).unwrap();
    let code: JoinCode = text.parse().unwrap();
    assert_eq!(code.pins, [cloud.authority.fingerprint()]);
    let key = Key::core("secrets", NAMESPACE, &secret_name(&code.id)).unwrap();
    let secret = cloud.store.get(&key).unwrap().unwrap();
    let record = SecretRecord::from_secret(&secret.value).unwrap();
    assert_eq!(secret.value["metadata"]["labels"]["holm.dev/managed-by"], "holm");
    assert!(!secret.value.to_string().contains(&BASE64.encode(code.secret.as_bytes())));
    assert!(redeem(&record, &code.secret, &node, &code.pins[0], UnixTime::now()).is_ok());
}

proptest! {
    #[test]
    fn reading_a_time_to_live_never_panics(text in ".*") {
        let _ = parse_ttl(&text);
    }
}
