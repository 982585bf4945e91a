//! What Holm reads in any object, whatever its kind.

use jiff::Timestamp;
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value};

use super::{Key, Uid};

/// A string of `metadata`, if it is there.
pub fn meta_str<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get("metadata")?.get(field)?.as_str()
}

/// `metadata.labels`, if there are any.
pub fn labels(value: &Value) -> Option<&Map<String, Value>> {
    value.get("metadata")?.get("labels")?.as_object()
}

/// The system's time as Kubernetes writes it: RFC 3339, whole seconds, UTC.
pub fn now_rfc3339() -> String {
    time_rfc3339(Timestamp::now())
}

/// A time as Kubernetes writes it (`metav1.Time`).
pub fn time_rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Removes what only the server that an object came from can mean:
/// `metadata.resourceVersion` and `metadata.managedFields`.
pub fn strip_server_fields(value: &mut Value) {
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
}

/// SHA-256 over the content that both ends of a link agree on: everything but
/// `status`, `metadata.managedFields` and `metadata.resourceVersion`.
///
/// The form hashed is a tag, a length and the content of each value in key
/// order, independent of how objects are stored or sent (version 1 of the
/// algorithm named in `Hello`).
pub fn content_hash(value: &Value) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    match value {
        Value::Object(map) => {
            let kept = || map.iter().filter(|(key, _)| *key != "status");
            tag(&mut context, b'{', kept().count());
            for (key, item) in kept() {
                text(&mut context, key);
                match item {
                    Value::Object(meta) if key == "metadata" => {
                        let kept = || {
                            meta.iter()
                                .filter(|(key, _)| *key != "managedFields" && *key != "resourceVersion")
                        };
                        tag(&mut context, b'{', kept().count());
                        for (key, item) in kept() {
                            text(&mut context, key);
                            hash(&mut context, item);
                        }
                    }
                    _ => hash(&mut context, item),
                }
            }
        }
        other => hash(&mut context, other),
    }
    finish(context)
}

/// SHA-256 over a whole set of objects: each key, uid and content hash, in key
/// order. Two ends with equal digests hold the same set.
pub fn digest<'a>(entries: impl IntoIterator<Item = (&'a Key, &'a Uid, &'a [u8; 32])>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for (key, uid, content) in entries {
        for part in [&key.group, &key.resource, &key.namespace, &key.name, &uid.0] {
            text(&mut context, part);
        }
        context.update(content);
    }
    finish(context)
}

fn finish(context: Context) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn tag(context: &mut Context, tag: u8, count: usize) {
    context.update(&[tag]);
    context.update(&(count as u64).to_be_bytes());
}

fn text(context: &mut Context, text: &str) {
    tag(context, b'"', text.len());
    context.update(text.as_bytes());
}

fn hash(context: &mut Context, value: &Value) {
    match value {
        Value::Null => context.update(b"n"),
        Value::Bool(false) => context.update(b"f"),
        Value::Bool(true) => context.update(b"t"),
        // Numbers are equal when JSON writes them the same.
        Value::Number(number) => {
            let digits = number.to_string();
            tag(context, b'0', digits.len());
            context.update(digits.as_bytes());
        }
        Value::String(string) => text(context, string),
        Value::Array(items) => {
            tag(context, b'[', items.len());
            for item in items {
                hash(context, item);
            }
        }
        Value::Object(map) => {
            tag(context, b'{', map.len());
            for (key, item) in map {
                text(context, key);
                hash(context, item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::codec;

    #[test]
    fn status_and_server_fields_do_not_count_as_content() {
        let bare = json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"x": 1}});
        let full = json!({
            "kind": "Pod",
            "metadata": {"name": "a", "resourceVersion": "7", "managedFields": [{}]},
            "spec": {"x": 1},
            "status": {"phase": "Running"},
        });
        assert_eq!(content_hash(&bare), content_hash(&full));
    }

    #[test]
    fn everything_else_counts() {
        let base = json!({"metadata": {"name": "a"}, "spec": {"x": [1, null], "status": "s"}});
        for other in [
            json!({"metadata": {"name": "b"}, "spec": {"x": [1, null], "status": "s"}}),
            json!({"metadata": {"name": "a"}, "spec": {"x": [1], "status": "s"}}),
            json!({"metadata": {"name": "a"}, "spec": {"x": [1, null]}}),
            json!({"metadata": {"name": "a"}, "spec": {"x": [1, {}], "status": "s"}}),
            json!({"metadata": {"name": "a"}}),
        ] {
            assert_ne!(content_hash(&base), content_hash(&other), "{other}");
        }
    }

    #[test]
    fn the_hash_survives_the_codec() {
        let value = json!({"spec": {"a": 1, "b": -5, "c": 1.5, "d": 1e300, "e": u64::MAX}});
        assert_eq!(content_hash(&value), content_hash(&codec::decode(&codec::encode(&value)).unwrap()));
    }

    #[test]
    fn the_algorithm_is_fixed() {
        let hash = content_hash(&json!({"metadata": {"name": "a"}, "data": {"k": "v"}}));
        assert_eq!(
            data_encoding::HEXLOWER.encode(&hash),
            "f10ccaea85e3c3b825c23042fe60d31aa53c94d23e48d51e1a373f2a37ac3236"
        );
    }
}
