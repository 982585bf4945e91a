//! Binds pods to nodes. Small on purpose: a node of ours that is Ready, takes
//! the pod's selector and is tolerated; of those, the one with fewest pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_channel::Sender;
use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError, Seen};
use super::lifecycle::{is_kept, is_ready};
use crate::object::{Key, Kind, Object, labels, meta_str, now_rfc3339, pod};
use crate::store::Scope;
use crate::task::Tasks;

/// The name that pods ask for (`spec.schedulerName`).
const NAME: &str = "default-scheduler";

/// Starts the task.
pub fn start(tasks: &Tasks, cluster: Cluster) {
    let inner = tasks.clone();
    tasks.supervise("scheduler", move || run(inner.clone(), cluster.clone()));
}

async fn run(tasks: Tasks, cluster: Cluster) -> Result<(), ClusterError> {
    let (sender, inbox) = async_channel::bounded(64);
    for kind in [Kind::new("", "pods"), Kind::new("", "nodes")] {
        let (cluster, sender) = (cluster.clone(), sender.clone());
        tasks.supervise("scheduler's watch", move || follow(cluster.clone(), kind.clone(), sender.clone()));
    }
    drop(sender);
    let mut state = State::default();
    while let Ok((kind, seen)) = inbox.recv().await {
        state.take(&kind, seen);
        // A burst is looked at once.
        while let Ok((kind, seen)) = inbox.try_recv() {
            state.take(&kind, seen);
        }
        for pod in state.waiting() {
            let decision = choose(&pod.value, state.nodes.values().map(|node| &node.value), &state.load());
            match decision {
                Ok(node) => {
                    bind(&cluster, &pod, &node).await?;
                    state.bound(&pod, &node);
                }
                Err(reason) => {
                    if state.said.insert(pod.key.clone(), reason.clone()) != Some(reason.clone()) {
                        complain(&cluster, &pod, &reason).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn follow(cluster: Cluster, kind: Kind, sender: Sender<(Kind, Seen)>) -> Result<(), ClusterError> {
    let mut follow = cluster.follow(Scope::all(&kind.group, &kind.resource));
    loop {
        let seen = follow.next().await?;
        if sender.send((kind.clone(), seen)).await.is_err() {
            return Ok(());
        }
    }
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<Key, Arc<Object>>,
    /// Pods not bound yet.
    unbound: BTreeMap<Key, Arc<Object>>,
    /// Where the others are.
    placed: BTreeMap<Key, String>,
    /// What was last said about a pod that fits nowhere.
    said: BTreeMap<Key, String>,
}

impl State {
    fn take(&mut self, kind: &Kind, seen: Seen) {
        let is_node = kind.resource == "nodes";
        match seen {
            Seen::Listed(objects, _) => {
                match is_node {
                    true => self.nodes.clear(),
                    false => {
                        self.unbound.clear();
                        self.placed.clear();
                    }
                }
                objects.into_iter().for_each(|object| self.put(is_node, object));
            }
            Seen::Put(object, _) => self.put(is_node, object),
            Seen::Removed(object) => {
                self.nodes.remove(&object.key);
                self.forget(&object.key);
            }
        }
    }

    fn put(&mut self, is_node: bool, object: Arc<Object>) {
        if is_node {
            self.nodes.insert(object.key.clone(), object);
            return;
        }
        match pod::node_name(&object.value) {
            Some(node) => {
                let node = node.to_owned();
                self.forget(&object.key);
                if !pod::is_finished(&object.value) {
                    self.placed.insert(object.key.clone(), node);
                }
            }
            None => {
                self.unbound.insert(object.key.clone(), object);
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        self.unbound.remove(key);
        self.placed.remove(key);
        self.said.remove(key);
    }

    fn bound(&mut self, pod: &Object, node: &str) {
        self.forget(&pod.key);
        self.placed.insert(pod.key.clone(), node.into());
    }

    fn waiting(&self) -> Vec<Arc<Object>> {
        let ours = |pod: &&Arc<Object>| {
            let scheduler = pod.value.get("spec").and_then(|spec| spec.get("schedulerName"));
            scheduler.is_none_or(|name| name == NAME) && !pod.is_terminating()
        };
        self.unbound.values().filter(ours).cloned().collect()
    }

    fn load(&self) -> BTreeMap<String, usize> {
        let mut load = BTreeMap::new();
        for node in self.placed.values() {
            *load.entry(node.clone()).or_default() += 1;
        }
        load
    }
}

/// The node for a pod, or why there is none, in kube-scheduler's words.
fn choose<'a>(
    pod: &Value,
    nodes: impl Iterator<Item = &'a Value>,
    load: &BTreeMap<String, usize>,
) -> Result<String, String> {
    let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
    let (mut total, mut best): (usize, Option<(usize, &str)>) = (0, None);
    for node in nodes.filter(|node| is_kept(node)) {
        total += 1;
        match misfit(pod, node) {
            Some(reason) => *reasons.entry(reason).or_default() += 1,
            None => {
                let name = meta_str(node, "name").unwrap_or_default();
                let rank = (load.get(name).copied().unwrap_or_default(), name);
                best = Some(best.map_or(rank, |best| best.min(rank)));
            }
        }
    }
    if let Some((_, name)) = best {
        return Ok(name.into());
    }
    if total == 0 {
        return Err("no nodes available to schedule pods".into());
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    Err(format!("0/{total} nodes are available: {}.", reasons.join(", ")))
}

fn misfit(pod: &Value, node: &Value) -> Option<&'static str> {
    let spec = |field| node.get("spec").and_then(|spec| spec.get(field));
    if !is_ready(node) {
        return Some("node(s) were not ready");
    }
    if spec("unschedulable").and_then(Value::as_bool) == Some(true) {
        return Some("node(s) were unschedulable");
    }
    let wanted = pod.get("spec").and_then(|spec| spec.get("nodeSelector")).and_then(Value::as_object);
    let has = labels(node);
    if wanted.into_iter().flatten().any(|(name, value)| has.and_then(|has| has.get(name)) != Some(value)) {
        return Some("node(s) didn't match Pod's node selector");
    }
    let taints = spec("taints").and_then(Value::as_array);
    if taints.into_iter().flatten().any(|taint| !is_tolerated(pod, taint)) {
        return Some("node(s) had untolerated taint");
    }
    None
}

/// Kubernetes' rule (`v1.Toleration`): key and effect empty match all,
/// `Exists` matches any value. `PreferNoSchedule` keeps nobody away.
fn is_tolerated(pod: &Value, taint: &Value) -> bool {
    fn text<'a>(value: &'a Value, field: &str) -> &'a str {
        value.get(field).and_then(Value::as_str).unwrap_or_default()
    }
    let tolerations = pod.get("spec").and_then(|spec| spec.get("tolerations")).and_then(Value::as_array);
    text(taint, "effect") == "PreferNoSchedule"
        || tolerations.into_iter().flatten().any(|toleration| {
            let key = text(toleration, "key");
            let exists = text(toleration, "operator") == "Exists";
            let effect = text(toleration, "effect");
            (effect.is_empty() || effect == text(taint, "effect"))
                && (key == text(taint, "key") || key.is_empty() && exists)
                && (exists || text(toleration, "value") == text(taint, "value"))
        })
}

async fn bind(cluster: &Cluster, pod: &Object, node: &str) -> Result<(), ClusterError> {
    let mut value = pod.value.clone();
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("nodeName".into(), node.into());
    }
    set_scheduled(&mut value, json!({"status": "True"}));
    match cluster.update(pod, value).await {
        // Changed or removed meanwhile: its change is on its way here.
        Err(ClusterError::Conflict(_) | ClusterError::Missing(_)) => return Ok(()),
        outcome => outcome?,
    };
    let message = format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
    record(cluster, pod, "Normal", "Scheduled", &message).await
}

fn set_scheduled(pod: &mut Value, mut condition: Value) {
    let Some(pod) = pod.as_object_mut() else { return };
    let status = pod.entry("status").or_insert_with(|| json!({}));
    let Some(conditions) = status
        .as_object_mut()
        .and_then(|status| status.entry("conditions").or_insert_with(|| json!([])).as_array_mut())
    else {
        return;
    };
    if let Some(condition) = condition.as_object_mut() {
        condition.insert("type".into(), "PodScheduled".into());
        condition.insert("lastProbeTime".into(), Value::Null);
        condition.insert("lastTransitionTime".into(), now_rfc3339().into());
    }
    conditions.retain(|condition| condition.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    conditions.push(condition);
}

/// Says on the pod, and in an Event, why it is bound nowhere.
async fn complain(cluster: &Cluster, pod: &Object, reason: &str) -> Result<(), ClusterError> {
    let mut value = pod.value.clone();
    set_scheduled(&mut value, json!({"status": "False", "reason": "Unschedulable", "message": reason}));
    match cluster.update(pod, value).await {
        Err(ClusterError::Conflict(_) | ClusterError::Missing(_)) => return Ok(()),
        outcome => outcome?,
    };
    record(cluster, pod, "Warning", "FailedScheduling", reason).await
}

/// Makes an Event about a pod, in kube-scheduler's words.
async fn record(
    cluster: &Cluster,
    pod: &Object,
    kind: &str,
    reason: &str,
    message: &str,
) -> Result<(), ClusterError> {
    let now = now_rfc3339();
    let name = format!("{}.{:016x}", pod.key.name, fastrand::u64(..));
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message,
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.key.namespace, "name": pod.key.name,
            "uid": pod.uid.0,
        },
        "source": {"component": NAME}, "reportingComponent": NAME, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    cluster.create(&Key::core("events", &pod.key.namespace, &name)?, event).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::names::Fingerprint;

    fn node(name: &str, ready: &str, spec: Value) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"holm.dev/managed-by": "holm", "zone": name},
                "annotations": {"holm.dev/key": Fingerprint::from_bytes([7; 32]).to_string()}},
            "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[track_caller]
    fn check(pod: Value, nodes: &[Value], load: &[(&str, usize)], expected: Result<&str, &str>) {
        let load = load.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let chosen = choose(&pod, nodes.iter(), &load);
        assert_eq!(chosen, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn the_emptiest_node_that_fits_is_chosen() {
        let nodes =
            [node("a", "True", json!({})), node("b", "True", json!({})), node("c", "Unknown", json!({}))];
        check(json!({}), &nodes, &[("a", 1), ("b", 0)], Ok("b"));
        check(json!({}), &nodes, &[("a", 1), ("b", 1)], Ok("a"));
        check(json!({"spec": {"nodeSelector": {"zone": "a"}}}), &nodes, &[("a", 9)], Ok("a"));
    }

    #[test]
    fn where_nothing_fits_it_says_why() {
        check(json!({}), &[], &[], Err("no nodes available to schedule pods"));
        let nodes = [
            node("a", "Unknown", json!({})),
            node("b", "True", json!({"unschedulable": true})),
            node("c", "True", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})),
        ];
        check(
            json!({}),
            &nodes,
            &[],
            Err(
                "0/3 nodes are available: 1 node(s) had untolerated taint, 1 node(s) were not ready, 1 node(s) were unschedulable.",
            ),
        );
        check(json!({"spec": {"tolerations": [{"operator": "Exists"}]}}), &nodes, &[], Ok("c"));
        check(json!({"spec": {"tolerations": [{"key": "k", "value": "v"}]}}), &nodes, &[], Ok("c"));
        check(
            json!({"spec": {"tolerations": [{"key": "k", "value": "w"}]}}),
            &nodes[2..],
            &[],
            Err("0/1 nodes are available: 1 node(s) had untolerated taint."),
        );
    }

    #[test]
    fn a_node_of_another_keeper_is_never_chosen() {
        let mut other = node("a", "True", json!({}));
        other["metadata"]["labels"] = json!({"node-role.kubernetes.io/edge": ""});
        check(json!({}), &[other], &[], Err("no nodes available to schedule pods"));
        // Nor one that carries the mark and has no key.
        let mut marked = node("a", "True", json!({}));
        marked["metadata"]["annotations"] = json!({});
        check(json!({}), &[marked], &[], Err("no nodes available to schedule pods"));
    }
}
