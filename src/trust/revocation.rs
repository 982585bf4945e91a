//! Which identities may connect no more: a ConfigMap in the namespace `holm-system` for each revocation.
//!
//! Nothing in it is secret. It is made by `holm revoke` and followed by every cloud; removing the ConfigMap
//! takes the revocation back.

use super::certificate::PeerIdentity;
use super::names::{Fingerprint, NodeName};
use super::record::{MANAGED_BY, NAMESPACE, rfc3339, time};
use super::{UnixTime, unix};
use serde_json::{Map, Value, json};
use std::fmt;
use std::time::Duration;

/// What the names of revocations begin with.
pub const NAME_PREFIX: &str = "holm-revoked-";
/// How long a revocation is kept: longer than any certificate that was issued before it can live, and can be
/// renewed after its end ([`super::authority::NODE_LIFE_MAX`] and [`super::authority::RENEW_WINDOW_MAX`]).
pub const KEPT_FOR: Duration = Duration::from_secs(
    super::authority::NODE_LIFE_MAX.as_secs() + super::authority::RENEW_WINDOW_MAX.as_secs(),
);
/// Longest reason that is kept, in characters.
const REASON_MAX: usize = 200;

mod field {
    pub(super) const NODE: &str = "node";
    pub(super) const KEY: &str = "key";
    pub(super) const SERIAL: &str = "serial";
    pub(super) const AT: &str = "at";
    pub(super) const REASON: &str = "reason";
    pub(super) const EXCEPT: &str = "except";
}

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Every key of a node, but those that a join code bound to the node brought after.
    Node(NodeName),
    /// One key, whatever certificate it is in.
    Key(Fingerprint),
    /// One certificate, by its serial number in lower-case hexadecimal.
    Serial(String),
}

impl Subject {
    /// Reads a certificate's serial number as tools print it: hexadecimal, with or without colons.
    ///
    /// # Errors
    /// Anything else, or longer than a serial number may be (RFC 5280, section 4.1.2.2: 20 bytes).
    pub fn serial(text: &str) -> Result<Subject, NotASerial> {
        let serial: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        let is_hex = serial.chars().all(|c| c.is_ascii_hexdigit());
        match is_hex && !serial.is_empty() && serial.len() <= 40 && serial.len().is_multiple_of(2) {
            true => Ok(Subject::Serial(serial)),
            false => Err(NotASerial),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Node(node) => write!(f, "node {node}"),
            Subject::Key(key) => write!(f, "key {key}"),
            Subject::Serial(serial) => write!(f, "certificate {serial}"),
        }
    }
}

/// A text that is not a certificate's serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a serial number: write it in hexadecimal, as openssl x509 -serial prints it")]
pub struct NotASerial;

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// What is revoked.
    pub subject: Subject,
    /// Since when.
    pub at: UnixTime,
    /// Why, as the operator said it; may be empty.
    pub reason: String,
    /// Keys of the node that were let in after the revocation.
    pub except: Vec<Fingerprint>,
}

impl Revocation {
    /// A new revocation; control characters and what is too long are cut from the reason.
    pub fn new(subject: Subject, at: UnixTime, reason: &str) -> Revocation {
        let reason = reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect();
        Revocation { subject, at, reason, except: Vec::new() }
    }

    /// Whether it is about this peer.
    pub fn covers(&self, peer: &PeerIdentity) -> bool {
        match &self.subject {
            Subject::Node(node) => *node == peer.node && !self.except.contains(&peer.key_fingerprint),
            Subject::Key(key) => *key == peer.key_fingerprint,
            Subject::Serial(serial) => *serial == peer.serial,
        }
    }

    /// Whether everything that it is about has ended anyway.
    pub fn is_over(&self, now: UnixTime) -> bool {
        now.as_secs() > self.at.as_secs().saturating_add(KEPT_FOR.as_secs())
    }

    /// This revocation with a key of its node let in, in place of all keys but `beside`; `None` if it is not
    /// about the node or lets the key in already.
    pub fn admitting(
        &self,
        node: &NodeName,
        key: &Fingerprint,
        beside: Option<&Fingerprint>,
    ) -> Option<Revocation> {
        if self.subject != Subject::Node(node.clone()) || self.except.contains(key) {
            return None;
        }
        let except = beside.into_iter().chain([key]).copied().collect();
        Some(Revocation { except, ..self.clone() })
    }

    /// The name of its ConfigMap: the same for the same subject.
    pub fn name(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.subject.to_string().as_bytes());
        let hex = data_encoding::HEXLOWER.encode(digest.as_ref());
        format!("{NAME_PREFIX}{}", hex.get(..20).unwrap_or_default())
    }

    /// The whole ConfigMap.
    pub fn to_config_map(&self) -> Value {
        let (label, value) = MANAGED_BY;
        let mut config_map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": self.name(), "namespace": NAMESPACE, "labels": { label: value } },
        });
        self.write_to(&mut config_map);
        config_map
    }

    /// Puts this revocation into a ConfigMap that was read, leaving its metadata as it is.
    pub fn write_to(&self, config_map: &mut Value) {
        let mut data = Map::new();
        let mut put = |name: &str, text: String| data.insert(name.into(), text.into());
        match &self.subject {
            Subject::Node(node) => put(field::NODE, node.to_string()),
            Subject::Key(key) => put(field::KEY, key.to_string()),
            Subject::Serial(serial) => put(field::SERIAL, serial.clone()),
        };
        put(field::AT, rfc3339(self.at));
        if !self.reason.is_empty() {
            put(field::REASON, self.reason.clone());
        }
        if !self.except.is_empty() {
            let keys: Vec<String> = self.except.iter().map(Fingerprint::to_string).collect();
            put(field::EXCEPT, keys.join(","));
        }
        if let Some(object) = config_map.as_object_mut() {
            object.insert("data".into(), data.into());
        }
    }

    /// Reads the ConfigMap.
    ///
    /// # Errors
    /// The field that is missing or wrong. One with a wrong time counts as made in 1970: what cannot be read
    /// must not let anybody in.
    pub fn from_config_map(config_map: &Value) -> Result<Revocation, RevocationError> {
        let data = config_map.get("data").unwrap_or(&Value::Null);
        let text = |name: &str| data.get(name).and_then(Value::as_str).map(str::trim);
        let subject = match (text(field::NODE), text(field::KEY), text(field::SERIAL)) {
            (Some(node), None, None) => {
                Subject::Node(node.parse().map_err(|_| RevocationError(field::NODE))?)
            }
            (None, Some(key), None) => Subject::Key(key.parse().map_err(|_| RevocationError(field::KEY))?),
            (None, None, Some(serial)) => {
                Subject::serial(serial).map_err(|_| RevocationError(field::SERIAL))?
            }
            _ => return Err(RevocationError("node, key or serial")),
        };
        let at = text(field::AT).and_then(|at| time(at, field::AT).ok());
        let except = text(field::EXCEPT).into_iter().flat_map(|keys| keys.split(','));
        Ok(Revocation {
            // It is never over by a time that says nothing.
            at: at.unwrap_or(unix(u64::MAX)),
            except: except.filter_map(|key| key.trim().parse().ok()).collect(),
            reason: Revocation::new(subject.clone(), unix(0), text(field::REASON).unwrap_or_default()).reason,
            subject,
        })
    }
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was revoked", self.subject)?;
        match self.reason.as_str() {
            "" => Ok(()),
            reason => write!(f, " ({reason})"),
        }
    }
}

/// A field of a revocation is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has no valid {0}: delete it, and revoke again with holm revoke")]
pub struct RevocationError(&'static str);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(node: &str, key: u8, serial: &str) -> PeerIdentity {
        PeerIdentity {
            node: node.parse().unwrap(),
            serial: serial.into(),
            not_before: unix(0),
            not_after: unix(1),
            key_fingerprint: Fingerprint::from_bytes([key; 32]),
            issuer_key: Vec::new(),
        }
    }

    fn revoked(subject: Subject) -> Revocation {
        Revocation::new(subject, unix(1000), "stolen")
    }

    #[test]
    fn a_revocation_is_about_its_subject_and_nobody_else() {
        let node = revoked(Subject::Node("a".parse().unwrap()));
        assert!(node.covers(&peer("a", 1, "01")) && node.covers(&peer("a", 2, "02")));
        assert!(!node.covers(&peer("b", 1, "01")));
        let key = revoked(Subject::Key(Fingerprint::from_bytes([1; 32])));
        assert!(key.covers(&peer("a", 1, "01")) && key.covers(&peer("b", 1, "02")));
        assert!(!key.covers(&peer("a", 2, "01")));
        let serial = revoked(Subject::serial("0A:ff").unwrap());
        assert!(serial.covers(&peer("a", 1, "0aff")) && !serial.covers(&peer("a", 1, "0afe")));
    }

    #[test]
    fn a_node_comes_back_with_another_key_and_renews_it() {
        let key = |byte| Fingerprint::from_bytes([byte; 32]);
        let node: NodeName = "a".parse().unwrap();
        let revoked = revoked(Subject::Node(node.clone()));
        let back = revoked.admitting(&node, &key(2), None).unwrap();
        assert!(back.covers(&peer("a", 1, "01")) && !back.covers(&peer("a", 2, "02")));
        let renewed = back.admitting(&node, &key(3), Some(&key(2))).unwrap();
        assert!(!renewed.covers(&peer("a", 2, "02")) && !renewed.covers(&peer("a", 3, "03")));
        assert_eq!(renewed.admitting(&node, &key(3), Some(&key(2))), None);
        assert_eq!(renewed.admitting(&"b".parse().unwrap(), &key(4), None), None);
        assert_eq!(renewed.name(), revoked.name());
    }

    #[test]
    fn it_is_over_when_the_last_certificate_could_not_even_be_renewed() {
        let node = revoked(Subject::Node("a".parse().unwrap()));
        assert!(!node.is_over(unix(1000 + KEPT_FOR.as_secs())));
        assert!(node.is_over(unix(1001 + KEPT_FOR.as_secs())));
    }

    #[test]
    fn what_is_wrong_is_named_and_a_wrong_time_revokes_for_ever() {
        let node = revoked(Subject::Node("a".parse().unwrap()));
        let mut config_map = node.to_config_map();
        config_map["data"]["at"] = "yesterday".into();
        let read = Revocation::from_config_map(&config_map).unwrap();
        assert!(read.covers(&peer("a", 1, "01")) && !read.is_over(unix(u64::MAX)));
        config_map["data"]["node"] = "-".into();
        assert_eq!(Revocation::from_config_map(&config_map), Err(RevocationError("node")));
        config_map["data"]["serial"] = "01".into();
        assert!(Revocation::from_config_map(&config_map).is_err());
        for bad in ["", "0", "xy", "0g", &"00".repeat(21)] {
            assert_eq!(Subject::serial(bad), Err(NotASerial), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn revocations_survive_their_config_map(
            subject in prop_oneof![
                "[a-z]{1,60}".prop_map(|name| Subject::Node(name.parse().unwrap())),
                any::<[u8; 32]>().prop_map(|key| Subject::Key(Fingerprint::from_bytes(key))),
                "([0-9a-f]{2}){1,20}".prop_map(Subject::Serial),
            ],
            at: u64, reason in "[^\\pC\\s]{0,220}", except in proptest::collection::vec(any::<[u8; 32]>(), 0..3),
        ) {
            let except = except.into_iter().map(Fingerprint::from_bytes).collect();
            let revocation = Revocation { except, ..Revocation::new(subject, unix(at), &reason) };
            let read = Revocation::from_config_map(&revocation.to_config_map());
            prop_assert_eq!(read, Ok(revocation));
        }
    }
}
