//! What each node needs: its pods, and the ConfigMaps and Secrets that they
//! name, and nothing else. KubeEdge's EdgeController.
//!
//! The task follows the cluster and keeps, for every bound pod, its node and
//! what it names; and for every connected node, what that node has been told
//! to hold. A change becomes a put or a drop in the node's mailbox, where the
//! newest per key wins, so that a slow node never holds up this task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_channel::{Receiver, Sender, WeakSender};

use super::absence;
use super::cluster::{Cluster, ClusterError, Seen};
use crate::link::outgoing::LatestReceiver;
use crate::link::sync::Set;
use crate::object::{Key, Kind, Object, Revision, pod};
use crate::store::Scope;
use crate::task::Tasks;
use crate::trust::names::NodeName;

mod told;

pub use told::{Claim, Order, Told, Was};

/// How long to wait before reading again what could not be read.
const AGAIN: Duration = Duration::from_secs(2);

/// What a session gets to begin with.
pub struct Attached {
    /// Names the session to [`Nodes::read`].
    pub session: u64,
    /// What the node is to hold.
    pub wanted: Set,
    /// True if `wanted` is everything: nothing behind it could not be read,
    /// and the store is no restored one that nobody has confirmed ([`absence`]).
    pub complete: bool,
    /// Everything that changes from then on. It ends when another session of
    /// the node takes over.
    pub orders: LatestReceiver<Key, Order>,
    /// What the node is to hold, once that is everything; nothing comes if
    /// `complete`.
    pub completed: Receiver<Set>,
}

enum ToNodes {
    Seen { kind: Kind, seen: Seen },
    Attach { node: NodeName, claim: Claim, reply: Sender<Option<Attached>> },
    Read { node: NodeName, session: u64, key: Key, reply: Sender<Result<Option<Arc<Object>>, ClusterError>> },
    Again,
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
        let again = (tasks.clone(), sender.downgrade());
        tasks.spawn("nodes", async move {
            let mut state = State {
                cluster,
                again,
                pods: BTreeMap::new(),
                pods_of: BTreeMap::new(),
                nodes: BTreeMap::new(),
                named_by: BTreeMap::new(),
                complete: false,
                waiting: Vec::new(),
                sessions: 0,
                retrying: false,
            };
            state.run(inbox).await;
        });
        Nodes(sender)
    }

    /// Makes the caller the node's only session; `None` if a later connection
    /// of the node is there already.
    pub async fn attach(&self, node: NodeName, claim: Claim) -> Option<Attached> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(ToNodes::Attach { node, claim, reply }).await.ok()?;
        answer.recv().await.ok()?
    }

    /// Reads an object that the caller's session sends to its node, so that
    /// orders go on from there. `None` if the node is not to hold it.
    ///
    /// # Errors
    /// The cluster cannot be read, or another session has taken over.
    pub async fn read(
        &self,
        node: &NodeName,
        session: u64,
        key: &Key,
    ) -> Result<Option<Arc<Object>>, ClusterError> {
        let over = || ClusterError::Failed("another session of the node has taken over".into());
        let (reply, answer) = async_channel::bounded(1);
        let read = ToNodes::Read { node: node.clone(), session, key: key.clone(), reply };
        self.0.send(read).await.map_err(|_| over())?;
        answer.recv().await.map_err(|_| over())?
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
struct Node {
    session: u64,
    claim: Claim,
    told: Told,
    /// What its pods name, whether it exists or not.
    names: BTreeSet<Key>,
    /// Told once everything could be read, if something could not.
    completed: Option<Sender<Set>>,
}

struct State {
    cluster: Cluster,
    again: (Tasks, WeakSender<ToNodes>),
    pods: BTreeMap<Key, Bound>,
    pods_of: BTreeMap<String, BTreeSet<Key>>,
    nodes: BTreeMap<String, Node>,
    /// Connected nodes by what their pods name.
    named_by: BTreeMap<Key, BTreeSet<String>>,
    /// True once the pods were listed.
    complete: bool,
    /// Sessions that came before that.
    waiting: Vec<(NodeName, Claim, Sender<Option<Attached>>)>,
    /// Sessions there have been.
    sessions: u64,
    /// True while [`ToNodes::Again`] is on its way.
    retrying: bool,
}

impl State {
    async fn run(&mut self, inbox: Receiver<ToNodes>) {
        while let Ok(message) = inbox.recv().await {
            match message {
                ToNodes::Seen { seen: Seen::Put(object, previous), .. } => {
                    self.put(&object, previous.as_deref()).await;
                }
                ToNodes::Seen { seen: Seen::Removed(object), .. } => {
                    self.removed(&object.key, object.revision).await;
                }
                ToNodes::Seen { kind, seen: Seen::Listed(objects, revision) } => {
                    self.listed(&kind, objects, revision).await;
                }
                ToNodes::Attach { node, claim, reply } => self.waiting.push((node, claim, reply)),
                ToNodes::Read { node, session, key, reply } => {
                    // A session that has gone meanwhile needs no answer.
                    let _ = reply.try_send(self.read(node.as_str(), session, &key).await);
                }
                ToNodes::Again => {
                    self.retrying = false;
                    self.look_again().await;
                }
            }
            // Before the pods are listed nobody can be told what to hold.
            if self.complete {
                for (node, claim, reply) in std::mem::take(&mut self.waiting) {
                    let attached = self.attach(node.as_str(), claim).await;
                    // A session that has gone meanwhile attaches again.
                    let _ = reply.try_send(attached);
                }
            }
        }
    }

    /// Looks again at the nodes that have not been told of everything.
    async fn look_again(&mut self) {
        let incomplete = self.nodes.iter().filter(|(_, node)| node.completed.is_some());
        let incomplete: Vec<String> = incomplete.map(|(name, _)| name.clone()).collect();
        for node in incomplete {
            self.refresh(&node, None, Revision::default()).await;
        }
    }

    /// A whole list: what is known here and not in it was removed meanwhile.
    async fn listed(&mut self, kind: &Kind, objects: Vec<Arc<Object>>, revision: Revision) {
        let is_pods = *kind == Kind::new("", "pods");
        let present: BTreeSet<&Key> = objects.iter().map(|object| &object.key).collect();
        let told = self.nodes.values().flat_map(|node| node.told.holds().keys());
        let vanished: BTreeSet<Key> = self
            .pods
            .keys()
            .chain(told)
            .filter(|key| key.kind() == *kind && !present.contains(key))
            .cloned()
            .collect();
        for key in vanished {
            self.removed(&key, revision).await;
        }
        for object in &objects {
            self.put(object, None).await;
        }
        self.complete |= is_pods;
        // It may have been removed in a gap.
        if *kind == absence::restored_key().kind() {
            self.look_again().await;
        }
    }

    async fn put(&mut self, object: &Arc<Object>, previous: Option<&Object>) {
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
                self.refresh(&node, Some((object, previous)), object.revision).await;
            }
        } else if let Some(nodes) = self.named_by.get(&object.key).cloned() {
            for node in nodes {
                self.refresh(&node, Some((object, previous)), Revision::default()).await;
            }
        }
    }

    async fn removed(&mut self, key: &Key, revision: Revision) {
        if *key == absence::restored_key() {
            self.look_again().await;
        }
        let nodes: Vec<String> = match key.is("", "pods") {
            true => self.forget_pod(key).into_iter().collect(),
            false => self.named_by.get(key).into_iter().flatten().cloned().collect(),
        };
        // What is known of pods is as new as the last change of a pod.
        let as_of = if key.is("", "pods") { revision } else { Revision::default() };
        for node in nodes {
            if let Some(node) = self.nodes.get_mut(&node) {
                node.told.removed(key, revision);
            }
            self.refresh(&node, None, as_of).await;
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
    /// `changed` (now and before) and what the node does not hold yet is
    /// looked at again. Pods were last seen to change at `as_of`.
    async fn refresh(
        &mut self,
        name: &str,
        changed: Option<(&Arc<Object>, Option<&Object>)>,
        as_of: Revision,
    ) {
        if self.nodes.get(name).is_some_and(|node| node.told.is_over()) {
            self.detach(name);
        }
        let wanted = self.wanted_keys(name);
        let Some(node) = self.nodes.get_mut(name) else { return };
        let unwanted: Vec<Key> =
            node.told.holds().keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in unwanted {
            match key.is("", "pods") {
                // It may have been read since, as another of the name.
                true => node.told.removed(&key, as_of),
                false => node.told.drop(&key),
            }
        }
        for key in node.names.difference(&wanted) {
            forget_name(&mut self.named_by, key, name);
        }
        for key in &wanted {
            self.named_by.entry(key.clone()).or_default().insert(name.into());
        }
        let mut unread = false;
        // What a pod names goes before the pod.
        let (pods, named): (Vec<&Key>, Vec<&Key>) = wanted.iter().partition(|key| key.is("", "pods"));
        for key in named.into_iter().chain(pods) {
            match changed {
                Some((object, previous)) if object.key == *key => {
                    node.told.changed(object, previous);
                }
                _ if node.told.holds().contains_key(key) => {}
                _ => match self.cluster.get_at(key).await {
                    Ok((at, object)) => {
                        let object = object.filter(|object| is_for(name, object));
                        node.told.found(key, at, object.as_deref());
                    }
                    Err(error) => {
                        log::warn!("node {name} waits for {key}: {error}");
                        unread = true;
                    }
                },
            }
        }
        node.names = wanted;
        // What a restored store lacks is not known to be unwanted.
        let mut restored = false;
        if node.completed.is_some() {
            match self.cluster.get(&absence::restored_key()).await {
                Ok(mark) => restored = mark.is_some(),
                Err(_) => unread = true,
            }
        }
        match (unread, &node.completed) {
            (false, Some(_)) if restored => {}
            (false, Some(completed)) => {
                // A session that has gone meanwhile needs no answer.
                let _ = completed.try_send(node.told.holds().clone());
                node.completed = None;
            }
            (true, _) => self.try_again(),
            (false, None) => {}
        }
    }

    /// Looks again, soon, at the nodes that lack something.
    fn try_again(&mut self) {
        if !std::mem::replace(&mut self.retrying, true) {
            let (tasks, sender) = self.again.clone();
            tasks.spawn("nodes' retry", async move {
                smol::Timer::after(AGAIN).await;
                if let Some(sender) = sender.upgrade() {
                    // Closed means that the cloud is stopping.
                    let _ = sender.send(ToNodes::Again).await;
                }
            });
        }
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

    async fn attach(&mut self, name: &str, claim: Claim) -> Option<Attached> {
        let live = self.nodes.get(name).filter(|node| !node.told.is_over());
        if live.is_some_and(|live| !claim.takes_over(&live.claim)) {
            return None;
        }
        self.detach(name);
        self.sessions = self.sessions.wrapping_add(1);
        let (told, orders) = Told::new();
        let (completed, completion) = async_channel::bounded(1);
        let node =
            Node { session: self.sessions, claim, told, names: BTreeSet::new(), completed: Some(completed) };
        self.nodes.insert(name.into(), node);
        self.refresh(name, None, Revision::default()).await;
        // What it holds it will be told by the difference, not by orders.
        orders.clear();
        let node = self.nodes.get(name)?;
        Some(Attached {
            session: self.sessions,
            wanted: node.told.holds().clone(),
            complete: node.completed.is_none(),
            orders,
            completed: completion,
        })
    }

    async fn read(
        &mut self,
        name: &str,
        session: u64,
        key: &Key,
    ) -> Result<Option<Arc<Object>>, ClusterError> {
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.session == session) else {
            return Err(ClusterError::Failed("another session of the node has taken over".into()));
        };
        // A pod says itself whose it is, and sooner than what was seen of it.
        if !key.is("", "pods") && !node.names.contains(key) {
            node.told.drop(key);
            return Ok(None);
        }
        let (at, object) = self.cluster.get_at(key).await?;
        let object = object.filter(|object| is_for(name, object));
        node.told.sent(key, at, object.as_deref());
        Ok(object)
    }

    fn detach(&mut self, name: &str) {
        let Some(node) = self.nodes.remove(name) else { return };
        for key in node.names {
            forget_name(&mut self.named_by, &key, name);
        }
    }
}

/// False for a pod of another node: a name may have been given again.
fn is_for(node: &str, object: &Object) -> bool {
    !object.key.is("", "pods") || pod::node_name(&object.value) == Some(node)
}

/// Takes a node out of the index of who names what.
fn forget_name(named_by: &mut BTreeMap<Key, BTreeSet<String>>, key: &Key, node: &str) {
    if let Some(nodes) = named_by.get_mut(key) {
        nodes.remove(node);
        if nodes.is_empty() {
            named_by.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
