//! What a group of writes does, before it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::Table;

use super::error::Fault;
use super::table::{self, Row};
use super::watch::Change;
use super::{Action, Durability, Expect, Shared, Write, WriteError};
use crate::object::{Key, Object, Revision, Uid, meta_str, strip_server_fields};

pub(super) type Outcome = Result<Arc<Object>, WriteError>;
pub(super) type Objects<'transaction> = Table<'transaction, Row, &'static [u8]>;

/// What a group of writes has done so far, seen by its own later writes.
pub(super) struct Staged<'a> {
    shared: &'a Shared,
    /// The last revision given.
    pub(super) last: Revision,
    latest: BTreeMap<Key, Option<Arc<Object>>>,
    /// What the memory-only part becomes; `None` clears an entry.
    pub(super) volatile: BTreeMap<Key, Option<Arc<Object>>>,
    pub(super) changes: Vec<Arc<Change>>,
    /// What has to be durable; nothing needs a commit if it is empty.
    pub(super) causes: BTreeSet<String>,
}

impl<'a> Staged<'a> {
    pub(super) fn after(shared: &'a Shared, last: Revision) -> Staged<'a> {
        Staged {
            shared,
            last,
            latest: BTreeMap::new(),
            volatile: BTreeMap::new(),
            changes: Vec::new(),
            causes: BTreeSet::new(),
        }
    }

    /// Notes why the group must be durable.
    pub(super) fn cause(&mut self, cause: String) {
        self.causes.insert(cause);
    }

    /// One durable change: if it is in the file, all of the group is.
    pub(super) fn witness(&self) -> Option<(Key, Revision, bool)> {
        let (key, object) =
            self.latest.iter().find(|(key, _)| matches!(self.volatile.get(key), Some(None)))?;
        let revision = object.as_ref().map_or(self.last, |object| object.revision);
        Some((key.clone(), revision, object.is_none()))
    }

    /// The object as it is now, and whether that would survive a power cut.
    fn current(&self, key: &Key, objects: &Objects<'_>) -> Result<(Option<Arc<Object>>, Durability), Fault> {
        if let Some(object) = self.latest.get(key) {
            let durability = match self.volatile.get(key) {
                Some(Some(_)) => Durability::Volatile,
                _ => Durability::Durable,
            };
            return Ok((object.clone(), durability));
        }
        if let Some(object) = self.shared.published().volatile.get(key) {
            return Ok((Some(object.clone()), Durability::Volatile));
        }
        Ok((table::get_in(objects, key)?, Durability::Durable))
    }

    pub(super) fn apply(&mut self, write: &Write, objects: &mut Objects<'_>) -> Result<Outcome, Fault> {
        let key = &write.key;
        let (current, held) = self.current(key, objects)?;
        if let Err(refused) = check(key, &write.expect, current.as_deref()) {
            return Ok(Err(refused));
        }
        match &write.action {
            Action::Put { value, origin, durability } => {
                let mut value = value.clone();
                strip_server_fields(&mut value);
                if let Some(current) = &current
                    && current.value == value
                    && current.origin == *origin
                    && (held == *durability || held == Durability::Durable)
                {
                    return Ok(Ok(current.clone()));
                }
                let object = Object {
                    uid: Uid(meta_str(&value, "uid").unwrap_or_default().into()),
                    revision: Revision(self.last.0.saturating_add(1)),
                    origin: *origin,
                    value,
                    key: key.clone(),
                };
                let envelope = match table::wrap(&object) {
                    Ok(envelope) => envelope,
                    Err(error) => return Ok(Err(WriteError::TooLarge(key.clone(), error))),
                };
                let object = Arc::new(object);
                match durability {
                    Durability::Durable => {
                        objects.insert(table::row(key), envelope.as_slice())?;
                        self.volatile.insert(key.clone(), None);
                        self.cause(cause(key));
                    }
                    Durability::Volatile => {
                        self.volatile.insert(key.clone(), Some(object.clone()));
                    }
                }
                self.last = object.revision;
                self.latest.insert(key.clone(), Some(object.clone()));
                self.changes.push(Arc::new(Change {
                    revision: object.revision,
                    object: object.clone(),
                    previous: current,
                    removed: false,
                }));
                Ok(Ok(object))
            }
            Action::Delete => {
                let Some(current) = current else { return Ok(Err(WriteError::Missing(key.clone()))) };
                if objects.remove(table::row(key))?.is_some() {
                    self.cause(cause(key));
                }
                self.volatile.insert(key.clone(), None);
                self.last = Revision(self.last.0.saturating_add(1));
                self.latest.insert(key.clone(), None);
                let mut object = (*current).clone();
                object.revision = self.last;
                let object = Arc::new(object);
                self.changes.push(Arc::new(Change {
                    revision: self.last,
                    object: object.clone(),
                    previous: Some(current),
                    removed: true,
                }));
                Ok(Ok(object))
            }
        }
    }
}

/// The kind of a key, as `kubectl` names it.
fn cause(key: &Key) -> String {
    match key.group.is_empty() {
        true => key.resource.to_string(),
        false => format!("{}.{}", key.resource, key.group),
    }
}

fn check(key: &Key, expect: &Expect, current: Option<&Object>) -> Result<(), WriteError> {
    match (expect, current) {
        (Expect::Anything, _) | (Expect::Absent, None) => Ok(()),
        (Expect::Absent, Some(_)) => Err(WriteError::Exists(key.clone())),
        (Expect::Present { .. }, None) => Err(WriteError::Missing(key.clone())),
        (Expect::Present { revision, uid }, Some(current)) => {
            let is_meant = revision.is_none_or(|revision| revision == current.revision)
                && uid.as_ref().is_none_or(|uid| *uid == current.uid);
            match is_meant {
                true => Ok(()),
                false => Err(WriteError::Conflict { key: key.clone(), found: current.revision }),
            }
        }
    }
}
