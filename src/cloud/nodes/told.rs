//! What one connected node has been told, and what it is yet to be told.

use std::collections::BTreeMap;

use crate::link::Latest;
use crate::link::outgoing::LatestReceiver;
use crate::link::sync::{Set, Version};
use crate::object::{Key, Object, Revision, Uid, codec, content_hash};

/// What the node holds of a key before an order is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Was {
    /// Which object.
    pub uid: Uid,
    /// Its content in CBOR, if it is known: what a change is sent against.
    pub content: Option<Vec<u8>>,
}

/// One thing a node is to be told about a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// What it holds so far; `None` if nothing.
    pub was: Option<Was>,
    /// The content it is to hold, in CBOR; `None` if nothing.
    pub now: Option<Vec<u8>>,
}

/// What identifies a connection among those of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Generation of the edge's store.
    pub generation: u64,
    /// Which start of the agent.
    pub epoch: u64,
    /// Which connection of that start; 0 from an agent that does not count.
    pub connection: u64,
}

impl Claim {
    /// True if a connection with this claim takes over from a live one. Only
    /// one that was made before it, and was delayed, does not.
    pub fn takes_over(&self, live: &Claim) -> bool {
        let is_same_store = self.generation == live.generation;
        let is_earlier = (self.epoch, self.connection) < (live.epoch, live.connection);
        !is_same_store || self.connection == 0 || !is_earlier
    }
}

/// One node's state. `holds` is what the node holds once it has followed every
/// order that waits.
#[derive(Debug)]
pub struct Told {
    orders: Latest<Key, Order>,
    holds: Set,
    /// Keys that were read, and as of when: changes that are seen later and
    /// were made before are old news.
    read: BTreeMap<Key, Revision>,
}

impl Told {
    /// A node that holds nothing yet.
    pub fn new() -> (Told, LatestReceiver<Key, Order>) {
        let (orders, receiver) = Latest::new();
        (Told { orders, holds: Set::new(), read: BTreeMap::new() }, receiver)
    }

    /// What the node is to hold.
    pub fn holds(&self) -> &Set {
        &self.holds
    }

    /// True once the node's session has ended.
    pub fn is_over(&self) -> bool {
        self.orders.is_closed()
    }

    /// An object that the node is to hold was seen to change.
    pub fn changed(&mut self, object: &Object, previous: Option<&Object>) {
        if self.is_news(&object.key, object.revision) {
            self.put(object, previous);
        }
    }

    /// An object that the node is to hold was seen to be gone, at this
    /// revision.
    pub fn removed(&mut self, key: &Key, revision: Revision) {
        if self.is_news(key, revision) {
            self.drop(key);
        }
    }

    /// An object that the node is to hold was read as of this revision; `None`
    /// if there was none.
    pub fn found(&mut self, key: &Key, at: Revision, object: Option<&Object>) {
        self.read.insert(key.clone(), at);
        match object {
            Some(object) => self.put(object, None),
            None => self.drop(key),
        }
    }

    /// As [`Told::found`], but the session tells the node of an object itself;
    /// what waits about the key is older and is taken back.
    pub fn sent(&mut self, key: &Key, at: Revision, object: Option<&Object>) {
        self.read.insert(key.clone(), at);
        match object {
            Some(object) => {
                self.holds.insert(key.clone(), version(object));
                self.orders.remove(key);
            }
            None => self.drop(key),
        }
    }

    /// The node is to hold nothing under this key any more.
    pub fn drop(&mut self, key: &Key) {
        if let Some((uid, _)) = self.holds.remove(key) {
            self.order(key, Some(Was { uid, content: None }), None);
        }
    }

    fn put(&mut self, object: &Object, previous: Option<&Object>) {
        let version = version(object);
        if self.holds.get(&object.key) == Some(&version) {
            return;
        }
        let held = self.holds.insert(object.key.clone(), version);
        let was = held.map(|held| {
            let previous = previous.filter(|previous| self::version(previous) == held);
            Was { uid: held.0, content: previous.map(|previous| codec::encode_content(&previous.value)) }
        });
        self.order(&object.key, was, Some(codec::encode_content(&object.value)));
    }

    fn is_news(&mut self, key: &Key, revision: Revision) -> bool {
        match self.read.get(key) {
            Some(read) if revision <= *read => false,
            Some(_) => self.read.remove(key).is_some(),
            None => true,
        }
    }

    /// Of two orders about a key the later counts, on top of what the node
    /// held before the first.
    fn order(&self, key: &Key, was: Option<Was>, now: Option<Vec<u8>>) {
        self.orders.update(key.clone(), |waiting| Order {
            was: match waiting {
                // What was made since is dropped by its name, though the node
                // is not known to have it: it may have been told of it by one
                // who knew more.
                Some(Order { was: None, .. }) if now.is_none() => was,
                Some(waiting) => waiting.was,
                None => was,
            },
            now,
        });
    }
}

/// What identifies an object's content.
pub fn version(object: &Object) -> Version {
    (object.uid.clone(), content_hash(&object.value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::{Origin, Revision};

    fn object(uid: &str, revision: u64) -> Object {
        Object {
            key: Key::core("configmaps", "default", "c").unwrap(),
            uid: Uid(uid.into()),
            revision: Revision(revision),
            origin: Origin::Local,
            value: json!({"metadata": {"uid": uid}, "data": revision}),
        }
    }

    /// A node that holds this object and has been told so.
    fn holding(object: &Object) -> (Told, LatestReceiver<Key, Order>) {
        let (mut told, orders) = Told::new();
        told.sent(&object.key, object.revision, Some(object));
        (told, orders)
    }

    #[test]
    fn a_change_is_told_against_what_the_node_holds() {
        let (first, second, third) = (object("a", 1), object("a", 2), object("a", 3));
        let (mut told, orders) = holding(&first);
        told.changed(&second, Some(&first));
        told.changed(&third, Some(&second));
        let (_, order) = orders.try_pop().unwrap();
        assert_eq!(order.was.unwrap().content, Some(codec::encode_content(&first.value)));
        assert_eq!(order.now, Some(codec::encode_content(&third.value)));
        assert!(orders.try_pop().is_none());
    }

    #[test]
    fn what_was_replaced_unseen_is_dropped_by_the_name_the_node_knows() {
        let (first, second) = (object("a", 1), object("b", 3));
        let (mut told, orders) = holding(&first);
        told.removed(&first.key, Revision(2));
        told.changed(&second, None);
        told.removed(&second.key, Revision(4));
        let (_, order) = orders.try_pop().unwrap();
        assert_eq!(order, Order { was: Some(Was { uid: first.uid, content: None }), now: None });
    }

    #[test]
    fn what_was_made_and_is_gone_is_dropped_by_its_own_name() {
        let only = object("a", 1);
        let (mut told, orders) = Told::new();
        told.changed(&only, None);
        told.removed(&only.key, Revision(2));
        let (_, order) = orders.try_pop().unwrap();
        assert_eq!(order, Order { was: Some(Was { uid: only.uid, content: None }), now: None });
    }

    #[test]
    fn what_was_read_is_not_undone_by_old_news() {
        let (first, second) = (object("a", 1), object("b", 5));
        let (mut told, orders) = holding(&second);
        told.changed(&first, None);
        told.removed(&first.key, Revision(2));
        assert!(orders.try_pop().is_none());
        assert_eq!(told.holds().get(&second.key), Some(&version(&second)));
        told.found(&second.key, Revision(9), None);
        assert!(orders.try_pop().is_some());
        told.changed(&object("b", 7), None);
        assert!(orders.try_pop().is_none());
        told.changed(&object("c", 10), None);
        assert!(orders.try_pop().is_some());
    }

    #[test]
    fn only_a_delayed_connection_does_not_take_over() {
        let live = Claim { generation: 1, epoch: 5, connection: 7 };
        let takes = |generation, epoch, connection| Claim { generation, epoch, connection }.takes_over(&live);
        assert!(takes(1, 5, 8));
        assert!(takes(1, 5, 7));
        assert!(takes(1, 6, 1));
        assert!(!takes(1, 5, 6));
        assert!(!takes(1, 4, 9));
        assert!(takes(2, 1, 1));
        assert!(takes(1, 5, 0));
    }
}
