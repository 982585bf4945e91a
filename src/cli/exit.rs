//! Exit codes, as sysexits(3) names them, and what is said beside them.

use crate::cloud::CloudError;
use crate::cloud::certificates::CertificatesError;
use crate::cloud::restore::RestoreError;
use crate::cri;
use crate::edge::EdgeError;
use crate::edge::join::JoinError;
pub(super) use crate::logger::printable;
use crate::store::StoreError;

/// It ran, and then failed.
const FAILED: u8 = 1;
/// Wrong flags or configuration (EX_USAGE).
const USAGE: u8 = 64;
/// The cloud's store, or a backup, is damaged (EX_DATAERR).
const DAMAGED: u8 = 65;
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

    /// One mistake in flags or configuration.
    pub(super) fn mistake(line: String) -> Failure {
        Failure { code: USAGE, lines: vec![line] }
    }

    /// Something needed is not there.
    pub(super) fn unavailable(error: &dyn std::fmt::Display) -> Failure {
        Failure::one(UNAVAILABLE, error)
    }

    /// A file cannot be written.
    pub(super) fn cannot_create(error: &dyn std::fmt::Display) -> Failure {
        Failure::one(CANNOT_CREATE, error)
    }

    /// The store failed.
    pub(super) fn of_store(error: &StoreError) -> Failure {
        Failure::one(of_store(error), error)
    }

    /// It ran, and then failed.
    pub(super) fn failed(error: &dyn std::fmt::Display) -> Failure {
        Failure::one(FAILED, error)
    }
}

/// What the argument parser says, on one line.
pub(super) fn one_line(output: &str) -> String {
    let lines =
        output.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Run holm"));
    format!("{}; see holm --help", lines.collect::<Vec<_>>().join(" ").trim_end_matches('.'))
}

/// Collects what is wrong with what was typed, so that all of it is said at
/// once.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    lines: Vec<String>,
    /// All of them are files that cannot be read.
    only_missing: bool,
}

impl Mistakes {
    /// A wrong flag, value or setting.
    pub(super) fn add(&mut self, line: String) {
        self.lines.push(line);
        self.only_missing = false;
    }

    /// A file that is to be read cannot be.
    pub(super) fn missing(&mut self, line: String) {
        self.only_missing |= self.lines.is_empty();
        self.lines.push(line);
    }

    /// The value of a flag, if it is one.
    pub(super) fn value<T, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        text: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(text?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(format!("{flag}: {error}"));
                None
            }
        }
    }

    /// The values of a flag, with commas between them.
    pub(super) fn list<T, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        text: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let items = text.into_iter().flat_map(|text| text.split(',')).map(str::trim);
        items.filter_map(|item| self.value(flag, Some(item), &parse)).collect()
    }

    /// Nothing is wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Goes on if nothing is wrong.
    pub(super) fn end(self) -> Result<(), Failure> {
        match self.lines.is_empty() {
            true => Ok(()),
            false => {
                let code = if self.only_missing { NO_INPUT } else { USAGE };
                Err(Failure { code, lines: self.lines })
            }
        }
    }
}

fn of_store(error: &StoreError) -> u8 {
    match error {
        StoreError::Open { .. } | StoreError::InUse { .. } | StoreError::Newer { .. } => CANNOT_CREATE,
        StoreError::Damaged { .. } => DAMAGED,
        _ => FAILED,
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        let code = match &error {
            RestoreError::Unreadable { .. } => NO_INPUT,
            RestoreError::Damaged { .. } | RestoreError::NoCloud { .. } => DAMAGED,
            RestoreError::Running(_) | RestoreError::Directory { .. } => CANNOT_CREATE,
            RestoreError::Store(error) => of_store(error),
        };
        Failure::one(code, &error)
    }
}

impl From<CloudError> for Failure {
    fn from(error: CloudError) -> Failure {
        let code = match &error {
            CloudError::Store(error) => of_store(error),
            CloudError::Lost { .. } => DAMAGED,
            CloudError::Net(_) => UNAVAILABLE,
            CloudError::San(_) | CloudError::Name(_) => USAGE,
            CloudError::Certificates(CertificatesError::Write { .. }) => CANNOT_CREATE,
            _ => FAILED,
        };
        Failure::one(code, &error)
    }
}

impl From<EdgeError> for Failure {
    fn from(error: EdgeError) -> Failure {
        let code = match &error {
            EdgeError::Store(error) => of_store(error),
            EdgeError::Runtime(cri::Error::Endpoint { .. }) => USAGE,
            EdgeError::Runtime(_) | EdgeError::NoRuntime(_) | EdgeError::Net(_) => UNAVAILABLE,
            EdgeError::Join(JoinError::Code(_)) | EdgeError::Alone => USAGE,
            EdgeError::Join(JoinError::Refused(_) | JoinError::NotTheCloud(_)) => REFUSED,
            EdgeError::Join(_) | EdgeError::Identity(_) => CANNOT_CREATE,
        };
        Failure::one(code, &error)
    }
}
