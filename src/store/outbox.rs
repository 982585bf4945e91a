//! Outboxes: what must not be lost on its way to somebody else. An item is
//! appended, read from the front, sent, and removed once it is acknowledged.
//!
//! A durable outbox keeps its items in the store's file, and only its counters
//! in memory:
//!
//! ```text
//! outboxes   (name, sequence) → version (1), checksum (8), item
//!            (name, 0)        → version (1), checksum (8), next sequence,
//!                               items, bytes, dropped, dropped and told
//! ```
//!
//! An acknowledgement costs no commit of its own: the acknowledged items leave
//! the file with the next commit, or when there are many of them, or after a
//! while. A power cut before that brings them back, and they are sent again
//! under the same [`ItemId`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::error::Fault;
use super::table::{random, sum};
use super::thread::ToWriter;
use super::{Durability, Store, StoreError};

pub(super) type Row = (&'static str, u64);
pub(super) const OUTBOXES: TableDefinition<'static, Row, &'static [u8]> = TableDefinition::new("outboxes");

const ENVELOPE: u8 = 1;
/// The row of an outbox's counters; items begin at 1.
const LEDGER: u64 = 0;
/// So many acknowledged items leave the file at once without waiting for
/// another commit.
const TIDY: u64 = 256;

/// What tells an item from every other that ever was in an outbox of the
/// name. Ordered as the items are, within a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId {
    /// The store's generation, or for a volatile outbox a random number made
    /// at each start.
    pub generation: u64,
    /// Counts up from 1; never given twice within a generation.
    pub sequence: u64,
}

/// What happens to an item for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest items make room, and are counted: [`Outbox::take_dropped`].
    DropOldest,
    /// It is refused: [`OutboxError::Full`].
    Refuse,
}

/// What an outbox is like.
#[derive(Clone, Copy, Debug)]
pub struct OutboxOptions {
    /// Its name, which tells it from the store's other outboxes.
    pub name: &'static str,
    /// Whether items survive a restart.
    pub durability: Durability,
    /// How many items it holds at most.
    pub items: u64,
    /// How many bytes its items have together at most.
    pub bytes: u64,
    /// What happens to an item for which there is no room.
    pub when_full: WhenFull,
}

/// Why an item was not appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutboxError {
    /// No room, and [`WhenFull::Refuse`].
    #[error("the outbox {0} is full")]
    Full(&'static str),
    /// Larger than all that the outbox may hold.
    #[error("{bytes} bytes are more than the outbox {name} holds")]
    TooLarge {
        /// Which outbox.
        name: &'static str,
        /// The item's size.
        bytes: usize,
    },
    /// [`Outbox::append_now`] to one whose items go to the disk first.
    #[error("an item of the outbox {0} must be waited for")]
    Durable(&'static str),
    /// The store failed. Whether the item is in the outbox is known when the
    /// store is well again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A handle to an outbox; clones share it.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
    store: Store,
}

pub(super) struct Inner {
    pub(super) options: OutboxOptions,
    generation: u64,
    state: Mutex<State>,
}

/// The outbox as of the last commit, and what was acknowledged since.
struct State {
    ledger: Ledger,
    /// Everything up to here is acknowledged.
    acknowledged: u64,
    /// How many dropped items the owner has been told of.
    told: u64,
    /// The items of a volatile outbox.
    queue: VecDeque<(u64, Arc<[u8]>)>,
}

/// An outbox's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ledger {
    /// The sequence of the next item.
    pub(super) next: u64,
    /// Items that are stored.
    pub(super) items: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Items that were pushed out by newer ones, ever.
    dropped: u64,
    /// How many of those the owner has been told of.
    told: u64,
}

impl Ledger {
    const EMPTY: Ledger = Ledger { next: 1, items: 0, bytes: 0, dropped: 0, told: 0 };

    fn to_bytes(self, name: &str) -> Vec<u8> {
        let fields = [self.next, self.items, self.bytes, self.dropped, self.told];
        let body: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
        wrap(name, LEDGER, &body)
    }

    fn from_bytes(name: &str, envelope: &[u8]) -> Result<Ledger, Fault> {
        let body = unwrap(name, LEDGER, envelope)?;
        let mut fields =
            body.chunks_exact(8).filter_map(|field| field.try_into().ok().map(u64::from_be_bytes));
        let mut field = || fields.next();
        let ledger = (|| {
            let (next, items, bytes) = (field()?, field()?, field()?);
            Some(Ledger { next, items, bytes, dropped: field()?, told: field()? })
        })();
        ledger.ok_or_else(|| damaged(name, LEDGER, format!("{} bytes", body.len())))
    }

    /// Whether an item of this size must wait for others to leave.
    fn is_full(&self, options: &OutboxOptions, size: u64) -> bool {
        self.items >= options.items || self.bytes.saturating_add(size) > options.bytes
    }

    fn add(&mut self, size: u64) -> u64 {
        let sequence = self.next;
        self.next = sequence.saturating_add(1);
        self.items = self.items.saturating_add(1);
        self.bytes = self.bytes.saturating_add(size);
        sequence
    }

    fn remove(&mut self, items: u64, bytes: u64) {
        self.items = self.items.saturating_sub(items);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The sequence of the first item that is stored.
    fn first(&self) -> u64 {
        self.next.saturating_sub(self.items)
    }
}

impl Inner {
    /// Each change to it is whole or not begun.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether something waits to be taken out of the file.
    pub(super) fn is_untidy(&self) -> bool {
        let state = self.state();
        self.options.durability == Durability::Durable
            && (state.acknowledged >= state.ledger.first() || state.told != state.ledger.told)
    }

    pub(super) fn id(&self, sequence: u64) -> ItemId {
        ItemId { generation: self.generation, sequence }
    }

    /// The outbox's state after a commit.
    pub(super) fn committed(&self, ledger: Ledger) {
        self.state().ledger = ledger;
    }

    /// Reads the state again after a commit of which nobody knows whether it
    /// was done.
    pub(super) fn reload(&self, read: &ReadTransaction) -> Result<(), Fault> {
        let found = ledger(read, self.options.name)?;
        let mut state = self.state();
        let next = found.next.max(state.ledger.next);
        // No sequence was given that the file does not know of.
        if next == found.next {
            state.ledger = found;
        }
        Ok(())
    }
}

impl Store {
    /// The outbox of this name; the first call says what it is like.
    pub fn outbox(&self, options: OutboxOptions) -> Result<Outbox, StoreError> {
        let mut outboxes = self.shared.outboxes();
        if let Some(inner) = outboxes.get(options.name) {
            return Ok(Outbox { inner: inner.clone(), store: self.clone() });
        }
        let (ledger, generation) = match options.durability {
            Durability::Durable => (self.reading(|read| ledger(read, options.name))?, self.generation()),
            Durability::Volatile => (Ledger::EMPTY, random().map_err(|fault| fault.at(self.path()))?),
        };
        let state = State { ledger, acknowledged: 0, told: ledger.told, queue: VecDeque::new() };
        let inner = Arc::new(Inner { options, generation, state: Mutex::new(state) });
        outboxes.insert(options.name, inner.clone());
        Ok(Outbox { inner, store: self.clone() })
    }
}

impl Outbox {
    /// Appends an item. That of a durable outbox is on the disk when this
    /// returns; waits while the writer's inbox is full.
    pub async fn append(&self, item: Vec<u8>) -> Result<ItemId, OutboxError> {
        if self.inner.options.durability == Durability::Volatile {
            return self.append_now(item);
        }
        self.check(&item)?;
        let (reply, answer) = async_channel::bounded(1);
        let request = ToWriter::Append { outbox: self.inner.clone(), item, reply };
        self.store.inbox.send(request).await.map_err(|_| StoreError::Closed)?;
        answer.recv().await.map_err(|_| StoreError::Closed)?
    }

    /// Appends an item to a volatile outbox without waiting for anything.
    pub fn append_now(&self, item: Vec<u8>) -> Result<ItemId, OutboxError> {
        self.check(&item)?;
        match self.inner.options.durability {
            Durability::Volatile => self.append_volatile(item),
            Durability::Durable => Err(OutboxError::Durable(self.inner.options.name)),
        }
    }

    fn check(&self, item: &[u8]) -> Result<(), OutboxError> {
        let OutboxOptions { name, bytes, items, .. } = self.inner.options;
        match size(item) > bytes || items == 0 {
            true => Err(OutboxError::TooLarge { name, bytes: item.len() }),
            false => Ok(()),
        }
    }

    fn append_volatile(&self, item: Vec<u8>) -> Result<ItemId, OutboxError> {
        let Inner { options, .. } = &*self.inner;
        let mut state = self.inner.state();
        let size = size(&item);
        while state.ledger.is_full(options, size) {
            if options.when_full == WhenFull::Refuse {
                return Err(OutboxError::Full(options.name));
            }
            let Some((_, oldest)) = state.queue.pop_front() else { break };
            state.ledger.remove(1, oldest.len() as u64);
            state.ledger.dropped = state.ledger.dropped.saturating_add(1);
        }
        let sequence = state.ledger.add(size);
        state.queue.push_back((sequence, item.into()));
        Ok(self.inner.id(sequence))
    }

    /// The items after `after` in order, from the front if that is none or of
    /// another generation: at most `limit`, and no more than `bytes` together
    /// except that there is always one if there is any.
    pub fn read(
        &self,
        after: Option<ItemId>,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<(ItemId, Vec<u8>)>, StoreError> {
        let (start, queue) = {
            let state = self.inner.state();
            let after = after.filter(|id| id.generation == self.inner.generation);
            let start = after.map_or(0, |id| id.sequence).max(state.acknowledged).saturating_add(1);
            let at = state.queue.partition_point(|(sequence, _)| *sequence < start);
            (start, state.queue.range(at..).take(limit).cloned().collect::<Vec<_>>())
        };
        let mut found = Vec::new();
        let mut room = bytes;
        let mut take = |sequence: u64, item: &[u8]| {
            let fits = found.len() < limit && (found.is_empty() || item.len() <= room);
            if fits {
                room = room.saturating_sub(item.len());
                found.push((self.inner.id(sequence), item.to_vec()));
            }
            fits
        };
        match self.inner.options.durability {
            Durability::Volatile => {
                queue.iter().all(|(sequence, item)| take(*sequence, item));
            }
            Durability::Durable => {
                let name = self.inner.options.name;
                let rows = self.store.reading(|read| rows(read, name, start, limit, bytes))?;
                rows.iter().all(|(sequence, item)| take(*sequence, item));
            }
        }
        Ok(found)
    }

    /// The other end has everything up to `id`: it is not read again, except
    /// after a power cut. An id that was never given changes nothing.
    pub fn acknowledge(&self, id: ItemId) {
        let mut state = self.inner.state();
        if id.generation != self.inner.generation || id.sequence >= state.ledger.next {
            return;
        }
        let was_tidy = state.acknowledged < state.ledger.first();
        state.acknowledged = state.acknowledged.max(id.sequence);
        match self.inner.options.durability {
            Durability::Volatile => {
                while let Some((sequence, item)) = state.queue.pop_front() {
                    if sequence > id.sequence {
                        state.queue.push_front((sequence, item));
                        break;
                    }
                    state.ledger.remove(1, item.len() as u64);
                }
                if state.queue.is_empty() {
                    state.queue = VecDeque::new();
                }
            }
            Durability::Durable => {
                let waiting = state.acknowledged.saturating_add(1).saturating_sub(state.ledger.first());
                if waiting >= TIDY || (was_tidy && waiting > 0) {
                    // The first one starts the writer's clock for all that
                    // follow. A full inbox brings a commit of its own.
                    let _ = self.store.inbox.try_send(ToWriter::Tidy { now: waiting >= TIDY });
                }
            }
        }
    }

    /// How many items wait to be acknowledged.
    pub fn len(&self) -> u64 {
        let state = self.inner.state();
        state.ledger.next.saturating_sub(state.ledger.first().max(state.acknowledged.saturating_add(1)))
    }

    /// True if everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items were pushed out by newer ones since the last
    /// [`take_dropped`](Outbox::take_dropped).
    pub fn dropped(&self) -> u64 {
        let state = self.inner.state();
        state.ledger.dropped.saturating_sub(state.told)
    }

    /// The same number, which is then the owner's to report. That it was taken
    /// is durable like an acknowledgement: after a power cut the same loss may
    /// be given again.
    pub fn take_dropped(&self) -> u64 {
        let mut state = self.inner.state();
        let dropped = state.ledger.dropped.saturating_sub(state.told);
        state.told = state.ledger.dropped;
        if dropped > 0 && self.inner.options.durability == Durability::Durable {
            let _ = self.store.inbox.try_send(ToWriter::Tidy { now: false });
        }
        dropped
    }
}

/// What a group of requests does to the outboxes, seen by its own later ones.
pub(super) struct StagedBoxes<'transaction> {
    table: Table<'transaction, Row, &'static [u8]>,
    touched: BTreeMap<&'static str, (Arc<Inner>, Ledger)>,
}

impl<'transaction> StagedBoxes<'transaction> {
    pub(super) fn open(write: &'transaction WriteTransaction) -> Result<Self, Fault> {
        Ok(StagedBoxes { table: write.open_table(OUTBOXES)?, touched: BTreeMap::new() })
    }

    /// Takes what is acknowledged out of the file; true if something was.
    pub(super) fn tidy(&mut self, outbox: &Arc<Inner>) -> Result<bool, Fault> {
        let name = outbox.options.name;
        if self.touched.contains_key(name) {
            return Ok(false);
        }
        let (before, acknowledged, told) = {
            let state = outbox.state();
            (state.ledger, state.acknowledged, state.told)
        };
        let mut ledger = Ledger { told, ..before };
        let (mut items, mut bytes) = (0, 0u64);
        if acknowledged >= ledger.first() {
            self.table.retain_in((name, 1)..=(name, acknowledged), |_, envelope| {
                items += 1;
                bytes = bytes.saturating_add(body_size(envelope));
                false
            })?;
        }
        ledger.remove(items, bytes);
        self.touched.insert(name, (outbox.clone(), ledger));
        Ok(ledger != before)
    }

    /// Appends an item, after making room for it.
    pub(super) fn append(
        &mut self,
        outbox: &Arc<Inner>,
        item: &[u8],
    ) -> Result<Result<ItemId, OutboxError>, Fault> {
        self.tidy(outbox)?;
        let options = &outbox.options;
        let Some((_, ledger)) = self.touched.get_mut(options.name) else {
            return Ok(Err(StoreError::Closed.into()));
        };
        while ledger.is_full(options, size(item)) {
            if options.when_full == WhenFull::Refuse {
                return Ok(Err(OutboxError::Full(options.name)));
            }
            let oldest = match self.table.range((options.name, 1)..=(options.name, u64::MAX))?.next() {
                Some(entry) => {
                    let (row, envelope) = entry?;
                    (row.value().1, body_size(envelope.value()))
                }
                None => break,
            };
            self.table.remove((options.name, oldest.0))?;
            ledger.remove(1, oldest.1);
            ledger.dropped = ledger.dropped.saturating_add(1);
        }
        let sequence = ledger.add(size(item));
        let envelope = wrap(options.name, sequence, item);
        self.table.insert((options.name, sequence), envelope.as_slice())?;
        Ok(Ok(outbox.id(sequence)))
    }

    /// Writes the counters that changed, and gives all that was touched.
    pub(super) fn finish(mut self) -> Result<Vec<(Arc<Inner>, Ledger)>, Fault> {
        for (name, (outbox, ledger)) in &self.touched {
            if outbox.state().ledger != *ledger {
                self.table.insert((*name, LEDGER), ledger.to_bytes(name).as_slice())?;
            }
        }
        Ok(self.touched.into_values().collect())
    }
}

fn size(item: &[u8]) -> u64 {
    item.len() as u64
}

const HEAD: usize = 9;

fn body_size(envelope: &[u8]) -> u64 {
    envelope.len().saturating_sub(HEAD) as u64
}

fn wrap(name: &str, sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut envelope = Vec::with_capacity(HEAD.saturating_add(body.len()));
    envelope.push(ENVELOPE);
    envelope.extend(sum(&[name.as_bytes(), &[0], &sequence.to_be_bytes(), body]));
    envelope.extend(body);
    envelope
}

fn damaged(name: &str, sequence: u64, why: String) -> Fault {
    Fault::Damaged { at: format!("item {sequence} of the outbox {name}"), why }
}

/// The item in an envelope, after its checksum was compared.
pub(super) fn unwrap<'a>(name: &str, sequence: u64, envelope: &'a [u8]) -> Result<&'a [u8], Fault> {
    let short = || damaged(name, sequence, format!("an entry of {} bytes", envelope.len()));
    let (&version, rest) = envelope.split_first().ok_or_else(short)?;
    let (found, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    if version != ENVELOPE {
        return Err(damaged(name, sequence, format!("an entry of version {version}")));
    }
    match sum(&[name.as_bytes(), &[0], &sequence.to_be_bytes(), body]) == *found {
        true => Ok(body),
        false => Err(damaged(name, sequence, "its checksum is wrong".into())),
    }
}

fn ledger(read: &ReadTransaction, name: &str) -> Result<Ledger, Fault> {
    let table = match read.open_table(OUTBOXES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Ledger::EMPTY),
        Err(error) => return Err(error.into()),
    };
    match table.get((name, LEDGER))? {
        Some(envelope) => Ledger::from_bytes(name, envelope.value()),
        None => Ok(Ledger::EMPTY),
    }
}

type Rows = Vec<(u64, Vec<u8>)>;

fn rows(read: &ReadTransaction, name: &str, start: u64, limit: usize, bytes: usize) -> Result<Rows, Fault> {
    let mut found: Rows = Vec::new();
    let table = match read.open_table(OUTBOXES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    let mut held = 0usize;
    for entry in table.range((name, start)..=(name, u64::MAX))?.take(limit) {
        let (row, envelope) = entry?;
        let sequence = row.value().1;
        let item = unwrap(name, sequence, envelope.value())?;
        held = held.saturating_add(item.len());
        found.push((sequence, item.to_vec()));
        if held > bytes {
            break;
        }
    }
    Ok(found)
}

/// Every item of every outbox in order, checked; how many there are.
pub(super) fn verify(read: &ReadTransaction) -> Result<u64, Fault> {
    let table = match read.open_table(OUTBOXES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let (mut items, mut promised) = (0u64, 0u64);
    for entry in table.iter()? {
        let (row, envelope) = entry?;
        let (name, sequence) = row.value();
        match sequence {
            LEDGER => promised = promised.saturating_add(Ledger::from_bytes(name, envelope.value())?.items),
            _ => {
                unwrap(name, sequence, envelope.value())?;
                items = items.saturating_add(1);
            }
        }
    }
    match items == promised {
        true => Ok(items),
        false => Err(Fault::Damaged {
            at: "the table of outboxes".into(),
            why: format!("{items} of {promised} items"),
        }),
    }
}
