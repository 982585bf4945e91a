//! The one writer: waiting writes become one commit.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_channel::{Receiver, Sender};
use redb::{Database, ReadableDatabase, Table};

use super::error::Fault;
use super::table::{self, FACT_RESERVED, OBJECTS, REVISION_BLOCK, set_fact};
use super::watch::Change;
use super::{Action, Durability, Expect, Shared, StoreError, Write, WriteError};
use crate::object::{Key, Object, Revision, Uid, meta_str, strip_server_fields};

type Outcome = Result<Arc<Object>, WriteError>;

/// The writer's inbox. Senders wait while it is full.
pub(super) enum ToWriter {
    Write { writes: Vec<Write>, reply: Sender<Result<Vec<Outcome>, StoreError>> },
    Fact { name: &'static str, value: Vec<u8>, reply: Sender<Result<(), StoreError>> },
}

/// Writes that wait for the writer at most; more wait in their senders.
const INBOX: usize = 256;
/// Requests taken into one commit at most, so that the first of a storm is
/// not answered last.
const GROUP: usize = 128;

pub(super) fn spawn(
    database: Database,
    shared: Arc<Shared>,
    reserved: Revision,
) -> io::Result<Sender<ToWriter>> {
    let (sender, inbox) = async_channel::bounded(INBOX);
    let writer = Writer { database, shared, last: reserved, reserved };
    std::thread::Builder::new().name("store".into()).spawn(move || writer.run(&inbox))?;
    Ok(sender)
}

struct Writer {
    database: Database,
    shared: Arc<Shared>,
    /// The last revision given, published or not.
    last: Revision,
    /// The last revision that the file says may have been given.
    reserved: Revision,
}

/// What a group of writes has done so far, seen by its own later writes.
#[derive(Default)]
struct Staged {
    latest: BTreeMap<Key, Option<Arc<Object>>>,
    /// What the memory-only part becomes; `None` clears an entry.
    volatile: BTreeMap<Key, Option<Arc<Object>>>,
    changes: Vec<Arc<Change>>,
    durable: bool,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<ToWriter>) {
        while let Ok(first) = inbox.recv_blocking() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(next) = inbox.try_recv()
            {
                group.push(next);
            }
            self.serve(group);
        }
    }

    /// Commits a group and answers each of its requests.
    fn serve(&mut self, group: Vec<ToWriter>) {
        let before = (self.last, self.reserved);
        let result = self.commit(&group).map_err(|fault| fault.at(&self.shared.path));
        if result.is_err() {
            (self.last, self.reserved) = before;
        }
        // A requester that has gone needs no answer.
        for (index, request) in group.into_iter().enumerate() {
            match request {
                ToWriter::Write { reply, .. } => {
                    let _ = reply.try_send(match &result {
                        Ok(outcomes) => Ok(outcomes.get(index).cloned().unwrap_or_default()),
                        Err(error) => Err(error.clone()),
                    });
                }
                ToWriter::Fact { reply, .. } => {
                    let _ = reply.try_send(result.as_ref().map(|_| ()).map_err(Clone::clone));
                }
            }
        }
    }

    fn commit(&mut self, group: &[ToWriter]) -> Result<Vec<Vec<Outcome>>, Fault> {
        let transaction = self.database.begin_write()?;
        let mut staged = Staged::default();
        let mut outcomes = Vec::with_capacity(group.len());
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for request in group {
                outcomes.push(match request {
                    ToWriter::Write { writes, .. } => {
                        let mut each = Vec::with_capacity(writes.len());
                        for write in writes {
                            // The whole group fails with the store.
                            each.push(self.apply(write, &mut objects, &mut staged)?);
                        }
                        each
                    }
                    ToWriter::Fact { name, value, .. } => {
                        staged.durable |= set_fact(&transaction, name, value)?;
                        Vec::new()
                    }
                });
            }
        }
        if self.last > self.reserved {
            self.reserved = Revision(self.last.0.saturating_add(REVISION_BLOCK));
            set_fact(&transaction, FACT_RESERVED, &self.reserved.0.to_be_bytes())?;
            staged.durable = true;
        }
        if staged.durable {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        self.publish(staged)?;
        Ok(outcomes)
    }

    /// Makes a committed group visible, all of it at once.
    fn publish(&self, staged: Staged) -> Result<(), Fault> {
        let read = match staged.durable {
            true => Some(Arc::new(self.database.begin_read()?)),
            false => None,
        };
        let mut published = self.shared.published();
        if let Some(read) = read {
            published.read = read;
            published.commits = published.commits.wrapping_add(1);
        }
        for (key, object) in staged.volatile {
            match object {
                Some(object) => published.volatile.insert(key, object),
                None => published.volatile.remove(&key),
            };
        }
        published.revision = self.last;
        for change in staged.changes {
            published.watchers.retain(|watcher| watcher.tell(&change));
            published.history.push(change, &self.shared.options);
        }
        Ok(())
    }

    /// The object as it is now, and whether that would survive a power cut.
    fn current(
        &self,
        key: &Key,
        objects: &Table<'_, (&'static str, &'static str, &'static str, &'static str), &'static [u8]>,
        staged: &Staged,
    ) -> Result<(Option<Arc<Object>>, Durability), Fault> {
        if let Some(object) = staged.latest.get(key) {
            let durability = match staged.volatile.get(key) {
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

    fn apply(
        &mut self,
        write: &Write,
        objects: &mut Table<'_, (&'static str, &'static str, &'static str, &'static str), &'static [u8]>,
        staged: &mut Staged,
    ) -> Result<Outcome, Fault> {
        let key = &write.key;
        let (current, held) = self.current(key, objects, staged)?;
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
                        staged.volatile.insert(key.clone(), None);
                        staged.durable = true;
                    }
                    Durability::Volatile => {
                        staged.volatile.insert(key.clone(), Some(object.clone()));
                    }
                }
                self.last = object.revision;
                staged.latest.insert(key.clone(), Some(object.clone()));
                staged.changes.push(Arc::new(Change {
                    revision: object.revision,
                    object: object.clone(),
                    previous: current,
                    removed: false,
                }));
                Ok(Ok(object))
            }
            Action::Delete => {
                let Some(current) = current else { return Ok(Err(WriteError::Missing(key.clone()))) };
                staged.durable |= objects.remove(table::row(key))?.is_some();
                staged.volatile.insert(key.clone(), None);
                self.last = Revision(self.last.0.saturating_add(1));
                staged.latest.insert(key.clone(), None);
                let mut object = (*current).clone();
                object.revision = self.last;
                let object = Arc::new(object);
                staged.changes.push(Arc::new(Change {
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
