//! Absence is not an order: what a node holds though the cloud does not know
//! it, and when the cloud may say that it is to go.
//!
//! A cloud says so only when it knows the node's whole set: everything behind
//! the set could be read, and the store is not one that was brought back from
//! a backup, which lacks what was made after it. `holm cloud restore` leaves
//! the ConfigMap [`restored_key`] in the store; while it is there every
//! [`super::nodes::Attached`] is incomplete. Removing it (`holm cloud restore
//! --confirm`) says that what the store lacks is to go; the sessions then send
//! the rest of the difference without a new connection.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError};
use crate::link::Holding;
use crate::link::frame::Gone;
use crate::link::sync::{Set, difference};
use crate::object::{Key, time_rfc3339};
use crate::trust::UnixTime;
use crate::trust::authority::BACKDATED;
use crate::trust::names::NodeName;
use crate::trust::record::{MANAGED_BY, NAMESPACE};

/// The ConfigMap that says that the store was restored.
pub const RESTORED: &str = "holm-restored";
/// How that is taken back.
pub const CONFIRM: &str = "holm cloud restore --confirm";
/// Objects that an Event names; the others it counts.
const NAMED: usize = 8;

/// The key of the ConfigMap [`RESTORED`].
pub fn restored_key() -> Key {
    Key {
        group: "".into(),
        resource: "configmaps".into(),
        namespace: NAMESPACE.into(),
        name: RESTORED.into(),
    }
}

/// The ConfigMap [`RESTORED`] of a store that was restored at that time, from
/// a backup that was begun `made`, if that is known.
pub fn restored(at: Timestamp, made: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": RESTORED, "namespace": NAMESPACE, "labels": {MANAGED_BY.0: MANAGED_BY.1},
            "uid": crate::object::Uid::random().0, "creationTimestamp": time_rfc3339(at),
        },
        "data": {
            "restoredAt": time_rfc3339(at),
            "backupAt": made.unwrap_or_default(),
            "meaning": format!(
                "This cloud was restored from a backup. While this object is here it takes nothing from a node that it does not know itself; to let that go: {CONFIRM}"
            ),
        },
    })
}

/// True if a certificate was issued after the backup was begun that the store
/// comes from, or in the same second: its key is then unknown to the store
/// only because it renewed, or moved to this board, since. One that lost its
/// place before has an older certificate.
pub fn issued_since(mark: &Value, not_before: UnixTime) -> bool {
    let made = mark.get("data").and_then(|data| data.get("backupAt")).and_then(Value::as_str);
    let made = made.and_then(|made| made.parse::<Timestamp>().ok()).map(Timestamp::as_second);
    let issued = not_before.as_secs().saturating_add(BACKDATED);
    made.and_then(|made| u64::try_from(made).ok()).is_some_and(|made| issued >= made)
}

/// Why a cloud leaves on a node what it does not know itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Something behind the node's set could not be read, yet.
    Unread,
    /// The store was restored.
    Restored,
    /// The node holds the set of another cluster.
    Foreign,
}

/// What a node holds and the cloud does not know.
pub fn unknown(held: &[Holding], wanted: &Set) -> Vec<Gone> {
    difference(held, wanted, true).drops
}

/// Says, as an Event on the node, what is left on it though this cloud does
/// not know it, and how to let it go.
pub async fn tell(
    cluster: &Cluster,
    node: &NodeName,
    left: &[Gone],
    belongs: bool,
) -> Result<(), ClusterError> {
    let why = match (belongs, cluster.get(&restored_key()).await?.is_some()) {
        (false, _) => Why::Foreign,
        (true, true) => Why::Restored,
        (true, false) => Why::Unread,
    };
    let Some(message) = message(left, why) else { return Ok(()) };
    log::warn!("node {node}: {message}");
    let now = time_rfc3339(Timestamp::now());
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "HeldThoughUnknown", "message": message,
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": node.as_str()},
        "source": {"component": "holm-cloud"}, "reportingComponent": "holm-cloud", "reportingInstance": "holm-cloud",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    cluster
        .put_fleeting(&Key::core("events", "default", &format!("{node}.held-though-unknown"))?, event)
        .await
}

/// What is said of what is left; nothing if nothing is.
fn message(left: &[Gone], why: Why) -> Option<String> {
    let mut names: Vec<String> = left
        .iter()
        .take(NAMED)
        .map(|gone| format!("{}/{}/{}", gone.key.resource, gone.key.namespace, gone.key.name))
        .collect();
    match left.len() {
        0 => return None,
        count if count > NAMED => names.push(format!("{} more", count - NAMED)),
        _ => {}
    }
    let why = match why {
        Why::Restored => format!("it was restored from a backup; to let them go: {CONFIRM}"),
        Why::Foreign => {
            "they are another cluster's; to let them go, start holm edge there once with --adopt-cluster"
                .into()
        }
        Why::Unread => "not all of it could be read yet; they are judged once it could".into(),
    };
    Some(format!("holds what this cloud does not know, and keeps it: {}; {why}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::frame::WireKey;
    use crate::trust::unix;

    fn gone(name: usize) -> Gone {
        let (group, resource, namespace) = ("".into(), "pods".into(), "default".into());
        Gone { key: WireKey { group, resource, namespace, name: name.to_string() }, uid: "u".into() }
    }

    #[test]
    fn what_is_left_is_named_with_the_remedy() {
        assert_eq!(message(&[], Why::Restored), None);
        let few = message(&[gone(1), gone(2)], Why::Restored).unwrap();
        assert!(few.contains("pods/default/1, pods/default/2;") && few.ends_with(CONFIRM), "{few}");
        let many: Vec<Gone> = (0..NAMED + 3).map(gone).collect();
        let many = message(&many, Why::Unread).unwrap();
        assert!(many.contains("pods/default/7, 3 more") && !many.contains(CONFIRM), "{many}");
    }

    #[test]
    fn what_says_that_the_store_was_restored_is_what_is_looked_for() {
        let value = restored(Timestamp::UNIX_EPOCH, None);
        let key = restored_key();
        assert_eq!(value["metadata"]["name"], key.name.as_str());
        assert_eq!(value["metadata"]["namespace"], key.namespace.as_str());
        assert_eq!(value["data"]["restoredAt"], "1970-01-01T00:00:00Z");
        assert!(!issued_since(&value, unix(u64::MAX)));
    }

    #[test]
    fn a_certificate_of_after_the_backup_is_told_from_one_of_before() {
        let mark = restored(Timestamp::UNIX_EPOCH, Some("2026-01-02T00:00:00Z"));
        let made = 1_767_312_000;
        for (issued, newer) in [(made - 1, false), (made, true), (made + 1, true)] {
            assert_eq!(issued_since(&mark, unix(issued - BACKDATED)), newer);
        }
        assert!(!issued_since(&json!({}), unix(made + 1)));
    }
}
