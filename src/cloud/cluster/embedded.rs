//! The cluster that this process is: its own store.

use std::sync::Arc;

use serde_json::Value;

use super::{ClusterError, Seen, Weight, complete_metadata};
use crate::object::{Key, Object, Origin, Revision, Uid};
use crate::store::{Action, Durability, Expect, Scope, Store, Watch, Write};

/// Tries of a change that others keep overtaking.
const TRIES: usize = 16;

/// The store as a cluster.
#[derive(Clone)]
pub struct Embedded {
    store: Store,
}

impl Embedded {
    pub(super) fn new(store: Store) -> Embedded {
        Embedded { store }
    }

    pub(super) fn follow(&self, scope: Scope) -> Follow {
        Follow { store: self.store.clone(), scope, watch: None }
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Arc<Object>>, ClusterError> {
        Ok(self.store.get(key)?)
    }

    pub(super) fn get_at(&self, key: &Key) -> Result<(Revision, Option<Arc<Object>>), ClusterError> {
        Ok(self.store.get_at(key)?)
    }

    pub(super) async fn create(&self, key: &Key, mut value: Value) -> Result<Arc<Object>, ClusterError> {
        complete_metadata(key, &mut value);
        // Events are the one kind made by the cloud that nobody is promised.
        let durability = match key.resource == "events" {
            true => Durability::Volatile,
            false => Durability::Durable,
        };
        self.put(key, Expect::Absent, value, durability).await
    }

    pub(super) async fn update(&self, known: &Object, value: Value) -> Result<Arc<Object>, ClusterError> {
        let expect = Expect::Present { revision: Some(known.revision), uid: Some(known.uid.clone()) };
        self.put(&known.key, expect, value, Durability::Durable).await
    }

    pub(super) async fn set_status(
        &self,
        key: &Key,
        uid: Option<&Uid>,
        status: Value,
        weight: Weight,
    ) -> Result<(), ClusterError> {
        let durability = match weight {
            Weight::Change => Durability::Durable,
            Weight::Heartbeat => Durability::Volatile,
        };
        for _ in 0..TRIES {
            let known = self.store.get(key)?.ok_or_else(|| ClusterError::Missing(key.clone()))?;
            if uid.is_some_and(|uid| *uid != known.uid) {
                return Err(ClusterError::Conflict(key.clone()));
            }
            let mut value = known.value.clone();
            if let Some(object) = value.as_object_mut() {
                object.insert("status".into(), status.clone());
            }
            let expect = Expect::Present { revision: Some(known.revision), uid: Some(known.uid.clone()) };
            match self.put(key, expect, value, durability).await {
                Err(ClusterError::Conflict(_)) => {}
                outcome => return outcome.map(|_| ()),
            }
        }
        Err(ClusterError::Conflict(key.clone()))
    }

    pub(super) async fn put_fleeting(&self, key: &Key, mut value: Value) -> Result<(), ClusterError> {
        if let Some(known) = self.store.get(key)?
            && let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            meta.insert("uid".into(), known.uid.0.clone().into());
            if let Some(made) = crate::object::meta_str(&known.value, "creationTimestamp") {
                meta.insert("creationTimestamp".into(), made.into());
            }
        }
        complete_metadata(key, &mut value);
        self.put(key, Expect::Anything, value, Durability::Volatile).await.map(|_| ())
    }

    pub(super) async fn remove(&self, key: &Key, uid: &Uid) -> Result<(), ClusterError> {
        for _ in 0..TRIES {
            let known = self.store.get(key)?.ok_or_else(|| ClusterError::Missing(key.clone()))?;
            let expect = Expect::Present { revision: Some(known.revision), uid: Some(uid.clone()) };
            let outcome = match is_held(&known.value) {
                // The API removes it with the last finalizer.
                true => {
                    let value = without_grace(known.value.clone());
                    self.put(key, expect, value, Durability::Durable).await.map(|_| ())
                }
                false => {
                    let write = Write { key: key.clone(), expect, action: Action::Delete };
                    self.store.write(write).await.map(|_| ()).map_err(ClusterError::from)
                }
            };
            match outcome {
                Err(ClusterError::Conflict(_)) if known.uid == *uid => {}
                outcome => return outcome,
            }
        }
        Err(ClusterError::Conflict(key.clone()))
    }

    async fn put(
        &self,
        key: &Key,
        expect: Expect,
        value: Value,
        durability: Durability,
    ) -> Result<Arc<Object>, ClusterError> {
        let action = Action::Put { value, origin: Origin::Local, durability };
        Ok(self.store.write(Write { key: key.clone(), expect, action }).await?)
    }
}

/// True while finalizers keep the object.
fn is_held(value: &Value) -> bool {
    let finalizers = value.get("metadata").and_then(|meta| meta.get("finalizers"));
    finalizers.and_then(Value::as_array).is_some_and(|finalizers| !finalizers.is_empty())
}

/// The object as its node has let go of it.
fn without_grace(mut value: Value) -> Value {
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("deletionGracePeriodSeconds".into(), 0.into());
    }
    value
}

/// A kind of objects, followed.
pub struct Follow {
    store: Store,
    scope: Scope,
    watch: Option<Watch>,
}

impl Follow {
    /// What is seen next; the first is a list.
    pub async fn next(&mut self) -> Result<Seen, ClusterError> {
        if let Some(watch) = &mut self.watch {
            if let Ok(change) = watch.next().await {
                return Ok(match change.removed {
                    true => Seen::Removed(change.object.clone()),
                    false => Seen::Put(change.object.clone(), change.previous.clone()),
                });
            }
            self.watch = None;
        }
        let (listing, watch) = self.store.list_and_watch(self.scope.clone())?;
        self.watch = Some(watch);
        Ok(Seen::Listed(listing.objects, listing.revision))
    }
}
