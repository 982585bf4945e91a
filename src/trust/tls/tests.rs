//! Whole handshakes in memory, under clocks that show what the test wants.

use super::*;
use crate::trust::authority::{Authority, NodeRequest};
use crate::trust::certificate::{Standing, peer_node, peer_user};
use crate::trust::clock::{BUILD_TIME, IssueTime};
use crate::trust::identity::{Identity, Membership};
use crate::trust::unix;
use rustls::{ClientConnection, ServerConnection};
use std::path::PathBuf;
use std::time::Duration;

const DAY: u64 = 24 * 60 * 60;
const LIFE: Duration = Duration::from_secs(30 * DAY);

/// A clock that shows what a test wants.
#[derive(Debug)]
struct Shows(u64);

impl TimeProvider for Shows {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0))
    }
}

fn after_build(days: u64) -> UnixTime {
    unix(BUILD_TIME.as_secs() + days * DAY)
}

fn at(days: u64) -> IssueTime {
    IssueTime::check(after_build(days), Floor::INITIAL).unwrap()
}

struct Cluster {
    authority: Authority,
    cloud: Credentials,
}

impl Cluster {
    fn new() -> Cluster {
        let authority = Authority::create(&ClusterUid::random().unwrap(), at(0)).unwrap();
        let names = ["api.example.com".try_into().unwrap(), "10.1.2.3".try_into().unwrap()];
        let cloud = authority.issue_cloud(&names, at(0), LIFE).unwrap();
        Cluster { authority, cloud }
    }

    fn hub(&self) -> Arc<ServerConfig> {
        hub_server(&self.cloud, &[self.authority.certificate().clone()]).unwrap()
    }

    /// The edge's configuration under a clock that shows 1970.
    fn edge(&self, floor: Floor, client: Option<&Slot>) -> ClientConfig {
        let pins = [self.authority.fingerprint()];
        under(0, edge_client(self.authority.cluster_uid(), &pins, floor, client).unwrap())
    }

    fn node(&self) -> Node {
        let name = data_encoding::HEXLOWER.encode(&crate::trust::random::<8>().unwrap());
        let directory = std::env::temp_dir().join(format!("holm-tls-{name}"));
        let membership = Membership {
            cluster: self.authority.cluster_uid().clone(),
            node: "pi".parse().unwrap(),
            endpoints: vec!["127.0.0.1".parse().unwrap()],
            pins: vec![self.authority.fingerprint()],
        };
        let mut identity = Identity::join(&directory, membership, false).unwrap();
        let request = NodeRequest::read(&identity.request().unwrap()).unwrap();
        let node = identity.membership().node.clone();
        identity.install(self.authority.issue_node(&node, &request, at(0), LIFE).unwrap()).unwrap();
        identity.promote().unwrap();
        Node { identity, directory }
    }
}

struct Node {
    identity: Identity,
    directory: PathBuf,
}

impl Node {
    fn slot(&self) -> Option<&Slot> {
        self.identity.current()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn under(clock: u64, config: Arc<ClientConfig>) -> ClientConfig {
    let mut config = Arc::unwrap_or_clone(config);
    config.time_provider = Arc::new(Shows(clock));
    config
}

/// Carries the handshake's bytes until both ends are done or one fails; the certificates of the client.
fn handshake(client: ClientConfig, server: Arc<ServerConfig>) -> Result<Vec<CertificateDer<'static>>, Error> {
    // An address that no certificate carries: the name is the verifier's own business.
    handshake_as("203.0.113.1", client, server)
}

fn handshake_as(
    server_name: &'static str,
    client: ClientConfig,
    server: Arc<ServerConfig>,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut client = ClientConnection::new(Arc::new(client), server_name.try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        let at_server = server.process_new_packets();
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        // The first cause, and not the alert that the other end makes of it.
        match (at_server, client.process_new_packets()) {
            (Err(error), _) if !matches!(error, Error::AlertReceived(_)) => return Err(error),
            (_, Err(error)) => return Err(error),
            (Err(error), _) => return Err(error),
            _ => {}
        }
    }
    Ok(server.peer_certificates().unwrap_or_default().to_vec())
}

fn line(error: Error) -> String {
    explain(&io::Error::new(io::ErrorKind::InvalidData, error))
}

#[test]
fn the_right_cluster_is_accepted_in_1970_and_the_node_recognised() {
    let cluster = Cluster::new();
    let node = cluster.node();
    let chain = handshake(cluster.edge(Floor::INITIAL, node.slot()), cluster.hub()).unwrap();
    let peer = peer_node(&chain).unwrap();
    assert_eq!(peer.node.as_str(), "pi");
    assert_eq!(peer.key_fingerprint, node.slot().unwrap().key_fingerprint());
    assert_eq!(peer.standing(after_build(1), Duration::ZERO), Standing::Valid);
}

#[test]
fn without_a_certificate_there_is_no_identity() {
    let cluster = Cluster::new();
    let chain = handshake(cluster.edge(Floor::INITIAL, None), cluster.hub()).unwrap();
    assert_eq!(chain, []);
}

#[test]
fn a_clock_that_is_far_ahead_changes_nothing() {
    let cluster = Cluster::new();
    let pins = [cluster.authority.fingerprint()];
    let config = edge_client(cluster.authority.cluster_uid(), &pins, Floor::INITIAL, None).unwrap();
    assert!(handshake(under(after_build(36500).as_secs(), config), cluster.hub()).is_ok());
}

#[test]
fn another_authority_is_refused() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let error = handshake(ours.edge(Floor::INITIAL, None), theirs.hub()).unwrap_err();
    assert_eq!(error, CertificateError::UnknownIssuer.into());
    assert!(line(error).contains("not this cluster's cloud"));
    // Sending the pinned authority along with a certificate that it did not issue does not help.
    let liar = hub_server(
        &theirs.cloud,
        &[theirs.authority.certificate().clone(), ours.authority.certificate().clone()],
    );
    assert!(handshake(ours.edge(Floor::INITIAL, None), liar.unwrap()).is_err());
}

#[test]
fn another_cluster_of_the_same_authority_is_refused() {
    let cluster = Cluster::new();
    let pins = [cluster.authority.fingerprint()];
    let other = ClusterUid::random().unwrap();
    let config = edge_client(&other, &pins, Floor::INITIAL, None).unwrap();
    let error = handshake(under(0, config), cluster.hub()).unwrap_err();
    assert!(line(error).contains("another cluster"));
}

#[test]
fn a_node_cannot_play_the_cloud() {
    let cluster = Cluster::new();
    let admin = cluster.authority.issue_admin(at(0), LIFE).unwrap();
    let liar = hub_server(&admin, &[cluster.authority.certificate().clone()]).unwrap();
    let error = handshake(cluster.edge(Floor::INITIAL, None), liar).unwrap_err();
    assert!(
        matches!(error, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
        "{error}"
    );
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let stranger = theirs.node();
    let error = handshake(ours.edge(Floor::INITIAL, stranger.slot()), ours.hub()).unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
}

#[test]
fn a_floor_beyond_the_clouds_life_refuses_it() {
    let cluster = Cluster::new();
    assert!(handshake(cluster.edge(Floor::at(after_build(30)), None), cluster.hub()).is_ok());
    let error = handshake(cluster.edge(Floor::at(after_build(31)), None), cluster.hub()).unwrap_err();
    assert!(line(error).contains("expired"));
}

#[test]
fn an_expired_node_is_recognised_and_its_age_reported() {
    let cluster = Cluster::new();
    let node = cluster.node();
    let mut hub = Arc::unwrap_or_clone(cluster.hub());
    hub.time_provider = Arc::new(Shows(after_build(365).as_secs()));
    let chain = handshake(cluster.edge(Floor::INITIAL, node.slot()), Arc::new(hub)).unwrap();
    let peer = peer_node(&chain).unwrap();
    assert_eq!(peer.not_after, after_build(30));
    let window = |days| Duration::from_secs(days * DAY);
    assert_eq!(peer.standing(after_build(365), window(400)), Standing::RenewOnly);
    assert_eq!(peer.standing(after_build(365), window(30)), Standing::Expired);
}

#[test]
fn during_a_rotation_old_and_new_pins_and_nodes_are_accepted() {
    let old = Cluster::new();
    let new = Authority::create(old.authority.cluster_uid(), at(1)).unwrap();
    let old_node = old.node();
    let both = [old.authority.certificate().clone(), new.certificate().clone()];
    let uid = old.authority.cluster_uid();
    let pins = [old.authority.fingerprint(), new.fingerprint()];
    for cloud in [&old.cloud, &new.issue_cloud(&[], at(1), LIFE).unwrap()] {
        let hub = hub_server(cloud, &both).unwrap();
        let edge = edge_client(uid, &pins, Floor::INITIAL, old_node.slot()).unwrap();
        assert!(peer_node(&handshake(under(0, edge), hub).unwrap()).is_ok());
    }
    let only_new = hub_server(&new.issue_cloud(&[], at(1), LIFE).unwrap(), &both[1..]).unwrap();
    assert!(handshake(old.edge(Floor::INITIAL, None), only_new).is_err());
}

#[test]
fn the_api_knows_its_users_and_refuses_expired_ones() {
    let cluster = Cluster::new();
    let admin = cluster.authority.issue_admin(at(0), LIFE).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cluster.authority.certificate().clone()).unwrap();
    let connect = |server_clock: UnixTime, server_name: &'static str| {
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(vec![admin.certificate().clone()], admin.key_der())
            .unwrap();
        client.time_provider = Arc::new(Shows(after_build(1).as_secs()));
        let mut api = Arc::unwrap_or_clone(
            api_server(&cluster.cloud, &[cluster.authority.certificate().clone()]).unwrap(),
        );
        api.time_provider = Arc::new(Shows(server_clock.as_secs()));
        handshake_as(server_name, client, Arc::new(api))
    };
    for name in ["api.example.com", "10.1.2.3"] {
        let user = peer_user(&connect(after_build(1), name).unwrap()).unwrap();
        assert_eq!((user.name.as_str(), user.groups.len()), ("kubernetes-admin", 1));
    }
    assert!(connect(after_build(1), "elsewhere.example.com").is_err());
    assert!(connect(after_build(31), "api.example.com").is_err());
    assert!(connect(unix(0), "api.example.com").is_ok());
}

#[test]
fn a_slot_without_a_certificate_cannot_connect() {
    let cluster = Cluster::new();
    let mut node = cluster.node();
    node.identity.request().unwrap();
    let pins = [cluster.authority.fingerprint()];
    let config = edge_client(cluster.authority.cluster_uid(), &pins, Floor::INITIAL, node.identity.next());
    assert!(matches!(config, Err(TlsError::NoCertificate)));
}

/// What the holder of an authority's key could sign long after its end.
#[test]
fn an_expired_authority_vouches_for_nobody() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData};
    let uid = ClusterUid::random().unwrap();
    let hub_of_authority_until = |year| {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.not_before = rcgen::date_time_ymd(2025, 1, 1);
        authority.not_after = rcgen::date_time_ymd(year, 1, 1);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut cloud = CertificateParams::new(vec![uid.cloud_name()]).unwrap();
        cloud.not_before = rcgen::date_time_ymd(2025, 1, 1);
        cloud.not_after = rcgen::date_time_ymd(2050, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cloud = cloud.signed_by(&key, &authority).unwrap();
        let cloud = Credentials::from_pem(&cloud.pem(), &key.serialize_pem()).unwrap();
        let pin = Fingerprint::of_spki(&authority.key().subject_public_key_info());
        (hub_server(&cloud, &[authority.der().clone()]).unwrap(), pin)
    };
    let connect = |year| {
        let (hub, pin) = hub_of_authority_until(year);
        handshake(under(0, edge_client(&uid, &[pin], Floor::INITIAL, None).unwrap()), hub)
    };
    assert!(connect(2040).is_ok());
    assert!(line(connect(2026).unwrap_err()).contains("expired"));
}
