//! Words that are valid once they exist: parsing is the only way to make one from text.

use data_encoding::HEXLOWER;
use rustls::pki_types::{DnsName, ServerName};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest node name: DNS-1123 subdomain, as Kubernetes requires of object names.
pub const NODE_NAME_MAX: usize = 253;
/// The port of the cloud's hub where an endpoint names none.
pub const HUB_PORT: u16 = 10000;
/// Longest host in an endpoint (RFC 1035, section 2.3.4, without the trailing dot).
const HOST_MAX: usize = 253;

/// Why a text is not the name it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS-1123 subdomain of at most 253 characters.
    #[error(
        "{0:?} is not a node name: use lower-case letters, digits, '-' and '.', starting and ending each part with a letter or digit, at most 253 characters"
    )]
    NodeName(String),
    /// Nothing in a host name can stand in a node name.
    #[error("the host name {0:?} has nothing to make a node name of: give one with --node-name")]
    HostName(String),
    /// Not a UUID in its lower-case text form.
    #[error("{0:?} is not a cluster UID: it should look like 123e4567-e89b-42d3-a456-426614174000")]
    ClusterUid(String),
    /// Not the hexadecimal form of a SHA-256.
    #[error("{0:?} is not a fingerprint: it should be sha256: and 64 hexadecimal digits")]
    Fingerprint(String),
    /// Not `host:port`.
    #[error("{0:?} is not an endpoint: it should be host:port, for example cloud.example.com:10000")]
    Endpoint(String),
}

/// A node's name as Kubernetes knows it: a DNS-1123 subdomain of at most 253 characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// Makes a node name of a host name: lower-cased, with what does not fit replaced by `-`
    /// and cut to 253 characters.
    ///
    /// # Errors
    /// Nothing usable is left.
    pub fn from_hostname(host: &str) -> Result<NodeName, NameError> {
        let replaced: String = host
            .chars()
            .take(NODE_NAME_MAX)
            .map(|c| match c.to_ascii_lowercase() {
                c if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' => c,
                _ => '-',
            })
            .collect();
        let labels: Vec<&str> = replaced
            .split('.')
            .map(|label| label.trim_matches('-'))
            .filter(|label| !label.is_empty())
            .collect();
        labels.join(".").parse().map_err(|_| NameError::HostName(excerpt(host)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NodeName, NameError> {
        if is_dns1123_subdomain(text) {
            Ok(NodeName(text.to_owned()))
        } else {
            Err(NameError::NodeName(excerpt(text)))
        }
    }
}

/// The identity of a cluster, made once and never changed: a UUID in lower-case text form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterUid(String);

impl ClusterUid {
    /// Makes a random one (UUID version 4, RFC 9562).
    ///
    /// # Errors
    /// The operating system has no randomness to give.
    pub fn random() -> Result<ClusterUid, super::NoRandomness> {
        let number = u128::from_be_bytes(super::random()?);
        let version_4 = (number & !(0xf << 76)) | (0x4 << 76);
        let variant_1 = (version_4 & !(0b11 << 62)) | (0b10 << 62);
        Ok(ClusterUid::from_bytes(variant_1.to_be_bytes()))
    }

    /// From the 16 bytes that [`ClusterUid::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 16]) -> ClusterUid {
        let mut text = String::with_capacity(36);
        for (i, c) in HEXLOWER.encode(&bytes).chars().enumerate() {
            if matches!(i, 8 | 12 | 16 | 20) {
                text.push('-');
            }
            text.push(c);
        }
        ClusterUid(text)
    }

    /// The UID as 16 bytes, most significant first.
    pub fn to_bytes(&self) -> [u8; 16] {
        let digits = self.0.bytes().filter_map(|c| char::from(c).to_digit(16));
        digits.fold(0u128, |number, digit| (number << 4) | u128::from(digit)).to_be_bytes()
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The DNS name that the cloud of this cluster proves by its certificate, whatever its address is.
    pub fn cloud_name(&self) -> String {
        format!("cloud.{}.holm.internal", self.0)
    }

    /// [`ClusterUid::cloud_name`] as the TLS server name to connect with.
    pub fn server_name(&self) -> ServerName<'static> {
        match DnsName::try_from(self.cloud_name()) {
            Ok(name) => ServerName::DnsName(name),
            // Not reachable: a UUID between dots is a DNS name. An unspecified address matches no certificate.
            Err(_) => ServerName::from(IpAddr::from([0, 0, 0, 0])),
        }
    }
}

impl FromStr for ClusterUid {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ClusterUid, NameError> {
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if lengths == [8, 4, 4, 4, 12] && groups.iter().all(|group| group.chars().all(hexadecimal)) {
            Ok(ClusterUid(text.to_owned()))
        } else {
            Err(NameError::ClusterUid(excerpt(text)))
        }
    }
}

/// The SHA-256 of a public key's SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7): what
/// kubeadm calls a discovery token CA certificate hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a SubjectPublicKeyInfo in DER.
    pub fn of_spki(der: &[u8]) -> Fingerprint {
        Fingerprint(sha256(der))
    }

    /// From the 32 bytes themselves.
    pub fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Fingerprint, NameError> {
        let wrong = || NameError::Fingerprint(excerpt(text));
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let bytes = HEXLOWER.decode(digits.as_bytes()).map_err(|_| wrong())?;
        Ok(Fingerprint(bytes.try_into().map_err(|_| wrong())?))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", HEXLOWER.encode(&self.0))
    }
}

/// Where the cloud's hub listens: a DNS name or an address, and a port.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The DNS name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Endpoint {
    type Err = NameError;

    /// Reads `host:port`, `[address]:port`, or either without the port, which is then [`HUB_PORT`].
    fn from_str(text: &str) -> Result<Endpoint, NameError> {
        let wrong = || NameError::Endpoint(excerpt(text));
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| wrong())?,
            None => HUB_PORT,
        };
        let host = host.to_ascii_lowercase();
        let is_host = host.parse::<IpAddr>().is_ok()
            || (host.len() <= HOST_MAX && DnsName::try_from(host.as_str()).is_ok());
        if port == 0 || !is_host {
            return Err(wrong());
        }
        Ok(Endpoint { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ClusterUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The SHA-256 of some bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut array = [0; 32];
    for (to, from) in array.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    array
}

/// RFC 1123 as Kubernetes reads it for object names.
fn is_dns1123_subdomain(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= NODE_NAME_MAX
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.iter().all(|c| edge(*c) || *c == b'-')
                && bytes.first().is_some_and(|c| edge(*c))
                && bytes.last().is_some_and(|c| edge(*c))
        })
}

/// The beginning of a text that is to stand in an error, so that a line stays a line.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn node_names_are_dns1123_subdomains() {
        for good in ["a", "pi-1", "pi.example.com", "0", &"a".repeat(253)] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "a..b", ".a", "a.", "A", "a_b", "a/b", "ä", &"a".repeat(254)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_names_become_node_names() {
        let of = |host: &str| NodeName::from_hostname(host).map(|name| name.0);
        assert_eq!(of("Raspberry_Pi.local"), Ok("raspberry-pi.local".into()));
        assert_eq!(of("-x-."), Ok("x".into()));
        assert!(of("___").is_err());
        assert!(of("").is_err());
    }

    #[test]
    fn cluster_uids_are_version_4_and_name_the_cloud() {
        let uid = ClusterUid::random().unwrap();
        assert_eq!(uid.as_str().parse::<ClusterUid>(), Ok(uid.clone()));
        assert_eq!(uid.as_str().as_bytes()[14], b'4');
        assert!(matches!(uid.as_str().as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_ne!(uid, ClusterUid::random().unwrap());
        assert!(matches!(uid.server_name(), ServerName::DnsName(name) if name.as_ref() == uid.cloud_name()));
        assert!("123E4567-e89b-42d3-a456-426614174000".parse::<ClusterUid>().is_err());
        assert!("123e4567e89b42d3a456426614174000".parse::<ClusterUid>().is_err());
    }

    #[test]
    fn endpoints_read_names_addresses_and_the_default_port() {
        let of = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        assert_eq!(of("Cloud.example.com:443"), Ok("cloud.example.com:443".into()));
        assert_eq!(of("10.0.0.1"), Ok("10.0.0.1:10000".into()));
        assert_eq!(of("[fd00::1]:7"), Ok("[fd00::1]:7".into()));
        assert_eq!(of("fd00::1"), Ok("[fd00::1]:10000".into()));
        for bad in
            ["", ":1", "a:0", "a:70000", "a:b", "a b:1", "https://a:1", "[fd00::1", "[fd00::1]7", "[a]:1"]
        {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_host_is_called_the_node_name_is_valid(host in ".*") {
            if let Ok(name) = NodeName::from_hostname(&host) {
                prop_assert!(is_dns1123_subdomain(name.as_str()));
            }
        }

        #[test]
        fn fingerprints_survive_their_text(bytes: [u8; 32]) {
            let fingerprint = Fingerprint::from_bytes(bytes);
            prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        }

        #[test]
        fn cluster_uids_survive_text_and_bytes(bytes: [u8; 16]) {
            let uid = ClusterUid::from_bytes(bytes);
            prop_assert_eq!(uid.to_bytes(), bytes);
            prop_assert_eq!(uid.as_str().parse(), Ok(uid.clone()));
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = (text.parse::<NodeName>(), text.parse::<ClusterUid>());
            let _ = (text.parse::<Fingerprint>(), text.parse::<Endpoint>());
        }
    }
}
