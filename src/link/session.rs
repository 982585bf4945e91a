//! One connection's reliable part, without a clock or a socket: numbers,
//! acknowledgements, the window, and signs of life.
//!
//! ```text
//!            Frame                       Done(seq)
//!   peer ──────────► Session ─ Deliver ─► owner ──────► Session ─ Send(ack) ─► peer
//!   owner ─ send() ─► Session ─ Send ─► peer ─ ack ─► Session ─ Acked ─► owner
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use super::frame::{Body, Frame};
use super::keepalive::KeepAlive;

/// Frames under way unacknowledged at most, each way.
pub const WINDOW: u32 = 64;
/// Silence after which an edge asks whether the cloud is there, at the latest.
/// Under the 20 s that keep a node Ready in any Kubernetes.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Silences after which the other end is taken for dead.
const DEAD_AFTER: u32 = 3;
/// Silence after which either end asks if something of its own is not
/// acknowledged. One more silence, and the other end is taken for dead.
pub const URGENT: Duration = Duration::from_secs(5);

/// What happens to a session.
#[derive(Debug)]
pub enum Event {
    /// A frame arrived.
    Frame(Frame),
    /// What the frame with this number asked for is done (and durable).
    Done(u64),
    /// Bytes have arrived, if no whole frame: somebody is there.
    Bytes,
    /// Time has passed.
    Tick,
}

/// What a session wants done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Give this frame to the socket.
    Send(Frame),
    /// Act on this body, then answer [`Event::Done`] if the number is not 0.
    Deliver(u64, Body),
    /// The other end has done everything up to this number.
    Acked(u64),
    /// The connection is of no more use, for this reason.
    Close(&'static str),
}

/// The state of one connection; both ends have one.
#[derive(Debug)]
pub struct Session {
    sent: u64,
    acked: u64,
    received: u64,
    done: u64,
    done_early: BTreeSet<u64>,
    window: u64,
    keep_alive: KeepAlive,
    /// True on the end that asks for signs of life.
    asks: bool,
    /// When the last frame came.
    heard_at: Duration,
    /// When the last bytes came.
    alive_at: Duration,
    /// When it asked, unless a frame has come since.
    asked_at: Option<Duration>,
    /// True if it asked only because of the silence.
    was_idle: bool,
    /// Since when what was sent waits to be acknowledged.
    waiting_since: Option<Duration>,
}

impl Session {
    /// A session that starts now. The edge `asks` for signs of life.
    pub fn new(now: Duration, asks: bool, window: u32, keep_alive: Duration) -> Session {
        Session {
            sent: 0,
            acked: 0,
            received: 0,
            done: 0,
            done_early: BTreeSet::new(),
            window: window.clamp(1, 4096).into(),
            keep_alive: KeepAlive::fixed(keep_alive),
            asks,
            heard_at: now,
            alive_at: now,
            asked_at: None,
            was_idle: false,
            waiting_since: None,
        }
    }

    /// Takes over what an edge has learnt about silence.
    pub fn adapt(&mut self, keep_alive: KeepAlive) {
        self.keep_alive = keep_alive;
    }

    /// What this edge knows about silence by now.
    pub fn keep_alive(&self) -> &KeepAlive {
        &self.keep_alive
    }

    /// True if one more numbered frame may be sent.
    pub fn has_room(&self) -> bool {
        self.sent - self.acked < self.window
    }

    /// Numbers a body. Call only while [`Session::has_room`].
    pub fn send(&mut self, now: Duration, body: Body) -> (u64, Frame) {
        self.sent += 1;
        self.waiting_since.get_or_insert(now);
        (self.sent, Frame { seq: self.sent, ack: self.done, body: Some(body), has_body: true })
    }

    /// When [`Event::Tick`] is due if nothing else happens before.
    pub fn next_tick(&self) -> Duration {
        self.ask_at().map_or(self.dead_at(), |ask| ask.min(self.dead_at()))
    }

    /// When to ask for a sign of life, if at all.
    fn ask_at(&self) -> Option<Duration> {
        let idle = self.asks.then(|| self.heard_at + self.keep_alive.interval());
        let urgent = self.waiting_since.map(|since| self.heard_at.max(since) + URGENT);
        let first = idle.into_iter().chain(urgent).min()?;
        match self.asked_at {
            None => Some(first),
            // The other end is busy with a long frame, and must hear of this one.
            Some(asked) if self.alive_at > asked => Some(first.max(asked + self.keep_alive.interval())),
            Some(_) => None,
        }
    }

    /// When to take the other end for dead.
    fn dead_at(&self) -> Duration {
        let interval = self.keep_alive.interval();
        let dead = self.alive_at + interval * DEAD_AFTER;
        match (self.asked_at, self.waiting_since) {
            (Some(asked), Some(since)) => dead.min(asked.max(since).max(self.alive_at) + interval),
            _ => dead,
        }
    }

    /// Takes one event in; says what follows from it.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Frame(frame) => self.frame(now, frame),
            Event::Done(seq) => self.finished(seq),
            Event::Bytes => {
                self.alive_at = now;
                Vec::new()
            }
            Event::Tick => self.tick(now),
        }
    }

    fn frame(&mut self, now: Duration, frame: Frame) -> Vec<Effect> {
        self.heard_at = now;
        self.alive_at = now;
        if self.asked_at.take().is_some() && self.was_idle {
            self.keep_alive.answered();
        }
        let mut effects = Vec::new();
        if frame.ack > self.sent {
            return vec![Effect::Close("the other end acknowledged what was never sent")];
        }
        if frame.ack > self.acked {
            self.acked = frame.ack;
            self.waiting_since = (self.acked < self.sent).then_some(now);
            effects.push(Effect::Acked(frame.ack));
        }
        if frame.seq != 0 {
            if frame.seq != self.received + 1 {
                return vec![Effect::Close("the other end's numbers have a gap")];
            }
            self.received = frame.seq;
        }
        match frame.body {
            Some(Body::Ping) => effects.push(self.bare()),
            Some(Body::Unsupported(_)) => {}
            Some(body) => effects.push(Effect::Deliver(frame.seq, body)),
            None if frame.has_body => {
                let mut answer = Frame::plain(Body::Unsupported(frame.seq));
                if frame.seq != 0 {
                    self.mark_done(frame.seq);
                }
                answer.ack = self.done;
                effects.push(Effect::Send(answer));
            }
            None => {}
        }
        effects
    }

    fn mark_done(&mut self, seq: u64) {
        self.done_early.insert(seq);
        while self.done_early.remove(&(self.done + 1)) {
            self.done += 1;
        }
    }

    fn finished(&mut self, seq: u64) -> Vec<Effect> {
        let before = self.done;
        self.mark_done(seq);
        match self.done > before {
            true => vec![self.bare()],
            false => Vec::new(),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        if now >= self.dead_at() {
            if self.asks && self.was_idle {
                self.keep_alive.died(now);
            }
            return vec![Effect::Close("the other end has been silent")];
        }
        if self.ask_at().is_some_and(|at| now >= at) {
            self.was_idle = self.waiting_since.is_none();
            self.asked_at = Some(now);
            return vec![Effect::Send(Frame { ack: self.done, ..Frame::plain(Body::Ping) })];
        }
        Vec::new()
    }

    /// A frame that only acknowledges.
    fn bare(&self) -> Effect {
        Effect::Send(Frame { ack: self.done, ..Frame::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn session(asks: bool) -> Session {
        Session::new(START, asks, 4, KEEP_ALIVE)
    }

    #[test]
    fn an_idle_edge_asks_once_and_gives_up_after_three_silences() {
        let mut edge = session(true);
        assert_eq!(edge.next_tick(), START + KEEP_ALIVE);
        let ping = edge.step(START + KEEP_ALIVE, Event::Tick);
        assert!(matches!(&ping[..], [Effect::Send(frame)] if frame.body == Some(Body::Ping)));
        assert_eq!(edge.step(START + KEEP_ALIVE * 2, Event::Tick), []);
        assert!(matches!(edge.step(START + KEEP_ALIVE * 3, Event::Tick)[..], [Effect::Close(_)]));
    }

    #[test]
    fn the_cloud_never_asks_and_answers_a_question() {
        let mut cloud = session(false);
        assert_eq!(cloud.step(START + KEEP_ALIVE, Event::Tick), []);
        let effects = cloud.step(START + KEEP_ALIVE, Event::Frame(Frame::plain(Body::Ping)));
        assert_eq!(effects, [Effect::Send(Frame::default())]);
        assert_eq!(cloud.next_tick(), START + KEEP_ALIVE * 4);
    }

    #[test]
    fn what_is_not_acknowledged_is_asked_after_and_sooner_given_up() {
        for asks in [true, false] {
            let mut end = session(asks);
            let sent = START + Duration::from_secs(2);
            end.send(sent, Body::Synced);
            assert_eq!(end.next_tick(), sent + URGENT);
            assert!(
                matches!(&end.step(sent + URGENT, Event::Tick)[..], [Effect::Send(frame)] if frame.body == Some(Body::Ping))
            );
            assert_eq!(end.next_tick(), sent + URGENT + KEEP_ALIVE);
            assert!(end.next_tick() < START + KEEP_ALIVE * 3);
            assert!(matches!(end.step(sent + URGENT + KEEP_ALIVE, Event::Tick)[..], [Effect::Close(_)]));
        }
    }

    #[test]
    fn an_acknowledgement_ends_the_urgency() {
        let mut cloud = session(false);
        cloud.send(START, Body::Synced);
        cloud.send(START, Body::Synced);
        let later = START + Duration::from_secs(4);
        cloud.step(later, Event::Frame(Frame { ack: 1, ..Frame::default() }));
        assert_eq!(cloud.next_tick(), later + URGENT);
        cloud.step(later, Event::Frame(Frame { ack: 2, ..Frame::default() }));
        assert_eq!(cloud.next_tick(), later + KEEP_ALIVE * 3);
    }

    #[test]
    fn a_long_frame_on_its_way_is_a_sign_of_life_and_the_other_end_hears_of_this_one() {
        let mut edge = session(true);
        let (mut now, mut asked) = (START, 0);
        // Ten minutes of one frame; something of its own waits as well.
        edge.send(now, Body::Synced);
        while now < START + Duration::from_secs(600) {
            now += Duration::from_secs(1);
            edge.step(now, Event::Bytes);
            for effect in edge.step(now, Event::Tick) {
                match effect {
                    Effect::Send(frame) if frame.body == Some(Body::Ping) => asked += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!((600 / 20..=600 / 15 + 1).contains(&asked), "{asked}");
        // And then it stops.
        let last = edge.next_tick();
        assert!(matches!(edge.step(last, Event::Tick)[..], [Effect::Send(_)]));
        let dead = edge.next_tick();
        assert!(dead <= now + KEEP_ALIVE * 2);
        assert!(matches!(edge.step(dead, Event::Tick)[..], [Effect::Close(_)]));
    }

    #[test]
    fn silence_that_kills_makes_the_edge_ask_sooner_next_time() {
        let mut habit = KeepAlive::default();
        habit.bound(Duration::ZERO, KEEP_ALIVE);
        let mut edge = session(true);
        edge.adapt(habit);
        edge.step(START + KEEP_ALIVE, Event::Tick);
        let dead = edge.next_tick();
        assert!(matches!(edge.step(dead, Event::Tick)[..], [Effect::Close(_)]));
        let mut habit = edge.keep_alive().clone();
        habit.connected(dead + Duration::from_secs(1));
        assert_eq!(habit.interval(), KEEP_ALIVE / 2);
        // A death with something under way says nothing about silence.
        let mut edge = session(true);
        edge.send(START, Body::Synced);
        edge.step(START + URGENT, Event::Tick);
        let dead = edge.next_tick();
        edge.step(dead, Event::Tick);
        let mut habit = edge.keep_alive().clone();
        habit.connected(dead);
        assert_eq!(habit.interval(), KEEP_ALIVE);
    }

    #[test]
    fn what_is_unknown_is_answered_and_acknowledged() {
        let mut edge = session(true);
        let frame = Frame { seq: 1, ack: 0, body: None, has_body: true };
        let effects = edge.step(START, Event::Frame(frame));
        let answer = Frame { ack: 1, ..Frame::plain(Body::Unsupported(1)) };
        assert_eq!(effects, [Effect::Send(answer)]);
    }

    #[test]
    fn a_peer_that_cannot_count_is_left() {
        let gap = Frame { seq: 2, ..Frame::plain(Body::Synced) };
        assert!(matches!(session(true).step(START, Event::Frame(gap))[..], [Effect::Close(_)]));
        let early = Frame { ack: 1, ..Frame::default() };
        assert!(matches!(session(true).step(START, Event::Frame(early))[..], [Effect::Close(_)]));
    }

    proptest! {
        /// Whatever the interleaving: everything is delivered once and in
        /// order, never more than the window is under way, and in the end all
        /// of it is acknowledged.
        #[test]
        fn everything_arrives_in_order_and_is_acknowledged(
            total in 1u64..60,
            choices in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..400),
        ) {
            let (mut a, mut b) = (session(true), session(false));
            let (mut to_a, mut to_b) = (VecDeque::new(), VecDeque::new());
            let (mut sent, mut acked) = (0, 0);
            let mut delivered = Vec::new();
            let mut undone: Vec<u64> = Vec::new();
            let closing = (0u8..4).cycle().map(|kind| (kind, None)).take(4000);
            for (kind, pick) in choices.into_iter().map(|(kind, pick)| (kind, Some(pick))).chain(closing) {
                let mut effects = Vec::new();
                match kind {
                    0 if sent < total && a.has_room() => {
                        sent += 1;
                        let (seq, frame) = a.send(START, Body::Unsupported(0));
                        prop_assert_eq!(seq, sent);
                        to_b.push_back(Frame { body: Some(Body::Synced), ..frame });
                    }
                    1 => if let Some(frame) = to_b.pop_front() {
                        effects = b.step(START, Event::Frame(frame));
                    },
                    2 if !undone.is_empty() => {
                        let at = pick.map_or(0, |pick| pick.index(undone.len()));
                        effects = b.step(START, Event::Done(undone.swap_remove(at)));
                    }
                    3 => if let Some(frame) = to_a.pop_front() {
                        for effect in a.step(START, Event::Frame(frame)) {
                            match effect {
                                Effect::Acked(seq) => acked = seq,
                                other => prop_assert!(false, "{:?}", other),
                            }
                        }
                    },
                    _ => {}
                }
                for effect in effects {
                    match effect {
                        Effect::Send(frame) => to_a.push_back(frame),
                        Effect::Deliver(seq, _) => { delivered.push(seq); undone.push(seq); }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                prop_assert!(sent - acked <= 4);
            }
            prop_assert_eq!(delivered, (1..=total).collect::<Vec<_>>());
            prop_assert_eq!(acked, total);
        }
    }
}
