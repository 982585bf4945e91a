//! What time may be believed.
//!
//! A board without a battery-backed clock boots in 1970, and a cloud's clock can be wrong too. So the edge
//! keeps a *floor*, a time that has certainly passed, and judges expiry by nothing else; the cloud issues
//! nothing while its clock is behind what has certainly passed.

use super::{UnixTime, unix};
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
/// Two confirmations closer together than this are one, so that reconnecting often moves nothing.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(60 * 60);
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

/// The edge's floor with what is needed to move it: the owner of the session drives it.
#[derive(Debug, Clone)]
pub struct Clock {
    floor: Floor,
    written: Option<Floor>,
    confirmed: Option<Duration>,
}

impl Clock {
    /// Starts from the floor that was kept, `None` on a board that never kept one.
    pub fn new(kept: Option<Floor>) -> Clock {
        Clock { floor: kept.unwrap_or(Floor::INITIAL).max(Floor::INITIAL), written: kept, confirmed: None }
    }

    /// The floor to judge certificates by.
    pub fn floor(&self) -> Floor {
        self.floor
    }

    /// An authenticated peer has told the time; `monotonic` is the time since the boot.
    ///
    /// Returns the floor to write, if it is worth a write; the caller reports success with
    /// [`Clock::written`].
    pub fn confirm(&mut self, authenticated: UnixTime, monotonic: Duration) -> Option<Floor> {
        let elapsed = monotonic.saturating_sub(self.confirmed.unwrap_or_default());
        if self.confirmed.is_none() || elapsed >= CONFIRM_EVERY {
            self.floor = confirm(self.floor, authenticated, elapsed);
            self.confirmed = Some(monotonic);
        }
        match self.written {
            Some(written) if !is_worth_writing(written, self.floor) => None,
            _ => Some(self.floor),
        }
    }

    /// The floor has been written.
    pub fn written(&mut self, floor: Floor) {
        self.written = Some(floor);
    }
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

    #[test]
    fn a_clock_ten_years_ahead_moves_the_floor_by_a_day() {
        let ahead = unix(BUILD_TIME.as_secs() + 3650 * DAY);
        let mut clock = Clock::new(None);
        for second in 0..100 {
            clock.confirm(ahead, Duration::from_secs(second));
        }
        assert_eq!(clock.floor().time().as_secs(), BUILD_TIME.as_secs() + DAY);
    }

    #[test]
    fn the_floor_is_written_first_and_then_daily() {
        let mut clock = Clock::new(None);
        let mut writes = 0;
        for hour in 0..(10 * 24) {
            let elapsed = hour * 3600;
            let floor = clock.confirm(unix(BUILD_TIME.as_secs() + elapsed), Duration::from_secs(elapsed));
            if let Some(floor) = floor {
                clock.written(floor);
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
        assert_eq!(Clock::new(Some(Floor::at(unix(5)))).floor(), Floor::INITIAL);
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

        #[test]
        fn many_confirmations_gain_at_most_a_day_each_counted_hour(
            told in proptest::collection::vec((any::<u64>(), 0u32..100_000), 0..50),
        ) {
            let mut clock = Clock::new(None);
            let mut monotonic = 0;
            let mut before = clock.floor();
            for (told, elapsed) in told {
                monotonic += u64::from(elapsed);
                clock.confirm(unix(told), Duration::from_secs(monotonic));
                prop_assert!(clock.floor() >= before);
                before = clock.floor();
            }
            let counted = 1 + monotonic / CONFIRM_EVERY.as_secs();
            let gained = before.time().as_secs() - BUILD_TIME.as_secs();
            prop_assert!(gained <= monotonic + counted * DAY);
        }
    }
}
