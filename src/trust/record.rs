//! What the cloud remembers of a join code, and the decision to accept one.
//!
//! The record is the Secret `holm-system/holm-join-<id>` of type `holm.dev/join`. Redeeming is a pure step
//! from one record to the next; the caller stores the result under the resourceVersion it read, so that of
//! two replicas one wins.

use super::code::{JoinSecret, SecretId};
use super::names::{Fingerprint, NodeName};
use super::{UnixTime, unix};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Map, Value, json};

/// The namespace of everything that the cloud keeps in the Kubernetes API.
pub const NAMESPACE: &str = "holm-system";
/// The type of the Secrets that hold join records.
pub const SECRET_TYPE: &str = "holm.dev/join";
/// The label that says what this program may touch.
pub const MANAGED_BY: (&str, &str) = ("holm.dev/managed-by", "holm");

mod field {
    pub(super) const HASH: &str = "hash";
    pub(super) const EXPIRES: &str = "expires";
    pub(super) const NODE: &str = "node";
    pub(super) const USED_NODE: &str = "used-by-node";
    pub(super) const USED_KEY: &str = "used-by-key";
    pub(super) const USED_AT: &str = "used-at";
}

/// A join secret as the cloud keeps it. The secret itself is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRecord {
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// Last moment at which it is accepted.
    pub expires: UnixTime,
    /// The only node that may use it, if bound.
    pub node: Option<NodeName>,
    /// Who used it.
    pub used: Option<Used>,
}

/// The one use of a join secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The node that joined.
    pub node: NodeName,
    /// The key that it joined with.
    pub key: Fingerprint,
    /// When.
    pub at: UnixTime,
}

/// Why a join secret was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The secret is not the one of this record.
    #[error("the join code's secret is wrong: make a new code with: holm token create")]
    WrongSecret,
    /// Its time is over.
    #[error("the join code has expired: make a new one with: holm token create")]
    Expired,
    /// It belongs to another node.
    #[error(
        "the join code is for node {bound}, not for {asked}: make one with: holm token create --node {asked}"
    )]
    OtherNode {
        /// The node that the code is for.
        bound: NodeName,
        /// The node that asked.
        asked: NodeName,
    },
    /// Another node, or another key, was first.
    #[error("the join code was used before, by node {by}: make a new one with: holm token create")]
    Used {
        /// The node that used it.
        by: NodeName,
    },
}

/// Decides whether `node` may have a certificate for `key` in exchange for `secret`.
///
/// The result is the record to store before the certificate is given out. The same node asking again with
/// the same key, because the answer was lost, gets the same record and may be answered again, until the
/// code expires.
///
/// # Errors
/// The secret is wrong, expired, bound to another node, or used.
pub fn redeem(
    record: &SecretRecord,
    secret: &JoinSecret,
    node: &NodeName,
    key: &Fingerprint,
    now: UnixTime,
) -> Result<SecretRecord, Refusal> {
    // The secret first, so that a stranger learns nothing else about the code.
    if !equal_in_constant_time(&record.hash, &secret.hash()) {
        return Err(Refusal::WrongSecret);
    }
    if now > record.expires {
        return Err(Refusal::Expired);
    }
    match (&record.used, &record.node) {
        (Some(used), _) if used.node == *node && used.key == *key => Ok(record.clone()),
        (Some(used), _) => Err(Refusal::Used { by: used.node.clone() }),
        (None, Some(bound)) if bound != node => {
            Err(Refusal::OtherNode { bound: bound.clone(), asked: node.clone() })
        }
        (None, _) => {
            Ok(SecretRecord { used: Some(Used { node: node.clone(), key: *key, at: now }), ..record.clone() })
        }
    }
}

/// The name of the Secret that holds the record of a code.
pub fn secret_name(id: &SecretId) -> String {
    format!("holm-join-{id}")
}

impl SecretRecord {
    /// A new Secret object with this record in it.
    pub fn to_secret(&self, id: &SecretId) -> Value {
        let (label, value) = MANAGED_BY;
        let mut secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": secret_name(id), "namespace": NAMESPACE, "labels": { label: value } },
            "type": SECRET_TYPE,
        });
        self.write_to(&mut secret);
        secret
    }

    /// Puts this record into a Secret that was read, leaving its metadata (and resourceVersion) as it is.
    pub fn write_to(&self, secret: &mut Value) {
        let mut data = Map::new();
        let mut put =
            |name: &str, text: &str| data.insert(name.into(), BASE64.encode(text.as_bytes()).into());
        put(field::HASH, &HEXLOWER.encode(&self.hash));
        put(field::EXPIRES, &rfc3339(self.expires));
        if let Some(node) = &self.node {
            put(field::NODE, node.as_str());
        }
        if let Some(used) = &self.used {
            put(field::USED_NODE, used.node.as_str());
            put(field::USED_KEY, &used.key.to_string());
            put(field::USED_AT, &rfc3339(used.at));
        }
        if let Some(object) = secret.as_object_mut() {
            object.insert("data".into(), data.into());
        }
    }

    /// Reads the record in a Secret.
    ///
    /// # Errors
    /// Not of type [`SECRET_TYPE`], or a field that is missing or wrong.
    pub fn from_secret(secret: &Value) -> Result<SecretRecord, RecordError> {
        if secret.get("type").and_then(Value::as_str) != Some(SECRET_TYPE) {
            return Err(RecordError::NotAJoinSecret);
        }
        let data = secret.get("data").unwrap_or(&Value::Null);
        let hash = required(data, field::HASH)?;
        let hash = HEXLOWER.decode(hash.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
        let used = match (text(data, field::USED_NODE)?, text(data, field::USED_KEY)?) {
            (None, None) => None,
            (node, key) => Some(Used {
                node: parsed(node, field::USED_NODE)?,
                key: parsed(key, field::USED_KEY)?,
                at: time(&required(data, field::USED_AT)?, field::USED_AT)?,
            }),
        };
        Ok(SecretRecord {
            hash: hash.ok_or(RecordError::Field(field::HASH))?,
            expires: time(&required(data, field::EXPIRES)?, field::EXPIRES)?,
            node: match text(data, field::NODE)? {
                None => None,
                node => Some(parsed(node, field::NODE)?),
            },
            used,
        })
    }
}

/// Why a Secret holds no join record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A Secret of another type.
    #[error("the Secret is not of type {SECRET_TYPE}")]
    NotAJoinSecret,
    /// A field that is missing or does not say what it should.
    #[error("the join Secret's field {0:?} is missing or wrong: delete the Secret and make a new code")]
    Field(&'static str),
}

fn text(data: &Value, name: &'static str) -> Result<Option<String>, RecordError> {
    let Some(value) = data.get(name) else {
        return Ok(None);
    };
    let bytes = value.as_str().and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.map(Some).ok_or(RecordError::Field(name))
}

fn required(data: &Value, name: &'static str) -> Result<String, RecordError> {
    text(data, name)?.ok_or(RecordError::Field(name))
}

fn parsed<T: std::str::FromStr>(text: Option<String>, name: &'static str) -> Result<T, RecordError> {
    let parsed = text.and_then(|text| text.parse().ok());
    parsed.ok_or(RecordError::Field(name))
}

/// Times are written as people read them; one beyond the calendar as plain seconds.
pub(crate) fn rfc3339(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    match seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
        Some(timestamp) => timestamp.to_string(),
        None => time.as_secs().to_string(),
    }
}

pub(super) fn time(text: &str, name: &'static str) -> Result<UnixTime, RecordError> {
    if let Ok(seconds) = text.parse() {
        return Ok(unix(seconds));
    }
    let timestamp: jiff::Timestamp = text.parse().map_err(|_| RecordError::Field(name))?;
    u64::try_from(timestamp.as_second()).map(unix).map_err(|_| RecordError::Field(name))
}

/// Takes the same time whatever the difference is.
fn equal_in_constant_time(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn key(byte: u8) -> Fingerprint {
        Fingerprint::from_bytes([byte; 32])
    }

    fn fresh(secret: &JoinSecret) -> SecretRecord {
        SecretRecord { hash: secret.hash(), expires: unix(1000), node: None, used: None }
    }

    #[test]
    fn a_secret_is_used_once_and_a_lost_answer_is_given_again() {
        let secret = JoinSecret::random().unwrap();
        let first = redeem(&fresh(&secret), &secret, &node("a"), &key(1), unix(500)).unwrap();
        assert_eq!(first.used, Some(Used { node: node("a"), key: key(1), at: unix(500) }));
        let again = redeem(&first, &secret, &node("a"), &key(1), unix(600));
        assert_eq!(again, Ok(first.clone()));
        let used = Err(Refusal::Used { by: node("a") });
        assert_eq!(redeem(&first, &secret, &node("a"), &key(2), unix(600)), used);
        assert_eq!(redeem(&first, &secret, &node("b"), &key(1), unix(600)), used);
        assert_eq!(redeem(&first, &secret, &node("a"), &key(1), unix(1001)), Err(Refusal::Expired));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let secret = JoinSecret::random().unwrap();
        let other = JoinSecret::random().unwrap();
        let record = fresh(&secret);
        assert_eq!(redeem(&record, &other, &node("a"), &key(1), unix(5000)), Err(Refusal::WrongSecret));
        assert!(redeem(&record, &secret, &node("a"), &key(1), unix(1000)).is_ok());
        assert_eq!(redeem(&record, &secret, &node("a"), &key(1), unix(1001)), Err(Refusal::Expired));
        let bound = SecretRecord { node: Some(node("b")), ..record };
        let refused = Refusal::OtherNode { bound: node("b"), asked: node("a") };
        assert_eq!(redeem(&bound, &secret, &node("a"), &key(1), unix(1)), Err(refused));
        assert!(redeem(&bound, &secret, &node("b"), &key(1), unix(1)).is_ok());
    }

    #[test]
    fn the_secret_object_says_whose_it_is_and_keeps_its_version() {
        let secret = JoinSecret::random().unwrap();
        let id = SecretId::random().unwrap();
        let mut object = fresh(&secret).to_secret(&id);
        assert_eq!(object["metadata"]["name"], format!("holm-join-{id}"));
        assert_eq!(object["metadata"]["labels"]["holm.dev/managed-by"], "holm");
        object["metadata"]["resourceVersion"] = "42".into();
        let used = redeem(&fresh(&secret), &secret, &node("a"), &key(1), unix(5)).unwrap();
        used.write_to(&mut object);
        assert_eq!(object["metadata"]["resourceVersion"], "42");
        assert_eq!(SecretRecord::from_secret(&object), Ok(used));
    }

    #[test]
    fn a_half_written_use_is_not_taken_for_unused() {
        let secret = JoinSecret::random().unwrap();
        let used = redeem(&fresh(&secret), &secret, &node("a"), &key(1), unix(5)).unwrap();
        for missing in [field::USED_NODE, field::USED_KEY, field::USED_AT, field::HASH, field::EXPIRES] {
            let mut object = used.to_secret(&SecretId::random().unwrap());
            object["data"].as_object_mut().unwrap().remove(missing);
            assert_eq!(SecretRecord::from_secret(&object), Err(RecordError::Field(missing)));
        }
    }

    proptest! {
        #[test]
        fn records_survive_their_secret(
            hash: [u8; 32], expires: u64, bound in proptest::option::of("[a-z]{1,20}"),
            used in proptest::option::of(("[a-z]{1,20}", any::<[u8; 32]>(), any::<u64>())),
        ) {
            let record = SecretRecord {
                hash,
                expires: unix(expires),
                node: bound.map(|name| node(&name)),
                used: used.map(|(name, key, at)| Used {
                    node: node(&name),
                    key: Fingerprint::from_bytes(key),
                    at: unix(at),
                }),
            };
            let object = record.to_secret(&SecretId::random().unwrap());
            prop_assert_eq!(SecretRecord::from_secret(&object), Ok(record));
        }
    }
}
