//! The cluster's certificate authorities as they are now: one, and another
//! one during a rotation. What is written down about them is
//! [`crate::trust::rotation`]'s; [`super::rotation`] keeps this up to date.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};

use super::cluster::{Cluster, ClusterError, Seen};
use super::found::{self, FoundError};
use crate::link::frame::{Hash, Trust};
use crate::object::{Key, Object};
use crate::store::Scope;
use crate::trust::authority::{Authority, AuthorityError, NodeRequest};
use crate::trust::certificate::PeerIdentity;
use crate::trust::clock::{ClockError, IssueTime};
use crate::trust::names::{ClusterUid, Endpoint, Fingerprint, NodeName};
use crate::trust::record::NAMESPACE;
use crate::trust::rotation::{Generation, NAME, Phase, Rotation};
use crate::trust::{CertificateDer, UnixTime};

/// The time over which nodes are told of a change, for each of them.
const EACH: Duration = Duration::from_millis(2);

/// The authorities, read once.
#[derive(Debug)]
pub struct Set {
    /// How far a rotation is.
    pub rotation: Rotation,
    /// Who issues.
    pub issuing: Arc<Authority>,
    /// Who is to come, or is going.
    pub other: Option<Arc<Authority>>,
}

impl Set {
    /// The certificates of those whose clients are let in; the one that issues
    /// first.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.all().map(|authority| authority.certificate().clone()).collect()
    }

    /// What edges are told to trust.
    pub fn pins(&self) -> Vec<Fingerprint> {
        self.all().map(|authority| authority.fingerprint()).collect()
    }

    /// The certificate of the issuer's key by the other authority, for those
    /// who trust only that one.
    pub fn vouched(&self) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.other.iter().map(|other| other.vouch_for(&self.issuing)).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Authority>> {
        std::iter::once(&self.issuing).chain(&self.other)
    }
}

/// What a node has said of itself on its last connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) trusts: Vec<Fingerprint>,
    pub(super) certified_by: Option<Fingerprint>,
}

/// A handle; clones share it.
#[derive(Clone)]
pub struct Authorities {
    cluster: Cluster,
    uid: ClusterUid,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    set: Arc<Set>,
    /// Not yet written to the nodes' objects; kept during a rotation only.
    told: BTreeMap<NodeName, Told>,
    /// How each is told that something has changed, and how much later it acts.
    sessions: BTreeMap<usize, Sender<Duration>>,
    next: usize,
}

impl Authorities {
    /// Reads the authorities; makes the first one if there is none.
    ///
    /// # Errors
    /// The API fails, an authority cannot be read, or the first one is to be
    /// made while the clock is wrong.
    pub async fn open(
        cluster: Cluster,
        uid: ClusterUid,
        when: Result<IssueTime, ClockError>,
    ) -> Result<Authorities, FoundError> {
        let rotation = match written(&cluster).await? {
            Some((_, rotation)) => rotation,
            None => {
                let found = Rotation::recovered(generations(&cluster).await?, UnixTime::now());
                if found.is_none() {
                    found::authority(&cluster, &uid, Generation::FIRST, when).await?;
                }
                found.unwrap_or_else(|| Rotation::steady(Generation::FIRST))
            }
        };
        let set = Arc::new(read(&cluster, rotation, None).await?);
        let shared = Shared { set, told: BTreeMap::new(), sessions: BTreeMap::new(), next: 0 };
        Ok(Authorities { cluster, uid, shared: Arc::new(Mutex::new(shared)) })
    }

    /// The authorities now.
    pub fn now(&self) -> Arc<Set> {
        self.shared().set.clone()
    }

    /// Issues a node's certificate: [`Authority::issue_node`] of the one that
    /// issues now.
    ///
    /// # Errors
    /// As there.
    pub fn issue_node(
        &self,
        node: &NodeName,
        request: &NodeRequest,
        when: IssueTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        self.now().issuing.issue_node(node, request, when, life)
    }

    /// What edges are told to trust, for `Welcome`.
    pub fn pins(&self) -> Vec<Hash> {
        hashes(&self.now())
    }

    /// A node has connected and said whom it trusts.
    pub fn heard(&self, peer: &PeerIdentity, pins: &[Hash]) {
        let mut shared = self.shared();
        if shared.set.rotation.phase == Phase::Steady {
            return;
        }
        // What it says of others is of no interest, and not kept.
        let trusts = |authority: &&Arc<Authority>| pins.contains(&Hash(*authority.fingerprint().as_bytes()));
        let issued = |authority: &&Arc<Authority>| authority.has_issued(&peer.issuer_key);
        let told = Told {
            trusts: shared.set.all().filter(trusts).map(|authority| authority.fingerprint()).collect(),
            certified_by: shared.set.all().find(issued).map(|authority| authority.fingerprint()),
        };
        shared.told.insert(peer.node.clone(), told);
    }

    /// Follows the authorities for a session.
    pub fn follow(&self) -> Following {
        let (sender, changed) = async_channel::bounded(1);
        let mut shared = self.shared();
        let number = shared.next;
        shared.next = shared.next.wrapping_add(1);
        shared.sessions.insert(number, sender);
        Following { authorities: self.clone(), number, changed, due: Mutex::new(None) }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(super) fn uid(&self) -> &ClusterUid {
        &self.uid
    }

    /// Takes over what is written down; true if it is something else than
    /// before.
    pub(super) async fn reread(&self) -> Result<bool, FoundError> {
        let Some((_, rotation)) = written(&self.cluster).await? else { return Ok(false) };
        let before = self.now();
        if before.rotation == rotation {
            return Ok(false);
        }
        let set = Arc::new(read(&self.cluster, rotation, Some(&before)).await?);
        let is_other = set.pins() != before.pins();
        let mut shared = self.shared();
        if set.rotation.phase == Phase::Steady {
            shared.told.clear();
        }
        shared.set = set;
        if is_other {
            // One that has not yet looked at the change before sees both.
            // Every node connects again; not all of them at once.
            let spread = EACH.saturating_mul(u32::try_from(shared.sessions.len()).unwrap_or(u32::MAX));
            for session in shared.sessions.values() {
                let _ = session.try_send(spread.mul_f64(fastrand::f64()));
            }
        }
        Ok(is_other)
    }

    /// What nodes have said and is not yet written down.
    pub(super) fn told(&self) -> BTreeMap<NodeName, Told> {
        self.shared().told.clone()
    }

    /// This has been written down.
    pub(super) fn told_is_written(&self, node: &NodeName, told: &Told) {
        let mut shared = self.shared();
        if shared.told.get(node) == Some(told) {
            shared.told.remove(node);
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Every change to it is whole or not begun.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's view of the authorities; it ends with the session.
pub struct Following {
    authorities: Authorities,
    number: usize,
    changed: Receiver<Duration>,
    /// When a change that has been heard of is to be acted upon.
    due: Mutex<Option<Instant>>,
}

impl Following {
    /// Waits for a change. May be dropped and called again.
    pub async fn changed(&self) {
        let due = || self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = due().is_some();
        if !is_due {
            match self.changed.recv().await {
                Ok(later) => *due() = Some(Instant::now() + later),
                Err(_) => futures_lite::future::pending().await,
            }
        }
        let at = *due();
        if let Some(at) = at {
            smol::Timer::at(at).await;
        }
        *due() = None;
    }

    /// What the node is to be told now.
    pub fn trust(&self, peer: &PeerIdentity, endpoints: &[Endpoint]) -> Trust {
        let set = self.authorities.now();
        Trust {
            pins: hashes(&set),
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            renew: is_to_renew(&set, peer),
        }
    }

    /// What the node is to be told at its session's begin: nothing, unless it
    /// is to renew.
    pub fn first(&self, peer: &PeerIdentity, endpoints: &[Endpoint]) -> Option<Trust> {
        is_to_renew(&self.authorities.now(), peer).then(|| self.trust(peer, endpoints))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.authorities.shared().sessions.remove(&self.number);
    }
}

fn is_to_renew(set: &Set, peer: &PeerIdentity) -> bool {
    set.rotation.phase == Phase::Renewing && !set.issuing.has_issued(&peer.issuer_key)
}

fn hashes(set: &Set) -> Vec<Hash> {
    set.pins().iter().map(|pin| Hash(*pin.as_bytes())).collect()
}

/// The state of the rotation, if it is written down.
pub(super) async fn written(cluster: &Cluster) -> Result<Option<(Arc<Object>, Rotation)>, FoundError> {
    let key = Key::core("configmaps", NAMESPACE, NAME).map_err(ClusterError::from)?;
    let Some(object) = cluster.get(&key).await? else { return Ok(None) };
    let rotation = Rotation::from_config_map(&object.value)?;
    Ok(Some((object, rotation)))
}

/// The authorities whose Secrets are there.
pub(super) async fn generations(cluster: &Cluster) -> Result<Vec<Generation>, FoundError> {
    let scope = Scope { namespace: Some(NAMESPACE.into()), ..Scope::all("", "secrets") };
    match cluster.follow(scope).next().await? {
        Seen::Listed(secrets, _) => {
            Ok(secrets.iter().filter_map(|secret| secret.key.name.parse().ok()).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// Reads the authorities of a state; those that were read before are kept.
async fn read(cluster: &Cluster, rotation: Rotation, known: Option<&Set>) -> Result<Set, FoundError> {
    let (first, second) = (rotation.issuing, rotation.other);
    let issuing = authority(cluster, first, known).await?;
    let other = match second {
        Some(other) => Some(authority(cluster, other, known).await?),
        None => None,
    };
    Ok(Set { rotation, issuing, other })
}

async fn authority(
    cluster: &Cluster,
    generation: Generation,
    known: Option<&Set>,
) -> Result<Arc<Authority>, FoundError> {
    if let Some(set) = known {
        if set.rotation.issuing == generation {
            return Ok(set.issuing.clone());
        }
        if set.rotation.other == Some(generation)
            && let Some(other) = &set.other
        {
            return Ok(other.clone());
        }
    }
    Ok(Arc::new(found::read_authority(cluster, generation).await?))
}
