//! MetaManager: the only writer of desired state. What the cloud orders is
//! durable before anybody acts on it, and before it is acknowledged.

use std::collections::BTreeSet;

use async_channel::{Receiver, Sender};
use serde_json::Value;

use super::pods::{Pods, ToPods};
use crate::link::sync::{Set, set_digest};
use crate::object::{Key, Object, Origin, Uid, codec, content_hash, meta_str};
use crate::store::{Action, Durability, Expect, Scope, Store, StoreError, Write, WriteError};
use crate::task::Tasks;
use crate::trust::names::ClusterUid;

/// The kinds that a cloud may put on a board.
const KINDS: [(&str, &str); 3] = [("", "configmaps"), ("", "pods"), ("", "secrets")];

/// The fact that says of which cluster the store holds a whole set.
const SYNCED_WITH: &str = "edge/synced-with";

/// One order of the cloud.
#[derive(Clone, Debug, PartialEq)]
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

/// What the board holds of the cloud's under a key, as uid and content in CBOR.
/// A store that cannot be read holds nothing that a change could be taken
/// against.
pub fn held(store: &Store, key: &Key) -> Option<(Uid, Vec<u8>)> {
    let object = store.get(key).ok()??;
    (object.origin == Origin::Cloud).then(|| (object.uid.clone(), codec::encode_content(&object.value)))
}

/// The digest for `Hello`.
pub fn digest(store: &Store) -> Result<[u8; 32], StoreError> {
    holdings(store).map(|set| set_digest(&set))
}

/// The cluster of which the store holds a whole set, if it does of one.
pub fn synced_with(store: &Store) -> Result<Option<String>, StoreError> {
    Ok(store.fact(SYNCED_WITH)?.and_then(|bytes| String::from_utf8(bytes).ok()))
}

/// Forgets of which cluster the store holds a whole set: the next cloud that
/// says its whole set decides what is kept. Nothing is dropped until then.
pub async fn forget_cluster(store: &Store) -> Result<(), StoreError> {
    match synced_with(store)? {
        Some(cluster) if !cluster.is_empty() => store.set_fact(SYNCED_WITH, Vec::new()).await,
        _ => Ok(()),
    }
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
    let mut held = BTreeSet::new();
    while let Ok(message) = inbox.recv().await {
        match message {
            ToMeta::Apply { orders, reply } => {
                let orders = match is_known {
                    true => orders,
                    false => {
                        hold_back(orders, &mut held, |key| Ok(store.get(key)?.map(|now| now.uid.clone())))?
                    }
                };
                let outcome = apply(&store, &pods, orders).await;
                // A session that has gone meanwhile needs no answer.
                let _ = reply.try_send(outcome);
            }
            ToMeta::Synced { reply } => {
                let drops = std::mem::take(&mut held).into_iter();
                let mut outcome =
                    apply(&store, &pods, drops.map(|(key, uid)| Order::Drop(key, uid)).collect()).await;
                if outcome.is_ok() {
                    outcome = store.set_fact(SYNCED_WITH, cluster.to_string().into_bytes()).await;
                }
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

/// Takes the drops out of orders that come before the cloud has ever said its
/// whole set to this board: they count only then, as a cloud that goes away
/// half way through would leave the board with neither the old nor the new.
/// What is put again is not dropped. `uid_of` says what the board holds: what
/// it does not hold need not be remembered.
fn hold_back<E>(
    orders: Vec<Order>,
    held: &mut BTreeSet<(Key, Uid)>,
    uid_of: impl Fn(&Key) -> Result<Option<Uid>, E>,
) -> Result<Vec<Order>, E> {
    let mut puts = Vec::new();
    for order in orders {
        match order {
            Order::Put(key, value) => {
                held.retain(|(held, _)| *held != key);
                puts.push(Order::Put(key, value));
            }
            Order::Drop(key, uid) => {
                let is_put = |order: &Order| matches!(order, Order::Put(put, _) if *put == key);
                if puts.iter().any(is_put) || uid_of(&key)?.is_some_and(|now| now == uid) {
                    held.insert((key, uid));
                }
            }
        }
    }
    Ok(puts)
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
    fn drops_before_the_whole_set_wait_for_it() {
        let key = |name: &str| Key::core("pods", "default", name).unwrap();
        let drop = |name: &str, uid: &str| Order::Drop(key(name), Uid(uid.into()));
        let mut held = BTreeSet::new();
        let holds = |key: &Key| Ok::<_, ()>((key.name != "none").then(|| Uid("u".into())));
        let orders = vec![
            drop("a", "u"),
            drop("b", "u"),
            drop("b", "another"),
            drop("none", "u"),
            Order::Put(key("b"), pod("u", "again")),
            Order::Put(key("none"), pod("u", "new")),
            drop("none", "u"),
        ];
        let now = hold_back(orders, &mut held, holds).unwrap();
        let put: Vec<&Key> = now
            .iter()
            .map(|order| match order {
                Order::Put(key, _) => key,
                Order::Drop(..) => panic!("a drop"),
            })
            .collect();
        assert_eq!(put, [&key("b"), &key("none")]);
        assert_eq!(held, [(key("a"), Uid("u".into())), (key("none"), Uid("u".into()))].into());
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
