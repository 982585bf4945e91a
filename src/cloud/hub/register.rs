//! A node's object: made when the node first registers, refreshed after.

use serde_json::{Map, Value, json};

use crate::cloud::cluster::{Cluster, ClusterError};
use crate::cloud::lifecycle::is_ours;
use crate::object::{Key, labels};
use crate::trust::names::{Fingerprint, NodeName};
use crate::trust::record::MANAGED_BY;

/// Labels that a node may set on itself (what Kubernetes' NodeRestriction
/// lets a kubelet set, as far as Holm's agent sets any).
const OWN_LABELS: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];

/// The annotation with the fingerprint of the key that may be the node.
const KEY: &str = "holm.dev/key";

/// Whose a Node object is, as seen by a board with a certain key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// Ours, and this key's (or nobody's yet).
    ThisKey,
    /// Ours, and another key's.
    AnotherKey,
    /// Some other keeper's: a kubelet's, or KubeEdge's.
    NotOurs,
}

/// Whose the node is.
pub(super) fn keeper(node: &Value, key: &Fingerprint) -> Keeper {
    let annotation =
        node.get("metadata").and_then(|meta| meta.get("annotations")).and_then(|all| all.get(KEY));
    match annotation.and_then(Value::as_str) {
        _ if !is_ours(node) => Keeper::NotOurs,
        Some(recorded) if recorded != key.to_string() => Keeper::AnotherKey,
        _ => Keeper::ThisKey,
    }
}

/// The node with the key recorded.
pub(super) fn with_key(mut node: Value, key: &Fingerprint) -> Value {
    if let Some(object) = node.as_object_mut()
        && let Some(meta) = object.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
        && let Some(annotations) = meta.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
    {
        annotations.insert(KEY.into(), key.to_string().into());
    }
    node
}

/// Makes the Node object, or brings the labels that the node answers for up
/// to date. Its status comes by itself.
pub(super) async fn register(
    cluster: &Cluster,
    node: &NodeName,
    identity: &Fingerprint,
    wished: Value,
) -> Result<(), ClusterError> {
    let key = Key::core("nodes", "", node.as_str())?;
    for _ in 0..8 {
        let known = cluster.get(&key).await?;
        let outcome = match &known {
            None => {
                let fresh = json!({"apiVersion": "v1", "kind": "Node", "spec": {}});
                cluster.create(&key, with_key(with_labels(fresh, &wished), identity)).await
            }
            Some(known) => {
                cluster.update(known, with_key(with_labels(known.value.clone(), &wished), identity)).await
            }
        };
        match outcome {
            Err(ClusterError::Conflict(_) | ClusterError::Exists(_)) => {}
            outcome => return outcome.map(|_| ()),
        }
    }
    Err(ClusterError::Conflict(key))
}

fn with_labels(mut node: Value, wished: &Value) -> Value {
    let mut all = labels(&node).cloned().unwrap_or_default();
    let own: Map<String, Value> = labels(wished)
        .into_iter()
        .flatten()
        .filter(|(name, value)| OWN_LABELS.contains(&name.as_str()) && value.is_string())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.extend(own);
    all.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    all.insert("node-role.kubernetes.io/edge".into(), "".into());
    if let Some(object) = node.as_object_mut()
        && let Some(meta) = object.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
    {
        meta.insert("labels".into(), Value::Object(all));
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_key() {
        let (this, other) = (Fingerprint::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]));
        let node = with_labels(json!({"metadata": {"name": "barn-1"}}), &json!({}));
        assert_eq!(keeper(&node, &this), Keeper::ThisKey);
        let node = with_key(node, &this);
        assert_eq!(keeper(&node, &this), Keeper::ThisKey);
        assert_eq!(keeper(&node, &other), Keeper::AnotherKey);
        assert_eq!(keeper(&json!({"metadata": {"name": "barn-1"}}), &this), Keeper::NotOurs);
    }

    #[test]
    fn a_node_cannot_give_itself_a_role() {
        let wished = json!({"metadata": {"labels": {
            "kubernetes.io/hostname": "barn-1", "node-role.kubernetes.io/control-plane": "", "team": "x",
        }}});
        let known =
            json!({"metadata": {"name": "barn-1", "labels": {"zone": "north"}}, "spec": {"taints": []}});
        let node = with_labels(known, &wished);
        let names: Vec<&String> = labels(&node).unwrap().keys().collect();
        assert_eq!(
            names,
            ["holm.dev/managed-by", "kubernetes.io/hostname", "node-role.kubernetes.io/edge", "zone"]
        );
        assert_eq!(node["spec"], json!({"taints": []}));
    }
}
