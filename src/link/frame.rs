//! The frame schema: every message between a cloud and an edge, in one place.
//!
//! A websocket binary message is one [`Frame`] in CBOR. Maps have integer
//! keys: an end skips what it does not know, and a body it does not know is
//! `None`, which it answers with [`Body::Unsupported`]. Numbers are never
//! reused. Objects travel as bytes in the form of [`crate::object::codec`], so
//! that their own limits are checked apart from the frame's.

use minicbor::{Decode, Encode};

use crate::object::{Key, KeyError, Uid};

/// The oldest protocol version this program speaks.
pub const VERSION_MIN: u32 = 1;
/// The newest protocol version this program speaks.
pub const VERSION_MAX: u32 = 1;

/// The version of the digest's algorithm ([`crate::object::content_hash`]).
pub const DIGEST_ALGORITHM: u32 = 1;

/// The longest frame, in bytes; longer ones are refused before they are read.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Holdings in one [`Body::Inventory`] at most.
pub const INVENTORY_PART: usize = 256;
/// Holdings in a whole inventory at most; a board with more is not one of ours.
/// With [`NAME_MAX`] this bounds what an end that lies can make the other keep.
pub const INVENTORY_MAX: usize = 16_384;
/// The longest part of a key, and the longest uid, in bytes (Kubernetes: object
/// names).
pub const NAME_MAX: usize = 253;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// Bytes behind the frame.
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
    /// Over a limit of [`super::shape`].
    #[error("not a frame: {0}")]
    Shape(&'static str),
    /// Truncated, malformed, or not the schema.
    #[error("not a frame: {0}")]
    Malformed(String),
    /// A key in it cannot be one.
    #[error("a frame names an impossible object: {0}")]
    Key(#[from] KeyError),
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Frame {
    /// Number of this frame on this connection, from 1, if it is to be
    /// acknowledged; 0 otherwise.
    #[n(0)]
    #[cbor(default)]
    pub seq: u64,
    /// All frames up to this number were received and done.
    #[n(1)]
    #[cbor(default)]
    pub ack: u64,
    /// What it says; `None` if it says nothing, or something unknown here.
    #[n(2)]
    pub body: Option<Body>,
    /// True if there is a body: tells "nothing" from "unknown".
    #[n(3)]
    #[cbor(default)]
    pub has_body: bool,
}

/// What a frame can say.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Body {
    /// Edge: the first frame of a connection.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Cloud: the answer to `Hello`.
    #[n(1)]
    Welcome(#[n(0)] Welcome),
    /// Cloud: the answer that ends a connection.
    #[n(2)]
    Refused(#[n(0)] Refused),
    /// Edge: what it holds, in parts.
    #[n(3)]
    Inventory(#[n(0)] Inventory),
    /// Cloud: hold this object.
    #[n(4)]
    Put(#[n(0)] Put),
    /// Cloud: hold this object no longer.
    #[n(5)]
    Drop(#[n(0)] Gone),
    /// Cloud: the difference has been sent; what the edge holds after this
    /// frame is the whole set.
    #[n(6)]
    Synced,
    /// Edge: the observed status of an object; the newest counts.
    #[n(7)]
    Status(#[n(0)] Status),
    /// Edge: an object that was to be deleted has been torn down.
    #[n(8)]
    Gone(#[n(0)] Gone),
    /// Edge: the Node object to register or refresh.
    #[n(9)]
    Register(#[n(0)] Register),
    /// Edge: a Kubernetes Event.
    #[n(10)]
    Event(#[n(0)] Happening),
    /// Either: are you there? Answered with a frame without a body.
    #[n(11)]
    Ping,
    /// Either: the body of the frame with this number is unknown here.
    #[n(12)]
    Unsupported(#[n(0)] u64),
    /// Board without an identity: asks for one.
    #[n(13)]
    Join(#[n(0)] Join),
    /// Cloud: the identity.
    #[n(14)]
    Joined(#[n(0)] Joined),
    /// Edge: asks for its next certificate.
    #[n(15)]
    Renew(#[n(0)] Renew),
    /// Cloud: the next certificate.
    #[n(16)]
    Renewed(#[n(0)] Renewed),
    /// Cloud: whom to trust and where to find the cloud, from now on.
    #[n(17)]
    Trust(#[n(0)] Trust),
    /// Edge: the base of a [`Body::Put`] is not here; send the object whole.
    #[n(18)]
    NeedFull(#[n(0)] NeedFull),
    /// Either: begins a stream. Frames of streams are not numbered; what they
    /// may say and when is in [`super::streams`].
    #[n(19)]
    Open(#[n(0)] Open),
    /// Either: bytes of a stream, within the credit that the other end gave.
    #[n(20)]
    Data(#[n(0)] Data),
    /// Either: the other end may send so many more bytes on a stream.
    #[n(21)]
    Credit(#[n(0)] Credit),
    /// Either: one's own half of a stream is over, or all of it if there is a
    /// reason.
    #[n(22)]
    End(#[n(0)] End),
    /// Either: a question with a deadline. Frames of calls are not numbered;
    /// their rules are in [`super::calls`].
    #[n(23)]
    Call(#[n(0)] Call),
    /// Either: the answer to a [`Body::Call`].
    #[n(24)]
    Answer(#[n(0)] Answer),
    /// Either: the answer to a [`Body::Call`] is no longer wanted.
    #[n(25)]
    Cancel(#[n(0)] u64),
}

/// [`Body::Hello`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Oldest protocol version the edge speaks.
    #[n(0)]
    pub version_min: u32,
    /// Newest protocol version the edge speaks.
    #[n(1)]
    pub version_max: u32,
    /// Grows with every start of the agent: a session with a newer epoch
    /// replaces the older one of the same node.
    #[n(2)]
    pub epoch: u64,
    /// Generation of the edge's store (`Store::generation`).
    #[n(3)]
    pub generation: u64,
    /// The cluster that the edge's objects came from; empty if it has none.
    #[n(4)]
    #[cbor(default)]
    pub cluster: String,
    /// [`DIGEST_ALGORITHM`] of `digest`.
    #[n(5)]
    pub digest_algorithm: u32,
    /// Digest over the cloud's objects that the edge holds.
    #[n(6)]
    #[cbor(with = "minicbor::bytes")]
    pub digest: [u8; 32],
    /// What the edge can do beyond the version's minimum.
    #[n(7)]
    #[cbor(default)]
    pub features: Vec<String>,
    /// The edge's release.
    #[n(8)]
    #[cbor(default)]
    pub software: String,
    /// Key hash of each certificate authority that the edge trusts: what a
    /// rotation of the authority waits for.
    #[n(9)]
    #[cbor(default)]
    pub pins: Vec<Hash>,
    /// Counts the connections of this epoch, from 1, so that one that was
    /// delayed on its way never takes over from a later one.
    #[n(10)]
    #[cbor(default)]
    pub connection: u64,
}

/// [`Body::Welcome`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// The protocol version of this connection.
    #[n(0)]
    pub version: u32,
    /// The cluster's UID.
    #[n(1)]
    pub cluster: String,
    /// The cloud's time, in milliseconds since 1970 UTC.
    #[n(2)]
    pub time_ms: u64,
    /// True once every list behind the node's set has been read whole: only
    /// then are drops sent, for absence is not an order.
    #[n(3)]
    pub complete: bool,
    /// True if the digests differ and the edge is to send its inventory.
    #[n(4)]
    pub inventory: bool,
    /// Frames that may be under way unacknowledged, each way.
    #[n(5)]
    pub window: u32,
    /// Seconds of silence after which the edge sends a [`Body::Ping`] at the
    /// latest; after three times as many either end takes the other for dead.
    #[n(6)]
    pub keep_alive_secs: u32,
    /// Where the cloud can be reached (`host:port`), to remember.
    #[n(7)]
    #[cbor(default)]
    pub endpoints: Vec<String>,
    /// What the cloud can do beyond the version's minimum.
    #[n(8)]
    #[cbor(default)]
    pub features: Vec<String>,
    /// The cloud's release.
    #[n(9)]
    #[cbor(default)]
    pub software: String,
    /// Key hash of each certificate authority to trust, to remember; empty if
    /// nothing is said about that.
    #[n(10)]
    #[cbor(default)]
    pub pins: Vec<Hash>,
    /// True if this session may do nothing but renew the certificate.
    #[n(11)]
    #[cbor(default)]
    pub renew_only: bool,
    /// Seconds of silence after which the edge sends a [`Body::Ping`] at the
    /// soonest; 0 if the cloud does not say. Between this and
    /// `keep_alive_secs` the edge decides ([`super::keepalive`]).
    #[n(12)]
    #[cbor(default)]
    pub keep_alive_least_secs: u32,
}

/// A SHA-256: of an object's bytes in CBOR, or of an authority's
/// SubjectPublicKeyInfo in DER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Hash(#[cbor(with = "minicbor::bytes")] pub [u8; 32]);

/// [`Body::Refused`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    /// A line for a person.
    #[n(0)]
    pub reason: String,
    /// True if asking again in the same way cannot help.
    #[n(1)]
    pub permanent: bool,
}

/// The key of an object on the wire.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct WireKey {
    /// API group.
    #[n(0)]
    #[cbor(decode_with = "short")]
    pub group: String,
    /// Plural resource.
    #[n(1)]
    #[cbor(decode_with = "short")]
    pub resource: String,
    /// Namespace or empty.
    #[n(2)]
    #[cbor(decode_with = "short")]
    pub namespace: String,
    /// Name.
    #[n(3)]
    #[cbor(decode_with = "short")]
    pub name: String,
}

/// Reads a text of at most [`NAME_MAX`] bytes.
fn short<C>(decoder: &mut minicbor::Decoder<'_>, _: &mut C) -> Result<String, minicbor::decode::Error> {
    let text = decoder.str()?;
    match text.len() > NAME_MAX {
        true => Err(minicbor::decode::Error::message("a name or uid of more than 253 bytes")),
        false => Ok(text.into()),
    }
}

impl From<&Key> for WireKey {
    fn from(key: &Key) -> WireKey {
        WireKey {
            group: key.group.clone(),
            resource: key.resource.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

impl TryFrom<&WireKey> for Key {
    type Error = KeyError;

    fn try_from(key: &WireKey) -> Result<Key, KeyError> {
        Key::new(&key.group, &key.resource, &key.namespace, &key.name)
    }
}

/// One object that an edge holds.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Holding {
    /// Which object.
    #[n(0)]
    pub key: WireKey,
    /// Its uid.
    #[n(1)]
    #[cbor(decode_with = "short")]
    pub uid: String,
    /// [`crate::object::content_hash`] of it.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

/// [`Body::Inventory`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Inventory {
    /// At most [`INVENTORY_PART`] holdings.
    #[n(0)]
    pub holdings: Vec<Holding>,
    /// True on the last part.
    #[n(1)]
    pub last: bool,
}

/// [`Put::object`] is the object in CBOR ([`crate::object::codec`]).
pub const ENCODING_PLAIN: u32 = 0;
/// [`Put::object`] is the object in CBOR, as an LZ4 block.
pub const ENCODING_LZ4: u32 = 1;
/// [`Put::object`] is the object in CBOR, as an LZ4 block whose dictionary is
/// another object in CBOR: the one whose SHA-256 is [`Put::base`].
pub const ENCODING_LZ4_BASE: u32 = 2;

/// [`Body::Put`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Put {
    /// Which object.
    #[n(0)]
    pub key: WireKey,
    /// How `object` is to be read: [`ENCODING_PLAIN`], [`ENCODING_LZ4`] or
    /// [`ENCODING_LZ4_BASE`]. Others than the first are sent only to an end
    /// that named [`FEATURE_LZ4`].
    #[n(1)]
    #[cbor(default)]
    pub encoding: u32,
    /// The object.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub object: Vec<u8>,
    /// SHA-256 of the base in CBOR, if the encoding has one.
    #[n(3)]
    pub base: Option<Hash>,
    /// Length of the object in CBOR, in bytes, unless it is plain: checked
    /// before anything is allocated.
    #[n(4)]
    #[cbor(default)]
    pub length: u32,
}

/// The feature of an end that reads compressed objects.
pub const FEATURE_LZ4: &str = "lz4";
/// The feature of an end that takes streams ([`Body::Open`]).
pub const FEATURE_STREAMS: &str = "streams";
/// The feature of an end that answers calls ([`Body::Call`]).
pub const FEATURE_CALLS: &str = "calls";

/// What this release can do beyond the version's minimum: what both ends say
/// in `Hello` and `Welcome`.
pub fn features() -> Vec<String> {
    [FEATURE_LZ4, FEATURE_STREAMS, FEATURE_CALLS].map(str::to_owned).to_vec()
}

/// [`Body::Drop`] and [`Body::Gone`]: one object, by name and identity.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Gone {
    /// Which object.
    #[n(0)]
    pub key: WireKey,
    /// Which of all that had this name.
    #[n(1)]
    pub uid: String,
}

/// [`Body::Status`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Status {
    /// Whose status.
    #[n(0)]
    pub key: WireKey,
    /// Which of all that had this name; empty for the node itself.
    #[n(1)]
    pub uid: String,
    /// The `status` field in CBOR.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub status: Vec<u8>,
}

/// [`Body::Register`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Register {
    /// The Node object in CBOR, as the edge would have it.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub node: Vec<u8>,
}

/// Tells one upward item from every other that a node ever sent: the node is
/// the connection's, so the id is whole with these two. It goes to the target
/// too, so that delivery at least once can be recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ItemId {
    /// Generation of the outbox the item waits in.
    #[n(0)]
    pub generation: u64,
    /// Its number there, from 1.
    #[n(1)]
    pub sequence: u64,
}

/// [`Body::Event`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Happening {
    /// The item's identity: sent again after a cut under the same one.
    #[n(0)]
    pub id: ItemId,
    /// The Event object in CBOR; its name is the cloud's to give.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub event: Vec<u8>,
}

/// [`Body::Join`].
#[derive(Clone, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Join {
    /// Which join secret.
    #[n(0)]
    pub secret_id: String,
    /// The secret of the join code.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// The name the board wants.
    #[n(2)]
    pub node: String,
    /// A PKCS#10 certificate request in DER (RFC 2986): only its key counts.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub request: Vec<u8>,
}

/// Without the secret.
impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("secret_id", &self.secret_id).field("node", &self.node).finish()
    }
}

/// [`Body::Joined`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Joined {
    /// The node's certificate in DER.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
    /// Where the cloud can be reached (`host:port`), to remember.
    #[n(1)]
    #[cbor(default)]
    pub endpoints: Vec<String>,
}

/// [`Body::Renew`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Renew {
    /// A PKCS#10 certificate request in DER (RFC 2986) with the next key: only
    /// that counts.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub request: Vec<u8>,
}

/// [`Body::Renewed`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Renewed {
    /// The certificate in DER; empty if there is none.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
    /// Why there is none, for a person.
    #[n(1)]
    pub reason: Option<String>,
}

/// [`Body::Trust`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Trust {
    /// Key hash of each certificate authority to trust.
    #[n(0)]
    pub pins: Vec<Hash>,
    /// Where the cloud can be reached (`host:port`).
    #[n(1)]
    #[cbor(default)]
    pub endpoints: Vec<String>,
    /// True if the node is to renew its certificate now: the authority that
    /// signed it is going.
    #[n(2)]
    #[cbor(default)]
    pub renew: bool,
}

/// [`Body::NeedFull`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct NeedFull {
    /// Which object.
    #[n(0)]
    pub key: WireKey,
    /// The uid of what the edge holds in its place; empty if nothing.
    #[n(1)]
    #[cbor(default)]
    pub uid: String,
}

/// [`Body::Open`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// The stream's number: odd ones are the edge's, even ones the cloud's.
    #[n(0)]
    pub stream: u64,
    /// What the stream is for: at most [`super::streams::MAX_SERVICE`] bytes.
    #[n(1)]
    pub service: String,
    /// What the service is told to begin with: at most
    /// [`super::streams::MAX_HEADER`] bytes.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub header: Vec<u8>,
    /// Bytes that the other end may send before it is given more. Who opens
    /// may send once the other end has taken the stream with a first
    /// [`Body::Credit`].
    #[n(3)]
    pub credit: u32,
}

/// [`Body::Data`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Data {
    /// Which stream.
    #[n(0)]
    pub stream: u64,
    /// The bytes: at most [`super::streams::CHUNK`].
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// [`Body::Credit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Credit {
    /// Which stream.
    #[n(0)]
    pub stream: u64,
    /// Bytes that may be sent beyond what was granted before.
    #[n(1)]
    pub bytes: u32,
}

/// [`Body::End`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct End {
    /// Which stream.
    #[n(0)]
    pub stream: u64,
    /// Why, if it did not end well: then neither half goes on.
    #[n(1)]
    pub reason: Option<String>,
}

/// [`Body::Call`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Call {
    /// The call's number: odd ones are the edge's, even ones the cloud's.
    #[n(0)]
    pub call: u64,
    /// What is asked.
    #[n(1)]
    pub service: String,
    /// The question.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub question: Vec<u8>,
    /// Milliseconds after which nobody waits for the answer.
    #[n(3)]
    pub deadline_ms: u32,
}

/// [`Body::Answer`].
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Answer {
    /// Which call.
    #[n(0)]
    pub call: u64,
    /// The answer.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub answer: Vec<u8>,
    /// Why there is none.
    #[n(2)]
    pub error: Option<String>,
}

impl Frame {
    /// A frame that says something and is not numbered.
    pub fn plain(body: Body) -> Frame {
        Frame { body: Some(body), has_body: true, ..Frame::default() }
    }

    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Writing to a Vec cannot fail (its error type is Infallible).
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// The frame in exactly these bytes. Nothing is built before
    /// [`super::shape::check`] has passed.
    pub fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::TooLong(bytes.len()));
        }
        match bytes.len() - super::shape::check(bytes)? {
            0 => minicbor::decode(bytes).map_err(|error| FrameError::Malformed(error.to_string())),
            rest => Err(FrameError::Trailing(rest)),
        }
    }
}

/// The wire form of an object's identity.
pub fn gone(key: &Key, uid: &Uid) -> Gone {
    Gone { key: key.into(), uid: uid.0.clone() }
}

/// The version both ends speak, if there is one: the newest.
pub fn negotiate(hello: &Hello) -> Option<u32> {
    let newest = hello.version_max.min(VERSION_MAX);
    (newest >= hello.version_min.max(VERSION_MIN)).then_some(newest)
}

#[cfg(test)]
pub(crate) mod tests;
