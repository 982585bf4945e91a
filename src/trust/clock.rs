//! What time may be believed.
//!
//! A board without a battery-backed clock boots in 1970, and a cloud's clock can be wrong too. So the edge
//! keeps a *floor*, a time that has certainly passed, and judges expiry by nothing else; the cloud issues
//! nothing while its clock is behind what has certainly passed.

use super::{UnixTime, unix};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// No clock of this program can rightly show an earlier time: 2026-11-01T00:00:00Z, or
/// `SOURCE_DATE_EPOCH` of the build where that is later.
pub const BUILD_TIME: UnixTime = {
    let of_source = 1_793_491_200;
    match option_env!("SOURCE_DATE_EPOCH") {
        Some(text) => match u64::from_str_radix(text, 10) {
            Ok(given) if given > of_source => unix(given),
            _ => unix(of_source),
        },
        None => unix(of_source),
    }
};

/// How far one confirmation moves the floor beyond the time that has passed by the monotonic clock.
pub const LEAP_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Two confirmations of one boot that are closer together than this are one: neither reconnecting often nor
/// restarting the program moves anything.
pub const CONFIRM_EVERY: Duration = LEAP_MAX;
/// How much the floor moves before it is worth writing to flash.
const WRITE_EVERY: Duration = LEAP_MAX;

/// A time that has certainly passed. It is kept on flash, and starts at [`BUILD_TIME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Floor(UnixTime);

impl Floor {
    /// The floor of a program that knows nothing but when it was built.
    pub const INITIAL: Floor = Floor(BUILD_TIME);

    /// The floor as it was read back from where it is kept, or as an operator resets it.
    pub fn at(time: UnixTime) -> Floor {
        Floor(time)
    }

    /// The time that has certainly passed.
    pub fn time(self) -> UnixTime {
        self.0
    }
}

/// The floor after an authenticated peer has told the time.
///
/// `elapsed` is the time by the monotonic clock since the last confirmation, or since the boot. The floor
/// never moves backwards, and at most [`LEAP_MAX`] beyond `elapsed`: a cloud whose clock is ten years ahead
/// ages a board by a day, not by ten years.
pub fn confirm(floor: Floor, authenticated: UnixTime, elapsed: Duration) -> Floor {
    let reach = floor.0.as_secs().saturating_add(elapsed.as_secs()).saturating_add(LEAP_MAX.as_secs());
    let told = authenticated.as_secs().min(reach);
    Floor(unix(told.max(floor.0.as_secs())))
}

/// Whether the floor has moved enough since it was last written: at most one write a day.
pub fn is_worth_writing(written: Floor, now: Floor) -> bool {
    let moved = now.0.as_secs().saturating_sub(written.0.as_secs());
    moved >= WRITE_EVERY.as_secs()
}

/// A moment as the monotonic clock tells it: which boot of the machine, and how long that had lasted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's random name for this boot; at most [`BOOT_ID_MAX`] bytes without white space.
    pub id: String,
    /// Time since the boot (CLOCK_BOOTTIME, which nobody sets).
    pub up: Duration,
}

/// Longest [`Boot::id`] that is kept, in bytes; a UUID has 36.
pub const BOOT_ID_MAX: usize = 64;

/// What is kept of the clock: the floor, and the confirmation that moved it there, so that a restart of the
/// program is not one more confirmation.
///
/// As text it is two lines: seconds after 1970, then the boot's name and seconds since the boot. The second
/// line may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The floor.
    pub floor: Floor,
    /// When it was last confirmed.
    pub confirmed: Option<Boot>,
}

impl From<Floor> for Kept {
    fn from(floor: Floor) -> Kept {
        Kept { floor, confirmed: None }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.floor.0.as_secs())?;
        match &self.confirmed {
            Some(Boot { id, up }) => writeln!(f, "{id} {}", up.as_secs()),
            None => Ok(()),
        }
    }
}

impl FromStr for Kept {
    type Err = NotKept;

    fn from_str(text: &str) -> Result<Kept, NotKept> {
        let mut lines = text.lines();
        let floor = lines.next().and_then(|line| line.trim().parse().ok()).ok_or(NotKept)?;
        let confirmed = lines.next().and_then(|line| {
            let (id, up) = line.trim_end().split_once(' ')?;
            let up = Duration::from_secs(up.parse().ok()?);
            (id.len() <= BOOT_ID_MAX).then(|| Boot { id: id.to_owned(), up })
        });
        Ok(Kept { floor: Floor(unix(floor)), confirmed })
    }
}

/// A text that is not a kept floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a floor of time")]
pub struct NotKept;

/// The floor with what is needed to move it, and the time that an authenticated peer told. Whoever owns the
/// session drives it; `monotonic` is the time since [`Clock::new`]'s `boot` was read.
#[derive(Debug, Clone)]
pub struct Clock {
    floor: Floor,
    written: Option<Floor>,
    confirmed: Option<Boot>,
    /// When `monotonic` was zero.
    boot: Boot,
    /// The last time told, and when by `monotonic`.
    told: Option<(UnixTime, Duration)>,
}

impl Clock {
    /// Starts from what was kept, `None` on a machine that never kept a floor or whose floor was reset.
    pub fn new(kept: Option<Kept>, boot: Boot) -> Clock {
        let written = kept.as_ref().map(|kept| kept.floor);
        Clock {
            floor: written.unwrap_or(Floor::INITIAL).max(Floor::INITIAL),
            written,
            confirmed: kept.and_then(|kept| kept.confirmed),
            boot,
            told: None,
        }
    }

    /// The floor to judge a peer's certificates by.
    pub fn floor(&self) -> Floor {
        self.floor
    }

    /// The best time to judge one's own certificate by: what an authenticated peer told since this program
    /// started, gone on by the monotonic clock, and never behind the floor.
    pub fn now(&self, monotonic: Duration) -> UnixTime {
        let told = self.told.map(|(time, at)| later(time, monotonic.saturating_sub(at)));
        told.unwrap_or(self.floor.0).max(self.floor.0)
    }

    /// An authenticated peer has told the time.
    ///
    /// Returns what to write, if it is worth a write; the caller reports success with [`Clock::written`].
    pub fn confirm(&mut self, authenticated: UnixTime, monotonic: Duration) -> Option<Kept> {
        self.told = Some((authenticated, monotonic));
        let now = self.boot.up.saturating_add(monotonic);
        // What a boot before this one saw of the monotonic clock says nothing about how long ago it was.
        let last = self.confirmed.as_ref().filter(|confirmed| confirmed.id == self.boot.id);
        let elapsed = now.saturating_sub(last.map_or(Duration::ZERO, |last| last.up));
        if last.is_none() || elapsed >= CONFIRM_EVERY {
            self.floor = confirm(self.floor, authenticated, elapsed);
            self.confirmed = Some(Boot { id: self.boot.id.clone(), up: now });
        }
        match self.written {
            Some(written) if !is_worth_writing(written, self.floor) => None,
            _ => Some(Kept { floor: self.floor, confirmed: self.confirmed.clone() }),
        }
    }

    /// Time has passed in a session whose peer once told the time: a session of months confirms too. Returns
    /// what to write, as [`Clock::confirm`] does.
    pub fn tick(&mut self, monotonic: Duration) -> Option<Kept> {
        let (time, at) = self.told?;
        self.confirm(later(time, monotonic.saturating_sub(at)), monotonic)
    }

    /// It has been written.
    pub fn written(&mut self, kept: &Kept) {
        self.written = Some(kept.floor);
    }
}

fn later(time: UnixTime, by: Duration) -> UnixTime {
    unix(time.as_secs().saturating_add(by.as_secs()))
}

/// The cloud's own time, after it was found not to be behind what has certainly passed. Certificates are
/// issued at such a time only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IssueTime(UnixTime);

impl IssueTime {
    /// Judges the cloud's clock.
    ///
    /// # Errors
    /// The clock is behind the build time or behind the kept floor.
    pub fn check(now: UnixTime, floor: Floor) -> Result<IssueTime, ClockError> {
        if now < BUILD_TIME {
            Err(ClockError::BeforeBuild { now: now.as_secs() })
        } else if now < floor.0 {
            let behind = floor.0.as_secs().saturating_sub(now.as_secs());
            Err(ClockError::BeforeFloor { behind })
        } else {
            Ok(IssueTime(now))
        }
    }

    /// The time itself.
    pub fn time(self) -> UnixTime {
        self.0
    }
}

/// Why the cloud's clock is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// Behind the build time of the program.
    #[error(
        "the cloud's clock is wrong ({now} s after 1970 is before this program was built): set it, then try again"
    )]
    BeforeBuild {
        /// What the clock shows, in seconds after 1970.
        now: u64,
    },
    /// Behind a time that it once was.
    #[error("the cloud's clock went back by {behind} s: set it, then try again")]
    BeforeFloor {
        /// How far behind the floor the clock is, in seconds.
        behind: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 24 * 60 * 60;

    #[test]
    fn the_build_time_is_the_documented_date() {
        let date: jiff::Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        let documented = unix(date.as_second() as u64);
        match option_env!("SOURCE_DATE_EPOCH") {
            None => assert_eq!(BUILD_TIME, documented),
            Some(_) => assert!(BUILD_TIME >= documented),
        }
    }

    fn boot(id: &str, up: u64) -> Boot {
        Boot { id: id.into(), up: Duration::from_secs(up) }
    }

    fn after_build(seconds: u64) -> UnixTime {
        unix(BUILD_TIME.as_secs() + seconds)
    }

    /// A program that starts at a moment of a boot, with what the one before it wrote.
    fn started(kept: &Option<Kept>, id: &str, up: u64) -> Clock {
        Clock::new(kept.clone(), boot(id, up))
    }

    /// It is told a time; what it writes is kept.
    fn tell(clock: &mut Clock, told: UnixTime, monotonic: u64, kept: &mut Option<Kept>) {
        if let Some(write) = clock.confirm(told, Duration::from_secs(monotonic)) {
            clock.written(&write);
            // Through the file's text, as a restart would read it.
            *kept = Some(write.to_string().parse().unwrap());
        }
    }

    #[test]
    fn a_clock_ten_years_ahead_moves_the_floor_by_a_day() {
        let ahead = after_build(3650 * DAY);
        let mut clock = started(&None, "a", 0);
        for second in 0..100 {
            clock.confirm(ahead, Duration::from_secs(second));
        }
        assert_eq!(clock.floor().time(), after_build(DAY));
    }

    #[test]
    fn restarting_the_program_is_no_confirmation_and_booting_is_one() {
        let ahead = after_build(3650 * DAY);
        let mut kept = None;
        for restart in 0..100 {
            let mut clock = started(&kept, "a", 60 * restart);
            tell(&mut clock, ahead, 1, &mut kept);
            assert!(clock.floor().time() <= after_build(DAY + 1), "restart {restart}");
        }
        let mut clock = started(&kept, "b", 0);
        tell(&mut clock, ahead, 5, &mut kept);
        assert_eq!(clock.floor().time(), after_build(2 * DAY + 6));
        // A day later in the same boot, whatever the number of restarts.
        let mut clock = started(&kept, "b", DAY);
        tell(&mut clock, ahead, 5, &mut kept);
        assert_eq!(clock.floor().time(), after_build(4 * DAY + 6));
    }

    #[test]
    fn a_clock_that_jumps_moves_the_floor_by_a_day_and_never_back() {
        let mut kept = None;
        let mut clock = started(&None, "a", 0);
        tell(&mut clock, after_build(10 * 3600), 0, &mut kept);
        assert_eq!(clock.floor().time(), after_build(10 * 3600));
        // A day forward at once, and a day back.
        tell(&mut clock, after_build(34 * 3600), 60, &mut kept);
        assert_eq!(clock.floor().time(), after_build(10 * 3600));
        tell(&mut clock, unix(0), DAY, &mut kept);
        assert_eq!(clock.floor().time(), after_build(10 * 3600));
    }

    #[test]
    fn one_s_own_age_is_judged_by_told_time_that_goes_on() {
        let mut clock = started(&None, "a", 0);
        let at = Duration::from_secs;
        assert_eq!(clock.now(at(DAY)), BUILD_TIME);
        clock.confirm(after_build(100 * DAY), at(5));
        assert_eq!(clock.now(at(15)), after_build(100 * DAY + 10));
        // A cloud in 1970 does not take the board back behind its floor.
        clock.confirm(unix(0), at(20));
        assert_eq!(clock.now(at(20)), clock.floor().time());
    }

    #[test]
    fn a_session_of_months_confirms_daily() {
        let mut clock = started(&None, "a", 0);
        let mut kept = None;
        let mut writes = 0;
        tell(&mut clock, BUILD_TIME, 0, &mut kept);
        for hour in 1..=(30 * 24) {
            if let Some(write) = clock.tick(Duration::from_secs(hour * 3600)) {
                clock.written(&write);
                writes += 1;
            }
        }
        assert_eq!(clock.floor().time(), after_build(30 * DAY));
        assert_eq!(writes, 30);
    }

    #[test]
    fn the_floor_is_written_first_and_then_daily() {
        let mut clock = started(&None, "a", 0);
        let mut writes = 0;
        for hour in 0..(10 * 24) {
            let elapsed = hour * 3600;
            if let Some(kept) = clock.confirm(after_build(elapsed), Duration::from_secs(elapsed)) {
                clock.written(&kept);
                writes += 1;
            }
        }
        assert_eq!(writes, 10);
    }

    #[test]
    fn nothing_is_issued_by_a_clock_that_is_behind() {
        let late = unix(BUILD_TIME.as_secs() + 10 * DAY);
        assert!(matches!(
            IssueTime::check(unix(0), Floor::at(unix(0))),
            Err(ClockError::BeforeBuild { now: 0 })
        ));
        let behind = IssueTime::check(BUILD_TIME, Floor::at(late));
        assert_eq!(behind, Err(ClockError::BeforeFloor { behind: 10 * DAY }));
        assert_eq!(IssueTime::check(late, Floor::at(late)).unwrap().time(), late);
    }

    #[test]
    fn a_kept_floor_older_than_the_program_is_lifted_to_its_build_time() {
        let kept = Kept::from(Floor::at(unix(5)));
        assert_eq!(Clock::new(Some(kept), Boot::default()).floor(), Floor::INITIAL);
    }

    proptest! {
        #[test]
        fn the_floor_never_goes_back_and_never_leaps(floor: u64, told: u64, elapsed: u32) {
            let elapsed = u64::from(elapsed);
            let moved = confirm(Floor::at(unix(floor)), unix(told), Duration::from_secs(elapsed));
            prop_assert!(moved >= Floor::at(unix(floor)));
            prop_assert!(moved.time().as_secs() - floor <= elapsed + DAY);
            prop_assert!(moved.time().as_secs() <= told.max(floor));
        }

        /// Whatever is told, and however often the program or the machine starts anew.
        #[test]
        fn many_confirmations_gain_at_most_a_day_for_each_day_and_boot(
            told in proptest::collection::vec((any::<u64>(), 0u32..100_000, 0u8..8), 0..50),
        ) {
            let (mut kept, mut boots, mut up, mut passed) = (None, 1, 0, 0);
            let mut clock = started(&kept, "1", 0);
            let (mut since, mut before) = (0, clock.floor());
            for (told, elapsed, restart) in told {
                up += u64::from(elapsed);
                passed += u64::from(elapsed);
                if restart == 0 {
                    (boots, up) = (boots + 1, 0);
                }
                if restart < 3 {
                    clock = started(&kept, &boots.to_string(), up);
                    since = up;
                    // What was not worth a write is forgotten, which moves the floor back by less than a day.
                    before = clock.floor();
                }
                tell(&mut clock, unix(told), up - since, &mut kept);
                prop_assert!(clock.floor() >= before);
                before = clock.floor();
            }
            let counted = boots + passed / CONFIRM_EVERY.as_secs();
            let gained = before.time().as_secs() - BUILD_TIME.as_secs();
            prop_assert!(gained <= passed + (counted + 1) * DAY, "{gained} {passed} {counted}");
        }

        #[test]
        fn what_is_kept_survives_its_text(floor: u64, boot in proptest::option::of(("[a-f0-9-]{0,36}", any::<u32>()))) {
            let confirmed = boot.map(|(id, up)| Boot { id, up: Duration::from_secs(up.into()) });
            let kept = Kept { floor: Floor::at(unix(floor)), confirmed };
            prop_assert_eq!(kept.to_string().parse(), Ok(kept));
        }
    }
}
