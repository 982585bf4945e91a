//! What waits to be sent: at most one thing a key, and a few that are not
//! keyed. Nothing here grows with time, only with the number of objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_channel::{Receiver, Sender};

/// A queue in which a newer value for a key takes the place of the older one,
/// and keeps its turn.
#[derive(Debug)]
pub struct Outgoing<K, V> {
    turn_of: BTreeMap<K, u64>,
    waiting: BTreeMap<u64, (K, V)>,
    next_turn: u64,
}

impl<K, V> Default for Outgoing<K, V> {
    fn default() -> Self {
        Outgoing { turn_of: BTreeMap::new(), waiting: BTreeMap::new(), next_turn: 0 }
    }
}

impl<K: Ord + Clone, V> Outgoing<K, V> {
    /// Puts a value in its key's place, or at the end.
    pub fn push(&mut self, key: K, value: V) {
        let turn = *self.turn_of.entry(key.clone()).or_insert_with(|| {
            self.next_turn = self.next_turn.wrapping_add(1);
            self.next_turn
        });
        self.waiting.insert(turn, (key, value));
    }

    /// Puts in a key's place what `merge` makes of the value that waits there.
    pub fn update(&mut self, key: K, merge: impl FnOnce(Option<V>) -> V) {
        let waiting = self.turn_of.get(&key).and_then(|turn| self.waiting.remove(turn));
        let value = merge(waiting.map(|(_, value)| value));
        self.push(key, value);
    }

    /// Takes back what waits for a key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let turn = self.turn_of.remove(key)?;
        self.waiting.remove(&turn).map(|(_, value)| value)
    }

    /// Takes the value that has waited longest.
    pub fn pop(&mut self) -> Option<(K, V)> {
        let (_, (key, value)) = self.waiting.pop_first()?;
        self.turn_of.remove(&key);
        Some((key, value))
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.turn_of.clear();
        self.waiting.clear();
    }
}

/// A mailbox between tasks in which the newest value per key wins: the sender
/// never waits, and the memory is bounded by the number of keys.
#[derive(Debug)]
pub struct Latest<K, V> {
    queue: Arc<Mutex<Outgoing<K, V>>>,
    wake: Sender<()>,
}

/// The receiving end of a [`Latest`].
#[derive(Debug)]
pub struct LatestReceiver<K, V> {
    queue: Arc<Mutex<Outgoing<K, V>>>,
    woken: Receiver<()>,
}

impl<K, V> Clone for Latest<K, V> {
    fn clone(&self) -> Self {
        Latest { queue: self.queue.clone(), wake: self.wake.clone() }
    }
}

impl<K, V> Clone for LatestReceiver<K, V> {
    fn clone(&self) -> Self {
        LatestReceiver { queue: self.queue.clone(), woken: self.woken.clone() }
    }
}

fn lock<K, V>(queue: &Mutex<Outgoing<K, V>>) -> MutexGuard<'_, Outgoing<K, V>> {
    // Each operation on the queue is whole or not begun.
    queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl<K: Ord + Clone, V> Latest<K, V> {
    /// Makes a mailbox.
    pub fn new() -> (Latest<K, V>, LatestReceiver<K, V>) {
        let queue = Arc::new(Mutex::new(Outgoing::default()));
        // One waiting wake-up is enough: the receiver empties the queue.
        let (wake, woken) = async_channel::bounded(1);
        (Latest { queue: queue.clone(), wake }, LatestReceiver { queue, woken })
    }

    /// Leaves the newest value for a key; forgotten if nobody receives any more.
    pub fn push(&self, key: K, value: V) {
        if !self.is_closed() {
            lock(&self.queue).push(key, value);
            // Full means that the receiver is about to look anyway.
            let _ = self.wake.try_send(());
        }
    }

    /// Leaves what `merge` makes of the value that waits for a key; forgotten
    /// if nobody receives any more.
    pub fn update(&self, key: K, merge: impl FnOnce(Option<V>) -> V) {
        if !self.is_closed() {
            lock(&self.queue).update(key, merge);
            let _ = self.wake.try_send(());
        }
    }

    /// Takes back what waits for a key.
    pub fn remove(&self, key: &K) {
        lock(&self.queue).remove(key);
    }

    /// True if nobody receives any more.
    pub fn is_closed(&self) -> bool {
        self.wake.is_closed()
    }
}

impl<K: Ord + Clone, V> LatestReceiver<K, V> {
    /// Takes the value that has waited longest, if any.
    pub fn try_pop(&self) -> Option<(K, V)> {
        lock(&self.queue).pop()
    }

    /// True once no sender is left.
    pub fn is_over(&self) -> bool {
        self.woken.is_closed()
    }

    /// Waits until something may be there; false once no sender is left.
    pub async fn ready(&self) -> bool {
        self.woken.recv().await.is_ok()
    }

    /// Takes the value that has waited longest, waiting for one; `None` once
    /// no sender is left.
    pub async fn pop(&self) -> Option<(K, V)> {
        loop {
            if let Some(item) = self.try_pop() {
                return Some(item);
            }
            if !self.ready().await {
                return self.try_pop();
            }
        }
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        lock(&self.queue).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_value_keeps_the_oldest_turn() {
        let mut queue = Outgoing::default();
        queue.push("a", 1);
        queue.push("b", 2);
        queue.push("a", 3);
        assert_eq!(queue.pop(), Some(("a", 3)));
        queue.push("a", 4);
        assert_eq!(queue.pop(), Some(("b", 2)));
        assert_eq!(queue.pop(), Some(("a", 4)));
        assert!(queue.pop().is_none());
    }

    #[test]
    fn a_mailbox_never_blocks_its_sender() {
        let (latest, receiver) = Latest::new();
        for n in 0..10_000 {
            latest.push(n % 3, n);
        }
        let mut seen = Vec::new();
        while let Some((_, n)) = receiver.try_pop() {
            seen.push(n);
        }
        assert_eq!(seen, [9999, 9997, 9998]);
        drop(latest);
        assert_eq!(smol::block_on(receiver.pop()), None);
    }
}
