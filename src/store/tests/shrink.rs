use super::*;

fn eager() -> Options {
    let pace = Pace {
        compact_idle: Duration::from_millis(5),
        compact_every: Duration::ZERO,
        compact_bytes: 1 << 20,
        ..Pace::default()
    };
    Options { pace, watch_bytes: 64 << 20, ..Options::default() }
}

fn length(store: &Store) -> u64 {
    std::fs::metadata(store.path()).unwrap().len()
}

fn large(name: u64) -> Write {
    let mut write = put(&format!("large-{name}"), 1, Durability::Durable);
    if let Action::Put { value, .. } = &mut write.action {
        value["text"] = json!("x".repeat(100_000));
    }
    write
}

#[test]
fn a_file_that_is_mostly_free_becomes_smaller_under_readers_and_watchers() {
    let dir = TempDir::new();
    let store = dir.open_with(eager()).unwrap();
    let box_options = OutboxOptions {
        name: "test",
        durability: Durability::Durable,
        items: 9,
        bytes: 9000,
        when_full: WhenFull::Refuse,
    };
    let outbox = store.outbox(box_options).unwrap();
    let item = block_on(outbox.append(b"an item".to_vec())).unwrap();
    block_on(store.set_fact("test/fact", b"kept".to_vec())).unwrap();
    block_on(store.write(put("volatile", 1, Durability::Volatile))).unwrap();
    let writes = (0..80).map(large).collect();
    block_on(store.write_all(writes)).unwrap();
    block_on(store.write(put("kept", 7, Durability::Durable))).unwrap();
    let large_file = length(&store);
    // Who reads for long holds the old file.
    let old = store.read();
    let mut watch = store.watch(all(), store.revision()).unwrap();
    block_on(store.write_all((0..80).map(|name| delete(&format!("large-{name}"))).collect())).unwrap();
    while length(&store) > large_file / 4 {
        assert!(store.get(&key("kept")).unwrap().is_some());
        block_on(smol::Timer::after(Duration::from_millis(1)));
    }
    assert_eq!(table::get(&old, &key("large-7")).unwrap().unwrap().key, key("large-7"));
    drop(old);
    for _ in 0..80 {
        assert!(block_on(watch.next()).unwrap().removed);
    }
    let next = block_on(store.write(put("kept", 8, Durability::Durable))).unwrap();
    assert_eq!(block_on(watch.next()).unwrap().revision, next.revision);
    assert!(store.get(&key("volatile")).unwrap().is_some());
    assert_eq!(outbox.read(None, 9, 9000).unwrap(), [(item, b"an item".to_vec())]);
    let error = Store::open(&dir.0, eager()).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "the new file is locked too: {error}");

    let generation = store.generation();
    drop(outbox);
    drop(store);
    let store = dir.open_with(Options { verify: true, ..Options::default() }).unwrap();
    assert_eq!(store.generation(), generation);
    assert!(store.revision() >= next.revision);
    assert_eq!(store.get(&key("kept")).unwrap().unwrap().value["data"], json!(8));
    assert_eq!(store.fact("test/fact").unwrap(), Some(b"kept".to_vec()));
    assert!(!dir.0.join("holm.redb.new").exists());
}

#[test]
fn a_small_or_busy_file_is_left_alone() {
    let dir = TempDir::new();
    let store = dir.open_with(eager()).unwrap();
    // Full of what is there: larger than the least, and more than half used.
    block_on(store.write_all((0..30).map(large).collect())).unwrap();
    let inode =
        |store: &Store| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(store.path()).unwrap());
    let before = inode(&store);
    block_on(smol::Timer::after(Duration::from_millis(100)));
    block_on(store.write(put("a", 1, Durability::Durable))).unwrap();
    assert_eq!(inode(&store), before);
    assert_eq!(store.get(&key("large-3")).unwrap().unwrap().key, key("large-3"));
}
