//! What goes up: the observed status of pods and node, pods that are gone, and
//! Events. The newest status per object counts; nothing here ever blocks the
//! task that reports.

use std::sync::{Arc, Mutex, MutexGuard};

use async_channel::Receiver;
use serde_json::{Value, json};

use super::pods::{PodEvent, Report};
use crate::link::frame::{Happening, Register, Status, gone};
use crate::link::outgoing::LatestReceiver;
use crate::link::{Body, ItemId, Latest};
use crate::object::{Key, Object, Origin, Uid, codec, now_rfc3339};
use crate::store::{
    self, Action, Durability, Expect, Outbox, OutboxOptions, Scope, Store, StoreError, WhenFull, Write,
    WriteError,
};
use crate::trust::names::NodeName;

/// Events that wait for the cloud, in memory only; the oldest go first.
const EVENTS: OutboxOptions = OutboxOptions {
    name: "events",
    durability: Durability::Volatile,
    items: 256,
    bytes: 512 << 10,
    when_full: WhenFull::DropOldest,
};
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
    events: Outbox,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    node: Option<Value>,
    node_status: Option<(Key, Value)>,
    gone: Vec<(Key, Uid)>,
    /// Whether the cloud is there, since when, and what is said about it.
    cloud: Option<(bool, String, String)>,
}

impl Up {
    /// Makes the way up, and its end for the hub.
    pub fn new(store: &Store) -> Result<(Up, LatestReceiver<About, ()>), StoreError> {
        let (mailbox, receiver) = Latest::new();
        let shared = Shared { node: None, node_status: None, gone: Vec::new(), cloud: None };
        let events = store.outbox(EVENTS)?;
        Ok((Up { mailbox, events, shared: Arc::new(Mutex::new(shared)) }, receiver))
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
        match self.events.append_now(codec::encode(&event)) {
            Ok(_) => self.mailbox.push(About::Events, ()),
            Err(error) => log::error!("an Event is not reported: {error}"),
        }
    }

    /// Says everything again that the other end may not know: for a new
    /// connection.
    pub fn say_all(&self, store: &Store) -> Result<(), StoreError> {
        let lost = self.events.take_dropped();
        if lost > 0 {
            log::warn!("{lost} Events are lost: newer ones pushed them out before the cloud had them");
        }
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
        let ItemId { generation, sequence } = after;
        let after = store::ItemId { generation, sequence };
        // What is in memory only can always be read.
        let (store::ItemId { generation, sequence }, event) =
            self.events.read(Some(after), 1, usize::MAX).ok()?.pop()?;
        let id = ItemId { generation, sequence };
        Some((id, Body::Event(Happening { id, event })))
    }

    /// The cloud has the items up to this one.
    pub fn delivered(&self, id: ItemId) {
        let ItemId { generation, sequence } = id;
        self.events.acknowledge(store::ItemId { generation, sequence });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(up: &Up) -> Vec<(ItemId, u64)> {
        let mut found = Vec::new();
        let mut after = ItemId::default();
        while let Some((id, Body::Event(happening))) = up.item_after(after) {
            let event = codec::decode(&happening.event).unwrap();
            found.push((happening.id, event["count"].as_u64().unwrap()));
            after = id;
        }
        found
    }

    #[test]
    fn events_go_up_in_order_until_they_are_taken_and_those_that_are_lost_are_counted() {
        let directory = std::env::temp_dir().join(format!("holm-report-{}", Uid::random()));
        let store = Store::open(&directory, store::Options::default()).unwrap();
        let (up, _waiting) = Up::new(&store).unwrap();
        (0..300u64).for_each(|count| up.event(json!({"count": count})));
        let waiting = bodies(&up);
        assert_eq!(
            waiting.iter().map(|(_, count)| *count).collect::<Vec<_>>(),
            (44..300).collect::<Vec<_>>()
        );
        assert!(waiting.iter().all(|(id, _)| id.generation == waiting[0].0.generation));
        assert_eq!(up.events.dropped(), 44);
        up.say_all(&store).unwrap();
        assert_eq!(up.events.dropped(), 0, "said once");
        up.delivered(waiting[100].0);
        assert_eq!(bodies(&up), waiting[101..]);
        // The numbers of another start are nobody's here.
        up.delivered(ItemId { generation: 1, ..waiting[200].0 });
        assert_eq!(bodies(&up).len(), 155);
        assert_eq!(store.commits(), 0, "Events do not touch the flash");
        drop((up, store));
        let _ = std::fs::remove_dir_all(&directory);
    }
}
