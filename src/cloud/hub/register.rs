//! A node's object: made when the node first registers, refreshed after.

use serde_json::{Map, Value, json};

use crate::cloud::cluster::{Cluster, ClusterError};
use crate::object::{Key, labels};
use crate::trust::names::NodeName;
use crate::trust::record::MANAGED_BY;

/// Labels that a node may set on itself (what Kubernetes' NodeRestriction
/// lets a kubelet set, as far as Holm's agent sets any).
const OWN_LABELS: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];

/// Makes the Node object, or brings the labels that the node answers for up
/// to date. Its status comes by itself.
pub(super) async fn register(cluster: &Cluster, node: &NodeName, wished: Value) -> Result<(), ClusterError> {
    let key = Key::core("nodes", "", node.as_str())?;
    for _ in 0..8 {
        let known = cluster.get(&key).await?;
        let outcome = match &known {
            None => {
                cluster
                    .create(
                        &key,
                        with_labels(json!({"apiVersion": "v1", "kind": "Node", "spec": {}}), &wished),
                    )
                    .await
            }
            Some(known) => cluster.update(known, with_labels(known.value.clone(), &wished)).await,
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
