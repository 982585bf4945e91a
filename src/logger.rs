//! Log lines on standard error: for a person at a terminal with the time in
//! front, for journald with its priority prefix (sd-daemon(3)) instead.

use std::io::{IsTerminal, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr {
    journald: bool,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What libraries have to say is for those who debug them.
        let ours = metadata.target().starts_with("holm");
        ours || metadata.level() <= Level::Warn || log::max_level() == LevelFilter::Trace
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = match (self.journald, record.level()) {
            (true, Level::Error) => format!("<3>{}\n", record.args()),
            (true, Level::Warn) => format!("<4>{}\n", record.args()),
            (true, Level::Info) => format!("<6>{}\n", record.args()),
            (true, Level::Debug | Level::Trace) => format!("<7>{}\n", record.args()),
            (false, level) => {
                format!("{} {:5} {}\n", crate::object::now_rfc3339(), level.as_str(), record.args())
            }
        };
        // Where standard error is gone there is nowhere to say so.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Starts logging; `HOLM_LOG` (error, warn, info, debug, trace) sets how much,
/// info if it is not set.
pub fn start() {
    let level =
        std::env::var("HOLM_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(LevelFilter::Info);
    let journald = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    // A second call (tests) keeps the first logger.
    if log::set_boxed_logger(Box::new(Stderr { journald })).is_ok() {
        log::set_max_level(level);
    }
}
