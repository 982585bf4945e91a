//! What the file looks like.
//!
//! `facts`: name → bytes: layout version, generation, reserved revisions, and
//! what other modules keep about the store as a whole.
//! `objects`: (group, resource, namespace, name) → an envelope:
//!
//! ```text
//! 0      version of the envelope (1)
//! 1      origin
//! 2..10  revision, big endian
//! 10..18 first bytes of the SHA-256 of key, origin, revision and body
//! 18..   body: the object in CBOR (object::codec)
//! ```

use std::fs;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
};
use ring::digest::{Context, SHA256};

use super::{SCHEMA, Scope, StoreError, in_range};
use crate::object::{Key, Object, Origin, Revision, Uid, codec, meta_str};

/// A key as redb orders it, which is how [`Key`] orders too.
type Row = (&'static str, &'static str, &'static str, &'static str);

pub(super) const OBJECTS: TableDefinition<'static, Row, &'static [u8]> = TableDefinition::new("objects");
pub(super) const FACTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("facts");

const FACT_SCHEMA: &str = "store/schema";
const FACT_GENERATION: &str = "store/generation";
pub(super) const FACT_RESERVED: &str = "store/reserved-revision";

/// Revisions are reserved this many at a time, so that counting them costs no
/// writes and a restart never gives one twice.
pub(super) const REVISION_BLOCK: u64 = 4096;

const ENVELOPE: u8 = 1;
const HEAD: usize = 18;

/// Any error of the database, as ours.
pub(super) fn storage(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Storage(error.into().to_string())
}

/// Opens or makes the file, readable by this user only: it holds Secrets.
pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    let refuse = |why: String| StoreError::Open { path: path.into(), why };
    let io = |error: io::Error| refuse(error.to_string());
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| match error.kind() {
            // The system's words would be that the file exists.
            io::ErrorKind::AlreadyExists => refuse(format!("{} is not a directory", directory.display())),
            _ => io(error),
        })?;
    }
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    match Database::builder().set_cache_size(cache_bytes).create(path) {
        Ok(database) => Ok(database),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse { path: path.into() }),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// What the file says of itself.
pub(super) struct Opened {
    pub(super) generation: u64,
    /// No revision above this one was ever given.
    pub(super) reserved: Revision,
}

impl Opened {
    /// Reads the file's facts, or writes the first ones.
    pub(super) fn read(database: &Database, path: &Path) -> Result<Opened, StoreError> {
        let read = database.begin_read().map_err(storage)?;
        if let Some(schema) = fact(&read, FACT_SCHEMA)? {
            let found = number(FACT_SCHEMA, &schema)?;
            if found > u64::from(SCHEMA) {
                return Err(StoreError::Newer {
                    path: path.into(),
                    found: u32::try_from(found).unwrap_or(u32::MAX),
                });
            }
            let generation = fact(&read, FACT_GENERATION)?.unwrap_or_default();
            let reserved = fact(&read, FACT_RESERVED)?.unwrap_or_default();
            return Ok(Opened {
                generation: number(FACT_GENERATION, &generation)?,
                reserved: Revision(number(FACT_RESERVED, &reserved)?),
            });
        }
        drop(read);
        let mut random = [0; 8];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
            .map_err(|_| StoreError::Storage("the system gives no random bytes".into()))?;
        // Zero is for "no store" in frames.
        let opened = Opened { generation: u64::from_be_bytes(random) | 1, reserved: Revision(0) };
        let mut write = database.begin_write().map_err(storage)?;
        write.set_durability(Durability::Immediate).map_err(storage)?;
        {
            let mut facts = write.open_table(FACTS).map_err(storage)?;
            for (name, value) in [
                (FACT_SCHEMA, u64::from(SCHEMA)),
                (FACT_GENERATION, opened.generation),
                (FACT_RESERVED, opened.reserved.0),
            ] {
                facts.insert(name, value.to_be_bytes().as_slice()).map_err(storage)?;
            }
            write.open_table(OBJECTS).map_err(storage)?;
        }
        write.commit().map_err(storage)?;
        Ok(opened)
    }
}

fn number(name: &str, bytes: &[u8]) -> Result<u64, StoreError> {
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| StoreError::Damaged {
        at: name.into(),
        why: format!("{} bytes where 8 belong", bytes.len()),
    })?;
    Ok(u64::from_be_bytes(bytes))
}

pub(super) fn fact(read: &ReadTransaction, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match read.open_table(FACTS) {
        Ok(facts) => Ok(facts.get(name).map_err(storage)?.map(|guard| guard.value().to_vec())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(storage(error)),
    }
}

pub(super) fn row(key: &Key) -> (&str, &str, &str, &str) {
    (&key.group, &key.resource, &key.namespace, &key.name)
}

fn key(row: (&str, &str, &str, &str)) -> Key {
    Key { group: row.0.into(), resource: row.1.into(), namespace: row.2.into(), name: row.3.into() }
}

/// One object from the last commit.
pub(super) fn get(read: &ReadTransaction, key: &Key) -> Result<Option<Arc<Object>>, StoreError> {
    let objects = read.open_table(OBJECTS).map_err(storage)?;
    get_in(&objects, key)
}

/// One object from an open table, committed or not.
pub(super) fn get_in(
    objects: &impl ReadableTable<Row, &'static [u8]>,
    key: &Key,
) -> Result<Option<Arc<Object>>, StoreError> {
    match objects.get(row(key)).map_err(storage)? {
        Some(guard) => Ok(Some(Arc::new(unwrap(key.clone(), guard.value())?))),
        None => Ok(None),
    }
}

/// Gives each object of a scope in key order, at most `limit`.
pub(super) fn scan(
    read: &ReadTransaction,
    scope: &Scope,
    start: Bound<Key>,
    limit: usize,
    mut each: impl FnMut(Object),
) -> Result<(), StoreError> {
    let objects = read.open_table(OBJECTS).map_err(storage)?;
    let start = start.as_ref().map(row);
    let mut given = 0;
    for entry in objects.range::<(&str, &str, &str, &str)>((start, Bound::Unbounded)).map_err(storage)? {
        let (found, value) = entry.map_err(storage)?;
        let found = key(found.value());
        if given == limit || !in_range(scope, &found) {
            break;
        }
        if scope.contains(&found) {
            each(unwrap(found, value.value())?);
            given += 1;
        }
    }
    Ok(())
}

fn checksum(key: &Key, origin: u8, revision: &[u8], body: &[u8]) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    let (group, resource, namespace, name) = row(key);
    for part in [group, resource, namespace, name] {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    context.update(&[origin]);
    context.update(revision);
    context.update(body);
    let mut sum = [0; 8];
    for (to, from) in sum.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    sum
}

/// The envelope of an object.
pub(super) fn wrap(object: &Object) -> Result<Vec<u8>, codec::CodecError> {
    let body = codec::encode_bounded(&object.value)?;
    let origin = match object.origin {
        Origin::Cloud => 1,
        Origin::Local => 2,
        Origin::Static => 3,
    };
    let revision = object.revision.0.to_be_bytes();
    let mut envelope = Vec::with_capacity(HEAD + body.len());
    envelope.extend([ENVELOPE, origin]);
    envelope.extend(revision);
    envelope.extend(checksum(&object.key, origin, &revision, &body));
    envelope.extend(body);
    Ok(envelope)
}

/// The object in an envelope, after its checksum was compared.
fn unwrap(key: Key, envelope: &[u8]) -> Result<Object, StoreError> {
    let damaged = |why: String| StoreError::Damaged { at: key.to_string(), why };
    let short = || damaged(format!("an entry of {} bytes", envelope.len()));
    let (&[version, origin_byte], rest) = envelope.split_first_chunk().ok_or_else(short)?;
    let (revision, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (sum, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    if version != ENVELOPE {
        return Err(damaged(format!("an entry of version {version}")));
    }
    if checksum(&key, origin_byte, revision, body) != *sum {
        return Err(damaged("its checksum is wrong".into()));
    }
    let origin = match origin_byte {
        1 => Origin::Cloud,
        2 => Origin::Local,
        3 => Origin::Static,
        other => return Err(damaged(format!("origin {other}"))),
    };
    let value = codec::decode(body).map_err(|error| damaged(error.to_string()))?;
    let uid = Uid(meta_str(&value, "uid").unwrap_or_default().into());
    Ok(Object { uid, revision: Revision(u64::from_be_bytes(*revision)), origin, value, key })
}
