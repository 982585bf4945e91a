//! Questions with a deadline, without a clock or a socket.
//!
//! Frames of calls are not numbered: a call dies with its connection, and the
//! asker is told. Each end has at most [`CALLS`] questions outstanding; one
//! more is refused where it is asked. The asker's slot is free again once it
//! has the answer, gives up or its deadline has passed, and of the last two it
//! tells the other end, so both count alike. A peer that counts otherwise is
//! cut off ([`Violation`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::frame::{Answer, Body, Call};
use super::streams::{CHUNK, MAX_SERVICE};

/// Questions that one end may have outstanding.
pub const CALLS: usize = 32;
/// The longest question or answer, in bytes: what is longer is for a stream.
pub const MAX_MESSAGE: usize = CHUNK;
/// The longest time that a question is kept for.
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// [`CALLS`] are outstanding.
    #[error("{CALLS} questions to the other end wait for their answers already")]
    Full,
    /// The question or the service's name is over its limit.
    #[error("a question of {0} bytes is over the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// The deadline has passed.
    #[error("no answer came in time")]
    Late,
    /// The other end's words.
    #[error("{0}")]
    Refused(String),
    /// The connection is over.
    #[error("the connection ended before the answer: {0}")]
    Closed(String),
    /// The other end is of a release that knows no calls.
    #[error("the other end answers no calls: update holm there")]
    NotSpoken,
}

/// How a peer broke the rules of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A number of the other end's, or one that was used before.
    #[error("it asked under a number that is not its to give")]
    Number,
    /// More than [`CALLS`].
    #[error("it has more than {CALLS} questions outstanding")]
    TooMany,
    /// More than [`MAX_MESSAGE`].
    #[error("it asked or answered more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// An answer to a question that nobody asked.
    #[error("it answered what nobody asked")]
    Unknown,
}

/// What follows for those who ask and answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The peer asks: [`Calls::answer`] it before the deadline.
    Asked {
        /// Its number.
        call: u64,
        /// Who is asked.
        service: String,
        /// The question.
        question: Vec<u8>,
        /// When nobody waits any longer, in the time of [`Calls::frame`].
        deadline: Duration,
    },
    /// Nobody waits for this answer any more.
    Forgotten(u64),
    /// What became of a question of this end's.
    Answered(u64, Result<Vec<u8>, CallError>),
}

/// The calls of one connection; both ends have one.
#[derive(Debug)]
pub struct Calls {
    next: u64,
    newest: u64,
    /// Deadlines of this end's questions.
    asked: BTreeMap<u64, Duration>,
    /// The peer's questions.
    answering: BTreeMap<u64, Answering>,
    /// Questions and cancellations that have not left.
    leaving: VecDeque<Body>,
}

#[derive(Debug)]
struct Answering {
    deadline: Duration,
    /// Until it has left.
    answer: Option<Answer>,
}

impl Calls {
    /// No calls yet. The edge gives odd numbers, the cloud even ones.
    pub fn new(is_edge: bool) -> Calls {
        Calls {
            next: if is_edge { 1 } else { 2 },
            newest: 0,
            asked: BTreeMap::new(),
            answering: BTreeMap::new(),
            leaving: VecDeque::new(),
        }
    }

    /// Asks; gives the call's number.
    ///
    /// # Errors
    /// [`CallError::Full`] and [`CallError::TooLong`].
    pub fn ask(
        &mut self,
        now: Duration,
        service: &str,
        question: Vec<u8>,
        limit: Duration,
    ) -> Result<u64, CallError> {
        if self.asked.len() >= CALLS {
            return Err(CallError::Full);
        }
        if question.len() > MAX_MESSAGE || service.len() > MAX_SERVICE {
            return Err(CallError::TooLong(question.len()));
        }
        let limit = limit.min(MAX_DEADLINE);
        let call = self.next;
        self.next += 2;
        self.asked.insert(call, now + limit);
        let deadline_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        self.leaving.push_back(Body::Call(Call { call, service: service.into(), question, deadline_ms }));
        Ok(call)
    }

    /// The answer to a question of this end's is no longer wanted.
    pub fn give_up(&mut self, call: u64) {
        if self.asked.remove(&call).is_none() {
            return;
        }
        // What has not left need not be taken back, so what waits here stays
        // within twice the limit.
        let is_same = |body: &Body| matches!(body, Body::Call(it) if it.call == call);
        match self.leaving.iter().position(is_same) {
            Some(at) => drop(self.leaving.remove(at)),
            None => self.leaving.push_back(Body::Cancel(call)),
        }
    }

    /// Answers a question of the peer's; too late is no matter.
    pub fn answer(&mut self, call: u64, outcome: Result<Vec<u8>, String>) {
        let Some(it) = self.answering.get_mut(&call) else { return };
        if it.answer.is_some() {
            return;
        }
        let outcome = match outcome {
            Ok(answer) if answer.len() > MAX_MESSAGE => {
                Err(format!("the answer of {} bytes is over the limit of {MAX_MESSAGE}", answer.len()))
            }
            Err(error) if error.len() > MAX_MESSAGE => Err("an error too long to be told".into()),
            outcome => outcome,
        };
        it.answer = Some(match outcome {
            Ok(answer) => Answer { call, answer, error: None },
            Err(error) => Answer { call, answer: Vec::new(), error: Some(error) },
        });
    }

    /// The next frame to send.
    pub fn next_frame(&mut self) -> Option<Body> {
        if let Some(body) = self.leaving.pop_front() {
            return Some(body);
        }
        let call = self.answering.iter().find_map(|(call, it)| it.answer.is_some().then_some(*call))?;
        self.answering.remove(&call)?.answer.map(Body::Answer)
    }

    /// Takes a frame of the peer's about calls; other bodies are nothing.
    ///
    /// # Errors
    /// The peer broke the rules and is to be cut off.
    pub fn frame(&mut self, now: Duration, body: Body) -> Result<Option<Effect>, Violation> {
        match body {
            Body::Call(Call { call, service, question, deadline_ms }) => {
                if call == 0 || call % 2 == self.next % 2 || call <= self.newest {
                    return Err(Violation::Number);
                }
                if question.len() > MAX_MESSAGE || service.len() > MAX_SERVICE {
                    return Err(Violation::TooLong);
                }
                if self.answering.len() >= CALLS {
                    return Err(Violation::TooMany);
                }
                self.newest = call;
                let deadline = now + Duration::from_millis(deadline_ms.into()).min(MAX_DEADLINE);
                self.answering.insert(call, Answering { deadline, answer: None });
                Ok(Some(Effect::Asked { call, service, question, deadline }))
            }
            Body::Answer(Answer { call, answer, error }) => {
                if call % 2 != self.next % 2 || call >= self.next {
                    return Err(Violation::Unknown);
                }
                if answer.len() > MAX_MESSAGE || error.as_ref().is_some_and(|it| it.len() > MAX_MESSAGE) {
                    return Err(Violation::TooLong);
                }
                // One that came too late was given up.
                Ok(self.asked.remove(&call).map(|_| {
                    Effect::Answered(call, error.map_or(Ok(answer), |error| Err(CallError::Refused(error))))
                }))
            }
            Body::Cancel(call) => Ok(self.answering.remove(&call).map(|_| Effect::Forgotten(call))),
            _ => Ok(None),
        }
    }

    /// When [`Calls::tick`] is due.
    pub fn next_tick(&self) -> Option<Duration> {
        let asked = self.asked.values().min();
        let answering = self.answering.values().map(|it| &it.deadline).min();
        asked.into_iter().chain(answering).min().copied()
    }

    /// Time has passed: what is over by now.
    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let late: Vec<u64> = self.asked.iter().filter(|(_, at)| **at <= now).map(|(call, _)| *call).collect();
        let mut effects = Vec::new();
        for call in late {
            self.give_up(call);
            effects.push(Effect::Answered(call, Err(CallError::Late)));
        }
        self.answering.retain(|call, it| {
            if it.deadline <= now {
                effects.push(Effect::Forgotten(*call));
            }
            it.deadline > now
        });
        effects
    }

    /// What waits here: questions and answers that have not left, and
    /// questions that are not answered.
    pub fn count(&self) -> usize {
        self.leaving.len() + self.answering.len() + self.asked.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(50);
    const SECOND: Duration = Duration::from_secs(1);

    fn call(call: u64) -> Body {
        Body::Call(Call { call, service: "s".into(), question: vec![1], deadline_ms: 1000 })
    }

    #[test]
    fn a_question_is_answered() {
        let (mut edge, mut cloud) = (Calls::new(true), Calls::new(false));
        let asked = cloud.ask(NOW, "version", vec![1, 2], SECOND).unwrap();
        let effect = edge.frame(NOW, cloud.next_frame().unwrap()).unwrap();
        let deadline = NOW + SECOND;
        let expected =
            Effect::Asked { call: asked, service: "version".into(), question: vec![1, 2], deadline };
        assert_eq!(effect, Some(expected));
        edge.answer(asked, Ok(vec![3]));
        let effect = cloud.frame(NOW, edge.next_frame().unwrap()).unwrap();
        assert_eq!(effect, Some(Effect::Answered(asked, Ok(vec![3]))));
        assert_eq!((edge.count(), cloud.count()), (0, 0));
        assert_eq!((edge.next_tick(), cloud.next_tick()), (None, None));
    }

    #[test]
    fn both_ends_forget_at_the_deadline_and_a_late_answer_is_passed_over() {
        let (mut edge, mut cloud) = (Calls::new(true), Calls::new(false));
        let asked = cloud.ask(NOW, "slow", Vec::new(), SECOND).unwrap();
        edge.frame(NOW, cloud.next_frame().unwrap()).unwrap();
        edge.answer(asked, Ok(vec![1]));
        let late = edge.next_frame().unwrap();
        assert_eq!(cloud.next_tick(), Some(NOW + SECOND));
        assert_eq!(cloud.tick(NOW + SECOND), [Effect::Answered(asked, Err(CallError::Late))]);
        assert_eq!(cloud.next_frame(), Some(Body::Cancel(asked)));
        assert_eq!(cloud.frame(NOW, late), Ok(None));

        let asked = cloud.ask(NOW, "slow", Vec::new(), SECOND).unwrap();
        edge.frame(NOW, cloud.next_frame().unwrap()).unwrap();
        assert_eq!(edge.tick(NOW + SECOND), [Effect::Forgotten(asked)]);
        edge.answer(asked, Ok(vec![1]));
        assert_eq!(edge.next_frame(), None);
    }

    #[test]
    fn a_question_that_is_given_up_is_taken_back() {
        let (mut edge, mut cloud) = (Calls::new(true), Calls::new(false));
        let asked = cloud.ask(NOW, "s", Vec::new(), SECOND).unwrap();
        cloud.give_up(asked);
        assert_eq!(cloud.next_frame(), None, "it had not left");
        let asked = cloud.ask(NOW, "s", Vec::new(), SECOND).unwrap();
        edge.frame(NOW, cloud.next_frame().unwrap()).unwrap();
        cloud.give_up(asked);
        let effect = edge.frame(NOW, cloud.next_frame().unwrap()).unwrap();
        assert_eq!(effect, Some(Effect::Forgotten(asked)));
    }

    #[test]
    fn one_too_many_is_refused_here_and_cut_off_there() {
        let (mut edge, mut cloud) = (Calls::new(true), Calls::new(false));
        for n in 0..CALLS as u64 {
            cloud.ask(NOW, "s", Vec::new(), SECOND).unwrap();
            edge.frame(NOW, call(2 * n + 2)).unwrap();
        }
        assert_eq!(cloud.ask(NOW, "s", Vec::new(), SECOND), Err(CallError::Full));
        assert_eq!(edge.frame(NOW, call(1000)), Err(Violation::TooMany));
        // An answer that has not left does not make room.
        edge.answer(2, Ok(Vec::new()));
        assert_eq!(edge.frame(NOW, call(1000)), Err(Violation::TooMany));
        edge.next_frame().unwrap();
        assert!(edge.frame(NOW, call(1000)).is_ok());
    }

    #[test]
    fn numbers_and_lengths_are_judged() {
        let mut edge = Calls::new(true);
        assert_eq!(edge.frame(NOW, call(1)), Err(Violation::Number));
        assert_eq!(edge.frame(NOW, call(0)), Err(Violation::Number));
        assert!(edge.frame(NOW, call(4)).is_ok());
        assert_eq!(edge.frame(NOW, call(4)), Err(Violation::Number));
        let answer = |call, count| Body::Answer(Answer { call, answer: vec![0; count], error: None });
        assert_eq!(edge.frame(NOW, answer(1, 0)), Err(Violation::Unknown));
        assert_eq!(edge.frame(NOW, answer(4, 0)), Err(Violation::Unknown));
        edge.ask(NOW, "s", Vec::new(), SECOND).unwrap();
        assert_eq!(edge.frame(NOW, answer(1, MAX_MESSAGE + 1)), Err(Violation::TooLong));
        let long = vec![0; MAX_MESSAGE + 1];
        assert_eq!(edge.ask(NOW, "s", long, SECOND), Err(CallError::TooLong(MAX_MESSAGE + 1)));
        edge.answer(4, Ok(vec![0; MAX_MESSAGE + 1]));
        edge.next_frame();
        assert!(matches!(edge.next_frame(), Some(Body::Answer(Answer { error: Some(_), .. }))));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(usize, u64),
        GiveUp(usize, prop::sample::Index),
        Answer(usize, prop::sample::Index),
        Send(usize),
        Arrive(usize),
        Wait(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let end = || 0usize..2;
        let which = any::<prop::sample::Index>;
        prop_oneof![
            3 => (end(), 1u64..5000).prop_map(|(end, limit)| Step::Ask(end, limit)),
            1 => (end(), which()).prop_map(|(end, which)| Step::GiveUp(end, which)),
            2 => (end(), which()).prop_map(|(end, which)| Step::Answer(end, which)),
            3 => end().prop_map(Step::Send),
            3 => end().prop_map(Step::Arrive),
            1 => (0u64..2000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever the interleaving: honest ends break no rule, every
        /// question that is not given up has exactly one outcome and the right
        /// answer if it has one, and nothing is left over.
        #[test]
        fn every_question_has_one_outcome(steps in prop::collection::vec(any_step(), 0..500)) {
            let mut ends = [Calls::new(true), Calls::new(false)];
            let mut wires: [VecDeque<Body>; 2] = Default::default();
            let mut open: [Vec<u64>; 2] = Default::default();
            let mut questions: [Vec<u64>; 2] = Default::default();
            let mut now = NOW;
            let closing = (0..2000).map(|n| match n % 5 {
                0 | 1 => Step::Send(n % 2),
                2 | 3 => Step::Arrive(n % 2),
                _ => Step::Wait(10),
            });
            for step in steps.into_iter().chain(closing) {
                let mut effects: Vec<(usize, Effect)> = Vec::new();
                match step {
                    Step::Ask(end, limit) => {
                        let before = open[end].len();
                        match ends[end].ask(now, "s", Vec::new(), Duration::from_millis(limit)) {
                            Ok(call) => open[end].push(call),
                            Err(error) => prop_assert!(error == CallError::Full && before == CALLS),
                        }
                    }
                    Step::GiveUp(end, which) if !open[end].is_empty() => {
                        let at = which.index(open[end].len());
                        ends[end].give_up(open[end].swap_remove(at));
                    }
                    Step::Answer(end, which) if !questions[end].is_empty() => {
                        let at = which.index(questions[end].len());
                        let call = questions[end].swap_remove(at);
                        ends[end].answer(call, Ok(call.to_be_bytes().to_vec()));
                    }
                    Step::Send(end) => wires[end].extend(ends[end].next_frame()),
                    Step::Arrive(end) => if let Some(body) = wires[end].pop_front() {
                        effects.extend(ends[1 - end].frame(now, body).unwrap().map(|effect| (1 - end, effect)));
                    },
                    Step::Wait(ms) => {
                        now += Duration::from_millis(ms);
                        for (end, calls) in ends.iter_mut().enumerate() {
                            effects.extend(calls.tick(now).into_iter().map(|effect| (end, effect)));
                        }
                    }
                    _ => {}
                }
                for (end, effect) in effects {
                    match effect {
                        Effect::Asked { call, .. } => questions[end].push(call),
                        Effect::Forgotten(call) => questions[end].retain(|it| *it != call),
                        Effect::Answered(call, outcome) => {
                            let before = open[end].len();
                            open[end].retain(|it| *it != call);
                            prop_assert_eq!(open[end].len() + 1, before);
                            match outcome {
                                Ok(answer) => prop_assert_eq!(answer, call.to_be_bytes()),
                                Err(error) => prop_assert_eq!(error, CallError::Late),
                            }
                        }
                    }
                }
                prop_assert!(ends.iter().all(|end| end.count() <= 4 * CALLS));
            }
            now += MAX_DEADLINE;
            ends.iter_mut().for_each(|end| drop(end.tick(now)));
            for end in 0..2 {
                wires[end].extend(std::iter::from_fn(|| ends[end].next_frame()));
            }
            prop_assert_eq!((ends[0].count(), ends[1].count()), (0, 0));
        }

        #[test]
        fn a_lying_peer_is_cut_off_or_stays_within_the_bounds(
            frames in prop::collection::vec((0u8..3, 0u64..100, 0usize..20), 0..300),
        ) {
            let mut edge = Calls::new(true);
            for (kind, number, size) in frames {
                let body = match kind {
                    0 => call(number),
                    1 => Body::Cancel(number),
                    _ => Body::Answer(Answer { call: number, answer: vec![0; size], error: None }),
                };
                if edge.frame(NOW, body).is_err() {
                    break;
                }
                edge.answer(number, Ok(vec![0; size]));
                prop_assert!(edge.count() <= CALLS);
            }
        }
    }
}
