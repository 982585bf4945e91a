//! Which boot of this machine this is, and how long it has lasted: the clock that nobody sets.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::trust::clock::{BOOT_ID_MAX, Boot};

/// Where Linux tells a boot's random name (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This moment. Where the name cannot be read it is empty, which counts as one boot for ever: then the floor
/// of time moves too little, never too much.
pub fn now() -> Boot {
    let id = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let up = clock_gettime(ClockId::Boottime);
    Boot {
        id: id.trim().chars().filter(char::is_ascii_graphic).take(BOOT_ID_MAX).collect(),
        up: Duration::from_secs(up.tv_sec.try_into().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_boot_has_one_name_and_goes_on() {
        let (one, other) = (now(), now());
        assert_eq!(one.id, other.id);
        assert!(one.up > Duration::ZERO && other.up >= one.up);
    }
}
