//! Kubernetes-style objects: what is stored, sent and watched.
//!
//! An [`Object`] is a JSON value under a [`Key`], with the facts about it that
//! must not be lost in the JSON: its identity, where it came from, and the
//! revision at which this store last saw it change. Nothing here does I/O.

pub mod codec;
mod key;
pub mod pod;
pub mod selector;
mod value;

use std::fmt;

use serde_json::Value;

pub use key::{Key, KeyError, Kind};
pub use value::{content_hash, digest, labels, meta_str, now_rfc3339, strip_server_fields, time_rfc3339};

/// Counts the changes of one store. Opaque outside of it, and never compared
/// between two stores (Kubernetes: `resourceVersion`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What tells two objects of the same name apart (Kubernetes: `metadata.uid`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub String);

impl Uid {
    /// A random UUID version 4 (RFC 9562).
    pub fn random() -> Uid {
        let mut bytes = [0u8; 16];
        // A uid only has to be different; where the system has no randomness
        // to give, the generator's own seed still makes it so.
        if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).is_err() {
            fastrand::fill(&mut bytes);
        }
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = data_encoding::HEXLOWER.encode(&bytes);
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        Uid(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who may change an object on a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Given by the cloud: read-only on the board.
    Cloud,
    /// Made on this store itself: everything in the cloud's own store, and
    /// what a person applied on the board.
    Local,
    /// From a file in the board's static pod directory.
    Static,
}

/// One object as a store holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Where it is.
    pub key: Key,
    /// Which of all objects that ever had this key it is.
    pub uid: Uid,
    /// The store's revision at its last change.
    pub revision: Revision,
    /// Who may change it on a board.
    pub origin: Origin,
    /// The whole Kubernetes object, without `metadata.resourceVersion`.
    pub value: Value,
}

impl Object {
    /// The value as the Kubernetes API shows it: with its `resourceVersion`.
    pub fn to_api(&self) -> Value {
        let mut value = self.value.clone();
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("resourceVersion".into(), Value::String(self.revision.to_string()));
        }
        value
    }

    /// True once deletion was asked for (`metadata.deletionTimestamp`).
    pub fn is_terminating(&self) -> bool {
        meta_str(&self.value, "deletionTimestamp").is_some()
    }
}
