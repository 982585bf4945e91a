//! Putting a backup in the place of a cloud's store (`holm cloud restore`).
//!
//! A power cut at any moment leaves the old store or the new one: the new one
//! is made beside it, looked through, and renamed over it. What was there
//! keeps a second name.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::absence;
use crate::apiserver::backup::BEGUN;
use crate::object::{Key, Kind, Origin};
use crate::store::{self, Action, Contents, Durability, Expect, Scope, Store, StoreError, Write, WriteError};
use crate::trust::record::{NAMESPACE, SECRET_TYPE};

/// The store's file in the data directory.
const FILE: &str = "holm.redb";
/// Where the backup becomes a store, in the data directory.
const STAGING: &str = "restoring";
/// Old stores that are kept at most; the person removes them.
const KEPT: usize = 100;

/// Why a backup was not restored. The store is then as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup cannot be read.
    #[error("cannot read the backup {path} ({why}): check the path")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The backup is not what was written.
    #[error("{path} is no backup that can be restored ({why}): nothing was changed; choose another")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is a store, and no cloud's.
    #[error("{path} holds no cloud's store (it lacks {lacks}): nothing was changed; choose another")]
    NoCloud {
        /// The file.
        path: PathBuf,
        /// What a cloud's has.
        lacks: Key,
    },
    /// A cloud has the store open.
    #[error("a cloud runs with its data in {0}: stop it first")]
    Running(PathBuf),
    /// The data directory cannot be used.
    #[error("cannot restore into {path} ({why}): nothing was changed; see that the directory can be written")]
    Directory {
        /// Which file or directory.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The new store cannot be made.
    #[error("{0}: nothing was changed")]
    Store(#[from] StoreError),
}

impl From<WriteError> for RestoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => RestoreError::Store(error),
            other => RestoreError::Directory { path: STAGING.into(), why: other.to_string() },
        }
    }
}

/// What was done.
#[derive(Debug)]
pub struct Restored {
    /// How much the new store holds.
    pub contents: Contents,
    /// Where the store that was there is now, if there was one.
    pub replaced: Option<PathBuf>,
}

/// Puts the backup in the place of the store in `data_dir`.
///
/// The new store says of itself that it was restored ([`absence`]), and has no
/// join codes: some may have been used since.
pub fn restore(data_dir: &Path, backup: &Path) -> Result<Restored, RestoreError> {
    if let Err(error) = File::open(backup) {
        return Err(RestoreError::Unreadable { path: backup.into(), why: error.to_string() });
    }
    let damaged = |why: String| RestoreError::Damaged { path: backup.into(), why };
    Store::verify_file(backup).map_err(|error| match error {
        StoreError::Damaged { at, why, .. } => damaged(format!("damaged at {at}: {why}")),
        StoreError::Newer { .. } => damaged("a later release of holm wrote it: use that".into()),
        StoreError::Storage { why, .. } | StoreError::Open { why, .. } => damaged(why),
        other => other.into(),
    })?;
    let directory = |path: &Path| {
        let path = path.to_path_buf();
        move |error: io::Error| RestoreError::Directory { path, why: error.to_string() }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(directory(data_dir))?;
    let (own, made) = (data_dir.join(FILE), data_dir.join("holm.redb.restored"));
    let _lock = lock(data_dir, &own)?;
    let staging = data_dir.join(STAGING);
    let outcome = stage(&staging, backup, &made);
    // It holds the authority's key.
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(directory(&staging)(error)),
        _ => {}
    }
    let contents = outcome?;
    let replaced = keep(&own)?;
    fs::rename(&made, &own).map_err(directory(&own))?;
    File::open(data_dir).and_then(|opened| opened.sync_all()).map_err(directory(data_dir))?;
    Ok(Restored { contents, replaced })
}

/// Keeps every cloud out for as long as the lock is held.
fn lock(data_dir: &Path, own: &Path) -> Result<Option<File>, RestoreError> {
    let failed = |error: io::Error| RestoreError::Directory { path: own.into(), why: error.to_string() };
    let file = match File::open(own) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(RestoreError::Running(data_dir.into())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Makes the new store, whole and on the disk, at `made`.
fn stage(staging: &Path, backup: &Path, made: &Path) -> Result<Contents, RestoreError> {
    let failed = |error: io::Error| RestoreError::Directory { path: staging.into(), why: error.to_string() };
    let copy = staging.join(FILE);
    if staging.exists() {
        fs::remove_dir_all(staging).map_err(failed)?;
    }
    fs::DirBuilder::new().mode(0o700).create(staging).map_err(failed)?;
    fs::copy(backup, &copy).map_err(failed)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let store = Store::open(staging, store::Options { verify: true, ..Default::default() })?;
    for lacks in [Key::core("namespaces", "", "kube-system"), Key::core("secrets", NAMESPACE, "holm-ca")] {
        let Ok(lacks) = lacks else { continue };
        if store.get(&lacks)?.is_none() {
            return Err(RestoreError::NoCloud { path: backup.into(), lacks });
        }
    }
    let mut writes: Vec<Write> = join_codes(&store)?
        .into_iter()
        .map(|key| Write { key, expect: Expect::Anything, action: Action::Delete })
        .collect();
    let begun = store.fact(BEGUN)?.and_then(|made| String::from_utf8(made).ok());
    let value = absence::restored(jiff::Timestamp::now(), begun.as_deref());
    let action = Action::Put { value, origin: Origin::Local, durability: Durability::Durable };
    writes.push(Write { key: absence::restored_key(), expect: Expect::Anything, action });
    for outcome in smol::block_on(store.write_all(writes))? {
        outcome?;
    }
    // A copy begins, when it is first opened, with a generation of its own and
    // revisions that no other store has given.
    Ok(store.backup(made)?)
}

fn join_codes(store: &Store) -> Result<Vec<Key>, StoreError> {
    let scope = Scope { kind: Kind::new("", "secrets"), namespace: Some(NAMESPACE.into()), name: None };
    let is_code = |value: &Value| value.get("type").and_then(Value::as_str) == Some(SECRET_TYPE);
    let secrets = store.list(&scope, None, None)?.objects;
    Ok(secrets.iter().filter(|secret| is_code(&secret.value)).map(|secret| secret.key.clone()).collect())
}

/// Gives the store that is there a second name.
fn keep(own: &Path) -> Result<Option<PathBuf>, RestoreError> {
    for number in 1..=KEPT {
        let kept = own.with_extension(format!("redb.replaced-{number}"));
        let outcome = match fs::hard_link(own, &kept) {
            // A file system without links.
            Err(error) if !kept.exists() && own.exists() && error.kind() != ErrorKind::StorageFull => {
                fs::copy(own, &kept).map(|_| ())
            }
            outcome => outcome,
        };
        match outcome {
            Ok(()) => return Ok(Some(kept)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RestoreError::Directory { path: kept, why: error.to_string() }),
        }
    }
    let why = format!("{KEPT} replaced stores are kept there already: remove some");
    Err(RestoreError::Directory { path: own.into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Revision;
    use serde_json::json;

    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("holm-{test}-{}", crate::object::Uid::random()));
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn put(store: &Store, key: Key, rest: Value) {
        let mut value = json!({"metadata": {"name": key.name, "uid": key.name}});
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let action = Action::Put { value, origin: Origin::Local, durability: Durability::Durable };
        smol::block_on(store.write(Write { key, expect: Expect::Anything, action })).unwrap();
    }

    /// A store as a cloud has it, and its last revision.
    fn cloud(data_dir: &Path) -> Store {
        let store = Store::open(data_dir, store::Options::default()).unwrap();
        put(&store, Key::core("namespaces", "", "kube-system").unwrap(), json!({}));
        put(&store, Key::core("secrets", NAMESPACE, "holm-ca").unwrap(), json!({}));
        put(&store, Key::core("secrets", NAMESPACE, "code").unwrap(), json!({"type": SECRET_TYPE}));
        store
    }

    /// Waits until whoever had the store open has closed it.
    fn closed(data_dir: &Path) {
        while lock(data_dir, &data_dir.join(FILE)).is_err() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_restored_store_is_the_backup_and_says_so() {
        let folder = folder("restored");
        let (data, file) = (folder.join("data"), folder.join("backup"));
        let later = Key::core("configmaps", "default", "later").unwrap();
        let (generation, revision) = {
            let store = cloud(&data);
            crate::apiserver::backup::copy_into(&store, &file).unwrap();
            put(&store, later.clone(), json!({}));
            assert!(matches!(restore(&data, &file), Err(RestoreError::Running(_))));
            (store.generation(), store.revision())
        };
        closed(&data);
        let kept = restore(&data, &file).unwrap().replaced.unwrap();
        assert!(Store::verify_file(&kept).is_ok());
        let store = Store::open(&data, store::Options::default()).unwrap();
        assert_ne!(store.generation(), generation);
        assert!(store.revision() > Revision(revision.0 + (1 << 32)), "{:?}", store.revision());
        assert!(store.get(&later).unwrap().is_none());
        assert!(store.get(&Key::core("secrets", NAMESPACE, "holm-ca").unwrap()).unwrap().is_some());
        assert!(store.get(&Key::core("secrets", NAMESPACE, "code").unwrap()).unwrap().is_none());
        let mark = store.get(&absence::restored_key()).unwrap().unwrap();
        assert!(absence::issued_since(&mark.value, crate::trust::UnixTime::now()));
        let names: Vec<String> = fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != FILE && name != "holm.redb.replaced-1")
            .collect();
        assert_eq!(names, [] as [&str; 0]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_whole_backup_changes_nothing() {
        let folder = folder("no-backup");
        let (data, file) = (folder.join("data"), folder.join("backup"));
        cloud(&data).backup(&file).unwrap();
        closed(&data);
        let before = fs::read(data.join(FILE)).unwrap();
        let whole = fs::read(&file).unwrap();
        let bad = folder.join("bad");
        let mut flipped = whole.clone();
        let at = whole.windows(4).position(|bytes| bytes == b"code").unwrap();
        flipped[at] ^= 1;
        for bytes in [vec![], whole[..whole.len() / 2].to_vec(), vec![0; whole.len()], flipped] {
            fs::write(&bad, bytes).unwrap();
            let refused = restore(&data, &bad).unwrap_err();
            assert!(matches!(refused, RestoreError::Damaged { .. }), "{refused}");
        }
        assert!(matches!(restore(&data, &folder.join("none")), Err(RestoreError::Unreadable { .. })));
        // A board's store is whole, and no cloud's.
        Store::open(&folder.join("board"), store::Options::default()).unwrap().backup(&bad).unwrap();
        let refused = restore(&data, &bad).unwrap_err();
        assert!(matches!(refused, RestoreError::NoCloud { .. }), "{refused}");
        assert!(fs::read(data.join(FILE)).unwrap() == before);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
