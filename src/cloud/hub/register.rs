//! A node's object: made when the node first registers, refreshed after.

use serde_json::{Map, Value, json};

use crate::cloud::cluster::{Cluster, ClusterError};
use crate::cloud::lifecycle::{KEY, is_ours};
use crate::object::{Key, labels};
use crate::trust::names::{Fingerprint, NodeName};
use crate::trust::record::MANAGED_BY;

/// Labels that a node may set on itself (what Kubernetes' NodeRestriction
/// lets a kubelet set, as far as Holm's agent sets any).
const OWN_LABELS: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];

/// The annotation with the fingerprint of the key that was issued for it next:
/// it is the node too, and the only one once it has registered.
const NEXT: &str = "holm.dev/key-next";

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
    match recorded(node, KEY) {
        _ if !is_ours(node) => Keeper::NotOurs,
        Some(_) if !is_key_of(node, key) => Keeper::AnotherKey,
        _ => Keeper::ThisKey,
    }
}

/// Whether the Node records this key, as its own or as its next.
pub fn is_key_of(node: &Value, key: &Fingerprint) -> bool {
    let key = key.to_string();
    [KEY, NEXT].iter().any(|name| recorded(node, name) == Some(key.as_str()))
}

fn recorded<'a>(node: &'a Value, name: &str) -> Option<&'a str> {
    node.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

fn annotations(node: &mut Value) -> Option<&mut Map<String, Value>> {
    let meta = node.as_object_mut()?.entry("metadata").or_insert_with(|| json!({}));
    meta.as_object_mut()?.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
}

/// The node with the key recorded as the only one.
pub(super) fn with_key(mut node: Value, key: &Fingerprint) -> Value {
    if let Some(annotations) = annotations(&mut node) {
        annotations.insert(KEY.into(), key.to_string().into());
        annotations.remove(NEXT);
    }
    node
}

/// The node with a key beside its own; `None` if it is recorded already.
pub(super) fn with_next(mut node: Value, next: &Fingerprint) -> Option<Value> {
    if is_key_of(&node, next) {
        return None;
    }
    annotations(&mut node)?.insert(NEXT.into(), next.to_string().into());
    Some(node)
}

/// The node as a board with this key registers it: a next key has proven
/// itself by that, and is the only one from now on.
fn proven(node: Value, key: &Fingerprint) -> Value {
    match recorded(&node, KEY) == Some(key.to_string().as_str()) {
        true => node,
        false => with_key(node, key),
    }
}

/// Makes the Node object, or brings the labels that the node answers for up
/// to date. Its status comes by itself. What is another keeper's or board's
/// is left alone.
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
            // Another board's by now, or another keeper's: it stays as it is.
            Some(known) if keeper(&known.value, identity) != Keeper::ThisKey => return Ok(()),
            Some(known) => {
                cluster.update(known, proven(with_labels(known.value.clone(), &wished), identity)).await
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
    fn a_next_key_is_the_node_beside_the_first_and_alone_once_it_has_registered() {
        let key = |byte| Fingerprint::from_bytes([byte; 32]);
        let node = with_key(with_labels(json!({"metadata": {"name": "barn-1"}}), &json!({})), &key(1));
        let node = with_next(node, &key(2)).unwrap();
        assert_eq!(with_next(node.clone(), &key(2)), None);
        let keepers = |node: &Value| [1, 2, 3].map(|byte| keeper(node, &key(byte)) == Keeper::ThisKey);
        assert_eq!(keepers(&node), [true, true, false]);
        // The first goes on registering while its session lasts.
        assert_eq!(proven(node.clone(), &key(1)), node);
        assert_eq!(keepers(&proven(node.clone(), &key(2))), [false, true, false]);
        // One that was issued and never used makes room for the one after.
        assert_eq!(keepers(&with_next(node, &key(3)).unwrap()), [true, false, true]);
    }

    #[test]
    fn a_node_of_another_keeper_or_board_is_not_taken_over() {
        use crate::store::{Options, Store};
        let folder = std::env::temp_dir().join(format!("holm-register-{}", crate::object::Uid::random()));
        let store = Store::open(&folder, Options::default()).unwrap();
        let cluster = Cluster::embedded(store.clone());
        let (this, other) = (Fingerprint::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]));
        smol::block_on(async {
            let kubeedge = json!({"metadata": {"labels": {"node-role.kubernetes.io/edge": ""}}, "spec": {}});
            cluster.create(&Key::core("nodes", "", "theirs").unwrap(), kubeedge).await.unwrap();
            let before = store.revision();
            register(&cluster, &"theirs".parse().unwrap(), &this, json!({})).await.unwrap();
            assert_eq!(store.revision(), before);
            let name = "ours".parse().unwrap();
            register(&cluster, &name, &this, json!({})).await.unwrap();
            let before = store.revision();
            register(&cluster, &name, &this, json!({})).await.unwrap();
            register(&cluster, &name, &other, json!({})).await.unwrap();
            assert_eq!(store.revision(), before);
        });
        std::fs::remove_dir_all(folder).unwrap();
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
