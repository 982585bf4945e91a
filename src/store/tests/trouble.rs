//! Disks that fail under a store, once or for a while.

use super::disk::{Disk, Failure};
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const BOX: OutboxOptions = OutboxOptions {
    name: "test",
    durability: Durability::Durable,
    items: 100,
    bytes: 1 << 20,
    when_full: WhenFull::Refuse,
};

fn options() -> Options {
    let retry = (Duration::from_millis(1), Duration::from_millis(4));
    Options { cache_bytes: 32 << 10, pace: Pace { retry, ..Pace::default() }, ..Options::default() }
}

fn open(disk: &Disk) -> Result<Store, StoreError> {
    Store::open_backend(Path::new("/its/file"), disk.clone(), options())
}

fn pause() {
    block_on(smol::Timer::after(Duration::from_millis(1)));
}

/// What a watch says, kept as those do who follow the store.
struct Replica {
    watch: Watch,
    objects: BTreeMap<Key, Revision>,
    lists: usize,
}

impl Replica {
    fn of(store: &Store) -> Replica {
        let (listing, watch) = loop {
            // Reading may fail while the disk does.
            match store.list_and_watch(all()) {
                Ok(both) => break both,
                Err(_) => pause(),
            }
        };
        let objects = listing.objects.iter().map(|o| (o.key.clone(), o.revision)).collect();
        Replica { watch, objects, lists: 1 }
    }

    /// Takes everything up to `last`.
    fn follow(&mut self, store: &Store, last: Revision) {
        let mut seen = Revision(0);
        while seen < last {
            match block_on(self.watch.next()) {
                Ok(change) => {
                    assert!(change.revision > seen, "a watch goes back");
                    seen = change.revision;
                    match change.removed {
                        true => self.objects.remove(&change.object.key),
                        false => self.objects.insert(change.object.key.clone(), change.revision),
                    };
                }
                Err(Gone) => {
                    let lists = self.lists + 1;
                    *self = Replica { lists, ..Replica::of(store) };
                    seen = last;
                }
            }
        }
    }
}

/// Checks an error of a store whose disk fails with `errno`.
fn check(error: &StoreError, errno: i32) {
    match (errno, error) {
        (ENOSPC, StoreError::Full { .. }) | (EIO, StoreError::Storage { .. }) => {}
        // The first operation that fails may be one of opening it again.
        _ => panic!("errno {errno}: {error:?}"),
    }
    let words = error.to_string();
    assert!(words.contains("/its/file"), "{words}");
    assert!(errno != ENOSPC || words.contains("free space"), "{words}");
}

/// A short life of a store whose disk fails at one place; true if that place
/// was reached. What was refused is done again until it succeeds.
fn live(start: &[u8], failure: Failure) -> bool {
    let how = format!("{failure:?}");
    let disk = Disk::with(start.to_vec());
    let store = open(&disk).unwrap();
    let outbox = store.outbox(BOX).unwrap();
    let mut replica = Replica::of(&store);
    let mut acknowledged: BTreeMap<Key, (Revision, u64)> = BTreeMap::new();
    let mut last = store.revision();
    let mut items: Vec<(ItemId, Vec<u8>)> = Vec::new();
    disk.fail(Some(failure));
    for step in 0..6u64 {
        let mut tries = 0;
        // A persistent failure ends after it was seen some times.
        let again = |error: StoreError, tries: &mut usize, acknowledged: &BTreeMap<Key, (Revision, u64)>| {
            check(&error, failure.errno);
            let has_recovered = || store.commits_by_cause().contains_key("recovery");
            assert!(store.health().is_err() || has_recovered(), "{how}: refused by a store that is well");
            // What is in memory goes on if the file can be read at all.
            if let Ok(Err(WriteError::Store(error))) =
                block_on(store.write_all(vec![put("seen", step * 100 + *tries as u64, Durability::Volatile)]))
                    .map(|outcomes| outcomes.into_iter().next().unwrap())
            {
                check(&error, failure.errno);
            }
            // What was answered can be read, or reading says why not.
            for (key, (revision, _)) in acknowledged {
                match store.get(key) {
                    Ok(found) => assert_eq!(found.unwrap().revision, *revision, "{how}"),
                    Err(error) => check(&error, failure.errno),
                }
            }
            *tries += 1;
            if *tries == 5 {
                disk.fail(None);
            }
            assert!(*tries < 1000, "{how}: it does not heal");
            pause();
        };
        loop {
            let failed = match step {
                2 => block_on(store.set_fact("test/fact", vec![7; 10])).err(),
                3 => match block_on(outbox.append(vec![step as u8; 3000])) {
                    Ok(id) => {
                        assert!(items.last().is_none_or(|(last, _)| *last < id), "{how}");
                        items.push((id, vec![step as u8; 3000]));
                        None
                    }
                    Err(OutboxError::Store(error)) => Some(error),
                    Err(error) => panic!("{how}: {error}"),
                },
                4 => {
                    if let Some((id, _)) = items.pop() {
                        outbox.acknowledge(id);
                    }
                    None
                }
                _ => {
                    let mut write = put(&format!("o{step}"), step, Durability::Durable);
                    if let Action::Put { value, .. } = &mut write.action {
                        value["text"] = json!("x".repeat(9000));
                    }
                    match block_on(store.write(write)) {
                        Ok(object) => {
                            assert!(object.revision > last || tries > 0, "{how}: a revision again");
                            last = last.max(object.revision);
                            acknowledged.insert(object.key.clone(), (object.revision, step));
                            None
                        }
                        Err(WriteError::Store(error)) => Some(error),
                        Err(error) => panic!("{how}: {error}"),
                    }
                }
            };
            match failed {
                Some(error) => again(error, &mut tries, &acknowledged),
                None => break,
            }
        }
    }
    let reached = disk.failed() > 0 || store.commits_by_cause().contains_key("recovery");
    disk.fail(None);
    while store.health().is_err() {
        pause();
    }
    let end = block_on(store.write(put("end", 1, Durability::Durable))).unwrap();
    assert!(end.revision > last, "{how}: revision {} after {last}", end.revision);
    replica.follow(&store, end.revision);
    let listing = store.list(&all(), None, None).unwrap();
    let listed: BTreeMap<Key, Revision> =
        listing.objects.iter().map(|object| (object.key.clone(), object.revision)).collect();
    assert_eq!(replica.objects, listed, "{how}: a watch missed something");
    let read = outbox.read(None, usize::MAX, usize::MAX).unwrap();
    assert!(items.iter().all(|item| read.contains(item)), "{how}: an item is lost");
    drop(outbox);
    drop(store);
    disk.closed();

    let store = open(&disk).unwrap();
    store.verify().unwrap();
    for (key, (revision, data)) in &acknowledged {
        let object = store.get(key).unwrap().unwrap_or_else(|| panic!("{how}: {key} is lost"));
        assert_eq!((object.revision, &object.value["data"]), (*revision, &json!(data)), "{how}");
    }
    assert_eq!(store.fact("test/fact").unwrap(), Some(vec![7; 10]), "{how}");
    assert!(store.revision() >= end.revision);
    reached
}

/// Fails the first operation of a short scenario, then the second, and so on
/// until none is left to fail.
fn every_operation(errno: i32, persistent: bool) {
    let made = Disk::default();
    drop(open(&made).unwrap());
    made.closed();
    let start = made.bytes();
    let reached = (0..10_000).take_while(|after| live(&start, Failure { after: *after, persistent, errno }));
    let count = reached.count();
    println!("{count} places to fail");
    assert!(count > 20);
}

#[test]
fn a_store_outlives_an_error_of_its_disk() {
    every_operation(EIO, false);
    every_operation(EIO, true);
}

#[test]
fn a_store_outlives_a_full_disk() {
    every_operation(ENOSPC, false);
    every_operation(ENOSPC, true);
}

#[test]
fn an_error_that_a_reader_meets_is_healed_without_a_write() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    let writes = (0..40).map(|n| {
        let mut write = put(&format!("o{n}"), n, Durability::Durable);
        if let Action::Put { value, .. } = &mut write.action {
            value["text"] = json!("x".repeat(9000));
        }
        write
    });
    block_on(store.write_all(writes.collect())).unwrap();
    let mut watch = store.watch(all(), store.revision()).unwrap();
    disk.fail(Some(Failure { after: 0, persistent: false, errno: EIO }));
    // More than the cache holds, so the disk is read.
    let error = loop {
        if let Some(error) = (0..40).find_map(|n| store.get(&key(&format!("o{n}"))).err()) {
            break error;
        }
    };
    check(&error, EIO);
    while !store.commits_by_cause().contains_key("recovery") {
        pause();
    }
    for n in 0..40 {
        assert!(store.get(&key(&format!("o{n}"))).unwrap().is_some());
    }
    // The watch goes on: no commit was in doubt.
    let next = block_on(store.write(put("next", 1, Durability::Durable))).unwrap();
    assert_eq!(block_on(watch.next()).unwrap().revision, next.revision);
}

/// A file system of its own that really is full. Needs root for the mount.
#[test]
fn a_full_file_system_refuses_writes_until_there_is_space() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
    let dir = TempDir::new();
    let place = dir.0.join("small");
    std::fs::create_dir_all(&place).unwrap();
    if mount("tmpfs", &place, "tmpfs", MountFlags::empty(), Some(c"size=4m")).is_err() {
        println!("SKIPPED: needs root to mount a file system");
        return;
    }
    let mounted = Mounted(place.clone());
    let store = Store::open(&place, options()).unwrap();
    block_on(store.write(put("before", 1, Durability::Durable))).unwrap();
    let filler = place.join("filler");
    let mut written = 0;
    let error = loop {
        // Fails in its turn when the disk is full.
        let _ = std::fs::write(&filler, vec![1; written]);
        written += 64 << 10;
        let mut write = put(&format!("o{written}"), 1, Durability::Durable);
        if let Action::Put { value, .. } = &mut write.action {
            value["text"] = json!("x".repeat(100_000));
        }
        if let Err(error) = block_on(store.write(write)) {
            break error;
        }
    };
    assert!(matches!(error, WriteError::Store(StoreError::Full { .. })), "{error:?}");
    assert!(error.to_string().contains("free space on its file system"), "{error}");
    assert!(matches!(store.health(), Err(Trouble { error: StoreError::Full { .. }, .. })));
    // Reading goes on, and so does what is in memory only.
    assert!(store.get(&key("before")).unwrap().is_some());
    block_on(store.write(put("seen", 1, Durability::Volatile))).unwrap();
    assert!(matches!(store.health(), Err(Trouble { error: StoreError::Full { .. }, .. })));
    std::fs::remove_file(&filler).unwrap();
    while store.health().is_err() {
        pause();
    }
    block_on(store.write(put("after", 1, Durability::Durable))).unwrap();
    let contents = store.verify().unwrap();
    drop(store);
    let store = loop {
        match Store::open(&place, options()) {
            Err(StoreError::InUse { .. }) => pause(),
            other => break other.unwrap(),
        }
    };
    assert_eq!(store.verify().unwrap(), contents);
    drop(store);
    drop(mounted);
}

/// A file that has gone, or that somebody replaced, is not taken for it.
#[test]
fn a_file_that_has_gone_is_not_made_anew_under_a_running_store() {
    let dir = TempDir::new();
    let store = dir.open();
    block_on(store.write(put("a", 1, Durability::Durable))).unwrap();
    let place = crate::store::file::Place::file(&dir.0, &Options::default());
    std::fs::rename(store.path(), dir.0.join("elsewhere")).unwrap();
    assert!(place.reopen(store.generation()).is_err());
    assert!(!store.path().exists());
    let other = dir.open();
    drop(other);
    let error = loop {
        match place.reopen(store.generation()) {
            Err(Fault::Told(StoreError::InUse { .. })) => pause(),
            other => break other.err().unwrap(),
        }
    };
    assert!(error.at(store.path()).to_string().contains("another store"));
}
