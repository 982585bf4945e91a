//! The store: objects with revisions and watches in one redb file.
//!
//! One writer thread owns the database. It takes whatever writes are waiting,
//! puts them into one durable commit, and only then answers and tells the
//! watchers, so that nobody acts on what a power cut could take back. Reads
//! go to the last commit and never wait for a write.
//!
//! What can be observed again (pod status on a board, Leases, Events) is
//! written as [`Durability::Volatile`]: it has a revision and is watched like
//! everything else, but lives in memory and never touches the flash.

mod apply;
mod backup;
mod error;
mod file;
mod outbox;
mod table;
mod thread;
mod watch;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_channel::Sender;
use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend};
use serde_json::Value;

use crate::object::{Key, Kind, Object, Origin, Revision, Uid};

use error::Fault;
pub use error::{StoreError, WriteError};
pub use outbox::{ItemId, Outbox, OutboxError, OutboxOptions, WhenFull};
pub use table::Contents;
pub use watch::{Change, Gone, Watch};

/// The version of the file's layout that this program writes. A file of a
/// later version is refused; an earlier one is migrated on opening.
pub const SCHEMA: u32 = 2;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// redb's page cache, in bytes (its own default is 1 GiB).
    pub cache_bytes: usize,
    /// How many past changes a new watch can be given; an older start is
    /// [`Gone`].
    pub history: usize,
    /// How much memory those past changes may take, in bytes (an estimate):
    /// a pod takes some 20 KB.
    pub history_bytes: usize,
    /// How many changes may wait for one watcher before it is dropped.
    pub watch_queue: usize,
    /// How much memory those changes may take, in bytes (an estimate).
    pub watch_bytes: usize,
    /// Whether every page and entry is read and its checksum compared before
    /// the store is given out (a second for some tens of MB). Without it,
    /// damage shows when the entry is read.
    pub verify: bool,
    /// How long the writer lets things wait.
    pub pace: Pace,
}

/// How long the writer lets things wait that need not be done at once.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Acknowledged items stay in the file so long if nothing else is committed.
    pub tidy: Duration,
    /// The first and the longest pause before a file that failed is tried again.
    pub retry: (Duration, Duration),
    /// A file is made smaller once nothing was committed for so long …
    pub compact_idle: Duration,
    /// … and the last look at it is so long ago …
    pub compact_every: Duration,
    /// … and it has at least so many bytes, and more than half of them free.
    pub compact_bytes: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            tidy: Duration::from_secs(30),
            retry: (Duration::from_millis(500), Duration::from_secs(30)),
            compact_idle: Duration::from_secs(60),
            compact_every: Duration::from_secs(24 * 3600),
            compact_bytes: 4 << 20,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 1 << 20,
            history: 1024,
            history_bytes: 4 << 20,
            watch_queue: 1024,
            watch_bytes: 4 << 20,
            verify: false,
            pace: Pace::default(),
        }
    }
}

/// What must be so for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// No object has the key.
    Absent,
    /// One has, and it is the one meant.
    Present {
        /// At this revision, if given.
        revision: Option<Revision>,
        /// With this uid, if given.
        uid: Option<Uid>,
    },
}

/// Whether a write must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Committed and synced before it is answered.
    Durable,
    /// In memory only: lost at a restart, when the last durable value (if any)
    /// shows again.
    Volatile,
}

/// What a write does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Makes or replaces the object. A value equal to the present one changes
    /// nothing and gets no revision.
    Put {
        /// The new value; `metadata.resourceVersion` and `managedFields` are dropped.
        value: Value,
        /// Its origin.
        origin: Origin,
        /// Whether it goes to the flash.
        durability: Durability,
    },
    /// Removes the object.
    Delete,
}

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Which object.
    pub key: Key,
    /// On what condition.
    pub expect: Expect,
    /// What to do.
    pub action: Action,
}

/// A part of the store: a kind, one namespace of it, or one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Which kind.
    pub kind: Kind,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this name.
    pub name: Option<String>,
}

impl Scope {
    /// All objects of a kind.
    pub fn all(group: &str, resource: &str) -> Scope {
        Scope { kind: Kind::new(group, resource), namespace: None, name: None }
    }

    /// True if an object with this key belongs to the scope.
    pub fn contains(&self, key: &Key) -> bool {
        key.is(&self.kind.group, &self.kind.resource)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
    }
}

/// What a list found.
#[derive(Clone, Debug)]
pub struct Listing {
    /// A watch from here continues the list without a gap.
    pub revision: Revision,
    /// The objects in key order.
    pub objects: Vec<Arc<Object>>,
    /// True if the limit cut the list short.
    pub more: bool,
}

/// The last commit, what is in memory only, and who wants to know of changes.
struct Published {
    revision: Revision,
    read: Arc<ReadTransaction>,
    volatile: BTreeMap<Key, Arc<Object>>,
    history: watch::History,
    watchers: Vec<watch::Watcher>,
    commits: usize,
    causes: BTreeMap<String, usize>,
    trouble: Option<Trouble>,
}

struct Shared {
    published: Mutex<Published>,
    options: Options,
    path: PathBuf,
    generation: u64,
    outboxes: Mutex<BTreeMap<&'static str, Arc<outbox::Inner>>>,
}

/// Why the store cannot be written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error} (since {since})")]
pub struct Trouble {
    /// When it began (RFC 3339, by this machine's clock).
    pub since: String,
    /// What went wrong last.
    pub error: StoreError,
}

impl Shared {
    /// The state even if a reader panicked while holding it: every change to
    /// it is a plain assignment, so it is never half done.
    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<&'static str, Arc<outbox::Inner>>> {
        self.outboxes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A handle to the store; clones share it. The writer thread ends when the
/// last handle is dropped.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    inbox: Sender<thread::ToWriter>,
}

impl Store {
    /// Opens the store in `directory`, making both with access for this user
    /// only if they are not there. Blocks while redb repairs a file that was
    /// not closed cleanly (milliseconds per MB).
    ///
    /// [`StoreError::Damaged`] if the file is there and is not what a store
    /// wrote; every other error is about something else, and the file may be
    /// well.
    pub fn open(directory: &Path, options: Options) -> Result<Store, StoreError> {
        Store::open_at(file::Place::file(directory, &options), options)
    }

    /// Opens a store on anything that holds bytes, for tests; `name` stands in
    /// its errors. Nothing keeps two stores from using one back end.
    #[doc(hidden)]
    pub fn open_backend<B: StorageBackend + Clone>(
        name: &Path,
        backend: B,
        options: Options,
    ) -> Result<Store, StoreError> {
        let open = move |builder: &redb::Builder| builder.create_with_backend(backend.clone());
        Store::open_at(file::Place::backend(name, &options, Box::new(open)), options)
    }

    fn open_at(place: file::Place, options: Options) -> Result<Store, StoreError> {
        let (mut database, opened) = place.open()?;
        let path = place.path().to_path_buf();
        if options.verify {
            file::guarded(|| look_through(&mut database)).map_err(|fault| fault.at(&path))?;
        }
        let read = database.begin_read().map_err(|error| Fault::from(error).at(&path))?;
        let shared = Arc::new(Shared {
            published: Mutex::new(Published {
                revision: opened.reserved,
                read: Arc::new(read),
                volatile: BTreeMap::new(),
                history: watch::History::starting_at(opened.reserved),
                watchers: Vec::new(),
                commits: 0,
                causes: BTreeMap::new(),
                trouble: None,
            }),
            options,
            path: path.clone(),
            generation: opened.generation,
            outboxes: Mutex::new(BTreeMap::new()),
        });
        let inbox = thread::spawn(place, database, shared.clone(), opened.reserved)
            .map_err(|error| StoreError::Open { path, why: error.to_string() })?;
        Ok(Store { shared, inbox })
    }

    /// The store's file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The last commit.
    fn read(&self) -> Arc<ReadTransaction> {
        self.shared.published().read.clone()
    }

    /// Tells this file from every other store that ever was (random at its
    /// making): two stores of one node never share a sequence.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        self.shared.published().revision
    }

    /// How many durable commits this process has made.
    pub fn commits(&self) -> usize {
        self.shared.published().commits
    }

    /// The same by what made them durable: kinds (`configmaps`,
    /// `leases.coordination.k8s.io`), `fact NAME`, `outbox NAME`, `revisions`
    /// (a new block of them), `recovery` (after trouble). A commit with several
    /// causes counts for each.
    pub fn commits_by_cause(&self) -> BTreeMap<String, usize> {
        self.shared.published().causes.clone()
    }

    /// Whether the store can be written; if not, since when and why. Durable
    /// writes are refused meanwhile, what is in memory only goes on, and the
    /// writer tries again by itself.
    pub fn health(&self) -> Result<(), Trouble> {
        match &self.shared.published().trouble {
            Some(trouble) => Err(trouble.clone()),
            None => Ok(()),
        }
    }

    /// Reads from the last commit, and once more if the file was opened anew
    /// meanwhile.
    fn reading<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, Fault>) -> Result<T, StoreError> {
        self.looking(|_| (), |last, ()| read(last))
    }

    /// The same with what is in memory at the same moment.
    fn looking<M, T>(
        &self,
        memory: impl Fn(&Published) -> M,
        read: impl Fn(&ReadTransaction, M) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        loop {
            let (last, held) = {
                let published = self.shared.published();
                (published.read.clone(), memory(&published))
            };
            let fault = match read(&last, held) {
                Ok(found) => return Ok(found),
                Err(fault) => fault,
            };
            if fault.is_latched() {
                // The writer finds the same, and opens the file again.
                let _ = self.inbox.try_send(thread::ToWriter::Tidy { now: false });
            }
            let published = self.shared.published();
            match &published.trouble {
                _ if fault.is_closed() && !Arc::ptr_eq(&published.read, &last) => {}
                Some(trouble) if fault.is_closed() => return Err(trouble.error.clone()),
                _ => return Err(fault.at(self.path())),
            }
        }
    }

    /// One object, if there is one.
    pub fn get(&self, key: &Key) -> Result<Option<Arc<Object>>, StoreError> {
        self.get_at(key).map(|(_, object)| object)
    }

    /// One object, if there is one, and the revision as of which that is so:
    /// changes up to there are in it.
    pub fn get_at(&self, key: &Key) -> Result<(Revision, Option<Arc<Object>>), StoreError> {
        self.looking(
            |published| (published.revision, published.volatile.get(key).cloned()),
            |read, (revision, volatile)| match volatile {
                Some(object) => Ok((revision, Some(object))),
                None => Ok((revision, table::get(read, key)?)),
            },
        )
    }

    /// The objects of a scope in key order, at most `limit`, after `after`.
    pub fn list(
        &self,
        scope: &Scope,
        after: Option<&Key>,
        limit: Option<usize>,
    ) -> Result<Listing, StoreError> {
        // One more than asked for tells whether there are more.
        let wanted = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
        let start = match after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(first_key(scope)),
        };
        let (revision, mut found, durable) = self.looking(
            |published| {
                let volatile: BTreeMap<Key, Arc<Object>> = published
                    .volatile
                    .range((start.clone(), Bound::Unbounded))
                    .take_while(|(key, _)| in_range(scope, key))
                    .filter(|(key, _)| scope.contains(key))
                    .take(wanted)
                    .map(|(key, object)| (key.clone(), object.clone()))
                    .collect();
                (published.revision, volatile)
            },
            |read, (revision, volatile)| {
                let mut durable = Vec::new();
                table::scan(read, scope, start.clone(), wanted, |object| durable.push(object))?;
                Ok((revision, volatile, durable))
            },
        )?;
        for object in durable {
            found.entry(object.key.clone()).or_insert_with(|| Arc::new(object));
        }
        let more = limit.is_some_and(|limit| found.len() > limit);
        let objects = found.into_values().take(limit.unwrap_or(usize::MAX)).collect();
        Ok(Listing { revision, objects, more })
    }

    /// All changes to a scope after `from`, which a list or an earlier change
    /// gave. [`Gone`] if the store no longer knows them all: list again.
    pub fn watch(&self, scope: Scope, from: Revision) -> Result<Watch, Gone> {
        let mut published = self.shared.published();
        let backlog = published.history.since(&scope, from)?;
        let (watcher, watch) = watch::pair(scope, backlog, &self.shared.options);
        published.watchers.push(watcher);
        Ok(watch)
    }

    /// Lists a scope and watches it from there.
    pub fn list_and_watch(&self, scope: Scope) -> Result<(Listing, Watch), StoreError> {
        loop {
            let listing = self.list(&scope, None, None)?;
            // Only a burst longer than the history between the two calls
            // makes the start stale; then the list is stale too.
            if let Ok(watch) = self.watch(scope.clone(), listing.revision) {
                return Ok((listing, watch));
            }
        }
    }

    /// Does one write. Returns the object as it is now, or as it last was if
    /// the write removed it.
    pub async fn write(&self, write: Write) -> Result<Arc<Object>, WriteError> {
        let mut outcomes = self.write_all(vec![write]).await?;
        outcomes.pop().unwrap_or(Err(WriteError::Store(StoreError::Closed)))
    }

    /// Does several writes in one commit. Each has its own outcome; one that
    /// is refused does not stop the others. Waits while the writer's inbox is
    /// full.
    pub async fn write_all(
        &self,
        writes: Vec<Write>,
    ) -> Result<Vec<Result<Arc<Object>, WriteError>>, StoreError> {
        let (reply, answer) = async_channel::bounded(1);
        self.inbox.send(thread::ToWriter::Write { writes, reply }).await.map_err(|_| StoreError::Closed)?;
        answer.recv().await.map_err(|_| StoreError::Closed)?
    }

    /// A small named value about the store itself (the cluster it belongs to,
    /// the time floor).
    pub fn fact(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        self.reading(|read| table::fact(read, name))
    }

    /// Sets a fact durably; an equal value is not written again.
    pub async fn set_fact(&self, name: &'static str, value: Vec<u8>) -> Result<(), StoreError> {
        let (reply, answer) = async_channel::bounded(1);
        self.inbox
            .send(thread::ToWriter::Fact { name, value, reply })
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.recv().await.map_err(|_| StoreError::Closed)?
    }
}

/// Reads every page and entry.
fn look_through(database: &mut Database) -> Result<(), Fault> {
    if !database.check_integrity()? {
        log::warn!("the store's free pages were not in order, and are again");
    }
    table::verify(&database.begin_read()?).map(|_| ())
}

fn first_key(scope: &Scope) -> Key {
    Key {
        group: scope.kind.group.clone(),
        resource: scope.kind.resource.clone(),
        namespace: scope.namespace.clone().unwrap_or_default(),
        name: match scope.namespace {
            Some(_) => scope.name.clone().unwrap_or_default(),
            None => String::new(),
        },
    }
}

/// True while an ordered walk over a scope has not left it.
fn in_range(scope: &Scope, key: &Key) -> bool {
    key.is(&scope.kind.group, &scope.kind.resource)
        && scope.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
}

#[cfg(test)]
mod tests;
