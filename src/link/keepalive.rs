//! How long an idle connection may be silent before the edge asks whether the
//! cloud is still there.
//!
//! Each question costs a radio its sleep, so the silence is as long as the
//! cloud allows. But some networks forget a connection that is silent (a NAT, a
//! radio link), and tell nobody: the edge notices by a question that is never
//! answered, while a new connection works at once. Then the silence is halved,
//! and made longer again step by step, staying clear of where it broke.

use std::time::Duration;

/// The shortest silence, unless the cloud says otherwise: more questions would
/// be more than 0.6 kbit/s.
pub const LEAST: Duration = Duration::from_secs(5);
/// The longest, whatever the cloud says: above it a node is not Ready in any
/// Kubernetes.
pub const MOST: Duration = Duration::from_secs(20);
/// Answers in a row after which the silence is made longer.
const STEADY: u32 = 10;
/// By so much.
const STEP: Duration = Duration::from_secs(1);
/// Answers in a row after which where it broke is forgotten: the network may
/// be another one now. At 10 s it is a connection in three hours.
const FORGET: u32 = 1000;
/// A new connection so soon after the old one was found dead means that the
/// network was there all the time.
const AT_ONCE: Duration = Duration::from_secs(10);

/// What an edge has learnt about silence; it outlives connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    least: Duration,
    most: Duration,
    interval: Duration,
    /// The silence that a connection did not survive.
    broke_at: Option<Duration>,
    answers: u32,
    /// When a connection was found dead after a silence.
    died: Option<Duration>,
}

impl KeepAlive {
    /// Always the same silence.
    pub fn fixed(interval: Duration) -> KeepAlive {
        let interval = interval.clamp(Duration::from_secs(1), MOST);
        KeepAlive { least: interval, most: interval, interval, broke_at: None, answers: 0, died: None }
    }

    /// Takes over the bounds that the cloud gives; 0 is for none given.
    pub fn bound(&mut self, least: Duration, most: Duration) {
        let least = if least.is_zero() { LEAST } else { least };
        self.most = most.clamp(Duration::from_secs(1), MOST);
        self.least = least.clamp(Duration::from_secs(1), self.most);
        // One that has learnt nothing is as quiet as it may be.
        let wanted = if self.broke_at.is_none() { self.most } else { self.interval };
        self.interval = wanted.clamp(self.least, self.most);
    }

    /// The silence after which to ask.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// A question after a silence was answered.
    pub fn answered(&mut self) {
        self.answers = self.answers.saturating_add(1);
        if self.answers >= FORGET {
            self.broke_at = None;
            self.answers = 0;
        }
        if self.answers.is_multiple_of(STEADY) {
            let most = self.broke_at.map_or(self.most, |broke_at| broke_at.mul_f32(0.75));
            let most = most.clamp(self.least, self.most);
            self.interval = (self.interval + STEP).min(most).max(self.interval);
        }
    }

    /// A question after a silence was never answered.
    pub fn died(&mut self, now: Duration) {
        self.died = Some(now);
        self.answers = 0;
    }

    /// There is a connection again.
    pub fn connected(&mut self, now: Duration) {
        if let Some(died) = self.died.take()
            && now.saturating_sub(died) <= AT_ONCE
        {
            self.broke_at = Some(self.broke_at.unwrap_or(MOST).min(self.interval));
            self.interval = (self.interval / 2).clamp(self.least, self.most);
        }
    }
}

impl Default for KeepAlive {
    /// As a release without bounds in its `Welcome` would have it.
    fn default() -> Self {
        KeepAlive::fixed(super::session::KEEP_ALIVE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALLOWED: Duration = Duration::from_secs(15);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn edge() -> KeepAlive {
        let mut edge = KeepAlive::default();
        edge.bound(Duration::ZERO, ALLOWED);
        edge
    }

    /// A day behind a network that forgets connections after `patience` of
    /// silence: how many connections were lost, and the last silence.
    fn a_day(edge: &mut KeepAlive, patience: Duration) -> (u32, Duration) {
        let (mut now, mut lost) = (Duration::ZERO, 0);
        while now < secs(24 * 3600) {
            if edge.interval() <= patience {
                now += edge.interval();
                edge.answered();
            } else {
                now += edge.interval() * 3;
                lost += 1;
                edge.died(now);
                edge.connected(now + secs(1));
            }
        }
        (lost, edge.interval())
    }

    #[test]
    fn a_network_that_forgets_nothing_is_asked_as_seldom_as_allowed() {
        assert_eq!(a_day(&mut edge(), secs(3600)), (0, ALLOWED));
    }

    #[test]
    fn a_network_that_forgets_soon_loses_few_connections() {
        for patience in 5..15 {
            let (lost, last) = a_day(&mut edge(), secs(patience));
            // Twice at most to find it, then once each time it was forgotten.
            assert!(lost <= 30, "{lost} at {patience} s");
            assert!(last <= secs(patience) && last >= LEAST, "{last:?} at {patience} s");
        }
    }

    #[test]
    fn a_cut_that_lasts_is_no_reason_to_ask_more() {
        let mut edge = edge();
        edge.died(secs(100));
        edge.connected(secs(100) + AT_ONCE + STEP);
        assert_eq!(edge.interval(), ALLOWED);
    }

    #[test]
    fn an_idle_node_costs_less_than_a_quarter_of_a_kilobit_a_second() {
        use crate::link::frame::{Body, Frame};
        // TCP and IPv4 with timestamps; a record of TLS 1.3; a websocket header with its mask.
        const PACKET: usize = 20 + 20 + 12;
        const RECORD: usize = 5 + 1 + 16;
        let worst = Frame { ack: u64::MAX, ..Frame::plain(Body::Ping) }.encode().len();
        let question = PACKET + RECORD + 6 + worst;
        let answer = PACKET + RECORD + 2 + Frame { ack: u64::MAX, ..Frame::default() }.encode().len();
        let bytes = question + answer + 2 * PACKET; // each is acknowledged by TCP
        let bits_a_second = bytes as f64 * 8.0 / edge().interval().as_secs_f64();
        println!("{bytes} bytes a question, {bits_a_second:.0} bit/s");
        assert!(bits_a_second < 250.0, "{bits_a_second}");
    }

    proptest! {
        #[test]
        fn the_silence_is_always_within_the_bounds(
            events in prop::collection::vec((0u8..4, 0u64..60), 0..300),
            bounds in prop::collection::vec((0u64..40, 0u64..40), 1..4),
        ) {
            let mut edge = KeepAlive::default();
            let mut now = Duration::ZERO;
            for (least, most) in bounds {
                edge.bound(secs(least), secs(most));
                for (event, seconds) in &events {
                    now += secs(*seconds);
                    match event {
                        0 => edge.died(now),
                        1 => edge.connected(now),
                        _ => edge.answered(),
                    }
                    let allowed = secs(most).clamp(secs(1), MOST);
                    prop_assert!(edge.interval() >= secs(1) && edge.interval() <= allowed);
                    let least = if least == 0 { LEAST } else { secs(least) };
                    prop_assert!(edge.interval() >= least.min(allowed));
                }
            }
        }
    }
}
