//! The door of a listener: carries out what [`super::admission`] decides, and lets handshakes compute one at a
//! time, so that a flood of them delays nobody who is already in.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_channel::{Receiver, Sender, bounded};
use futures_lite::{FutureExt, future};
use smol::lock::Semaphore;

use super::admission::{Buckets, Places, Rate, Source};
use crate::task::Tasks;

/// Unfinished connections at most.
const PLACES: usize = 1024;
/// Of these to one source at most: a thousand boards behind one address come back within seconds.
const PLACES_EACH: usize = 256;
/// Connections without a certificate: a batch of boards is set up behind one address.
const STRANGERS: Rate = Rate { burst: 32, every: Duration::from_millis(500) };
/// The same, of all sources together.
const STRANGERS_ALL: Rate = Rate { burst: 256, every: Duration::from_millis(10) };
/// Join secrets looked up.
const JOINS: Rate = Rate { burst: 32, every: Duration::from_secs(1) };
/// The same, of all sources together.
const JOINS_ALL: Rate = Rate { burst: 128, every: Duration::from_millis(20) };
/// Sources whose rates are remembered.
const SOURCES: usize = 4096;

/// A listener's door.
pub struct Door {
    inner: Mutex<Inner>,
    /// Who computes in a handshake.
    turn: Semaphore,
    tasks: Tasks,
}

struct Inner {
    places: Places,
    /// What tells the holder of a place to leave: closed by being dropped.
    holders: std::collections::HashMap<usize, Sender<Infallible>>,
    strangers: Buckets,
    joins: Buckets,
}

/// A place among the unfinished connections; dropped, it is free again.
pub struct Place {
    door: Arc<Door>,
    source: Source,
    number: usize,
    leave: Receiver<Infallible>,
}

impl Door {
    /// A door for a process that may have so many files open.
    pub fn new(tasks: &Tasks, files: usize) -> Arc<Door> {
        let places = PLACES.min(files / 4);
        let inner = Inner {
            places: Places::new(places, PLACES_EACH.min(places / 2)),
            holders: Default::default(),
            strangers: Buckets::new(STRANGERS, STRANGERS_ALL, SOURCES),
            joins: Buckets::new(JOINS, JOINS_ALL, SOURCES),
        };
        Arc::new(Door { inner: Mutex::new(inner), turn: Semaphore::new(1), tasks: tasks.clone() })
    }

    /// Gives a new connection its place; another one may have to make way.
    pub fn enter(self: &Arc<Door>, address: IpAddr) -> Place {
        let source = Source::from(address);
        let (holder, leave) = bounded(1);
        let mut inner = self.lock();
        let (number, evicted) = inner.places.enter(source, fastrand::usize(..));
        if let Some(evicted) = evicted {
            inner.holders.remove(&evicted);
        }
        inner.holders.insert(number, holder);
        Place { door: self.clone(), source, number, leave }
    }

    /// Unfinished connections now.
    pub fn unfinished(&self) -> usize {
        self.lock().places.total()
    }

    /// Polls a handshake when it is its turn, and then lets the others who wait to run do so: its steps are the
    /// only expensive thing that a stranger can ask for.
    pub async fn in_turns<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        loop {
            let turn = self.turn.acquire().await;
            let mut output = future::poll_once(handshake.as_mut()).await;
            // The turn is kept while everything else that is ready runs once.
            future::yield_now().await;
            if output.is_none() {
                // What has woken it meanwhile has woken this task for the line above.
                output = future::poll_once(handshake.as_mut()).await;
            }
            drop(turn);
            if let Some(output) = output {
                return output;
            }
            // Until the handshake, or whatever else this task waits for, wakes it.
            let mut woken = false;
            future::poll_fn(|_| match std::mem::replace(&mut woken, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between two lines of plain data leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Works until it is done, or has to make way: then nothing.
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let evicted = async {
            let Err(async_channel::RecvError) = self.leave.recv().await;
            None
        };
        async { Some(work.await) }.or(evicted).await
    }

    /// Whether one more client without a certificate may be attended to from here.
    pub fn may_be_stranger(&self) -> bool {
        let now = self.door.tasks.now();
        self.door.lock().strangers.allow(now, self.source)
    }

    /// Whether one more join secret may be looked up for here.
    pub fn may_join(&self) -> bool {
        let now = self.door.tasks.now();
        self.door.lock().joins.allow(now, self.source)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.door.lock();
        inner.places.leave(self.source, self.number);
        inner.holders.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn who_came_too_often_makes_way_and_a_place_is_given_back() {
        let door = Door::new(&Tasks::default(), 16);
        let first: Vec<Place> = (0..10).map(|_| door.enter(address(1))).collect();
        assert_eq!(door.unfinished(), 2);
        smol::block_on(async {
            let mut left = 0;
            for place in &first {
                left += usize::from(place.hold(future::yield_now()).await.is_none());
            }
            assert_eq!(left, 8);
        });
        let other = door.enter(address(2));
        assert_eq!(smol::block_on(other.hold(async { 7 })), Some(7));
        drop((first, other));
        assert_eq!(door.unfinished(), 0);
        assert!(door.lock().holders.is_empty());
    }

    #[test]
    fn strangers_are_counted_by_their_address() {
        let door = Door::new(&Tasks::default(), 1024);
        let (loud, quiet) = (door.enter(address(1)), door.enter(address(2)));
        while loud.may_be_stranger() {}
        assert!(quiet.may_be_stranger());
        while loud.may_join() {}
        assert!(quiet.may_join());
    }

    #[test]
    fn of_many_handshakes_that_are_ready_one_computes_between_two_steps_of_a_session() {
        let tasks = Tasks::default();
        let door = Door::new(&tasks, 1024);
        let computed = Cell::new(0);
        let local = smol::LocalExecutor::new();
        for _ in 0..100 {
            let (door, computed) = (&door, &computed);
            local
                .spawn(async move {
                    // Each handshake has three steps, and is ready for the next at once.
                    let handshake = async {
                        for _ in 0..3 {
                            computed.set(computed.get() + 1);
                            future::yield_now().await;
                        }
                    };
                    door.in_turns(handshake).await;
                })
                .detach();
        }
        // A session's steps: it goes through the executor's queue as every task does.
        let session = local.spawn(async {
            let mut steps = 0;
            let mut before = 0;
            while before < 300 {
                future::yield_now().await;
                assert!(computed.get() - before <= 2, "{} in one step", computed.get() - before);
                before = computed.get();
                steps += 1;
            }
            steps
        });
        let steps = smol::block_on(local.run(session));
        assert!(steps >= 150, "{steps}");
    }
}
