//! Objects as the rows that `kubectl get` prints (meta.k8s.io/v1 `Table`).

mod pod;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::registry::Row;
use crate::object::meta_str;

pub use pod::{POD, pod, pod_status};

/// The time that ages are counted to.
pub type Now = Timestamp;

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// As in the heading.
    pub name: &'static str,
    /// `string`, `integer`.
    pub kind: &'static str,
    /// What it tells.
    pub description: &'static str,
    /// True if only `-o wide` shows it.
    pub wide: bool,
}

/// A column that is always shown.
pub(super) const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", description, wide: false }
}

/// A column of `-o wide`.
pub(super) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", description, wide: true }
}

/// A column of whole numbers.
const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", description, wide: false }
}

const AGE: Column = column("Age", "time since it was made");

/// What a row carries of its object (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// The definitions of a kind's columns.
pub fn columns(row: &Row) -> Value {
    let name = Column { name: "Name", kind: "string", description: "the name of the object", wide: false };
    let rest = if row.columns.is_empty() { &[AGE] } else { row.columns };
    Some(&name)
        .filter(|_| leads_with_name(row))
        .into_iter()
        .chain(rest)
        .enumerate()
        .map(|(at, column)| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": if at == 0 && leads_with_name(row) { "name" } else { "" },
                "description": column.description,
                "priority": i32::from(column.wide),
            })
        })
        .collect()
}

/// False for a kind that has a place of its own for the name.
fn leads_with_name(row: &Row) -> bool {
    row.columns.iter().all(|column| column.name != "Name")
}

/// One object as a row.
pub fn table_row(row: &Row, value: &Value, include: Include, now: Now) -> Value {
    let mut cells = Vec::new();
    if leads_with_name(row) {
        cells.push(Value::from(meta_str(value, "name").unwrap_or_default()));
    }
    if row.columns.is_empty() {
        cells.push(age(value, now));
    } else {
        cells.extend((row.cells)(value, now));
    }
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(value),
        Include::Object => value.clone(),
    };
    json!({"cells": cells, "object": object})
}

/// A table of rows; `columns` null leaves the definitions out, as in all but
/// the first event of a watch.
pub fn table(meta: &Value, columns: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": if columns.is_null() { json!([]) } else { columns },
        "rows": rows,
    })
}

/// An object's metadata only (`PartialObjectMetadata`).
pub fn partial(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get("metadata"),
    })
}

/// A string at a JSON pointer, or an empty one.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list at a JSON pointer, or an empty one.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn or<'a>(text: &'a str, other: &'a str) -> Value {
    Value::from(if text.is_empty() { other } else { text })
}

/// How long ago a time was, as kubectl writes it: two units at most.
pub fn since(time: &str, now: Now) -> String {
    let Ok(time) = time.parse::<Timestamp>() else { return "<unknown>".into() };
    duration(now.as_second().saturating_sub(time.as_second()))
}

fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, letter: char, small: i64, small_letter: char| {
        let (count, rest) = (seconds / big, seconds % big / small);
        match rest {
            0 => format!("{count}{letter}"),
            rest => format!("{count}{letter}{rest}{small_letter}"),
        }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(MINUTE, 'm', 1, 's'),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(HOUR, 'h', MINUTE, 'm'),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(DAY, 'd', HOUR, 'h'),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000..252_288_000 => two(YEAR, 'y', DAY, 'd'),
        _ => format!("{}y", seconds / YEAR),
    }
}

/// The cell `Age`.
pub(super) fn age(value: &Value, now: Now) -> Value {
    Value::from(since(text(value, "/metadata/creationTimestamp"), now))
}

fn count(value: &Value, fields: &[&str]) -> usize {
    fields
        .iter()
        .filter_map(|field| value.get(*field))
        .map(|part| {
            part.as_object().map(|map| map.len()).or(part.as_array().map(Vec::len)).unwrap_or_default()
        })
        .sum()
}

/// ConfigMap.
pub const CONFIG_MAP: &[Column] = &[number("Data", "how many entries it has"), AGE];

/// ConfigMap.
pub fn config_map(value: &Value, now: Now) -> Vec<Value> {
    vec![count(value, &["data", "binaryData"]).into(), age(value, now)]
}

/// Secret.
pub const SECRET: &[Column] =
    &[column("Type", "what it holds"), number("Data", "how many entries it has"), AGE];

/// Secret.
pub fn secret(value: &Value, now: Now) -> Vec<Value> {
    vec![text(value, "/type").into(), count(value, &["data"]).into(), age(value, now)]
}

/// ServiceAccount.
pub const SERVICE_ACCOUNT: &[Column] = &[number("Secrets", "how many secrets it names"), AGE];

/// ServiceAccount.
pub fn service_account(value: &Value, now: Now) -> Vec<Value> {
    vec![count(value, &["secrets"]).into(), age(value, now)]
}

/// Namespace.
pub const NAMESPACE: &[Column] = &[column("Status", "its phase"), AGE];

/// Namespace.
pub fn namespace(value: &Value, now: Now) -> Vec<Value> {
    vec![text(value, "/status/phase").into(), age(value, now)]
}

/// Lease.
pub const LEASE: &[Column] = &[column("Holder", "who holds it"), AGE];

/// Lease.
pub fn lease(value: &Value, now: Now) -> Vec<Value> {
    vec![text(value, "/spec/holderIdentity").into(), age(value, now)]
}

/// Node.
pub const NODE: &[Column] = &[
    column("Status", "whether it is ready"),
    column("Roles", "from its labels node-role.kubernetes.io/…"),
    AGE,
    column("Version", "of its node agent"),
    wide("Internal-IP", "its address inside"),
    wide("External-IP", "its address outside"),
    wide("OS-Image", "what it runs"),
    wide("Kernel-Version", "of its kernel"),
    wide("Container-Runtime", "what runs its containers"),
];

/// Node.
pub fn node(value: &Value, now: Now) -> Vec<Value> {
    let ready =
        list(value, "/status/conditions").iter().find(|condition| text(condition, "/type") == "Ready");
    let mut status = match ready.map(|condition| text(condition, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if value.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = crate::object::labels(value);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(name, role)| match name.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if name == "kubernetes.io/role" => role.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = list(value, "/status/addresses").iter().find(|address| text(address, "/type") == kind);
        or(found.map(|address| text(address, "/address")).unwrap_or_default(), "<none>")
    };
    let info = |field: &str| or(text(value, &format!("/status/nodeInfo/{field}")), "<unknown>");
    vec![
        status.into(),
        or(&roles.join(","), "<none>"),
        age(value, now),
        text(value, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// Event. Its name says nothing to a person and comes last.
pub const EVENT: &[Column] = &[
    column("Last Seen", "time since it was last seen"),
    column("Type", "Normal or Warning"),
    column("Reason", "in one word"),
    column("Object", "what it is about"),
    wide("Subobject", "which part of it"),
    wide("Source", "who says so"),
    column("Message", "in a sentence"),
    wide("First Seen", "time since it was first seen"),
    wide("Count", "how often it was seen"),
    wide("Name", "the name of the event"),
];

/// Event.
pub fn event(value: &Value, now: Now) -> Vec<Value> {
    let first_of = |pointers: &[&str]| {
        let found = pointers.iter().map(|pointer| text(value, pointer)).find(|text| !text.is_empty());
        found.unwrap_or_default().to_owned()
    };
    let last = first_of(&["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"]);
    let first = first_of(&["/firstTimestamp", "/eventTime"]);
    let source = match (first_of(&["/source/component", "/reportingComponent"]), text(value, "/source/host"))
    {
        (component, "") => component,
        (component, host) => format!("{component}, {host}"),
    };
    let kind = text(value, "/involvedObject/kind").to_lowercase();
    let about = format!("{kind}/{}", text(value, "/involvedObject/name"));
    let seen = value.pointer("/series/count").or(value.get("count")).and_then(Value::as_u64);
    vec![
        since(&last, now).into(),
        text(value, "/type").into(),
        text(value, "/reason").into(),
        about.into(),
        text(value, "/involvedObject/fieldPath").into(),
        source.into(),
        text(value, "/message").trim().into(),
        since(&first, now).into(),
        seen.unwrap_or(1).to_string().into(),
        text(value, "/metadata/name").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::registry::{self, ROWS};

    #[test]
    fn ages_have_two_units_at_most() {
        for (seconds, written) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3600, "60m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (86_400, "24h"),
            (200_000, "2d7h"),
            (800_000, "9d"),
            (70_000_000, "2y80d"),
        ] {
            assert_eq!(duration(seconds), written, "{seconds}");
        }
        assert_eq!(since("yesterday", Timestamp::now()), "<unknown>");
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for row in ROWS {
            for value in [json!({}), json!({"metadata": 1, "spec": [], "status": "x", "data": 1})] {
                let cells = table_row(row, &value, Include::Metadata, Timestamp::now());
                let columns = columns(row);
                assert_eq!(
                    cells["cells"].as_array().unwrap().len(),
                    columns.as_array().unwrap().len(),
                    "{}",
                    row.kind
                );
            }
        }
    }

    #[test]
    fn a_node_is_described() {
        let value = json!({
            "metadata": {"name": "barn", "labels": {"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1"},
            },
        });
        let cells = node(&value, Timestamp::now());
        assert_eq!(cells[0], "Ready,SchedulingDisabled");
        assert_eq!(cells[1], "agent,edge");
        assert_eq!(cells[4], "10.0.0.1");
        assert_eq!(cells[5], "<none>");
        assert_eq!(registry::find("", "v1", "nodes").unwrap().columns.len(), cells.len());
    }
}
