//! A board's store that is not what was written: it is set aside, said, and
//! made anew from the cloud and the running containers. It never keeps the
//! board from starting, and stops no container: what runs is adopted, and is
//! judged only once the cloud has said its whole set.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::{Options, Store, StoreError};

/// Damaged files that are kept at most, the newest as number 1: the card is
/// small.
const KEPT: usize = 2;

/// What became of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    /// Where the damaged file is now; `None` if there was no room to keep it.
    pub kept: Option<PathBuf>,
    /// What was wrong with it.
    pub why: String,
}

impl Setback {
    /// One line for a person.
    pub fn message(&self) -> String {
        let kept = match &self.kept {
            Some(kept) => format!("it is {} now", kept.display()),
            None => "there was no room to keep it".into(),
        };
        format!(
            "the board's store was damaged ({}); {kept}; what the cloud orders is fetched anew and the containers run on; see that the card is well",
            self.why
        )
    }
}

/// Opens the store, after a damaged one was set aside.
///
/// # Errors
/// The directory cannot be used, or another process has the store open.
pub fn open(data_dir: &Path, options: Options) -> Result<(Store, Option<Setback>), StoreError> {
    let options = Options { verify: true, ..options };
    let (path, why) = match Store::open(data_dir, options.clone()) {
        Err(StoreError::Damaged { path, at, why }) => (path, format!("{at}: {why}")),
        opened => return opened.map(|store| (store, None)),
    };
    let refused = |error: io::Error| StoreError::Open { path: path.clone(), why: error.to_string() };
    let mut setback = Setback { kept: Some(set_aside(&path).map_err(refused)?), why };
    let store = match Store::open(data_dir, options.clone()) {
        Err(StoreError::Full { .. }) => {
            for number in 1..=KEPT {
                // What cannot be removed makes no room; opening says so.
                let _ = fs::remove_file(aside(&path, number));
            }
            setback.kept = None;
            Store::open(data_dir, options)?
        }
        opened => opened?,
    };
    log::error!("{}", setback.message());
    Ok((store, Some(setback)))
}

/// How often the store is looked through while the board runs.
pub const LOOK: Duration = Duration::from_secs(3600);

/// Waits until the store is seen to be damaged; gives why. A look reads all of
/// it and writes nothing.
pub async fn damaged(store: &Store, every: Duration) -> String {
    loop {
        smol::Timer::after(every).await;
        let store = store.clone();
        // A file that makes no sense can make the database panic.
        let look = move || catch_unwind(AssertUnwindSafe(|| store.verify()));
        match smol::unblock(look).await {
            Ok(Err(StoreError::Damaged { at, why, .. })) => return format!("{at}: {why}"),
            Err(_) => return "it makes no sense".into(),
            Ok(_) => {}
        }
    }
}

fn aside(path: &Path, number: usize) -> PathBuf {
    path.with_extension(format!("redb.damaged-{number}"))
}

/// Gives the file the first of the names for damaged ones; those that have
/// them move on, and the last goes.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    for number in (1..KEPT).rev() {
        match fs::rename(aside(path, number), aside(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, aside(path, 1))?;
    Ok(aside(path, 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::object::{Key, Origin};
    use crate::store::{Action, Durability, Expect, Scope, Write};

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("holm-recover-{}", crate::object::Uid::random()))
    }

    /// The bytes of a store with a few pods.
    fn written() -> Vec<u8> {
        static WRITTEN: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        WRITTEN.get_or_init(write).clone()
    }

    fn write() -> Vec<u8> {
        let folder = folder();
        let store = Store::open(&folder, Options::default()).unwrap();
        let writes = (0..20).map(|n| {
            let name = format!("p{n}");
            let value = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"x": "y".repeat(500)}});
            let action = Action::Put { value, origin: Origin::Cloud, durability: Durability::Durable };
            Write { key: Key::core("pods", "default", &name).unwrap(), expect: Expect::Anything, action }
        });
        smol::block_on(store.write_all(writes.collect())).unwrap();
        store.backup(&folder.join("copy")).unwrap();
        let bytes = fs::read(folder.join("copy")).unwrap();
        fs::remove_dir_all(folder).unwrap();
        bytes
    }

    /// What becomes of a board whose store has these bytes: how many pods it
    /// still has, and what was set aside.
    fn opened(bytes: &[u8]) -> (usize, Option<Setback>) {
        let folder = folder();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("holm.redb"), bytes).unwrap();
        let (store, setback) = open(&folder, Options::default()).unwrap();
        let pods = store.list(&Scope::all("", "pods"), None, None).unwrap().objects.len();
        if let Some(setback) = &setback {
            assert!(setback.kept.as_ref().unwrap().exists());
        }
        fs::remove_dir_all(folder).unwrap();
        (pods, setback)
    }

    #[test]
    fn whatever_the_file_is_the_board_starts() {
        let whole = written();
        assert_eq!(opened(&whole), (20, None));
        let garbage: Vec<u8> = (0..9000u32).map(|n| (n * 31 % 251) as u8).collect();
        for bytes in [&[][..], &whole[..whole.len() / 2], &whole[..100], &vec![0; whole.len()], &garbage] {
            let (pods, setback) = opened(bytes);
            assert_eq!(pods, 0);
            let said = setback.unwrap().message();
            assert!(said.contains("holm.redb.damaged-1") && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn few_damaged_files_are_kept() {
        let folder = folder();
        fs::create_dir(&folder).unwrap();
        for round in 0..5 {
            fs::write(folder.join("holm.redb"), format!("damaged {round}")).unwrap();
            let (store, setback) = open(&folder, Options::default()).unwrap();
            assert!(setback.is_some());
            drop(store);
            while fs::File::open(folder.join("holm.redb")).unwrap().try_lock().is_err() {
                std::thread::yield_now();
            }
        }
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(read("holm.redb.damaged-1"), "damaged 4");
        assert_eq!(read("holm.redb.damaged-2"), "damaged 3");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn damage_is_seen_while_the_board_runs() {
        let folder = folder();
        fs::create_dir(&folder).unwrap();
        let file = folder.join("holm.redb");
        fs::write(&file, written()).unwrap();
        let (store, _) = open(&folder, Options { cache_bytes: 0, ..Options::default() }).unwrap();
        let length = usize::try_from(fs::metadata(&file).unwrap().len()).unwrap();
        let soon = Duration::from_millis(1);
        let still = async {
            smol::Timer::after(soon * 50).await;
            "well".to_owned()
        };
        assert_eq!(smol::block_on(smol::future::or(damaged(&store, soon), still)), "well");
        // In place, under the open store.
        let mut bytes = fs::read(&file).unwrap();
        bytes.iter_mut().skip(4096).step_by(97).for_each(|byte| *byte ^= 1);
        let opened = fs::OpenOptions::new().write(true).open(&file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&opened, &bytes, 0).unwrap();
        assert_eq!(bytes.len(), length);
        assert!(!smol::block_on(damaged(&store, soon)).is_empty());
        fs::remove_dir_all(folder).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Flipped bytes anywhere: every pod is there as it was written, or
        /// the damage is said and the store begins anew; never a few of them.
        #[test]
        fn flipped_bytes_are_seen_or_do_no_harm(at in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4)) {
            let mut bytes = written();
            for (index, mask) in at {
                let at = index.index(bytes.len());
                bytes[at] ^= mask;
            }
            let (pods, setback) = opened(&bytes);
            prop_assert_eq!(pods, if setback.is_some() { 0 } else { 20 });
        }
    }
}
