//! The rotation of a cluster's authority without a visit to any board: what comes next, decided from what the
//! cluster has written down. Pure, so that replicas that read the same decide the same.
//!
//! ```text
//! Steady ─ asked ─► Announcing ─ every node trusts the successor ─► Renewing ─ no node is certified by the
//!    ▲              boards learn the successor's key; the            the successor issues, nodes renew; the
//!    │              old authority issues                             old one's certificates still count
//!    └─────────────────────────────────────────────────────────────── old one, which is then retired ◄┘
//! ```
//!
//! A board that knows only one of the two keys recognises the cloud throughout, because the cloud also shows its
//! issuer's key as certified by the other authority ([`super::authority::Authority::vouch_for`]).
//!
//! The state is the ConfigMap `holm-system/holm-ca`; the authorities are the Secrets that it names. Without it, the
//! cluster has one authority, which is steady.

use super::names::Fingerprint;
use super::record::{MANAGED_BY, NAMESPACE, rfc3339, time};
use super::{UnixTime, unix};
use serde_json::{Map, Value, json};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The name of the ConfigMap, and of the first authority's Secret.
pub const NAME: &str = "holm-ca";
/// The Node's annotation with the authorities that the node has said to trust, with commas between them.
pub const TRUSTS: &str = "holm.dev/trusts";
/// The Node's annotation with the authority that issued the certificate that the node last connected with.
pub const CERTIFIED_BY: &str = "holm.dev/certified-by";

mod field {
    pub(super) const PHASE: &str = "phase";
    pub(super) const ISSUING: &str = "issuing";
    pub(super) const OTHER: &str = "other";
    pub(super) const SINCE: &str = "since";
    pub(super) const ASKED: &str = "asked";
}

/// Which of a cluster's authorities: 1 is the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u32);

impl Generation {
    /// The authority that was made with the cluster.
    pub const FIRST: Generation = Generation(1);

    /// The one after.
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    /// The name of the Secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str(NAME),
            number => write!(f, "{NAME}-{number}"),
        }
    }
}

impl FromStr for Generation {
    type Err = RotationError;

    fn from_str(text: &str) -> Result<Generation, RotationError> {
        let number = match text.strip_prefix(NAME) {
            Some("") => Some(1),
            Some(rest) => {
                rest.strip_prefix('-').and_then(|number| number.parse().ok()).filter(|number| *number > 1)
            }
            None => None,
        };
        // Written in one way only.
        number.map(Generation).filter(|made| made.to_string() == text).ok_or(RotationError(field::ISSUING))
    }
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is one authority, and no rotation.
    Steady,
    /// Boards learn the key of the other authority, which is to come.
    Announcing,
    /// Boards renew; the other authority is going.
    Renewing,
}

/// What an operator has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A new authority.
    Rotate,
    /// That the present phase waits for nobody.
    Force,
}

/// The state of a cluster's authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// How far it is.
    pub phase: Phase,
    /// The authority that issues certificates.
    pub issuing: Generation,
    /// The authority that is to come, or is going.
    pub other: Option<Generation>,
    /// When the phase began.
    pub since: UnixTime,
    /// What is asked for.
    pub asked: Option<Asked>,
}

impl Rotation {
    /// One authority, and nothing asked.
    pub fn steady(issuing: Generation) -> Rotation {
        Rotation { phase: Phase::Steady, issuing, other: None, since: unix(0), asked: None }
    }

    /// The state where only Secrets are left: with two, nobody is locked out if both are trusted.
    pub fn recovered(mut found: Vec<Generation>, now: UnixTime) -> Option<Rotation> {
        found.sort();
        let (first, last) = (*found.first()?, *found.last()?);
        Some(match first == last {
            true => Rotation::steady(first),
            false => Rotation {
                phase: Phase::Announcing,
                issuing: first,
                other: Some(last),
                since: now,
                asked: None,
            },
        })
    }

    /// The whole ConfigMap.
    pub fn to_config_map(&self) -> Value {
        let (label, value) = MANAGED_BY;
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": { label: value } },
        });
        self.write_to(&mut object);
        object
    }

    /// Puts this state into a ConfigMap that was read, leaving its metadata as it is.
    pub fn write_to(&self, config_map: &mut Value) {
        let mut data = Map::new();
        let mut put = |name: &str, text: String| data.insert(name.into(), text.into());
        let phase = match self.phase {
            Phase::Steady => "Steady",
            Phase::Announcing => "Announcing",
            Phase::Renewing => "Renewing",
        };
        put(field::PHASE, phase.into());
        put(field::ISSUING, self.issuing.to_string());
        put(field::SINCE, rfc3339(self.since));
        if let Some(other) = self.other {
            put(field::OTHER, other.to_string());
        }
        match self.asked {
            Some(Asked::Rotate) => put(field::ASKED, "rotate".into()),
            Some(Asked::Force) => put(field::ASKED, "force".into()),
            None => None,
        };
        if let Some(object) = config_map.as_object_mut() {
            object.insert("data".into(), data.into());
        }
    }

    /// Reads the ConfigMap.
    ///
    /// # Errors
    /// A field that is missing or wrong.
    pub fn from_config_map(config_map: &Value) -> Result<Rotation, RotationError> {
        let text = |name| config_map.get("data").and_then(|data| data.get(name)).and_then(Value::as_str);
        let generation =
            |name| text(name).map(str::parse::<Generation>).transpose().map_err(|_| RotationError(name));
        let phase = match text(field::PHASE) {
            Some("Steady") => Phase::Steady,
            Some("Announcing") => Phase::Announcing,
            Some("Renewing") => Phase::Renewing,
            _ => return Err(RotationError(field::PHASE)),
        };
        let since = text(field::SINCE).unwrap_or_default();
        let rotation = Rotation {
            phase,
            issuing: generation(field::ISSUING)?.ok_or(RotationError(field::ISSUING))?,
            other: generation(field::OTHER)?,
            since: time(since, field::SINCE).map_err(|_| RotationError(field::SINCE))?,
            asked: match text(field::ASKED) {
                None | Some("") => None,
                Some("rotate") => Some(Asked::Rotate),
                Some("force") => Some(Asked::Force),
                Some(_) => return Err(RotationError(field::ASKED)),
            },
        };
        let is_under_way = rotation.phase != Phase::Steady;
        match rotation.other.is_some() == is_under_way && rotation.other != Some(rotation.issuing) {
            true => Ok(rotation),
            false => Err(RotationError(field::OTHER)),
        }
    }
}

/// The ConfigMap does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ConfigMap {NAMESPACE}/{NAME} has no valid {0}: restore it from a backup, or delete it")]
pub struct RotationError(&'static str);

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTrust {
    /// Its name.
    pub name: String,
    /// When it was last heard of.
    pub seen: UnixTime,
    /// The authorities that it said to trust, since the rotation began.
    pub trusts: Vec<Fingerprint>,
    /// The authority of the certificate that it last connected with, since the rotation began.
    pub certified_by: Option<Fingerprint>,
}

impl NodeTrust {
    /// Reads a Node that is Holm's.
    pub fn of(node: &Value) -> NodeTrust {
        let meta = node.get("metadata");
        let of_meta = |name: &str| meta.and_then(|meta| meta.get(name));
        let annotation =
            |name: &str| of_meta("annotations").and_then(|all| all.get(name)).and_then(Value::as_str);
        let conditions =
            node.get("status").and_then(|status| status.get("conditions")).and_then(Value::as_array);
        let heartbeats =
            conditions.into_iter().flatten().filter_map(|condition| condition.get("lastHeartbeatTime"));
        let times = heartbeats.chain(of_meta("creationTimestamp")).filter_map(Value::as_str);
        NodeTrust {
            name: of_meta("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            seen: times.filter_map(|text| time(text, "").ok()).max().unwrap_or(unix(0)),
            trusts: annotation(TRUSTS)
                .into_iter()
                .flat_map(|list| list.split(','))
                .filter_map(|pin| pin.parse().ok())
                .collect(),
            certified_by: annotation(CERTIFIED_BY).and_then(|pin| pin.parse().ok()),
        }
    }
}

/// How long a rotation waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Nodes that were not seen for longer are not waited for: they learn the successor's key when they come back,
    /// as long as the old authority is kept.
    pub seen_within: Duration,
    /// How long the announcement lasts at least: all replicas have read it by then.
    pub announcing: Duration,
    /// How long renewing lasts at least: a board that has just joined has connected by then.
    pub renewing: Duration,
    /// How long a certificate may still be of use after it was issued: its life and the window for its renewal.
    pub certificates: Duration,
}

impl Patience {
    /// The usual patience, for certificates that are of use for so long.
    pub fn new(certificates: Duration) -> Patience {
        const DAY: u64 = 24 * 60 * 60;
        Patience {
            seen_within: Duration::from_secs(30 * DAY),
            announcing: Duration::from_secs(60),
            renewing: Duration::from_secs(DAY),
            certificates,
        }
    }
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, until these nodes have done their part, and not before this time.
    Wait {
        /// The nodes.
        nodes: Vec<String>,
        /// The earliest time.
        until: UnixTime,
    },
    /// This state. The authority that it names as the other one is made first.
    Become(Rotation),
}

/// Decides what comes next. `issuing` and `other` are the keys of the authorities that the state names.
pub fn decide(
    rotation: &Rotation,
    other: Option<Fingerprint>,
    issuing: Fingerprint,
    nodes: &[NodeTrust],
    now: UnixTime,
    patience: &Patience,
) -> Decision {
    let after = |wait: Duration| unix(rotation.since.as_secs().saturating_add(wait.as_secs()));
    let become_phase =
        |phase, issuing, other| Decision::Become(Rotation { phase, issuing, other, since: now, asked: None });
    let is_forced = rotation.asked == Some(Asked::Force);
    match (rotation.phase, rotation.other, other) {
        (Phase::Announcing, Some(successor), Some(key)) => {
            let lately = unix(now.as_secs().saturating_sub(patience.seen_within.as_secs()));
            let waits = |node: &&NodeTrust| node.seen >= lately && !node.trusts.contains(&key);
            let nodes = names(nodes.iter().filter(waits));
            match is_forced || (nodes.is_empty() && now >= after(patience.announcing)) {
                true => become_phase(Phase::Renewing, successor, Some(rotation.issuing)),
                false => Decision::Wait { nodes, until: after(patience.announcing) },
            }
        }
        (Phase::Renewing, Some(_), Some(_)) => {
            let is_new =
                |node: &NodeTrust| node.certified_by == Some(issuing) && node.trusts.contains(&issuing);
            let nodes = names(nodes.iter().filter(|node| !is_new(node)));
            // The old authority has issued nothing since this phase began.
            let all_over = now >= after(patience.certificates);
            match is_forced || all_over || (nodes.is_empty() && now >= after(patience.renewing)) {
                true => become_phase(Phase::Steady, rotation.issuing, None),
                false => Decision::Wait { nodes, until: after(patience.renewing) },
            }
        }
        _ if rotation.asked == Some(Asked::Rotate) => {
            become_phase(Phase::Announcing, rotation.issuing, Some(rotation.issuing.next()))
        }
        _ => Decision::Wait { nodes: Vec::new(), until: rotation.since },
    }
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeTrust>) -> Vec<String> {
    nodes.map(|node| node.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(of: Generation) -> Fingerprint {
        Fingerprint::from_bytes([of.0 as u8; 32])
    }

    fn next(rotation: &Rotation, nodes: &[NodeTrust], now: UnixTime, patience: &Patience) -> Decision {
        decide(rotation, rotation.other.map(key), key(rotation.issuing), nodes, now, patience)
    }

    #[test]
    fn generations_name_their_secrets() {
        let names: Vec<String> = [Generation::FIRST, Generation::FIRST.next(), Generation(12)]
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["holm-ca", "holm-ca-2", "holm-ca-12"]);
        assert!(names.iter().all(|name| name.parse::<Generation>().unwrap().to_string() == *name));
        for wrong in ["", "holm-ca-", "holm-ca-1", "holm-ca-02", "holm-ca-x", "holm-cab", "holm-ca--2"] {
            assert!(wrong.parse::<Generation>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lost_state_locks_nobody_out() {
        assert_eq!(Rotation::recovered(Vec::new(), unix(9)), None);
        let one = Rotation::recovered(vec![Generation(3)], unix(9)).unwrap();
        assert_eq!(one, Rotation::steady(Generation(3)));
        let two = Rotation::recovered(vec![Generation(4), Generation(3)], unix(9)).unwrap();
        assert_eq!(
            (two.phase, two.issuing, two.other),
            (Phase::Announcing, Generation(3), Some(Generation(4)))
        );
    }

    #[test]
    fn a_node_is_read_from_its_object() {
        let node = json!({
            "metadata": {"name": "barn", "creationTimestamp": "2026-11-01T00:00:00Z", "annotations": {
                TRUSTS: format!("{},x,{}", key(Generation(1)), key(Generation(2))),
                CERTIFIED_BY: key(Generation(2)).to_string(),
            }},
            "status": {"conditions": [{"lastHeartbeatTime": "2026-11-02T00:00:00Z"}, {"lastHeartbeatTime": 7}]},
        });
        let trust = NodeTrust::of(&node);
        assert_eq!(trust.name, "barn");
        assert_eq!(trust.seen, time("2026-11-02T00:00:00Z", "").unwrap());
        assert_eq!(trust.trusts, [key(Generation(1)), key(Generation(2))]);
        assert_eq!(trust.certified_by, Some(key(Generation(2))));
        assert_eq!(NodeTrust::of(&json!(7)).seen, unix(0));
    }

    fn any_rotation() -> impl Strategy<Value = Rotation> {
        let asked = prop_oneof![Just(None), Just(Some(Asked::Rotate)), Just(Some(Asked::Force))];
        (0..3, 1u32..9, 0u64..4_000_000_000, asked).prop_map(|(phase, number, since, asked)| {
            let (a, b) = (Generation(number), Generation(number + 1));
            let (phase, issuing, other) = match phase {
                0 => (Phase::Steady, a, None),
                1 => (Phase::Announcing, a, Some(b)),
                _ => (Phase::Renewing, b, Some(a)),
            };
            Rotation { phase, issuing, other, since: unix(since), asked }
        })
    }

    fn any_nodes() -> impl Strategy<Value = Vec<NodeTrust>> {
        let trusts = proptest::collection::vec(1u32..10, 0..3);
        let node =
            (0u64..4_000_000_000, trusts, proptest::option::of(1u32..10)).prop_map(|(seen, trusts, by)| {
                NodeTrust {
                    name: "n".into(),
                    seen: unix(seen),
                    trusts: trusts.into_iter().map(|number| key(Generation(number))).collect(),
                    certified_by: by.map(|number| key(Generation(number))),
                }
            });
        proptest::collection::vec(node, 0..5)
    }

    proptest! {
        #[test]
        fn states_survive_their_config_map(rotation in any_rotation()) {
            prop_assert_eq!(Rotation::from_config_map(&rotation.to_config_map()), Ok(rotation));
        }

        #[test]
        fn a_rotation_goes_its_way_and_waits_for_whom_it_must(
            rotation in any_rotation(), nodes in any_nodes(), now in 0u64..4_000_000_000,
            seen_within in 0u64..1_000_000, certificates in 0u64..1_000_000,
        ) {
            let patience = Patience {
                seen_within: Duration::from_secs(seen_within),
                announcing: Duration::from_secs(60),
                renewing: Duration::from_secs(3600),
                certificates: Duration::from_secs(certificates),
            };
            let forced = rotation.asked == Some(Asked::Force);
            let passed = now.saturating_sub(rotation.since.as_secs());
            match next(&rotation, &nodes, unix(now), &patience) {
                Decision::Wait { .. } => {
                    prop_assert!(rotation.phase != Phase::Steady || rotation.asked != Some(Asked::Rotate));
                    prop_assert!(rotation.phase == Phase::Steady || !forced);
                }
                Decision::Become(after) => {
                    prop_assert_eq!((after.since, after.asked), (unix(now), None));
                    match rotation.phase {
                        Phase::Steady => {
                            prop_assert_eq!(after.phase, Phase::Announcing);
                            prop_assert_eq!(after.issuing, rotation.issuing);
                            prop_assert_eq!(after.other, Some(rotation.issuing.next()));
                        }
                        Phase::Announcing => {
                            prop_assert_eq!(after.phase, Phase::Renewing);
                            prop_assert_eq!(Some(after.issuing), rotation.other);
                            prop_assert_eq!(after.other, Some(rotation.issuing));
                            let successor = key(after.issuing);
                            let is_ready = |node: &NodeTrust| {
                                node.trusts.contains(&successor) || now > node.seen.as_secs() + seen_within
                            };
                            prop_assert!(forced || (passed >= 60 && nodes.iter().all(is_ready)));
                        }
                        Phase::Renewing => {
                            prop_assert_eq!(after.phase, Phase::Steady);
                            prop_assert_eq!((after.issuing, after.other), (rotation.issuing, None));
                            let issuing = key(rotation.issuing);
                            let is_new = |node: &NodeTrust| node.certified_by == Some(issuing);
                            prop_assert!(
                                forced || passed >= certificates || (passed >= 3600 && nodes.iter().all(is_new))
                            );
                        }
                    }
                }
            }
        }
    }
}
