//! What goes up: the observed status of pods and node, pods that are gone, and
//! Events. The newest status per object counts; nothing here ever blocks the
//! task that reports.

use std::sync::{Arc, Mutex, MutexGuard};

use async_channel::Receiver;
use serde_json::{Value, json};

use super::pods::{PodEvent, Report};
use crate::link::frame::{Happening, Register, Status, gone};
use crate::link::outgoing::{LatestReceiver, Recent};
use crate::link::{Body, ItemId, Latest};
use crate::object::{Key, Object, Origin, Uid, codec, now_rfc3339};
use crate::store::{Action, Durability, Expect, Scope, Store, StoreError, Write, WriteError};
use crate::trust::names::NodeName;

/// Events that wait for the cloud at most; the oldest go first.
const EVENTS: usize = 256;
/// Characters of an Event's message at most (Kubernetes: events.k8s.io/v1
/// `note`).
const MESSAGE: usize = 1024;

/// What a report is about: one of each waits at most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The Node object.
    Registration,
    /// The status of an object.
    Status(Key),
    /// The end of a pod.
    Gone(Key, Uid),
    /// The Events, which keep their own order.
    Events,
}

/// The way up. Clones share it.
#[derive(Clone)]
pub struct Up {
    mailbox: Latest<About, ()>,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    node: Option<Value>,
    node_status: Option<(Key, Value)>,
    gone: Vec<(Key, Uid)>,
    events: Recent<(ItemId, Value)>,
    next_event: ItemId,
    /// Whether the cloud is there, since when, and what is said about it.
    cloud: Option<(bool, String, String)>,
}

impl Up {
    /// Makes the way up, and its end for the hub.
    pub fn new(generation: u64) -> (Up, LatestReceiver<About, ()>) {
        let (mailbox, receiver) = Latest::new();
        let shared = Shared {
            node: None,
            node_status: None,
            gone: Vec::new(),
            events: Recent::new(EVENTS),
            // Events wait in memory only, so each start has numbers of its own.
            next_event: ItemId { generation: generation ^ fastrand::u64(..), sequence: 1 },
            cloud: None,
        };
        (Up { mailbox, shared: Arc::new(Mutex::new(shared)) }, receiver)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Every change to it is a plain assignment.
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The node's object and status, as they are now.
    pub fn node(&self, key: &Key, node: Value, status: Value) {
        let mut shared = self.shared();
        let is_new = shared.node.as_ref() != Some(&node);
        shared.node = Some(node);
        shared.node_status = Some((key.clone(), status));
        if is_new {
            self.mailbox.push(About::Registration, ());
        }
        self.mailbox.push(About::Status(key.clone()), ());
    }

    /// Whether the cloud is there.
    pub fn cloud(&self, connected: bool, message: &str) {
        let mut shared = self.shared();
        let since = match &shared.cloud {
            Some((before, since, _)) if *before == connected => since.clone(),
            _ => now_rfc3339(),
        };
        shared.cloud = Some((connected, since, message.into()));
    }

    /// Shows the board's own Node in its store, in memory only: with the
    /// condition `CloudConnected`, which is the board's own business.
    pub async fn show_node(&self, store: &Store) -> Result<(), StoreError> {
        let (key, value) = {
            let shared = self.shared();
            let (Some(node), Some((key, status))) = (&shared.node, &shared.node_status) else {
                return Ok(());
            };
            let mut value = node.clone();
            let mut status = status.clone();
            if let (Some((connected, since, message)), Some(conditions)) =
                (&shared.cloud, status.get_mut("conditions").and_then(Value::as_array_mut))
            {
                conditions.push(json!({
                    "type": "CloudConnected", "status": if *connected { "True" } else { "False" },
                    "reason": if *connected { "Connected" } else { "Away" }, "message": message,
                    "lastTransitionTime": since,
                }));
            }
            if let Some(object) = value.as_object_mut() {
                object.insert("status".into(), status);
            }
            (key.clone(), value)
        };
        let action = Action::Put { value, origin: Origin::Local, durability: Durability::Volatile };
        match store.write(Write { key, expect: Expect::Anything, action }).await {
            Err(WriteError::Store(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Something to be seen with `kubectl get events`.
    pub fn event(&self, event: Value) {
        let mut shared = self.shared();
        let id = shared.next_event;
        shared.next_event.sequence = id.sequence.wrapping_add(1);
        shared.events.push((id, event));
        self.mailbox.push(About::Events, ());
    }

    /// Says everything again that the other end may not know: for a new
    /// connection.
    pub fn say_all(&self, store: &Store) -> Result<(), StoreError> {
        let gone = {
            let shared = self.shared();
            if shared.node.is_some() {
                self.mailbox.push(About::Registration, ());
            }
            if let Some((key, _)) = &shared.node_status {
                self.mailbox.push(About::Status(key.clone()), ());
            }
            shared.gone.clone()
        };
        for object in store.list(&Scope::all("", "pods"), None, None)?.objects {
            if object.origin == Origin::Cloud && object.value.get("status").is_some() {
                self.mailbox.push(About::Status(object.key.clone()), ());
            }
        }
        for (key, uid) in gone {
            self.mailbox.push(About::Gone(key, uid), ());
        }
        self.mailbox.push(About::Events, ());
        Ok(())
    }

    /// The bodies for one report as things are now; none if it has become
    /// pointless.
    pub fn bodies(&self, store: &Store, about: &About) -> Result<Vec<Body>, StoreError> {
        let mut shared = self.shared();
        Ok(match about {
            About::Registration => shared
                .node
                .iter()
                .map(|node| Body::Register(Register { node: codec::encode(node) }))
                .collect(),
            About::Status(key) => match &shared.node_status {
                Some((node, status)) if node == key => vec![status_body(key, &Uid::default(), status)],
                _ => match store.get(key)? {
                    Some(object) => {
                        let status = object.value.get("status");
                        status.map(|status| status_body(key, &object.uid, status)).into_iter().collect()
                    }
                    None => Vec::new(),
                },
            },
            About::Gone(key, uid) => match store.get(key)? {
                Some(object) if object.uid == *uid => vec![Body::Gone(gone(key, uid))],
                _ => {
                    shared.gone.retain(|gone| gone != &(key.clone(), uid.clone()));
                    Vec::new()
                }
            },
            // They go by themselves, in their order: Up::item_after.
            About::Events => Vec::new(),
        })
    }

    /// The next upward item after this one.
    pub fn item_after(&self, after: ItemId) -> Option<(ItemId, Body)> {
        let shared = self.shared();
        let (id, event) = shared.events.iter().find(|(id, _)| *id > after)?;
        Some((*id, Body::Event(Happening { id: *id, event: codec::encode(event) })))
    }

    /// The cloud has the items up to this one.
    pub fn delivered(&self, id: ItemId) {
        self.shared().events.drop_while(|(waiting, _)| *waiting <= id);
    }
}

fn status_body(key: &Key, uid: &Uid, status: &Value) -> Body {
    Body::Status(Status { key: key.into(), uid: uid.0.clone(), status: codec::encode(status) })
}

/// Takes what the pods report: statuses into the store's memory, all of it up.
pub async fn run(store: Store, up: Up, node: NodeName, reports: Receiver<Report>) -> Result<(), StoreError> {
    while let Ok(report) = reports.recv().await {
        match report {
            Report::Status { key, uid, status } => {
                if observe(&store, &key, &uid, status).await? {
                    up.mailbox.push(About::Status(key), ());
                }
            }
            Report::Removed { key, uid } => {
                // What the store no longer holds, the cloud has dropped itself.
                if store.get(&key)?.is_some_and(|object| object.uid == uid) {
                    let report = (key, uid);
                    let mut shared = up.shared();
                    if !shared.gone.contains(&report) {
                        shared.gone.push(report.clone());
                    }
                    up.mailbox.push(About::Gone(report.0, report.1), ());
                }
            }
            Report::Event(event) => up.event(to_event(&node, &event)),
        }
    }
    Ok(())
}

/// Puts a status over the stored pod, in memory only; false if the pod is not
/// there any more.
async fn observe(store: &Store, key: &Key, uid: &Uid, status: Value) -> Result<bool, StoreError> {
    loop {
        let Some(object) = store.get(key)?.filter(|object| object.uid == *uid) else { return Ok(false) };
        let Object { revision, origin, .. } = *object;
        let mut value = object.value.clone();
        if let Some(map) = value.as_object_mut() {
            map.insert("status".into(), status.clone());
        }
        let expect = Expect::Present { revision: Some(revision), uid: Some(uid.clone()) };
        let action = Action::Put { value, origin, durability: Durability::Volatile };
        match store.write(Write { key: key.clone(), expect, action }).await {
            Ok(_) => return Ok(true),
            Err(WriteError::Conflict { .. } | WriteError::Missing(_)) => {}
            Err(WriteError::Store(error)) => return Err(error),
            Err(error) => {
                log::error!("the status of {key} is not kept: {error}");
                return Ok(false);
            }
        }
    }
}

/// A core/v1 Event about the board itself, a warning.
pub fn about_node(node: &NodeName, reason: &str, message: &str) -> Value {
    let now = now_rfc3339();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"namespace": "default"},
        "type": "Warning", "reason": reason, "message": message,
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": node.as_str()},
        "source": {"component": "holm-edge", "host": node.as_str()},
        "reportingComponent": "holm-edge", "reportingInstance": node.as_str(),
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

/// A core/v1 Event as a kubelet would write it; its name is the cloud's to
/// give.
fn to_event(node: &NodeName, event: &PodEvent) -> Value {
    let now = now_rfc3339();
    // The cloud takes no long Events.
    let message: String = event.message.chars().take(MESSAGE).collect();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"namespace": event.pod.namespace},
        "type": event.kind.as_str(), "reason": event.reason, "message": message,
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": event.pod.namespace, "name": event.pod.name,
            "uid": event.uid.0,
        },
        "source": {"component": "holm-edge", "host": node.as_str()},
        "reportingComponent": "holm-edge", "reportingInstance": node.as_str(),
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}
