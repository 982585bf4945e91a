//! Log lines on standard error: for a person at a terminal with the time in
//! front, for journald with its priority prefix (sd-daemon(3)) instead.

use std::io::{IsTerminal, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr {
    journald: bool,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_shown(metadata.target(), metadata.level(), log::max_level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = printable(&record.args().to_string());
        let line = match (self.journald, record.level()) {
            (true, Level::Error) => format!("<3>{text}\n"),
            (true, Level::Warn) => format!("<4>{text}\n"),
            (true, Level::Info) => format!("<6>{text}\n"),
            (true, Level::Debug | Level::Trace) => format!("<7>{text}\n"),
            (false, level) => {
                let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
                format!("{time} {:5} {text}\n", level.as_str())
            }
        };
        // Where standard error is gone there is nowhere to say so.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// What libraries have to say is for those who debug them; and what travels on
/// the link, join secrets among it, is for nobody.
fn is_shown(target: &str, level: Level, max: LevelFilter) -> bool {
    let shows_frames = ["tungstenite", "async_tungstenite"].iter().any(|name| target.starts_with(name));
    target.starts_with("holm") || level <= Level::Warn || (max == LevelFilter::Trace && !shows_frames)
}

/// The text without control characters: what others send may end up in a line,
/// and must neither make a second one nor speak to the terminal.
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_link_are_never_shown() {
        assert!(!is_shown("tungstenite::protocol", Level::Trace, LevelFilter::Trace));
        assert!(is_shown("tungstenite::protocol", Level::Warn, LevelFilter::Info));
        assert!(is_shown("redb", Level::Trace, LevelFilter::Trace));
        assert!(!is_shown("redb", Level::Debug, LevelFilter::Debug));
        assert!(is_shown("holm::edge", Level::Debug, LevelFilter::Debug));
    }

    #[test]
    fn what_others_send_stays_in_its_line() {
        assert_eq!(printable("caf\u{e9} a\nb\u{1b}[31m"), "caf\u{e9} a\\nb\\u{1b}[31m");
    }
}
