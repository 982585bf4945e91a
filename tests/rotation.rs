//! The rotation of a cluster's authority over real TLS on loopback: two hubs over one store, whole edges, and
//! boards that know only the old authority, only the new one, or both.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod clouds;

use clouds::{Asker, Replica, Scratch, Site, node, run, until};
use futures_lite::FutureExt;
use holm::edge;
use holm::edge::hub::connect;
use holm::edge::join;
use holm::link::frame::{
    DIGEST_ALGORITHM, Hello, Inventory, Register, Trust, VERSION_MAX, VERSION_MIN, Welcome,
};
use holm::link::{Body, Connection, Heard};
use holm::object::{Key, codec};
use holm::task::Tasks;
use holm::trust::CertificateDer;
use holm::trust::certificate::Facts;
use holm::trust::clock::{Boot, Clock, Floor};
use holm::trust::code::JoinCode;
use holm::trust::identity::Identity;
use holm::trust::names::Fingerprint;
use holm::trust::record::NAMESPACE;
use holm::trust::rotation::{Asked, CERTIFIED_BY, NAME, Patience, Phase, Rotation, TRUSTS};
use holm::trust::tls;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A rotation that waits for nodes and for nothing else.
const AT_ONCE: Patience = Patience {
    seen_within: Duration::from_secs(3600),
    announcing: Duration::ZERO,
    renewing: Duration::ZERO,
    certificates: Duration::from_secs(3600),
};

/// Writes down what `holm ca rotate` writes.
async fn ask(site: &Site, asked: Asked) {
    let key = Key::core("configmaps", NAMESPACE, NAME).unwrap();
    let asked = Some(asked);
    match site.cluster.get(&key).await.unwrap() {
        None => {
            let steady = Rotation { asked, ..Rotation::steady("holm-ca".parse().unwrap()) };
            site.cluster.create(&key, steady.to_config_map()).await.unwrap();
        }
        Some(known) => {
            let mut value = known.value.clone();
            let rotation = Rotation { asked, ..Rotation::from_config_map(&value).unwrap() };
            rotation.write_to(&mut value);
            site.cluster.update(&known, value).await.unwrap();
        }
    }
}

async fn until_phase(replicas: &[Replica], phase: Phase) {
    until(&format!("{phase:?}"), async || {
        replicas.iter().all(|replica| replica.authorities.now().rotation.phase == phase)
    })
    .await;
}

/// Whether a board that trusts these recognises the cloud.
async fn recognises(tasks: &Tasks, replica: &Replica, pins: &[Fingerprint]) -> Result<(), String> {
    let uid = replica.published().cluster;
    let config = tls::edge_client(&uid, pins, Floor::INITIAL, None).unwrap();
    match connect::connect(tasks, &replica.endpoint, &uid, config).await {
        Ok(connection) => {
            connection.close().await;
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A board's session by hand.
async fn session(
    tasks: &Tasks,
    replica: &Replica,
    identity: &Identity,
) -> Result<(Connection, Welcome), String> {
    let membership = identity.membership();
    let slot = identity.candidates().next();
    let config = tls::edge_client(&membership.cluster, &membership.pins, Floor::INITIAL, slot).unwrap();
    let connected = connect::connect(tasks, &replica.endpoint, &membership.cluster, config).await;
    let mut connection = connected.map_err(|error| error.to_string())?;
    connection.send_plain(Body::Hello(Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        epoch: 1,
        digest_algorithm: DIGEST_ALGORITHM,
        pins: membership.pins.iter().map(|pin| holm::link::frame::Hash(*pin.as_bytes())).collect(),
        ..Hello::default()
    }));
    match connection.first(Duration::from_secs(20)).await? {
        Body::Welcome(welcome) => {
            connection.agree(true, welcome.window, Duration::from_secs(15));
            if welcome.inventory {
                connection.send_plain(Body::Inventory(Inventory { holdings: vec![], last: true }));
            }
            Ok((connection, welcome))
        }
        Body::Refused(refused) => Err(refused.reason),
        other => panic!("{other:?}"),
    }
}

/// What the cloud says about trust.
async fn told(connection: &mut Connection) -> Trust {
    loop {
        for heard in connection.next().await {
            match heard {
                Heard::Body(_, Body::Trust(trust)) => return trust,
                Heard::Closed(reason) => panic!("{reason}"),
                _ => {}
            }
        }
    }
}

/// Makes the Node object, as an edge does.
async fn register(mut connection: Connection, name: &str) {
    let node = codec::encode(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    let seq = connection.send(Body::Register(Register { node }));
    loop {
        for heard in connection.next().await {
            match heard {
                Heard::Acked(acked) if acked >= seq => return connection.close().await,
                Heard::Closed(reason) => panic!("{reason}"),
                _ => {}
            }
        }
    }
}

async fn annotation(site: &Site, name: &str, annotation: &str) -> String {
    let key = Key::core("nodes", "", name).unwrap();
    let Some(node) = site.cluster.get(&key).await.unwrap() else { return String::new() };
    node.value["metadata"]["annotations"][annotation].as_str().unwrap_or_default().to_owned()
}

async fn joined(tasks: &Tasks, folder: &Path, code: &JoinCode, name: &str) -> Identity {
    let clock = Clock::new(None, Boot::default());
    join::join(folder, &code.to_text().unwrap(), &node(name), &clock, tasks).await.unwrap()
}

/// A whole edge on a thread of its own, without a container runtime: the link is what matters.
struct Edge(Option<(async_channel::Sender<()>, std::thread::JoinHandle<()>)>);

impl Edge {
    fn start(folder: PathBuf, name: &str) -> Edge {
        let options = edge::Options {
            runtime_endpoint: format!("unix://{}/no-runtime.sock", folder.display()),
            data_dir: folder,
            join: None,
            adopt_cluster: false,
            node_name: node(name),
            api_listen: ([127, 0, 0, 1], 0).into(),
        };
        let (stop, stopped) = async_channel::bounded(1);
        let thread = std::thread::spawn(move || {
            let tasks = Tasks::default();
            let executor = tasks.executor().clone();
            let stop = async {
                let _ = stopped.recv().await;
            };
            let edge = async {
                edge::run(options, tasks).await.unwrap();
            };
            smol::block_on(executor.run(stop.or(edge)));
        });
        Edge(Some((stop, thread)))
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn pins(folder: &Path) -> Vec<Fingerprint> {
    Identity::load(folder).unwrap().unwrap().membership().pins.clone()
}

#[test]
fn a_rotation_goes_through_without_a_visit() {
    run(async |tasks| {
        let scratch = Scratch::new();
        let site = Site::new(&tasks).await;
        let replicas = [site.patient_replica(AT_ONCE).await, site.patient_replica(AT_ONCE).await];
        let old = replicas[0].authorities.now().issuing.fingerprint();
        let folders = ["barn", "mill"].map(|name| scratch.path(name));
        let mut edges = Vec::new();
        for (n, folder) in folders.iter().enumerate() {
            let name = ["barn", "mill"][n];
            let code = site.code(&replicas[n].published()).await;
            joined(&tasks, folder, &code, name).await;
            edges.push(Edge::start(folder.clone(), name));
            until("the node", async || !annotation(&site, name, "holm.dev/key").await.is_empty()).await;
        }
        ask(&site, Asked::Rotate).await;
        until("the new authority to be the only one", async || {
            replicas.iter().all(|replica| {
                let set = replica.authorities.now();
                set.rotation.phase == Phase::Steady && set.issuing.fingerprint() != old
            })
        })
        .await;
        let new = replicas[0].authorities.now().issuing.clone();
        assert_eq!(replicas[1].authorities.now().issuing.fingerprint(), new.fingerprint());
        // Both have renewed, and forget the old authority.
        for folder in &folders {
            let identity = Identity::load(folder).unwrap().unwrap();
            let facts = identity.candidates().next().unwrap().facts().unwrap().clone();
            assert!(new.has_issued(&facts.issuer_key));
            until("the old authority to be forgotten", async || pins(folder) == [new.fingerprint()]).await;
        }
        // Its key is gone, and it can be rotated again.
        let secret = |name: &str| Key::core("secrets", NAMESPACE, name).unwrap();
        until("the old key to be gone", async || {
            site.cluster.get(&secret("holm-ca")).await.unwrap().is_none()
        })
        .await;
        assert!(site.cluster.get(&secret("holm-ca-2")).await.unwrap().is_some());
        ask(&site, Asked::Rotate).await;
        until("the one after", async || {
            let set = replicas[1].authorities.now();
            set.rotation.phase == Phase::Steady && set.rotation.issuing.to_string() == "holm-ca-3"
        })
        .await;
    });
}

#[test]
fn boards_that_know_the_old_the_new_or_both_authorities_are_served_until_the_old_one_is_retired() {
    run(async |tasks| {
        let scratch = Scratch::new();
        let site = Site::new(&tasks).await;
        let replicas = [site.patient_replica(AT_ONCE).await, site.patient_replica(AT_ONCE).await];
        let old = replicas[0].authorities.now().issuing.clone();
        let live = scratch.path("live");
        joined(&tasks, &live, &site.code(&replicas[0].published()).await, "live").await;
        let edge = Edge::start(live.clone(), "live");
        until("the node", async || !annotation(&site, "live", "holm.dev/key").await.is_empty()).await;
        // A board that is away throughout, seen a moment ago.
        let away_code = site.code(&replicas[0].published()).await;
        let away = joined(&tasks, &scratch.path("away"), &away_code, "away").await;
        let (connection, welcome) = session(&tasks, &replicas[0], &away).await.unwrap();
        assert_eq!(welcome.pins.len(), 1);
        register(connection, "away").await;
        let unused = site.code(&replicas[0].published()).await;
        let kubeconfig = replicas[0].folder.join("admin.kubeconfig");
        let administrators = || std::fs::read_to_string(&kubeconfig).unwrap();
        assert_eq!(authorities_of(&administrators()), [old.fingerprint()]);

        ask(&site, Asked::Rotate).await;
        until_phase(&replicas, Phase::Announcing).await;
        let set = replicas[0].authorities.now();
        let new = set.other.clone().unwrap();
        assert_eq!(replicas[1].authorities.now().pins(), set.pins());
        assert_eq!(set.issuing.fingerprint(), old.fingerprint());
        let all =
            [vec![old.fingerprint()], vec![old.fingerprint(), new.fingerprint()], vec![new.fingerprint()]];
        until("the live node to trust the successor", async || {
            annotation(&site, "live", TRUSTS).await.contains(&new.fingerprint().to_string())
        })
        .await;
        // It is the one that is away that is waited for.
        assert_eq!(replicas[0].authorities.now().rotation.phase, Phase::Announcing);
        until("both hubs to show both", async || {
            let mut all_well = true;
            for replica in &replicas {
                for pins in &all {
                    all_well &= recognises(&tasks, replica, pins).await.is_ok();
                }
            }
            all_well
        })
        .await;

        ask(&site, Asked::Force).await;
        until_phase(&replicas, Phase::Renewing).await;
        until("the live node to have renewed", async || {
            annotation(&site, "live", CERTIFIED_BY).await == new.fingerprint().to_string()
        })
        .await;
        for replica in &replicas {
            assert_eq!(replica.authorities.now().issuing.fingerprint(), new.fingerprint());
            for pins in &all {
                assert_eq!(recognises(&tasks, replica, pins).await, Ok(()), "{pins:?}");
            }
            assert!(recognises(&tasks, replica, &[Fingerprint::from_bytes([7; 32])]).await.is_err());
        }
        // Whoever knows only the old one is told of the new one, and to renew.
        let (mut connection, welcome) = session(&tasks, &replicas[1], &away).await.unwrap();
        assert!(welcome.pins.iter().any(|pin| pin.0 == *new.fingerprint().as_bytes()));
        let trust = told(&mut connection).await;
        assert!(trust.renew && trust.pins == welcome.pins, "{trust:?}");
        connection.close().await;
        // A code from before is still good.
        let late = Asker::new(scratch.path("late"), &unused, "late");
        match late.ask(&tasks, &replicas[0].endpoint).await {
            Ok(Body::Joined(joined)) => {
                let facts = Facts::read(&CertificateDer::from(joined.certificate)).unwrap();
                assert!(new.has_issued(&facts.issuer_key));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(authorities_of(&administrators()), [new.fingerprint(), old.fingerprint()]);

        ask(&site, Asked::Force).await;
        until_phase(&replicas, Phase::Steady).await;
        until("the old one to be shown no more", async || {
            let mut gone = true;
            for replica in &replicas {
                gone &= recognises(&tasks, replica, &all[0]).await.is_err();
            }
            gone
        })
        .await;
        assert_eq!(authorities_of(&administrators()), [new.fingerprint()]);
        for replica in &replicas {
            assert_eq!(recognises(&tasks, replica, &all[1]).await, Ok(()));
            let line = session(&tasks, replica, &away).await.map(drop).unwrap_err();
            assert!(line.contains("join again with a new code") && !line.contains('\n'), "{line}");
        }
        // One that has heard of the new authority and has not renewed is let in no more either.
        let mut heard = away;
        heard.learn(vec![], vec![old.fingerprint(), new.fingerprint()]).unwrap();
        let line = session(&tasks, &replicas[0], &heard).await.map(drop).unwrap_err();
        assert!(line.contains("join again with a new code") && !line.contains('\n'), "{line}");
        until("the live edge to forget the old one", async || pins(&live) == [new.fingerprint()]).await;
        drop(edge);
    });
}

/// The authorities that a kubeconfig trusts.
fn authorities_of(kubeconfig: &str) -> Vec<Fingerprint> {
    let field = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("certificate-authority-data: "));
    let pem = data_encoding::BASE64.decode(field.unwrap().as_bytes()).unwrap();
    let certificates = holm::trust::certificate::from_pem(&pem).unwrap();
    certificates.iter().map(|certificate| Facts::read(certificate).unwrap().key).collect()
}

/// A process that is killed at the end.
struct Role(std::process::Child);

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn holm(words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_holm"));
    command.args(words).env_remove("KUBECONFIG").stdin(std::process::Stdio::null());
    command
}

/// What a command says, or its complaint.
fn says(words: &[&str]) -> Result<String, String> {
    let output = holm(words).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[test]
fn the_command_leads_through_a_rotation_and_the_kubeconfig_follows() {
    run(async |_| {
        let scratch = Scratch::new();
        let folder = scratch.path("cloud");
        std::fs::create_dir_all(&folder).unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (listen, api) = (format!("--listen={}", free()), format!("--api-listen={}", free()));
        let data = format!("--data-dir={}", folder.display());
        let mut command = holm(&["cloud", &listen, &api, &data]);
        let log = || std::fs::File::create(scratch.path("log")).unwrap();
        let _cloud = Role(command.stdout(log()).stderr(log()).spawn().unwrap());
        let phase = |is: &str| says(&["ca", "status", &data]).is_ok_and(|said| said.contains(is));
        until("the cloud", async || phase("Steady")).await;
        let copy = scratch.path("copy");
        std::fs::copy(folder.join("admin.kubeconfig"), &copy).unwrap();
        let with_copy = format!("--kubeconfig={}", copy.display());

        assert!(says(&["ca", "rotate", &data]).unwrap().contains("holm ca status"));
        until("the successor", async || phase("Announcing") && phase("successor  holm-ca-2  sha256:")).await;
        let refused = says(&["ca", "rotate", &data]).unwrap_err();
        assert!(refused.contains("--force") && refused.trim_end().lines().count() == 1, "{refused}");
        assert!(says(&["ca", "status", &with_copy]).is_ok());

        says(&["ca", "rotate", "--force", &data]).unwrap();
        until("the new authority to issue", async || phase("Renewing") && phase("former     holm-ca  "))
            .await;
        // A copy from before knows only the old authority, and is the old one's.
        until("the API to be the new authority's and the copy still good", async || {
            let kubeconfig = std::fs::read_to_string(folder.join("admin.kubeconfig")).unwrap();
            authorities_of(&kubeconfig).len() == 2 && says(&["ca", "status", &with_copy]).is_ok()
        })
        .await;
        assert!(says(&["token", "create", &data]).unwrap().parse::<JoinCode>().unwrap().pins.len() == 2);

        says(&["ca", "rotate", "--force", &data]).unwrap();
        until("the old authority to be gone", async || phase("Steady") && phase("issuing    holm-ca-2"))
            .await;
        until("the copy to be good no more", async || says(&["ca", "status", &with_copy]).is_err()).await;
        assert_eq!(says(&["token", "create", &data]).unwrap().parse::<JoinCode>().unwrap().pins.len(), 1);
    });
}
