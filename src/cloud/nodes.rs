//! What each node needs: its pods, and the ConfigMaps and Secrets that they
//! name, and nothing else. KubeEdge's EdgeController.
//!
//! The task follows the cluster and keeps, for every bound pod, its node and
//! what it names; and for every connected node, what that node has been told
//! to hold. A change becomes a put or a drop in the node's mailbox, where the
//! newest per key wins, so that a slow node never holds up this task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_channel::{Receiver, Sender};
use serde_json::Value;

use super::cluster::{Cluster, ClusterError, Seen};
use crate::link::Latest;
use crate::link::outgoing::LatestReceiver;
use crate::link::sync::Set;
use crate::object::{Key, Kind, Object, Uid, content_hash, pod};
use crate::store::Scope;
use crate::task::Tasks;
use crate::trust::names::NodeName;

/// One thing a node is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Hold this object, encoded ([`crate::object::codec`]).
    Put(Vec<u8>),
    /// Hold the object of this uid no longer.
    Drop(Uid),
}

/// What a session gets to begin with.
pub struct Attached {
    /// What the node is to hold.
    pub wanted: Set,
    /// True if `wanted` is everything: nothing behind it could not be read.
    pub complete: bool,
    /// Everything that changes from then on. It ends when another session of
    /// the node takes over.
    pub orders: LatestReceiver<Key, Order>,
}

enum ToNodes {
    Seen { kind: Kind, seen: Seen },
    Attach { node: NodeName, reply: Sender<Attached> },
}

/// The task's handle. Callers wait while its inbox is full.
#[derive(Clone)]
pub struct Nodes(Sender<ToNodes>);

/// Messages that wait for the task at most.
const INBOX: usize = 256;

impl Nodes {
    /// Starts the task.
    pub fn start(tasks: &Tasks, cluster: Cluster) -> Nodes {
        let (sender, inbox) = async_channel::bounded(INBOX);
        for scope in [Scope::all("", "pods"), Scope::all("", "configmaps"), Scope::all("", "secrets")] {
            let (cluster, sender) = (cluster.clone(), sender.clone());
            tasks.supervise("nodes' watch", move || follow(cluster.clone(), scope.clone(), sender.clone()));
        }
        tasks.spawn("nodes", async move {
            let mut state = State {
                cluster,
                pods: BTreeMap::new(),
                pods_of: BTreeMap::new(),
                nodes: BTreeMap::new(),
                named_by: BTreeMap::new(),
                complete: false,
                waiting: Vec::new(),
            };
            state.run(inbox).await;
        });
        Nodes(sender)
    }

    /// Makes the caller the node's only session.
    pub async fn attach(&self, node: NodeName) -> Option<Attached> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(ToNodes::Attach { node, reply }).await.ok()?;
        answer.recv().await.ok()
    }
}

async fn follow(cluster: Cluster, scope: Scope, nodes: Sender<ToNodes>) -> Result<(), ClusterError> {
    let kind = scope.kind.clone();
    let mut follow = cluster.follow(scope);
    loop {
        let seen = follow.next().await?;
        if nodes.send(ToNodes::Seen { kind: kind.clone(), seen }).await.is_err() {
            return Ok(());
        }
    }
}

/// What is remembered of a bound pod.
struct Bound {
    node: String,
    names: BTreeSet<Key>,
}

/// A node with a session.
struct Told {
    orders: Latest<Key, Order>,
    /// What it holds once it has done everything in its mailbox.
    holds: Set,
    /// What its pods name, whether it exists or not.
    names: BTreeSet<Key>,
}

struct State {
    cluster: Cluster,
    pods: BTreeMap<Key, Bound>,
    pods_of: BTreeMap<String, BTreeSet<Key>>,
    nodes: BTreeMap<String, Told>,
    /// Connected nodes by what their pods name.
    named_by: BTreeMap<Key, BTreeSet<String>>,
    /// True once the pods were listed.
    complete: bool,
    /// Sessions that came before that.
    waiting: Vec<(NodeName, Sender<Attached>)>,
}

impl State {
    async fn run(&mut self, inbox: Receiver<ToNodes>) {
        while let Ok(message) = inbox.recv().await {
            match message {
                ToNodes::Seen { seen: Seen::Put(object), .. } => self.put(&object).await,
                ToNodes::Seen { seen: Seen::Removed(object), .. } => self.removed(&object.key).await,
                ToNodes::Seen { kind, seen: Seen::Listed(objects) } => self.listed(&kind, objects).await,
                ToNodes::Attach { node, reply } => self.waiting.push((node, reply)),
            }
            // Before the pods are listed nobody can be told what to hold.
            if self.complete {
                for (node, reply) in std::mem::take(&mut self.waiting) {
                    let attached = self.attach(node.as_str()).await;
                    // A session that has gone meanwhile attaches again.
                    let _ = reply.try_send(attached);
                }
            }
        }
    }

    /// A whole list: what is known here and not in it was removed meanwhile.
    async fn listed(&mut self, kind: &Kind, objects: Vec<Arc<Object>>) {
        let is_pods = *kind == Kind::new("", "pods");
        let present: BTreeSet<&Key> = objects.iter().map(|object| &object.key).collect();
        let told = self.nodes.values().flat_map(|told| told.holds.keys());
        let vanished: BTreeSet<Key> = self
            .pods
            .keys()
            .chain(told)
            .filter(|key| key.kind() == *kind && !present.contains(key))
            .cloned()
            .collect();
        for key in vanished {
            self.removed(&key).await;
        }
        for object in &objects {
            self.put(object).await;
        }
        self.complete |= is_pods;
    }

    async fn put(&mut self, object: &Arc<Object>) {
        if object.key.is("", "pods") {
            let before = self.forget_pod(&object.key);
            let now = pod::node_name(&object.value).map(str::to_owned);
            if let Some(node) = &now {
                let names = pod::references(&object.value);
                self.pods_of.entry(node.clone()).or_default().insert(object.key.clone());
                self.pods.insert(object.key.clone(), Bound { node: node.clone(), names });
            }
            let both: BTreeSet<String> = before.into_iter().chain(now).collect();
            for node in both {
                self.refresh(&node, Some(object)).await;
            }
        } else if let Some(nodes) = self.named_by.get(&object.key).cloned() {
            for node in nodes {
                self.refresh(&node, Some(object)).await;
            }
        }
    }

    async fn removed(&mut self, key: &Key) {
        let nodes: Vec<String> = match key.is("", "pods") {
            true => self.forget_pod(key).into_iter().collect(),
            false => self.named_by.get(key).into_iter().flatten().cloned().collect(),
        };
        for node in nodes {
            if let Some(told) = self.nodes.get_mut(&node)
                && let Some((uid, _)) = told.holds.remove(key)
            {
                told.orders.push(key.clone(), Order::Drop(uid));
            }
            self.refresh(&node, None).await;
        }
    }

    /// Takes a pod out of the index; gives the node it was bound to.
    fn forget_pod(&mut self, key: &Key) -> Option<String> {
        let bound = self.pods.remove(key)?;
        if let Some(pods) = self.pods_of.get_mut(&bound.node) {
            pods.remove(key);
            if pods.is_empty() {
                self.pods_of.remove(&bound.node);
            }
        }
        Some(bound.node)
    }

    /// Brings what a connected node is told in line with what it needs. Only
    /// `changed` and what the node does not hold yet is looked at again.
    /// False if something could not be read.
    async fn refresh(&mut self, node: &str, changed: Option<&Arc<Object>>) -> bool {
        if self.nodes.get(node).is_some_and(|told| told.orders.is_closed()) {
            self.detach(node);
        }
        let wanted = self.wanted_keys(node);
        let Some(told) = self.nodes.get_mut(node) else { return true };
        let mut complete = true;
        let unwanted: Vec<Key> = told.holds.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in unwanted {
            if let Some((uid, _)) = told.holds.remove(&key) {
                told.orders.push(key, Order::Drop(uid));
            }
        }
        for name in told.names.difference(&wanted) {
            if let Some(nodes) = self.named_by.get_mut(name) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.named_by.remove(name);
                }
            }
        }
        for key in &wanted {
            self.named_by.entry(key.clone()).or_default().insert(node.into());
        }
        // What a pod names goes before the pod.
        let (pods, named): (Vec<&Key>, Vec<&Key>) = wanted.iter().partition(|key| key.is("", "pods"));
        for key in named.into_iter().chain(pods) {
            let object = match changed {
                Some(object) if object.key == *key => Some(object.clone()),
                _ if told.holds.contains_key(key) => None,
                _ => self.cluster.get(key).await.unwrap_or_else(|error| {
                    log::warn!("node {node} waits for {key}: {error}");
                    complete = false;
                    None
                }),
            };
            if let Some(object) = object {
                let version = (object.uid.clone(), content_hash(&object.value));
                if told.holds.get(key) != Some(&version) {
                    told.holds.insert(key.clone(), version);
                    told.orders.push(key.clone(), Order::Put(encoded(&object)));
                }
            }
        }
        told.names = wanted;
        complete
    }

    fn wanted_keys(&self, node: &str) -> BTreeSet<Key> {
        let mut wanted = BTreeSet::new();
        for key in self.pods_of.get(node).into_iter().flatten() {
            if let Some(bound) = self.pods.get(key) {
                wanted.extend(bound.names.iter().cloned());
            }
            wanted.insert(key.clone());
        }
        wanted
    }

    async fn attach(&mut self, node: &str) -> Attached {
        self.detach(node);
        let (orders, receiver) = Latest::new();
        self.nodes.insert(node.into(), Told { orders, holds: Set::new(), names: BTreeSet::new() });
        let complete = self.refresh(node, None).await;
        // What it holds it will be told by the difference, not by orders.
        receiver.clear();
        let wanted = self.nodes.get(node).map(|told| told.holds.clone()).unwrap_or_default();
        Attached { wanted, complete, orders: receiver }
    }

    fn detach(&mut self, node: &str) {
        let Some(told) = self.nodes.remove(node) else { return };
        for key in told.names {
            if let Some(nodes) = self.named_by.get_mut(&key) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.named_by.remove(&key);
                }
            }
        }
    }
}

/// An object as a node gets it: without the status, which is the node's to say.
pub fn encoded(object: &Object) -> Vec<u8> {
    match &object.value {
        Value::Object(map) => {
            let map = map.iter().filter(|(field, _)| *field != "status");
            crate::object::codec::encode(&Value::Object(map.map(|(k, v)| (k.clone(), v.clone())).collect()))
        }
        other => crate::object::codec::encode(other),
    }
}

#[cfg(test)]
mod tests;
