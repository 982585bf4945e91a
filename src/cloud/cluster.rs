//! One view of the Kubernetes API behind the cloud. The only module that knows
//! which API that is.

mod embedded;

use std::sync::Arc;

use serde_json::Value;

use crate::object::{Key, KeyError, Object, Revision, Uid, meta_str};
use crate::store::{Scope, Store, StoreError, WriteError};

pub use embedded::Embedded;

/// Why the API did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// The object changed in between, or is another one of the name.
    #[error("{0} was changed by someone else")]
    Conflict(Key),
    /// An object of the name exists.
    #[error("{0} exists already")]
    Exists(Key),
    /// No such object.
    #[error("{0} does not exist")]
    Missing(Key),
    /// The object names itself impossibly.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The API, or the store behind it, failed.
    #[error("the cluster's API failed: {0}")]
    Failed(String),
}

impl From<StoreError> for ClusterError {
    fn from(error: StoreError) -> Self {
        ClusterError::Failed(error.to_string())
    }
}

impl From<WriteError> for ClusterError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Conflict { key, .. } => ClusterError::Conflict(key),
            WriteError::Exists(key) => ClusterError::Exists(key),
            WriteError::Missing(key) => ClusterError::Missing(key),
            other => ClusterError::Failed(other.to_string()),
        }
    }
}

/// One thing seen of a kind of objects.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The whole list as of a revision; what it lacks is no longer there.
    Listed(Vec<Arc<Object>>, Revision),
    /// Made or changed, and as it was before, where that is known.
    Put(Arc<Object>, Option<Arc<Object>>),
    /// Removed; as it last was, at the removal's revision.
    Removed(Arc<Object>),
}

/// Whether a status must survive a restart of the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something changed.
    Change,
    /// Only a sign of life.
    Heartbeat,
}

/// The cluster; clones share it.
#[derive(Clone)]
pub enum Cluster {
    /// The API of this process, over its own store.
    Embedded(Embedded),
}

impl Cluster {
    /// The cluster of this process's own store.
    pub fn embedded(store: Store) -> Cluster {
        Cluster::Embedded(Embedded::new(store))
    }

    /// Follows a kind of objects: first [`Seen::Listed`], then each change.
    /// After a gap it lists again by itself.
    pub fn follow(&self, scope: Scope) -> embedded::Follow {
        match self {
            Cluster::Embedded(embedded) => embedded.follow(scope),
        }
    }

    /// One object.
    pub async fn get(&self, key: &Key) -> Result<Option<Arc<Object>>, ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.get(key),
        }
    }

    /// One object, and as of which revision there was this or none.
    pub async fn get_at(&self, key: &Key) -> Result<(Revision, Option<Arc<Object>>), ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.get_at(key),
        }
    }

    /// Makes an object; its name and kind are the key's.
    pub async fn create(&self, key: &Key, value: Value) -> Result<Arc<Object>, ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.create(key, value).await,
        }
    }

    /// Replaces an object if it is still as `known`.
    pub async fn update(&self, known: &Object, value: Value) -> Result<Arc<Object>, ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.update(known, value).await,
        }
    }

    /// Replaces the status of the object with this uid (of any, if `None`).
    pub async fn set_status(
        &self,
        key: &Key,
        uid: Option<&Uid>,
        status: Value,
        weight: Weight,
    ) -> Result<(), ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.set_status(key, uid, status, weight).await,
        }
    }

    /// Makes or replaces an object that need not survive a restart (Leases).
    pub async fn put_fleeting(&self, key: &Key, value: Value) -> Result<(), ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.put_fleeting(key, value).await,
        }
    }

    /// Removes the object with this uid for good.
    pub async fn remove(&self, key: &Key, uid: &Uid) -> Result<(), ClusterError> {
        match self {
            Cluster::Embedded(embedded) => embedded.remove(key, uid).await,
        }
    }
}

/// Fills in what every new object has: kind is the caller's, the rest ours.
pub(super) fn complete_metadata(key: &Key, value: &mut Value) {
    let Some(object) = value.as_object_mut() else { return };
    let meta = object.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
    let fresh =
        meta_str(&Value::Object([("metadata".to_owned(), meta.clone())].into_iter().collect()), "uid")
            .is_none_or(str::is_empty);
    let Some(meta) = meta.as_object_mut() else { return };
    meta.insert("name".into(), key.name.clone().into());
    if !key.namespace.is_empty() {
        meta.insert("namespace".into(), key.namespace.clone().into());
    }
    if fresh {
        meta.insert("uid".into(), Uid::random().0.into());
    }
    meta.entry("creationTimestamp").or_insert_with(|| crate::object::now_rfc3339().into());
}
