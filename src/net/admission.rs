//! Who may begin a connection, decided before anything expensive is done for it: pure, and bounded in memory
//! however many addresses ask.
//!
//! Nothing here tells an honest client from another by its address alone: many boards stand behind one
//! address (NAT). So an address that asks too often loses some of its own unfinished connections, at random,
//! and a client that finishes its handshake quickly gets through; only what a client without a certificate
//! may do is counted and refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// What counts as one client: an IPv4 address, or the /64 that one customer of an IPv6 provider has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 address, mapped ones (RFC 4291, section 2.5.5.2) included.
    V4(Ipv4Addr),
    /// The upper half of an IPv6 address.
    V6(u32, u32),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V4(address) => Source::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments().map(u32::from);
                Source::V6(a << 16 | b, c << 16 | d)
            }
        }
    }
}

/// The unfinished connections there may be. Whoever comes is let in, and where there is no place left, one of
/// those who hold the most makes way: one source cannot keep the others out.
#[derive(Debug)]
pub struct Places {
    most: usize,
    most_each: usize,
    taken: HashMap<Source, Vec<usize>>,
    total: usize,
    next: usize,
}

impl Places {
    /// At most `most` places, and `most_each` of them to one source; both at least 1.
    pub fn new(most: usize, most_each: usize) -> Places {
        Places { most: most.max(1), most_each: most_each.max(1), taken: HashMap::new(), total: 0, next: 0 }
    }

    /// Takes a place; gives its number, and the number of the one that has to make way for it, if any.
    /// `random` chooses among those who could.
    pub fn enter(&mut self, source: Source, random: usize) -> (usize, Option<usize>) {
        let own = self.taken.get(&source).map_or(0, Vec::len);
        let evicted = if own >= self.most_each {
            self.evict(source, random)
        } else if self.total >= self.most {
            let most = self.taken.values().map(Vec::len).max().unwrap_or(0);
            let among = self.taken.values().filter(|places| places.len() == most).count();
            let holders = self.taken.iter().filter(|(_, places)| places.len() == most);
            let holder = holders.map(|(source, _)| *source).nth(random % among.max(1));
            holder.and_then(|holder| self.evict(holder, random / among.max(1)))
        } else {
            None
        };
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.taken.entry(source).or_default().push(number);
        self.total += 1;
        (number, evicted)
    }

    /// Gives a place back. One that was made to give way is not there any more.
    pub fn leave(&mut self, source: Source, number: usize) {
        let Some(places) = self.taken.get_mut(&source) else { return };
        if let Some(at) = places.iter().position(|place| *place == number) {
            places.swap_remove(at);
            self.total -= 1;
        }
        if places.is_empty() {
            self.taken.remove(&source);
        }
    }

    /// Places that are taken.
    pub fn total(&self) -> usize {
        self.total
    }

    fn evict(&mut self, source: Source, random: usize) -> Option<usize> {
        let places = self.taken.get(&source)?;
        let number = *places.get(random % places.len().max(1))?;
        self.leave(source, number);
        Some(number)
    }
}

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// So many at once.
    pub burst: u32,
    /// And one more each time this has passed.
    pub every: Duration,
}

impl Rate {
    /// How far ahead of now the time of a bucket may be.
    fn slack(self) -> Duration {
        self.every * self.burst.saturating_sub(1)
    }
}

/// Token buckets: one for each source that asked lately, and one for all together.
///
/// A bucket is the time at which it will be full again (the generic cell rate algorithm), so one that is full
/// need not be remembered.
#[derive(Debug)]
pub struct Buckets {
    each: Rate,
    all: Rate,
    most: usize,
    sources: HashMap<Source, Duration>,
    together: Duration,
}

impl Buckets {
    /// Buckets of `each` source and of `all` together; at most `most` sources are remembered.
    pub fn new(each: Rate, all: Rate, most: usize) -> Buckets {
        Buckets { each, all, most: most.max(1), sources: HashMap::new(), together: Duration::ZERO }
    }

    /// Takes a token if there is one. `now` is monotonic.
    pub fn allow(&mut self, now: Duration, source: Source) -> bool {
        let own = self.sources.get(&source).copied().unwrap_or_default();
        let is_free = |full_at: Duration, rate: Rate| full_at.saturating_sub(now) <= rate.slack();
        if !is_free(own, self.each) || !is_free(self.together, self.all) {
            return false;
        }
        self.together = self.together.max(now) + self.all.every;
        if own == Duration::ZERO {
            self.make_room(now);
        }
        self.sources.insert(source, own.max(now) + self.each.every);
        true
    }

    /// Sources that are remembered.
    pub fn remembered(&self) -> usize {
        self.sources.len()
    }

    /// Forgets the full buckets, and if that does not help, the one that is the nearest to full.
    fn make_room(&mut self, now: Duration) {
        if self.sources.len() < self.most {
            return;
        }
        self.sources.retain(|_, full_at| *full_at > now);
        if self.sources.len() >= self.most
            && let Some(fullest) = self.sources.iter().min_by_key(|(_, at)| **at).map(|(source, _)| *source)
        {
            self.sources.remove(&fullest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn source(number: u32) -> Source {
        IpAddr::V4(number.into()).into()
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_half_an_ipv6_one() {
        let of = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn one_source_cannot_keep_another_out() {
        let mut places = Places::new(8, 4);
        for random in 0..10_000 {
            places.enter(source(1), random);
        }
        assert_eq!(places.total(), 4);
        let (mine, evicted) = places.enter(source(2), 0);
        assert_eq!((places.total(), evicted), (5, None));
        // Nor can it push the other out again.
        for random in 0..10_000 {
            assert_ne!(places.enter(source(1), random).1, Some(mine));
        }
    }

    #[test]
    fn many_sources_make_way_for_one_more() {
        let mut places = Places::new(8, 4);
        for number in 0..100 {
            places.enter(source(number), number as usize);
            assert!(places.total() <= 8);
        }
    }

    proptest! {
        #[test]
        fn places_are_never_more_than_there_are(
            most in 1usize..12, each in 1usize..6,
            steps in proptest::collection::vec((0u32..5, any::<usize>(), any::<bool>()), 0..200),
        ) {
            let mut places = Places::new(most, each);
            let mut held: Vec<(Source, usize)> = Vec::new();
            for (from, random, enters) in steps {
                if enters || held.is_empty() {
                    let (number, evicted) = places.enter(source(from), random);
                    held.retain(|(_, held)| Some(*held) != evicted);
                    held.push((source(from), number));
                } else {
                    let (from, number) = held.swap_remove(random % held.len());
                    places.leave(from, number);
                }
                prop_assert_eq!(places.total(), held.len());
                prop_assert!(held.len() <= most);
                let numbers: HashSet<usize> = held.iter().map(|(_, number)| *number).collect();
                prop_assert_eq!(numbers.len(), held.len());
                for one in 0..5 {
                    prop_assert!(held.iter().filter(|(from, _)| *from == source(one)).count() <= each);
                }
            }
        }

        #[test]
        fn no_source_gets_more_than_its_rate_nor_all_together(
            burst in 1u32..6, every in 1u64..50, together in 1u32..20, apart in 1u64..20,
            steps in proptest::collection::vec((0u32..4, 0u64..40), 1..300),
        ) {
            let each = Rate { burst, every: Duration::from_millis(every) };
            let all = Rate { burst: together, every: Duration::from_millis(apart) };
            let mut buckets = Buckets::new(each, all, 64);
            let mut now = 0;
            let mut allowed: Vec<(u32, u64)> = Vec::new();
            for (from, pause) in steps {
                now += pause;
                if buckets.allow(Duration::from_millis(now), source(from)) {
                    allowed.push((from, now));
                }
            }
            // In every stretch of time between two that were allowed.
            let within = |times: &[u64], rate: Rate| {
                (0..times.len()).all(|first| {
                    (first..times.len()).all(|last| {
                        let apart = (times[last] - times[first]) / rate.every.as_millis() as u64;
                        (last - first + 1) as u64 <= u64::from(rate.burst) + apart
                    })
                })
            };
            let times = |of: &dyn Fn(u32) -> bool| -> Vec<u64> {
                allowed.iter().filter(|(from, _)| of(*from)).map(|(_, at)| *at).collect()
            };
            prop_assert!(within(&times(&|_| true), all));
            for one in 0..4 {
                prop_assert!(within(&times(&|from| from == one), each));
            }
        }

        #[test]
        fn memory_is_bounded_whoever_asks(asks in proptest::collection::vec((any::<u32>(), 0u64..5), 0..300)) {
            let rate = Rate { burst: 1000, every: Duration::from_secs(1) };
            let mut buckets = Buckets::new(rate, rate, 16);
            let mut now = 0;
            for (from, pause) in asks {
                now += pause;
                buckets.allow(Duration::from_secs(now), source(from));
                prop_assert!(buckets.remembered() <= 16);
            }
        }

        #[test]
        fn who_waits_long_enough_is_allowed_again(burst in 1u32..10, asks in 1usize..50) {
            let rate = Rate { burst, every: Duration::from_secs(1) };
            let mut buckets = Buckets::new(rate, rate, 16);
            for _ in 0..asks {
                buckets.allow(Duration::ZERO, source(1));
            }
            prop_assert!(buckets.allow(rate.every * burst, source(1)));
        }
    }
}
