//! `holm cloud backup` and `holm cloud restore`.

use super::arguments::{Backup, Restore};
use super::exit::{Failure, Mistakes};

pub(super) fn backup(_arguments: &Backup, mistakes: Mistakes) -> Result<(), Failure> {
    mistakes.end()
}

pub(super) fn restore(_arguments: &Restore, mistakes: Mistakes) -> Result<(), Failure> {
    mistakes.end()
}
