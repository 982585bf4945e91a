use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;
use smol::block_on;

use super::*;

mod crash;
mod disk;
mod file;
mod outbox;
mod shrink;
mod trouble;

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        TempDir(std::env::temp_dir().join(format!("holm-store-{}", Uid::random())))
    }

    fn open(&self) -> Store {
        self.open_with(Options::default()).unwrap()
    }

    fn open_with(&self, options: Options) -> Result<Store, StoreError> {
        // The file is released when the writer thread of the last handle ends.
        for _ in 0..500 {
            match Store::open(&self.0, options.clone()) {
                Err(StoreError::InUse { .. }) => {
                    block_on(smol::Timer::after(std::time::Duration::from_millis(2)));
                }
                other => return other,
            }
        }
        panic!("the store stays in use");
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn key(name: &str) -> Key {
    Key::core("configmaps", "default", name).unwrap()
}

fn put(name: &str, data: u64, durability: Durability) -> Write {
    let value = json!({"metadata": {"name": name, "uid": format!("uid-{name}")}, "data": data});
    Write {
        key: key(name),
        expect: Expect::Anything,
        action: Action::Put { value, origin: Origin::Local, durability },
    }
}

fn delete(name: &str) -> Write {
    Write { key: key(name), expect: Expect::Anything, action: Action::Delete }
}

fn all() -> Scope {
    Scope::all("", "configmaps")
}

#[test]
fn what_was_answered_is_there_after_a_restart_and_what_was_volatile_is_not() {
    let dir = TempDir::new();
    let store = dir.open();
    block_on(store.write(put("durable", 1, Durability::Durable))).unwrap();
    block_on(store.write(put("overlaid", 1, Durability::Durable))).unwrap();
    block_on(store.write(put("overlaid", 2, Durability::Volatile))).unwrap();
    block_on(store.write(put("volatile", 1, Durability::Volatile))).unwrap();
    let names = |store: &Store| {
        let listing = store.list(&all(), None, None).unwrap();
        listing.objects.iter().map(|o| format!("{}={}", o.key.name, o.value["data"])).collect::<Vec<_>>()
    };
    assert_eq!(names(&store), ["durable=1", "overlaid=2", "volatile=1"]);
    let (generation, last) = (store.generation(), store.revision());
    drop(store);
    let store = dir.open();
    assert_eq!(names(&store), ["durable=1", "overlaid=1"]);
    assert_eq!(store.generation(), generation);
    let object = block_on(store.write(put("next", 1, Durability::Durable))).unwrap();
    assert!(object.revision > last, "a revision was given twice");
    assert_eq!(store.watch(all(), last).err(), Some(Gone), "a watch from before the restart");
}

#[test]
fn writing_what_is_there_changes_nothing() {
    let dir = TempDir::new();
    let store = dir.open();
    let first = block_on(store.write(put("a", 1, Durability::Durable))).unwrap();
    let commits = store.commits();
    let second = block_on(store.write(put("a", 1, Durability::Durable))).unwrap();
    block_on(store.set_fact("test/fact", vec![1])).unwrap();
    block_on(store.set_fact("test/fact", vec![1])).unwrap();
    assert_eq!(first.revision, second.revision);
    assert_eq!(store.commits(), commits + 1);
    assert_eq!(store.fact("test/fact").unwrap(), Some(vec![1]));
}

#[test]
fn volatile_writes_make_no_commits() {
    let dir = TempDir::new();
    let store = dir.open();
    block_on(store.write(put("a", 0, Durability::Volatile))).unwrap();
    let commits = store.commits();
    for data in 1..1000 {
        block_on(store.write(put("a", data, Durability::Volatile))).unwrap();
    }
    assert_eq!(store.commits(), commits);
}

#[test]
fn conditions_are_kept() {
    let dir = TempDir::new();
    let store = dir.open();
    let made = block_on(store.write(put("a", 1, Durability::Durable))).unwrap();
    let with = |expect| Write { expect, ..put("a", 2, Durability::Durable) };
    let present = |revision, uid: Option<&str>| Expect::Present { revision, uid: uid.map(|u| Uid(u.into())) };
    let outcome = block_on(store.write(with(Expect::Absent)));
    assert!(matches!(outcome, Err(WriteError::Exists(_))), "{outcome:?}");
    let outcome = block_on(store.write(with(present(Some(Revision(made.revision.0 - 1)), None))));
    assert!(matches!(outcome, Err(WriteError::Conflict { .. })), "{outcome:?}");
    let outcome = block_on(store.write(with(present(None, Some("uid-b")))));
    assert!(matches!(outcome, Err(WriteError::Conflict { .. })), "{outcome:?}");
    let outcome = block_on(store.write(Write { key: key("b"), ..with(present(None, None)) }));
    assert!(matches!(outcome, Err(WriteError::Missing(_))), "{outcome:?}");
    assert!(matches!(block_on(store.write(delete("b"))), Err(WriteError::Missing(_))));
    block_on(store.write(with(present(Some(made.revision), Some("uid-a"))))).unwrap();
}

#[test]
fn one_of_many_writers_to_a_revision_wins() {
    let dir = TempDir::new();
    let store = dir.open();
    let made = block_on(store.write(put("a", 0, Durability::Durable))).unwrap();
    let expect = Expect::Present { revision: Some(made.revision), uid: None };
    let writes = (1..=20).map(|data| Write { expect: expect.clone(), ..put("a", data, Durability::Durable) });
    let outcomes = block_on(store.write_all(writes.collect())).unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[test]
fn lists_are_cut_into_pages_over_both_kinds_of_durability() {
    let dir = TempDir::new();
    let store = dir.open();
    for (index, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let durability = if index % 2 == 0 { Durability::Durable } else { Durability::Volatile };
        block_on(store.write(put(name, 0, durability))).unwrap();
    }
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&all(), after.as_ref(), Some(2)).unwrap();
        assert!(page.objects.len() <= 2);
        names.extend(page.objects.iter().map(|object| object.key.name.clone()));
        after = page.objects.last().map(|object| object.key.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(names.concat(), "abcde");
    let other = Scope { namespace: Some("other".into()), ..all() };
    assert!(store.list(&other, None, None).unwrap().objects.is_empty());
}

#[test]
fn a_slow_watcher_is_told_so_and_costs_no_memory() {
    let dir = TempDir::new();
    let options = Options { watch_queue: 4, history: 4, ..Options::default() };
    let store = Store::open(&dir.0, options).unwrap();
    let mut watch = store.watch(all(), store.revision()).unwrap();
    let start = store.revision();
    for data in 0..100 {
        block_on(store.write(put("a", data, Durability::Volatile))).unwrap();
    }
    let mut seen = 0;
    while block_on(watch.next()).is_ok() {
        seen += 1;
    }
    assert_eq!(seen, 4);
    assert_eq!(store.watch(all(), start).err(), Some(Gone));
}

#[test]
fn a_watcher_s_queue_has_a_bound_in_bytes() {
    let dir = TempDir::new();
    let options = Options { watch_bytes: 40_000, ..Options::default() };
    let store = dir.open_with(options).unwrap();
    let of_size = |size: usize, data: u64| {
        let mut write = put("a", data, Durability::Volatile);
        if let Action::Put { value, .. } = &mut write.action {
            value["text"] = json!("x".repeat(size));
        }
        block_on(store.write(write)).unwrap().revision
    };
    let mut quick = store.watch(all(), store.revision()).unwrap();
    let mut slow = store.watch(all(), store.revision()).unwrap();
    for data in 0..20 {
        // One that is larger than the bound reaches who has nothing to read.
        let revision = of_size(if data == 10 { 50_000 } else { 9_000 }, data);
        assert_eq!(block_on(quick.next()).unwrap().revision, revision);
    }
    let mut seen = 0;
    while block_on(slow.next()).is_ok() {
        seen += 1;
    }
    assert!((1..=4).contains(&seen), "{seen}");
}

#[test]
fn a_second_process_is_told_who_has_the_file() {
    let dir = TempDir::new();
    let _store = dir.open();
    let error = Store::open(&dir.0, Options::default()).err().unwrap();
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

#[test]
fn a_flipped_byte_in_the_file_is_never_an_object() {
    let dir = TempDir::new();
    let store = dir.open();
    let marker = "marker-marker-marker-marker";
    let mut write = put("a", 1, Durability::Durable);
    if let Action::Put { value, .. } = &mut write.action {
        value["data"] = json!(marker);
    }
    block_on(store.write(write)).unwrap();
    drop(store);
    drop(dir.open());
    let path = dir.0.join("holm.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - marker.len()).filter(|&at| bytes[at..].starts_with(marker.as_bytes())).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    match Store::open(&dir.0, Options::default()) {
        Err(error) => assert!(error.to_string().contains("store"), "{error}"),
        Ok(store) => assert!(store.get(&key("a")).is_err()),
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, u64, bool),
    Delete(u8),
    Reopen,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u8..6, 0u64..4, any::<bool>()).prop_map(|(name, data, durable)| Op::Put(name, data, durable)),
        3 => (0u8..6).prop_map(Op::Delete),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A list followed by its watch is the state; what is durable survives;
    /// revisions only grow.
    #[test]
    fn the_store_is_a_map_with_memory_on_top(ops in prop::collection::vec(any_op(), 1..60)) {
        let dir = TempDir::new();
        let mut store = dir.open();
        let mut watch = store.watch(all(), store.revision()).unwrap();
        let mut replica: BTreeMap<Key, u64> = BTreeMap::new();
        let mut durable: BTreeMap<Key, u64> = BTreeMap::new();
        let mut latest: BTreeMap<Key, u64> = BTreeMap::new();
        let mut last = store.revision();
        for op in ops {
            match op {
                Op::Put(name, data, is_durable) => {
                    let name = name.to_string();
                    let durability = if is_durable { Durability::Durable } else { Durability::Volatile };
                    block_on(store.write(put(&name, data, durability))).unwrap();
                    latest.insert(key(&name), data);
                    if is_durable {
                        durable.insert(key(&name), data);
                    }
                }
                Op::Delete(name) => {
                    let key = key(&name.to_string());
                    let removed = block_on(store.write(delete(&key.name))).is_ok();
                    prop_assert_eq!(removed, latest.remove(&key).is_some());
                    durable.remove(&key);
                }
                Op::Reopen => {
                    drop(watch);
                    drop(store);
                    store = dir.open();
                    watch = store.watch(all(), store.revision()).unwrap();
                    latest = durable.clone();
                    replica = durable.clone();
                }
            }
            prop_assert!(store.revision() >= last);
            last = store.revision();
        }
        let listing = store.list(&all(), None, None).unwrap();
        let listed: BTreeMap<Key, u64> =
            listing.objects.iter().map(|o| (o.key.clone(), o.value["data"].as_u64().unwrap())).collect();
        prop_assert_eq!(&listed, &latest);
        drop(store);
        while let Ok(change) = block_on(watch.next()) {
            let key = change.object.key.clone();
            match change.removed {
                true => replica.remove(&key),
                false => replica.insert(key, change.object.value["data"].as_u64().unwrap()),
            };
        }
        prop_assert_eq!(&replica, &latest);
    }
}
