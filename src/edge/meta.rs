//! MetaManager: the only writer of desired state. What the cloud orders is
//! durable before anybody acts on it, and before it is acknowledged.

use std::collections::BTreeSet;

use async_channel::{Receiver, Sender};
use serde_json::Value;

use super::pods::{Pods, ToPods};
use crate::link::Holding;
use crate::link::sync::{Set, set_digest};
use crate::object::{Key, Object, Origin, Uid, content_hash, meta_str};
use crate::store::{Action, Durability, Expect, Scope, Store, StoreError, Write, WriteError};
use crate::task::Tasks;
use crate::trust::names::ClusterUid;

/// The kinds that a cloud may put on a board.
const KINDS: [(&str, &str); 3] = [("", "configmaps"), ("", "pods"), ("", "secrets")];

/// The fact that says of which cluster the store holds a whole set.
const SYNCED_WITH: &str = "edge/synced-with";

/// One order of the cloud.
#[derive(Clone, Debug)]
pub enum Order {
    /// Hold this object.
    Put(Key, Value),
    /// Hold the object of this uid no longer.
    Drop(Key, Uid),
}

enum ToMeta {
    Apply { orders: Vec<Order>, reply: Sender<Result<(), StoreError>> },
    Synced { reply: Sender<Result<(), StoreError>> },
}

/// The task's handle. Callers wait while its inbox is full.
#[derive(Clone)]
pub struct Meta(Sender<ToMeta>);

impl Meta {
    /// Starts the task: first the pods learn what the store holds.
    pub fn start(tasks: &Tasks, store: Store, pods: Pods, cluster: ClusterUid) -> Meta {
        let (sender, inbox) = async_channel::bounded(16);
        tasks.supervise("meta", move || run(store.clone(), pods.clone(), cluster.clone(), inbox.clone()));
        Meta(sender)
    }

    /// Makes orders durable and lets the pods know. An order that cannot be
    /// followed is logged and passed over: repeating it would not help.
    pub async fn apply(&self, orders: Vec<Order>) -> Result<(), StoreError> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(ToMeta::Apply { orders, reply }).await.map_err(|_| StoreError::Closed)?;
        answer.recv().await.map_err(|_| StoreError::Closed)?
    }

    /// The cloud has said that the store holds the whole set.
    pub async fn synced(&self) -> Result<(), StoreError> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(ToMeta::Synced { reply }).await.map_err(|_| StoreError::Closed)?;
        answer.recv().await.map_err(|_| StoreError::Closed)?
    }
}

/// What the board holds of the cloud's objects.
pub fn holdings(store: &Store) -> Result<Set, StoreError> {
    let mut set = Set::new();
    for (group, resource) in KINDS {
        for object in store.list(&Scope::all(group, resource), None, None)?.objects {
            if object.origin == Origin::Cloud {
                set.insert(object.key.clone(), (object.uid.clone(), content_hash(&object.value)));
            }
        }
    }
    Ok(set)
}

/// The digest for `Hello`.
pub fn digest(store: &Store) -> Result<[u8; 32], StoreError> {
    holdings(store).map(|set| set_digest(&set))
}

/// The holdings as an inventory names them.
pub fn inventory(store: &Store) -> Result<Vec<Holding>, StoreError> {
    let set = holdings(store)?;
    Ok(set
        .iter()
        .map(|(key, (uid, hash))| Holding { key: key.into(), uid: uid.0.clone(), hash: *hash })
        .collect())
}

/// The cluster of which the store holds a whole set, if it does of one.
pub fn synced_with(store: &Store) -> Result<Option<String>, StoreError> {
    Ok(store.fact(SYNCED_WITH)?.and_then(|bytes| String::from_utf8(bytes).ok()))
}

async fn run(
    store: Store,
    pods: Pods,
    cluster: ClusterUid,
    inbox: Receiver<ToMeta>,
) -> Result<(), StoreError> {
    for object in store.list(&Scope::all("", "pods"), None, None)?.objects {
        pods.send(ToPods::Desired(object)).await;
    }
    let mut is_known = synced_with(&store)?.as_deref() == Some(cluster.as_str());
    if is_known {
        pods.send(ToPods::Known).await;
    }
    while let Ok(message) = inbox.recv().await {
        match message {
            ToMeta::Apply { orders, reply } => {
                let outcome = apply(&store, &pods, orders).await;
                // A session that has gone meanwhile needs no answer.
                let _ = reply.try_send(outcome);
            }
            ToMeta::Synced { reply } => {
                let outcome = store.set_fact(SYNCED_WITH, cluster.to_string().into_bytes()).await;
                if outcome.is_ok() && !is_known {
                    is_known = true;
                    pods.send(ToPods::Known).await;
                }
                let _ = reply.try_send(outcome);
            }
        }
    }
    Ok(())
}

async fn apply(store: &Store, pods: &Pods, orders: Vec<Order>) -> Result<(), StoreError> {
    let mut writes = Vec::new();
    let mut touched: BTreeSet<Key> = BTreeSet::new();
    let mut dropped: Vec<(Key, Uid)> = Vec::new();
    for order in orders {
        match order {
            Order::Put(key, value) => match admissible(&key, &value) {
                Ok(()) => {
                    let before = store.get(&key)?;
                    if let Some(before) = &before
                        && before.origin != Origin::Cloud
                    {
                        log::error!(
                            "{key} of the cloud is not taken: an object of this name was made on the board"
                        );
                        continue;
                    }
                    // A pod of the same name but another uid is another pod.
                    if let Some(before) = &before
                        && Some(before.uid.0.as_str()) != meta_str(&value, "uid")
                    {
                        dropped.push((key.clone(), before.uid.clone()));
                    }
                    writes.extend(puts(&key, value, before.as_deref()));
                    touched.insert(key);
                }
                Err(reason) => log::error!("{key} of the cloud is not taken: {reason}"),
            },
            Order::Drop(key, uid) => {
                let expect = Expect::Present { revision: None, uid: Some(uid.clone()) };
                writes.push(Write { key: key.clone(), expect, action: Action::Delete });
                dropped.push((key.clone(), uid));
                touched.insert(key);
            }
        }
    }
    for outcome in store.write_all(writes).await? {
        match outcome {
            // Dropped twice, or replaced before it was dropped.
            Ok(_) | Err(WriteError::Missing(_) | WriteError::Conflict { .. }) => {}
            Err(WriteError::Store(error)) => return Err(error),
            Err(error) => log::error!("an order of the cloud was not followed: {error}"),
        }
    }
    for (key, uid) in dropped {
        if key.is("", "pods") {
            pods.send(ToPods::Gone(key, uid)).await;
        }
    }
    for key in touched {
        match (key.is("", "pods"), store.get(&key)?) {
            (true, Some(object)) => pods.send(ToPods::Desired(object)).await,
            (true, None) => {}
            (false, _) => pods.send(ToPods::Dependency(key)).await,
        }
    }
    Ok(())
}

/// The cloud's object as durable content, and over it in memory the status
/// that the board has observed.
fn puts(key: &Key, mut value: Value, before: Option<&Object>) -> Vec<Write> {
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    let uid = meta_str(&value, "uid").unwrap_or_default().to_owned();
    let observed = before
        .filter(|before| before.uid.0 == uid)
        .and_then(|before| before.value.get("status"))
        .map(|status| {
            let mut value = value.clone();
            if let Some(object) = value.as_object_mut() {
                object.insert("status".into(), status.clone());
            }
            value
        });
    let write = |value, durability| Write {
        key: key.clone(),
        expect: Expect::Anything,
        action: Action::Put { value, origin: Origin::Cloud, durability },
    };
    [Some(write(value, Durability::Durable)), observed.map(|value| write(value, Durability::Volatile))]
        .into_iter()
        .flatten()
        .collect()
}

/// What the cloud puts must be of a kind that boards hold, and be what its key
/// says.
fn admissible(key: &Key, value: &Value) -> Result<(), &'static str> {
    let is_named = meta_str(value, "name") == Some(&key.name)
        && meta_str(value, "namespace").unwrap_or_default() == key.namespace;
    match () {
        () if !KINDS.contains(&(key.group.as_str(), key.resource.as_str())) => {
            Err("boards hold no such kind")
        }
        () if !is_named => Err("it is named otherwise inside"),
        () if meta_str(value, "uid").is_none_or(str::is_empty) => Err("it has no uid"),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::Revision;

    fn pod(uid: &str, image: &str) -> Value {
        json!({"metadata": {"name": "p", "namespace": "default", "uid": uid}, "spec": {"image": image}, "status": {"phase": "Pending"}})
    }

    #[test]
    fn the_observed_status_stays_over_a_new_content_of_the_same_pod() {
        let key = Key::core("pods", "default", "p").unwrap();
        let mut observed = pod("u", "old");
        observed["status"] = json!({"phase": "Running"});
        let before = Object {
            key: key.clone(),
            uid: Uid("u".into()),
            revision: Revision(1),
            origin: Origin::Cloud,
            value: observed,
        };
        let writes = puts(&key, pod("u", "new"), Some(&before));
        let shown: Vec<(Option<&Value>, Durability)> = writes
            .iter()
            .map(|write| match &write.action {
                Action::Put { value, durability, .. } => (value.get("status"), *durability),
                Action::Delete => panic!("a delete"),
            })
            .collect();
        assert_eq!(
            shown,
            [(None, Durability::Durable), (Some(&json!({"phase": "Running"})), Durability::Volatile)]
        );
        assert_eq!(puts(&key, pod("other", "new"), Some(&before)).len(), 1);
    }

    #[test]
    fn what_is_not_for_boards_is_not_taken() {
        let key = Key::core("pods", "default", "p").unwrap();
        assert_eq!(admissible(&key, &pod("u", "i")), Ok(()));
        assert!(
            admissible(&key, &json!({"metadata": {"name": "q", "namespace": "default", "uid": "u"}}))
                .is_err()
        );
        assert!(admissible(&key, &json!({"metadata": {"name": "p", "namespace": "default"}})).is_err());
        let node = Key::core("nodes", "", "p").unwrap();
        assert!(admissible(&node, &json!({"metadata": {"name": "p", "uid": "u"}})).is_err());
    }
}
