use super::*;
use crate::trust::authority::{Authority, NodeRequest};
use crate::trust::clock::{BUILD_TIME, Boot, Floor, IssueTime};
use crate::trust::unix;
use std::time::Duration;

/// A directory that is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let name = data_encoding::HEXLOWER.encode(&crate::trust::random::<8>().unwrap());
        Scratch(std::env::temp_dir().join(format!("holm-identity-{name}")))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(DIRECTORY).join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn cluster() -> Authority {
    Authority::create(&ClusterUid::random().unwrap(), now()).unwrap()
}

fn now() -> IssueTime {
    IssueTime::check(BUILD_TIME, Floor::INITIAL).unwrap()
}

fn membership(authority: &Authority) -> Membership {
    Membership {
        cluster: authority.cluster_uid().clone(),
        node: "pi".parse().unwrap(),
        endpoints: vec!["cloud.example.com".parse().unwrap()],
        pins: vec![authority.fingerprint()],
    }
}

fn issue(authority: &Authority, identity: &mut Identity) -> CertificateDer<'static> {
    let request = NodeRequest::read(&identity.request().unwrap()).unwrap();
    let node = identity.membership().node.clone();
    authority.issue_node(&node, &request, now(), Duration::from_secs(300)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_board_joins_renews_and_reboots() {
    let (scratch, authority) = (Scratch::new(), cluster());
    assert!(Identity::load(&scratch.0).unwrap().is_none());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    assert!(matches!(identity.promote(), Err(IdentityError::NothingNext("promote"))));

    let first = issue(&authority, &mut identity);
    identity.install(first.clone()).unwrap();
    let mut identity = Identity::load(&scratch.0).unwrap().unwrap();
    assert_eq!(identity.membership(), &membership(&authority));
    assert!(identity.current().is_none());
    assert_eq!(identity.candidates().count(), 1);
    identity.promote().unwrap();

    // A renewed certificate is tried first and the proven one is still there.
    let second = issue(&authority, &mut identity);
    assert_eq!(identity.candidates().count(), 1);
    identity.install(second.clone()).unwrap();
    let mut identity = Identity::load(&scratch.0).unwrap().unwrap();
    let order: Vec<_> = identity.candidates().filter_map(Slot::certificate).collect();
    assert_eq!(order, [&second, &first]);
    identity.promote().unwrap();
    let identity = Identity::load(&scratch.0).unwrap().unwrap();
    assert_eq!(identity.current().and_then(Slot::certificate), Some(&second));
    assert!(identity.next().is_none());
    // 300 s of life and the hour that certificates are backdated by.
    let renew_at = identity.current().unwrap().renew_at().unwrap();
    assert_eq!(renew_at.as_secs(), BUILD_TIME.as_secs() - 3600 + 2600);
}

#[test]
fn an_unanswered_request_is_repeated_with_the_same_key() {
    let (scratch, authority) = (Scratch::new(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    let first = issue(&authority, &mut identity);
    let mut rebooted = Identity::load(&scratch.0).unwrap().unwrap();
    let again = issue(&authority, &mut rebooted);
    assert_ne!(first, again);
    let key = |certificate| Facts::read(&certificate).unwrap().key;
    assert_eq!(key(first.clone()), key(again));
    // The first answer, come late, fits too.
    rebooted.install(first).unwrap();
}

#[test]
fn files_are_private_and_keys_are_not_shown() {
    let (scratch, authority) = (Scratch::new(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    let certificate = issue(&authority, &mut identity);
    identity.install(certificate).unwrap();
    write_floor(&scratch.0, &Floor::INITIAL.into()).unwrap();
    assert_eq!(mode(&scratch.0.join(DIRECTORY)), 0o700);
    for name in [CLUSTER, NEXT, FLOOR] {
        assert_eq!(mode(&scratch.file(name)), 0o600, "{name}");
    }
    let key_line = identity.next().unwrap().to_pem().lines().nth(1).unwrap().to_owned();
    assert!(!format!("{identity:?}").contains(&key_line));

    // Opened to others by a careless copy, closed again when read.
    fs::set_permissions(scratch.file(NEXT), Permissions::from_mode(0o644)).unwrap();
    Identity::load(&scratch.0).unwrap();
    assert_eq!(mode(&scratch.file(NEXT)), 0o600);
}

#[test]
fn nothing_is_written_that_is_there_already() {
    use std::os::unix::fs::MetadataExt;
    let (scratch, authority) = (Scratch::new(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    let inode = || fs::metadata(scratch.file(CLUSTER)).unwrap().ino();
    let before = inode();
    assert!(!identity.learn(vec![], membership(&authority).pins).unwrap());
    Identity::join(&scratch.0, membership(&authority), false).unwrap();
    assert_eq!(inode(), before);
    let endpoint: Endpoint = "10.0.0.9".parse().unwrap();
    assert!(identity.learn(vec![endpoint.clone()], vec![]).unwrap());
    assert_ne!(inode(), before);
    let kept = Identity::load(&scratch.0).unwrap().unwrap();
    assert_eq!(kept.membership().endpoints, [endpoint]);
    assert_eq!(kept.membership().pins, membership(&authority).pins);
}

#[test]
fn another_cluster_is_refused_until_adopted() {
    let (scratch, ours, other) = (Scratch::new(), cluster(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&ours), false).unwrap();
    let certificate = issue(&ours, &mut identity);
    identity.install(certificate.clone()).unwrap();
    identity.promote().unwrap();

    let same = Identity::join(&scratch.0, membership(&ours), false).unwrap();
    assert_eq!(same.current().and_then(Slot::certificate), Some(&certificate));
    let refused = Identity::join(&scratch.0, membership(&other), false);
    assert!(matches!(refused, Err(IdentityError::OtherCluster { .. })));
    let unchanged = Identity::load(&scratch.0).unwrap().unwrap();
    assert_eq!(unchanged.current().and_then(Slot::certificate), Some(&certificate));
    let adopted = Identity::join(&scratch.0, membership(&other), true).unwrap();
    assert!(adopted.current().is_none());
    assert!(!scratch.file(CURRENT).exists());
}

#[test]
fn certificates_of_others_are_not_installed() {
    let (scratch, authority) = (Scratch::new(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    let elsewhere = Scratch::new();
    let mut other = Identity::join(&elsewhere.0, membership(&authority), false).unwrap();
    let others = issue(&authority, &mut other);
    assert!(matches!(identity.install(others.clone()), Err(IdentityError::NothingNext("install"))));
    let request = NodeRequest::read(&identity.request().unwrap()).unwrap();
    assert!(matches!(identity.install(others), Err(IdentityError::OtherKey)));
    let renamed =
        authority.issue_node(&"x".parse().unwrap(), &request, now(), Duration::from_secs(9)).unwrap();
    assert!(matches!(identity.install(renamed), Err(IdentityError::OtherNode(_))));
}

#[test]
fn damage_is_named_with_its_file_and_remedy() {
    let (scratch, authority) = (Scratch::new(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    let certificate = issue(&authority, &mut identity);
    identity.install(certificate).unwrap();
    identity.promote().unwrap();
    identity.request().unwrap();

    // A next slot that is lost is made again; the rest goes on.
    fs::write(scratch.file(NEXT), "garbage").unwrap();
    assert!(Identity::load(&scratch.0).unwrap().unwrap().next().is_none());

    let whole = fs::read(scratch.file(CURRENT)).unwrap();
    for cut in [0, 10, whole.len() / 2] {
        fs::write(scratch.file(CURRENT), &whole[..cut]).unwrap();
        let line = Identity::load(&scratch.0).unwrap_err().to_string();
        assert!(line.contains("current.pem is damaged") && line.contains("holm edge --join"), "{line}");
        assert!(!line.contains('\n'));
    }
    fs::write(scratch.file(CURRENT), vec![b'x'; FILE_MAX as usize + 1]).unwrap();
    assert!(Identity::load(&scratch.0).unwrap_err().to_string().contains("too long"));
    fs::write(scratch.file(CLUSTER), "{}").unwrap();
    assert!(Identity::load(&scratch.0).unwrap_err().to_string().contains("no valid clusterUID"));
    assert!(Identity::join(&scratch.0, membership(&authority), true).unwrap().current().is_none());
}

#[test]
fn the_floor_is_kept_and_a_damaged_one_forgotten() {
    let scratch = Scratch::new();
    assert_eq!(read_floor(&scratch.0).unwrap(), None);
    let confirmed = Some(Boot { id: "a-b".into(), up: Duration::from_secs(77) });
    let kept = Kept { floor: Floor::at(unix(12345)), confirmed };
    write_floor(&scratch.0, &kept).unwrap();
    assert_eq!(read_floor(&scratch.0).unwrap(), Some(kept));
    // As a release before this one wrote it.
    fs::write(scratch.file(FLOOR), "12345\n").unwrap();
    assert_eq!(read_floor(&scratch.0).unwrap(), Some(Floor::at(unix(12345)).into()));
    fs::write(scratch.file(FLOOR), "\0\0\0").unwrap();
    assert_eq!(read_floor(&scratch.0).unwrap(), None);
}

#[test]
fn a_poisoned_list_of_endpoints_locks_nobody_out() {
    use std::os::unix::fs::MetadataExt;
    let (scratch, authority) = (Scratch::new(), cluster());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    let code: Endpoint = "cloud.example.com".parse().unwrap();
    let wrong: Vec<Endpoint> = (0..50).map(|n| format!("192.0.2.{}", n % 40).parse().unwrap()).collect();
    assert!(identity.learn(wrong.clone(), Vec::new()).unwrap());
    // Bounded, each once, and the join code's own after all of them: today and after a restart.
    let kept = Identity::load(&scratch.0).unwrap().unwrap();
    for identity in [&identity, &kept] {
        let endpoints = identity.endpoints();
        assert_eq!(endpoints.len(), ENDPOINTS_MAX + 1);
        assert_eq!(endpoints.last(), Some(&code));
    }
    // The same again is not written again.
    let inode = || fs::metadata(scratch.file(CLUSTER)).unwrap().ino();
    let before = inode();
    assert!(!identity.learn(wrong, Vec::new()).unwrap());
    assert_eq!(inode(), before);
    assert!(identity.learn(vec![code.clone()], Vec::new()).unwrap());
    assert_eq!((identity.endpoints(), inode() == before), (vec![code], false));
}

#[test]
fn pins_change_only_to_some_that_overlap() {
    let (scratch, authority) = (Scratch::new(), cluster());
    let (old, new, other) = (authority.fingerprint(), cluster().fingerprint(), cluster().fingerprint());
    let mut identity = Identity::join(&scratch.0, membership(&authority), false).unwrap();
    assert!(!identity.learn(Vec::new(), vec![other, new]).unwrap());
    assert!(identity.learn(Vec::new(), vec![old, new]).unwrap());
    assert!(identity.learn(Vec::new(), vec![new]).unwrap());
    assert_eq!(Identity::load(&scratch.0).unwrap().unwrap().membership().pins, [new]);
    assert!(!identity.learn(Vec::new(), vec![old]).unwrap());
}
