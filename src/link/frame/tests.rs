use proptest::prelude::*;

use super::*;

/// One frame of each kind. Their bytes are golden: a later release must
/// read them for ever.
pub(crate) fn samples() -> Vec<(&'static str, Frame)> {
    let key = WireKey {
        group: "".into(),
        resource: "pods".into(),
        namespace: "default".into(),
        name: "hello".into(),
    };
    let gone = Gone { key: key.clone(), uid: "u1".into() };
    let numbered = |body| Frame { seq: 7, ack: 3, body: Some(body), has_body: true };
    vec![
        ("ack", Frame { ack: 9, ..Frame::default() }),
        (
            "hello",
            Frame::plain(Body::Hello(Hello {
                version_min: 1,
                version_max: 2,
                epoch: 5,
                generation: 0xfedc_ba98_7654_3210,
                cluster: "c".into(),
                digest_algorithm: 1,
                digest: [7; 32],
                features: vec!["x".into()],
                software: "0.1.0".into(),
                pins: vec![],
                connection: 0,
            })),
        ),
        ("hello-connection", Frame::plain(Body::Hello(Hello { connection: 3, ..Hello::default() }))),
        ("hello-pins", Frame::plain(Body::Hello(Hello { pins: vec![Hash([9; 32])], ..Hello::default() }))),
        (
            "welcome-pins",
            Frame::plain(Body::Welcome(Welcome {
                pins: vec![Hash([9; 32])],
                renew_only: true,
                ..Welcome::default()
            })),
        ),
        (
            "welcome",
            Frame::plain(Body::Welcome(Welcome {
                version: 1,
                cluster: "c".into(),
                time_ms: 1_800_000_000_000,
                complete: true,
                inventory: true,
                window: 64,
                keep_alive_secs: 15,
                endpoints: vec!["a:1".into()],
                features: vec![],
                software: "0.1.0".into(),
                pins: vec![],
                renew_only: false,
                keep_alive_least_secs: 0,
            })),
        ),
        (
            "welcome-least",
            Frame::plain(Body::Welcome(Welcome { keep_alive_least_secs: 5, ..Welcome::default() })),
        ),
        ("refused", Frame::plain(Body::Refused(Refused { reason: "no".into(), permanent: true }))),
        (
            "inventory",
            Frame::plain(Body::Inventory(Inventory {
                holdings: vec![Holding { key: key.clone(), uid: "u1".into(), hash: [1; 32] }],
                last: true,
            })),
        ),
        ("put", numbered(Body::Put(Put { key: key.clone(), object: vec![0xa0], ..Put::default() }))),
        (
            "put-base",
            numbered(Body::Put(Put {
                key: key.clone(),
                encoding: ENCODING_LZ4_BASE,
                object: vec![0x10, 0xa0],
                base: Some(Hash([8; 32])),
                length: 1,
            })),
        ),
        ("need-full", numbered(Body::NeedFull(NeedFull { key: key.clone(), uid: "".into() }))),
        ("drop", numbered(Body::Drop(gone.clone()))),
        ("synced", numbered(Body::Synced)),
        ("status", numbered(Body::Status(Status { key, uid: "u1".into(), status: vec![0xa0] }))),
        ("gone", numbered(Body::Gone(gone))),
        ("register", numbered(Body::Register(Register { node: vec![0xa0] }))),
        (
            "event",
            numbered(Body::Event(Happening { id: ItemId { generation: 1, sequence: 2 }, event: vec![0xa0] })),
        ),
        ("ping", Frame::plain(Body::Ping)),
        ("unsupported", Frame::plain(Body::Unsupported(7))),
        (
            "join",
            Frame::plain(Body::Join(Join {
                secret_id: "id".into(),
                secret: [2; 32],
                node: "n".into(),
                request: vec![1, 2],
            })),
        ),
        (
            "joined",
            Frame::plain(Body::Joined(Joined { certificate: vec![3], endpoints: vec!["a:1".into()] })),
        ),
        ("renew", numbered(Body::Renew(Renew { request: vec![1, 2] }))),
        ("renewed", numbered(Body::Renewed(Renewed { certificate: vec![3], reason: None }))),
        ("renewed-not", numbered(Body::Renewed(Renewed { certificate: vec![], reason: Some("no".into()) }))),
        (
            "trust",
            numbered(Body::Trust(Trust {
                pins: vec![Hash([9; 32])],
                endpoints: vec!["a:1".into()],
                renew: true,
            })),
        ),
        (
            "open",
            numbered(Body::Open(Open { stream: 2, service: "logs".into(), header: vec![1], credit: 65_536 })),
        ),
        ("data", numbered(Body::Data(Data { stream: 2, bytes: vec![1, 2, 3] }))),
        ("credit", Frame::plain(Body::Credit(Credit { stream: 2, bytes: 4096 }))),
        ("end", numbered(Body::End(End { stream: 2, reason: Some("over".into()) }))),
        (
            "call",
            numbered(Body::Call(Call {
                call: 3,
                service: "version".into(),
                question: vec![1],
                deadline_ms: 1500,
            })),
        ),
        ("answer", numbered(Body::Answer(Answer { call: 3, answer: vec![1], error: None }))),
        ("cancel", numbered(Body::Cancel(3))),
    ]
}

#[test]
fn every_frame_ever_written_is_still_read() {
    let golden = include_str!("../golden.txt");
    let mut seen = 0;
    for line in golden.lines().filter(|line| !line.starts_with('#')) {
        let (name, hex) = line.split_once(' ').unwrap();
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        let (_, frame) = samples().into_iter().find(|(sample, _)| *sample == name).unwrap();
        assert_eq!(Frame::decode(&bytes).unwrap(), frame, "{name}");
        seen += 1;
    }
    assert_eq!(seen, samples().len(), "a frame without golden bytes: add what follows to golden.txt\n{}", {
        let lines: Vec<String> = samples()
            .iter()
            .map(|(name, frame)| format!("{name} {}", data_encoding::HEXLOWER.encode(&frame.encode())))
            .collect();
        lines.join("\n")
    });
}

#[test]
fn what_is_unknown_is_skipped_and_recognised_as_unknown() {
    // {0: 4, 2: [99, ["future"]], 3: true, 200: "later field"}
    let mut encoder = minicbor::Encoder::new(Vec::new());
    encoder.map(4).unwrap().u8(0).unwrap().u64(4).unwrap();
    encoder.u8(2).unwrap().array(2).unwrap().u32(99).unwrap().array(1).unwrap().str("future").unwrap();
    encoder.u8(3).unwrap().bool(true).unwrap().u8(200).unwrap().str("later field").unwrap();
    let frame = Frame::decode(&encoder.into_writer()).unwrap();
    assert_eq!(frame, Frame { seq: 4, ack: 0, body: None, has_body: true });
}

#[test]
fn trailing_bytes_are_refused() {
    let mut bytes = Frame::plain(Body::Ping).encode();
    bytes.push(0);
    assert_eq!(Frame::decode(&bytes), Err(FrameError::Trailing(1)));
}

#[test]
fn versions_meet_or_do_not() {
    let hello = |version_min, version_max| Hello { version_min, version_max, ..Hello::default() };
    assert_eq!(negotiate(&hello(1, 1)), Some(1));
    assert_eq!(negotiate(&hello(1, 9)), Some(VERSION_MAX));
    assert_eq!(negotiate(&hello(VERSION_MAX + 1, 9)), None);
    assert_eq!(negotiate(&hello(0, 0)), None);
}

#[test]
fn a_join_secret_is_not_shown() {
    let join = Join { secret: [0xab; 32], ..Join::default() };
    assert!(!format!("{join:?}").contains("171"));
}

proptest! {
    #[test]
    fn garbage_is_an_error_or_a_frame_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn a_damaged_frame_never_panics(which in 0usize..16, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let samples = samples();
        let mut bytes = samples[which % samples.len()].1.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Frame::decode(&bytes);
    }
}
