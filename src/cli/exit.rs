//! Exit codes, as sysexits(3) names them, and what is said beside them.

use crate::cloud::CloudError;
use crate::edge::EdgeError;
use crate::edge::join::JoinError;
use crate::store::StoreError;

/// It ran, and then failed.
const FAILED: u8 = 1;
/// Wrong flags or configuration (EX_USAGE).
const USAGE: u8 = 64;
/// An input file is missing or unreadable (EX_NOINPUT).
const NO_INPUT: u8 = 66;
/// Something needed is not there (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;
/// The data directory cannot be used (EX_CANTCREAT).
const CANNOT_CREATE: u8 = 73;
/// Refused (EX_NOPERM).
const REFUSED: u8 = 77;

/// Why a command failed: one line a mistake.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) lines: Vec<String>,
}

impl Failure {
    fn one(code: u8, error: &dyn std::fmt::Display) -> Failure {
        Failure { code, lines: vec![error.to_string()] }
    }

    /// Mistakes in flags or configuration.
    pub(super) fn mistakes(lines: Vec<String>) -> Failure {
        Failure { code: USAGE, lines }
    }

    /// What the argument parser says, on one line with the remedy.
    pub(super) fn usage(output: &str, words: &[&str]) -> Failure {
        let said: Vec<&str> = output
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("Run holm"))
            .collect();
        let commands: Vec<&str> =
            words.iter().copied().take_while(|word| !word.starts_with('-')).take(1).collect();
        let help = [&["holm"], &commands[..], &["--help"]].concat().join(" ");
        Failure::mistakes(vec![format!("{}; see {help}", said.join(" "))])
    }

    /// A file that is to be read cannot be.
    pub(super) fn no_input(error: &dyn std::fmt::Display) -> Failure {
        Failure::one(NO_INPUT, error)
    }

    /// Something needed is not there.
    pub(super) fn unavailable(error: &dyn std::fmt::Display) -> Failure {
        Failure::one(UNAVAILABLE, error)
    }

    /// It ran, and then failed.
    pub(super) fn failed(error: &dyn std::fmt::Display) -> Failure {
        Failure::one(FAILED, error)
    }
}

fn of_store(error: &StoreError) -> u8 {
    match error {
        StoreError::Open { .. } | StoreError::InUse { .. } => CANNOT_CREATE,
        _ => FAILED,
    }
}

impl From<CloudError> for Failure {
    fn from(error: CloudError) -> Failure {
        let code = match &error {
            CloudError::Store(error) => of_store(error),
            CloudError::Net(_) => UNAVAILABLE,
            CloudError::San(_) | CloudError::Name(_) => USAGE,
            CloudError::Kubeconfig { .. } => CANNOT_CREATE,
            _ => FAILED,
        };
        Failure::one(code, &error)
    }
}

impl From<EdgeError> for Failure {
    fn from(error: EdgeError) -> Failure {
        let code = match &error {
            EdgeError::Store(error) => of_store(error),
            EdgeError::Runtime(_) | EdgeError::Net(_) => UNAVAILABLE,
            EdgeError::Join(JoinError::Code(_)) | EdgeError::Alone => USAGE,
            EdgeError::Join(JoinError::Refused(_) | JoinError::NotTheCloud { .. }) => REFUSED,
            EdgeError::Join(_) | EdgeError::Identity(_) => CANNOT_CREATE,
        };
        Failure::one(code, &error)
    }
}
