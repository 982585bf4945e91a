//! Where the bytes are: a file, opened or made so that a cut at any moment
//! leaves either no store or a whole one.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Builder, Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};

use super::error::Fault;
use super::table::{self, Opened};
use super::{Options, StoreError};

/// The store's file in its directory.
pub(super) const FILE: &str = "holm.redb";

/// So many bytes must be free on a file system that was full.
const SPACE: u64 = 1 << 20;

/// Opens a database on a back end that is not a file.
type Backend = Box<dyn Fn(&Builder) -> Result<Database, redb::DatabaseError> + Send>;

/// What a database is opened on, again and again if need be.
pub(super) struct Place {
    path: PathBuf,
    cache_bytes: usize,
    backend: Option<Backend>,
}

impl Place {
    /// The store's file in `directory`.
    pub(super) fn file(directory: &Path, options: &Options) -> Place {
        Place { path: directory.join(FILE), cache_bytes: options.cache_bytes, backend: None }
    }

    /// Something else that holds bytes; `path` is for errors only.
    pub(super) fn backend(path: &Path, options: &Options, backend: Backend) -> Place {
        Place { path: path.into(), cache_bytes: options.cache_bytes, backend: Some(backend) }
    }

    /// The file, for errors and messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length in bytes; nothing if there is no file.
    pub(super) fn length(&self) -> u64 {
        match self.backend {
            Some(_) => 0,
            None => fs::metadata(&self.path).map_or(0, |metadata| metadata.len()),
        }
    }

    /// Whether the file system has space for more than a very small commit: it
    /// would be said that all is well, and the next write be refused.
    pub(super) fn has_space(&self) -> bool {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        match (&self.backend, rustix::fs::statvfs(directory)) {
            (None, Ok(found)) => {
                let total = found.f_blocks.saturating_mul(found.f_frsize);
                found.f_bavail.saturating_mul(found.f_frsize) >= SPACE.min(total / 8)
            }
            _ => true,
        }
    }

    /// Makes the system forget what it holds of the file. After a sync that
    /// failed it may hold pages for written that are not on the disk.
    pub(super) fn forget_cached(&self) {
        if self.backend.is_none()
            && let Ok(file) = File::open(&self.path)
        {
            // Only advice; a file system that does not take it keeps its pages.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }

    /// Copies a commit into a new file and moves that into the place of the
    /// old one, whose readers can go on; none if this is not a file. Nothing
    /// may be written to either before [`sync_place`](Place::sync_place).
    pub(super) fn rewrite(&self, read: &ReadTransaction) -> Result<Option<Database>, Fault> {
        if self.backend.is_some() {
            return Ok(None);
        }
        let beside = beside(&self.path);
        let write_it = || -> Result<Database, Fault> {
            let file = private(fs::OpenOptions::new().truncate(true), &beside)?;
            let mut database = self.builder().create_file(file)?;
            let write = database.begin_write()?;
            super::backup::copy(read, &write)?;
            write.commit()?;
            database.compact()?;
            fs::rename(&beside, &self.path)?;
            Ok(database)
        };
        let written = write_it();
        if written.is_err() {
            // A copy that was not finished is of no use.
            let _ = fs::remove_file(&beside);
        }
        Ok(Some(written?))
    }

    /// Makes it survive a power cut which file is in the place.
    pub(super) fn sync_place(&self) -> io::Result<()> {
        match self.backend {
            Some(_) => Ok(()),
            None => sync_directory(self.path.parent().unwrap_or(Path::new("/"))),
        }
    }

    fn builder(&self) -> Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        builder
    }

    /// Opens what was open before: a file that has gone, or is another one, is
    /// an error.
    pub(super) fn reopen(&self, generation: u64) -> Result<(Database, Opened), Fault> {
        if self.backend.is_none() && !self.path.exists() {
            return Err(io::Error::from(ErrorKind::NotFound).into());
        }
        // The last thing that failed may have been this.
        self.sync_place()?;
        let (database, opened) = self.open().map_err(Fault::Told)?;
        match opened.generation == generation {
            true => Ok((database, opened)),
            false => Err(io::Error::other("another store is in its place").into()),
        }
    }

    /// Opens what is there, or makes it.
    pub(super) fn open(&self) -> Result<(Database, Opened), StoreError> {
        guarded(|| match &self.backend {
            Some(backend) => {
                let database = backend(&self.builder())?;
                let opened = Opened::read(&database)?;
                Ok((database, opened))
            }
            None => self.open_file(),
        })
        .map_err(|fault| match fault {
            // Before there is a store, what fails is the place for it.
            Fault::Io(error) if error.kind() != ErrorKind::StorageFull => {
                StoreError::Open { path: self.path.clone(), why: error.to_string() }
            }
            fault => fault.at(&self.path),
        })
    }

    fn open_file(&self) -> Result<(Database, Opened), Fault> {
        match fs::OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => {
                if file.metadata()?.len() == 0 {
                    // The database would take it for a new one.
                    return Err(damaged("it is empty"));
                }
                let database = self.builder().create_file(file)?;
                let opened = Opened::read(&database)?;
                Ok((database, opened))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                self.make()
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the file beside its place and moves it there when it is whole: a
    /// file that was cut short while it was made would be refused for ever.
    fn make(&self) -> Result<(Database, Opened), Fault> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        make_directory(directory)?;
        let beside = beside(&self.path);
        let file = private(fs::OpenOptions::new().truncate(false), &beside)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(redb::DatabaseError::DatabaseAlreadyOpen.into()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        if self.path.exists() {
            // Another process was faster, and may still be there.
            drop(file);
            return self.open_file();
        }
        file.set_len(0)?;
        let database = self.builder().create_file(file)?;
        let opened = Opened::read(&database)?;
        fs::rename(&beside, &self.path)?;
        sync_directory(directory)?;
        Ok((database, opened))
    }
}

/// Reads all of a store's file that nobody has open, without changing it:
/// pages, entries and their checksums.
pub(super) fn verify(path: &Path) -> Result<table::Contents, StoreError> {
    guarded(|| {
        let database = ReadOnlyDatabase::open(path)?;
        let read = database.begin_read()?;
        table::check_schema(&read)?;
        table::verify(&read)
    })
    .map_err(|fault| match fault {
        Fault::Database(redb::Error::RepairAborted) => StoreError::Damaged {
            path: path.into(),
            at: "the file itself".into(),
            why: "it was not closed, so it is no backup".into(),
        },
        Fault::Database(redb::Error::Io(error)) | Fault::Io(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) =>
        {
            StoreError::Storage { path: path.into(), why: error.to_string() }
        }
        fault => fault.at(path),
    })
}

fn damaged(why: &str) -> Fault {
    Fault::Damaged { at: "the file itself".into(), why: why.into() }
}

/// Flipped bytes can make the database fail an assertion of its own: that is
/// damage as well, and must not take the process with it.
pub(super) fn guarded<T>(open: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it makes no sense");
        Err(damaged(words.lines().next().unwrap_or_default()))
    })
}

/// The name of a file that will take the place of `path`.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Opens or makes a file for this user only: it holds Secrets.
pub(super) fn private(options: &mut fs::OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.read(true).write(true).create(true).mode(0o600).open(path)?;
    // One that was left over may have another mode.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

fn make_directory(directory: &Path) -> io::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| match error.kind() {
        // The system's words would be that the file exists.
        ErrorKind::AlreadyExists => io::Error::other(format!("{} is not a directory", directory.display())),
        _ => error,
    })
}

/// Makes a rename in a directory survive a power cut.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
