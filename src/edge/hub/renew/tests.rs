use super::*;
use crate::trust::authority::{Authority, NodeRequest};
use crate::trust::clock::{BUILD_TIME, Floor, IssueTime};
use crate::trust::identity::Membership;
use crate::trust::names::ClusterUid;
use crate::trust::unix;
use std::path::PathBuf;

const DAY: u64 = 24 * 3600;
const LIFE: Duration = Duration::from_secs(30 * DAY);

fn day(days: u64) -> UnixTime {
    unix(BUILD_TIME.as_secs() + days * DAY)
}

fn at(days: u64) -> IssueTime {
    IssueTime::check(day(days), Floor::INITIAL).unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A board with a proven certificate of day 0, and its cloud's authority.
struct Board {
    directory: PathBuf,
    identity: Identity,
    authority: Authority,
    renewal: Renewal,
}

impl Board {
    fn new() -> Board {
        let name = data_encoding::HEXLOWER.encode(&crate::trust::random::<8>().unwrap());
        let directory = std::env::temp_dir().join(format!("holm-renew-{name}"));
        let authority = Authority::create(&ClusterUid::random().unwrap(), at(0)).unwrap();
        let membership = Membership {
            cluster: authority.cluster_uid().clone(),
            node: "pi".parse().unwrap(),
            endpoints: vec!["127.0.0.1".parse().unwrap()],
            pins: vec![authority.fingerprint()],
        };
        let mut identity = Identity::join(&directory, membership, false).unwrap();
        let request = identity.request().unwrap();
        let certificate = issue(&authority, &request, 0);
        identity.install(certificate.into()).unwrap();
        identity.promote().unwrap();
        Board { directory, identity, authority, renewal: Renewal::default() }
    }

    fn ask(&mut self, time: UnixTime, now: u64) -> Option<Vec<u8>> {
        match self.renewal.ask(&mut self.identity, time, secs(now))? {
            Body::Renew(renew) => Some(renew.request),
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, request: &[u8], days: u64, now: u64) {
        let renewed = Renewed { certificate: issue(&self.authority, request, days), reason: None };
        self.renewal.answered(&mut self.identity, renewed, secs(now));
    }

    fn no(&mut self, now: u64) {
        let no = Renewed { certificate: vec![], reason: Some("not today".into()) };
        self.renewal.answered(&mut self.identity, no, secs(now));
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(self.directory.join("identity")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn issue(authority: &Authority, request: &[u8], days: u64) -> Vec<u8> {
    let request = NodeRequest::read(request).unwrap();
    authority.issue_node(&"pi".parse().unwrap(), &request, at(days), LIFE).unwrap().to_vec()
}

fn key(request: &[u8]) -> crate::trust::names::Fingerprint {
    NodeRequest::read(request).unwrap().key_fingerprint()
}

#[test]
fn a_board_asks_at_two_thirds_of_the_life_and_connects_anew_when_idle() {
    let mut board = Board::new();
    let before = board.files();
    board.renewal.begin(&board.identity, day(0));
    for days in 0..20 {
        assert_eq!(board.ask(day(days), days), None);
    }
    assert_eq!(board.files(), before, "a board that is not due writes nothing");
    let request = board.ask(day(20), 100).unwrap();
    assert_eq!(board.ask(day(20), 101), None, "it asks once");
    assert!(!board.renewal.wants_reconnect(secs(101), true));
    board.answer(&request, 20, 102);
    assert!(board.renewal.wants_reconnect(secs(102), true));
    assert!(!board.renewal.wants_reconnect(secs(103), false));
    assert!(board.renewal.wants_reconnect(secs(102) + BUSY, false));
    // The old one is there until the new one has connected.
    assert_eq!(board.identity.candidates().count(), 2);
    board.identity.promote().unwrap();
    board.renewal.begin(&board.identity, day(20));
    assert_eq!(board.ask(day(39), 200), None);
    assert!(board.ask(day(40), 201).is_some());
}

#[test]
fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let mut board = Board::new();
    let first = board.ask(day(20), 0).unwrap();
    let kept = board.files();
    // The connection was cut, and the agent restarted.
    board.renewal = Renewal::default();
    board.identity = Identity::load(&board.directory).unwrap().unwrap();
    board.renewal.begin(&board.identity, day(20));
    let again = board.ask(day(20), 0).unwrap();
    assert_eq!(key(&first), key(&again));
    assert_eq!(board.files(), kept, "nothing is written twice");
    // Without an answer it is asked again after a pause, with that key too.
    assert_eq!(board.ask(day(20), ANSWER.as_secs()), None);
    let third = board.ask(day(20), 24 * 3600).unwrap();
    assert_eq!(key(&first), key(&third));
}

#[test]
fn refusals_are_asked_again_ever_more_seldom() {
    let mut board = Board::new();
    let mut asked = 0;
    board.renewal.begin(&board.identity, day(20));
    for second in 0..(24 * 3600) {
        if board.ask(day(20), second).is_some() {
            asked += 1;
            board.no(second);
        }
    }
    // Minutes first, then hours: more than a few and far from one a minute.
    assert!((3..100).contains(&asked), "{asked}");
    assert_eq!(board.identity.candidates().count(), 1);
}

#[test]
fn a_new_certificate_that_cannot_connect_is_not_asked_for_again_at_once() {
    let mut board = Board::new();
    let request = board.ask(day(20), 0).unwrap();
    board.answer(&request, 20, 1);
    // The connection came about with the old one.
    board.renewal.begin(&board.identity, day(20));
    assert_eq!(board.ask(day(20), 2), None);
    assert_eq!(board.identity.candidates().count(), 2);
    let other = board.ask(day(20), 24 * 3600).unwrap();
    assert_ne!(key(&request), key(&other));
    assert_eq!(board.identity.candidates().count(), 1, "the old one is what still connects");
}

#[test]
fn a_board_that_may_only_renew_connects_again_after_a_pause_and_at_once_when_it_has() {
    let mut board = Board::new();
    for second in [0, 10_000, 20_000, 30_000] {
        board.renewal.begin(&board.identity, day(40));
        board.renewal.order();
        board.ask(day(40), second).unwrap();
        board.no(second);
        let pause = board.renewal.wait(secs(second));
        assert!(pause >= PAUSES.0.min(AWAY) && pause <= AWAY, "{pause:?}");
        assert_eq!(board.ask(day(40), second + 1), None);
    }
    let request = board.ask(day(40), 40_000).unwrap();
    board.answer(&request, 40, 40_000);
    assert_eq!(board.renewal.wait(secs(40_000)), Duration::ZERO);
}

#[test]
fn an_order_renews_whatever_the_age() {
    let mut board = Board::new();
    board.renewal.begin(&board.identity, day(1));
    assert_eq!(board.ask(day(1), 0), None);
    board.renewal.order();
    let request = board.ask(day(1), 1).unwrap();
    board.answer(&request, 1, 2);
    board.identity.promote().unwrap();
    board.renewal.begin(&board.identity, day(1));
    assert_eq!(board.ask(day(1), 24 * 3600), None);
}

#[test]
fn a_certificate_of_a_cloud_years_ahead_is_renewed_by_one_with_the_right_time() {
    let mut board = Board::new();
    let request = board.ask(day(3650), 0).unwrap();
    board.answer(&request, 3650, 1);
    board.identity.promote().unwrap();
    board.renewal = Renewal::default();
    board.renewal.begin(&board.identity, day(3650));
    assert_eq!(board.ask(day(3650), 2), None);
    board.renewal.begin(&board.identity, day(1));
    assert!(board.ask(day(1), 3).is_some());
}

#[test]
fn what_was_not_asked_for_is_not_installed() {
    let mut board = Board::new();
    let request = board.identity.request().unwrap();
    board.answer(&request, 1, 0);
    assert_eq!(board.identity.candidates().count(), 1);
    assert!(!board.renewal.wants_reconnect(secs(5), true));
}
