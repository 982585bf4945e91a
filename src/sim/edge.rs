//! A modelled board around the real exchange.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use super::cloud::data;
use super::wire::End;
use super::{Event, World};
use crate::edge::hub::exchange::{Deed, Exchange};
use crate::edge::meta::Order;
use crate::link::frame::{
    DIGEST_ALGORITHM, FEATURE_LZ4, Happening, Hello, Status, VERSION_MAX, VERSION_MIN, gone,
};
use crate::link::outgoing::Outgoing;
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::sync::{Set, set_digest};
use crate::link::{Body, Effect, Frame, Heard, ItemId, Session};
use crate::object::{Key, Uid, codec, content_hash, meta_str};

/// Things committed together at most.
const BATCH: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Status(Key),
    Gone(Key),
}

/// What is being done before anything is acknowledged.
struct Doing {
    deeds: VecDeque<Deed>,
    done: Vec<u64>,
    is_over: bool,
}

struct Connection {
    wire: usize,
    session: Session,
    /// After `Welcome`.
    exchange: Option<Exchange>,
    inbox: VecDeque<Heard>,
    mailbox: Outgoing<About, ()>,
}

pub struct Edge {
    pub number: usize,
    generation: u64,
    /// Which start of the agent this is.
    pub epoch: u64,
    connections: u64,
    pub connections_total: usize,
    pub need_full: usize,
    // What the flash keeps.
    pub holds: BTreeMap<Key, (Uid, Value)>,
    synced: bool,
    outbox: VecDeque<(ItemId, u64)>,
    next_item: u64,
    // What the memory keeps.
    /// Items acknowledged and not yet removed from the flash.
    delivered: u64,
    pub statuses: BTreeMap<Key, (Uid, u64)>,
    connection: Option<Connection>,
    doing: Option<Doing>,
    // What the checker keeps.
    pub produced: Vec<u64>,
    pub let_go: BTreeSet<Uid>,
    counter: u64,
}

impl Edge {
    pub fn new(number: usize, generation: u64) -> Edge {
        Edge {
            number,
            generation,
            epoch: 1,
            connections: 0,
            connections_total: 0,
            need_full: 0,
            holds: BTreeMap::new(),
            synced: false,
            outbox: VecDeque::new(),
            next_item: 1,
            delivered: 0,
            statuses: BTreeMap::new(),
            connection: None,
            doing: None,
            produced: Vec::new(),
            let_go: BTreeSet::new(),
            counter: 0,
        }
    }

    /// What it holds, as the checker compares it.
    pub fn contents(&self) -> BTreeMap<Key, (Uid, u64)> {
        self.holds.iter().map(|(key, (uid, value))| (key.clone(), (uid.clone(), data(value)))).collect()
    }

    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// True if nothing is to be said or done.
    pub fn is_idle(&self) -> bool {
        let waits = self.outbox.iter().any(|(id, _)| id.sequence > self.delivered);
        let said = self.connection.as_ref().is_some_and(|connection| {
            connection.exchange.is_some() && connection.inbox.is_empty() && connection.mailbox.is_empty()
        });
        self.doing.is_none() && said && !waits
    }

    /// What it is connected by.
    pub fn wire(&self) -> Option<usize> {
        self.connection.as_ref().map(|open| open.wire)
    }

    /// The session at this end of a wire.
    pub fn session(&self, wire: usize) -> Option<&Session> {
        self.connection.as_ref().filter(|open| open.wire == wire).map(|open| &open.session)
    }

    pub fn check(&self) -> Result<(), String> {
        match &self.connection {
            Some(connection) if connection.inbox.len() > 2 * WINDOW as usize => {
                Err(format!("edge {}: {} frames wait to be acted on", self.number, connection.inbox.len()))
            }
            _ => Ok(()),
        }
    }

    fn set(&self) -> Set {
        self.holds
            .iter()
            .map(|(key, (uid, value))| (key.clone(), (uid.clone(), content_hash(value))))
            .collect()
    }

    /// Something happens on the board.
    pub fn observe(&mut self, rng: &mut fastrand::Rng) {
        self.counter += 1;
        let mailbox = self.connection.as_mut().map(|connection| &mut connection.mailbox);
        match rng.choice(self.holds.iter()) {
            Some((key, (uid, value))) if rng.bool() => {
                let is_deleting = value.get("deleting").is_some();
                let about = match is_deleting {
                    true => About::Gone(key.clone()),
                    false => {
                        self.statuses.insert(key.clone(), (uid.clone(), self.counter));
                        About::Status(key.clone())
                    }
                };
                if let Some(mailbox) = mailbox {
                    mailbox.push(about, ());
                }
            }
            _ => {
                let id = ItemId { generation: self.generation, sequence: self.next_item };
                self.next_item += 1;
                self.outbox.push_back((id, self.counter));
                self.produced.push(self.counter);
            }
        }
        // What was delivered leaves the flash when it is convenient.
        if rng.u8(..4) == 0 {
            let delivered = self.delivered;
            self.outbox.retain(|(id, _)| id.sequence > delivered);
        }
    }

    fn apply(&mut self, orders: &[Order]) -> Vec<Uid> {
        let mut let_go = Vec::new();
        for order in orders {
            match order {
                Order::Put(key, value) => {
                    let uid = Uid(meta_str(value, "uid").unwrap_or_default().into());
                    if let Some((before, _)) = self.holds.insert(key.clone(), (uid.clone(), value.clone()))
                        && before != uid
                    {
                        let_go.push(before);
                    }
                }
                Order::Drop(key, uid) => {
                    if self.holds.get(key).is_some_and(|(held, _)| held == uid) {
                        self.holds.remove(key);
                        let_go.push(uid.clone());
                    }
                }
            }
        }
        let holds = &self.holds;
        self.statuses.retain(|key, (uid, _)| holds.get(key).is_some_and(|(held, _)| held == uid));
        let_go
    }
}

impl World {
    /// An edge tries to connect, unless it is connected or busy.
    pub fn connect(&mut self, number: usize) -> Result<(), String> {
        self.after(3.0, Event::Connect(number));
        let edge = &self.edges[number];
        if edge.connection.is_some() || edge.doing.is_some() {
            return Ok(());
        }
        let wire = self.new_wire(number);
        let edge = &mut self.edges[number];
        edge.connections += 1;
        edge.connections_total += 1;
        let hello = Frame::plain(Body::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch: edge.epoch,
            generation: edge.generation,
            cluster: if edge.synced { "c".into() } else { String::new() },
            digest_algorithm: DIGEST_ALGORITHM,
            digest: set_digest(&edge.set()),
            features: vec![FEATURE_LZ4.into()],
            connection: edge.connections,
            ..Hello::default()
        }));
        let session = Session::new(self.now, true, WINDOW, KEEP_ALIVE);
        let tick = session.next_tick();
        edge.connection = Some(Connection {
            wire,
            session,
            exchange: None,
            inbox: VecDeque::new(),
            mailbox: Outgoing::default(),
        });
        self.at(tick, Event::Tick(wire, End::Edge));
        self.at(self.now + Duration::from_secs(20), Event::Impatient(wire));
        self.send(wire, End::Edge, &hello);
        Ok(())
    }

    /// The connection on this wire, if it is the edge's still.
    fn edge_connection(&mut self, wire: usize) -> Option<&mut Connection> {
        let edge = &mut self.edges[self.wires[wire].edge];
        edge.connection.as_mut().filter(|connection| connection.wire == wire)
    }

    pub fn impatient(&mut self, wire: usize) -> Result<(), String> {
        match self.edge_connection(wire) {
            Some(connection) if connection.exchange.is_none() => self.close(wire, End::Edge),
            _ => Ok(()),
        }
    }

    pub fn close_edge(&mut self, wire: usize) -> Result<(), String> {
        if self.edge_connection(wire).is_none() {
            return Ok(());
        }
        let number = self.wires[wire].edge;
        self.edges[number].connection = None;
        self.hang_up(wire, End::Edge);
        Ok(())
    }

    pub fn edge_session(&mut self, wire: usize, event: crate::link::Event) -> Result<(), String> {
        let now = self.now;
        let number = self.wires[wire].edge;
        let Some(connection) = self.edge_connection(wire) else { return Ok(()) };
        let effects = connection.session.step(now, event);
        let mut frames = Vec::new();
        let mut is_over = false;
        for effect in effects {
            match effect {
                Effect::Send(frame) => frames.push(frame),
                Effect::Acked(seq) => connection.inbox.push_back(Heard::Acked(seq)),
                Effect::Deliver(seq, body) => match (&connection.exchange, body) {
                    (Some(_), body) => connection.inbox.push_back(Heard::Body(seq, body)),
                    (None, Body::Welcome(welcome)) => {
                        connection.session = Session::new(now, true, welcome.window, KEEP_ALIVE);
                        let held = welcome.inventory.then(|| self.edges[number].set());
                        self.welcomed(number, held.as_ref());
                        return self.work(number);
                    }
                    (None, Body::Refused(_)) => is_over = true,
                    (None, other) => return Err(format!("edge {number} was welcomed with {other:?}")),
                },
                Effect::Close(_) => is_over = true,
            }
        }
        for frame in frames {
            self.send(wire, End::Edge, &frame);
        }
        match is_over {
            true => self.close(wire, End::Edge),
            false => self.work(number),
        }
    }

    fn welcomed(&mut self, number: usize, held: Option<&Set>) {
        let edge = &mut self.edges[number];
        let Some(connection) = edge.connection.as_mut() else { return };
        let mut exchange = Exchange::new(held);
        let mut parts = Vec::new();
        while let Some(part) = exchange.inventory() {
            parts.push(Frame::plain(part));
        }
        connection.exchange = Some(exchange);
        for key in edge.statuses.keys() {
            connection.mailbox.push(About::Status(key.clone()), ());
        }
        for (key, (_, value)) in &edge.holds {
            if value.get("deleting").is_some() {
                connection.mailbox.push(About::Gone(key.clone()), ());
            }
        }
        let wire = connection.wire;
        for part in parts {
            self.send(wire, End::Edge, &part);
        }
    }

    /// Acts on what was heard, unless it is still at the last.
    fn work(&mut self, number: usize) -> Result<(), String> {
        // Now and then its store cannot be read, and no base is there.
        let is_blind = self.rng.u8(..30) == 0;
        let edge = &mut self.edges[number];
        if edge.doing.is_none()
            && let Some(connection) = edge.connection.as_mut()
            && let Some(exchange) = connection.exchange.as_mut()
            && !connection.inbox.is_empty()
        {
            let batch = connection.inbox.len().min(BATCH);
            let heard: Vec<Heard> = connection.inbox.drain(..batch).collect();
            let holds = &edge.holds;
            let outcome = exchange.hear(heard, |key| {
                holds
                    .get(key)
                    .filter(|_| !is_blind)
                    .map(|(uid, value)| (uid.clone(), codec::encode_content(value)))
            });
            edge.doing = Some(Doing {
                deeds: outcome.deeds.into(),
                done: outcome.done,
                is_over: outcome.closed.is_some(),
            });
            return self.perform(number);
        }
        self.pump_edge(number)
    }

    /// Performs deeds up to the next that takes time.
    fn perform(&mut self, number: usize) -> Result<(), String> {
        loop {
            let edge = &mut self.edges[number];
            let wire = edge.connection.as_ref().map(|connection| connection.wire);
            let Some(doing) = edge.doing.as_mut() else { return Ok(()) };
            match doing.deeds.front() {
                Some(Deed::Apply(_)) => {
                    let life = edge.epoch;
                    self.after(0.3, Event::Committed(number, life));
                    return Ok(());
                }
                Some(Deed::Synced) => edge.synced = true,
                Some(Deed::Delivered(id)) => edge.delivered = edge.delivered.max(id.sequence),
                Some(Deed::Say(body)) => {
                    let frame = Frame::plain(body.clone());
                    edge.need_full += usize::from(matches!(body, Body::NeedFull(_)));
                    if let Some(wire) = wire {
                        self.send(wire, End::Edge, &frame);
                    }
                }
                Some(other) => return Err(format!("edge {number} is to do {other:?}")),
                None => {
                    let Some(doing) = edge.doing.take() else { return Ok(()) };
                    let Some(wire) = wire else { return Ok(()) };
                    for seq in doing.done.into_iter().filter(|seq| *seq != 0) {
                        self.edge_done(wire, seq);
                    }
                    if doing.is_over {
                        return self.close(wire, End::Edge);
                    }
                    return self.work(number);
                }
            }
            if let Some(doing) = self.edges[number].doing.as_mut() {
                doing.deeds.pop_front();
            }
        }
    }

    fn edge_done(&mut self, wire: usize, seq: u64) {
        let now = self.now;
        let Some(connection) = self.edge_connection(wire) else { return };
        let effects = connection.session.step(now, crate::link::Event::Done(seq));
        for effect in effects {
            if let Effect::Send(frame) = effect {
                self.send(wire, End::Edge, &frame);
            }
        }
    }

    /// A commit is durable.
    pub fn committed(&mut self, number: usize, life: u64) -> Result<(), String> {
        let edge = &mut self.edges[number];
        if edge.epoch != life {
            return Ok(());
        }
        if let Some(doing) = edge.doing.as_mut()
            && let Some(Deed::Apply(orders)) = doing.deeds.pop_front()
        {
            let let_go = edge.apply(&orders);
            self.let_go(number, let_go)?;
        }
        self.perform(number)
    }

    /// Absence is not an order: what the API still has is not taken away.
    fn let_go(&mut self, number: usize, uids: Vec<Uid>) -> Result<(), String> {
        for uid in uids {
            if self.cloud.exists(&uid) {
                return Err(format!("edge {number} let go of {uid}, which nobody deleted"));
            }
            self.edges[number].let_go.insert(uid);
        }
        Ok(())
    }

    /// Power fails, and comes back. A commit under way may have been made.
    pub fn restart_edge(&mut self, number: usize) -> Result<(), String> {
        let was_made = self.rng.bool();
        let edge = &mut self.edges[number];
        let doing = edge.doing.take();
        edge.epoch += 1;
        edge.connections = 0;
        edge.delivered = 0;
        let wire = edge.connection.take().map(|connection| connection.wire);
        if was_made
            && let Some(Doing { deeds, .. }) = doing
            && let Some(Deed::Apply(orders)) = deeds.front()
        {
            let let_go = edge.apply(orders);
            self.let_go(number, let_go)?;
        }
        if let Some(wire) = wire {
            self.hang_up(wire, End::Edge);
        }
        Ok(())
    }

    /// Says what there is to say.
    pub fn pump_edge(&mut self, number: usize) -> Result<(), String> {
        loop {
            let edge = &mut self.edges[number];
            let Some(connection) = edge.connection.as_mut() else { return Ok(()) };
            let Some(exchange) = connection.exchange.as_mut() else { return Ok(()) };
            if !connection.session.has_room() {
                return Ok(());
            }
            let wire = connection.wire;
            let frame = if let Some((about, ())) = connection.mailbox.pop() {
                let body = match about {
                    About::Status(key) => edge.statuses.get(&key).map(|(uid, status)| {
                        let status = codec::encode(&Value::from(*status));
                        Body::Status(Status { key: (&key).into(), uid: uid.0.clone(), status })
                    }),
                    About::Gone(key) => {
                        let held = edge.holds.get(&key);
                        let deleting = held.filter(|(_, value)| value.get("deleting").is_some());
                        deleting.map(|(uid, _)| Body::Gone(gone(&key, uid)))
                    }
                };
                match body {
                    Some(body) => connection.session.send(self.now, body).1,
                    None => continue,
                }
            } else if let Some((id, payload)) = edge
                .outbox
                .iter()
                .find(|(id, _)| *id > exchange.items_after() && id.sequence > edge.delivered)
            {
                let event = codec::encode(&Value::from(*payload));
                let (seq, frame) =
                    connection.session.send(self.now, Body::Event(Happening { id: *id, event }));
                exchange.item_sent(seq, *id);
                frame
            } else {
                return Ok(());
            };
            self.send(wire, End::Edge, &frame);
        }
    }
}
