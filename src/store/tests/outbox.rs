use std::collections::BTreeSet;

use super::*;

const NAME: &str = "test";

fn options(durability: Durability, items: u64, bytes: u64, when_full: WhenFull) -> OutboxOptions {
    OutboxOptions { name: NAME, durability, items, bytes, when_full }
}

fn item(sequence: u64, size: usize) -> Vec<u8> {
    let mut item = sequence.to_be_bytes().to_vec();
    item.resize(size.max(8), b'x');
    item
}

fn sequences(outbox: &Outbox) -> Vec<u64> {
    let items = outbox.read(None, usize::MAX, usize::MAX).unwrap();
    items.iter().map(|(id, _)| id.sequence).collect()
}

#[test]
fn a_sequence_is_never_given_again() {
    let dir = TempDir::new();
    let spec = options(Durability::Durable, 4, 1 << 20, WhenFull::DropOldest);
    let mut given = BTreeSet::new();
    for round in 0..5u64 {
        let store = dir.open();
        let outbox = store.outbox(spec).unwrap();
        for index in 0..6 {
            assert!(given.insert(block_on(outbox.append(item(index, 10))).unwrap()), "given twice");
        }
        // Everything goes in one round, and nothing but what the quota
        // pushes out in the other.
        if round % 2 == 0 {
            outbox.acknowledge(*given.last().unwrap());
            assert!(outbox.is_empty());
        }
    }
    assert_eq!(given.len(), 30);
    let store = dir.open();
    let volatile = OutboxOptions { durability: Durability::Volatile, ..spec };
    let before = block_on(store.outbox(volatile).unwrap().append(vec![1])).unwrap();
    drop(store);
    let store = dir.open();
    let after = block_on(store.outbox(volatile).unwrap().append(vec![1])).unwrap();
    assert_ne!(before.generation, after.generation);
}

#[test]
fn acknowledgements_ride_on_the_next_commit_or_go_together() {
    let dir = TempDir::new();
    let pace = Pace { tidy: Duration::from_millis(20), ..Pace::default() };
    let store = dir.open_with(Options { pace, ..Options::default() }).unwrap();
    let spec = options(Durability::Durable, 10_000, 1 << 20, WhenFull::Refuse);
    let outbox = store.outbox(spec).unwrap();
    let append =
        |count: u64| (0..count).map(|n| block_on(outbox.append(item(n, 8))).unwrap()).collect::<Vec<_>>();
    let commits = || store.commits_by_cause().get("outbox test").copied().unwrap_or_default();
    let ids = append(20);
    assert_eq!(commits(), 20);
    ids.iter().for_each(|id| outbox.acknowledge(*id));
    assert!(outbox.is_empty());
    assert!(sequences(&outbox).is_empty(), "acknowledged items are not read again");
    while store.verify().unwrap().items > 0 {}
    assert_eq!(commits(), 21, "twenty acknowledgements, one commit");
    assert_eq!(store.commits(), 21);
}

#[test]
fn an_idle_outbox_is_not_written() {
    let dir = TempDir::new();
    let store = dir.open();
    let outbox = store.outbox(options(Durability::Durable, 10, 100, WhenFull::Refuse)).unwrap();
    outbox.acknowledge(ItemId { generation: store.generation(), sequence: 7 });
    assert_eq!(outbox.take_dropped(), 0);
    block_on(store.write(put("a", 0, Durability::Volatile))).unwrap();
    assert_eq!(store.commits_by_cause(), BTreeMap::from([("revisions".into(), 1)]));
    // An id of the future removed nothing.
    block_on(outbox.append(vec![1])).unwrap();
    assert_eq!(sequences(&outbox), [1]);
}

#[test]
fn a_full_outbox_refuses_or_counts_what_it_drops() {
    for durability in [Durability::Durable, Durability::Volatile] {
        let dir = TempDir::new();
        let store = dir.open();
        let spec = options(durability, 3, 100, WhenFull::Refuse);
        let refusing = store.outbox(OutboxOptions { name: "refusing", ..spec }).unwrap();
        let ids: Vec<ItemId> = (0..3).map(|n| block_on(refusing.append(item(n, 10))).unwrap()).collect();
        let refused = block_on(refusing.append(item(4, 10)));
        assert!(matches!(refused, Err(OutboxError::Full("refusing"))), "{refused:?}");
        refusing.acknowledge(ids[0]);
        block_on(refusing.append(item(4, 10))).unwrap();
        let refused = block_on(refusing.append(item(5, 101)));
        assert!(matches!(refused, Err(OutboxError::TooLarge { bytes: 101, .. })), "{refused:?}");

        let dropping = store.outbox(OutboxOptions { when_full: WhenFull::DropOldest, ..spec }).unwrap();
        for n in 0..5 {
            block_on(dropping.append(item(n, 10))).unwrap();
        }
        assert_eq!(sequences(&dropping), [3, 4, 5]);
        block_on(dropping.append(item(6, 85))).unwrap();
        assert_eq!((sequences(&dropping), dropping.dropped()), (vec![5, 6], 4));
        assert_eq!((dropping.take_dropped(), dropping.dropped()), (4, 0));
        block_on(dropping.append(item(7, 100))).unwrap();
        assert_eq!((sequences(&dropping), dropping.len(), dropping.take_dropped()), (vec![7], 1, 2));
    }
}

#[test]
fn a_flipped_byte_is_never_an_item() {
    let dir = TempDir::new();
    let store = dir.open();
    let outbox = store.outbox(options(Durability::Durable, 9, 1000, WhenFull::Refuse)).unwrap();
    let marker = b"an item that is in no other place";
    block_on(outbox.append(marker.to_vec())).unwrap();
    let copy = dir.0.join("copy");
    assert_eq!(store.backup(&copy).unwrap().items, 1);
    let mut bytes = std::fs::read(&copy).unwrap();
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(marker)).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let error = Store::verify_file(&copy).unwrap_err();
    assert!(error.to_string().contains("item 1 of the outbox test"), "{error}");
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    /// Acknowledges so many of those that wait.
    Acknowledge(usize),
    Told,
    Write,
    /// Closes the store in an orderly way.
    Reopen,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (8usize..60).prop_map(Op::Append),
        4 => (0usize..5).prop_map(Op::Acknowledge),
        1 => Just(Op::Told),
        1 => Just(Op::Write),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Items come in order and once, the quota holds, what was acknowledged
    /// does not come back, and every item is either waiting, acknowledged,
    /// or counted as dropped.
    #[test]
    fn an_outbox_is_a_queue(
        ops in prop::collection::vec(any_op(), 1..60),
        is_durable in any::<bool>(),
        refuses in any::<bool>(),
    ) {
        let dir = TempDir::new();
        let mut store = dir.open();
        let durability = if is_durable { Durability::Durable } else { Durability::Volatile };
        let when_full = if refuses { WhenFull::Refuse } else { WhenFull::DropOldest };
        let spec = options(durability, 7, 200, when_full);
        let mut outbox = store.outbox(spec).unwrap();
        let mut model: Vec<(ItemId, Vec<u8>)> = Vec::new();
        let (mut dropped, mut last, mut cursor) = (0, None, None);
        for op in ops {
            match op {
                Op::Append(size) => {
                    let content = item(fastrand::u64(..), size);
                    let fits = |model: &Vec<(ItemId, Vec<u8>)>| {
                        model.len() < 7 && model.iter().map(|(_, item)| item.len()).sum::<usize>() + size <= 200
                    };
                    match block_on(outbox.append(content.clone())) {
                        Ok(id) => {
                            prop_assert!(last.is_none_or(|last| id > last || !is_durable));
                            while !fits(&model) {
                                prop_assert!(!refuses);
                                model.remove(0);
                                dropped += 1;
                            }
                            model.push((id, content));
                            last = Some(id);
                        }
                        Err(OutboxError::Full(_)) => prop_assert!(refuses && !fits(&model)),
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Op::Acknowledge(count) => {
                    if let Some((id, _)) = model.iter().take(count).next_back() {
                        outbox.acknowledge(*id);
                        cursor = Some(*id);
                    }
                    model.drain(..count.min(model.len()));
                }
                Op::Told => {
                    prop_assert_eq!(outbox.take_dropped(), dropped);
                    dropped = 0;
                }
                Op::Write => {
                    block_on(store.write(put("a", fastrand::u64(..), Durability::Durable))).unwrap();
                }
                Op::Reopen => {
                    drop(outbox);
                    drop(store);
                    store = dir.open();
                    outbox = store.outbox(spec).unwrap();
                    if !is_durable {
                        (dropped, last, cursor) = (0, None, None);
                        model.clear();
                    }
                }
            }
            prop_assert_eq!(&outbox.read(None, usize::MAX, usize::MAX).unwrap(), &model);
            prop_assert_eq!(&outbox.read(cursor, usize::MAX, usize::MAX).unwrap(), &model);
            prop_assert_eq!(outbox.len(), model.len() as u64);
            prop_assert_eq!(outbox.dropped(), dropped);
            let pair = outbox.read(None, 2, usize::MAX).unwrap();
            prop_assert_eq!(&pair[..], &model[..model.len().min(2)]);
            let few = outbox.read(pair.first().map(|(id, _)| *id), usize::MAX, 70).unwrap();
            let size = few.iter().map(|(_, item)| item.len()).sum::<usize>();
            prop_assert!(few.len() <= 1 || size <= 70);
            prop_assert_eq!(few.is_empty(), model.len() < 2);
            store.verify().unwrap();
        }
    }
}
