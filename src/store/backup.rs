//! Copies of a store, and looking through one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use redb::{Database, ReadTransaction, ReadableTable, WriteTransaction};

use super::error::Fault;
use super::file::{beside, private, sync_directory};
use super::outbox::OUTBOXES;
use super::table::{self, Contents, FACT_COPY, FACTS, OBJECTS};
use super::{Store, StoreError};

/// Entries that are held in memory at a time while they are copied.
const CACHE_BYTES: usize = 1 << 20;

impl Store {
    /// Reads every entry of the last commit and compares its checksum; the
    /// first one that is damaged is the error. Blocks for as long as reading
    /// the file takes.
    pub fn verify(&self) -> Result<Contents, StoreError> {
        self.reading(table::verify)
    }

    /// Looks through a store's file that nobody has open, and does not change
    /// it: a backup before it is restored.
    pub fn verify_file(path: &Path) -> Result<Contents, StoreError> {
        super::file::verify(path)
    }

    /// Copies all objects, facts and durable outboxes as of one moment into a
    /// file at `to`, which only this user may read; what was there is
    /// replaced once the copy is whole and on the disk. Writes go on
    /// meanwhile. Blocks for as long as reading and writing all of it takes:
    /// call it from a thread of its own.
    ///
    /// The copy can be put where a store's file belongs. It then becomes a
    /// store of its own: with another [`generation`](Store::generation), and
    /// revisions that the original will not have given.
    ///
    /// [`StoreError::Damaged`] with this store's path if an entry of it is
    /// damaged, any other error is about `to`.
    pub fn backup(&self, to: &Path) -> Result<Contents, StoreError> {
        let same = |file: &Path| fs::metadata(file).map(|found| (found.dev(), found.ino())).ok();
        if same(to).is_some_and(|found| same(self.path()) == Some(found)) {
            let why = "it is the store itself".into();
            return Err(StoreError::Storage { path: to.into(), why });
        }
        let read = self.read();
        let contents = table::verify(&read).map_err(|fault| fault.at(self.path()))?;
        let copied = write_copy(&read, &contents, to);
        copied.map_err(|fault| {
            // A copy that was not finished is of no use.
            let _ = fs::remove_file(beside(to));
            fault.at(to)
        })?;
        Ok(contents)
    }
}

fn write_copy(read: &ReadTransaction, contents: &Contents, to: &Path) -> Result<(), Fault> {
    let beside = beside(to);
    let _ = fs::remove_file(&beside);
    let file = private(fs::OpenOptions::new().create_new(true), &beside)?;
    let synced = file.try_clone()?;
    let mut database = Database::builder().set_cache_size(CACHE_BYTES).create_file(file)?;
    let write = database.begin_write()?;
    copy(read, &write)?;
    table::set_fact(&write, FACT_COPY, &contents.to_bytes())?;
    write.commit()?;
    // A new file has room for growth that a copy does not need.
    database.compact()?;
    drop(database);
    synced.sync_all()?;
    fs::rename(&beside, to)?;
    match to.parent() {
        Some(directory) if directory.as_os_str().is_empty() => sync_directory(Path::new("."))?,
        Some(directory) => sync_directory(directory)?,
        None => {}
    }
    Ok(())
}

/// Copies all tables, entry by entry.
pub(super) fn copy(read: &ReadTransaction, write: &WriteTransaction) -> Result<(), Fault> {
    let from = read.open_table(OBJECTS)?;
    let mut to = write.open_table(OBJECTS)?;
    for entry in from.iter()? {
        let (key, value) = entry?;
        to.insert(key.value(), value.value())?;
    }
    let from = read.open_table(FACTS)?;
    let mut to = write.open_table(FACTS)?;
    for entry in from.iter()? {
        let (key, value) = entry?;
        to.insert(key.value(), value.value())?;
    }
    let from = match read.open_table(OUTBOXES) {
        Ok(from) => from,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut to = write.open_table(OUTBOXES)?;
    for entry in from.iter()? {
        let (key, value) = entry?;
        to.insert(key.value(), value.value())?;
    }
    Ok(())
}
