//! Clocks that are wrong, with real roles: the program runs with a library before its own that shifts the time of
//! day by what a file says, also while it runs, and leaves the monotonic clocks alone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod roles;

use holm::trust::UnixTime;
use holm::trust::clock::BUILD_TIME;
use holm::trust::identity::read_floor;
use roles::{Board, Cloud, Scratch, current_key, key_of, start_edge_in, until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The library: HOLM_TEST_SHIFT names the file with the seconds to shift by.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *t) {
    int result = syscall(SYS_clock_gettime, id, t);
    const char *path = getenv("HOLM_TEST_SHIFT");
    if (result == 0 && path && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        char text[32] = "";
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0 && read(file, text, sizeof text - 1) > 0)
            t->tv_sec += atol(text);
        if (file >= 0)
            close(file);
    }
    return result;
}
"#;

const DAY: i64 = 24 * 3600;
const YEARS: i64 = 3650 * DAY;

/// A clock of its own for a role.
struct Shifted {
    library: PathBuf,
    file: PathBuf,
}

impl Shifted {
    /// `None`, said so, where there is no C compiler or the program takes no library.
    fn new(test: &str, scratch: &Scratch) -> Option<Shifted> {
        let (source, library) = (scratch.path("shift.c"), scratch.path("shift.so"));
        std::fs::write(&source, SHIM).unwrap();
        let made =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
        let shifted = Shifted { library, file: scratch.path("shift") };
        shifted.set(-now());
        let mut probe = Command::new(env!("CARGO_BIN_EXE_holm"));
        probe.args(["token", "create", "--data-dir"]).arg(scratch.path("none")).envs(shifted.env());
        if !made.is_ok_and(|status| status.success())
            || !probe.output().is_ok_and(|output| !output.status.success())
        {
            println!("SKIPPED: {test}: cc");
            return None;
        }
        Some(shifted)
    }

    fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.library.clone()), ("HOLM_TEST_SHIFT", self.file.clone())]
    }

    fn set(&self, seconds: i64) {
        // Renamed into place: a clock is never half set.
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, seconds.to_string()).unwrap();
        std::fs::rename(fresh, &self.file).unwrap();
    }
}

fn now() -> i64 {
    UnixTime::now().as_secs() as i64
}

fn floor(folder: &Path) -> u64 {
    read_floor(folder).unwrap().unwrap().floor.time().as_secs()
}

/// How often the node has connected.
fn connections(cloud: &Cloud) -> usize {
    let log = std::fs::read_to_string(cloud.folder.with_extension("log")).unwrap();
    log.matches("node pi connected").count()
}

#[test]
fn a_board_is_as_good_as_any_whatever_its_clock_shows() {
    let scratch = Scratch::new();
    let Some(clock) = Shifted::new("a_board_is_as_good_as_any_whatever_its_clock_shows", &scratch) else {
        return;
    };
    let mut cloud = Cloud::start(scratch.path("c"), &[]);
    let folder = scratch.path("e");
    // It is past two thirds of its life by the cloud's time.
    let first =
        Board::member(&folder, &cloud, Duration::from_secs(1800)).slot().key_fingerprint().to_string();
    clock.set(60 - now());
    let edge = start_edge_in(&folder, clock.env());
    let renewed = until("a board in 1970 to renew", || current_key(&folder).filter(|key| *key != first));
    until("the node to be there", || cloud.node().filter(|node| key_of(node) == Some(renewed.clone())));
    let log = std::fs::read_to_string(folder.with_extension("log")).unwrap();
    if !log.contains("1970-01-01T") {
        return println!(
            "SKIPPED: a_board_is_as_good_as_any_whatever_its_clock_shows: a program that takes libraries"
        );
    }
    let kept = floor(&folder);
    assert!(kept >= BUILD_TIME.as_secs() && kept <= now() as u64, "{kept}");

    // A day forward and two back while it runs, and the cloud away in between.
    for shift in [60 - now() + DAY, 60 - now() - DAY / 2, BUILD_TIME.as_secs() as i64 - now(), YEARS] {
        clock.set(shift);
        let before = connections(&cloud);
        cloud.restart(&[]);
        until("the board to come back", || (connections(&cloud) > before).then_some(()));
    }
    drop(edge);
    // And as it starts: what its own clock shows makes no certificate old.
    for shift in [YEARS, BUILD_TIME.as_secs() as i64 - now(), 0] {
        clock.set(shift);
        let before = connections(&cloud);
        let edge = start_edge_in(&folder, clock.env());
        until("the board to connect", || (connections(&cloud) > before).then_some(()));
        drop(edge);
    }
    assert_eq!(current_key(&folder), Some(renewed), "it was not due by the cloud's time");
    assert_eq!(floor(&folder), kept, "a restart is no confirmation");
}

#[test]
fn a_cloud_whose_clock_is_behind_issues_nothing_and_goes_on() {
    let scratch = Scratch::new();
    let Some(clock) = Shifted::new("a_cloud_whose_clock_is_behind_issues_nothing_and_goes_on", &scratch)
    else {
        return;
    };
    clock.set(0);
    let mut cloud = Cloud::start_in(scratch.path("c"), &[], clock.env());
    let mut board = Board::join(&scratch.path("e"), &cloud.code(None)).unwrap();
    board.session(async |_, _| ()).unwrap();
    let code = cloud.code(None);

    clock.set(60 - now());
    cloud.restart(&[]);
    board.session(async |_, welcome| assert!(!welcome.renew_only)).unwrap();
    let log = std::fs::read_to_string(cloud.folder.with_extension("log")).unwrap();
    if !log.contains("1970-01-01T") {
        return println!(
            "SKIPPED: a_cloud_whose_clock_is_behind_issues_nothing_and_goes_on: a program that takes libraries"
        );
    }
    assert_eq!(log.matches("no certificates are issued or renewed").count(), 1);
    for reason in [board.renew().unwrap_err(), Board::join(&scratch.path("x"), &code).err().unwrap()] {
        assert!(reason.contains("clock is wrong") && reason.contains("set it"), "{reason}");
    }
    // Set right while it runs, it issues.
    clock.set(0);
    assert_eq!(board.renew(), Ok(false));
}

#[test]
fn a_cloud_that_is_years_ahead_ages_nobody_for_good() {
    let scratch = Scratch::new();
    let Some(clock) = Shifted::new("a_cloud_that_is_years_ahead_ages_nobody_for_good", &scratch) else {
        return;
    };
    clock.set(0);
    let mut cloud = Cloud::start_in(scratch.path("c"), &[], clock.env());
    let old = Board::join(&scratch.path("old"), &cloud.code(None)).unwrap();
    let code = cloud.code(Some("pi"));
    clock.set(YEARS / 40);
    cloud.restart(&[]);
    // It lets in who is not too old by its time; what it issues begins then.
    assert!(old.session(async |_, welcome| welcome.renew_only).unwrap());
    clock.set(YEARS);
    cloud.restart(&[]);
    assert!(old.refused().contains("expired"));
    let folder = scratch.path("e");
    clock.set(0);
    cloud.restart(&[]);
    let board = Board::join(&folder, &code).unwrap();
    let first = current_key(&folder).unwrap();
    clock.set(YEARS / 120);
    let before = connections(&cloud);
    let edge = start_edge_in(&folder, vec![]);
    until("the board to connect", || (connections(&cloud) > before).then_some(()));
    // A month ahead: the certificate is renewed into the future, the floor goes a day.
    let ahead = until("it to be renewed", || current_key(&folder).filter(|key| *key != first));
    let uptime = holm::boot::now().up.as_secs();
    until("the floor to be written", || read_floor(&folder).unwrap());
    assert!(floor(&folder) <= BUILD_TIME.as_secs() + uptime + DAY as u64, "{}", floor(&folder));
    drop(edge);
    // The right time again: another certificate, for the one of the future.
    clock.set(0);
    cloud.restart(&[]);
    let edge = start_edge_in(&folder, vec![]);
    until("it to be renewed again", || current_key(&folder).filter(|key| *key != ahead));
    let end = board.rebooted().slot().facts().unwrap().not_after;
    assert!(end.as_secs() as i64 <= now() + 31 * DAY);
    drop(edge);
}
