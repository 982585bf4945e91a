//! What a node may do: one function says yes or no, with a reason. Anything
//! not named here is refused.
//!
//! It judges what is done to the cluster. What a connection allows by its own
//! state (an inventory that was asked for, the credit of a stream) the session
//! judges, and nothing in a frame says who the node is.

mod shape;

use serde_json::Value;

use crate::link::Body;
use crate::link::frame::WireKey;
use crate::object::selector::{is_label_name, is_label_value};
use crate::object::{Object, labels, meta_str, pod};
use crate::trust::names::NodeName;

/// The longest status that is taken, in bytes of CBOR. That of a hundred
/// containers with full termination messages is half of it.
pub const STATUS_MAX: usize = 256 * 1024;
/// The longest Node that is registered, in bytes of CBOR.
pub const NODE_MAX: usize = 16 * 1024;
/// The longest Event that is taken, in bytes of CBOR. An edge clips messages to
/// 1024 characters, as Kubernetes does.
pub const EVENT_MAX: usize = 8 * 1024;

/// Labels on a Node that are not the node's to set: others decide by them.
const NOT_ITS_LABELS: [&str; 3] =
    ["node-restriction.kubernetes.io/", "node-role.kubernetes.io/", "holm.dev/"];

/// Decides on a body that a node sent. `target` is the object it is about, as
/// the cluster has it now; `content` is the decoded object it carries, if any.
///
/// # Errors
/// The reason for a refusal, for the log: there are few, so that each can be
/// logged once a node.
pub fn authorise(
    node: &NodeName,
    body: &Body,
    target: Option<&Object>,
    content: Option<&Value>,
) -> Result<(), &'static str> {
    match body {
        Body::Status(status) if is_nodes(&status.key) => {
            if !status.key.namespace.is_empty() || status.key.name != node.as_str() {
                return Err("the status of another node");
            }
            within(status.status.len(), STATUS_MAX, "a status that is too long")?;
            fits(content, &shape::NODE_STATUS, "a node's status with what a node does not say")
        }
        Body::Status(status) if is_pods(&status.key) => {
            its_pod(node, target, &status.uid)?;
            within(status.status.len(), STATUS_MAX, "a status that is too long")?;
            fits(content, &shape::POD_STATUS, "a pod's status with what a node does not say")
        }
        Body::Status(_) => Err("the status of something that is neither a pod nor itself"),
        Body::Gone(gone) if is_pods(&gone.key) => {
            its_pod(node, target, &gone.uid)?;
            match target {
                Some(object) if !object.is_terminating() => Err("the end of a pod that nobody deleted"),
                _ => Ok(()),
            }
        }
        Body::Gone(_) => Err("the end of something that is not a pod"),
        Body::Register(register) => {
            within(register.node.len(), NODE_MAX, "a registration that is too long")?;
            its_registration(node, content)
        }
        Body::Event(happening) => {
            within(happening.event.len(), EVENT_MAX, "an event that is too long")?;
            its_event(node, target, content)
        }
        // The subject of what it gets is the connection's node.
        Body::Renew(_) => Ok(()),
        // Nothing is done to the cluster: the session knows what it asked for,
        // sent, and opened.
        Body::Inventory(_)
        | Body::NeedFull(_)
        | Body::Data(_)
        | Body::Credit(_)
        | Body::End(_)
        | Body::Answer(_)
        | Body::Cancel(_)
        | Body::Ping
        | Body::Unsupported(_) => Ok(()),
        Body::Open(_) | Body::Call(_) => Err("a wish for a service that the cloud does not have for nodes"),
        Body::Hello(_) => Err("a second Hello"),
        Body::Join(_) => Err("a join code, on a connection that has an identity"),
        Body::Welcome(_)
        | Body::Refused(_)
        | Body::Put(_)
        | Body::Drop(_)
        | Body::Synced
        | Body::Joined(_)
        | Body::Renewed(_)
        | Body::Trust(_) => Err("something that only the cloud says"),
    }
}

fn is_nodes(key: &WireKey) -> bool {
    key.group.is_empty() && key.resource == "nodes"
}

fn is_pods(key: &WireKey) -> bool {
    key.group.is_empty() && key.resource == "pods" && !key.namespace.is_empty()
}

fn within(length: usize, limit: usize, reason: &'static str) -> Result<(), &'static str> {
    if length > limit { Err(reason) } else { Ok(()) }
}

/// The content is there, is an object, and has nothing else in it.
fn fits(content: Option<&Value>, shape: &shape::Shape, reason: &'static str) -> Result<(), &'static str> {
    match content {
        Some(content @ Value::Object(_)) if shape.fits(content) => Ok(()),
        _ => Err(reason),
    }
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

/// What Kubernetes' NodeRestriction leaves to a kubelet, and less: of a node
/// that is there only the labels that say what the machine is are taken over.
fn its_registration(node: &NodeName, wished: Option<&Value>) -> Result<(), &'static str> {
    match wished.and_then(|wished| meta_str(wished, "name")) {
        Some(name) if name == node.as_str() => {}
        _ => return Err("the registration of another node"),
    }
    for (name, value) in wished.and_then(labels).into_iter().flatten() {
        if NOT_ITS_LABELS.iter().any(|prefix| name.starts_with(prefix)) {
            return Err("a registration with labels that others decide by");
        }
        if !is_label_name(name) || !value.as_str().is_some_and(is_label_value) {
            return Err("a registration with labels that cannot be");
        }
        // Pods choose machines by it.
        if name == "kubernetes.io/hostname" && value.as_str() != Some(node.as_str()) {
            return Err("a registration under the host name of another node");
        }
    }
    fits(
        wished,
        &shape::NODE,
        "a registration with taints, owners or other things that are not a node's to set",
    )
}

fn its_event(node: &NodeName, target: Option<&Object>, event: Option<&Value>) -> Result<(), &'static str> {
    fits(event, &shape::EVENT, "an event with what a node does not say")?;
    let text = |pointer| event?.pointer(pointer)?.as_str();
    let namespace = text("/metadata/namespace");
    let of_itself = |pointer| text(pointer).is_none_or(|said| said == node.as_str());
    if !of_itself("/source/host") || !of_itself("/reportingInstance") {
        return Err("an event in the name of another node");
    }
    match text("/involvedObject/kind") {
        // Events about what has no namespace are in this one, as Kubernetes has it.
        Some("Node") if text("/involvedObject/name") == Some(node.as_str()) => match namespace {
            None | Some("default") => Ok(()),
            Some(_) => Err("an event in a namespace that is not its object's"),
        },
        Some("Pod") if namespace.is_none() || text("/involvedObject/namespace") != namespace => {
            Err("an event in a namespace that is not its object's")
        }
        Some("Pod") => match target {
            Some(object) if pod::node_name(&object.value) == Some(node.as_str()) => Ok(()),
            Some(_) => Err("an event about a pod of another node"),
            None => Err("an event about a pod that is not there"),
        },
        _ => Err("an event about something that is not the node's"),
    }
}

#[cfg(test)]
mod tests;
