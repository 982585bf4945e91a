//! What must hold for any bytes from outside. The fuzzer tries to break it, and `tests/corpus.rs` tries what
//! the fuzzer found.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use holm::cloud::authorise::authorise;
use holm::link::Body;
use holm::link::frame::Frame;
use holm::object::{Key, Object, Origin, Revision, Uid, codec, content_hash, pod};
use holm::trust::CertificateDer;
use holm::trust::authority::{NodeRequest, REQUEST_MAX};
use holm::trust::certificate::{Facts, peer_node, peer_user};
use holm::trust::code::JoinCode;
use holm::trust::names::NodeName;
use serde_json::json;

/// A target.
pub type Check = fn(&[u8]);

/// Every target by its name.
pub const ALL: [(&str, Check); 5] = [
    ("frame", frame),
    ("object", object),
    ("code", code),
    ("request", request),
    ("certificate", certificate),
];

/// A frame that is read is written and read again as the same one, and the cloud can judge it.
pub fn frame(bytes: &[u8]) {
    let Ok(frame) = Frame::decode(bytes) else { return };
    assert_eq!(Frame::decode(&frame.encode()).as_ref(), Ok(&frame));
    let Some(body) = &frame.body else { return };
    let carried = match body {
        Body::Status(status) => Some(&status.status),
        Body::Register(register) => Some(&register.node),
        Body::Event(happening) => Some(&happening.event),
        Body::Put(put) => Some(&put.object),
        _ => None,
    };
    let content = carried.and_then(|bytes| codec::decode(bytes).ok());
    let keys = match body {
        Body::Status(status) => Some(&status.key),
        Body::Gone(gone) | Body::Drop(gone) => Some(&gone.key),
        Body::Put(put) => Some(&put.key),
        _ => None,
    };
    if let Some(Ok(key)) = keys.map(Key::try_from) {
        assert_eq!(key.to_string().matches(['\n', '\r', '\0']).count(), 0);
    }
    let (node, foreign) = &*WORLD;
    let _ = authorise(node, body, None, content.as_ref());
    // Whatever is said about a pod of another node is refused.
    if matches!(body, Body::Gone(_)) || matches!(body, Body::Status(status) if status.key.resource == "pods")
    {
        assert!(authorise(node, body, Some(foreign), content.as_ref()).is_err());
    }
}

static WORLD: LazyLock<(NodeName, Object)> = LazyLock::new(|| {
    let foreign = Object {
        key: Key::core("pods", "default", "hello").unwrap(),
        uid: Uid("u1".into()),
        revision: Revision(1),
        origin: Origin::Local,
        value: json!({"metadata": {"name": "hello"}, "spec": {"nodeName": "barn-2"}}),
    };
    ("barn-1".parse().unwrap(), foreign)
});

/// An object that is read is within the limits, and is written and read again as the same one.
pub fn object(bytes: &[u8]) {
    let Ok(value) = codec::decode(bytes) else { return };
    let written = codec::encode_bounded(&value).expect("what was read can be written");
    assert_eq!(codec::decode(&written).as_ref(), Ok(&value));
    assert_eq!(content_hash(&value), content_hash(&codec::decode(&written).unwrap()));
    let _ = pod::node_name(&value);
}

/// A code that is read is written and read again as the same one. The bytes are taken as text, and as what
/// stands between length and checksum: no fuzzer guesses a SHA-256.
pub fn code(bytes: &[u8]) {
    let mut texts: Vec<String> = str::from_utf8(bytes).ok().map(str::to_owned).into_iter().collect();
    if let Ok(length) = u16::try_from(bytes.len() + 6) {
        let mut whole = [&length.to_be_bytes(), bytes].concat();
        let sum = ring::digest::digest(&ring::digest::SHA256, &whole);
        whole.extend_from_slice(sum.as_ref().first_chunk::<4>().unwrap());
        texts.push(format!("holm1.{}", BASE64URL_NOPAD.encode(&whole)));
    }
    for text in texts {
        if let Ok(code) = text.parse::<JoinCode>() {
            assert_eq!(code.to_text().expect("what was read can be written").parse(), Ok(code));
        }
    }
}

/// A request is never read beyond its limit.
pub fn request(bytes: &[u8]) {
    if let Ok(request) = NodeRequest::read(bytes) {
        assert!(bytes.len() <= REQUEST_MAX);
        assert_eq!(NodeRequest::read(bytes).unwrap().key_fingerprint(), request.key_fingerprint());
    }
}

/// Who a certificate names is a node only with the name and the group of one.
pub fn certificate(bytes: &[u8]) {
    let chain = [CertificateDer::from(bytes)];
    let facts = Facts::read(&chain[0]);
    if let Ok(peer) = peer_node(&chain) {
        let facts = facts.as_ref().expect("a node's certificate is one");
        assert!(!facts.is_ca && facts.organizations.iter().any(|o| o == "system:nodes"));
        assert_eq!(facts.common_name, Some(format!("system:node:{}", peer.node)));
    }
    if let Ok(user) = peer_user(&chain) {
        assert_eq!(Some(user.name), facts.unwrap().common_name);
    }
}
