//! What nodes were refused, said once and counted; and how much they may tell.
//!
//! A node that lies does so as often as the link is fast. The log gets one line
//! for each node and reason, however many frames and connections that took,
//! and the count when a connection ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::task::Tasks;
use crate::trust::names::NodeName;

/// After so long a reason is said again: somebody may think it mended.
const AGAIN: Duration = Duration::from_secs(3600);
/// Events that a node may tell at once: four times what an edge keeps, so that
/// one that starts with a hundred pods loses none.
const EVENTS_AT_ONCE: u32 = 1024;
/// Time in which a node may tell one Event more.
const EVENTS_EACH: Duration = Duration::from_millis(500);
/// Accounts beyond which those that say nothing any more are forgotten.
const ACCOUNTS: usize = 1024;

/// Why an Event is not taken.
pub const TOO_MANY_EVENTS: &str = "more events than a node may tell";

/// Everybody's accounts.
pub struct Ledger {
    tasks: Tasks,
    accounts: Mutex<BTreeMap<NodeName, Arc<Mutex<Standing>>>>,
}

impl Ledger {
    /// An empty ledger, by the clock of `tasks`.
    pub fn new(tasks: &Tasks) -> Ledger {
        Ledger { tasks: tasks.clone(), accounts: Mutex::default() }
    }

    /// The account of a node for one more connection. What was said and told
    /// on its other ones counts.
    pub fn open(&self, node: &NodeName) -> Account {
        let now = self.tasks.now();
        let mut accounts = locked(&self.accounts);
        if accounts.len() >= ACCOUNTS {
            accounts
                .retain(|_, standing| Arc::strong_count(standing) > 1 || !locked(standing).is_settled(now));
        }
        let standing = accounts.entry(node.clone()).or_default().clone();
        Account { tasks: self.tasks.clone(), standing, refused: BTreeMap::new() }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a plain assignment.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One connection's share in its node's account.
pub struct Account {
    tasks: Tasks,
    standing: Arc<Mutex<Standing>>,
    refused: BTreeMap<&'static str, usize>,
}

impl Account {
    /// Counts a refusal; true if it is to be logged.
    pub fn refused(&mut self, reason: &'static str) -> bool {
        let count = self.refused.entry(reason).or_default();
        *count = count.saturating_add(1);
        locked(&self.standing).is_news(self.tasks.now(), reason)
    }

    /// Takes one Event off what the node may tell.
    ///
    /// # Errors
    /// Nothing is left of it now.
    pub fn tell(&mut self) -> Result<(), &'static str> {
        match locked(&self.standing).events.take(self.tasks.now()) {
            true => Ok(()),
            false => Err(TOO_MANY_EVENTS),
        }
    }

    /// What was refused on this connection, if anything was: for the line that
    /// says that it ended.
    pub fn summary(&self) -> Option<String> {
        if self.refused.is_empty() {
            return None;
        }
        let all: Vec<String> =
            self.refused.iter().map(|(reason, count)| format!("{count} times {reason}")).collect();
        Some(format!("it was refused: {}", all.join(", ")))
    }
}

/// What is remembered of a node beyond its connections. The reasons are
/// constants of the program, so their number is bounded.
#[derive(Debug, Default)]
struct Standing {
    said: BTreeMap<&'static str, Duration>,
    events: Allowance,
}

impl Standing {
    fn is_news(&mut self, now: Duration, reason: &'static str) -> bool {
        let is_news = self.said.get(reason).is_none_or(|at| now.saturating_sub(*at) >= AGAIN);
        if is_news {
            self.said.insert(reason, now);
        }
        is_news
    }

    /// True if forgetting it changes nothing.
    fn is_settled(&self, now: Duration) -> bool {
        self.events.is_whole(now) && self.said.values().all(|at| now.saturating_sub(*at) >= AGAIN)
    }
}

/// So many at once, and one more in each interval (a token bucket).
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    /// What was taken and has not come back yet.
    taken: u32,
    /// When the last one came back.
    since: Duration,
}

impl Allowance {
    fn take(&mut self, now: Duration) -> bool {
        let back = self.back(now);
        self.taken = self.taken.saturating_sub(back);
        self.since = match self.taken {
            0 => now,
            _ => self.since + EVENTS_EACH * back,
        };
        let is_left = self.taken < EVENTS_AT_ONCE;
        if is_left {
            self.taken += 1;
        }
        is_left
    }

    fn is_whole(&self, now: Duration) -> bool {
        self.taken <= self.back(now)
    }

    fn back(&self, now: Duration) -> u32 {
        let passed = now.saturating_sub(self.since).as_millis() / EVENTS_EACH.as_millis();
        u32::try_from(passed).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reason_is_said_once_whatever_the_connections() {
        let ledger = Ledger::new(&Tasks::default());
        let (liar, other): (NodeName, NodeName) = ("liar".parse().unwrap(), "other".parse().unwrap());
        let mut first = ledger.open(&liar);
        assert!(first.summary().is_none());
        assert!(first.refused("a"));
        assert!(!first.refused("a"));
        assert!(first.refused("b"));
        assert_eq!(first.summary().unwrap(), "it was refused: 2 times a, 1 times b");
        drop(first);
        let mut second = ledger.open(&liar);
        assert!(!second.refused("a"));
        assert_eq!(second.summary().unwrap(), "it was refused: 1 times a");
        assert!(ledger.open(&other).refused("a"));
    }

    #[test]
    fn after_an_hour_it_is_said_again() {
        let mut standing = Standing::default();
        assert!(standing.is_news(Duration::ZERO, "a"));
        assert!(!standing.is_news(AGAIN - Duration::from_secs(1), "a"));
        assert!(!standing.is_settled(AGAIN - Duration::from_secs(1)));
        assert!(standing.is_settled(AGAIN));
        assert!(standing.is_news(AGAIN, "a"));
    }

    #[test]
    fn the_ledger_forgets_who_says_nothing() {
        let ledger = Ledger::new(&Tasks::default());
        let liar: NodeName = "liar".parse().unwrap();
        ledger.open(&liar).refused("a");
        for n in 0..ACCOUNTS * 2 {
            ledger.open(&format!("node-{n}").parse().unwrap());
        }
        assert!(locked(&ledger.accounts).len() <= ACCOUNTS);
        assert!(!ledger.open(&liar).refused("a"), "who was refused is remembered");
    }

    #[test]
    fn two_connections_share_what_a_node_may_tell() {
        let ledger = Ledger::new(&Tasks::default());
        let liar: NodeName = "liar".parse().unwrap();
        let told = (0..EVENTS_AT_ONCE * 2).filter(|_| ledger.open(&liar).tell().is_ok()).count();
        // A slow machine may get a few back meanwhile.
        assert!(told < 2 * EVENTS_AT_ONCE as usize, "{told}");
        assert!(told >= EVENTS_AT_ONCE as usize);
    }

    proptest! {
        /// In no span of time is more taken than at once and what came back,
        /// and whoever waits long enough gets one.
        #[test]
        fn an_allowance_is_kept(steps in prop::collection::vec(0u64..3000, 1..4000)) {
            let mut allowance = Allowance::default();
            let (mut now, mut taken) = (Duration::from_secs(5), 0);
            for step in steps {
                now += Duration::from_millis(step);
                taken += u128::from(allowance.take(now));
                let passed = (now - Duration::from_secs(5)).as_millis();
                prop_assert!(taken <= u128::from(EVENTS_AT_ONCE) + passed / EVENTS_EACH.as_millis() + 1);
                prop_assert!(allowance.clone().take(now + EVENTS_EACH));
            }
        }
    }
}
