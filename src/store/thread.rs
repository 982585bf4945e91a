//! The one writer: waiting requests become one commit. When the file fails
//! under it, it opens it again, and refuses meanwhile what needs it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use redb::{Database, ReadTransaction, ReadableDatabase};

use super::apply::{Outcome, Staged};
use super::error::Fault;
use super::file::{Place, guarded};
use super::outbox::{self, ItemId, OutboxError, StagedBoxes};
use super::table::{self, FACT_RESERVED, OBJECTS, REVISION_BLOCK, set_fact};
use super::{Action, Durability, Shared, StoreError, Trouble, Write, WriteError, watch};
use crate::object::{Key, Revision, now_rfc3339};

/// The writer's inbox. Senders wait while it is full.
pub(super) enum ToWriter {
    Write {
        writes: Vec<Write>,
        reply: Sender<Result<Vec<Outcome>, StoreError>>,
    },
    Fact {
        name: &'static str,
        value: Vec<u8>,
        reply: Sender<Result<(), StoreError>>,
    },
    Append {
        outbox: Arc<outbox::Inner>,
        item: Vec<u8>,
        reply: Sender<Result<ItemId, OutboxError>>,
    },
    /// Something in an outbox is to be taken out of the file: with the next
    /// commit, or now.
    Tidy {
        now: bool,
    },
}

/// Requests that wait for the writer at most; more wait in their senders.
const INBOX: usize = 256;
/// Requests taken into one commit at most, so that the first of a storm is
/// not answered last.
const GROUP: usize = 128;
/// How often it is looked whether an old file is still read.
const RETIRED: Duration = Duration::from_secs(1);

pub(super) fn spawn(
    place: Place,
    database: Database,
    shared: Arc<Shared>,
    reserved: Revision,
) -> io::Result<Sender<ToWriter>> {
    let (sender, inbox) = async_channel::bounded(INBOX);
    let writer = Writer {
        length: place.length(),
        place,
        database: Some(database),
        retired: Vec::new(),
        shared,
        last: reserved,
        reserved,
        attempted: reserved,
        witness: None,
        refusal: None,
        untidy: None,
        changed: Some(Instant::now()),
        looked: None,
    };
    std::thread::Builder::new().name("store".into()).spawn(move || writer.run(&inbox))?;
    Ok(sender)
}

struct Writer {
    place: Place,
    /// None while the file cannot be opened.
    database: Option<Database>,
    /// Files that were replaced by a smaller one, for as long as they are read.
    retired: Vec<(Database, Arc<ReadTransaction>)>,
    shared: Arc<Shared>,
    /// The last revision given, published or not.
    last: Revision,
    /// The last revision that the file says may have been given.
    reserved: Revision,
    /// The last revision that a commit may have given of which nobody knows
    /// whether it was done.
    attempted: Revision,
    /// One durable change of that commit.
    witness: Option<(Key, Revision, bool)>,
    refusal: Option<Refusal>,
    /// Since when something waits to be taken out of an outbox.
    untidy: Option<Instant>,
    /// When the file last changed, if it was not looked at since.
    changed: Option<Instant>,
    /// When it was last looked whether the file has become too large.
    looked: Option<Instant>,
    length: u64,
}

/// Why writes are refused, and when the next try is.
struct Refusal {
    error: StoreError,
    until: Instant,
    pause: Duration,
}

/// What a request is answered with.
enum Answer {
    Writes(Vec<Outcome>),
    Item(Result<ItemId, OutboxError>),
    Done,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<ToWriter>) {
        loop {
            match self.receive(inbox) {
                Received::Request(first) => {
                    let mut group = vec![first];
                    while group.len() < GROUP
                        && let Ok(next) = inbox.try_recv()
                    {
                        group.push(next);
                    }
                    self.serve(group);
                }
                Received::Nothing => {}
                Received::Closed => break,
            }
            self.tend(Instant::now());
        }
        if self.refusal.is_none() && self.shared.outboxes().values().any(|outbox| outbox.is_untidy()) {
            self.serve(vec![ToWriter::Tidy { now: true }]);
        }
    }

    fn receive(&self, inbox: &Receiver<ToWriter>) -> Received {
        let Some(due) = self.due() else {
            return inbox.recv_blocking().map_or(Received::Closed, Received::Request);
        };
        let request = async { inbox.recv().await.map_or(Received::Closed, Received::Request) };
        let timer = async {
            smol::Timer::at(due).await;
            Received::Nothing
        };
        smol::block_on(futures_lite::future::or(request, timer))
    }

    /// When there is something to do without a request.
    fn due(&self) -> Option<Instant> {
        let pace = &self.shared.options.pace;
        let retired = (!self.retired.is_empty()).then(|| after(Instant::now(), RETIRED));
        let due = match &self.refusal {
            Some(refusal) => Some(refusal.until),
            None => {
                let tidy = self.untidy.map(|since| after(since, pace.tidy));
                tidy.into_iter().chain(self.look_due()).min()
            }
        };
        due.into_iter().chain(retired).min()
    }

    /// When it is worth looking whether the file can be made smaller.
    fn look_due(&self) -> Option<Instant> {
        let pace = &self.shared.options.pace;
        let idle = after(self.changed?, pace.compact_idle);
        let again = self.looked.map(|looked| after(looked, pace.compact_every));
        (self.length >= pace.compact_bytes).then(|| again.map_or(idle, |again| again.max(idle)))
    }

    /// Does what is due.
    fn tend(&mut self, now: Instant) {
        self.retired.retain(|(_, read)| Arc::strong_count(read) > 1);
        if self.refusal.as_ref().is_some_and(|refusal| refusal.until <= now) {
            self.recover();
        }
        if self.refusal.is_some() {
            return;
        }
        if self.untidy.is_some_and(|since| after(since, self.shared.options.pace.tidy) <= now) {
            self.untidy = None;
            self.serve(vec![ToWriter::Tidy { now: true }]);
        }
        if self.look_due().is_some_and(|due| due <= now) {
            (self.looked, self.changed) = (Some(now), None);
            if let Err(fault) = guarded(|| self.shrink()) {
                log::warn!("the store is not made smaller: {}", fault.at(self.place.path()));
            }
        }
    }

    /// Commits a group and answers each of its requests.
    fn serve(&mut self, group: Vec<ToWriter>) {
        if self.refusal.as_ref().is_some_and(|refusal| refusal.until <= Instant::now()) {
            self.recover();
        }
        let (group, refused) = match &self.refusal {
            None => (group, Vec::new()),
            Some(_) => group.into_iter().partition(|request| !needs_the_disk(request)),
        };
        if let Some(refusal) = &self.refusal {
            refused.into_iter().for_each(|request| request.refuse(&refusal.error));
        }
        if group.is_empty() {
            return;
        }
        let before = self.last;
        match guarded(|| self.commit(&group)) {
            Ok(answers) => {
                group.into_iter().zip(answers).for_each(|(request, answer)| request.answer(answer));
            }
            Err(fault) => {
                self.last = before;
                let error = match fault {
                    Fault::Told(error) => error,
                    fault => self.fail(fault),
                };
                group.into_iter().for_each(|request| request.refuse(&error));
            }
        }
    }

    fn commit(&mut self, group: &[ToWriter]) -> Result<Vec<Answer>, Fault> {
        let Some(database) = &self.database else { return Err(self.refused()) };
        let transaction = database.begin_write()?;
        let shared = self.shared.clone();
        let mut staged = Staged::after(&shared, self.last);
        let mut answers = Vec::with_capacity(group.len());
        let boxes = {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut boxes = None;
            for request in group {
                answers.push(match request {
                    ToWriter::Write { writes, .. } => {
                        let mut each = Vec::with_capacity(writes.len());
                        for write in writes {
                            each.push(match staged.apply(write, &mut objects) {
                                // One entry is damaged, not the file.
                                Err(fault @ Fault::Damaged { .. }) => {
                                    Err(WriteError::Store(fault.at(self.place.path())))
                                }
                                // The whole group fails with the store.
                                outcome => outcome?,
                            });
                        }
                        Answer::Writes(each)
                    }
                    ToWriter::Fact { name, value, .. } => {
                        if set_fact(&transaction, name, value)? {
                            staged.cause(format!("fact {name}"));
                        }
                        Answer::Done
                    }
                    ToWriter::Append { outbox, item, .. } => {
                        let boxes = open(&mut boxes, &transaction)?;
                        let appended = boxes.append(outbox, item)?;
                        if appended.is_ok() {
                            staged.cause(format!("outbox {}", outbox.options.name));
                        }
                        Answer::Item(appended)
                    }
                    ToWriter::Tidy { now } => {
                        if !now {
                            self.untidy.get_or_insert_with(Instant::now);
                        }
                        for outbox in shared.outboxes().values().filter(|outbox| *now && outbox.is_untidy()) {
                            if open(&mut boxes, &transaction)?.tidy(outbox)? {
                                staged.cause(format!("outbox {}", outbox.options.name));
                            }
                        }
                        Answer::Done
                    }
                });
            }
            if staged.last > self.reserved {
                staged.cause("revisions".into());
            }
            // What is acknowledged rides on a commit that is made anyway.
            if !staged.causes.is_empty() {
                for outbox in shared.outboxes().values().filter(|outbox| outbox.is_untidy()) {
                    open(&mut boxes, &transaction)?.tidy(outbox)?;
                }
            }
            match boxes {
                Some(boxes) => boxes.finish()?,
                None => Vec::new(),
            }
        };
        if staged.causes.is_empty() {
            transaction.abort()?;
        } else {
            if self.refusal.is_some() {
                transaction.abort()?;
                return Err(self.refused());
            }
            if staged.last > self.reserved {
                let reserved = Revision(staged.last.0.saturating_add(REVISION_BLOCK));
                set_fact(&transaction, FACT_RESERVED, &reserved.0.to_be_bytes())?;
                self.reserved = reserved;
            }
            self.witness = staged.witness();
            self.attempted = staged.last;
            transaction.commit()?;
            self.witness = None;
            self.untidy = None;
            self.changed = Some(Instant::now());
            self.length = self.place.length();
            boxes.into_iter().for_each(|(outbox, ledger)| outbox.committed(ledger));
        }
        self.last = staged.last;
        self.publish(staged)?;
        Ok(answers)
    }

    /// Makes a committed group visible, all of it at once.
    fn publish(&self, staged: Staged<'_>) -> Result<(), Fault> {
        let read = match (&self.database, staged.causes.is_empty()) {
            (Some(database), false) => Some(Arc::new(database.begin_read()?)),
            _ => None,
        };
        let mut published = self.shared.published();
        if let Some(read) = read {
            published.read = read;
            published.commits = published.commits.wrapping_add(1);
        }
        for cause in staged.causes {
            let count = published.causes.entry(cause).or_default();
            *count = count.wrapping_add(1);
        }
        for (key, object) in staged.volatile {
            match object {
                Some(object) => published.volatile.insert(key, object),
                None => published.volatile.remove(&key),
            };
        }
        published.revision = self.last;
        for change in staged.changes {
            let weight = watch::weight(&change);
            published.watchers.retain(|watcher| watcher.tell(&change, weight));
            published.history.push(change, weight, &self.shared.options);
        }
        Ok(())
    }

    fn refused(&self) -> Fault {
        Fault::Told(self.refusal.as_ref().map_or(StoreError::Closed, |refusal| refusal.error.clone()))
    }

    /// The file has failed: from now on what needs it is refused, until it
    /// could be written again.
    fn fail(&mut self, fault: Fault) -> StoreError {
        let error = fault.at(self.place.path());
        let (shortest, longest) = self.shared.options.pace.retry;
        let pause = match &self.refusal {
            Some(refusal) => refusal.pause.saturating_mul(2).min(longest),
            None => {
                log::error!("{error}");
                shortest
            }
        };
        self.refusal = Some(Refusal { error: error.clone(), until: after(Instant::now(), pause), pause });
        {
            let mut published = self.shared.published();
            let since = published.trouble.take().map_or_else(now_rfc3339, |trouble| trouble.since);
            published.trouble = Some(Trouble { since, error: error.clone() });
        }
        // After an error the database does nothing any more, not even read.
        if let Err(fault) = guarded(|| self.reopen()) {
            log::error!("it cannot be opened again: {}", fault.at(self.place.path()));
        }
        error
    }

    /// Tries whether the file can be written again: with a block of revisions
    /// of its own, so that none is given twice.
    fn recover(&mut self) {
        let longest = self.shared.options.pace.retry.1;
        if let Some(refusal) = &mut self.refusal
            && matches!(refusal.error, StoreError::Full { .. })
            && !self.place.has_space()
        {
            refusal.pause = refusal.pause.saturating_mul(2).min(longest);
            refusal.until = after(Instant::now(), refusal.pause);
            return;
        }
        let tried = guarded(|| {
            if self.database.is_none() {
                self.reopen()?;
            }
            let Some(database) = &self.database else { return Ok(()) };
            let transaction = database.begin_write()?;
            let reserved = Revision(self.last.max(self.reserved).0.saturating_add(REVISION_BLOCK));
            set_fact(&transaction, FACT_RESERVED, &reserved.0.to_be_bytes())?;
            transaction.commit()?;
            let read = Arc::new(database.begin_read()?);
            self.reserved = reserved;
            let mut published = self.shared.published();
            published.read = read;
            published.commits = published.commits.wrapping_add(1);
            let count = published.causes.entry("recovery".into()).or_default();
            *count = count.wrapping_add(1);
            published.trouble = None;
            Ok(())
        });
        match tried {
            Ok(()) => {
                log::info!("the store {} can be written again", self.place.path().display());
                self.refusal = None;
            }
            Err(fault) => {
                self.fail(fault);
            }
        }
    }

    /// Opens the file again, in place.
    fn reopen(&mut self) -> Result<(), Fault> {
        // It holds the lock on the file.
        self.database = None;
        self.place.forget_cached();
        let (database, opened) = self.place.reopen(self.shared.generation)?;
        let read = Arc::new(database.begin_read()?);
        for outbox in self.shared.outboxes().values() {
            outbox.reload(&read)?;
        }
        // Whether the commit that failed was done shows only now.
        let witness = self.witness.take();
        let was_done = match &witness {
            None => false,
            Some((key, revision, removed)) => match table::get(&read, key) {
                Ok(Some(object)) => !removed && object.revision == *revision,
                Ok(None) => *removed,
                Err(_) => true,
            },
        };
        self.reserved = opened.reserved;
        // Its revisions may be in the file.
        self.last = self.last.max(self.attempted);
        let mut published = self.shared.published();
        published.read = read;
        if was_done {
            // Those who were told that nothing happened must look again.
            published.watchers.clear();
            published.revision = self.last;
            published.history = watch::History::starting_at(self.last);
        }
        drop(published);
        self.database = Some(database);
        Ok(())
    }

    /// Writes a smaller file and moves it into the place of this one, if most
    /// of this one is free. Readers go on with the old one until they are done.
    fn shrink(&mut self) -> Result<(), Fault> {
        let Some(database) = &self.database else { return Ok(()) };
        let transaction = database.begin_write()?;
        let stats = transaction.stats()?;
        transaction.abort()?;
        // Pages that are no longer used count as allocated while somebody may
        // read them; a page of a tree is about two thirds full.
        let used = stats.stored_bytes().saturating_add(stats.stored_bytes() / 2);
        if used >= self.length / 2 {
            return Ok(());
        }
        let old = self.shared.published().read.clone();
        let Some(smaller) = self.place.rewrite(&old)? else { return Ok(()) };
        if let Err(error) = self.place.sync_place() {
            drop(smaller);
            self.fail(error.into());
            return Ok(());
        }
        let read = Arc::new(smaller.begin_read()?);
        self.shared.published().read = read;
        self.retired.extend(self.database.replace(smaller).map(|database| (database, old)));
        let before = std::mem::replace(&mut self.length, self.place.length());
        log::info!("the store is smaller now: {} of {before} bytes", self.length);
        Ok(())
    }
}

enum Received {
    Request(ToWriter),
    Nothing,
    Closed,
}

fn open<'a, 'transaction>(
    boxes: &'a mut Option<StagedBoxes<'transaction>>,
    transaction: &'transaction redb::WriteTransaction,
) -> Result<&'a mut StagedBoxes<'transaction>, Fault> {
    match boxes {
        Some(boxes) => Ok(boxes),
        None => Ok(boxes.insert(StagedBoxes::open(transaction)?)),
    }
}

/// A time far away if it cannot be reckoned.
fn after(start: Instant, pause: Duration) -> Instant {
    start.checked_add(pause).unwrap_or(start)
}

/// False if a request can be done in memory.
fn needs_the_disk(request: &ToWriter) -> bool {
    match request {
        ToWriter::Write { writes, .. } => writes
            .iter()
            .any(|write| !matches!(write.action, Action::Put { durability: Durability::Volatile, .. })),
        ToWriter::Fact { .. } | ToWriter::Append { .. } => true,
        ToWriter::Tidy { now } => *now,
    }
}

impl ToWriter {
    /// Answers; a requester that has gone needs none.
    fn answer(self, answer: Answer) {
        match (self, answer) {
            (ToWriter::Write { reply, .. }, Answer::Writes(outcomes)) => {
                let _ = reply.try_send(Ok(outcomes));
            }
            (ToWriter::Append { reply, .. }, Answer::Item(item)) => {
                let _ = reply.try_send(item);
            }
            (ToWriter::Fact { reply, .. }, _) => {
                let _ = reply.try_send(Ok(()));
            }
            _ => {}
        }
    }

    fn refuse(self, error: &StoreError) {
        match self {
            ToWriter::Write { reply, .. } => {
                let _ = reply.try_send(Err(error.clone()));
            }
            ToWriter::Fact { reply, .. } => {
                let _ = reply.try_send(Err(error.clone()));
            }
            ToWriter::Append { reply, .. } => {
                let _ = reply.try_send(Err(error.clone().into()));
            }
            ToWriter::Tidy { .. } => {}
        }
    }
}
