//! Past changes, and those who wait for the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_channel::{Receiver, Sender};

use serde_json::Value;

use super::{Options, Scope};
use crate::object::{Object, Revision};

/// One change, as every watcher of its scope is told.
#[derive(Clone, Debug)]
pub struct Change {
    /// The store's revision that this change made.
    pub revision: Revision,
    /// The object after the change; for a removal, as it last was, at the
    /// removal's revision.
    pub object: Arc<Object>,
    /// The object before, if there was one.
    pub previous: Option<Arc<Object>>,
    /// True if the change removed the object.
    pub removed: bool,
}

/// The changes asked for are no longer all known (Kubernetes: 410 Gone,
/// reason `Expired`): list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes from there on are no longer known: list again")]
pub struct Gone;

/// The last changes, oldest first.
pub(super) struct History {
    changes: VecDeque<Arc<Change>>,
    /// What `changes` weigh together.
    bytes: usize,
    /// Everything after this revision is in `changes`.
    complete_after: Revision,
}

/// What a change keeps in memory: its object. The one before it is the object
/// of an earlier change, as a rule.
pub(super) fn weight(change: &Change) -> usize {
    value_weight(&change.object.value)
}

/// About how many bytes a value takes in memory. A map, however small, takes a
/// node of a tree that has room for eleven entries.
fn value_weight(value: &Value) -> usize {
    const ENTRIES: usize = 11;
    const NODE: usize = ENTRIES * (size_of::<String>() + size_of::<Value>()) + 16;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(items) => {
            let own = items.capacity().saturating_mul(size_of::<Value>());
            items.iter().map(value_weight).fold(own, usize::saturating_add)
        }
        Value::Object(map) => {
            let own = map.len().div_ceil(ENTRIES).saturating_mul(NODE);
            let entry = |(key, value): (&String, &Value)| key.capacity().saturating_add(value_weight(value));
            map.iter().map(entry).fold(own, usize::saturating_add)
        }
    }
}

impl History {
    pub(super) fn starting_at(revision: Revision) -> History {
        History { changes: VecDeque::new(), bytes: 0, complete_after: revision }
    }

    /// Adds a change, and forgets the oldest ones that are over either limit.
    pub(super) fn push(&mut self, change: Arc<Change>, weight_of_it: usize, options: &Options) {
        self.bytes = self.bytes.saturating_add(weight_of_it);
        self.changes.push_back(change);
        while (self.changes.len() > options.history || self.bytes > options.history_bytes)
            && let Some(dropped) = self.changes.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(weight(&dropped));
            self.complete_after = dropped.revision;
        }
    }

    pub(super) fn since(&self, scope: &Scope, from: Revision) -> Result<VecDeque<Arc<Change>>, Gone> {
        if from < self.complete_after {
            return Err(Gone);
        }
        let start = self.changes.partition_point(|change| change.revision <= from);
        Ok(self.changes.range(start..).filter(|change| scope.contains(&change.object.key)).cloned().collect())
    }
}

/// The store's side of a watch.
pub(super) struct Watcher {
    scope: Scope,
    sender: Sender<(Arc<Change>, usize)>,
    /// What its queue weighs, in bytes.
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

impl Watcher {
    /// Tells the watcher of a change of this weight; false if it is no longer
    /// there, or so slow that its queue is full, in number or in bytes. Its
    /// channel is then closed, and it finds [`Gone`] behind what it had not
    /// taken yet. A change that is larger than all that may wait is told if
    /// nothing else waits.
    pub(super) fn tell(&self, change: &Arc<Change>, weight: usize) -> bool {
        if !self.scope.contains(&change.object.key) {
            return !self.sender.is_closed();
        }
        let before = self.waiting.fetch_add(weight, Ordering::Relaxed);
        let has_room = before == 0 || before.saturating_add(weight) <= self.limit;
        let told = has_room && self.sender.try_send((change.clone(), weight)).is_ok();
        if !told {
            self.sender.close();
        }
        told
    }
}

/// The changes to a scope as they are committed.
pub struct Watch {
    backlog: VecDeque<Arc<Change>>,
    receiver: Receiver<(Arc<Change>, usize)>,
    waiting: Arc<AtomicUsize>,
}

impl Watch {
    /// The next change, in the order of revisions. [`Gone`] once, at the end:
    /// the watcher was too slow, or the store has closed.
    pub async fn next(&mut self) -> Result<Arc<Change>, Gone> {
        if let Some(change) = self.backlog.pop_front() {
            return Ok(change);
        }
        // What a large backlog took is given back.
        self.backlog = VecDeque::new();
        let (change, weight) = self.receiver.recv().await.map_err(|_| Gone)?;
        self.waiting.fetch_sub(weight, Ordering::Relaxed);
        Ok(change)
    }
}

pub(super) fn pair(scope: Scope, backlog: VecDeque<Arc<Change>>, options: &Options) -> (Watcher, Watch) {
    let (sender, receiver) = async_channel::bounded(options.watch_queue);
    let waiting = Arc::new(AtomicUsize::new(0));
    let watcher = Watcher { scope, sender, waiting: waiting.clone(), limit: options.watch_bytes };
    (watcher, Watch { backlog, receiver, waiting })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::{Key, Origin, Uid};

    fn change(revision: u64, text: usize) -> Arc<Change> {
        let key = Key::core("configmaps", "default", "a").unwrap();
        let value = json!({"metadata": {"name": "a"}, "data": {"text": "x".repeat(text)}});
        let revision = Revision(revision);
        let object = Object { key, uid: Uid("u".into()), revision, origin: Origin::Cloud, value };
        Arc::new(Change { revision, object: Arc::new(object), previous: None, removed: false })
    }

    #[test]
    fn a_history_has_bounds_of_number_and_memory() {
        let scope = Scope::all("", "configmaps");
        let options = Options { history: 4, history_bytes: 100_000, ..Options::default() };
        let mut history = History::starting_at(Revision(0));
        let push = |history: &mut History, change: Arc<Change>| {
            let weight = weight(&change);
            history.push(change, weight, &options);
        };
        (1..=6).for_each(|revision| push(&mut history, change(revision, 10)));
        assert_eq!(history.changes.len(), 4);
        assert_eq!(history.since(&scope, Revision(2)).unwrap().len(), 4);
        assert_eq!(history.since(&scope, Revision(1)).err(), Some(Gone));

        push(&mut history, change(7, 60_000));
        push(&mut history, change(8, 60_000));
        assert_eq!(history.changes.len(), 1);
        assert_eq!(history.since(&scope, Revision(7)).unwrap().len(), 1);
        // Larger than all that may be kept: who lists now misses nothing.
        push(&mut history, change(9, 200_000));
        assert_eq!((history.changes.len(), history.bytes), (0, 0));
        assert_eq!(history.since(&scope, Revision(8)).err(), Some(Gone));
        assert!(history.since(&scope, Revision(9)).unwrap().is_empty());
    }

    #[test]
    fn a_value_weighs_what_its_nodes_and_texts_take() {
        assert_eq!(value_weight(&json!(null)), 0);
        assert_eq!(value_weight(&json!({})), 0);
        let one = value_weight(&json!({"a": 1}));
        // Some 80 words: what they are made of is half as long on 32 bits.
        let words = size_of::<usize>();
        assert!((50 * words..125 * words).contains(&one), "{one}");
        assert!(value_weight(&json!({"a": {"b": [{"c": 1}]}})) > 3 * (one - 1));
    }
}
