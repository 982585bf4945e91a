//! One node's connection, from its `Hello` to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::FutureExt;
use serde_json::Value;

use super::Context;
use super::refusals::Account;
use super::register::{self, Keeper};
use super::renew;
use crate::cloud::authorise::authorise;
use crate::cloud::cluster::{ClusterError, Weight};
use crate::cloud::nodes::{Attached, Order, encoded};
use crate::link::frame::{
    DIGEST_ALGORITHM, Happening, Hello, INVENTORY_MAX, Put, Refused, Renewed, Welcome, negotiate,
};
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::sync::{difference, set_digest};
use crate::link::{Body, Connection, Heard, Holding};
use crate::object::{Key, Object, Uid, codec};
use crate::trust::certificate::PeerIdentity;
use crate::trust::names::{Fingerprint, NodeName};

/// How long a connected node may take to say `Hello`.
const HELLO: Duration = Duration::from_secs(10);

/// Serves a node until the connection ends; gives the reason.
pub(super) async fn serve(context: Arc<Context>, mut connection: Connection, peer: PeerIdentity) -> String {
    let PeerIdentity { node, key_fingerprint: key, .. } = peer.clone();
    let hello = match connection.first(HELLO).await {
        Ok(Body::Hello(hello)) => hello,
        Ok(_) => return "it did not begin with Hello".into(),
        Err(reason) => return reason,
    };
    let Some(version) = negotiate(&hello) else {
        let reason = format!(
            "protocol versions {} to {} are not spoken here: update holm on the older side",
            hello.version_min, hello.version_max
        );
        connection.send_plain(Body::Refused(Refused { reason: reason.clone(), permanent: false }));
        connection.close().await;
        return reason;
    };
    if let Err(reason) = keeps_place(&context, &node, &key).await {
        connection.send_plain(Body::Refused(Refused { reason: reason.clone(), permanent: false }));
        connection.close().await;
        return reason;
    }
    let Some(attached) = context.nodes.attach(node.clone()).await else {
        return "the cloud is stopping".into();
    };
    log::info!("node {node} connected: holm {}, epoch {}", hello.software, hello.epoch);
    context.lifecycle.seen(&node);
    let in_sync = hello.digest_algorithm == DIGEST_ALGORITHM && set_digest(&attached.wanted) == hello.digest;
    connection.send_plain(Body::Welcome(Welcome {
        version,
        cluster: context.cluster_uid.to_string(),
        time_ms: u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default(),
        complete: attached.complete,
        inventory: !in_sync,
        window: WINDOW,
        keep_alive_secs: u32::try_from(KEEP_ALIVE.as_secs()).unwrap_or(15),
        endpoints: context.endpoints.iter().map(ToString::to_string).collect(),
        features: Vec::new(),
        software: env!("CARGO_PKG_VERSION").into(),
        pins: Vec::new(),
        renew_only: false,
    }));
    connection.agree(false, WINDOW, KEEP_ALIVE);
    // Only what is known to be all of it is said to be all of it.
    let is_whole = attached.complete;
    let belongs = hello.cluster.is_empty() || hello.cluster == context.cluster_uid.to_string();
    let account = context.refusals.open(&node);
    let mut session = Session {
        context,
        node,
        key,
        attached,
        first: VecDeque::new(),
        inventory: (!in_sync).then(Vec::new),
        belongs,
        account,
        registration: None,
        peer,
        renewals: 0,
    };
    if in_sync && is_whole && belongs {
        session.first.push_back(First::Synced);
    }
    let reason = session.run(connection, &hello).await;
    match session.account.summary() {
        Some(refused) => format!("{reason}; {refused}"),
        None => reason,
    }
}

/// The node must still be this key's, and Holm's.
async fn keeps_place(context: &Context, node: &NodeName, key: &Fingerprint) -> Result<(), String> {
    let name = Key::core("nodes", "", node.as_str()).map_err(|error| error.to_string())?;
    let known = context.cluster.get(&name).await.map_err(|error| error.to_string())?;
    match known.map(|known| register::keeper(&known.value, key)) {
        None | Some(Keeper::ThisKey) => Ok(()),
        Some(Keeper::NotOurs) => Err(format!("the cluster has a node {node} that is not Holm's")),
        Some(Keeper::AnotherKey) => Err(format!("another board has taken the place of node {node}")),
    }
}

/// What is to be sent before any order: the difference, then the word that it
/// was all.
enum First {
    Put(Key),
    Drop(crate::link::frame::Gone),
    Renewed(Renewed),
    Synced,
}

struct Session {
    context: Arc<Context>,
    node: NodeName,
    key: Fingerprint,
    attached: Attached,
    first: VecDeque<First>,
    /// The inventory as it arrives; `None` once it is whole, or not needed.
    inventory: Option<Vec<Holding>>,
    /// True unless the edge holds objects of another cluster: then nothing is
    /// dropped.
    belongs: bool,
    account: Account,
    /// How the node last registered: if its object is removed while it is
    /// connected, it is made again.
    registration: Option<Value>,
    peer: PeerIdentity,
    /// How often it has asked for its next certificate.
    renewals: usize,
}

enum Next {
    Heard(Vec<Heard>),
    Orders,
    Replaced,
}

impl Session {
    async fn run(&mut self, mut connection: Connection, hello: &Hello) -> String {
        loop {
            while connection.has_room() {
                match self.next_body().await {
                    Some(body) => {
                        connection.send(body);
                    }
                    None => break,
                }
            }
            let orders = self.attached.orders.clone();
            let more = async {
                match orders.ready().await {
                    true => Next::Orders,
                    false => Next::Replaced,
                }
            };
            let heard = async { Next::Heard(connection.next().await) };
            match heard.or(more).await {
                Next::Orders => {}
                Next::Replaced => {
                    connection.close().await;
                    return format!("a newer connection took over from epoch {}", hello.epoch);
                }
                Next::Heard(heard) => {
                    self.context.lifecycle.seen(&self.node);
                    for heard in heard {
                        match heard {
                            Heard::Acked(_) => {}
                            Heard::Closed(reason) => return reason,
                            Heard::Body(seq, body) => {
                                if let Err(reason) = self.take(body).await {
                                    return reason;
                                }
                                connection.done(seq);
                            }
                        }
                    }
                }
            }
        }
    }

    /// What is to be sent next, if anything is.
    async fn next_body(&mut self) -> Option<Body> {
        // Orders wait until the difference is known and sent: they may be
        // about what it has yet to put.
        if self.inventory.is_some() {
            return None;
        }
        while let Some(first) = self.first.pop_front() {
            match first {
                First::Synced => return Some(Body::Synced),
                First::Drop(gone) => return Some(Body::Drop(gone)),
                First::Renewed(renewed) => return Some(Body::Renewed(renewed)),
                First::Put(key) => match self.context.cluster.get(&key).await {
                    Ok(Some(object)) => return Some(put(&key, encoded(&object))),
                    // Removed since: an order to drop it is on its way.
                    Ok(None) => {}
                    Err(error) => log::warn!("node {} waits for {key}: {error}", self.node),
                },
            }
        }
        let (key, order) = self.attached.orders.try_pop()?;
        Some(match order {
            Order::Put(object) => put(&key, object),
            Order::Drop(uid) => Body::Drop(crate::link::frame::gone(&key, &uid)),
        })
    }

    /// Acts on what the node says. An error ends the connection.
    async fn take(&mut self, body: Body) -> Result<(), String> {
        match body {
            Body::Inventory(part) => {
                let Some(inventory) = &mut self.inventory else {
                    return Err("it sent an inventory that nobody asked for".into());
                };
                inventory.extend(part.holdings);
                if inventory.len() > INVENTORY_MAX {
                    return Err("its inventory is longer than any board's".into());
                }
                if part.last {
                    let held = self.inventory.take().unwrap_or_default();
                    self.plan_difference(&held);
                }
                Ok(())
            }
            Body::Renew(renew) => {
                let renewed = renew::answer(&self.context, &self.peer, &renew, self.renewals).await;
                self.renewals += 1;
                self.first.push_back(First::Renewed(renewed));
                Ok(())
            }
            body => match self.act(&body).await {
                Ok(()) => Ok(()),
                Err(Failure::Refused(reason)) => {
                    if self.account.refused(reason) {
                        log::warn!("node {} was refused: it sent {reason}", self.node);
                    }
                    Ok(())
                }
                // Not done, so not acknowledged: the node says it again on its
                // next connection.
                Err(Failure::Cluster(error)) => Err(error.to_string()),
            },
        }
    }

    fn plan_difference(&mut self, held: &[Holding]) {
        let complete = self.attached.complete && self.belongs;
        let mut difference = difference(held, &self.attached.wanted, complete);
        difference.puts.sort_by_key(|key| key.is("", "pods"));
        log::info!(
            "node {} holds {} objects: {} to put, {} to drop",
            self.node,
            held.len(),
            difference.puts.len(),
            difference.drops.len()
        );
        self.first.extend(difference.drops.into_iter().map(First::Drop));
        self.first.extend(difference.puts.into_iter().map(First::Put));
        if complete {
            self.first.push_back(First::Synced);
        }
    }

    async fn act(&mut self, body: &Body) -> Result<(), Failure> {
        let cluster = self.context.cluster.clone();
        let content = match body {
            Body::Status(status) => Some(&status.status),
            Body::Register(register) => Some(&register.node),
            Body::Event(happening) => Some(&happening.event),
            _ => None,
        };
        let content = match content {
            Some(bytes) => {
                Some(codec::decode(bytes).map_err(|_| Failure::Refused("an object that cannot be read"))?)
            }
            None => None,
        };
        let key = target(body, content.as_ref())?;
        let object = match &key {
            Some(key) => cluster.get(key).await?,
            None => None,
        };
        // The last words about a pod that was removed meanwhile.
        if matches!(body, Body::Event(_)) && key.is_some() && object.is_none() {
            return Ok(());
        }
        authorise(&self.node, body, object.as_deref(), content.as_ref()).map_err(Failure::Refused)?;
        match (body, key, content) {
            (Body::Status(status), Some(key), Some(content)) => {
                let uid = Uid(status.uid.clone());
                let is_node = key.is("", "nodes");
                if let (true, None, Some(node)) = (is_node, &object, &self.registration) {
                    register::register(&cluster, &self.node, &self.key, node.clone()).await?;
                }
                let weight = match object.as_deref() {
                    Some(known) if is_node && only_heartbeat(known, &content) => Weight::Heartbeat,
                    _ => Weight::Change,
                };
                ignore_missing(cluster.set_status(&key, (!is_node).then_some(&uid), content, weight).await)
            }
            (Body::Gone(gone), Some(key), _) => {
                ignore_missing(cluster.remove(&key, &Uid(gone.uid.clone())).await)
            }
            (Body::Register(_), _, Some(content)) => {
                self.registration = Some(content.clone());
                Ok(register::register(&cluster, &self.node, &self.key, content).await?)
            }
            (Body::Event(happening), _, Some(content)) => {
                self.account.tell().map_err(Failure::Refused)?;
                self.record(happening, content).await
            }
            _ => Err(Failure::Refused("something that nodes do not say")),
        }
    }

    /// Makes the Event under a name that comes from the item's identity, so
    /// that the same item never makes two.
    async fn record(&self, happening: &Happening, mut event: Value) -> Result<(), Failure> {
        let id = happening.id;
        let about = event.get("involvedObject").and_then(|object| object.get("name")).and_then(Value::as_str);
        let name: String = about.unwrap_or_default().chars().take(200).collect();
        let name = format!("{name}.{:016x}{:x}", id.generation, id.sequence);
        let namespace = crate::object::meta_str(&event, "namespace").unwrap_or("default").to_owned();
        let key = Key::core("events", &namespace, &name).map_err(ClusterError::from)?;
        if let Some(map) = event.as_object_mut() {
            map.insert("apiVersion".into(), "v1".into());
            map.insert("kind".into(), "Event".into());
            map.insert("metadata".into(), serde_json::json!({}));
        }
        match self.context.cluster.create(&key, event).await {
            Ok(_) | Err(ClusterError::Exists(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

enum Failure {
    Refused(&'static str),
    Cluster(ClusterError),
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Failure::Cluster(error)
    }
}

/// What is gone, or has been replaced, needs nothing from its former self.
fn ignore_missing(outcome: Result<(), ClusterError>) -> Result<(), Failure> {
    match outcome {
        Err(ClusterError::Missing(_) | ClusterError::Conflict(_)) => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn put(key: &Key, object: Vec<u8>) -> Body {
    Body::Put(Put { key: key.into(), object, ..Put::default() })
}

/// The object that a body is about.
fn target(body: &Body, content: Option<&Value>) -> Result<Option<Key>, Failure> {
    let odd = |_| Failure::Refused("a name that cannot be");
    match body {
        Body::Status(status) => Key::try_from(&status.key).map(Some).map_err(odd),
        Body::Gone(gone) => Key::try_from(&gone.key).map(Some).map_err(odd),
        Body::Event(_) => {
            let involved = |field| content?.get("involvedObject")?.get(field)?.as_str();
            match (involved("kind"), involved("namespace"), involved("name")) {
                (Some("Pod"), Some(namespace), Some(name)) => {
                    Key::core("pods", namespace, name).map(Some).map_err(odd)
                }
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

/// True if a node's new status differs from the known one in heartbeat times
/// only.
fn only_heartbeat(known: &Object, status: &Value) -> bool {
    let without = |status: &Value| {
        let mut status = status.clone();
        let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastHeartbeatTime");
            }
        }
        status
    };
    known.value.get("status").is_some_and(|known| without(known) == without(status))
}
