//! The join code: one string that a person carries from the cloud to a board.
//!
//! `holm1.` and base64url (RFC 4648, section 5, without padding) of: the length of all bytes (two bytes, big
//! endian), a CBOR map with integer keys, and the first four bytes of the SHA-256 of everything before them.
//! Length and checksum tell a truncated paste from an altered one; unknown keys are passed over, so that an
//! older board reads a newer cloud's code.

use super::names::{self, ClusterUid, Endpoint, Fingerprint, NodeName};
use super::{NoRandomness, UnixTime, unix};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use minicbor::{Decoder, Encoder};
use std::fmt;
use std::str::FromStr;

/// What every code of this version begins with.
const PREFIX: &str = "holm1.";
/// What codes of any version begin with.
const FAMILY: &str = "holm";
/// Longest text that is looked at, in characters, spaces included.
const TEXT_MAX: usize = 8192;
/// Most endpoints in one code.
pub const ENDPOINTS_MAX: usize = 16;
/// Most pins in one code: the authority, and its successors during a rotation.
pub const PINS_MAX: usize = 8;
/// Most keys in the map, known or not.
const KEYS_MAX: u64 = 32;
const LENGTH_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 4;

mod key {
    pub(super) const ENDPOINTS: u8 = 0;
    pub(super) const PINS: u8 = 1;
    pub(super) const CLUSTER: u8 = 2;
    pub(super) const ID: u8 = 3;
    pub(super) const SECRET: u8 = 4;
    pub(super) const EXPIRES: u8 = 5;
    pub(super) const NODE: u8 = 6;
}

/// Why a text is not a join code. Each is one line for the person who pasted it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// It does not begin as a join code does.
    #[error("this is not a join code: it should begin with {PREFIX} (make one with: holm token create)")]
    NotACode,
    /// Of a later version than this program reads.
    #[error("this join code is of a newer version: update holm on this machine")]
    Newer,
    /// More than a terminal ever pasted.
    #[error("this is not a join code: it is longer than {TEXT_MAX} characters")]
    TooLong,
    /// The end is missing.
    #[error("the join code is incomplete, its end is missing: paste the whole code")]
    Truncated,
    /// Something was added after the end.
    #[error("the join code goes on after its end: paste the code and nothing else")]
    TrailingText,
    /// A character that is not in any code, or a checksum that does not fit.
    #[error("the join code was altered on the way: paste it again")]
    Altered,
    /// A code that was made wrong.
    #[error("the join code is complete but {0}: make a new one with: holm token create")]
    Content(&'static str),
}

/// Names a join secret among all of a cluster: 8 random bytes, 16 lower-case hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretId([u8; 8]);

impl SecretId {
    /// Makes a random one.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random() -> Result<SecretId, NoRandomness> {
        Ok(SecretId(super::random()?))
    }
}

impl FromStr for SecretId {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<SecretId, CodeError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(SecretId).ok_or(CodeError::Content("the id of its secret is wrong"))
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 256 random bits that may be exchanged for a certificate once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret([u8; 32]);

impl JoinSecret {
    /// Makes a random one.
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random() -> Result<JoinSecret, NoRandomness> {
        Ok(JoinSecret(super::random()?))
    }

    /// From the bytes that [`JoinSecret::as_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 32]) -> JoinSecret {
        JoinSecret(bytes)
    }

    /// The secret itself, to be sent to a verified cloud and nowhere else.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the cloud keeps of it. The secret is random and long, so that a plain hash hides it.
    pub fn hash(&self) -> [u8; 32] {
        names::sha256(&self.0)
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(not shown)")
    }
}

/// All that a board needs to join a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinCode {
    /// Where the cloud may be found, to be tried in turn: 1 to [`ENDPOINTS_MAX`].
    pub endpoints: Vec<Endpoint>,
    /// The authorities that the board is to trust: 1 to [`PINS_MAX`].
    pub pins: Vec<Fingerprint>,
    /// The cluster to join.
    pub cluster: ClusterUid,
    /// Which of the cluster's secrets this is.
    pub id: SecretId,
    /// The secret.
    pub secret: JoinSecret,
    /// When the cloud stops accepting the secret. A board does not judge it: its clock can be wrong.
    pub expires: UnixTime,
    /// The only node that may join with it.
    pub node: Option<NodeName>,
}

impl JoinCode {
    /// The code as one string: a secret until it is used or expired.
    ///
    /// # Errors
    /// No endpoint or pin, or too many.
    pub fn to_text(&self) -> Result<String, CodeError> {
        check_counts(self.endpoints.len(), self.pins.len())?;
        let body = encode(self).map_err(|_| CodeError::Content("it cannot be written"))?;
        let total = LENGTH_BYTES + body.len() + CHECKSUM_BYTES;
        let length = u16::try_from(total).map_err(|_| CodeError::TooLong)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let text = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes));
        if text.len() > TEXT_MAX {
            return Err(CodeError::TooLong);
        }
        Ok(text)
    }
}

impl FromStr for JoinCode {
    type Err = CodeError;

    /// Reads a pasted code. White space anywhere in it is passed over, as terminals break long lines.
    fn from_str(text: &str) -> Result<JoinCode, CodeError> {
        if text.len() > TEXT_MAX {
            return Err(CodeError::TooLong);
        }
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            return Err(match text.strip_prefix(FAMILY).and_then(|rest| rest.split_once('.')) {
                Some((version, _)) if version.parse::<u32>().is_ok_and(|v| v > 1) => CodeError::Newer,
                _ if text.len() >= FAMILY.len() && PREFIX.starts_with(&text) => CodeError::Truncated,
                _ => CodeError::NotACode,
            });
        };
        decode(body(encoded)?)
    }
}

/// Checks length and checksum of the encoded part and returns the CBOR between them.
fn body(encoded: &str) -> Result<Vec<u8>, CodeError> {
    let in_alphabet = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    if !encoded.bytes().all(in_alphabet) {
        return Err(CodeError::Altered);
    }
    // The length first: a cut anywhere, even within a base64 group, is then called a cut.
    let head = encoded.get(..4).ok_or(CodeError::Truncated)?;
    let head = BASE64URL_NOPAD.decode(head.as_bytes()).map_err(|_| CodeError::Altered)?;
    let (length, _) = head.split_first_chunk().ok_or(CodeError::Altered)?;
    let length = usize::from(u16::from_be_bytes(*length));
    match encoded.len().cmp(&BASE64URL_NOPAD.encode_len(length)) {
        std::cmp::Ordering::Less => return Err(CodeError::Truncated),
        std::cmp::Ordering::Greater => return Err(CodeError::TrailingText),
        std::cmp::Ordering::Equal => {}
    }
    let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| CodeError::Altered)?;
    let (summed, sum) = bytes.split_last_chunk().ok_or(CodeError::Altered)?;
    if checksum(summed) != *sum {
        return Err(CodeError::Altered);
    }
    Ok(summed.get(LENGTH_BYTES..).ok_or(CodeError::Altered)?.to_vec())
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = names::sha256(bytes);
    [a, b, c, d]
}

fn check_counts(endpoints: usize, pins: usize) -> Result<(), CodeError> {
    match (endpoints, pins) {
        (0, _) => Err(CodeError::Content("names no endpoint")),
        (_, 0) => Err(CodeError::Content("pins no certificate authority")),
        (endpoints, _) if endpoints > ENDPOINTS_MAX => Err(CodeError::Content("names too many endpoints")),
        (_, pins) if pins > PINS_MAX => Err(CodeError::Content("pins too many certificate authorities")),
        _ => Ok(()),
    }
}

fn encode(code: &JoinCode) -> Result<Vec<u8>, minicbor::encode::Error<std::convert::Infallible>> {
    let mut cbor = Encoder::new(Vec::new());
    cbor.map(if code.node.is_some() { 7 } else { 6 })?;
    cbor.u8(key::ENDPOINTS)?.array(code.endpoints.len() as u64)?;
    for endpoint in &code.endpoints {
        cbor.str(&endpoint.to_string())?;
    }
    cbor.u8(key::PINS)?.array(code.pins.len() as u64)?;
    for pin in &code.pins {
        cbor.bytes(pin.as_bytes())?;
    }
    cbor.u8(key::CLUSTER)?.bytes(&code.cluster.to_bytes())?;
    cbor.u8(key::ID)?.bytes(&code.id.0)?;
    cbor.u8(key::SECRET)?.bytes(code.secret.as_bytes())?;
    cbor.u8(key::EXPIRES)?.u64(code.expires.as_secs())?;
    if let Some(node) = &code.node {
        cbor.u8(key::NODE)?.str(node.as_str())?;
    }
    Ok(cbor.into_writer())
}

fn decode(body: Vec<u8>) -> Result<JoinCode, CodeError> {
    const MALFORMED: CodeError = CodeError::Content("it is malformed");
    let malformed = |_| MALFORMED;
    let mut cbor = Decoder::new(&body);
    let keys = cbor.map().map_err(malformed)?;
    let keys = keys.filter(|keys| *keys <= KEYS_MAX).ok_or(MALFORMED)?;
    let (mut endpoints, mut pins) = (Vec::new(), Vec::new());
    let (mut cluster, mut id, mut secret, mut expires, mut node) = (None, None, None, None, None);
    for _ in 0..keys {
        match cbor.u8().map_err(malformed)? {
            key::ENDPOINTS => {
                let count = cbor.array().map_err(malformed)?.ok_or(MALFORMED)?;
                for _ in 0..count.min(ENDPOINTS_MAX as u64 + 1) {
                    let endpoint = cbor.str().map_err(malformed)?.parse();
                    endpoints
                        .push(endpoint.map_err(|_| CodeError::Content("one of its endpoints is wrong"))?);
                }
                check_counts(endpoints.len(), 1)?;
            }
            key::PINS => {
                let count = cbor.array().map_err(malformed)?.ok_or(MALFORMED)?;
                for _ in 0..count.min(PINS_MAX as u64 + 1) {
                    pins.push(Fingerprint::from_bytes(bytes(&mut cbor)?));
                }
                check_counts(1, pins.len())?;
            }
            key::CLUSTER => cluster = Some(ClusterUid::from_bytes(bytes(&mut cbor)?)),
            key::ID => id = Some(SecretId(bytes(&mut cbor)?)),
            key::SECRET => secret = Some(JoinSecret(bytes(&mut cbor)?)),
            key::EXPIRES => expires = Some(unix(cbor.u64().map_err(malformed)?)),
            key::NODE => {
                let name = cbor.str().map_err(malformed)?.parse();
                node = Some(name.map_err(|_| CodeError::Content("its node name is wrong"))?);
            }
            _ => cbor.skip().map_err(malformed)?,
        }
    }
    if cbor.position() != body.len() {
        return Err(MALFORMED);
    }
    check_counts(endpoints.len(), pins.len())?;
    Ok(JoinCode {
        endpoints,
        pins,
        cluster: cluster.ok_or(CodeError::Content("names no cluster"))?,
        id: id.ok_or(CodeError::Content("names no secret"))?,
        secret: secret.ok_or(CodeError::Content("has no secret"))?,
        expires: expires.ok_or(CodeError::Content("has no expiry"))?,
        node,
    })
}

fn bytes<const N: usize>(cbor: &mut Decoder<'_>) -> Result<[u8; N], CodeError> {
    let bytes = cbor.bytes().ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(CodeError::Content("one of its values has the wrong length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn any_code() -> impl Strategy<Value = JoinCode> {
        let endpoint =
            ("[a-z]{1,20}", 1u16..).prop_map(|(host, port)| format!("{host}:{port}").parse().unwrap());
        (
            (vec(endpoint, 1..=ENDPOINTS_MAX), vec(any::<[u8; 32]>(), 1..=PINS_MAX)),
            (any::<u64>(), any::<[u8; 32]>(), proptest::option::of("[a-z]{1,253}")),
        )
            .prop_map(|((endpoints, pins), (expires, secret, node))| JoinCode {
                endpoints,
                pins: pins.into_iter().map(Fingerprint::from_bytes).collect(),
                cluster: ClusterUid::random().unwrap(),
                id: SecretId::random().unwrap(),
                secret: JoinSecret(secret),
                expires: unix(expires),
                node: node.map(|name| name.parse().unwrap()),
            })
    }

    fn code() -> JoinCode {
        JoinCode {
            endpoints: vec!["cloud.example.com".parse().unwrap()],
            pins: vec![Fingerprint::from_bytes([7; 32])],
            cluster: "123e4567-e89b-42d3-a456-426614174000".parse().unwrap(),
            id: "0123456789abcdef".parse().unwrap(),
            secret: JoinSecret([9; 32]),
            expires: unix(1_800_000_000),
            node: None,
        }
    }

    fn encoded(body: &[u8]) -> String {
        let total = (LENGTH_BYTES + body.len() + CHECKSUM_BYTES) as u16;
        let mut bytes = [&total.to_be_bytes(), body].concat();
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Kept for ever: a code that a cloud of the first version printed is read by every later version.
    #[test]
    fn the_first_version_stays_readable() {
        const GOLDEN: &str = "holm1.AIqmAIF3Y2xvdWQuZXhhbXBsZS5jb206MTAwMDABgVggBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcCUBI-RWfom0LTpFZCZhQXQAADSAEjRWeJq83vBFggCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkFGmtJ0gACi3Fk";
        assert_eq!(GOLDEN.parse(), Ok(code()));
        assert_eq!(code().to_text().as_deref(), Ok(GOLDEN));
    }

    #[test]
    fn a_newer_clouds_keys_are_passed_over() {
        let mut body = encode(&code()).unwrap();
        body[0] += 1;
        body.extend_from_slice(&[0x17, 0x82, 0x01, 0x61, 0x61]);
        assert_eq!(encoded(&body).parse(), Ok(code()));
    }

    #[test]
    fn what_is_no_code_is_called_by_its_name() {
        let parse = |text: &str| text.parse::<JoinCode>().unwrap_err();
        assert_eq!(parse(""), CodeError::NotACode);
        assert_eq!(parse("K10abc::server:def"), CodeError::NotACode);
        assert_eq!(parse("holm2.AAAA"), CodeError::Newer);
        assert_eq!(parse("holm1"), CodeError::Truncated);
        assert_eq!(parse(&"x".repeat(TEXT_MAX + 1)), CodeError::TooLong);
        assert_eq!(parse("holm1.AA%A"), CodeError::Altered);
        let text = code().to_text().unwrap();
        assert_eq!(parse(&format!("{text}x")), CodeError::TrailingText);
        assert_eq!(parse(&encoded(&[0xa0])), CodeError::Content("names no endpoint"));
        let too_many = JoinCode { endpoints: vec![code().endpoints[0].clone(); ENDPOINTS_MAX + 1], ..code() };
        assert_eq!(too_many.to_text(), Err(CodeError::Content("names too many endpoints")));
        let body = encode(&too_many).unwrap();
        assert_eq!(parse(&encoded(&body)), CodeError::Content("names too many endpoints"));
    }

    #[test]
    fn a_claimed_count_allocates_nothing() {
        // {0: [… 2^64-1 items]} and nothing behind it.
        let body = [0xa1, 0x00, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(encoded(&body).parse::<JoinCode>(), Err(CodeError::Content("it is malformed")));
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert!(!format!("{:?}", code()).contains('9'.to_string().repeat(2).as_str()));
        assert!(format!("{:?}", code()).contains("not shown"));
    }

    proptest! {
        #[test]
        fn codes_survive_their_text(code in any_code()) {
            prop_assert_eq!(code.to_text().unwrap().parse(), Ok(code));
        }

        #[test]
        fn line_breaks_do_no_harm(at in 0usize..100) {
            let mut text = code().to_text().unwrap();
            text.insert_str(at, "\n  ");
            prop_assert_eq!(text.parse(), Ok(code()));
        }

        #[test]
        fn every_cut_is_called_a_cut(cut in any::<proptest::sample::Index>()) {
            let text = code().to_text().unwrap();
            let cut = 4 + cut.index(text.len() - 4);
            prop_assert_eq!(text[..cut].parse::<JoinCode>(), Err(CodeError::Truncated));
        }

        #[test]
        fn every_altered_character_is_found(at in any::<proptest::sample::Index>(), with in "[A-Za-z0-9_-]") {
            let text = code().to_text().unwrap();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            let altered = format!("{}{with}{}", &text[..at], &text[at + 1..]);
            prop_assert!(altered == text || altered.parse::<JoinCode>().is_err());
        }

        #[test]
        fn garbage_is_refused(text in ".*", body in vec(any::<u8>(), 0..300)) {
            prop_assert!(text.parse::<JoinCode>().is_err());
            let begun_well = PREFIX.to_owned() + &text;
            prop_assert!(begun_well.parse::<JoinCode>().is_err());
            // A right checksum around anything: what remains is the decoder's own care.
            let _ = encoded(&body).parse::<JoinCode>();
        }
    }
}
