//! What can go wrong, for those who use the store ([`StoreError`],
//! [`WriteError`]) and inside of it ([`Fault`]).

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::SCHEMA;
use crate::object::{Key, Revision, codec::CodecError};

/// Why the store could not be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be made or opened.
    #[error("cannot use the store {path} ({why}): choose another directory with --data-dir")]
    Open {
        /// The store's file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// Another process has it open.
    #[error(
        "the store {path} is in use by another process: stop it, or give this one a --data-dir of its own"
    )]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// Written by a later release.
    #[error("the store {path} has layout {found}, this release knows up to {SCHEMA}: use the newer holm")]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// Its layout version.
        found: u32,
    },
    /// The file holds what was never written there: flipped or missing bytes,
    /// or it is no store at all. Nothing heals that by waiting.
    #[error("the store {path} is damaged at {at}: {why}")]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// Which entry or part of the file.
        at: String,
        /// What is wrong with it.
        why: String,
    },
    /// No space for a write. What was answered before is safe, and writes go
    /// on by themselves once there is space.
    #[error("the disk is full, so {path} cannot be written: free space on its file system")]
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// The disk under it failed, or the database did. The writer opens the
    /// file again by itself.
    #[error("the store {path} cannot be read or written ({why}): look at its disk")]
    Storage {
        /// The store's file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The writer thread has stopped.
    #[error("the store is closed")]
    Closed,
}

/// Why one write was not done. The store is as it was before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// [`Expect::Absent`](super::Expect::Absent), and there is one.
    #[error("{0} exists already")]
    Exists(Key),
    /// [`Expect::Present`](super::Expect::Present), and there is none.
    #[error("{0} does not exist")]
    Missing(Key),
    /// It is there at another revision, or as another object of the name.
    #[error("{key} has changed: it is at revision {found}")]
    Conflict {
        /// Which object.
        key: Key,
        /// Its revision now.
        found: Revision,
    },
    /// Larger than a stored object may be.
    #[error("{0}: {1}")]
    TooLarge(Key, CodecError),
    /// Nothing was written because the store itself failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What went wrong, before it is said which file it went wrong in.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database's own.
    Database(redb::Error),
    /// The file system's.
    Io(io::Error),
    /// An entry is not what was written.
    Damaged { at: String, why: String },
    /// Written by a later release.
    Newer(u32),
    /// The system gives no random bytes.
    NoRandom,
    /// Said already.
    Told(StoreError),
}

impl Fault {
    /// True if the database does nothing any more until it is opened again.
    pub(super) fn is_latched(&self) -> bool {
        self.is_closed() || matches!(self, Fault::Database(redb::Error::Io(_)))
    }

    /// True if the database has been closed under a reader.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Fault::Database(redb::Error::PreviousIo | redb::Error::DatabaseClosed))
    }

    /// The same as an error about the file at `path`.
    pub(super) fn at(self, path: &Path) -> StoreError {
        let path = path.to_path_buf();
        match self {
            Fault::Told(error) => error,
            Fault::Newer(found) => StoreError::Newer { path, found },
            Fault::Damaged { at, why } => StoreError::Damaged { path, at, why },
            Fault::NoRandom => StoreError::Storage { path, why: "the system gives no random bytes".into() },
            Fault::Io(error) | Fault::Database(redb::Error::Io(error)) => match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full { path },
                // What the database finds where a header or page should be.
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                    StoreError::Damaged { path, at: "the file itself".into(), why: error.to_string() }
                }
                _ => StoreError::Storage { path, why: error.to_string() },
            },
            Fault::Database(redb::Error::DatabaseAlreadyOpen) => StoreError::InUse { path },
            Fault::Database(error) => match error {
                redb::Error::Corrupted(why) => {
                    StoreError::Damaged { path, at: "the file itself".into(), why }
                }
                redb::Error::UpgradeRequired(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TableIsNotMultimap(_)
                | redb::Error::TypeDefinitionChanged { .. }
                | redb::Error::TableDoesNotExist(_) => {
                    StoreError::Damaged { path, at: "the file itself".into(), why: error.to_string() }
                }
                error => StoreError::Storage { path, why: error.to_string() },
            },
        }
    }
}

/// Lets `?` take every error of the database.
macro_rules! from_database {
    ($($error:ty)*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Fault {
                Fault::Database(error.into())
            }
        }
    )*};
}

from_database! {
    redb::StorageError redb::TableError redb::TransactionError redb::CommitError redb::DatabaseError
    redb::SetDurabilityError redb::CompactionError
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}
