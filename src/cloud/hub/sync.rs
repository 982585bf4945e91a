//! What one connected node is sent, and in which order. No socket, no clock,
//! no cluster: the session carries it out, and `sim` tries it.
//!
//! ```text
//! Hello ─ digest equal ──────────────────────────► Synced ─► orders
//!       └ inventory asked ─► difference: drops, puts ─► Synced ─► orders
//! ```
//!
//! Absence is not an order: until everything behind the node's set was read,
//! and for an edge that holds another cluster's objects, nothing is dropped
//! and `Synced` is not said.

use std::collections::VecDeque;

use crate::cloud::absence;
use crate::cloud::nodes::Order;
use crate::link::compress::pack;
use crate::link::frame::{
    DIGEST_ALGORITHM, FEATURE_LZ4, Gone, Hello, INVENTORY_MAX, INVENTORY_PART, Inventory, NeedFull, Put,
    WireKey, gone,
};
use crate::link::sync::{Set, difference, holdings, set_digest};
use crate::link::{Body, Holding};
use crate::object::{Key, Uid};

/// What is to be done next.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Send this.
    Send(Body),
    /// Read this object as it is now, and answer with [`Sync::read`].
    Read(Key),
}

/// What is to be sent before any order.
#[derive(Debug)]
enum First {
    Drop(Gone),
    /// And the uid of what the node holds under the key.
    Put(Key, Option<Uid>),
}

/// What the edge holds and is not known to need is looked for once more before
/// it is dropped: the edge may have been told of it already by one who knew
/// more, while the word of it is still on its way here.
fn doubted(gone: Gone) -> First {
    match Key::try_from(&gone.key) {
        Ok(key) => First::Put(key, Some(Uid(gone.uid))),
        Err(_) => First::Drop(gone),
    }
}

/// One connection's state.
#[derive(Debug)]
pub struct Sync {
    wanted: Set,
    complete: bool,
    /// True unless the edge holds objects of another cluster.
    belongs: bool,
    /// The inventory as it arrives; `None` once it is whole, or not needed.
    inventory: Option<Vec<Holding>>,
    /// What the edge holds and was told nothing of, of a set that was not
    /// complete when it connected.
    held: Vec<Holding>,
    first: VecDeque<First>,
    /// What is being read, and what the node holds in its place.
    reading: Option<(Key, Option<Uid>)>,
    /// True if `Synced` is to be said once nothing waits.
    unsaid: bool,
    /// Puts that name a base and are not acknowledged: the edge may ask for
    /// these, and for nothing else.
    based: VecDeque<(u64, Key)>,
    reads_lz4: bool,
}

impl Sync {
    /// A connection that begins with this `Hello` and is to end up holding
    /// `wanted`, which is everything if `complete`.
    pub fn new(hello: &Hello, cluster: &str, wanted: Set, complete: bool) -> Sync {
        let in_sync = hello.digest_algorithm == DIGEST_ALGORITHM && set_digest(&wanted) == hello.digest;
        let belongs = hello.cluster.is_empty() || hello.cluster == cluster;
        let held = match in_sync && !complete && belongs {
            true => holdings(&wanted),
            false => Vec::new(),
        };
        Sync {
            wanted,
            complete,
            belongs,
            inventory: (!in_sync).then(Vec::new),
            held,
            first: VecDeque::new(),
            reading: None,
            unsaid: in_sync && complete && belongs,
            based: VecDeque::new(),
            reads_lz4: hello.features.iter().any(|feature| feature == FEATURE_LZ4),
        }
    }

    /// True unless the edge holds objects of another cluster.
    pub fn belongs(&self) -> bool {
        self.belongs
    }

    /// True if the edge is to send its inventory.
    pub fn wants_inventory(&self) -> bool {
        self.inventory.is_some()
    }

    /// A part of the inventory has come.
    ///
    /// # Errors
    /// Nobody asked for it, or it is longer than any board's.
    pub fn inventory(&mut self, part: Inventory) -> Result<Option<Plan>, &'static str> {
        let inventory = self.inventory.as_mut().ok_or("an inventory that nobody asked for")?;
        if part.holdings.len() > INVENTORY_PART {
            return Err("a part of an inventory that is longer than agreed");
        }
        if !part.holdings.iter().all(is_short) {
            return Err("an inventory of names that no object has");
        }
        if inventory.len().saturating_add(part.holdings.len()) > INVENTORY_MAX {
            return Err("an inventory longer than any board's");
        }
        inventory.extend(part.holdings);
        if !part.last {
            return Ok(None);
        }
        let held = self.inventory.take().unwrap_or_default();
        let mut difference = difference(&held, &self.wanted, self.complete && self.belongs);
        // What a pod names goes before the pod.
        difference.puts.sort_by_key(|(key, _)| key.is("", "pods"));
        let left = match self.complete && self.belongs {
            true => Vec::new(),
            false => absence::unknown(&held, &self.wanted),
        };
        let (puts, drops) = (difference.puts.len(), difference.drops.len());
        let plan = Plan { held: held.len(), puts, drops, left };
        self.first.extend(difference.drops.into_iter().map(doubted));
        self.first.extend(difference.puts.into_iter().map(|(key, instead)| First::Put(key, instead)));
        self.unsaid = self.complete && self.belongs;
        if !self.complete && self.belongs {
            self.held = held;
        }
        self.wanted.clear();
        Ok(Some(plan))
    }

    /// Everything behind the node's set has been read; this is all of it.
    pub fn completed(&mut self, wanted: &Set) {
        if std::mem::replace(&mut self.complete, true) || !self.belongs {
            return;
        }
        if self.inventory.is_some() {
            // The difference will be one with all of it.
            self.wanted = wanted.clone();
            return;
        }
        let is_wanted = |key: &WireKey| Key::try_from(key).is_ok_and(|key| wanted.contains_key(&key));
        let held = std::mem::take(&mut self.held).into_iter();
        let (wanted, unwanted): (Vec<_>, Vec<_>) = held.partition(|holding| is_wanted(&holding.key));
        let unwanted = unwanted.into_iter();
        self.first.extend(unwanted.map(|holding| doubted(Gone { key: holding.key, uid: holding.uid })));
        // An order about the others may yet be on its way.
        self.held = wanted;
        self.unsaid = true;
    }

    /// What is to be done next; `order` gives the next order that waits, if
    /// one does.
    pub fn next(&mut self, mut order: impl FnMut() -> Option<(Key, Order)>) -> Option<Next> {
        // Orders wait until the difference is known and sent: they go on from
        // there.
        if self.inventory.is_some() || self.reading.is_some() {
            return None;
        }
        match self.first.pop_front() {
            Some(First::Drop(gone)) => return Some(Next::Send(Body::Drop(gone))),
            Some(First::Put(key, instead)) => {
                self.reading = Some((key.clone(), instead));
                return Some(Next::Read(key));
            }
            None => {}
        }
        while let Some((key, order)) = order() {
            // What the edge said itself that it holds counts more.
            let held = self.take_held(&key);
            match (order.was, order.now) {
                (was, Some(now)) => {
                    let base = was.and_then(|was| was.content);
                    return Some(Next::Send(self.put(&key, &now, base.as_deref())));
                }
                (was, None) => {
                    if let Some(uid) = held.or(was.map(|was| was.uid)) {
                        return Some(Next::Send(Body::Drop(gone(&key, &uid))));
                    }
                }
            }
        }
        std::mem::take(&mut self.unsaid).then_some(Next::Send(Body::Synced))
    }

    /// What the edge said it holds under a key, until it is told something of
    /// it; known only of a set that was not complete.
    fn take_held(&mut self, key: &Key) -> Option<Uid> {
        let wire = WireKey::from(key);
        let at = self.held.iter().position(|holding| holding.key == wire)?;
        Some(Uid(self.held.swap_remove(at).uid))
    }

    /// The answer to [`Next::Read`]: the object's content in CBOR
    /// ([`crate::object::codec::encode_content`]). Gives what to send.
    pub fn read(&mut self, content: Option<&[u8]>) -> Option<Body> {
        let (key, instead) = self.reading.take()?;
        self.take_held(&key);
        match (content, instead) {
            (Some(content), _) => Some(self.put(&key, content, None)),
            // Gone since; and so is what the node holds in its place.
            (None, Some(uid)) => Some(Body::Drop(gone(&key, &uid))),
            (None, None) => None,
        }
    }

    /// The object that the edge may ask for again, whole, after this body.
    pub fn based_on(body: &Body) -> Option<Key> {
        match body {
            Body::Put(Put { base: Some(_), key, .. }) => Key::try_from(key).ok(),
            _ => None,
        }
    }

    /// A body with such an object was sent under this number.
    pub fn sent(&mut self, seq: u64, based: Key) {
        self.based.push_back((seq, based));
    }

    /// The edge has done everything up to this number.
    pub fn acked(&mut self, seq: u64) {
        while self.based.front().is_some_and(|(sent, _)| *sent <= seq) {
            self.based.pop_front();
        }
    }

    /// The edge lacks the base of a put.
    ///
    /// # Errors
    /// It was sent no such put: who may read an object is not for the edge to
    /// say.
    pub fn need_full(&mut self, need: &NeedFull) -> Result<(), &'static str> {
        let key = Key::try_from(&need.key).map_err(|_| "a name that cannot be")?;
        let asked = self.based.iter().position(|(_, based)| *based == key);
        let at = asked.ok_or("a wish for an object that it was not sent")?;
        self.based.remove(at);
        let instead = (!need.uid.is_empty()).then(|| Uid(need.uid.clone()));
        self.first.push_back(First::Put(key, instead));
        Ok(())
    }

    fn put(&self, key: &Key, content: &[u8], base: Option<&[u8]>) -> Body {
        Body::Put(pack(content, base, self.reads_lz4).put(key.into()))
    }
}

/// True if the names are no longer than an object's can be, so that the length
/// of an inventory bounds its size.
fn is_short(holding: &Holding) -> bool {
    const NAME: usize = 253;
    const UID: usize = 64;
    let Holding { key: WireKey { group, resource, namespace, name }, uid, .. } = holding;
    [group, resource, namespace, name].iter().all(|name| name.len() <= NAME) && uid.len() <= UID
}

/// What the difference came to, for the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Objects that the edge holds.
    pub held: usize,
    /// Objects to put.
    pub puts: usize,
    /// Objects to drop.
    pub drops: usize,
    /// Objects that it keeps though they are not wanted, for now.
    pub left: Vec<Gone>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::nodes::Was;
    use crate::link::frame::FEATURE_LZ4;

    fn key(name: &str) -> Key {
        Key::core("configmaps", "default", name).unwrap()
    }

    fn uid(name: &str) -> Uid {
        Uid(name.into())
    }

    fn set(names: &[&str]) -> Set {
        names.iter().map(|name| (key(name), (uid(name), [1; 32]))).collect()
    }

    fn holding(name: &str) -> Holding {
        Holding { key: (&key(name)).into(), uid: name.into(), hash: [1; 32] }
    }

    fn hello(holds: &[&str]) -> Hello {
        Hello {
            digest_algorithm: DIGEST_ALGORITHM,
            digest: set_digest(&set(holds)),
            features: vec![FEATURE_LZ4.into()],
            ..Hello::default()
        }
    }

    /// It looks for an object, which is not there, and drops it.
    #[track_caller]
    fn drops(sync: &mut Sync, name: &str) {
        assert_eq!(sync.next(|| None), Some(Next::Read(key(name))));
        assert_eq!(sync.read(None), Some(Body::Drop(gone(&key(name), &uid(name)))));
    }

    const SYNCED: Option<Next> = Some(Next::Send(Body::Synced));

    fn part(names: &[&str]) -> Inventory {
        Inventory { holdings: names.iter().copied().map(holding).collect(), last: true }
    }

    #[test]
    fn an_equal_digest_needs_one_word() {
        let mut sync = Sync::new(&hello(&["a"]), "c", set(&["a"]), true);
        assert!(!sync.wants_inventory());
        assert_eq!(sync.next(|| None), SYNCED);
        assert_eq!(sync.next(|| None), None);
    }

    #[test]
    fn orders_wait_for_the_difference_and_the_last_word_for_the_orders() {
        let mut sync = Sync::new(&hello(&["a", "b"]), "c", set(&["b", "c"]), true);
        let mut orders = vec![(key("d"), Order { was: None, now: Some(vec![0xa0]) })];
        assert_eq!(sync.next(|| orders.pop()), None);
        assert_eq!(
            sync.inventory(part(&["a", "b"])),
            Ok(Some(Plan { held: 2, puts: 1, drops: 1, left: vec![] }))
        );
        drops(&mut sync, "a");
        assert_eq!(sync.next(|| orders.pop()), Some(Next::Read(key("c"))));
        assert_eq!(sync.next(|| orders.pop()), None);
        assert!(matches!(sync.read(Some(&[0xa0])), Some(Body::Put(_))));
        assert!(matches!(sync.next(|| orders.pop()), Some(Next::Send(Body::Put(_)))));
        assert_eq!(sync.next(|| orders.pop()), SYNCED);
    }

    #[test]
    fn an_incomplete_cloud_drops_nothing_until_it_is_complete() {
        let mut sync = Sync::new(&hello(&["a", "b"]), "c", set(&["b"]), false);
        assert!(sync.inventory(part(&["a", "b"])).is_ok());
        assert_eq!(sync.next(|| None), None);
        sync.completed(&set(&["b"]));
        drops(&mut sync, "a");
        assert_eq!(sync.next(|| None), SYNCED);
        sync.completed(&set(&[]));
        assert_eq!(sync.next(|| None), None);
    }

    #[test]
    fn what_is_deleted_before_the_set_is_complete_is_dropped_by_the_name_the_edge_knows() {
        let mut sync = Sync::new(&hello(&["a", "b"]), "c", set(&["b"]), false);
        let old = Holding { uid: "old".into(), ..holding("a") };
        assert!(sync.inventory(Inventory { holdings: vec![old, holding("b")], last: true }).is_ok());
        sync.completed(&set(&["a", "b"]));
        let was = Was { uid: uid("a"), content: None };
        let mut order = Some((key("a"), Order { was: Some(was), now: None }));
        let dropped = Body::Drop(gone(&key("a"), &uid("old")));
        assert_eq!(sync.next(|| order.take()), Some(Next::Send(dropped)));
        assert_eq!(sync.next(|| None), SYNCED);
    }

    #[test]
    fn an_incomplete_cloud_that_agrees_is_not_taken_at_its_word() {
        let mut sync = Sync::new(&hello(&["a"]), "c", set(&["a"]), false);
        assert_eq!(sync.next(|| None), None);
        sync.completed(&set(&[]));
        drops(&mut sync, "a");
        assert_eq!(sync.next(|| None), SYNCED);
    }

    #[test]
    fn the_objects_of_another_cluster_are_left_alone() {
        let hello = Hello { cluster: "other".into(), ..hello(&["a"]) };
        for complete in [true, false] {
            let mut sync = Sync::new(&hello, "c", set(&["b"]), complete);
            assert!(sync.inventory(part(&["a"])).is_ok());
            sync.completed(&set(&["b"]));
            assert_eq!(sync.next(|| None), Some(Next::Read(key("b"))));
            assert_eq!(sync.read(None), None);
            assert_eq!(sync.next(|| None), None);
        }
    }

    #[test]
    fn an_inventory_is_bounded() {
        let long = Holding { uid: "u".repeat(65), ..holding("a") };
        for holdings in [vec![long], vec![holding("a"); INVENTORY_PART + 1]] {
            let mut sync = Sync::new(&hello(&[]), "c", set(&["a"]), true);
            assert!(sync.inventory(Inventory { holdings, last: false }).is_err());
        }
        let mut sync = Sync::new(&hello(&[]), "c", set(&["a"]), true);
        let part = Inventory { holdings: vec![holding("a"); INVENTORY_PART], last: false };
        let parts = std::iter::repeat_with(|| sync.inventory(part.clone())).take_while(Result::is_ok);
        assert_eq!(parts.count(), INVENTORY_MAX / INVENTORY_PART);
    }

    #[test]
    fn what_is_gone_when_it_is_read_is_dropped_by_the_name_the_edge_knows() {
        let mut sync = Sync::new(&hello(&[]), "c", set(&["a"]), true);
        let old = Holding { uid: "old".into(), ..holding("a") };
        assert!(sync.inventory(Inventory { holdings: vec![old], last: true }).is_ok());
        assert_eq!(sync.next(|| None), Some(Next::Read(key("a"))));
        assert_eq!(sync.read(None), Some(Body::Drop(gone(&key("a"), &uid("old")))));
    }

    #[test]
    fn only_what_was_sent_against_a_base_may_be_asked_for() {
        let mut sync = Sync::new(&hello(&["a"]), "c", set(&["a"]), true);
        let need = NeedFull { key: (&key("a")).into(), uid: "a".into() };
        assert!(sync.need_full(&need).is_err());
        let content: Vec<u8> = (0..2000u32).flat_map(|n| n.to_be_bytes()).collect();
        let was = Was { uid: uid("a"), content: Some(content.clone()) };
        let mut order = Some((key("a"), Order { was: Some(was), now: Some(content) }));
        let Some(Next::Send(body)) = sync.next(|| order.take()) else { panic!() };
        sync.sent(7, Sync::based_on(&body).unwrap());
        assert_eq!(sync.need_full(&need), Ok(()));
        assert!(sync.need_full(&need).is_err());
        assert_eq!(sync.next(|| None), Some(Next::Read(key("a"))));
        assert_eq!(sync.read(None), Some(Body::Drop(gone(&key("a"), &uid("a")))));
        sync.sent(8, key("a"));
        sync.acked(8);
        assert!(sync.need_full(&need).is_err());
    }

    #[test]
    fn an_edge_that_names_no_feature_gets_objects_as_they_are() {
        let old = Hello { features: vec![], ..hello(&["a"]) };
        let content: Vec<u8> = (0..2000u32).flat_map(|n| n.to_be_bytes()).collect();
        for (hello, reads_lz4) in [(old, false), (hello(&["a"]), true)] {
            let mut sync = Sync::new(&hello, "c", set(&["a"]), true);
            assert_eq!(sync.next(|| None), SYNCED);
            let was = Was { uid: uid("a"), content: Some(content.clone()) };
            let mut order = Some((key("a"), Order { was: Some(was), now: Some(content.clone()) }));
            let Some(Next::Send(Body::Put(put))) = sync.next(|| order.take()) else { panic!() };
            assert_eq!(put.base.is_some(), reads_lz4);
            assert_eq!(put.object == content, !reads_lz4);
        }
    }
}
