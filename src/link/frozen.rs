//! Ends of releases that are out there, frozen, against today's.

mod v1;

use super::compress::pack;
use super::frame::{
    Body, FEATURE_LZ4, Frame, Hash, Hello, NeedFull, Put, Trust, Welcome, WireKey, features, negotiate,
    tests::samples,
};
use super::session::{Effect, Event, KEEP_ALIVE, Session, WINDOW};
use std::time::Duration;

const NOW: Duration = Duration::from_secs(7);

/// An end of release 0.1: it counts, acknowledges what it has done, and says
/// what it does not know.
#[derive(Default)]
struct Old {
    sent: u64,
    received: u64,
    acked: u64,
    heard: Vec<v1::Body>,
}

impl Old {
    fn say(&mut self, body: v1::Body) -> Vec<u8> {
        self.sent += 1;
        v1::Frame { seq: self.sent, ack: self.received, body: Some(body), has_body: true }.encode()
    }

    fn plain(&self, body: v1::Body) -> Vec<u8> {
        v1::Frame { ack: self.received, body: Some(body), has_body: true, ..v1::Frame::default() }.encode()
    }

    /// What it answers.
    fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        let frame = v1::Frame::decode(bytes);
        assert!(frame.ack >= self.acked && frame.ack <= self.sent);
        self.acked = frame.ack;
        if frame.seq != 0 {
            self.received += 1;
            assert_eq!(frame.seq, self.received, "a gap would end the connection");
        }
        let body = match frame.body {
            None if frame.has_body => Some(v1::Body::Unsupported(frame.seq)),
            body => {
                self.heard.extend(body);
                None
            }
        };
        v1::Frame { seq: 0, ack: self.received, has_body: body.is_some(), body }.encode()
    }
}

/// Today's end takes what an old one says; gives the body if there is one to act on.
fn take(session: &mut Session, bytes: &[u8]) -> Option<Body> {
    let mut heard = None;
    for effect in session.step(NOW, Event::Frame(Frame::decode(bytes).unwrap())) {
        match effect {
            Effect::Deliver(seq, body) => {
                heard = Some(body);
                if seq != 0 {
                    session.step(NOW, Event::Done(seq));
                }
            }
            Effect::Acked(_) | Effect::Send(_) => {}
            Effect::Close(reason) => panic!("{reason}"),
        }
    }
    heard
}

fn today(is_edge: bool) -> Session {
    Session::new(NOW, is_edge, WINDOW, KEEP_ALIVE)
}

fn old_key() -> v1::WireKey {
    v1::WireKey { group: "".into(), resource: "pods".into(), namespace: "default".into(), name: "a".into() }
}

fn key() -> WireKey {
    WireKey { group: "".into(), resource: "pods".into(), namespace: "default".into(), name: "a".into() }
}

#[test]
fn an_old_edge_and_todays_cloud_agree_and_work() {
    let (mut edge, mut cloud) = (Old::default(), today(false));
    let hello = v1::Hello {
        version_min: 1,
        version_max: 1,
        epoch: 4,
        generation: 9,
        cluster: "c".into(),
        digest_algorithm: 1,
        digest: [3; 32],
        features: vec![],
        software: "0.1.0".into(),
    };
    let Some(Body::Hello(hello)) = take(&mut cloud, &edge.plain(v1::Body::Hello(hello))) else { panic!() };
    assert_eq!((hello.epoch, hello.digest, &hello.pins[..]), (4, [3; 32], &[][..]));
    assert_eq!(negotiate(&hello), Some(1));

    let welcome = Welcome {
        version: 1,
        cluster: "c".into(),
        time_ms: 1,
        complete: true,
        inventory: true,
        window: 64,
        keep_alive_secs: 15,
        endpoints: vec!["a:1".into()],
        features: features(),
        software: "9.9.9".into(),
        pins: vec![Hash([1; 32])],
        ..Welcome::default()
    };
    edge.hear(&Frame::plain(Body::Welcome(welcome)).encode());
    let Some(v1::Body::Welcome(heard)) = edge.heard.pop() else { panic!() };
    assert_eq!((heard.version, heard.inventory, heard.window, heard.keep_alive_secs), (1, true, 64, 15));
    assert_eq!(heard.endpoints, ["a:1"]);

    let holdings = vec![v1::Holding { key: old_key(), uid: "u".into(), hash: [5; 32] }];
    let inventory = edge.plain(v1::Body::Inventory(v1::Inventory { holdings, last: true }));
    let Some(Body::Inventory(heard)) = take(&mut cloud, &inventory) else { panic!() };
    assert_eq!((&heard.holdings[0].key, heard.holdings[0].hash, heard.last), (&key(), [5; 32], true));

    // It has named no feature, so its object is plain though there is a base.
    let object = vec![0x61; 4000];
    let reads_lz4 = hello.features.iter().any(|feature| feature == FEATURE_LZ4);
    let put = pack(&object, Some(&object), reads_lz4).put(key());
    let (_, frame) = cloud.send(NOW, Body::Put(put));
    let answer = edge.hear(&frame.encode());
    assert_eq!(edge.heard.pop(), Some(v1::Body::Put(v1::Put { key: old_key(), encoding: 0, object })));
    assert_eq!(take(&mut cloud, &answer), None);
    let (_, frame) = cloud.send(NOW, Body::Synced);
    edge.hear(&frame.encode());
    assert_eq!(edge.heard.pop(), Some(v1::Body::Synced));

    let status = v1::Status { key: old_key(), uid: "u".into(), status: vec![0xa0] };
    let Some(Body::Status(heard)) = take(&mut cloud, &edge.say(v1::Body::Status(status))) else { panic!() };
    assert_eq!((heard.key, heard.uid.as_str(), heard.status), (key(), "u", vec![0xa0]));
    let happening = v1::Happening { id: v1::ItemId { generation: 1, sequence: 2 }, event: vec![0xa0] };
    let Some(Body::Event(heard)) = take(&mut cloud, &edge.say(v1::Body::Event(happening))) else { panic!() };
    assert_eq!((heard.id.generation, heard.id.sequence), (1, 2));
    let gone = v1::Gone { key: old_key(), uid: "u".into() };
    assert!(matches!(take(&mut cloud, &edge.say(v1::Body::Gone(gone))), Some(Body::Gone(_))));
    let register = v1::Register { node: vec![0xa0] };
    assert!(matches!(take(&mut cloud, &edge.say(v1::Body::Register(register))), Some(Body::Register(_))));

    // What it cannot know, today's cloud is told of, and the session goes on.
    for body in [Body::Trust(Trust::default()), Body::Cancel(2), Body::NeedFull(NeedFull::default())] {
        let (seq, frame) = cloud.send(NOW, body);
        let answer = edge.hear(&frame.encode());
        assert_eq!(v1::Frame::decode(&answer).body, Some(v1::Body::Unsupported(seq)));
        assert_eq!(take(&mut cloud, &answer), None);
    }
    let (_, frame) = cloud.send(NOW, Body::Synced);
    let answer = edge.hear(&frame.encode());
    assert_eq!(edge.heard.pop(), Some(v1::Body::Synced));
    let acked = cloud.step(NOW, Event::Frame(Frame::decode(&answer).unwrap()));
    assert_eq!(acked, [Effect::Acked(6)]);
    assert_eq!(edge.acked, 4, "all that the edge sent before");
}

#[test]
fn todays_edge_and_an_old_cloud_agree_and_work() {
    let (mut edge, mut cloud) = (today(true), Old::default());
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        epoch: 4,
        features: features(),
        software: "9.9.9".into(),
        pins: vec![Hash([1; 32])],
        ..Hello::default()
    };
    cloud.hear(&Frame::plain(Body::Hello(hello)).encode());
    let Some(v1::Body::Hello(heard)) = cloud.heard.pop() else { panic!() };
    assert_eq!((heard.version_min, heard.version_max, heard.epoch), (1, 1, 4));
    let welcome = v1::Welcome { version: 1, window: 64, keep_alive_secs: 15, ..v1::Welcome::default() };
    let Some(Body::Welcome(welcome)) = take(&mut edge, &cloud.plain(v1::Body::Welcome(welcome))) else {
        panic!()
    };
    assert_eq!((welcome.version, welcome.window, welcome.features.len()), (1, 64, 0));
    assert!(!welcome.renew_only && welcome.pins.is_empty());
    let put = v1::Put { key: old_key(), encoding: 0, object: vec![0xa0] };
    let Some(Body::Put(put)) = take(&mut edge, &cloud.say(v1::Body::Put(put))) else { panic!() };
    assert_eq!(put, Put { key: key(), object: vec![0xa0], ..Put::default() });
    assert_eq!(super::compress::unpack(&put, |_| None), Ok(vec![0xa0]));
    let gone = v1::Gone { key: old_key(), uid: "u".into() };
    assert!(matches!(take(&mut edge, &cloud.say(v1::Body::Drop(gone))), Some(Body::Drop(_))));
    assert_eq!(take(&mut edge, &cloud.say(v1::Body::Synced)), Some(Body::Synced));
    let (seq, frame) = edge.send(NOW, Body::Renew(Default::default()));
    let answer = cloud.hear(&frame.encode());
    assert_eq!(v1::Frame::decode(&answer).body, Some(v1::Body::Unsupported(seq)));
    assert_eq!(take(&mut edge, &answer), None);
    assert!(edge.has_room());
    assert_eq!(take(&mut edge, &cloud.plain(v1::Body::Ping)), None);
}

#[test]
fn an_old_end_reads_every_frame_of_today_or_says_that_it_does_not() {
    let mut unknown = 0;
    for (name, frame) in samples() {
        let read = v1::Frame::decode(&frame.encode());
        assert_eq!((read.seq, read.ack, read.has_body), (frame.seq, frame.ack, frame.has_body), "{name}");
        unknown += usize::from(frame.has_body && read.body.is_none());
    }
    assert!(unknown > 0, "today's end knows more");
}

#[test]
fn versions_that_do_not_meet_are_noticed() {
    let future = v1::Hello { version_min: 7, version_max: 9, ..v1::Hello::default() };
    let bytes = Old::default().plain(v1::Body::Hello(future));
    let Some(Body::Hello(hello)) = take(&mut today(false), &bytes) else { panic!() };
    assert_eq!(negotiate(&hello), None);
}
