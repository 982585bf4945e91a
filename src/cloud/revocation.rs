//! Who may connect no more: follows the cluster's revocations, ends the
//! sessions they are about, and shows them on the Node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_channel::Sender;
use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError, Seen, Weight};
use super::lifecycle::is_ours;
use super::time::CloudTime;
use crate::object::{Key, Object, now_rfc3339};
use crate::store::Scope;
use crate::task::Tasks;
use crate::trust::certificate::PeerIdentity;
use crate::trust::names::{Fingerprint, NodeName};
use crate::trust::record::NAMESPACE;
use crate::trust::revocation::{NAME_PREFIX, Revocation, Subject};

/// How often what is over is removed.
const PRUNE: Duration = Duration::from_secs(12 * 3600);
/// Tries of a change that others keep overtaking.
const TRIES: usize = 8;
/// The Node's condition that shows a revocation.
pub const CONDITION: &str = "Revoked";

/// A handle; clones share it.
#[derive(Clone)]
pub struct Revocations {
    cluster: Cluster,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// By the names of their ConfigMaps.
    known: BTreeMap<String, Revocation>,
    sessions: BTreeMap<u64, Watched>,
    next: u64,
}

/// A session that waits for its end.
struct Watched {
    peer: PeerIdentity,
    end: Sender<String>,
}

impl Shared {
    fn of(&self, peer: &PeerIdentity) -> Option<&Revocation> {
        self.known.values().find(|revocation| revocation.covers(peer))
    }
}

/// Takes its session off the list when it ends.
struct Guard(Revocations, u64);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.shared().sessions.remove(&self.1);
    }
}

impl Revocations {
    /// Reads all revocations, so that nobody slips in before they are known,
    /// and follows them from then on.
    pub async fn start(
        tasks: &Tasks,
        cluster: Cluster,
        time: CloudTime,
    ) -> Result<Revocations, ClusterError> {
        let revocations = Revocations { cluster, shared: Arc::default() };
        if let Seen::Listed(objects, at) = revocations.cluster.follow(scope()).next().await? {
            revocations.take(Seen::Listed(objects, at));
        }
        let inner = revocations.clone();
        tasks.supervise("revocations", move || inner.clone().follow());
        let inner = revocations.clone();
        tasks.supervise("old revocations", move || inner.clone().prune(time.clone()));
        Ok(revocations)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Every change to it is whole or not begun.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the peer may not connect, if so: a line for a person.
    pub fn why(&self, peer: &PeerIdentity) -> Option<String> {
        self.shared().of(peer).map(|revocation| line(revocation, &peer.node))
    }

    /// Waits until the peer is revoked; gives the reason.
    pub async fn revoked(&self, peer: &PeerIdentity) -> String {
        let (end, ended) = async_channel::bounded(1);
        let guard = {
            let mut shared = self.shared();
            if let Some(revocation) = shared.of(peer) {
                return line(revocation, &peer.node);
            }
            shared.next = shared.next.wrapping_add(1);
            let number = shared.next;
            shared.sessions.insert(number, Watched { peer: peer.clone(), end });
            Guard(self.clone(), number)
        };
        let reason = ended.recv().await;
        drop(guard);
        match reason {
            Ok(reason) => reason,
            // The sender is on the list until the guard takes it off.
            Err(_) => futures_lite::future::pending().await,
        }
    }

    /// Why a board with this key may not enrol as the node, if so. A code that
    /// is bound to the node lets it in again, with another key.
    pub fn keeps_out(&self, node: &NodeName, key: &Fingerprint, is_bound: bool) -> Option<String> {
        let is_about = |revocation: &&Revocation| match &revocation.subject {
            Subject::Key(revoked) => revoked == key,
            Subject::Node(revoked) => revoked == node && !is_bound && !revocation.except.contains(key),
            Subject::Serial(_) => false,
        };
        self.shared().known.values().find(is_about).map(|revocation| line(revocation, node))
    }

    /// Lets a key of a revoked node in: a new board's, or the next key of one
    /// that is in already (`beside`). Durable when it returns.
    ///
    /// # Errors
    /// The cluster failed.
    pub async fn admit(
        &self,
        node: &NodeName,
        key: &Fingerprint,
        beside: Option<&Fingerprint>,
    ) -> Result<(), ClusterError> {
        let revocation = Revocation::new(Subject::Node(node.clone()), crate::trust::unix(0), "");
        let name = Key::core("configmaps", NAMESPACE, &revocation.name())?;
        for _ in 0..TRIES {
            let Some(object) = self.cluster.get(&name).await? else { return Ok(()) };
            let known = Revocation::from_config_map(&object.value);
            let Some(admitting) = known.ok().and_then(|known| known.admitting(node, key, beside)) else {
                return Ok(());
            };
            let mut value = object.value.clone();
            admitting.write_to(&mut value);
            match self.cluster.update(&object, value).await {
                Err(ClusterError::Conflict(_)) => {}
                Err(error) => return Err(error),
                Ok(object) => {
                    self.take(Seen::Put(object, None));
                    return Ok(());
                }
            }
        }
        Err(ClusterError::Conflict(name))
    }

    async fn follow(self) -> Result<(), ClusterError> {
        let mut follow = self.cluster.follow(scope());
        loop {
            let seen = follow.next().await?;
            for revocation in self.take(seen) {
                self.show(&revocation).await?;
            }
        }
    }

    /// Takes over what is seen, and ends the sessions it is about. Gives the
    /// revocations that are new.
    fn take(&self, seen: Seen) -> Vec<Revocation> {
        let mut shared = self.shared();
        let mut fresh = Vec::new();
        match seen {
            Seen::Listed(objects, _) => {
                shared.known = objects.iter().filter_map(|object| read(object)).collect();
                fresh.extend(shared.known.values().cloned());
            }
            Seen::Put(object, _) => {
                if let Some((name, revocation)) = read(&object) {
                    fresh.push(revocation.clone());
                    shared.known.insert(name, revocation);
                }
            }
            Seen::Removed(object) => {
                shared.known.remove(&object.key.name);
            }
        }
        for Watched { peer, end } in shared.sessions.values() {
            if let Some(revocation) = shared.of(peer) {
                // Full means that it has been told.
                let _ = end.try_send(line(revocation, &peer.node));
            }
        }
        fresh
    }

    /// Shows a revocation on the Nodes that it is about, as far as they are
    /// known by name or key.
    async fn show(&self, revocation: &Revocation) -> Result<(), ClusterError> {
        let nodes: Vec<NodeName> = match &revocation.subject {
            Subject::Node(node) if revocation.except.is_empty() => vec![node.clone()],
            Subject::Key(key) => self.nodes_of(key).await?,
            // Told by the session that it ends, or that it refuses.
            _ => Vec::new(),
        };
        for node in nodes {
            self.tell_node(&node, &line(revocation, &node)).await?;
        }
        Ok(())
    }

    async fn nodes_of(&self, key: &Fingerprint) -> Result<Vec<NodeName>, ClusterError> {
        let Seen::Listed(nodes, _) = self.cluster.follow(Scope::all("", "nodes")).next().await? else {
            return Ok(Vec::new());
        };
        let is_its = |node: &&Arc<Object>| super::hub::is_key_of(&node.value, key);
        Ok(nodes.iter().filter(is_its).filter_map(|node| node.key.name.parse().ok()).collect())
    }

    /// Shows on the Node that it was revoked: a condition, and an Event with
    /// it. The condition goes with the first status of a board that is let in
    /// again.
    ///
    /// # Errors
    /// The cluster failed.
    pub async fn tell_node(&self, node: &NodeName, reason: &str) -> Result<(), ClusterError> {
        let key = Key::core("nodes", "", node.as_str())?;
        let Some(object) = self.cluster.get(&key).await? else { return Ok(()) };
        let Some(status) = revoked_status(&object.value, reason, &now_rfc3339()) else { return Ok(()) };
        match self.cluster.set_status(&key, Some(&object.uid), status, Weight::Change).await {
            Err(ClusterError::Missing(_) | ClusterError::Conflict(_)) => return Ok(()),
            outcome => outcome?,
        }
        let name = format!("{node}.{:016x}", fastrand::u64(..));
        // A name too long for an Event is one that no Event can have.
        let Ok(event) = Key::core("events", "default", &name) else { return Ok(()) };
        self.cluster.create(&event, event_of(&object, reason)).await.map(|_| ())
    }

    async fn prune(self, time: CloudTime) -> Result<(), ClusterError> {
        loop {
            // Only by a clock that is believed.
            if let Ok(now) = time.issue() {
                let over: Vec<String> = {
                    let shared = self.shared();
                    let over = shared.known.iter().filter(|(_, revocation)| revocation.is_over(now.time()));
                    over.map(|(name, _)| name.clone()).collect()
                };
                for name in over {
                    let key = Key::core("configmaps", NAMESPACE, &name)?;
                    if let Some(object) = self.cluster.get(&key).await? {
                        log::info!("{key} is removed: all that it revoked has expired");
                        self.cluster.remove(&key, &object.uid).await?;
                    }
                }
            }
            smol::Timer::after(PRUNE).await;
        }
    }
}

fn scope() -> Scope {
    Scope { namespace: Some(NAMESPACE.into()), ..Scope::all("", "configmaps") }
}

fn read(object: &Object) -> Option<(String, Revocation)> {
    let name = object.key.name.as_str();
    if !name.starts_with(NAME_PREFIX) {
        return None;
    }
    match Revocation::from_config_map(&object.value) {
        Ok(revocation) => Some((name.to_owned(), revocation)),
        Err(error) => {
            log::error!("the revocation {} revokes nothing: {error}", object.key);
            None
        }
    }
}

fn line(revocation: &Revocation, node: &NodeName) -> String {
    format!("{revocation}: a code made for it lets a board in again: holm token create --node {node}")
}

/// The Node's status with the revocation shown; `None` if it is not ours or
/// shows it already.
fn revoked_status(node: &Value, reason: &str, now: &str) -> Option<Value> {
    if !is_ours(node) {
        return None;
    }
    let mut status = node.get("status").cloned().unwrap_or_else(|| json!({}));
    let map = status.as_object_mut()?;
    let conditions = map.entry("conditions").or_insert_with(|| json!([])).as_array_mut()?;
    let field =
        |condition: &Value, name: &str| condition.get(name).and_then(Value::as_str).map(str::to_owned);
    if conditions.iter().any(|condition| {
        field(condition, "type").as_deref() == Some(CONDITION)
            && field(condition, "message").as_deref() == Some(reason)
    }) {
        return None;
    }
    conditions.retain(|condition| field(condition, "type").as_deref() != Some(CONDITION));
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        if condition.get("type").and_then(Value::as_str) == Some("Ready") {
            condition.insert("status".into(), "Unknown".into());
            condition.insert("reason".into(), "NodeRevoked".into());
            condition.insert("message".into(), "the node was revoked; its pods are left as they are".into());
            condition.insert("lastTransitionTime".into(), now.into());
        }
    }
    conditions.push(json!({
        "type": CONDITION, "status": "True", "reason": "NodeRevoked", "message": reason,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }));
    Some(status)
}

fn event_of(node: &Object, reason: &str) -> Value {
    let now = now_rfc3339();
    json!({
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "NodeRevoked", "message": reason,
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node.key.name, "uid": node.uid.0},
        "source": {"component": "holm-cloud"}, "reportingComponent": "holm-cloud", "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_node_shows_it_once() {
        let label = crate::trust::record::MANAGED_BY;
        let mut node = json!({
            "metadata": {"name": "n", "labels": {label.0: label.1}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "capacity": {"pods": "1"}},
        });
        let status = revoked_status(&node, "stolen", "t1").unwrap();
        assert_eq!(status["capacity"]["pods"], "1");
        assert_eq!(status["conditions"][0]["status"], "Unknown");
        assert_eq!(status["conditions"][1]["type"], CONDITION);
        node["status"] = status;
        assert_eq!(revoked_status(&node, "stolen", "t2"), None);
        let again = revoked_status(&node, "sold", "t3").unwrap();
        assert_eq!(again["conditions"].as_array().unwrap().len(), 2);
        node["metadata"]["labels"] = json!({});
        assert_eq!(revoked_status(&node, "sold again", "t4"), None);
    }
}
