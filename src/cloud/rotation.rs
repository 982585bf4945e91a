//! Carries out the rotation of the cluster's authority as
//! [`crate::trust::rotation`] decides it. Every replica does; what one has
//! written first counts for all.

use std::time::Duration;

use futures_lite::FutureExt;
use serde_json::{Value, json};

use super::authorities::{Authorities, generations, written};
use super::certificates::Certificates;
use super::cluster::{ClusterError, Seen};
use super::found::{self, FoundError};
use super::lifecycle::is_ours;
use super::time::CloudTime;
use crate::object::Key;
use crate::store::Scope;
use crate::task::Tasks;
use crate::trust::UnixTime;
use crate::trust::names::{Endpoint, NodeName};
use crate::trust::record::NAMESPACE;
use crate::trust::rotation::{
    CERTIFIED_BY, Decision, NAME, NodeTrust, Patience, Phase, Rotation, TRUSTS, decide,
};

/// How often a rotation that is under way is looked at.
const TICK: Duration = Duration::from_secs(2);
/// How often the state is looked at otherwise, should a change have gone
/// unseen.
const IDLE: Duration = Duration::from_secs(600);

/// What the task works with.
#[derive(Clone)]
pub struct Rotating {
    /// The authorities to keep up to date.
    pub authorities: Authorities,
    /// The certificates that the cloud serves with; `None` where somebody else
    /// sees to them.
    pub certificates: Option<Certificates>,
    /// Where edges find the cloud, to be published beside the authorities.
    pub endpoints: Vec<Endpoint>,
    /// When certificates may be issued.
    pub time: CloudTime,
    /// How long to wait for nodes.
    pub patience: Patience,
}

impl Rotating {
    /// Starts the task.
    pub fn start(self, tasks: &Tasks) {
        tasks.supervise("rotation", move || self.clone().run());
    }

    async fn run(self) -> Result<(), FoundError> {
        let scope = Scope {
            namespace: Some(NAMESPACE.into()),
            name: Some(NAME.into()),
            ..Scope::all("", "configmaps")
        };
        let mut follow = self.authorities.cluster().follow(scope);
        let mut adopted = false;
        loop {
            if self.authorities.reread().await? || !adopted {
                adopted = self.adopt().await?;
            }
            let set = self.authorities.now();
            let is_idle = set.rotation.phase == Phase::Steady && set.rotation.asked.is_none() && adopted;
            if !is_idle && let Ok(when) = self.time.issue() {
                self.write_told().await?;
                self.step(when.time()).await?;
            }
            let pause = async {
                smol::Timer::after(if is_idle { IDLE } else { TICK }).await;
                Ok(())
            };
            let change = async { follow.next().await.map(drop) };
            change.or(pause).await?;
        }
    }

    /// Serves with the authorities as they are now, and tells those who make
    /// codes. False if a certificate cannot be issued yet.
    async fn adopt(&self) -> Result<bool, FoundError> {
        let set = self.authorities.now();
        if let Some(certificates) = &self.certificates {
            match certificates.adopt(&set, self.time.issue()) {
                Ok(()) => {}
                Err(error) => {
                    log::error!("the cloud goes on with its old certificate: {error}");
                    return Ok(false);
                }
            }
        }
        found::publish(self.authorities.cluster(), self.authorities.uid(), &set, &self.endpoints).await?;
        self.retire(&set.rotation).await?;
        Ok(true)
    }

    async fn step(&self, now: UnixTime) -> Result<(), FoundError> {
        let set = self.authorities.now();
        let cluster = self.authorities.cluster();
        let nodes = match cluster.follow(Scope::all("", "nodes")).next().await? {
            Seen::Listed(nodes, _) => nodes,
            _ => return Ok(()),
        };
        let nodes: Vec<NodeTrust> =
            nodes.iter().filter(|node| is_ours(&node.value)).map(|node| NodeTrust::of(&node.value)).collect();
        let other = set.other.as_ref().map(|other| other.fingerprint());
        let decision = decide(&set.rotation, other, set.issuing.fingerprint(), &nodes, now, &self.patience);
        let Decision::Become(next) = decision else { return Ok(()) };
        if next.phase == Phase::Announcing
            && let Some(successor) = next.other
        {
            found::authority(cluster, self.authorities.uid(), successor, self.time.issue()).await?;
        }
        if self.write(&set.rotation, &next).await? {
            say(&next);
        }
        Ok(())
    }

    /// Writes the next state in the place of the one that it follows from;
    /// false if somebody else was first.
    async fn write(&self, before: &Rotation, next: &Rotation) -> Result<bool, FoundError> {
        let cluster = self.authorities.cluster();
        let outcome = match written(cluster).await? {
            Some((object, known)) if known == *before => {
                let mut value = object.value.clone();
                next.write_to(&mut value);
                cluster.update(&object, value).await
            }
            Some(_) => return Ok(false),
            None => {
                let key = Key::core("configmaps", NAMESPACE, NAME).map_err(ClusterError::from)?;
                cluster.create(&key, next.to_config_map()).await
            }
        };
        match outcome {
            Err(ClusterError::Conflict(_) | ClusterError::Exists(_)) => Ok(false),
            outcome => Ok(outcome.map(|_| true)?),
        }
    }

    /// Removes the keys of authorities that are no longer trusted.
    async fn retire(&self, now: &Rotation) -> Result<(), FoundError> {
        if now.phase != Phase::Steady {
            return Ok(());
        }
        let cluster = self.authorities.cluster();
        for former in generations(cluster).await?.into_iter().filter(|former| *former < now.issuing) {
            let key = Key::core("secrets", NAMESPACE, &former.to_string()).map_err(ClusterError::from)?;
            if let Some(secret) = cluster.get(&key).await? {
                match cluster.remove(&key, &secret.uid).await {
                    Ok(()) | Err(ClusterError::Missing(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Writes what nodes have said to their objects, where all replicas see
    /// it.
    async fn write_told(&self) -> Result<(), FoundError> {
        for (node, told) in self.authorities.told() {
            let list: Vec<String> = told.trusts.iter().map(ToString::to_string).collect();
            let by = told.certified_by.map(|pin| pin.to_string());
            if self.annotate(&node, &list.join(","), by.as_deref().unwrap_or_default()).await? {
                self.authorities.told_is_written(&node, &told);
            }
        }
        Ok(())
    }

    /// False if the node has not registered yet.
    async fn annotate(&self, node: &NodeName, trusts: &str, by: &str) -> Result<bool, FoundError> {
        let cluster = self.authorities.cluster();
        let key = Key::core("nodes", "", node.as_str()).map_err(ClusterError::from)?;
        loop {
            let Some(known) = cluster.get(&key).await?.filter(|known| is_ours(&known.value)) else {
                return Ok(false);
            };
            let mut value = known.value.clone();
            let annotations = value
                .get_mut("metadata")
                .and_then(Value::as_object_mut)
                .map(|meta| meta.entry("annotations").or_insert_with(|| json!({})));
            if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
                annotations.insert(TRUSTS.into(), trusts.into());
                annotations.insert(CERTIFIED_BY.into(), by.into());
            }
            if value == known.value {
                return Ok(true);
            }
            match cluster.update(&known, value).await {
                Err(ClusterError::Conflict(_)) => {}
                Err(ClusterError::Missing(_)) => return Ok(false),
                outcome => return Ok(outcome.map(|_| true)?),
            }
        }
    }
}

fn say(rotation: &Rotation) {
    let other = rotation.other.map(|other| other.to_string()).unwrap_or_default();
    match rotation.phase {
        Phase::Announcing => {
            log::info!("the certificate authority is rotated: {} is to follow {}", other, rotation.issuing);
        }
        Phase::Renewing => {
            log::info!("the certificate authority {} issues from now on; {other} is going", rotation.issuing);
        }
        Phase::Steady => {
            log::info!("the certificate authority was rotated: {} is the only one", rotation.issuing)
        }
    }
}
