//! What fuzzing found worth keeping, without a fuzzer: every file of `ci/fuzz/corpus` keeps what must hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../ci/fuzz/checks.rs"]
mod checks;

use std::path::Path;

#[test]
fn every_file_of_the_corpus_keeps_what_must_hold() {
    for (target, check) in checks::ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/fuzz/corpus").join(target);
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 5, "{} has {} files", folder.display(), files.len());
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let outcome = std::panic::catch_unwind(|| check(&bytes));
            assert!(outcome.is_ok(), "{}", file.display());
        }
    }
}
