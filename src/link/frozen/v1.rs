//! The schema of protocol version 1 as release 0.1 had it. Frozen for ever:
//! nothing here is changed, whatever becomes of [`crate::link::frame`].

use minicbor::{Decode, Encode};

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Frame {
    #[n(0)]
    #[cbor(default)]
    pub seq: u64,
    #[n(1)]
    #[cbor(default)]
    pub ack: u64,
    #[n(2)]
    pub body: Option<Body>,
    #[n(3)]
    #[cbor(default)]
    pub has_body: bool,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Body {
    #[n(0)]
    Hello(#[n(0)] Hello),
    #[n(1)]
    Welcome(#[n(0)] Welcome),
    #[n(2)]
    Refused(#[n(0)] Refused),
    #[n(3)]
    Inventory(#[n(0)] Inventory),
    #[n(4)]
    Put(#[n(0)] Put),
    #[n(5)]
    Drop(#[n(0)] Gone),
    #[n(6)]
    Synced,
    #[n(7)]
    Status(#[n(0)] Status),
    #[n(8)]
    Gone(#[n(0)] Gone),
    #[n(9)]
    Register(#[n(0)] Register),
    #[n(10)]
    Event(#[n(0)] Happening),
    #[n(11)]
    Ping,
    #[n(12)]
    Unsupported(#[n(0)] u64),
    #[n(13)]
    Join(#[n(0)] Join),
    #[n(14)]
    Joined(#[n(0)] Joined),
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    #[n(0)]
    pub version_min: u32,
    #[n(1)]
    pub version_max: u32,
    #[n(2)]
    pub epoch: u64,
    #[n(3)]
    pub generation: u64,
    #[n(4)]
    #[cbor(default)]
    pub cluster: String,
    #[n(5)]
    pub digest_algorithm: u32,
    #[n(6)]
    #[cbor(with = "minicbor::bytes")]
    pub digest: [u8; 32],
    #[n(7)]
    #[cbor(default)]
    pub features: Vec<String>,
    #[n(8)]
    #[cbor(default)]
    pub software: String,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    #[n(0)]
    pub version: u32,
    #[n(1)]
    pub cluster: String,
    #[n(2)]
    pub time_ms: u64,
    #[n(3)]
    pub complete: bool,
    #[n(4)]
    pub inventory: bool,
    #[n(5)]
    pub window: u32,
    #[n(6)]
    pub keep_alive_secs: u32,
    #[n(7)]
    #[cbor(default)]
    pub endpoints: Vec<String>,
    #[n(8)]
    #[cbor(default)]
    pub features: Vec<String>,
    #[n(9)]
    #[cbor(default)]
    pub software: String,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Refused {
    #[n(0)]
    pub reason: String,
    #[n(1)]
    pub permanent: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct WireKey {
    #[n(0)]
    pub group: String,
    #[n(1)]
    pub resource: String,
    #[n(2)]
    pub namespace: String,
    #[n(3)]
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Holding {
    #[n(0)]
    pub key: WireKey,
    #[n(1)]
    pub uid: String,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Inventory {
    #[n(0)]
    pub holdings: Vec<Holding>,
    #[n(1)]
    pub last: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Put {
    #[n(0)]
    pub key: WireKey,
    #[n(1)]
    #[cbor(default)]
    pub encoding: u32,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub object: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Gone {
    #[n(0)]
    pub key: WireKey,
    #[n(1)]
    pub uid: String,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Status {
    #[n(0)]
    pub key: WireKey,
    #[n(1)]
    pub uid: String,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub status: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Register {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub node: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ItemId {
    #[n(0)]
    pub generation: u64,
    #[n(1)]
    pub sequence: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Happening {
    #[n(0)]
    pub id: ItemId,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub event: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Join {
    #[n(0)]
    pub secret_id: String,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub secret: [u8; 32],
    #[n(2)]
    pub node: String,
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub request: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Joined {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub certificate: Vec<u8>,
    #[n(1)]
    #[cbor(default)]
    pub endpoints: Vec<String>,
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap()
    }

    pub fn decode(bytes: &[u8]) -> Frame {
        let mut decoder = minicbor::Decoder::new(bytes);
        let frame = decoder.decode().unwrap();
        assert_eq!(decoder.position(), bytes.len(), "trailing bytes");
        frame
    }
}
