#![allow(clippy::needless_range_loop)] // two ends, by their index

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// One direction of a connection as the driver makes it: credit may overtake
/// the one bulk frame that waits for the writer.
#[derive(Default)]
struct Lane {
    waiting: Option<Body>,
    wire: VecDeque<Body>,
}

struct Pair {
    ends: [Streams; 2],
    lanes: [Lane; 2],
    opened: [Vec<u64>; 2],
}

impl Pair {
    fn new() -> Pair {
        Pair {
            ends: [Streams::new(true), Streams::new(false)],
            lanes: Default::default(),
            opened: Default::default(),
        }
    }

    /// Something leaves an end.
    fn send(&mut self, end: usize, is_credit: bool) -> bool {
        let (streams, lane) = (&mut self.ends[end], &mut self.lanes[end]);
        if is_credit {
            return streams.next_credit().map(|body| lane.wire.push_back(body)).is_some();
        }
        if let Some(body) = lane.waiting.take() {
            lane.wire.push_back(body);
        }
        lane.waiting = streams.next_bulk().map(|(_, body)| body);
        lane.waiting.is_some()
    }

    /// Something arrives at the other end; an honest peer breaks no rule.
    fn arrive(&mut self, from: usize) -> bool {
        let Some(body) = self.lanes[from].wire.pop_front() else { return false };
        if let Body::Data(data) = &body {
            assert!(!data.bytes.is_empty() && data.bytes.len() <= CHUNK);
        }
        match self.ends[1 - from].frame(body).unwrap() {
            Heard::Opened { stream, .. } => {
                self.ends[1 - from].accept(stream);
                self.opened[1 - from].push(stream);
            }
            Heard::Changed(_) | Heard::Nothing => {}
        }
        true
    }

    /// Until nothing moves by itself.
    fn settle(&mut self) {
        while (0..2).any(|end| {
            let credit = self.send(end, true);
            let bulk = self.send(end, false);
            let rest = self.lanes[end].waiting.take().map(|body| self.lanes[end].wire.push_back(body));
            self.arrive(end) || credit || bulk || rest.is_some()
        }) {}
    }

    fn is_within_bounds(&self) -> bool {
        let each = SEND_BUFFER + CREDIT as usize;
        self.ends.iter().all(|end| {
            end.count() <= 3 * STREAMS && end.memory() <= end.count() * each && {
                end.streams.values().all(|it| it.incoming.len() + it.granted as usize <= CREDIT as usize)
            }
        })
    }
}

/// What streams carry: each begins at another place of the same noise.
struct Noise(Vec<u8>);

impl Noise {
    /// A prime, so that no lost or doubled chunk goes unnoticed.
    const PERIOD: usize = 65_521;

    fn new() -> Noise {
        let mut random = fastrand::Rng::with_seed(3);
        let period: Vec<u8> = (0..Self::PERIOD).map(|_| random.u8(..)).collect();
        Noise(period.repeat(3))
    }

    fn part(&self, stream: u64, way: usize, from: usize, count: usize) -> &[u8] {
        let at = (from + stream as usize * 1009 + way * 31) % Self::PERIOD;
        &self.0[at..at + count]
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open(usize),
    Write(usize, prop::sample::Index, usize),
    Read(usize, prop::sample::Index, usize),
    Finish(usize, prop::sample::Index),
    GiveUp(usize, prop::sample::Index),
    Send(usize, bool),
    Arrive(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        1 => (0usize..2).prop_map(Step::Open),
        4 => (0usize..2, which(), 1usize..100_000).prop_map(|(end, which, n)| Step::Write(end, which, n)),
        4 => (0usize..2, which(), 1usize..100_000).prop_map(|(end, which, n)| Step::Read(end, which, n)),
        1 => (0usize..2, which()).prop_map(|(end, which)| Step::Finish(end, which)),
        1 => (0usize..2, which()).prop_map(|(end, which)| Step::GiveUp(end, which)),
        6 => (0usize..2, any::<bool>()).prop_map(|(end, credit)| Step::Send(end, credit)),
        6 => (0usize..2).prop_map(Step::Arrive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the interleaving: bytes arrive in order, all of them where
    /// nobody gave up, honest ends break no rule, and memory stays bounded.
    #[test]
    fn bytes_arrive_in_order_and_memory_is_bounded(steps in prop::collection::vec(any_step(), 0..400)) {
        let (mut pair, noise) = (Pair::new(), Noise::new());
        // By stream and the end that writes: how much was written and read.
        let mut written: BTreeMap<(u64, usize), usize> = BTreeMap::new();
        let mut read: BTreeMap<(u64, usize), usize> = BTreeMap::new();
        let mut given_up: BTreeSet<u64> = BTreeSet::new();
        let mut held: [Vec<u64>; 2] = Default::default();
        let mut finished: BTreeSet<(u64, usize)> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Open(end) => {
                    let mine = held[end].iter().filter(|stream| (**stream % 2 == 1) == (end == 0)).count();
                    match pair.ends[end].open("test", Vec::new()) {
                        Some(stream) => held[end].push(stream),
                        None => prop_assert!(mine + given_up.len() >= STREAMS),
                    }
                }
                Step::Write(end, which, count) if !held[end].is_empty() => {
                    let stream = *which.get(&held[end]);
                    let done = written.entry((stream, end)).or_default();
                    if let Ok(Some(taken)) = pair.ends[end].write(stream, noise.part(stream, end, *done, count)) {
                        prop_assert!(!finished.contains(&(stream, end)));
                        *done += taken;
                    }
                }
                Step::Read(end, which, count) if !held[end].is_empty() => {
                    let stream = *which.get(&held[end]);
                    let mut buffer = vec![0; count];
                    let done = read.entry((stream, 1 - end)).or_default();
                    if let Ok(Some(count)) = pair.ends[end].read(stream, &mut buffer) {
                        prop_assert_eq!(&buffer[..count], noise.part(stream, 1 - end, *done, count));
                        *done += count;
                        if count == 0 {
                            prop_assert_eq!(Some(&*done), written.get(&(stream, 1 - end)).or(Some(&0)));
                        }
                    }
                }
                Step::Finish(end, which) if !held[end].is_empty() => {
                    let stream = *which.get(&held[end]);
                    pair.ends[end].finish(stream);
                    finished.insert((stream, end));
                }
                Step::GiveUp(end, which) if !held[end].is_empty() => {
                    let at = which.index(held[end].len());
                    let stream = held[end].swap_remove(at);
                    given_up.insert(stream);
                    pair.ends[end].release(stream);
                }
                Step::Send(end, credit) => {
                    pair.send(end, credit);
                }
                Step::Arrive(end) => {
                    pair.arrive(end);
                }
                _ => {}
            }
            for end in 0..2 {
                let new = std::mem::take(&mut pair.opened[end]);
                held[end].extend(new);
            }
            prop_assert!(pair.is_within_bounds());
        }
        // Now everybody finishes and reads.
        for end in 0..2 {
            for stream in held[end].clone() {
                pair.ends[end].finish(stream);
            }
        }
        let mut buffer = vec![0; CREDIT as usize];
        for _ in 0..4 {
            pair.settle();
            for end in 0..2 {
                let new = std::mem::take(&mut pair.opened[end]);
                new.iter().for_each(|stream| pair.ends[end].finish(*stream));
                held[end].extend(new);
                for stream in &held[end] {
                    while let Ok(Some(count)) = pair.ends[end].read(*stream, &mut buffer) {
                        let done = read.entry((*stream, 1 - end)).or_default();
                        prop_assert_eq!(&buffer[..count], noise.part(*stream, 1 - end, *done, count));
                        *done += count;
                        if count == 0 {
                            break;
                        }
                    }
                }
            }
        }
        for ((stream, end), count) in written {
            if !given_up.contains(&stream) {
                prop_assert_eq!(read.get(&(stream, end)).copied().unwrap_or_default(), count, "{}", stream);
            }
        }
        for end in 0..2 {
            held[end].iter().for_each(|stream| pair.ends[end].release(*stream));
        }
        pair.settle();
        prop_assert_eq!((pair.ends[0].count(), pair.ends[1].count()), (0, 0));
        prop_assert_eq!((pair.ends[0].memory(), pair.ends[1].memory()), (0, 0));
    }

    /// Whatever a peer sends: it is cut off or it stays within the bounds.
    #[test]
    fn a_lying_peer_is_cut_off_or_stays_within_the_bounds(
        frames in prop::collection::vec((0u8..4, 0u64..40, 0usize..20_000, any::<bool>()), 0..200),
        accepts in any::<bool>(),
    ) {
        let mut pair = Pair::new();
        pair.ends[0].open("mine", Vec::new());
        pair.ends[0].next_bulk();
        for (kind, stream, size, flag) in frames {
            let body = match kind {
                0 => Body::Open(Open { stream, service: "s".into(), header: Vec::new(), credit: u32::MAX }),
                1 => Body::Data(Data { stream, bytes: vec![0; size] }),
                2 => Body::Credit(Credit { stream, bytes: u32::MAX }),
                _ => Body::End(End { stream, reason: flag.then(|| "x".repeat(size)) }),
            };
            match pair.ends[0].frame(body) {
                Ok(Heard::Opened { stream, .. }) if accepts => pair.ends[0].accept(stream),
                Ok(_) => {}
                Err(_) => break,
            }
            if flag {
                pair.ends[0].next_credit();
            }
            prop_assert!(pair.is_within_bounds());
        }
    }

    /// No stream waits for another more than one turn.
    #[test]
    fn streams_that_have_something_to_say_take_turns(
        loads in prop::collection::vec(1usize..=SEND_BUFFER, 2..=STREAMS),
        late in any::<prop::sample::Index>(),
    ) {
        let mut streams = Streams::new(false);
        let ids: Vec<u64> = loads.iter().map(|_| streams.open("s", Vec::new()).unwrap()).collect();
        for _ in &ids {
            prop_assert!(matches!(streams.next_bulk(), Some((_, Body::Open(_)))));
        }
        let late = *late.get(&ids);
        for (id, load) in ids.iter().zip(&loads) {
            streams.frame(Body::Credit(Credit { stream: *id, bytes: CREDIT })).unwrap();
            if *id != late {
                streams.write(*id, &vec![0; *load]).unwrap();
            }
        }
        streams.next_bulk();
        streams.write(late, &[1]).unwrap();
        let mut before = 0;
        while let Some((id, _)) = streams.next_bulk() && id != late {
            before += 1;
        }
        prop_assert!(before < ids.len(), "{} of {}", before, ids.len());
    }
}

fn open(stream: u64) -> Body {
    Body::Open(Open { stream, service: "s".into(), header: Vec::new(), credit: CREDIT })
}

fn data(stream: u64, count: usize) -> Body {
    Body::Data(Data { stream, bytes: vec![0; count] })
}

/// A cloud whose edge has opened stream 1.
fn accepted() -> Streams {
    let mut cloud = Streams::new(false);
    assert!(matches!(cloud.frame(open(1)), Ok(Heard::Opened { stream: 1, .. })));
    cloud.accept(1);
    assert_eq!(cloud.next_credit(), Some(Body::Credit(Credit { stream: 1, bytes: CREDIT })));
    cloud
}

#[test]
fn numbers_are_odd_at_the_edge_even_at_the_cloud_and_used_once() {
    let mut cloud = accepted();
    assert_eq!(cloud.frame(open(1)), Err(Violation::Number));
    assert_eq!(cloud.frame(open(2)), Err(Violation::Number));
    assert_eq!(cloud.frame(open(0)), Err(Violation::Number));
    assert!(cloud.frame(open(7)).is_ok());
    assert_eq!(cloud.frame(open(5)), Err(Violation::Number));
    assert_eq!(cloud.open("s", Vec::new()), Some(2));
    assert_eq!(cloud.frame(data(9, 1)), Err(Violation::Unknown));
    assert_eq!(cloud.frame(data(4, 1)), Err(Violation::Unknown));
}

#[test]
fn credit_is_what_may_be_sent_and_no_more() {
    let mut cloud = accepted();
    for _ in 0..CREDIT as usize / CHUNK {
        cloud.frame(data(1, CHUNK)).unwrap();
    }
    assert_eq!(cloud.next_credit(), None, "nothing was read");
    assert_eq!(cloud.frame(data(1, 1)), Err(Violation::Credit));
    assert_eq!(accepted().frame(data(1, CHUNK + 1)), Err(Violation::Chunk));
    let mut early = Streams::new(false);
    early.frame(open(1)).unwrap();
    assert_eq!(early.frame(data(1, 1)), Err(Violation::Credit), "not accepted yet");
}

#[test]
fn what_is_read_is_granted_again() {
    let mut cloud = accepted();
    cloud.frame(data(1, CHUNK)).unwrap();
    cloud.frame(data(1, CHUNK)).unwrap();
    let mut buffer = vec![0; CREDIT as usize];
    assert_eq!(cloud.read(1, &mut buffer), Ok(Some(2 * CHUNK)));
    assert_eq!(cloud.read(1, &mut buffer), Ok(None));
    assert_eq!(cloud.next_credit(), Some(Body::Credit(Credit { stream: 1, bytes: 2 * CHUNK as u32 })));
}

#[test]
fn a_peer_that_opens_too_many_is_cut_off() {
    let mut cloud = Streams::new(false);
    for n in 0..STREAMS as u64 {
        assert!(cloud.frame(open(2 * n + 1)).is_ok());
    }
    assert_eq!(cloud.frame(open(99)), Err(Violation::TooMany));
    let mut edge = Streams::new(true);
    assert_eq!((0..100).filter(|_| edge.open("s", Vec::new()).is_some()).count(), STREAMS);
}

#[test]
fn nothing_follows_an_end() {
    let mut cloud = accepted();
    cloud.frame(data(1, 3)).unwrap();
    cloud.frame(Body::End(End { stream: 1, reason: None })).unwrap();
    assert_eq!(cloud.frame(data(1, 1)), Err(Violation::AfterEnd));
    let mut buffer = [0; 8];
    assert_eq!(cloud.read(1, &mut buffer), Ok(Some(3)));
    assert_eq!(cloud.read(1, &mut buffer), Ok(Some(0)));
    assert_eq!(cloud.write(1, &[1]), Ok(Some(1)), "the other half goes on");
}

#[test]
fn what_was_under_way_when_a_stream_was_reset_is_passed_over() {
    let mut cloud = accepted();
    cloud.reset(1, "no such file");
    let end = Body::End(End { stream: 1, reason: Some("no such file".into()) });
    assert_eq!(cloud.next_bulk(), Some((1, end)));
    assert_eq!(cloud.read(1, &mut [0]), Err("no such file".into()));
    for _ in 0..CREDIT as usize / CHUNK {
        assert_eq!(cloud.frame(data(1, CHUNK)), Ok(Heard::Nothing));
    }
    assert!(cloud.frame(data(1, 1)).is_err(), "that is more than it had credit for");
    assert_eq!(cloud.frame(Body::End(End { stream: 1, reason: Some("bye".into()) })), Ok(Heard::Nothing));
    cloud.release(1);
    assert_eq!(cloud.count(), 0);
}

#[test]
fn what_was_finished_is_sent_though_nobody_holds_the_stream_any_more() {
    let mut cloud = accepted();
    cloud.write(1, b"all").unwrap();
    cloud.finish(1);
    cloud.release(1);
    cloud.frame(Body::Credit(Credit { stream: 1, bytes: 10 })).unwrap();
    let sent: Vec<Body> = std::iter::from_fn(|| cloud.next_bulk().map(|(_, body)| body)).collect();
    let why = Some("nobody reads it any more".to_owned());
    assert_eq!(
        sent,
        [
            Body::Data(Data { stream: 1, bytes: b"all".to_vec() }),
            Body::End(End { stream: 1, reason: None }),
            Body::End(End { stream: 1, reason: why })
        ]
    );
    assert_eq!(cloud.count(), 0);
}
