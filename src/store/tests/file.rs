//! The file: layouts, damage, copies.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use redb::{ReadableTable, TableDefinition};

use super::*;

const RAW_FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts");

fn open(dir: &TempDir, verify: bool) -> Result<Store, StoreError> {
    dir.open_with(Options { verify, ..Options::default() })
}

fn shown(store: &Store) -> Vec<String> {
    let objects = store.list(&all(), None, None).unwrap().objects;
    let line = |o: &Arc<Object>| format!("{} {:?} {} {}", o.key.name, o.origin, o.revision, o.value["data"]);
    objects.iter().map(line).collect()
}

/// Bytes that the release with layout 1 wrote.
#[test]
fn a_file_of_the_layout_before_opens_and_keeps_everything() {
    let dir = TempDir::new();
    fs::create_dir_all(&dir.0).unwrap();
    fs::write(dir.0.join("holm.redb"), include_bytes!("../fixtures/layout-1.redb")).unwrap();
    for _ in 0..2 {
        let store = open(&dir, true).unwrap();
        let text = json!({"text": "ä".repeat(700)});
        assert_eq!(shown(&store), [format!("ordered Cloud 4 {text}"), "plain Local 1 7".into()]);
        assert_eq!(store.generation(), 10389699033502824371);
        assert_eq!(store.fact("test/fact").unwrap(), Some(b"kept".to_vec()));
        assert!(store.revision() >= Revision(4));
    }
    let commits = open(&dir, false).unwrap().commits();
    assert_eq!(commits, 0, "a file that is as it should be is not written to");
}

#[test]
fn a_file_of_a_later_release_is_refused_and_not_touched() {
    let dir = TempDir::new();
    drop(dir.open());
    drop(dir.open());
    let path = dir.0.join("holm.redb");
    let database = loop {
        if let Ok(database) = redb::Database::open(&path) {
            break database;
        }
    };
    let write = database.begin_write().unwrap();
    let newer = u64::from(SCHEMA + 1).to_be_bytes();
    write.open_table(RAW_FACTS).unwrap().insert("store/schema", newer.as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = open(&dir, false).err().unwrap();
    assert!(matches!(error, StoreError::Newer { found, .. } if found == SCHEMA + 1), "{error}");
    assert!(error.to_string().contains("use the newer holm"), "{error}");
    let database = redb::Database::open(&path).unwrap();
    let read = database.begin_read().unwrap();
    let facts = read.open_table(RAW_FACTS).unwrap();
    assert_eq!(facts.get("store/schema").unwrap().unwrap().value(), newer);
    assert_eq!(facts.iter().unwrap().count(), 3);
}

fn filled(dir: &TempDir) -> Vec<u8> {
    let store = dir.open();
    for index in 0..40 {
        let name = format!("object-{index}");
        let mut write = put(&name, index, Durability::Durable);
        if let Action::Put { value, .. } = &mut write.action {
            value["text"] = json!("x".repeat(300));
        }
        block_on(store.write(write)).unwrap();
    }
    block_on(store.set_fact("test/fact", b"kept".to_vec())).unwrap();
    drop(store);
    drop(open(dir, false).unwrap());
    drop(open(dir, false).unwrap());
    fs::read(dir.0.join("holm.redb")).unwrap()
}

/// What is done to the bytes, and what may come of it.
fn damage(bytes: &[u8], seed: u64) -> (String, Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = bytes.to_vec();
    let at = random.usize(..bytes.len());
    let end = bytes.len().min(at + random.usize(1..9000));
    let what = match random.u8(..4) {
        0 => {
            bytes[at] ^= 1 << random.u8(..8);
            "a flipped bit"
        }
        1 => {
            bytes[at..end].fill(0);
            "zeroes"
        }
        2 => {
            bytes.truncate(at);
            "a truncation"
        }
        _ => {
            random.fill(&mut bytes[at..end]);
            "garbage"
        }
    };
    (format!("{what} at {at} (seed {seed})"), bytes)
}

/// Whatever is damaged, opening with a look at everything either says so,
/// naming the file, or everything is there: never a wrong object, never a
/// panic.
#[test]
fn damage_is_named_or_did_no_harm() {
    let dir = TempDir::new();
    let whole = filled(&dir);
    let expected = shown(&open(&dir, true).unwrap());
    let path = dir.0.join("holm.redb");
    let mut refused = 0;
    for seed in 0..120 {
        let (what, bytes) = damage(&whole, seed);
        while fs::write(&path, &bytes).is_err() {}
        match open(&dir, true) {
            Ok(store) => {
                assert_eq!(shown(&store), expected, "{what}");
                assert_eq!(store.fact("test/fact").unwrap(), Some(b"kept".to_vec()), "{what}");
            }
            Err(error @ StoreError::Damaged { .. }) => {
                refused += 1;
                assert!(error.to_string().contains("holm.redb"), "{what}: {error}");
            }
            Err(error) => panic!("{what}: {error}"),
        }
        // The writer thread of the store above may still close the file.
        let released = || fs::OpenOptions::new().write(true).open(&path).and_then(|f| Ok(f.try_lock()?));
        while released().is_err() {}
        fs::remove_file(&path).unwrap();
    }
    assert!(refused > 20, "{refused} of 120 were seen");
}

#[test]
fn what_is_no_store_is_damage_and_not_another_error() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096], &[0xff; 70_000]] {
        let dir = TempDir::new();
        fs::create_dir_all(&dir.0).unwrap();
        let path = dir.0.join("holm.redb");
        fs::write(&path, bytes).unwrap();
        let error = open(&dir, false).err().unwrap();
        assert!(matches!(&error, StoreError::Damaged { path: at, .. } if *at == path), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "it is not written to");
    }
}

#[test]
fn a_power_cut_while_the_file_is_made_leaves_none() {
    let dir = TempDir::new();
    fs::create_dir_all(&dir.0).unwrap();
    fs::write(dir.0.join("holm.redb.new"), [0; 8192]).unwrap();
    let store = open(&dir, true).unwrap();
    assert!(!dir.0.join("holm.redb.new").exists());
    let mode = fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_copy_is_whole_while_writes_go_on_and_becomes_a_store_of_its_own() {
    let dir = TempDir::new();
    filled(&dir);
    let store = dir.open();
    block_on(store.write(put("volatile", 1, Durability::Volatile))).unwrap();
    let before: Vec<String> =
        shown(&store).into_iter().filter(|line| !line.starts_with("volatile")).collect();
    let to = dir.0.join("copy.redb");
    let writer = std::thread::spawn({
        let store = store.clone();
        move || {
            (0..50).for_each(|n| drop(block_on(store.write(put("busy", n, Durability::Durable))).unwrap()))
        }
    });
    let contents = store.backup(&to).unwrap();
    writer.join().unwrap();
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Store::verify_file(&to).unwrap(), contents);
    assert_eq!(Store::verify_file(&to).unwrap(), contents, "looking does not change it");
    let last = block_on(store.write(put("busy", 99, Durability::Durable))).unwrap().revision;

    let other = TempDir::new();
    fs::create_dir_all(&other.0).unwrap();
    fs::copy(&to, other.0.join("holm.redb")).unwrap();
    let copy = open(&other, true).unwrap();
    let objects: Vec<String> = shown(&copy).into_iter().filter(|line| !line.starts_with("busy")).collect();
    assert_eq!(objects, before);
    assert_eq!(copy.fact("test/fact").unwrap(), Some(b"kept".to_vec()));
    assert_ne!(copy.generation(), store.generation());
    let next = block_on(copy.write(put("next", 1, Durability::Durable))).unwrap().revision;
    assert!(next > last, "a revision of the original was given again");
    let generation = copy.generation();
    drop(copy);
    assert_eq!(open(&other, true).unwrap().generation(), generation, "it leaves the original once");
}

#[test]
fn a_copy_that_lost_bytes_is_seen() {
    let dir = TempDir::new();
    filled(&dir);
    let store = dir.open();
    let to = dir.0.join("copy.redb");
    store.backup(&to).unwrap();
    let bytes = fs::read(&to).unwrap();
    let marker = b"object-7";
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(marker)).unwrap();
    let mut flipped = bytes.clone();
    flipped[at + 3] ^= 1;
    for damaged in [&flipped[..], &bytes[..bytes.len() / 2], b"", b"no store"] {
        fs::write(&to, damaged).unwrap();
        let error = Store::verify_file(&to).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == to), "{error:?}");
    }
    let error = Store::verify_file(&dir.0.join("nothing")).unwrap_err();
    assert!(matches!(error, StoreError::Storage { .. }), "{error:?}");
    let error = store.backup(&dir.0.join("./holm.redb")).unwrap_err();
    assert!(error.to_string().contains("the store itself"), "{error}");
    let error = store.backup(&dir.0.join("no/such/directory")).unwrap_err();
    assert!(matches!(error, StoreError::Storage { .. }), "{error:?}");
}
