//! What the file looks like.
//!
//! `facts`: name → an envelope around a value: layout version, generation, reserved
//! revisions, and what other modules keep about the store as a whole.
//! `objects`: (group, resource, namespace, name) → an envelope.
//! `outboxes`: see `outbox.rs`.
//!
//! ```text
//! facts                             objects
//! 0     version of the envelope (1) 0      version of the envelope (1)
//! 1..9  checksum of name and value  1      origin
//! 9..   value                       2..10  revision, big endian
//!                                   10..18 checksum of key, origin, revision and body
//!                                   18..   body: the object in CBOR (object::codec)
//! ```
//!
//! A checksum is the first eight bytes of a SHA-256. The fact that says the
//! layout version is eight bare bytes in every layout. Layout 1 had no
//! envelopes around facts.

use std::ops::Bound;
use std::sync::Arc;

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};
use ring::digest::{Context, SHA256};

use super::error::Fault;
use super::{SCHEMA, Scope, in_range};
use crate::object::{Key, Object, Origin, Revision, Uid, codec, meta_str};

/// A key as redb orders it, which is how [`Key`] orders too.
pub(super) type Row = (&'static str, &'static str, &'static str, &'static str);

pub(super) const OBJECTS: TableDefinition<'static, Row, &'static [u8]> = TableDefinition::new("objects");
pub(super) const FACTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("facts");

const FACT_SCHEMA: &str = "store/schema";
const FACT_GENERATION: &str = "store/generation";
pub(super) const FACT_RESERVED: &str = "store/reserved-revision";
/// Only in a copy that nobody has opened as a store yet: how many objects,
/// facts and outbox items it was made with.
pub(super) const FACT_COPY: &str = "store/copy";

/// Revisions are reserved this many at a time, so that counting them costs no
/// writes and a restart never gives one twice.
pub(super) const REVISION_BLOCK: u64 = 4096;

/// How far a copy's revisions leap when it becomes a store: the store that it
/// was copied from went on, and what it gave must not be given again.
const COPY_LEAP: u64 = 1 << 40;

const ENVELOPE: u8 = 1;
const HEAD: usize = 18;
const FACT_HEAD: usize = 9;

/// What the file says of itself.
pub(super) struct Opened {
    pub(super) generation: u64,
    /// No revision above this one was ever given.
    pub(super) reserved: Revision,
}

impl Opened {
    /// Reads the file's facts after making them so: writes the first ones
    /// into a new file, migrates an older layout, and makes a copy a store of
    /// its own. A file that is as it should be is not written to.
    pub(super) fn read(database: &Database) -> Result<Opened, Fault> {
        let read = database.begin_read()?;
        let schema = schema(&read)?;
        let is_copy = schema == Some(SCHEMA) && fact(&read, FACT_COPY)?.is_some();
        if schema == Some(SCHEMA) && !is_copy {
            return Opened::of(&read);
        }
        drop(read);
        let write = database.begin_write()?;
        match schema {
            None => {
                let mut facts = write.open_table(FACTS)?;
                facts.insert(FACT_SCHEMA, u64::from(SCHEMA).to_be_bytes().as_slice())?;
                facts.insert(FACT_GENERATION, wrap_number(FACT_GENERATION, random()?).as_slice())?;
                facts.insert(FACT_RESERVED, wrap_number(FACT_RESERVED, 0).as_slice())?;
                write.open_table(OBJECTS)?;
            }
            Some(1) => migrate_facts(&write)?,
            Some(SCHEMA) => leave_the_original(&write)?,
            Some(newer) => return Err(Fault::Newer(newer)),
        }
        write.commit()?;
        Opened::of(&database.begin_read()?)
    }

    fn of(read: &ReadTransaction) -> Result<Opened, Fault> {
        Ok(Opened {
            generation: number_fact(read, FACT_GENERATION)?,
            reserved: Revision(number_fact(read, FACT_RESERVED)?),
        })
    }
}

/// The layout version; none in a file without tables.
fn schema(read: &ReadTransaction) -> Result<Option<u32>, Fault> {
    let facts = match read.open_table(FACTS) {
        Ok(facts) => facts,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let damaged = |why: String| Fault::Damaged { at: FACT_SCHEMA.into(), why };
    let Some(value) = facts.get(FACT_SCHEMA)? else { return Err(damaged("it is missing".into())) };
    let found = number(FACT_SCHEMA, value.value())?;
    match u32::try_from(found) {
        Ok(0) | Err(_) => Err(damaged(format!("layout {found}"))),
        Ok(found) if found > SCHEMA => Err(Fault::Newer(found)),
        Ok(found) => Ok(Some(found)),
    }
}

/// Refuses a file whose layout is not this release's.
pub(super) fn check_schema(read: &ReadTransaction) -> Result<(), Fault> {
    match schema(read)? {
        Some(SCHEMA) => Ok(()),
        Some(found) => Err(Fault::Damaged { at: FACT_SCHEMA.into(), why: format!("layout {found}") }),
        None => Err(Fault::Damaged { at: FACT_SCHEMA.into(), why: "it is missing".into() }),
    }
}

/// From layout 1: facts get envelopes.
fn migrate_facts(write: &WriteTransaction) -> Result<(), Fault> {
    let mut facts = write.open_table(FACTS)?;
    let mut bare = Vec::new();
    for entry in facts.iter()? {
        let (name, value) = entry?;
        bare.push((name.value().to_owned(), value.value().to_owned()));
    }
    for (name, value) in bare {
        let value = match name == FACT_SCHEMA {
            true => u64::from(SCHEMA).to_be_bytes().to_vec(),
            false => wrap_fact(&name, &value),
        };
        facts.insert(name.as_str(), value.as_slice())?;
    }
    Ok(())
}

/// What was a copy becomes a store of its own: nobody may take its numbers
/// for those of the store that it was copied from.
fn leave_the_original(write: &WriteTransaction) -> Result<(), Fault> {
    let mut facts = write.open_table(FACTS)?;
    let reserved = match facts.get(FACT_RESERVED)? {
        Some(value) => number(FACT_RESERVED, unwrap_fact(FACT_RESERVED, value.value())?)?,
        None => return Err(Fault::Damaged { at: FACT_RESERVED.into(), why: "it is missing".into() }),
    };
    // The random part tells apart two stores made from one copy.
    let leap = COPY_LEAP.saturating_add(random()? % COPY_LEAP);
    let reserved = wrap_number(FACT_RESERVED, reserved.saturating_add(leap));
    facts.insert(FACT_RESERVED, reserved.as_slice())?;
    facts.insert(FACT_GENERATION, wrap_number(FACT_GENERATION, random()?).as_slice())?;
    facts.remove(FACT_COPY)?;
    Ok(())
}

/// A random number that is not zero, which is for "no store" in frames.
pub(super) fn random() -> Result<u64, Fault> {
    let mut random = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
        .map_err(|_| Fault::NoRandom)?;
    Ok(u64::from_be_bytes(random) | 1)
}

fn number(name: &str, bytes: &[u8]) -> Result<u64, Fault> {
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| Fault::Damaged {
        at: name.into(),
        why: format!("{} bytes where 8 belong", bytes.len()),
    })?;
    Ok(u64::from_be_bytes(bytes))
}

fn number_fact(read: &ReadTransaction, name: &str) -> Result<u64, Fault> {
    match fact(read, name)? {
        Some(value) => number(name, &value),
        None => Err(Fault::Damaged { at: name.into(), why: "it is missing".into() }),
    }
}

/// A fact's value, after its checksum was compared.
pub(super) fn fact(read: &ReadTransaction, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    match read.open_table(FACTS)?.get(name)? {
        Some(envelope) => Ok(Some(unwrap_fact(name, envelope.value())?.to_vec())),
        None => Ok(None),
    }
}

/// Sets a fact; false if it is so already.
pub(super) fn set_fact(write: &WriteTransaction, name: &str, value: &[u8]) -> Result<bool, Fault> {
    let mut facts = write.open_table(FACTS)?;
    let envelope = wrap_fact(name, value);
    if facts.get(name)?.is_some_and(|held| held.value() == envelope) {
        return Ok(false);
    }
    facts.insert(name, envelope.as_slice())?;
    Ok(true)
}

fn wrap_fact(name: &str, value: &[u8]) -> Vec<u8> {
    let mut envelope = Vec::with_capacity(FACT_HEAD.saturating_add(value.len()));
    envelope.push(ENVELOPE);
    envelope.extend(sum(&[name.as_bytes(), &[0], value]));
    envelope.extend(value);
    envelope
}

fn wrap_number(name: &str, value: u64) -> Vec<u8> {
    wrap_fact(name, &value.to_be_bytes())
}

fn unwrap_fact<'a>(name: &str, envelope: &'a [u8]) -> Result<&'a [u8], Fault> {
    let damaged = |why: String| Fault::Damaged { at: name.into(), why };
    let short = || damaged(format!("an entry of {} bytes", envelope.len()));
    let (&version, rest) = envelope.split_first().ok_or_else(short)?;
    let (found, value) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    if version != ENVELOPE {
        return Err(damaged(format!("an entry of version {version}")));
    }
    match sum(&[name.as_bytes(), &[0], value]) == *found {
        true => Ok(value),
        false => Err(damaged("its checksum is wrong".into())),
    }
}

/// The first eight bytes of the SHA-256 of the parts.
pub(super) fn sum(parts: &[&[u8]]) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut sum = [0; 8];
    for (to, from) in sum.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    sum
}

/// How much a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Objects.
    pub objects: u64,
    /// Facts, the store's own among them.
    pub facts: u64,
    /// Items in durable outboxes.
    pub items: u64,
}

impl Contents {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        [self.objects, self.facts, self.items].iter().flat_map(|count| count.to_be_bytes()).collect()
    }
}

/// Reads every entry of a commit and compares its checksum; the first one
/// that is damaged is the error.
pub(super) fn verify(read: &ReadTransaction) -> Result<Contents, Fault> {
    let mut contents = Contents::default();
    let objects = read.open_table(OBJECTS)?;
    for entry in objects.iter()? {
        let (found, value) = entry?;
        unwrap(key(found.value()), value.value())?;
        contents.objects = contents.objects.saturating_add(1);
    }
    contents.items = super::outbox::verify(read)?;
    let facts = read.open_table(FACTS)?;
    let mut copied = None;
    for entry in facts.iter()? {
        let (name, value) = entry?;
        match name.value() {
            FACT_SCHEMA => {}
            FACT_COPY => {
                copied = Some(unwrap_fact(FACT_COPY, value.value())?.to_vec());
                continue;
            }
            name => {
                unwrap_fact(name, value.value())?;
            }
        }
        contents.facts = contents.facts.saturating_add(1);
    }
    let counted = |table: &str, counted: u64, held: u64| match counted == held {
        true => Ok(()),
        false => Err(Fault::Damaged { at: table.into(), why: format!("{counted} of {held} entries") }),
    };
    counted("the table of objects", contents.objects, objects.len()?)?;
    if copied.is_some_and(|copied| copied != contents.to_bytes()) {
        return Err(Fault::Damaged { at: FACT_COPY.into(), why: "it is not all there".into() });
    }
    Ok(contents)
}

pub(super) fn row(key: &Key) -> (&str, &str, &str, &str) {
    (&key.group, &key.resource, &key.namespace, &key.name)
}

fn key(row: (&str, &str, &str, &str)) -> Key {
    Key { group: row.0.into(), resource: row.1.into(), namespace: row.2.into(), name: row.3.into() }
}

/// One object from the last commit.
pub(super) fn get(read: &ReadTransaction, key: &Key) -> Result<Option<Arc<Object>>, Fault> {
    let objects = read.open_table(OBJECTS)?;
    get_in(&objects, key)
}

/// One object from an open table, committed or not.
pub(super) fn get_in(
    objects: &impl ReadableTable<Row, &'static [u8]>,
    key: &Key,
) -> Result<Option<Arc<Object>>, Fault> {
    match objects.get(row(key))? {
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
) -> Result<(), Fault> {
    let objects = read.open_table(OBJECTS)?;
    let start = start.as_ref().map(row);
    let mut given = 0;
    for entry in objects.range::<(&str, &str, &str, &str)>((start, Bound::Unbounded))? {
        let (found, value) = entry?;
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
    let (group, resource, namespace, name) = row(key);
    let (group, resource) = (group.as_bytes(), resource.as_bytes());
    let (namespace, name) = (namespace.as_bytes(), name.as_bytes());
    sum(&[group, &[0], resource, &[0], namespace, &[0], name, &[0], &[origin], revision, body])
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
fn unwrap(key: Key, envelope: &[u8]) -> Result<Object, Fault> {
    let damaged = |why: String| Fault::Damaged { at: key.to_string(), why };
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
