//! Bodies in protobuf: `kubectl create configmap` and its like send nothing
//! else, whatever the server says it takes.
//!
//! A body is `k8s\0` and a `runtime.Unknown` with the object inside. Fields
//! are those of the published `generated.proto` files; a kind is a table.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::status::ApiError;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What a field holds.
#[derive(Clone, Copy)]
enum Type {
    Text,
    /// Base64 in JSON.
    Bytes,
    Int,
    Bool,
    /// Seconds and nanoseconds.
    Time,
    /// A Time with the nanoseconds shown.
    MicroTime,
    Message(&'static [Field]),
}

/// How often.
#[derive(Clone, Copy)]
enum Count {
    One,
    Many,
    /// Entries of a text key (1) and a value (2).
    Map,
}

/// Number, name in JSON, type, count.
type Field = (u64, &'static str, Type, Count);

use Count::{Many, One};
use Type::{Bool, Bytes, Int, Message, MicroTime, Text, Time};

const OBJECT_META: &[Field] = &[
    (1, "name", Text, One),
    (2, "generateName", Text, One),
    (3, "namespace", Text, One),
    (5, "uid", Text, One),
    (6, "resourceVersion", Text, One),
    (7, "generation", Int, One),
    (8, "creationTimestamp", Time, One),
    (9, "deletionTimestamp", Time, One),
    (10, "deletionGracePeriodSeconds", Int, One),
    (11, "labels", Text, Count::Map),
    (12, "annotations", Text, Count::Map),
    (13, "ownerReferences", Message(OWNER), Many),
    (14, "finalizers", Text, Many),
];
const OWNER: &[Field] = &[
    (1, "kind", Text, One),
    (3, "name", Text, One),
    (4, "uid", Text, One),
    (5, "apiVersion", Text, One),
    (6, "controller", Bool, One),
    (7, "blockOwnerDeletion", Bool, One),
];
const REFERENCE: &[Field] = &[
    (1, "kind", Text, One),
    (2, "namespace", Text, One),
    (3, "name", Text, One),
    (4, "uid", Text, One),
    (5, "apiVersion", Text, One),
    (6, "resourceVersion", Text, One),
    (7, "fieldPath", Text, One),
];
const META: Field = (1, "metadata", Message(OBJECT_META), One);
const CONFIG_MAP: &[Field] =
    &[META, (2, "data", Text, Count::Map), (3, "binaryData", Bytes, Count::Map), (4, "immutable", Bool, One)];
const SECRET: &[Field] = &[
    META,
    (2, "data", Bytes, Count::Map),
    (3, "type", Text, One),
    (4, "stringData", Text, Count::Map),
    (5, "immutable", Bool, One),
];
const NAMESPACE: &[Field] = &[META, (2, "spec", Message(&[(1, "finalizers", Text, Many)]), One)];
const SERVICE_ACCOUNT: &[Field] = &[
    META,
    (2, "secrets", Message(REFERENCE), Many),
    (3, "imagePullSecrets", Message(&[(1, "name", Text, One)]), Many),
    (4, "automountServiceAccountToken", Bool, One),
];
const BINDING: &[Field] = &[META, (2, "target", Message(REFERENCE), One)];
const EVENT: &[Field] = &[
    META,
    (2, "involvedObject", Message(REFERENCE), One),
    (3, "reason", Text, One),
    (4, "message", Text, One),
    (5, "source", Message(&[(1, "component", Text, One), (2, "host", Text, One)]), One),
    (6, "firstTimestamp", Time, One),
    (7, "lastTimestamp", Time, One),
    (8, "count", Int, One),
    (9, "type", Text, One),
    (10, "eventTime", MicroTime, One),
    (11, "series", Message(&[(1, "count", Int, One), (2, "lastObservedTime", MicroTime, One)]), One),
    (12, "action", Text, One),
    (13, "related", Message(REFERENCE), One),
    (14, "reportingComponent", Text, One),
    (15, "reportingInstance", Text, One),
];
const LEASE: &[Field] = &[
    META,
    (
        2,
        "spec",
        Message(&[
            (1, "holderIdentity", Text, One),
            (2, "leaseDurationSeconds", Int, One),
            (3, "acquireTime", MicroTime, One),
            (4, "renewTime", MicroTime, One),
            (5, "leaseTransitions", Int, One),
        ]),
        One,
    ),
];
const DELETE_OPTIONS: &[Field] = &[
    (1, "gracePeriodSeconds", Int, One),
    (2, "preconditions", Message(&[(1, "uid", Text, One), (2, "resourceVersion", Text, One)]), One),
    (4, "propagationPolicy", Text, One),
    (5, "dryRun", Text, Many),
];

const KINDS: &[(&str, &[Field])] = &[
    ("Binding", BINDING),
    ("ConfigMap", CONFIG_MAP),
    ("DeleteOptions", DELETE_OPTIONS),
    ("Event", EVENT),
    ("Lease", LEASE),
    ("Namespace", NAMESPACE),
    ("Secret", SECRET),
    ("ServiceAccount", SERVICE_ACCOUNT),
];

const UNKNOWN: &[Field] =
    &[(1, "typeMeta", Message(&[(1, "apiVersion", Text, One), (2, "kind", Text, One)]), One)];
/// The field of a `runtime.Unknown` that has the object.
const RAW: u64 = 2;

/// The object in a body.
pub fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let broken = || ApiError::bad_request("the object provided is unrecognized: not Kubernetes' protobuf");
    let body = body.strip_prefix(b"k8s\0").ok_or_else(broken)?;
    let envelope = message(body, UNKNOWN).ok_or_else(broken)?;
    let text = |field: &str| {
        envelope.get("typeMeta").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
    };
    let (_, fields) = KINDS.iter().find(|(kind, _)| *kind == text("kind")).ok_or_else(|| {
        ApiError::new(
            415,
            "UnsupportedMediaType",
            format!(
                "{} {:?} is not taken in protobuf: send application/json",
                text("apiVersion"),
                text("kind")
            ),
        )
    })?;
    let raw = entries(body).find_map(|entry| match entry? {
        (RAW, Wire::Bytes(raw)) => Some(raw),
        _ => None,
    });
    let mut object = message(raw.unwrap_or_default(), fields).ok_or_else(broken)?;
    object.insert("apiVersion".into(), text("apiVersion").into());
    object.insert("kind".into(), text("kind").into());
    Ok(Value::Object(object))
}

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Fixed-size numbers, which no field here has.
    Other,
}

/// The fields of a message as they come; `None` where it is broken, and then
/// nothing more.
fn entries(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u64, Wire<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let entry = entry(&mut bytes);
        if entry.is_none() {
            bytes = &[];
        }
        Some(entry)
    })
}

fn entry<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Wire::Other)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Wire::Other)?,
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A message as JSON; fields that are not in the table are left out.
fn message(bytes: &[u8], fields: &[Field]) -> Option<Map<String, Value>> {
    let mut object = Map::new();
    for entry in entries(bytes) {
        let (number, wire) = entry?;
        let Some((_, name, kind, count)) = fields.iter().find(|(known, ..)| *known == number) else {
            continue;
        };
        match count {
            // What is empty was not set: Go writes fields without a pointer always.
            Count::One => {
                if let Some(value) = value(wire, *kind)? {
                    object.insert((*name).into(), value);
                }
            }
            Count::Many => {
                let list = object.entry(*name).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut()?.push(value(wire, *kind)?.unwrap_or_else(|| "".into()));
            }
            Count::Map => {
                let Wire::Bytes(bytes) = wire else { return None };
                let (mut key, mut item) = (String::new(), Value::from(""));
                for entry in entries(bytes) {
                    match entry? {
                        (1, Wire::Bytes(bytes)) => key = std::str::from_utf8(bytes).ok()?.to_owned(),
                        (2, wire) => item = value(wire, *kind)?.unwrap_or_else(|| "".into()),
                        _ => (),
                    }
                }
                let map = object.entry(*name).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut()?.insert(key, item);
            }
        }
    }
    Some(object)
}

/// One value; the outer option is `None` where it is broken, the inner one
/// where it is empty.
fn value(wire: Wire<'_>, kind: Type) -> Option<Option<Value>> {
    Some(match (kind, wire) {
        (Text, Wire::Bytes(bytes)) => {
            Some(std::str::from_utf8(bytes).ok()?).filter(|text| !text.is_empty()).map(Value::from)
        }
        (Bytes, Wire::Bytes(bytes)) => Some(data_encoding::BASE64.encode(bytes).into()),
        // Signed numbers travel as two's complement.
        (Int, Wire::Number(number)) => Some(number.cast_signed().into()),
        (Bool, Wire::Number(number)) => Some((number != 0).into()),
        (Time | MicroTime, Wire::Bytes([])) => None,
        (Time | MicroTime, Wire::Bytes(bytes)) => Some(time(bytes, matches!(kind, MicroTime))?),
        (Message(fields), Wire::Bytes(bytes)) => Some(Value::Object(message(bytes, fields)?)),
        _ => return None,
    })
}

fn time(bytes: &[u8], has_fraction: bool) -> Option<Value> {
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for entry in entries(bytes) {
        match entry? {
            (1, Wire::Number(number)) => seconds = number.cast_signed(),
            (2, Wire::Number(number)) => nanos = i32::try_from(number.cast_signed()).ok()?,
            _ => (),
        }
    }
    let time = Timestamp::new(seconds, nanos).ok()?;
    Some(match has_fraction {
        true => time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into(),
        false => crate::object::time_rfc3339(time).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend(bytes);
        out
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [b"k8s\0".to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_secret_is_read() {
        let meta = [
            field(1, b"password"),
            field(2, b""),
            field(8, b""),
            field(11, &[field(1, b"a"), field(2, b"b")].concat()),
        ];
        let entry = [field(1, b"key"), field(2, b"hidden")].concat();
        let raw = [field(1, &meta.concat()), field(2, &entry), field(3, b"Opaque"), vec![5 << 3, 1]].concat();
        assert_eq!(
            parse(&body("Secret", &raw)).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": "password", "labels": {"a": "b"}},
                "data": {"key": "aGlkZGVu"}, "type": "Opaque", "immutable": true,
            })
        );
    }

    #[test]
    fn no_grace_is_not_the_same_as_unsaid_grace() {
        assert_eq!(parse(&body("DeleteOptions", &[1 << 3, 0])).unwrap()["gracePeriodSeconds"], 0);
        assert!(parse(&body("DeleteOptions", &[])).unwrap().get("gracePeriodSeconds").is_none());
    }

    #[test]
    fn times_are_read() {
        let time = [1 << 3, 0x80, 0x80, 0xa8, 0xc5, 0x06, 2 << 3, 0x80, 0xe1, 0xeb, 0x17];
        let raw = [field(6, &time), field(10, &time)].concat();
        let event = parse(&body("Event", &raw)).unwrap();
        let first = event["firstTimestamp"].as_str().unwrap();
        assert_eq!(event["eventTime"].as_str().unwrap(), first.replace('Z', ".050000Z"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(parse(&body("Widget", &[])).unwrap_err().code, 415);
        assert_eq!(parse(b"{}").unwrap_err().code, 400);
        assert_eq!(parse(&body("Secret", &[0x0a, 0xff])).unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            raw in prop::collection::vec(any::<u8>(), 0..60),
            kind in prop::sample::select(KINDS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>()),
        ) {
            let _ = parse(&raw);
            let _ = parse(&body(kind, &raw));
        }
    }
}
