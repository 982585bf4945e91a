//! What tests against real programs share. A test that lacks a program prints
//! `SKIPPED: <test>: <what is missing>` and returns.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod board;
pub mod containerd;
pub mod liar;
pub mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The folder that an environment variable names, if it is there.
pub fn folder_of(variable: &str) -> Result<PathBuf, String> {
    let folder = std::env::var_os(variable).ok_or_else(|| format!("{variable} is not set"))?;
    let folder = PathBuf::from(folder);
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(format!("{variable}={} is no folder", folder.display())),
    }
}

/// Says that a test did not run, and why.
pub fn skipped(test: &str, why: &str) {
    println!("SKIPPED: {test}: {why}");
}

/// A new empty folder for one test.
pub fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("holm-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A cgroup of this test process's own for its pods.
pub fn cgroup_parent() -> String {
    format!("/holm-test-{}", std::process::id())
}

/// Asks `probe` every few milliseconds until it answers; fails after 30 s naming `what`.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "waited 30 s for {what}");
        smol::Timer::after(Duration::from_millis(10)).await;
    }
}

/// The cgroups directly below a parent, of any controller (version 1) or the one (version 2).
pub fn cgroups_below(parent: &str) -> Vec<PathBuf> {
    let parent = parent.trim_start_matches('/');
    let root = PathBuf::from("/sys/fs/cgroup");
    let controllers = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.path());
    let folders = controllers.chain([root]).map(|c| c.join(parent));
    let below = folders.flat_map(|f| std::fs::read_dir(f).into_iter().flatten().flatten());
    below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}
