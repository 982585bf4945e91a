//! Power cuts: at every moment of a run, with what the disk had not synced
//! arriving in part, torn, or in another order, and once more while the store
//! recovers from that.
//!
//! A run of the store on a [`Disk`] gives a list of steps. A cut is a place in
//! that list: everything before the last sync is on the disk, and of the rest
//! whatever is chosen. The store must open on that, and hold exactly what had
//! been answered, with or without what was under way.
//!
//! `HOLM_CRASH_SEEDS` says how many runs are made (4 if unset).

use super::disk::{Disk, Step, write};
use super::*;

const SECTOR: usize = 512;
const BOX: OutboxOptions = OutboxOptions {
    name: "test",
    durability: Durability::Durable,
    items: 6,
    bytes: 20_000,
    when_full: WhenFull::DropOldest,
};

/// What a store holds.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    objects: Vec<(String, Revision, Value)>,
    fact: Option<Vec<u8>>,
    /// Without those that are acknowledged.
    items: Vec<(ItemId, Vec<u8>)>,
    dropped: u64,
}

/// What is known about a run after one of its answers.
#[derive(Clone, Debug)]
struct Known {
    held: Held,
    last_revision: Revision,
    last_item: Option<ItemId>,
}

fn options() -> Options {
    // So little that pages are written before the commit that needs them.
    Options { cache_bytes: 16 << 10, ..Options::default() }
}

fn open(disk: &Disk) -> Result<Store, StoreError> {
    Store::open_backend(Path::new("the disk"), disk.clone(), options())
}

fn held(store: &Store, outbox: &Outbox) -> Held {
    let objects = store.list(&all(), None, None).unwrap().objects;
    let object = |o: &Arc<Object>| (o.key.name.clone(), o.revision, o.value.clone());
    Held {
        objects: objects.iter().map(object).collect(),
        fact: store.fact("test/fact").unwrap(),
        items: outbox.read(None, usize::MAX, usize::MAX).unwrap(),
        dropped: outbox.dropped(),
    }
}

fn sized(name: u8, size: usize, random: &mut fastrand::Rng) -> Write {
    let mut write = put(&format!("o{name}"), random.u64(..), Durability::Durable);
    if let Action::Put { value, .. } = &mut write.action {
        value["text"] = json!("x".repeat(size));
    }
    write
}

/// One run: what was known at its start and after each answer.
fn run(disk: &Disk, seed: u64) -> Vec<Known> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut store = open(disk).unwrap();
    let mut outbox = store.outbox(BOX).unwrap();
    let (mut last_revision, mut last_item) = (store.revision(), None);
    let known = |store: &Store, outbox: &Outbox, last_revision, last_item| Known {
        held: held(store, outbox),
        last_revision,
        last_item,
    };
    let mut run = vec![known(&store, &outbox, last_revision, last_item)];
    disk.mark();
    for step in 0..16 {
        match random.u8(..10) {
            0 => {
                // Given without a commit, except where a block of revisions ends.
                let count = if seed % 4 == 1 && step > 8 { 4200 } else { 3 };
                for data in 0..count {
                    let key = Key { resource: "seen".into(), ..key("v") };
                    let write = Write { key, ..put("v", data, Durability::Volatile) };
                    last_revision = block_on(store.write(write)).unwrap().revision;
                }
            }
            1..3 => {
                let size = if random.u8(..4) == 0 { random.usize(..12_000) } else { random.usize(..900) };
                let write = sized(random.u8(..8), size, &mut random);
                last_revision = block_on(store.write(write)).unwrap().revision;
            }
            3 => {
                let writes: Vec<Write> = (0..6).map(|name| sized(name, 300, &mut random)).collect();
                let outcomes = block_on(store.write_all(writes)).unwrap();
                last_revision = outcomes.last().unwrap().as_ref().unwrap().revision;
            }
            4 => {
                let name = format!("o{}", random.u8(..8));
                if let Ok(removed) = block_on(store.write(delete(&name))) {
                    last_revision = removed.revision;
                }
            }
            5 => {
                let value = random.u64(..).to_be_bytes().to_vec();
                block_on(store.set_fact("test/fact", value)).unwrap();
            }
            6..8 => {
                let item: Vec<u8> = (0..random.usize(8..5000)).map(|_| random.u8(..)).collect();
                last_item = Some(block_on(outbox.append(item)).unwrap());
            }
            8 => {
                let count = random.usize(1..4);
                if let Some((id, _)) = outbox.read(None, count, usize::MAX).unwrap().pop() {
                    outbox.acknowledge(id);
                }
                outbox.take_dropped();
            }
            // A file grows and is closed in an orderly way, now and then.
            _ if seed.is_multiple_of(4) && step > 10 => {
                let writes: Vec<Write> = (0..9).map(|name| sized(name + 20, 90_000, &mut random)).collect();
                let outcomes = block_on(store.write_all(writes)).unwrap();
                last_revision = outcomes.last().unwrap().as_ref().unwrap().revision;
            }
            _ => {
                drop(outbox);
                drop(store);
                disk.closed();
                store = open(disk).unwrap();
                outbox = store.outbox(BOX).unwrap();
                // It counts on from a block of its own.
                last_revision = last_revision.max(store.revision());
            }
        }
        run.push(known(&store, &outbox, last_revision, last_item));
        disk.mark();
    }
    drop(outbox);
    drop(store);
    disk.closed();
    run
}

/// Applies a step, or the part of it between two sectors.
fn apply(bytes: &mut Vec<u8>, step: &Step, part: Option<(usize, usize)>) {
    match step {
        Step::Write { at, data } => {
            let (from, to) = part.unwrap_or((0, data.len()));
            write(bytes, at + from, &data[from..to]);
        }
        Step::SetLength(length) => bytes.resize(*length, 0),
        Step::Sync | Step::Mark => {}
    }
}

/// A part of a write that a disk could have done: some sectors from its start
/// or to its end.
fn torn(step: &Step, random: &mut fastrand::Rng) -> Option<(usize, usize)> {
    let Step::Write { at, data } = step else { return None };
    let borders: Vec<usize> = (1..data.len()).filter(|offset| (at + offset).is_multiple_of(SECTOR)).collect();
    let border = *random.choice(&borders)?;
    Some(if random.bool() { (0, border) } else { (border, data.len()) })
}

/// The disks that a cut before `steps[end]` can leave; `base` is what was
/// synced, `synced` the step after that sync.
fn images(
    base: &[u8],
    steps: &[Step],
    synced: usize,
    end: usize,
    random: &mut fastrand::Rng,
    mut each: impl FnMut(Vec<u8>, &str),
) {
    let pending: Vec<&Step> =
        steps[synced..end].iter().filter(|step| !matches!(step, Step::Mark | Step::Sync)).collect();
    let mut prefix = base.to_vec();
    pending.iter().for_each(|step| apply(&mut prefix, step, None));
    each(prefix, "all that was written");
    if let Some((last, before)) = pending.split_last()
        && let Some(part) = torn(last, random)
    {
        let mut bytes = base.to_vec();
        before.iter().for_each(|step| apply(&mut bytes, step, None));
        apply(&mut bytes, last, Some(part));
        each(bytes, "the last write torn");
    }
    if pending.len() > 1 {
        let mut chosen: Vec<&Step> = pending.iter().copied().filter(|_| random.bool()).collect();
        random.shuffle(&mut chosen);
        let mut bytes = base.to_vec();
        for step in chosen {
            let part = if random.u8(..3) == 0 { torn(step, random) } else { None };
            apply(&mut bytes, step, part);
        }
        each(bytes, "some writes in another order");
    }
}

/// Every cut of a list of steps: the disk it leaves, how many marks were
/// before it, and how it is described. Of a long row of writes without a sync
/// only some prefixes are tried.
fn cuts(
    start: &[u8],
    steps: &[Step],
    random: &mut fastrand::Rng,
    mut each: impl FnMut(Vec<u8>, usize, &str),
) {
    let mut base = start.to_vec();
    let mut synced = 0;
    let mut marks = 0;
    for end in 0..=steps.len() {
        let length = end - synced;
        let next = steps.get(end);
        let is_telling = !matches!(next, Some(Step::Mark)) && (length < 24 || random.usize(..length) < 24);
        if is_telling {
            images(&base, steps, synced, end, random, |bytes, how| each(bytes, marks, how));
        }
        match next {
            Some(Step::Sync) => {
                steps[synced..end].iter().for_each(|step| apply(&mut base, step, None));
                synced = end + 1;
            }
            Some(Step::Mark) => marks += 1,
            _ => {}
        }
    }
}

/// True if what was recovered is what was known.
fn is(found: &Held, known: &Held) -> bool {
    // Acknowledged items may come again, in front of the others, and a loss
    // may be told again.
    found.objects == known.objects
        && found.fact == known.fact
        && found.items.ends_with(&known.items)
        && found.dropped >= known.dropped
}

/// Opens a store after a cut, and gives what it holds if that is one of
/// `allowed`.
fn recover(disk: &Disk, allowed: &[&Known], how: &str) -> Held {
    let store = open(disk).unwrap_or_else(|error| panic!("{how}: {error}"));
    let outbox = store.outbox(BOX).unwrap();
    let found = held(&store, &outbox);
    disk.mark();
    store.verify().unwrap_or_else(|error| panic!("{how}: {error}"));
    let known = allowed.iter().find(|known| is(&found, &known.held));
    let known = known.unwrap_or_else(|| panic!("{how}: found {found:?}\nof {allowed:?}"));
    let next = block_on(store.write(put("after", 1, Durability::Durable))).unwrap().revision;
    let given = known.last_revision;
    assert!(next > given, "{how}: revision {next} after {given}");
    let next = block_on(outbox.append(b"after".to_vec())).unwrap();
    assert!(known.last_item.is_none_or(|last| last < next), "{how}: item {next:?} again");
    found
}

#[test]
fn a_power_cut_takes_nothing_that_was_answered() {
    let seeds = std::env::var("HOLM_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4u64);
    let (mut first, mut second) = (0usize, 0usize);
    // Making the file is a matter of renaming: `file::Place::make`.
    let made = Disk::default();
    drop(open(&made).unwrap());
    made.closed();
    for seed in 0..seeds {
        let start = made.bytes();
        let disk = Disk::with(start.clone());
        let run = run(&disk, seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut again = fastrand::Rng::with_seed(seed);
        cuts(&start, &disk.steps(), &mut random, |bytes, marks, how| {
            first += 1;
            let how = format!("seed {seed}, cut {first} after answer {marks}, {how}");
            // What is under way may be done or not.
            let from = marks.saturating_sub(1);
            let allowed: Vec<&Known> = run[from..run.len().min(marks + 1)].iter().collect();
            let image = Disk::with(bytes.clone());
            let found = recover(&image, &allowed, &how);
            image.closed();
            // Until the store was given out, either is right; then what was
            // found has been seen.
            let steps = image.steps();
            let until = steps.iter().position(|step| matches!(step, Step::Mark)).unwrap();
            if again.usize(..4) > 0 {
                return;
            }
            cuts(&bytes, &steps[..until], &mut again, |bytes, _, how_again| {
                second += 1;
                let how = format!("{how}; then {how_again} (cut {second})");
                recover(&Disk::with(bytes), &allowed, &how);
            });
            let image = Disk::with(image.bytes());
            let store = open(&image).unwrap();
            let seen = held(&store, &store.outbox(BOX).unwrap());
            assert_eq!(seen.objects.len(), found.objects.len() + 1, "{how}");
        });
    }
    println!("{first} cuts, and {second} cuts of recoveries");
    assert!(first > 100 && second > 100);
}
