//! Which nodes live: Leases renewed while frames arrive, and `Ready` turned to
//! `Unknown` for a node that has been silent. Its pods stay as they are: an
//! island that cannot be seen is not gone.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError, Seen, Weight};
use crate::link::Latest;
use crate::link::outgoing::LatestReceiver;
use crate::object::{Key, meta_str, now_rfc3339};
use crate::store::Scope;
use crate::task::Tasks;
use crate::trust::names::{Fingerprint, NodeName};

/// How often the task looks.
const TICK: Duration = Duration::from_secs(5);
/// How often a live node's Lease is renewed (a kubelet's default).
const RENEW: Duration = Duration::from_secs(10);
/// Silence after which a node counts as lost (Kubernetes'
/// `node-monitor-grace-period`); well above the link's keep-alive.
const GRACE: Duration = Duration::from_secs(50);
/// The annotation with the fingerprint of the key that is the node.
pub const KEY: &str = "holm.dev/key";
/// `leaseDurationSeconds` of the Leases.
const LEASE_SECS: u32 = 40;

/// The task's handle: says who was heard. Never waits; the newest per node
/// counts.
#[derive(Clone)]
pub struct Lifecycle {
    heard: Latest<String, Duration>,
    tasks: Tasks,
}

impl Lifecycle {
    /// Starts the task.
    pub fn start(tasks: &Tasks, cluster: Cluster) -> Lifecycle {
        let (heard, receiver) = Latest::new();
        let inner = tasks.clone();
        tasks.supervise("lifecycle", move || run(inner.clone(), cluster.clone(), receiver.clone()));
        Lifecycle { heard, tasks: tasks.clone() }
    }

    /// A frame of the node has arrived.
    pub fn seen(&self, node: &NodeName) {
        self.heard.push(node.to_string(), self.tasks.now());
    }
}

#[derive(Clone, Copy)]
struct Known {
    seen: Duration,
    renewed: Option<Duration>,
    /// Told to be lost already.
    lost: bool,
}

async fn run(
    tasks: Tasks,
    cluster: Cluster,
    heard: LatestReceiver<String, Duration>,
) -> Result<(), ClusterError> {
    let mut nodes: BTreeMap<String, Known> = BTreeMap::new();
    if let Seen::Listed(listed, _) = cluster.follow(Scope::all("", "nodes")).next().await? {
        // Whoever does not come back after a restart of the cloud is lost too.
        for node in listed.iter().filter(|node| is_kept(&node.value)) {
            nodes.insert(node.key.name.clone(), Known { seen: tasks.now(), renewed: None, lost: false });
        }
    }
    loop {
        smol::Timer::after(TICK).await;
        while let Some((node, at)) = heard.try_pop() {
            let known = nodes.entry(node).or_insert(Known { seen: at, renewed: None, lost: false });
            known.seen = at;
            known.lost = false;
        }
        let now = tasks.now();
        let mut removed = Vec::new();
        for (node, known) in &mut nodes {
            let silent = now.saturating_sub(known.seen);
            if silent < RENEW + TICK * 2 && known.renewed.is_none_or(|at| now.saturating_sub(at) >= RENEW) {
                renew(&cluster, node).await?;
                known.renewed = Some(now);
            } else if silent > GRACE && !known.lost {
                match lose(&cluster, node, silent).await {
                    Ok(()) => known.lost = true,
                    Err(ClusterError::Missing(_)) => removed.push(node.clone()),
                    Err(error) => return Err(error),
                }
            }
        }
        for node in removed {
            nodes.remove(&node);
        }
    }
}

async fn renew(cluster: &Cluster, node: &str) -> Result<(), ClusterError> {
    let object = cluster.get(&Key::core("nodes", "", node)?).await?;
    if object.is_some_and(|object| !is_kept(&object.value)) {
        return Ok(());
    }
    let key = Key::new("coordination.k8s.io", "leases", "kube-node-lease", node)?;
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": LEASE_SECS, "renewTime": time},
    });
    cluster.put_fleeting(&key, lease).await
}

async fn lose(cluster: &Cluster, node: &str, silent: Duration) -> Result<(), ClusterError> {
    let key = Key::core("nodes", "", node)?;
    // One that is another keeper's by now is none of ours any more.
    let object = cluster.get(&key).await?.filter(|object| is_kept(&object.value));
    let object = object.ok_or_else(|| ClusterError::Missing(key.clone()))?;
    let since = jiff::Timestamp::now()
        - jiff::SignedDuration::from_secs(i64::try_from(silent.as_secs()).unwrap_or(0));
    if let Some(status) = lost_status(&object.value, &crate::object::time_rfc3339(since), &now_rfc3339()) {
        log::warn!("node {} has been silent since {}", node, crate::object::time_rfc3339(since));
        cluster.set_status(&key, Some(&object.uid), status, Weight::Change).await?;
    }
    Ok(())
}

/// The status of a node that went silent; `None` if it says so already.
fn lost_status(node: &Value, since: &str, now: &str) -> Option<Value> {
    let mut status = node.get("status")?.clone();
    let mut changed = false;
    for condition in status.get_mut("conditions")?.as_array_mut()? {
        let Some(condition) = condition.as_object_mut() else { continue };
        let field = |name| condition.get(name).and_then(Value::as_str);
        // A revoked node is meant to be silent, and stays revoked.
        if field("status") == Some("Unknown") || field("type") == Some(super::revocation::CONDITION) {
            continue;
        }
        changed = true;
        condition.insert("status".into(), "Unknown".into());
        condition.insert("reason".into(), "NodeStatusUnknown".into());
        let message = format!("holm edge has not been heard of since {since}; its pods are left running");
        condition.insert("message".into(), message.into());
        condition.insert("lastTransitionTime".into(), now.into());
    }
    changed.then_some(status)
}

/// True if the node's `Ready` condition holds.
pub fn is_ready(node: &Value) -> bool {
    let conditions = node.get("status").and_then(|status| status.get("conditions")).and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        let field = |name| condition.get(name).and_then(Value::as_str);
        field("type") == Some("Ready") && field("status") == Some("True")
    })
}

/// True if the node carries our mark.
pub fn is_ours(node: &Value) -> bool {
    let (label, value) = crate::trust::record::MANAGED_BY;
    meta_str(node, "name").is_some()
        && crate::object::labels(node).and_then(|labels| labels.get(label)).and_then(Value::as_str)
            == Some(value)
}

/// True if the node carries our mark, and the key that this cloud gave it a
/// certificate for: the nodes that the cloud sees to. All others it leaves
/// alone, be they a kubelet's or KubeEdge's.
pub fn is_kept(node: &Value) -> bool {
    let annotations = node.get("metadata").and_then(|meta| meta.get("annotations"));
    let key = annotations.and_then(|all| all.get(KEY)).and_then(Value::as_str);
    is_ours(node) && key.is_some_and(|key| key.parse::<Fingerprint>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Origin;
    use crate::store::{Action, Durability, Expect, Options, Store, Write};

    /// A cloud's store with a Node, and the Node's Lease.
    async fn with_node(store: &Store, node: &Value) {
        let name = meta_str(node, "name").unwrap();
        let lease =
            json!({"metadata": {"name": name, "uid": "l"}, "spec": {"holderIdentity": "its kubelet"}});
        for (key, value) in [(node_key(name), node.clone()), (lease_key(name), lease)] {
            let action = Action::Put { value, origin: Origin::Local, durability: Durability::Durable };
            store.write(Write { key, expect: Expect::Anything, action }).await.unwrap();
        }
    }

    fn node_key(name: &str) -> Key {
        Key::core("nodes", "", name).unwrap()
    }

    fn lease_key(name: &str) -> Key {
        Key::new("coordination.k8s.io", "leases", "kube-node-lease", name).unwrap()
    }

    #[test]
    fn a_node_of_another_keeper_is_neither_lost_nor_renewed() {
        let folder = std::env::temp_dir().join(format!("holm-lifecycle-{}", crate::object::Uid::random()));
        let store = Store::open(&folder, Options::default()).unwrap();
        let cluster = Cluster::embedded(store.clone());
        let key = Fingerprint::from_bytes([7; 32]).to_string();
        let node = |name: &str, labels: Value, annotations: Value| {
            json!({
                "metadata": {"name": name, "uid": name, "labels": labels, "annotations": annotations},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            })
        };
        let ours = json!({"holm.dev/managed-by": "holm", "node-role.kubernetes.io/edge": ""});
        let kubeedge = json!({"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": ""});
        smol::block_on(async {
            for foreign in [
                node("kubeedge", kubeedge.clone(), json!({})),
                node("kubelet", json!({}), json!({})),
                // The key alone, and the mark alone, are not enough.
                node("keyed", kubeedge, json!({"holm.dev/key": key})),
                node("marked", ours.clone(), json!({})),
                node("odd", ours.clone(), json!({"holm.dev/key": "no key"})),
            ] {
                with_node(&store, &foreign).await;
                let name = meta_str(&foreign, "name").unwrap();
                let before = store.revision();
                let lost = lose(&cluster, name, GRACE * 2).await;
                assert!(matches!(lost, Err(ClusterError::Missing(_))), "{name}: {lost:?}");
                renew(&cluster, name).await.unwrap();
                assert_eq!(store.revision(), before, "{name}");
            }
            with_node(&store, &node("ours", ours, json!({"holm.dev/key": key}))).await;
            lose(&cluster, "ours", GRACE * 2).await.unwrap();
            assert!(!is_ready(&store.get(&node_key("ours")).unwrap().unwrap().value));
            renew(&cluster, "ours").await.unwrap();
            let lease = store.get(&lease_key("ours")).unwrap().unwrap();
            assert_eq!(lease.value["spec"]["holderIdentity"], "ours");
        });
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_lost_node_says_since_when_and_only_once() {
        let mut node = json!({"metadata": {"name": "n"}, "status": {"addresses": [], "conditions": [
            {"type": "Ready", "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "t0"},
        ]}});
        assert!(is_ready(&node));
        let status = lost_status(&node, "t1", "t2").unwrap();
        assert_eq!(status["conditions"][0]["status"], "Unknown");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "t2");
        assert!(status["conditions"][0]["message"].as_str().unwrap().contains("since t1"));
        node["status"] = status;
        assert!(!is_ready(&node));
        assert_eq!(lost_status(&node, "t1", "t3"), None);
    }
}
