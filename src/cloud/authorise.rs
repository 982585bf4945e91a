//! What a node may do: one function says yes or no, with a reason. Anything
//! not named here is refused.

use serde_json::Value;

use crate::link::Body;
use crate::link::frame::WireKey;
use crate::object::{Object, meta_str, pod};
use crate::trust::names::NodeName;

/// Decides on a body that a node sent. `target` is the object it is about, as
/// the cluster has it now; `content` is the decoded object it carries, if any.
///
/// # Errors
/// The reason for a refusal, for the log.
pub fn authorise(
    node: &NodeName,
    body: &Body,
    target: Option<&Object>,
    content: Option<&Value>,
) -> Result<(), &'static str> {
    match body {
        Body::Status(status) if is(&status.key, "nodes") => match status.key.name == node.as_str() {
            true => Ok(()),
            false => Err("the status of another node"),
        },
        Body::Status(status) if is(&status.key, "pods") => its_pod(node, target, &status.uid),
        Body::Gone(gone) if is(&gone.key, "pods") => {
            its_pod(node, target, &gone.uid)?;
            match target {
                Some(object) if !object.is_terminating() => Err("the end of a pod that nobody deleted"),
                _ => Ok(()),
            }
        }
        Body::Register(_) => match content.and_then(|node| meta_str(node, "name")) {
            Some(name) if name == node.as_str() => Ok(()),
            _ => Err("the registration of another node"),
        },
        Body::Event(_) => its_event(node, target, content),
        _ => Err("something that nodes do not say"),
    }
}

fn is(key: &WireKey, resource: &str) -> bool {
    key.group.is_empty() && key.resource == resource
}

/// A pod that is there must be bound to the node, and the one meant. One that
/// is not there any more is nobody's: nothing will be done about it.
fn its_pod(node: &NodeName, target: Option<&Object>, uid: &str) -> Result<(), &'static str> {
    match target {
        None => Ok(()),
        Some(object) if pod::node_name(&object.value) != Some(node.as_str()) => Err("a pod of another node"),
        Some(object) if object.uid.0 != uid => Err("a pod that was replaced by another of its name"),
        Some(_) => Ok(()),
    }
}

fn its_event(node: &NodeName, target: Option<&Object>, event: Option<&Value>) -> Result<(), &'static str> {
    let involved = |field| event?.get("involvedObject")?.get(field)?.as_str();
    match involved("kind") {
        Some("Node") if involved("name") == Some(node.as_str()) => Ok(()),
        Some("Pod") if involved("namespace") == event.and_then(|event| meta_str(event, "namespace")) => {
            match target {
                Some(object) if pod::node_name(&object.value) == Some(node.as_str()) => Ok(()),
                Some(_) => Err("an event about a pod of another node"),
                None => Err("an event about a pod that is not there"),
            }
        }
        _ => Err("an event about something that is not the node's"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::link::frame::{Gone, Happening, Register, Status};
    use crate::object::{Key, Origin, Revision, Uid};

    fn pod(node: &str, terminating: bool) -> Object {
        let mut value = json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        if terminating {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let key = Key::core("pods", "default", "p").unwrap();
        Object { key, uid: Uid("u".into()), revision: Revision(1), origin: Origin::Local, value }
    }

    fn key(resource: &str, name: &str) -> WireKey {
        WireKey {
            group: "".into(),
            resource: resource.into(),
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn status(resource: &str, name: &str, uid: &str) -> Body {
        Body::Status(Status { key: key(resource, name), uid: uid.into(), status: vec![] })
    }

    fn gone(uid: &str) -> Body {
        Body::Gone(Gone { key: key("pods", "p"), uid: uid.into() })
    }

    #[track_caller]
    fn check(body: Body, target: Option<&Object>, content: Option<Value>, expected: Result<(), &str>) {
        let node: NodeName = "barn-1".parse().unwrap();
        assert_eq!(authorise(&node, &body, target, content.as_ref()), expected);
    }

    #[test]
    fn a_node_speaks_for_itself_and_its_pods() {
        check(status("nodes", "barn-1", ""), None, None, Ok(()));
        check(status("pods", "p", "u"), Some(&pod("barn-1", false)), None, Ok(()));
        check(gone("u"), Some(&pod("barn-1", true)), None, Ok(()));
        check(gone("u"), None, None, Ok(()));
        let node = json!({"metadata": {"name": "barn-1"}});
        check(Body::Register(Register::default()), None, Some(node), Ok(()));
        let event = json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}});
        check(Body::Event(Happening::default()), Some(&pod("barn-1", false)), Some(event), Ok(()));
    }

    #[test]
    fn and_for_nobody_else() {
        check(status("nodes", "barn-2", ""), None, None, Err("the status of another node"));
        check(status("secrets", "s", "u"), None, None, Err("something that nodes do not say"));
        check(status("pods", "p", "u"), Some(&pod("barn-2", false)), None, Err("a pod of another node"));
        check(
            status("pods", "p", "v"),
            Some(&pod("barn-1", false)),
            None,
            Err("a pod that was replaced by another of its name"),
        );
        check(gone("u"), Some(&pod("barn-1", false)), None, Err("the end of a pod that nobody deleted"));
        check(gone("u"), Some(&pod("barn-2", true)), None, Err("a pod of another node"));
        check(
            Body::Gone(Gone { key: key("nodes", "barn-1"), uid: "u".into() }),
            None,
            None,
            Err("something that nodes do not say"),
        );
        let node = json!({"metadata": {"name": "barn-2"}});
        check(Body::Register(Register::default()), None, Some(node), Err("the registration of another node"));
        check(Body::Register(Register::default()), None, None, Err("the registration of another node"));
        check(Body::Synced, None, None, Err("something that nodes do not say"));
        let event = json!({"metadata": {"namespace": "kube-system"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}});
        check(
            Body::Event(Happening::default()),
            Some(&pod("barn-1", false)),
            Some(event),
            Err("an event about something that is not the node's"),
        );
    }
}
