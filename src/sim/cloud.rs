//! A modelled API with its watch, around the real orders and the real sync.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::wire::End;
use super::{Event, Tally, World};
use crate::cloud::hub::sync::{Next, Sync};
use crate::cloud::nodes::{Claim, Order, Told};
use crate::link::frame::{Hello, Put, Refused, Welcome, negotiate};
use crate::link::outgoing::LatestReceiver;
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::{Body, Effect, Frame, ItemId, Session};
use crate::object::{Key, Object, Origin, Revision, Uid, codec};

/// Names that the objects of one node can have.
const NAMES: u8 = 8;

/// What tells two versions of an object apart, for the checker.
pub fn data(value: &Value) -> u64 {
    value.get("data").and_then(Value::as_u64).unwrap_or_default()
}

/// One change of the API that the watch has yet to see.
struct Change {
    node: usize,
    key: Key,
    revision: Revision,
    now: Option<Object>,
    before: Option<Object>,
}

/// A node with a session.
struct Node {
    claim: Claim,
    told: Told,
    /// True while something could not be read.
    is_incomplete: bool,
    wire: usize,
}

struct Connection {
    edge: usize,
    session: Session,
    hello: Option<Hello>,
    sync: Option<(Sync, LatestReceiver<Key, Order>)>,
}

pub struct Cloud {
    // The API: what is true.
    objects: Vec<BTreeMap<Key, Object>>,
    revision: u64,
    statuses: BTreeMap<Uid, u64>,
    changes: VecDeque<Change>,
    /// What the target of the upward items has, by edge.
    items: Vec<(ItemId, Vec<u64>)>,
    // The process: what it believes.
    view: Vec<BTreeSet<Key>>,
    is_listed: bool,
    /// Keys that cannot be read just now.
    unreadable: BTreeSet<Key>,
    nodes: BTreeMap<usize, Node>,
    connections: BTreeMap<usize, Connection>,
    // The checker's.
    sum: Tally,
    uids: u64,
}

impl Cloud {
    pub fn new(edges: usize) -> Cloud {
        Cloud {
            objects: vec![BTreeMap::new(); edges],
            revision: 0,
            statuses: BTreeMap::new(),
            changes: VecDeque::new(),
            items: vec![(ItemId::default(), Vec::new()); edges],
            view: vec![BTreeSet::new(); edges],
            is_listed: false,
            unreadable: BTreeSet::new(),
            nodes: BTreeMap::new(),
            connections: BTreeMap::new(),
            sum: Tally::default(),
            uids: 0,
        }
    }

    pub fn contents(&self, edge: usize) -> BTreeMap<Key, (Uid, u64)> {
        let objects = self.objects[edge].iter();
        objects.map(|(key, object)| (key.clone(), (object.uid.clone(), data(&object.value)))).collect()
    }

    pub fn exists(&self, uid: &Uid) -> bool {
        self.objects.iter().flat_map(BTreeMap::values).any(|object| object.uid == *uid)
    }

    pub fn status(&self, _: &Key, uid: &Uid) -> Option<u64> {
        self.statuses.get(uid).copied()
    }

    pub fn received(&self, edge: usize) -> Vec<u64> {
        self.items[edge].1.clone()
    }

    pub fn is_caught_up(&self) -> bool {
        self.changes.is_empty() && self.is_listed
    }

    pub fn tally(&self) -> Tally {
        Tally { changes: self.revision as usize, ..self.sum.clone() }
    }

    /// Someone changes the API.
    pub fn change(&mut self, rng: &mut fastrand::Rng) {
        let node = rng.usize(..self.objects.len());
        let resource = if rng.bool() { "pods" } else { "configmaps" };
        let key = Key::core(resource, "default", &format!("o{}", rng.u8(..NAMES))).expect("a key");
        let known = self.objects[node].get(&key).cloned();
        let now = match known {
            None => {
                self.uids += 1;
                let value = json!({
                    "metadata": {"name": key.name, "namespace": "default", "uid": format!("u{}", self.uids)},
                    "data": 0, "filler": (0..rng.usize(..200)).collect::<Vec<_>>(),
                });
                Some(value)
            }
            Some(known) => match rng.u8(..6) {
                0 => None,
                1 => {
                    let mut value = known.value;
                    value["deleting"] = true.into();
                    value["data"] = (data(&value) + 1).into();
                    Some(value)
                }
                _ => {
                    let mut value = known.value;
                    value["data"] = (data(&value) + 1).into();
                    Some(value)
                }
            },
        };
        self.write(node, key, now);
    }

    fn write(&mut self, node: usize, key: Key, now: Option<Value>) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let before = self.objects[node].remove(&key);
        let now = now.map(|value| Object {
            key: key.clone(),
            uid: Uid(crate::object::meta_str(&value, "uid").unwrap_or_default().into()),
            revision,
            origin: Origin::Local,
            value,
        });
        if let Some(object) = &now {
            self.objects[node].insert(key.clone(), object.clone());
        }
        self.changes.push_back(Change { node, key, revision, now, before });
    }

    /// The watch sees some of what has changed; or it has lost its place and
    /// lists everything.
    pub fn watch(&mut self, rng: &mut fastrand::Rng) {
        if !self.is_listed || rng.u8(..10) == 0 {
            return self.list();
        }
        for _ in 0..rng.usize(..=self.changes.len()) {
            let Some(change) = self.changes.pop_front() else { break };
            match &change.now {
                Some(object) => {
                    self.view[change.node].insert(change.key.clone());
                    self.refresh(change.node, Some((object, change.before.as_ref())), change.revision);
                }
                None => {
                    self.view[change.node].remove(&change.key);
                    if let Some(node) = self.nodes.get_mut(&change.node) {
                        node.told.removed(&change.key, change.revision);
                    }
                    self.refresh(change.node, None, change.revision);
                }
            }
        }
    }

    fn list(&mut self) {
        self.is_listed = true;
        self.changes.clear();
        let revision = Revision(self.revision);
        for number in 0..self.objects.len() {
            let objects: Vec<Object> = self.objects[number].values().cloned().collect();
            let listed: BTreeSet<Key> = objects.iter().map(|object| object.key.clone()).collect();
            let vanished: Vec<Key> = self.view[number].difference(&listed).cloned().collect();
            self.view[number] = listed;
            for key in vanished {
                if let Some(node) = self.nodes.get_mut(&number) {
                    node.told.removed(&key, revision);
                }
            }
            for object in &objects {
                self.refresh(number, Some((object, None)), revision);
            }
            self.refresh(number, None, revision);
        }
    }

    /// As `nodes` does it.
    fn refresh(&mut self, number: usize, changed: Option<(&Object, Option<&Object>)>, as_of: Revision) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let unwanted: Vec<Key> =
            node.told.holds().keys().filter(|key| !self.view[number].contains(key)).cloned().collect();
        for key in unwanted {
            node.told.removed(&key, as_of);
        }
        let mut unread = false;
        for key in &self.view[number] {
            match changed {
                Some((object, before)) if object.key == *key => node.told.changed(object, before),
                _ if node.told.holds().contains_key(key) => {}
                _ if self.unreadable.contains(key) => unread = true,
                _ => node.told.found(key, Revision(self.revision), self.objects[number].get(key)),
            }
        }
        if node.is_incomplete && !unread {
            node.is_incomplete = false;
            let wire = node.wire;
            let holds = node.told.holds().clone();
            if let Some((sync, _)) = self.connections.get_mut(&wire).and_then(|open| open.sync.as_mut()) {
                sync.completed(&holds);
            }
        }
    }

    /// What could not be read can be read.
    pub fn readable(&mut self) {
        self.unreadable.clear();
        for number in 0..self.objects.len() {
            self.refresh(number, None, Revision(0));
        }
    }

    /// True if what this wire carries is acted on.
    pub fn serves(&self, wire: usize) -> bool {
        let sync = self.connections.get(&wire).and_then(|open| open.sync.as_ref());
        sync.is_some_and(|(_, orders)| !orders.is_over())
    }

    /// The session at this end of a wire.
    pub fn session(&self, wire: usize) -> Option<&Session> {
        self.connections.get(&wire).map(|open| &open.session)
    }
}

impl World {
    pub fn restart_cloud(&mut self) -> Result<(), String> {
        let wires: Vec<usize> = self.cloud.connections.keys().copied().collect();
        self.cloud.connections.clear();
        self.cloud.nodes.clear();
        self.cloud.is_listed = false;
        self.cloud.view.iter_mut().for_each(BTreeSet::clear);
        for wire in wires {
            self.hang_up(wire, End::Cloud);
        }
        // Some of what it needs cannot be read for a while.
        if self.rng.bool() {
            let keys: Vec<Key> = self.cloud.objects.iter().flat_map(BTreeMap::keys).cloned().collect();
            self.cloud.unreadable = keys.into_iter().filter(|_| self.rng.u8(..3) == 0).collect();
            self.after(30.0, Event::Readable);
        }
        Ok(())
    }

    pub fn close_cloud(&mut self, wire: usize) {
        if self.cloud.connections.remove(&wire).is_some() {
            self.hang_up(wire, End::Cloud);
        }
    }

    pub fn cloud_session(&mut self, wire: usize, event: crate::link::Event) -> Result<(), String> {
        let now = self.now;
        let is_frame = matches!(event, crate::link::Event::Frame(_));
        let edge = self.wires[wire].edge;
        if is_frame && !self.cloud.connections.contains_key(&wire) {
            // Its first frame, unless the process that accepted it is gone.
            if self.wires[wire].accepted {
                return Ok(());
            }
            self.wires[wire].accepted = true;
            let session = Session::new(now, false, WINDOW, KEEP_ALIVE);
            let tick = session.next_tick();
            let open = Connection { edge, session, hello: None, sync: None };
            self.cloud.connections.insert(wire, open);
            self.at(tick, Event::Tick(wire, End::Cloud));
        }
        let Some(open) = self.cloud.connections.get_mut(&wire) else { return Ok(()) };
        // Another session of the node has taken over: its word counts.
        if open.sync.as_ref().is_some_and(|(_, orders)| orders.is_over()) {
            self.close_cloud(wire);
            return Ok(());
        }
        let effects = open.session.step(now, event);
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.send(wire, End::Cloud, &frame),
                Effect::Close(_) => self.close_cloud(wire),
                Effect::Acked(seq) => {
                    if let Some((sync, _)) =
                        self.cloud.connections.get_mut(&wire).and_then(|open| open.sync.as_mut())
                    {
                        sync.acked(seq);
                    }
                }
                Effect::Deliver(seq, body) => {
                    self.cloud_take(wire, body)?;
                    let Some(open) = self.cloud.connections.get_mut(&wire) else { return Ok(()) };
                    if seq != 0 {
                        for effect in open.session.step(now, crate::link::Event::Done(seq)) {
                            if let Effect::Send(frame) = effect {
                                self.send(wire, End::Cloud, &frame);
                            }
                        }
                    }
                }
            }
        }
        self.pump_cloud()
    }

    fn cloud_take(&mut self, wire: usize, body: Body) -> Result<(), String> {
        let edge = self.wires[wire].edge;
        let cloud = &mut self.cloud;
        let Some(open) = cloud.connections.get_mut(&wire) else { return Ok(()) };
        match (open.sync.as_mut(), body) {
            (None, Body::Hello(hello)) => open.hello = Some(hello),
            (Some((sync, _)), Body::Inventory(part)) => {
                sync.inventory(part)?;
            }
            (Some((sync, _)), Body::NeedFull(need)) => sync.need_full(&need)?,
            (Some(_), Body::Status(status)) => {
                let value = codec::decode(&status.status).map_err(|error| error.to_string())?;
                if self.cloud.exists(&Uid(status.uid.clone())) {
                    self.cloud.statuses.insert(Uid(status.uid), value.as_u64().unwrap_or_default());
                }
            }
            (Some(_), Body::Gone(gone)) => {
                let key = Key::try_from(&gone.key).map_err(|error| error.to_string())?;
                if cloud.objects[edge].get(&key).is_some_and(|object| object.uid.0 == gone.uid) {
                    cloud.write(edge, key, None);
                }
            }
            (Some(_), Body::Event(item)) => {
                let payload = codec::decode(&item.event).map_err(|error| error.to_string())?;
                let (last, received) = &mut cloud.items[edge];
                if item.id.sequence > last.sequence + 1 {
                    return Err(format!("edge {edge}: item {:?} came after {last:?}", item.id));
                }
                // Come again: the target knows it by its id.
                if item.id > *last {
                    *last = item.id;
                    received.push(payload.as_u64().unwrap_or_default());
                }
            }
            (_, other) => return Err(format!("the cloud heard {other:?}")),
        }
        Ok(())
    }

    /// Welcomes those who wait, and sends what is to be sent.
    pub fn pump_cloud(&mut self) -> Result<(), String> {
        let wires: Vec<usize> = self.cloud.connections.keys().copied().collect();
        for wire in wires {
            self.welcome(wire);
            self.pump_wire(wire);
        }
        Ok(())
    }

    fn welcome(&mut self, wire: usize) {
        if !self.cloud.is_listed {
            return;
        }
        let Some(hello) = self.cloud.connections.get_mut(&wire).and_then(|open| open.hello.take()) else {
            return;
        };
        let edge = self.wires[wire].edge;
        let claim = Claim { generation: hello.generation, epoch: hello.epoch, connection: hello.connection };
        let live = self.cloud.nodes.get(&edge).filter(|node| !node.told.is_over());
        if live.is_some_and(|live| !claim.takes_over(&live.claim)) {
            self.send(wire, End::Cloud, &Frame::plain(Body::Refused(Refused::default())));
            return self.close_cloud(wire);
        }
        let (told, orders) = Told::new();
        self.cloud.nodes.insert(edge, Node { claim, told, is_incomplete: true, wire });
        self.cloud.refresh(edge, None, Revision(0));
        orders.clear();
        let Some(node) = self.cloud.nodes.get(&edge) else { return };
        let sync = Sync::new(&hello, "c", node.told.holds().clone(), !node.is_incomplete);
        let welcome = Frame::plain(Body::Welcome(Welcome {
            version: negotiate(&hello).unwrap_or_default(),
            cluster: "c".into(),
            complete: !node.is_incomplete,
            inventory: sync.wants_inventory(),
            window: WINDOW,
            ..Welcome::default()
        }));
        let now = self.now;
        if let Some(open) = self.cloud.connections.get_mut(&wire) {
            open.session = Session::new(now, false, WINDOW, KEEP_ALIVE);
            open.sync = Some((sync, orders));
        }
        self.send(wire, End::Cloud, &welcome);
    }

    fn pump_wire(&mut self, wire: usize) {
        loop {
            let cloud = &mut self.cloud;
            let Some(open) = cloud.connections.get_mut(&wire) else { return };
            let Some((sync, orders)) = open.sync.as_mut() else { return };
            if orders.is_over() || !open.session.has_room() {
                return;
            }
            let body = match sync.next(|| orders.try_pop()) {
                None => return,
                Some(Next::Send(body)) => body,
                Some(Next::Read(key)) => {
                    let Some(node) = cloud.nodes.get_mut(&open.edge) else { return };
                    let object = cloud.objects[open.edge].get(&key);
                    node.told.sent(&key, Revision(cloud.revision), object);
                    let content = object.map(|object| codec::encode_content(&object.value));
                    match sync.read(content.as_deref()) {
                        Some(body) => body,
                        None => continue,
                    }
                }
            };
            cloud.sum.based += usize::from(matches!(&body, Body::Put(Put { base: Some(_), .. })));
            let based = Sync::based_on(&body);
            let (seq, frame) = open.session.send(self.now, body);
            if let Some(key) = based {
                sync.sent(seq, key);
            }
            self.send(wire, End::Cloud, &frame);
        }
    }
}
