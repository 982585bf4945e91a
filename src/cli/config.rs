//! Words into flags: `--x y`, `--x=y`, and the file that `--config` names.
//! What is wrong with them is collected, so that a person hears all of it.

use std::ffi::OsString;
use std::io::Read;

use super::exit::{Failure, Mistakes};

/// The longest `--config` file, in bytes: what is longer is something else.
const FILE_MAX: u64 = 1 << 20;

/// A command, its flags, and what may stand beside them.
struct Shape {
    command: &'static [&'static str],
    /// Flags with a value.
    flags: &'static [&'static str],
    /// Flags without one.
    switches: &'static [&'static str],
    /// How many words may stand beside the flags.
    beside: usize,
    /// What is missing if none does, if one must.
    missing: Option<&'static str>,
}

impl Shape {
    fn knows(&self, flag: &str) -> bool {
        self.flags.contains(&flag) || self.switches.contains(&flag)
    }
}

/// Of two that fit, the first counts.
const SHAPES: [Shape; 10] = [
    Shape {
        command: &["cloud", "backup"],
        flags: &["data-dir"],
        switches: &[],
        beside: 1,
        missing: Some("the file to write is missing: for example, holm cloud backup holm.backup"),
    },
    Shape {
        command: &["cloud", "restore"],
        flags: &["data-dir"],
        switches: &["confirm"],
        beside: 1,
        missing: None,
    },
    Shape {
        command: &["cloud"],
        flags: &[
            "data-dir",
            "listen",
            "api-listen",
            "advertise",
            "api-san",
            "node-certificate-life",
            "renew-window",
            "kubeconfig",
            CONFIG,
        ],
        switches: &[],
        beside: 0,
        missing: None,
    },
    Shape {
        command: &["edge"],
        flags: &["data-dir", JOIN, "node-name", "runtime-endpoint", "api-listen", CONFIG],
        switches: &["adopt-cluster"],
        beside: 0,
        missing: None,
    },
    Shape {
        command: &["token", "create"],
        flags: &["node", "ttl", "kubeconfig", "data-dir"],
        switches: &[],
        beside: 0,
        missing: None,
    },
    Shape {
        command: &["ca", "status"],
        flags: &["kubeconfig", "data-dir"],
        switches: &[],
        beside: 0,
        missing: None,
    },
    Shape {
        command: &["ca", "rotate"],
        flags: &["kubeconfig", "data-dir"],
        switches: &["force"],
        beside: 0,
        missing: None,
    },
    Shape {
        command: &["revoke"],
        flags: &["key", "serial", "reason", "kubeconfig", "data-dir"],
        switches: &[],
        beside: 1,
        missing: None,
    },
    Shape {
        command: &["get"],
        flags: &["namespace", "output", "data-dir"],
        switches: &[],
        beside: 2,
        missing: Some("what to get is missing: for example, holm get pods"),
    },
    Shape { command: &["status"], flags: &["data-dir"], switches: &[], beside: 0, missing: None },
];

const CONFIG: &str = "config";
const JOIN: &str = "join";

/// What was typed, in the one form that the argument parser gets.
#[derive(Debug, Default)]
pub(super) struct Typed {
    /// Command, flags with their values, and the words beside them.
    pub(super) words: Vec<String>,
    /// What had to be left out.
    pub(super) mistakes: Mistakes,
}

/// Sorts the arguments, and adds what the `--config` file holds: what is given
/// on the command line counts more.
pub(super) fn read(arguments: impl Iterator<Item = OsString>) -> Result<Typed, Failure> {
    let mut words = Vec::new();
    for argument in arguments {
        words.push(argument.into_string().map_err(|word| {
            Failure::mistake(format!("the argument {:?} is not UTF-8: type it again", word.to_string_lossy()))
        })?);
    }
    if words.first().is_some_and(|word| word == "help") {
        words.rotate_left(1);
    }
    let Some(shape) = SHAPES.iter().find(|shape| is_prefix(shape.command, &words)) else {
        return no_command(words);
    };
    let mut typed = Typed::default();
    typed.words.extend(words.drain(..shape.command.len()));
    let (flags, beside) = sort(shape, words, &mut typed.mistakes);
    let Some(mut flags) = flags else {
        typed.words.push("--help".into());
        return Ok(Typed { mistakes: Mistakes::default(), ..typed });
    };
    if let Some((_, path)) = flags.iter().find(|(flag, _)| flag == CONFIG).cloned() {
        for (name, value) in file(&path, shape, &mut typed.mistakes) {
            if !flags.iter().any(|(flag, _)| *flag == name) {
                flags.push((name, value));
            }
        }
    }
    for (flag, value) in flags {
        let is_switch = shape.switches.contains(&flag.as_str());
        typed.words.push(format!("--{flag}"));
        typed.words.extend((!is_switch).then_some(value));
    }
    if !beside.is_empty() {
        typed.words.push("--".into());
        typed.words.extend(beside);
    }
    Ok(typed)
}

fn is_prefix(command: &[&str], words: &[String]) -> bool {
    words.get(..command.len()).is_some_and(|start| start == command)
}

/// Help for the program or a family of commands, or what is wrong.
fn no_command(words: Vec<String>) -> Result<Typed, Failure> {
    let is_help = |word: &str| matches!(word, "--help" | "-h" | "help");
    let family =
        |word: &str| SHAPES.iter().any(|shape| matches!(shape.command, [first, _] if *first == word));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let help = |words: &[&str]| {
        let words = words.iter().chain(&["--help"]).map(|word| (*word).to_owned()).collect();
        Ok(Typed { words, ..Typed::default() })
    };
    match &words[..] {
        [] => help(&[]),
        [word, ..] if is_help(word) => help(&[]),
        [word, next, ..] if family(word) && is_help(next) => help(&[word]),
        [word] if family(word) => help(&[word]),
        words => {
            let count = if words.first().is_some_and(|word| family(word)) { 2 } else { 1 };
            let said: Vec<&str> = words.iter().take(count).copied().collect();
            let commands: Vec<String> = SHAPES.iter().map(|shape| shape.command.join(" ")).collect();
            Err(Failure::mistake(format!(
                "{:?} is not a command: there are {}; see holm --help",
                said.join(" "),
                commands.join(", ")
            )))
        }
    }
}

type Flags = Vec<(String, String)>;

/// The flags, or none if help is asked for; and the words beside them.
fn sort(shape: &Shape, words: Vec<String>, mistakes: &mut Mistakes) -> (Option<Flags>, Vec<String>) {
    let see = format!("see holm {} --help", shape.command.join(" "));
    let (mut flags, mut beside): (Flags, Vec<String>) = Default::default();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            beside.extend(words);
            break;
        }
        if matches!(word.as_str(), "--help" | "-h" | "help") {
            return (None, beside);
        }
        let (flag, attached) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with('-') => (flag, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        // -ojson, as kubectl takes it.
        let (flag, attached) = match (flag.get(..2), flag.get(2..)) {
            (Some(short @ ("-n" | "-o")), Some(value)) if !value.is_empty() && attached.is_none() => {
                (short, Some(value.to_owned()))
            }
            _ => (flag, attached),
        };
        let flag = match flag {
            "-n" if shape.flags.contains(&"namespace") => "--namespace",
            "-o" if shape.flags.contains(&"output") => "--output",
            flag => flag,
        };
        if !flag.starts_with('-') || flag == "-" {
            beside.push(word);
            continue;
        }
        let Some(name) = flag.strip_prefix("--").filter(|name| shape.knows(name)) else {
            mistakes.add(format!("{flag} is not a flag of holm {}: {see}", shape.command.join(" ")));
            // Most likely its value, which would only be a second complaint.
            if attached.is_none() && shape.beside == 0 {
                words.next_if(|next| !next.starts_with('-'));
            }
            continue;
        };
        if shape.switches.contains(&name) {
            match attached {
                Some(_) => mistakes.add(format!("{flag} takes no value: leave the value out")),
                None if flags.iter().any(|(known, _)| known == name) => {}
                None => flags.push((name.to_owned(), String::new())),
            }
            continue;
        }
        match attached.or_else(|| words.next_if(|next| !next.starts_with("--"))) {
            None => mistakes.add(format!("{flag} needs a value: {see}")),
            _ if flags.iter().any(|(known, _)| known == name) => {
                mistakes.add(format!("{flag} is given twice: give it once, several values with commas"));
            }
            // A unit file hands an empty variable on once the board has joined.
            Some(value) if value.is_empty() && name != JOIN => {
                mistakes.add(format!("{flag} is empty: give it a value, or leave it out"));
            }
            Some(value) => flags.push((name.to_owned(), value)),
        }
    }
    for word in beside.drain(shape.beside.min(beside.len())..) {
        mistakes.add(format!("{word:?} is not expected: {see}"));
    }
    if let (Some(missing), true) = (shape.missing, beside.is_empty()) {
        mistakes.add(missing.into());
    }
    (Some(flags), beside)
}

/// The flags in a configuration file.
fn file(path: &str, shape: &Shape, mistakes: &mut Mistakes) -> Flags {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    if let Err(error) = read {
        mistakes.missing(format!("cannot read --config {path} ({error}): check the path"));
        return Vec::new();
    }
    let (flags, wrong) = settings(&text, shape);
    wrong.into_iter().for_each(|wrong| mistakes.add(format!("{path}: {wrong}")));
    flags
}

/// The settings in a file, and all that is wrong with it.
fn settings(text: &str, shape: &Shape) -> (Flags, Vec<String>) {
    let known = shape.flags.iter().chain(shape.switches).copied();
    let known: Vec<&str> = known.filter(|name| *name != CONFIG).collect();
    let (mut flags, mut wrong) = (Vec::new(), Vec::new());
    let table: toml::Table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => {
            // The parser draws the place over several lines; a log has one.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let said = error.message().lines().collect::<Vec<_>>().join(", ");
            return (flags, vec![format!("line {line} is not TOML ({said}): write it as name = \"value\"")]);
        }
    };
    for (name, value) in table {
        if !known.contains(&name.as_str()) {
            wrong.push(format!("{name:?} is not a setting: there are {}", known.join(", ")));
            continue;
        }
        if shape.switches.contains(&name.as_str()) {
            match value.as_bool() {
                Some(true) => flags.push((name, String::new())),
                Some(false) => {}
                None => wrong.push(format!("{name} must be true or false")),
            }
            continue;
        }
        match plain(&value) {
            Some(value) if value.is_empty() && name != JOIN => {
                wrong.push(format!("{name} is empty: give it a value, or leave it out"));
            }
            Some(value) => flags.push((name, value)),
            None => wrong.push(format!("{name} must be a text, a number or a list of texts")),
        }
    }
    (flags, wrong)
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.join(",")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::arguments::Holm;
    use super::*;
    use argh::FromArgs;
    use proptest::prelude::*;

    fn typed(arguments: &[&str]) -> Typed {
        read(arguments.iter().map(OsString::from)).unwrap()
    }

    fn shape(command: &str) -> &'static Shape {
        SHAPES.iter().find(|shape| shape.command.join(" ") == command).unwrap()
    }

    #[test]
    fn a_switch_has_no_value() {
        let typed = typed(&["edge", "--adopt-cluster", "--join", "c", "--adopt-cluster"]);
        assert_eq!(typed.words, ["edge", "--adopt-cluster", "--join", "c"]);
        let wrong = self::typed(&["edge", "--adopt-cluster=yes"]).mistakes.end().unwrap_err();
        assert!(wrong.lines[0].starts_with("--adopt-cluster takes no value"), "{wrong:?}");
        let (flags, wrong) = settings("adopt-cluster = true", shape("edge"));
        assert_eq!((flags, wrong), (vec![("adopt-cluster".to_owned(), String::new())], vec![]));
        assert_eq!(settings("adopt-cluster = false", shape("edge")).0, []);
        assert_eq!(settings("adopt-cluster = 'x'", shape("edge")).1.len(), 1);
    }

    #[test]
    fn a_role_may_have_commands_of_its_own() {
        assert_eq!(
            typed(&["cloud", "backup", "f", "--data-dir=d"]).words,
            ["cloud", "backup", "--data-dir", "d", "--", "f"]
        );
        assert_eq!(typed(&["cloud", "restore", "--confirm"]).words, ["cloud", "restore", "--confirm"]);
        assert!(!typed(&["cloud", "backup"]).mistakes.is_empty());
        assert_eq!(typed(&["cloud", "--listen=a"]).words, ["cloud", "--listen", "a"]);
        assert!(!typed(&["cloud", "--listen=a", "backup"]).mistakes.is_empty());
    }

    #[test]
    fn both_ways_of_writing_a_flag_are_one() {
        assert_eq!(typed(&["edge", "--join=holm1.a=="]).words, ["edge", "--join", "holm1.a=="]);
        assert_eq!(typed(&["edge", "--join", "@a=b"]).words, ["edge", "--join", "@a=b"]);
        assert_eq!(typed(&["edge", "--join", "-"]).words, ["edge", "--join", "-"]);
        assert_eq!(
            typed(&["get", "pods", "-n=x", "a", "-ojson"]).words,
            ["get", "--namespace", "x", "--output", "json", "--", "pods", "a"]
        );
    }

    #[test]
    fn all_mistakes_of_a_command_line_are_said_at_once() {
        let typed = typed(&[
            "cloud",
            "--frob",
            "x",
            "y",
            "--listen=",
            "--data-dir",
            "--api-san=a",
            "--api-san=b",
            "-z",
            "--advertise",
        ]);
        assert_eq!(typed.words, ["cloud", "--api-san", "a"]);
        let lines = typed.mistakes.end().unwrap_err().lines;
        let starts = [
            "--frob is not a flag of holm cloud: see",
            "--listen is empty: ",
            "--data-dir needs a value: ",
            "--api-san is given twice: ",
            "-z is not a flag of holm cloud: see",
            "--advertise needs a value: ",
            "\"y\" is not expected: ",
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{lines:?}");
        }
    }

    #[test]
    fn help_is_had_in_every_way_that_people_ask_for_it() {
        for (asked, words) in [
            (&[][..], &["--help"][..]),
            (&["-h"], &["--help"]),
            (&["help"], &["--help"]),
            (&["help", "cloud"], &["cloud", "--help"]),
            (&["cloud", "--frob", "-h"], &["cloud", "--help"]),
            (&["token"], &["token", "--help"]),
            (&["help", "token"], &["token", "--help"]),
            (&["token", "create", "help"], &["token", "create", "--help"]),
        ] {
            let typed = typed(asked);
            assert_eq!(typed.words, words);
            typed.mistakes.end().unwrap();
        }
    }

    #[test]
    fn all_mistakes_of_a_file_are_said_at_once() {
        let known = shape("edge");
        let (flags, wrong) = settings("joi = 'x'\nnode-name = true\ndata-dir = '/d'\n", known);
        assert_eq!(flags, [("data-dir".to_owned(), "/d".to_owned())]);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong.iter().any(|wrong| wrong.starts_with("\"joi\" is not a setting: there are data-dir, "))
        );
        let (_, wrong) = settings("data-dir = '/d'\njoin = = 1\n", known);
        assert!(wrong[0].starts_with("line 2 "), "{wrong:?}");
        assert_eq!(wrong.len(), 1);
        let (_, wrong) = settings("config = '/etc/more'", known);
        assert_eq!(wrong.len(), 1);
    }

    #[test]
    fn a_file_adds_what_the_command_line_lacks() {
        let path = std::env::temp_dir().join(format!("holm-config-{}.toml", crate::object::Uid::random()));
        std::fs::write(&path, "listen = '1.2.3.4:5'\nadvertise = ['a:1', 'b:2']\ndata-dir = '/file'\n")
            .unwrap();
        let path = path.to_str().unwrap();
        let words = typed(&["cloud", "--data-dir=/line", &format!("--config={path}")]).words;
        std::fs::remove_file(path).unwrap();
        let value = |flag: &str| {
            words.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].clone()).collect::<Vec<_>>()
        };
        assert_eq!(value("--listen"), ["1.2.3.4:5"]);
        assert_eq!(value("--advertise"), ["a:1,b:2"]);
        assert_eq!(value("--data-dir"), ["/line"]);
    }

    #[test]
    fn the_flags_here_are_those_of_the_parser() {
        for shape in &SHAPES {
            let words = [shape.command, &["--help"]].concat();
            let help = Holm::from_args(&["holm"], &words).map(drop).unwrap_err().output;
            // "Usage: holm cloud [--data-dir <dir>] …": the first line names each flag once.
            let usage =
                help.lines().next().unwrap().replace("-n <", "--namespace <").replace("-o <", "--output <");
            let mut flags: Vec<&str> =
                usage.split("[--").skip(1).filter_map(|part| part.split([' ', ']']).next()).collect();
            let mut known = [shape.flags, shape.switches].concat();
            flags.retain(|flag| !flag.is_empty());
            flags.sort();
            known.sort();
            assert_eq!(flags, known);
        }
    }

    proptest! {
        /// Whatever is typed, there is an answer: help, a command, or lines
        /// that say what is wrong.
        #[test]
        fn whatever_is_typed_is_answered(
            command in prop::sample::select(vec![
                    "cloud", "cloud backup", "cloud restore", "edge", "token create", "get", "status", "token", "help", "",
                ]),
            words in prop::collection::vec(
                prop_oneof![
                    ".*",
                    "--?[a-z]{0,6}(=.*)?",
                    prop::sample::select(vec![
                        "--data-dir", "--adopt-cluster", "--confirm", "--listen=", "--join", "-", "--", "-n", "-o", "--ttl", "=", "--=", "-=", "pods",
                    ]).prop_map(str::to_owned),
                ],
                0..8,
            ),
        ) {
            let all: Vec<String> = command.split_whitespace().map(str::to_owned).chain(words).collect();
            match read(all.iter().map(OsString::from)) {
                Err(failure) => prop_assert!(!failure.lines.is_empty()),
                Ok(typed) => {
                    let words: Vec<&str> = typed.words.iter().map(String::as_str).collect();
                    // The parser finds nothing that was not found before.
                    if let Err(early) = Holm::from_args(&["holm"], &words) {
                        prop_assert!(early.status.is_ok() || !typed.mistakes.is_empty(), "{words:?}: {}", early.output);
                    }
                }
            }
        }

        #[test]
        fn whatever_is_in_a_file_is_answered(text in ".*") {
            let (flags, wrong) = settings(&text, shape("cloud"));
            prop_assert!(wrong.iter().all(|line| !line.is_empty()));
            prop_assert!(flags.iter().all(|(name, _)| shape("cloud").flags.contains(&name.as_str())));
        }
    }
}
