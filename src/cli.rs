//! What a person types. Each command is a module here; this one chooses.

mod arguments;
mod backup;
pub mod ca;
mod config;
mod exit;
mod local;
pub mod revoke;
mod role;
pub mod token;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use argh::FromArgs;

use arguments::{CaCommand, CloudCommand, Command, Holm, TokenCommand};
use exit::Failure;

/// Runs what the arguments ask for; gives the exit code (see [`exit`]).
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in &failure.lines {
                say(&mut std::io::stderr(), &format!("holm: {}\n", exit::printable(line)));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let mut arguments = arguments.peekable();
    if arguments.peek().is_some_and(|word| word == "--version" || word == "-V" || word == "version") {
        return out(concat!("holm ", env!("CARGO_PKG_VERSION"), "\n"));
    }
    let config::Typed { words, mut mistakes } = config::read(arguments)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let holm = match Holm::from_args(&["holm"], &words) {
        Ok(holm) => holm,
        Err(early) if early.status.is_ok() => return out(&early.output),
        Err(early) => {
            // What it misses was most likely left out as wrong.
            if mistakes.is_empty() {
                mistakes.add(exit::one_line(&early.output));
            }
            return mistakes.end();
        }
    };
    match holm.command {
        Command::Cloud(arguments) => match &arguments.command {
            Some(CloudCommand::Backup(arguments)) => backup::backup(arguments, mistakes),
            Some(CloudCommand::Restore(arguments)) => backup::restore(arguments, mistakes),
            None => role::cloud(&arguments, mistakes),
        },
        Command::Edge(arguments) => role::edge(&arguments, mistakes),
        Command::Token(token) => match token.command {
            TokenCommand::Create(arguments) => role::token(arguments, mistakes),
        },
        Command::Ca(ca) => match ca.command {
            CaCommand::Status(arguments) => role::ca_status(arguments, mistakes),
            CaCommand::Rotate(arguments) => role::ca_rotate(arguments, mistakes),
        },
        Command::Revoke(arguments) => role::revoke(arguments, mistakes),
        Command::Get(arguments) => local::get(arguments, mistakes),
        Command::Status(arguments) => local::status(arguments, mistakes),
    }
}

/// Prints a command's result.
fn out(text: &str) -> Result<(), Failure> {
    say(&mut std::io::stdout(), text);
    Ok(())
}

fn say(to: &mut impl Write, text: &str) {
    // A reader that has gone (a pipe to head) has seen enough.
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}
