//! Objects on the wire, smaller: LZ4 blocks, on their own or against a base
//! that the other end holds.
//!
//! A base is an object as it was sent before, in the bytes of
//! [`crate::object::codec`], and its name is the SHA-256 of these bytes. The
//! dictionary of LZ4 reaches 64 KiB back, so of a longer base only the end
//! counts.

use super::frame::{ENCODING_LZ4, ENCODING_LZ4_BASE, ENCODING_PLAIN, Hash, Put};
use crate::object::codec::MAX_BYTES;

/// Objects under this length, in bytes, are sent as they are.
const WORTH_IT: usize = 128;
/// What naming the length costs in a frame, in bytes.
const LENGTH_COST: usize = 6;
/// What naming the base costs in a frame, in bytes.
const BASE_COST: usize = 35;
/// One byte of LZ4 stands for at most so many (the block format, "linear
/// small-integer code"); a length that promises more is a lie.
const MOST_PER_BYTE: usize = 255;

/// An object as it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// One of the `ENCODING_` numbers.
    pub encoding: u32,
    /// The bytes.
    pub object: Vec<u8>,
    /// The base that they need, if any.
    pub base: Option<Hash>,
    /// The length of the object, in bytes, unless it is plain.
    pub length: u32,
}

impl Packed {
    /// The order to hold this object.
    pub fn put(self, key: super::frame::WireKey) -> Put {
        let Packed { encoding, object, base, length } = self;
        Put { key, encoding, object, base, length }
    }
}

/// Why an object cannot be had from a [`Put`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unpack {
    /// The base is not here: ask for the whole object with
    /// [`super::frame::NeedFull`].
    #[error("the base of a compressed object is not here")]
    NeedFull,
    /// More than [`MAX_BYTES`].
    #[error("an object of {0} bytes is over the limit of {MAX_BYTES}")]
    TooLong(usize),
    /// An encoding of a later release.
    #[error("an object in the unknown encoding {0}")]
    Encoding(u32),
    /// Not what it says it is.
    #[error("a compressed object cannot be read: {0}")]
    Malformed(String),
}

/// The name of a base.
pub fn name(object: &[u8]) -> Hash {
    let digest = ring::digest::digest(&ring::digest::SHA256, object);
    let mut hash = Hash::default();
    for (to, from) in hash.0.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    hash
}

/// The shortest form of an object in CBOR that the other end can read:
/// `peer_reads_lz4` if it named [`super::frame::FEATURE_LZ4`], and a `base`
/// only if it is known to hold that.
pub fn pack(object: &[u8], base: Option<&[u8]>, peer_reads_lz4: bool) -> Packed {
    let plain = || Packed { encoding: ENCODING_PLAIN, object: object.to_vec(), ..Packed::default() };
    let Ok(length) = u32::try_from(object.len()) else { return plain() };
    if !peer_reads_lz4 || object.len() < WORTH_IT {
        return plain();
    }
    let alone = lz4_flex::block::compress(object);
    let alone_cost = alone.len() + LENGTH_COST;
    let against = base.map(|base| (name(base), lz4_flex::block::compress_with_dict(object, base)));
    let against_cost = against.as_ref().map(|(_, bytes)| bytes.len() + LENGTH_COST + BASE_COST);
    let least = against_cost.unwrap_or(usize::MAX).min(alone_cost);
    match against {
        _ if least >= object.len() => plain(),
        Some((base, bytes)) if against_cost == Some(least) => {
            Packed { encoding: ENCODING_LZ4_BASE, object: bytes, base: Some(base), length }
        }
        _ => Packed { encoding: ENCODING_LZ4, object: alone, base: None, length },
    }
}

/// The object in CBOR that an order carries. `base` gives the object with this
/// name, if it is here.
///
/// # Errors
/// See [`Unpack`]. Nothing is allocated for an object that could not be.
pub fn unpack(put: &Put, base: impl FnOnce(&Hash) -> Option<Vec<u8>>) -> Result<Vec<u8>, Unpack> {
    let length = match put.encoding {
        ENCODING_PLAIN => put.object.len(),
        _ => usize::try_from(put.length).unwrap_or(usize::MAX),
    };
    if length > MAX_BYTES {
        return Err(Unpack::TooLong(length));
    }
    let dictionary = match (put.encoding, &put.base) {
        (ENCODING_PLAIN, None) => return Ok(put.object.clone()),
        (ENCODING_LZ4, None) => None,
        (ENCODING_LZ4_BASE, Some(hash)) => Some(hash),
        (ENCODING_PLAIN | ENCODING_LZ4 | ENCODING_LZ4_BASE, _) => {
            return Err(Unpack::Malformed("a base without its encoding, or the reverse".into()));
        }
        (other, _) => return Err(Unpack::Encoding(other)),
    };
    if length > put.object.len().saturating_mul(MOST_PER_BYTE) {
        return Err(Unpack::Malformed(format!("{length} bytes cannot come of {}", put.object.len())));
    }
    let dictionary = match dictionary {
        None => Vec::new(),
        Some(hash) => base(hash).ok_or(Unpack::NeedFull)?,
    };
    let mut object = vec![0; length];
    let written = lz4_flex::block::decompress_into_with_dict(&put.object, &mut object, &dictionary)
        .map_err(|error| Unpack::Malformed(error.to_string()))?;
    match written == length {
        true => Ok(object),
        false => Err(Unpack::Malformed(format!("{length} bytes announced, {written} found"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::link::frame::{Body, Frame, WireKey};
    use crate::object::codec;

    /// A pod as an API server gives it, of about 4 kB in JSON.
    fn pod() -> Value {
        let probe = |path: &str, period| {
            json!({
                "httpGet": {"path": path, "port": 8080, "scheme": "HTTP"},
                "timeoutSeconds": 1, "periodSeconds": period, "successThreshold": 1, "failureThreshold": 3
            })
        };
        let container = |name: &str| {
            json!({
                "name": name, "image": format!("registry.example.net/plant/{name}:1.4.2"),
                "args": ["--listen=:8080", "--upstream=mqtt://127.0.0.1:1883", format!("--name={name}")],
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [
                    {"name": "LEVEL", "value": "info"},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": format!("{name}-login"), "key": "password"}}}
                ],
                "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "50m", "memory": "32Mi"}},
                "volumeMounts": [
                    {"name": "settings", "readOnly": true, "mountPath": "/etc/plant"},
                    {"name": "kube-api-access-7xk2p", "readOnly": true,
                     "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
                ],
                "livenessProbe": probe("/healthz", 10), "readinessProbe": probe("/readyz", 5),
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true}
            })
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "reader-6d4b75cb6d-hx8ct", "generateName": "reader-6d4b75cb6d-", "namespace": "plant",
                "uid": "0b8de5c2-5b1e-4d0e-9d0a-2f9a3f5f7c11", "resourceVersion": "48213",
                "creationTimestamp": "2026-03-01T12:00:00Z",
                "labels": {"app": "reader", "pod-template-hash": "6d4b75cb6d", "tier": "edge"},
                "annotations": {"example.net/checksum": "8c7dd922ad47494fc02c388e12c00eac278d1c3aa5c8aa1e2dd2d2a3d8f9a6b1"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "reader-6d4b75cb6d",
                    "uid": "3f0f2a52-7f0d-4b3c-a9f1-6f1f3d0c8e21", "controller": true, "blockOwnerDeletion": true}]
            },
            "spec": {
                "volumes": [
                    {"name": "settings", "configMap": {"name": "reader-settings", "defaultMode": 420}},
                    {"name": "kube-api-access-7xk2p", "projected": {"defaultMode": 420, "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
                    ]}}
                ],
                "containers": [container("reader"), container("forwarder")],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "serviceAccountName": "default", "serviceAccount": "default", "nodeName": "island-7",
                "securityContext": {}, "schedulerName": "default-scheduler", "priority": 0,
                "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
                ]
            },
            "status": {"phase": "Pending", "qosClass": "Burstable", "conditions": [
                {"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-03-01T12:00:00Z"}
            ]}
        })
    }

    fn key() -> WireKey {
        WireKey {
            resource: "pods".into(),
            namespace: "plant".into(),
            name: "reader".into(),
            ..WireKey::default()
        }
    }

    fn on_wire(packed: Packed) -> usize {
        Frame::plain(Body::Put(packed.put(key()))).encode().len()
    }

    #[test]
    fn a_changed_line_of_a_pod_costs_a_tenth_of_the_pod() {
        let before = codec::encode(&pod());
        let mut changed = pod();
        changed["spec"]["containers"][0]["image"] = json!("registry.example.net/plant/reader:1.4.3");
        changed["metadata"]["resourceVersion"] = json!("48377");
        let json = serde_json::to_vec(&changed).unwrap().len();
        let after = codec::encode(&changed);
        let plain = on_wire(pack(&after, Some(&before), false));
        let alone = on_wire(pack(&after, None, true));
        let against = pack(&after, Some(&before), true);
        assert_eq!(against.encoding, ENCODING_LZ4_BASE);
        let against = on_wire(against);
        println!("bytes of JSON {json}, of frames: plain {plain}, LZ4 {alone}, against the base {against}");
        assert!(json > 4000 && against * 10 < plain && alone < plain, "{json} {plain} {alone} {against}");
    }

    #[test]
    fn an_end_that_reads_no_lz4_gets_the_object_as_it_is() {
        let object = codec::encode(&pod());
        let packed = pack(&object, Some(&object), false);
        assert_eq!(packed, Packed { object, ..Packed::default() });
    }

    #[test]
    fn small_objects_and_noise_stay_as_they_are() {
        let small =
            codec::encode(&json!({"kind": "ConfigMap", "data": {"aaaa": "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}));
        assert_eq!(pack(&small, None, true).encoding, ENCODING_PLAIN);
        let noise: Vec<u8> = (0..4096).map(|_| fastrand::u8(..)).collect();
        assert_eq!(pack(&noise, Some(&small), true).encoding, ENCODING_PLAIN);
    }

    #[test]
    fn a_base_that_is_not_here_is_asked_for() {
        let object = codec::encode(&pod());
        let put = pack(&object, Some(&object), true).put(key());
        let mut asked = None;
        let outcome = unpack(&put, |hash| {
            asked = Some(*hash);
            None
        });
        assert_eq!(outcome, Err(Unpack::NeedFull));
        assert_eq!(asked, Some(name(&object)));
    }

    #[test]
    fn a_base_that_reaches_less_far_is_an_error() {
        let object = codec::encode(&pod());
        let put = pack(&object, Some(&object), true).put(key());
        // The names are SHA-256, so this takes an end that looks up wrongly.
        assert!(matches!(unpack(&put, |_| Some(Vec::new())), Err(Unpack::Malformed(_))));
    }

    #[test]
    fn a_length_is_judged_before_it_is_believed() {
        let put = |encoding, length, bytes: usize| Put {
            encoding,
            length,
            object: vec![0; bytes],
            ..Put::default()
        };
        let none = |_: &Hash| None;
        let over = u32::try_from(MAX_BYTES).unwrap() + 1;
        assert_eq!(unpack(&put(ENCODING_LZ4, over, 10), none), Err(Unpack::TooLong(MAX_BYTES + 1)));
        assert_eq!(unpack(&put(ENCODING_LZ4, u32::MAX, 10), none), Err(Unpack::TooLong(u32::MAX as usize)));
        assert_eq!(unpack(&put(ENCODING_PLAIN, 0, MAX_BYTES + 1), none), Err(Unpack::TooLong(MAX_BYTES + 1)));
        assert!(matches!(unpack(&put(ENCODING_LZ4, over - 1, 10), none), Err(Unpack::Malformed(_))));
        assert_eq!(unpack(&put(3, 10, 10), none), Err(Unpack::Encoding(3)));
        let odd = Put { base: Some(Hash::default()), ..put(ENCODING_LZ4, 10, 10) };
        assert!(matches!(unpack(&odd, |_| Some(Vec::new())), Err(Unpack::Malformed(_))));
        assert!(matches!(unpack(&put(ENCODING_LZ4_BASE, 10, 10), none), Err(Unpack::Malformed(_))));
    }

    /// Bytes that repeat themselves, as objects do.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((any::<u8>(), 1usize..40), 0..200)
            .prop_map(|runs| runs.into_iter().flat_map(|(byte, count)| vec![byte % 7; count]).collect())
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            object in bytes(),
            base in prop::option::of(bytes()),
            tail in prop::collection::vec(any::<u8>(), 0..50),
            reads in any::<bool>(),
            alike in any::<bool>(),
        ) {
            let base = match (alike, base) {
                (true, Some(_)) => Some([object.clone(), tail].concat()),
                (_, base) => base,
            };
            let packed = pack(&object, base.as_deref(), reads);
            prop_assert!(packed.object.len() <= object.len());
            prop_assert!(reads || packed.encoding == ENCODING_PLAIN);
            let held = base.clone();
            let put = packed.put(key());
            let unpacked = unpack(&put, |hash| held.filter(|held| name(held) == *hash));
            prop_assert_eq!(unpacked, Ok(object));
        }

        #[test]
        fn garbage_is_an_error_or_bytes_of_the_length_it_names(
            object in prop::collection::vec(any::<u8>(), 0..300),
            base in bytes(),
            length in prop_oneof![0u32..400, any::<u32>()],
            encoding in 0u32..4,
            has_base in any::<bool>(),
        ) {
            let put = Put { key: key(), encoding, object, base: has_base.then(Hash::default), length };
            if let Ok(unpacked) = unpack(&put, |_| Some(base)) {
                prop_assert!(unpacked.len() <= put.object.len().saturating_mul(MOST_PER_BYTE));
                prop_assert!(encoding == ENCODING_PLAIN || unpacked.len() == length as usize);
            }
        }

        #[test]
        fn a_damaged_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let object = codec::encode(&pod());
            let mut put = pack(&object, Some(&object[100..]), true).put(key());
            let at = at.index(put.object.len());
            put.object[at] = byte;
            let _ = unpack(&put, |_| Some(object[100..].to_vec()));
        }
    }
}
