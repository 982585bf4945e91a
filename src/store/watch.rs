//! Past changes, and those who wait for the next.

use std::collections::VecDeque;
use std::sync::Arc;

use async_channel::{Receiver, Sender};

use super::Scope;
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
    /// Everything after this revision is in `changes`.
    complete_after: Revision,
}

impl History {
    pub(super) fn starting_at(revision: Revision) -> History {
        History { changes: VecDeque::new(), complete_after: revision }
    }

    pub(super) fn push(&mut self, change: Arc<Change>, limit: usize) {
        self.changes.push_back(change);
        while self.changes.len() > limit {
            if let Some(dropped) = self.changes.pop_front() {
                self.complete_after = dropped.revision;
            }
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
    sender: Sender<Arc<Change>>,
}

impl Watcher {
    /// Tells the watcher; false if it is no longer there, or so slow that its
    /// queue is full. Its channel is then closed, and it finds [`Gone`] behind
    /// what it had not taken yet.
    pub(super) fn tell(&self, change: &Arc<Change>) -> bool {
        if !self.scope.contains(&change.object.key) {
            return !self.sender.is_closed();
        }
        let told = self.sender.try_send(change.clone()).is_ok();
        if !told {
            self.sender.close();
        }
        told
    }
}

/// The changes to a scope as they are committed.
pub struct Watch {
    backlog: VecDeque<Arc<Change>>,
    receiver: Receiver<Arc<Change>>,
}

impl Watch {
    /// The next change, in the order of revisions. [`Gone`] once, at the end:
    /// the watcher was too slow, or the store has closed.
    pub async fn next(&mut self) -> Result<Arc<Change>, Gone> {
        match self.backlog.pop_front() {
            Some(change) => Ok(change),
            None => self.receiver.recv().await.map_err(|_| Gone),
        }
    }
}

pub(super) fn pair(scope: Scope, backlog: VecDeque<Arc<Change>>, queue: usize) -> (Watcher, Watch) {
    let (sender, receiver) = async_channel::bounded(queue);
    (Watcher { scope, sender }, Watch { backlog, receiver })
}
