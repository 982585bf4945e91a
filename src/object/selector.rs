//! Which objects a request is about: label and field selectors.
//!
//! Kubernetes: "Labels and Selectors", "Field Selectors".

use serde_json::{Map, Value};

/// Why a selector is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement {part:?}: {why}")]
pub struct SelectorError {
    /// The part that is wrong.
    pub part: String,
    /// What is wrong with it.
    pub why: String,
}

fn wrong(part: &str, why: impl Into<String>) -> SelectorError {
    SelectorError { part: part.chars().take(100).collect(), why: why.into() }
}

/// One condition on one label or field.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    In(Vec<String>),
    /// Also true if it is not there.
    NotIn(Vec<String>),
    Exists,
    Missing,
    Above(i64),
    Below(i64),
}

impl Condition {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Condition::In(values) => value.is_some_and(|value| values.iter().any(|known| known == value)),
            Condition::NotIn(values) => value.is_none_or(|value| values.iter().all(|known| known != value)),
            Condition::Exists => value.is_some(),
            Condition::Missing => value.is_none(),
            Condition::Above(limit) => number().is_some_and(|number| number > *limit),
            Condition::Below(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

/// Conditions on labels, all of which must hold. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, Condition)>);

impl LabelSelector {
    /// Parses the form of a query: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        let mut parts = Vec::new();
        for part in split_outside_parentheses(text)? {
            let part = part.trim();
            if !part.is_empty() {
                parts.push(requirement(part)?);
            }
        }
        Ok(LabelSelector(parts))
    }

    /// The form inside of objects (`matchLabels`, `matchExpressions`).
    pub fn from_value(value: &Value) -> Result<LabelSelector, SelectorError> {
        let mut parts = Vec::new();
        for (name, value) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().ok_or_else(|| wrong(name, "its value must be a string"))?;
            parts.push((label_name(name)?, Condition::In(vec![value.into()])));
        }
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
            let values: Vec<String> = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|value| value.as_str().map(Into::into))
                .collect();
            let condition = match text("operator") {
                "In" if !values.is_empty() => Condition::In(values),
                "NotIn" if !values.is_empty() => Condition::NotIn(values),
                "Exists" => Condition::Exists,
                "DoesNotExist" => Condition::Missing,
                "In" | "NotIn" => return Err(wrong(text("key"), "its values must not be empty")),
                other => return Err(wrong(other, "not an operator: In, NotIn, Exists, DoesNotExist")),
            };
            parts.push((label_name(text("key"))?, condition));
        }
        Ok(LabelSelector(parts))
    }

    /// True if it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if these labels fulfil every condition.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.0.iter().all(|(name, condition)| {
            condition.holds(labels.and_then(|labels| labels.get(name)).and_then(Value::as_str))
        })
    }
}

fn split_outside_parentheses(text: &str) -> Result<Vec<&str>, SelectorError> {
    let mut parts = Vec::new();
    let (mut inside, mut start) = (false, 0);
    for (at, char) in text.char_indices() {
        match char {
            '(' if inside => return Err(wrong(text, "found '(' inside of '('")),
            '(' => inside = true,
            ')' if !inside => return Err(wrong(text, "found ')' without '('")),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => (),
        }
    }
    if inside {
        return Err(wrong(text, "'(' is not closed"));
    }
    parts.push(text.get(start..).unwrap_or_default());
    Ok(parts)
}

fn requirement(part: &str) -> Result<(String, Condition), SelectorError> {
    if let Some(name) = part.strip_prefix('!') {
        return Ok((label_name(name.trim())?, Condition::Missing));
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| wrong(part, "nothing may follow ')'"))?;
        let values: Result<Vec<String>, _> =
            values.split(',').map(|value| label_value(value.trim())).collect();
        let mut words = head.split_whitespace();
        let (Some(name), Some(operator), None) = (words.next(), words.next(), words.next()) else {
            return Err(wrong(part, "expected: name in (values) or name notin (values)"));
        };
        let condition = match operator {
            "in" => Condition::In(values?),
            "notin" => Condition::NotIn(values?),
            _ => return Err(wrong(part, "expected: in, notin")),
        };
        return Ok((label_name(name)?, condition));
    }
    let number = |text: &str| text.trim().parse().map_err(|_| wrong(part, "expected a whole number"));
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((name, value)) = part.split_once(operator) {
            let values = vec![label_value(value.trim())?];
            let condition = if negated { Condition::NotIn(values) } else { Condition::In(values) };
            return Ok((label_name(name.trim())?, condition));
        }
    }
    if let Some((name, value)) = part.split_once('>') {
        return Ok((label_name(name.trim())?, Condition::Above(number(value)?)));
    }
    if let Some((name, value)) = part.split_once('<') {
        return Ok((label_name(name.trim())?, Condition::Below(number(value)?)));
    }
    Ok((label_name(part)?, Condition::Exists))
}

/// Letters, digits, `-`, `_`, `.` with a letter or digit at both ends, 63 at most.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified_part(text)
}

/// A label's name: an optional DNS prefix and `/`, then as a value, not empty.
pub fn is_label_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => {
            !prefix.is_empty()
                && prefix.len() <= 253
                && prefix
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
                && is_qualified_part(name)
        }
        None => is_qualified_part(text),
    }
}

fn is_qualified_part(text: &str) -> bool {
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn label_name(text: &str) -> Result<String, SelectorError> {
    match is_label_name(text) {
        true => Ok(text.into()),
        false => Err(wrong(text, "not the name of a label")),
    }
}

fn label_value(text: &str) -> Result<String, SelectorError> {
    match is_label_value(text) {
        true => Ok(text.into()),
        false => Err(wrong(text, "not the value of a label")),
    }
}

/// Conditions on fields, all of which must hold. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, Condition)>);

impl FieldSelector {
    /// Parses `a.b=c,d!=e`. `known` says which paths may be named.
    pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Result<FieldSelector, SelectorError> {
        let mut parts = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let (path, value, negated) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, true)
            } else if let Some((path, value)) = part.split_once("==") {
                (path, value, false)
            } else if let Some((path, value)) = part.split_once('=') {
                (path, value, false)
            } else {
                return Err(wrong(&part, "expected: field=value or field!=value"));
            };
            if !known(path) {
                return Err(wrong(&part, format!("field label not supported: {path}")));
            }
            let values = vec![unescape(value)];
            let condition = if negated { Condition::NotIn(values) } else { Condition::In(values) };
            parts.push((path.to_owned(), condition));
        }
        Ok(FieldSelector(parts))
    }

    /// True if it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if the object's fields fulfil every condition. A field that is not
    /// there counts as empty, or as `false` where the path is of a switch.
    pub fn matches(&self, value: &Value) -> bool {
        self.0.iter().all(|(path, condition)| condition.holds(Some(&field(value, path))))
    }

    /// The name, if the selector asks for exactly one.
    pub fn single_name(&self) -> Option<&str> {
        self.0.iter().find_map(|(path, condition)| match condition {
            Condition::In(values) if path == "metadata.name" => values.first().map(String::as_str),
            _ => None,
        })
    }
}

fn field(value: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(value, |value, part| value.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(bool)) => bool.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        // `source` of an Event means its component.
        Some(Value::Object(map)) => {
            map.get("component").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        _ if matches!(path, "spec.unschedulable" | "spec.hostNetwork") => "false".into(),
        _ => String::new(),
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for char in text.chars() {
        if char == ',' && !escaped {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(char);
        }
        escaped = char == '\\' && !escaped;
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        out.push(if char == '\\' { chars.next().unwrap_or('\\') } else { char });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn selects(selector: &str, labels: &Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(labels.as_object())
    }

    #[test]
    fn labels_are_selected() {
        let labels = json!({"app": "web", "tier": "front", "n": "7"});
        for selector in [
            "",
            "app=web",
            "app==web, tier",
            "app in (web, db),tier notin (back)",
            "tier!=back",
            "other!=x",
            "!other",
            "other notin (x)",
            "n>6,n<8",
        ] {
            assert!(selects(selector, &labels), "{selector}");
        }
        for selector in ["app=db", "app!=web", "!app", "other", "other in (x)", "app in (db)", "n>7", "app<3"]
        {
            assert!(!selects(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for selector in ["a in (b", "a in b)", "a b", "a like (b)", "=b", "a=b c", "-a", "a in (b) c", "a>b"]
        {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn objects_carry_selectors_too() {
        let selector = LabelSelector::from_value(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]}],
        }))
        .unwrap();
        assert!(selector.matches(json!({"app": "web", "tier": "back"}).as_object()));
        assert!(!selector.matches(json!({"app": "web"}).as_object()));
        assert!(!selector.matches(None));
        assert!(
            LabelSelector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "?"}]})).is_err()
        );
    }

    #[test]
    fn fields_are_selected() {
        let pod =
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let selects = |text: &str| FieldSelector::parse(text, |_| true).unwrap().matches(&pod);
        assert!(selects("spec.nodeName=n,status.phase!=Failed,status.phase!=Succeeded"));
        assert!(selects("spec.unschedulable=false,spec.missing="));
        assert!(!selects("metadata.name=b"));
        let named = FieldSelector::parse("metadata.name=a", |_| true).unwrap();
        assert_eq!(named.single_name(), Some("a"));
        assert!(FieldSelector::parse("spec.x=1", |path| path == "metadata.name").is_err());
        assert!(FieldSelector::parse("metadata.name", |_| true).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,60}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text, |_| true);
        }
    }
}
