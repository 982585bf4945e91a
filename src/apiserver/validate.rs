//! Rules that objects must keep (Kubernetes API reference; "Object Names and
//! IDs"; DNS names after RFC 1123).

mod pod;

use std::collections::BTreeSet;

use serde_json::Value;

use super::registry::Row;
use super::status::Causes;
use crate::object::meta_str;
use crate::object::selector::{is_label_name, is_label_value};

pub(crate) use pod::quantity;
pub use pod::{pod, pod_update};

const LABEL_WHY: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character, 63 characters at most";
const SUBDOMAIN_WHY: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character, 253 characters at most";

/// A DNS label: `a-1`.
pub fn is_dns_label(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| fits(c) || c == '-')
        && text.starts_with(fits)
        && text.ends_with(fits)
}

/// DNS labels with dots: `a.b-1`.
pub fn is_dns_subdomain(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=253).contains(&text.len())
        && text.split('.').all(|part| {
            part.starts_with(fits) && part.ends_with(fits) && part.chars().all(|c| fits(c) || c == '-')
        })
}

/// The rules of every object.
pub fn metadata(row: &Row, value: &Value, causes: &mut Causes) {
    let name = meta_str(value, "name").unwrap_or_default();
    if name.is_empty() {
        causes.required("metadata.name");
    } else if row.short_name_rule && !is_dns_label(name) {
        causes.invalid("metadata.name", &name.into(), LABEL_WHY);
    } else if !is_dns_subdomain(name) {
        causes.invalid("metadata.name", &name.into(), SUBDOMAIN_WHY);
    }
    let meta = value.get("metadata");
    for (name, value) in map(meta, "labels", "metadata.labels", causes) {
        if !is_label_name(name) {
            causes.invalid("metadata.labels", &name.as_str().into(), "not a qualified name");
        }
        match value.as_str() {
            Some(text) if is_label_value(text) => (),
            Some(_) => causes.invalid("metadata.labels", value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, 63 characters at most"),
            None => causes.mistyped(&format!("metadata.labels[{name}]"), "a string"),
        }
    }
    for (name, value) in map(meta, "annotations", "metadata.annotations", causes) {
        if !is_label_name(&name.to_ascii_lowercase()) {
            causes.invalid("metadata.annotations", &name.as_str().into(), "not a qualified name");
        }
        if !value.is_string() {
            causes.mistyped(&format!("metadata.annotations[{name}]"), "a string");
        }
    }
    for (at, finalizer) in list(meta, "finalizers", "metadata.finalizers", causes).iter().enumerate() {
        if !finalizer.is_string() {
            causes.mistyped(&format!("metadata.finalizers[{at}]"), "a string");
        }
    }
}

/// A map of the object; what is no map is a cause, and empty.
fn map<'a>(
    value: Option<&'a Value>,
    field: &str,
    path: &str,
    causes: &mut Causes,
) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    let found = value.and_then(|value| value.get(field)).filter(|found| !found.is_null());
    if found.is_some_and(|found| !found.is_object()) {
        causes.mistyped(path, "an object");
    }
    found.and_then(Value::as_object).into_iter().flatten()
}

/// A list of the object; what is no list is a cause, and empty.
fn list<'a>(value: Option<&'a Value>, field: &str, path: &str, causes: &mut Causes) -> &'a [Value] {
    match value.and_then(|value| value.get(field)) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(items)) => items,
        Some(_) => {
            causes.mistyped(path, "a list");
            &[]
        }
    }
}

/// A string of the object; empty if it is not there.
fn text<'a>(value: &'a Value, field: &str, path: &str, causes: &mut Causes) -> &'a str {
    match value.get(field) {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(_) => {
            causes.mistyped(&format!("{path}.{field}"), "a string");
            ""
        }
    }
}

fn one_of(value: &Value, field: &str, path: &str, known: &[&str], causes: &mut Causes) {
    let found = text(value, field, path, causes);
    if !found.is_empty() && !known.contains(&found) {
        causes.unsupported(&format!("{path}.{field}"), found, known);
    }
}

/// ConfigMap.
pub fn config_map(value: &Value, causes: &mut Causes) {
    let mut size = 0;
    let mut keys = BTreeSet::new();
    for (key, value) in map(Some(value), "data", "data", causes) {
        config_key("data", key, causes);
        keys.insert(key);
        match value.as_str() {
            Some(text) => size += text.len(),
            None => causes.mistyped(&format!("data[{key}]"), "a string"),
        }
    }
    for (key, value) in map(Some(value), "binaryData", "binaryData", causes) {
        config_key("binaryData", key, causes);
        if !keys.insert(key) {
            causes.duplicate(&format!("binaryData[{key}]"), key);
        }
        size += base64_len(&format!("binaryData[{key}]"), value, causes);
    }
    too_long(size, causes);
}

/// ConfigMap: what may change once it is there.
pub fn config_map_update(old: &Value, new: &Value, causes: &mut Causes) {
    immutable(old, new, &["data", "binaryData"], causes);
}

/// Secret.
pub fn secret(value: &Value, causes: &mut Causes) {
    text(value, "type", "", causes);
    let mut size = 0;
    for (key, value) in map(Some(value), "data", "data", causes) {
        config_key("data", key, causes);
        size += base64_len(&format!("data[{key}]"), value, causes);
    }
    for (key, _) in map(Some(value), "stringData", "stringData", causes) {
        // What is left of it was no map of strings.
        causes.mistyped(&format!("stringData[{key}]"), "a string");
    }
    too_long(size, causes);
}

/// Secret: what may change once it is there.
pub fn secret_update(old: &Value, new: &Value, causes: &mut Causes) {
    immutable(old, new, &["data"], causes);
    if old.get("type") != new.get("type") {
        causes.invalid("type", new.get("type").unwrap_or(&Value::Null), "field is immutable");
    }
}

fn immutable(old: &Value, new: &Value, fields: &[&str], causes: &mut Causes) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    for field in ["immutable"].iter().chain(fields) {
        if old.get(field) != new.get(field) {
            causes.forbidden(field, "field is immutable when `immutable` is set");
        }
    }
}

fn config_key(path: &str, key: &str, causes: &mut Causes) {
    let fits = (1..=253).contains(&key.len())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !matches!(key, "." | "..")
        && !key.starts_with("..");
    if !fits {
        let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        causes.invalid(&format!("{path}[{key}]"), &key.into(), why);
    }
}

fn base64_len(path: &str, value: &Value, causes: &mut Causes) -> usize {
    match value {
        Value::Null => 0,
        Value::String(text) => match data_encoding::BASE64.decode(text.as_bytes()) {
            Ok(bytes) => bytes.len(),
            // The value is not repeated: it may be a password.
            Err(error) => {
                causes.invalid(path, &"".into(), &format!("not base64: {error}"));
                0
            }
        },
        _ => {
            causes.mistyped(path, "a string in base64");
            0
        }
    }
}

/// As much as Kubernetes takes (`MaxSecretSize`): 1 MiB.
fn too_long(size: usize, causes: &mut Causes) {
    if size > 1 << 20 {
        causes.invalid("data", &Value::Null, "must have at most 1048576 bytes");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(rule: fn(&Value, &mut Causes), value: Value) -> Vec<(String, &'static str)> {
        let mut causes = Causes::default();
        rule(&value, &mut causes);
        causes.0.into_iter().map(|cause| (cause.field, cause.reason)).collect()
    }

    fn cause(field: &str, reason: &'static str) -> (String, &'static str) {
        (field.into(), reason)
    }

    #[test]
    fn names_follow_rfc_1123() {
        assert!(is_dns_subdomain("a.b-1") && is_dns_label("a-1"));
        for name in ["", "A", "a_b", "-a", "a-", ".a", "a..b", "a/b", &"a".repeat(254)] {
            assert!(!is_dns_subdomain(name), "{name}");
        }
        assert!(!is_dns_label("a.b") && !is_dns_label(&"a".repeat(64)));
    }

    #[test]
    fn secrets_are_base64_and_an_immutable_config_stays() {
        assert_eq!(causes(secret, json!({"data": {"a": "?"}})), [cause("data[a]", "FieldValueInvalid")]);
        assert!(causes(secret, json!({"data": {"a": "eA=="}})).is_empty());
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let mut found = Causes::default();
        config_map_update(&old, &json!({"immutable": true, "data": {"a": "2"}}), &mut found);
        assert_eq!(found.0.len(), 1);
        assert_eq!(causes(config_map, json!({"data": {"a b": "1"}})).len(), 1);
    }
}
