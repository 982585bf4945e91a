//! Words into flags: `--x=y`, and the file that `--config` names.

use std::ffi::OsString;

use super::exit::Failure;

/// The names that may stand in a `--config` file, by role.
const NAMES: [(&str, &[&str]); 2] = [
    ("cloud", &["data-dir", "listen", "api-listen", "advertise", "api-san", "kubeconfig"]),
    ("edge", &["data-dir", "join", "node-name", "runtime-endpoint", "api-listen"]),
];

/// The arguments as text, `--x=y` as two words.
pub(super) fn words(arguments: impl Iterator<Item = OsString>) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    for argument in arguments {
        let word = argument.into_string().map_err(|word| {
            Failure::mistakes(vec![format!("the argument {:?} is not UTF-8", word.to_string_lossy())])
        })?;
        match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => {
                words.extend([flag.to_owned(), value.to_owned()])
            }
            _ => words.push(word),
        }
    }
    Ok(words)
}

/// The arguments, and behind them what the `--config` file adds: what is given
/// on the command line counts more.
pub(super) fn with_file(mut words: Vec<String>) -> Result<Vec<String>, Failure> {
    let Some((_, names)) = NAMES.iter().find(|(role, _)| words.first().is_some_and(|word| word == role))
    else {
        return Ok(words);
    };
    let Some(path) = words.windows(2).find_map(|pair| match pair {
        [flag, path] if flag == "--config" => Some(path.clone()),
        _ => None,
    }) else {
        return Ok(words);
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::no_input(&format!("cannot read --config {path}: {error}")))?;
    let flags = flags(&text, names).map_err(|mistakes| {
        Failure::mistakes(mistakes.into_iter().map(|mistake| format!("{path}: {mistake}")).collect())
    })?;
    for (flag, value) in flags {
        if !words.contains(&flag) {
            words.extend([flag, value]);
        }
    }
    Ok(words)
}

/// The flags in a configuration file, or all that is wrong with it.
fn flags(text: &str, names: &[&str]) -> Result<Vec<(String, String)>, Vec<String>> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The parser draws the place over several lines; a log has one.
        let line =
            error.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
        vec![format!("line {line}: {}", error.message())]
    })?;
    let (mut flags, mut mistakes) = (Vec::new(), Vec::new());
    for (name, value) in table {
        if !names.contains(&name.as_str()) {
            mistakes.push(format!("{name} is not a setting; there are {}", names.join(", ")));
            continue;
        }
        match plain(&value) {
            Some(value) => flags.push((format!("--{name}"), value)),
            None => mistakes.push(format!("{name} must be a text, a number or a list of texts")),
        }
    }
    if mistakes.is_empty() { Ok(flags) } else { Err(mistakes) }
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
    use super::*;

    fn split(arguments: &[&str]) -> Vec<String> {
        words(arguments.iter().map(OsString::from)).unwrap()
    }

    #[test]
    fn both_ways_of_writing_a_flag_are_one() {
        assert_eq!(split(&["edge", "--join=holm1.a=="]), ["edge", "--join", "holm1.a=="]);
        assert_eq!(split(&["edge", "--join", "@a=b"]), ["edge", "--join", "@a=b"]);
    }

    #[test]
    fn all_mistakes_of_a_file_are_said_at_once() {
        let names = NAMES[1].1;
        let mistakes = flags("joi = 'x'\nnode-name = true\ndata-dir = '/d'\n", names).unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(
            mistakes.iter().any(|mistake| mistake.starts_with("joi is not a setting; there are data-dir, "))
        );
        let mistakes = flags("data-dir = '/d'\njoin = = 1\n", names).unwrap_err();
        assert!(mistakes[0].starts_with("line 2: "), "{mistakes:?}");
        assert_eq!(mistakes.len(), 1);
    }

    #[test]
    fn a_file_adds_what_the_command_line_lacks() {
        let path = std::env::temp_dir().join(format!("holm-config-{}.toml", crate::object::Uid::random()));
        std::fs::write(&path, "listen = '1.2.3.4:5'\nadvertise = ['a:1', 'b:2']\ndata-dir = '/file'\n")
            .unwrap();
        let path = path.to_str().unwrap();
        let words = with_file(split(&["cloud", "--data-dir=/line", &format!("--config={path}")])).unwrap();
        std::fs::remove_file(path).unwrap();
        let value = |flag: &str| {
            words.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].clone()).collect::<Vec<_>>()
        };
        assert_eq!(value("--listen"), ["1.2.3.4:5"]);
        assert_eq!(value("--advertise"), ["a:1,b:2"]);
        assert_eq!(value("--data-dir"), ["/line"]);
    }
}
