//! One node's connection, from its `Hello` to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::FutureExt;
use serde_json::Value;

use super::Context;
use super::refusals::Account;
use super::register::{self, Keeper};
use super::renew;
use super::sync::{Next, Sync};
use crate::cloud::absence;
use crate::cloud::authorise::authorise;
use crate::cloud::authorities::Following;
use crate::cloud::cluster::{ClusterError, Weight};
use crate::cloud::nodes::{Attached, Claim, Order};
use crate::link::frame::{Happening, Hello, Refused, Welcome, features, negotiate};
use crate::link::keepalive::LEAST;
use crate::link::outgoing::LatestReceiver;
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::sync::Set;
use crate::link::{Body, Connection, Heard};
use crate::object::{Key, Object, Uid, codec};
use crate::trust::certificate::PeerIdentity;
use crate::trust::names::{Fingerprint, NodeName};

/// How long a connected node may take to say `Hello`.
const HELLO: Duration = Duration::from_secs(10);

/// Serves a node until the connection ends; gives the reason.
pub(super) async fn serve(context: Arc<Context>, mut connection: Connection, peer: PeerIdentity) -> String {
    let PeerIdentity { node, key_fingerprint: key, .. } = peer.clone();
    let hello = match connection.first(HELLO).await {
        Ok(Body::Hello(hello)) => hello,
        Ok(_) => return "it did not begin with Hello".into(),
        Err(reason) => return reason,
    };
    let Some(version) = negotiate(&hello) else {
        let reason = format!(
            "protocol versions {} to {} are not spoken here: update holm on the older side",
            hello.version_min, hello.version_max
        );
        connection.send_plain(Body::Refused(Refused { reason: reason.clone(), permanent: false }));
        connection.close().await;
        return reason;
    };
    if let Err(reason) = keeps_place(&context, &peer).await {
        connection.send_plain(Body::Refused(Refused { reason: reason.clone(), permanent: false }));
        connection.close().await;
        return reason;
    }
    let claim = Claim { generation: hello.generation, epoch: hello.epoch, connection: hello.connection };
    let Some(attached) = context.nodes.attach(node.clone(), claim).await else {
        let reason = "a later connection of this node is there already".to_owned();
        connection.send_plain(Body::Refused(Refused { reason: reason.clone(), permanent: false }));
        connection.close().await;
        return reason;
    };
    log::info!("node {node} connected: holm {}, epoch {}", hello.software, hello.epoch);
    context.authority.heard(&peer, &hello.pins);
    let following = context.authority.follow();
    context.lifecycle.seen(&node);
    let Attached { session, wanted, complete, orders, completed } = attached;
    let sync = Sync::new(&hello, context.cluster_uid.as_str(), wanted, complete);
    connection.send_plain(Body::Welcome(Welcome {
        version,
        cluster: context.cluster_uid.to_string(),
        time_ms: u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default(),
        complete,
        inventory: sync.wants_inventory(),
        window: WINDOW,
        keep_alive_secs: u32::try_from(KEEP_ALIVE.as_secs()).unwrap_or(15),
        endpoints: context.endpoints.iter().map(ToString::to_string).collect(),
        features: features(),
        software: env!("CARGO_PKG_VERSION").into(),
        pins: context.authority.pins(),
        renew_only: false,
        keep_alive_least_secs: u32::try_from(LEAST.as_secs()).unwrap_or(5),
    }));
    connection.agree(false, WINDOW, KEEP_ALIVE);
    connection.set_peer_features(&hello.features);
    let account = context.refusals.open(&node);
    let mut session = Session {
        node,
        key,
        session,
        sync,
        answers: following.first(&peer, &context.endpoints).map(Body::Trust).into_iter().collect(),
        following,
        orders,
        completed,
        account,
        registration: None,
        peer,
        renewals: 0,
        context,
    };
    let reason = session.run(connection, &hello).await;
    match session.account.summary() {
        Some(refused) => format!("{reason}; {refused}"),
        None => reason,
    }
}

/// The node must still be this key's, and Holm's.
async fn keeps_place(context: &Context, peer: &PeerIdentity) -> Result<(), String> {
    let (node, key) = (&peer.node, &peer.key_fingerprint);
    let failed = |error: ClusterError| error.to_string();
    let name = Key::core("nodes", "", node.as_str()).map_err(|error| error.to_string())?;
    let Some(known) = context.cluster.get(&name).await.map_err(failed)? else { return Ok(()) };
    match register::keeper(&known.value, key) {
        Keeper::ThisKey => Ok(()),
        Keeper::NotOurs => Err(format!("the cluster has a node {node} that is not Holm's")),
        Keeper::AnotherKey => {
            let mark = context.cluster.get(&absence::restored_key()).await.map_err(failed)?;
            if !mark.is_some_and(|mark| absence::issued_since(&mark.value, peer.not_before)) {
                return Err(format!("another board has taken the place of node {node}"));
            }
            log::warn!("node {node} has a key that the restored store does not know: it was issued since");
            let value = register::with_key(known.value.clone(), key);
            context.cluster.update(&known, value).await.map(|_| ()).map_err(failed)
        }
    }
}

struct Session {
    context: Arc<Context>,
    node: NodeName,
    key: Fingerprint,
    /// Its number, for [`crate::cloud::nodes::Nodes::read`].
    session: u64,
    sync: Sync,
    /// What goes before anything of `sync`.
    answers: VecDeque<Body>,
    following: Following,
    orders: LatestReceiver<Key, Order>,
    completed: Receiver<Set>,
    account: Account,
    /// How the node last registered: if its object is removed while it is
    /// connected, it is made again.
    registration: Option<Value>,
    peer: PeerIdentity,
    /// How often it has asked for its next certificate.
    renewals: usize,
}

enum Waited {
    Heard(Vec<Heard>),
    Orders,
    Completed(Set),
    Replaced,
    Authorities,
}

impl Session {
    async fn run(&mut self, mut connection: Connection, hello: &Hello) -> String {
        loop {
            while connection.has_room() {
                match self.next_body().await {
                    Ok(Some(body)) => {
                        let based = Sync::based_on(&body);
                        let seq = connection.send(body);
                        if let Some(key) = based {
                            self.sync.sent(seq, key);
                        }
                    }
                    Ok(None) => break,
                    // What could not be read is found again by the difference
                    // of the next connection.
                    Err(error) => return error.to_string(),
                }
            }
            match self.wait(&mut connection).await {
                Waited::Orders => {}
                Waited::Completed(wanted) => self.sync.completed(&wanted),
                Waited::Authorities => {
                    let trust = self.following.trust(&self.peer, &self.context.endpoints);
                    self.answers.push_back(Body::Trust(trust));
                }
                Waited::Replaced => {
                    connection.close().await;
                    return self.replaced(hello);
                }
                // What an old connection still says is older than what the
                // newer one has said.
                Waited::Heard(_) if self.orders.is_over() => return self.replaced(hello),
                Waited::Heard(heard) => {
                    self.context.lifecycle.seen(&self.node);
                    for heard in heard {
                        match heard {
                            Heard::Acked(seq) => self.sync.acked(seq),
                            Heard::Closed(reason) => return reason,
                            Heard::Body(seq, body) => {
                                if let Err(reason) = self.take(body).await {
                                    return reason;
                                }
                                connection.done(seq);
                            }
                        }
                    }
                }
            }
        }
    }

    fn replaced(&self, hello: &Hello) -> String {
        format!("a newer connection took over from epoch {}", hello.epoch)
    }

    async fn wait(&self, connection: &mut Connection) -> Waited {
        let heard = async { Waited::Heard(connection.next().await) };
        let more = async {
            match self.orders.ready().await {
                true => Waited::Orders,
                false => Waited::Replaced,
            }
        };
        let completed = async {
            match self.completed.recv().await {
                Ok(wanted) => Waited::Completed(wanted),
                // Said already, or the session is replaced: the orders tell.
                Err(_) => futures_lite::future::pending().await,
            }
        };
        let authorities = async {
            self.following.changed().await;
            Waited::Authorities
        };
        heard.or(more).or(completed).or(authorities).await
    }

    /// What is to be sent next, if anything is.
    async fn next_body(&mut self) -> Result<Option<Body>, ClusterError> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(Some(answer));
        }
        loop {
            match self.sync.next(|| self.orders.try_pop()) {
                None => return Ok(None),
                Some(Next::Send(body)) => return Ok(Some(body)),
                Some(Next::Read(key)) => {
                    let object = self.context.nodes.read(&self.node, self.session, &key).await?;
                    let content = object.map(|object| codec::encode_content(&object.value));
                    if let Some(body) = self.sync.read(content.as_deref()) {
                        return Ok(Some(body));
                    }
                }
            }
        }
    }

    /// Acts on what the node says. An error ends the connection.
    async fn take(&mut self, body: Body) -> Result<(), String> {
        let outcome = match body {
            Body::Inventory(part) => {
                if let Some(plan) = self.sync.inventory(part).map_err(|what| format!("it sent {what}"))? {
                    log::info!(
                        "node {} holds {} objects: {} to put, {} to drop",
                        self.node,
                        plan.held,
                        plan.puts,
                        plan.drops
                    );
                    let cluster = &self.context.cluster;
                    let told = absence::tell(cluster, &self.node, &plan.left, self.sync.belongs()).await;
                    told.unwrap_or_else(|error| log::warn!("node {}: {error}", self.node));
                }
                Ok(())
            }
            // An answer waits for room: more of them than this wait nowhere.
            Body::Renew(_) if self.renewals > renew::ASKS => {
                Err(Failure::Refused("more requests for a certificate than one connection is good for"))
            }
            Body::Renew(renew) => {
                let renewed = renew::answer(&self.context, &self.peer, &renew, self.renewals).await;
                self.renewals += 1;
                self.answers.push_back(Body::Renewed(renewed));
                Ok(())
            }
            Body::NeedFull(need) => self.sync.need_full(&need).map_err(Failure::Refused),
            body => self.act(&body).await,
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Failure::Refused(reason)) => {
                if self.account.refused(reason) {
                    log::warn!("node {} was refused: it sent {reason}", self.node);
                }
                Ok(())
            }
            // Not done, so not acknowledged: the node says it again on its
            // next connection.
            Err(Failure::Cluster(error)) => Err(error.to_string()),
        }
    }

    async fn act(&mut self, body: &Body) -> Result<(), Failure> {
        let cluster = self.context.cluster.clone();
        let content = match body {
            Body::Status(status) => Some(&status.status),
            Body::Register(register) => Some(&register.node),
            Body::Event(happening) => Some(&happening.event),
            _ => None,
        };
        let content = match content {
            Some(bytes) => {
                Some(codec::decode(bytes).map_err(|_| Failure::Refused("an object that cannot be read"))?)
            }
            None => None,
        };
        let key = target(body, content.as_ref())?;
        let object = match &key {
            Some(key) => cluster.get(key).await?,
            None => None,
        };
        // The last words about a pod that was removed meanwhile.
        if matches!(body, Body::Event(_)) && key.is_some() && object.is_none() {
            return Ok(());
        }
        authorise(&self.node, body, object.as_deref(), content.as_ref()).map_err(Failure::Refused)?;
        match (body, key, content) {
            (Body::Status(status), Some(key), Some(content)) => {
                let uid = Uid(status.uid.clone());
                let is_node = key.is("", "nodes");
                if let (true, None, Some(node)) = (is_node, &object, &self.registration) {
                    register::register(&cluster, &self.node, &self.key, node.clone()).await?;
                }
                if is_node
                    && let Some(known) = &object
                    && register::keeper(&known.value, &self.key) != Keeper::ThisKey
                {
                    return Err(Failure::Refused("the status of a node that is another keeper's by now"));
                }
                let weight = match object.as_deref() {
                    Some(known) if is_node && only_heartbeat(known, &content) => Weight::Heartbeat,
                    _ => Weight::Change,
                };
                ignore_missing(cluster.set_status(&key, (!is_node).then_some(&uid), content, weight).await)
            }
            (Body::Gone(gone), Some(key), _) => {
                ignore_missing(cluster.remove(&key, &Uid(gone.uid.clone())).await)
            }
            (Body::Register(_), _, Some(content)) => {
                self.registration = Some(content.clone());
                Ok(register::register(&cluster, &self.node, &self.key, content).await?)
            }
            (Body::Event(happening), _, Some(content)) => {
                self.account.tell().map_err(Failure::Refused)?;
                self.record(happening, content).await
            }
            _ => Err(Failure::Refused("something that nodes do not say")),
        }
    }

    /// Makes the Event under a name that comes from the item's identity, so
    /// that the same item never makes two.
    async fn record(&self, happening: &Happening, mut event: Value) -> Result<(), Failure> {
        let id = happening.id;
        let about = event.get("involvedObject").and_then(|object| object.get("name")).and_then(Value::as_str);
        let name: String = about.unwrap_or_default().chars().take(200).collect();
        let name = format!("{name}.{:016x}{:x}", id.generation, id.sequence);
        let namespace = crate::object::meta_str(&event, "namespace").unwrap_or("default").to_owned();
        let key = Key::core("events", &namespace, &name).map_err(ClusterError::from)?;
        if let Some(map) = event.as_object_mut() {
            map.insert("apiVersion".into(), "v1".into());
            map.insert("kind".into(), "Event".into());
            map.insert("metadata".into(), serde_json::json!({}));
        }
        match self.context.cluster.create(&key, event).await {
            Ok(_) | Err(ClusterError::Exists(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

enum Failure {
    Refused(&'static str),
    Cluster(ClusterError),
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Failure::Cluster(error)
    }
}

/// What is gone, or has been replaced, needs nothing from its former self.
fn ignore_missing(outcome: Result<(), ClusterError>) -> Result<(), Failure> {
    match outcome {
        Err(ClusterError::Missing(_) | ClusterError::Conflict(_)) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The object that a body is about.
fn target(body: &Body, content: Option<&Value>) -> Result<Option<Key>, Failure> {
    let odd = |_| Failure::Refused("a name that cannot be");
    match body {
        Body::Status(status) => Key::try_from(&status.key).map(Some).map_err(odd),
        Body::Gone(gone) => Key::try_from(&gone.key).map(Some).map_err(odd),
        Body::Event(_) => {
            let involved = |field| content?.get("involvedObject")?.get(field)?.as_str();
            match (involved("kind"), involved("namespace"), involved("name")) {
                (Some("Pod"), Some(namespace), Some(name)) => {
                    Key::core("pods", namespace, name).map(Some).map_err(odd)
                }
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

/// True if a node's new status differs from the known one in heartbeat times
/// only.
fn only_heartbeat(known: &Object, status: &Value) -> bool {
    let without = |status: &Value| {
        let mut status = status.clone();
        let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastHeartbeatTime");
            }
        }
        status
    };
    known.value.get("status").is_some_and(|known| without(known) == without(status))
}
