//! What a certificate says, read once and bounded: subject, lifetime, serial and key.

use super::names::{Fingerprint, NodeName};
use super::{CertificateDer, UnixTime, unix};
use data_encoding::{BASE64, HEXLOWER};
use rustls::pki_types::pem::PemObject;
use std::time::Duration;
use x509_parser::extensions::{KeyIdentifier, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// Longest certificate that is looked at, in bytes. Ours have about 600; a node name adds up to 250.
pub const CERTIFICATE_MAX: usize = 16 * 1024;
/// The group of every node (Kubernetes' node authorizer).
pub const NODES_GROUP: &str = "system:nodes";
/// What stands before a node's name in its user name (Kubernetes' node authorizer).
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Serial numbers longer than RFC 5280, section 4.1.2.2, allows are refused.
const SERIAL_MAX: usize = 20;

/// Longer names of keys are passed over; a SHA-256 has 32 bytes.
const KEY_NAME_MAX: usize = 64;

/// Why a certificate does not say what is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Too long, or not X.509 in DER.
    #[error("not an X.509 certificate")]
    NotX509,
    /// No certificate at all.
    #[error("the peer has no certificate")]
    Missing,
    /// A subject without exactly one common name.
    #[error("the certificate's subject has no single common name")]
    NoName,
    /// A certificate of somebody who is not a node.
    #[error("the certificate of {0:?} is not a node's")]
    NotANode(String),
    /// PEM without a certificate in it.
    #[error("no certificate in PEM form")]
    NotPem,
}

/// The facts of one certificate. Nothing is verified: verification is the TLS handshake's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The subject's only common name (CN).
    pub common_name: Option<String>,
    /// The subject's organisations (O), in order.
    pub organizations: Vec<String>,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// First moment of its life.
    pub not_before: UnixTime,
    /// Last moment of its life.
    pub not_after: UnixTime,
    /// Fingerprint of its public key.
    pub key: Fingerprint,
    /// Whether it may sign certificates (basicConstraints).
    pub is_ca: bool,
    /// What its issuer calls its own key (RFC 5280, section 4.2.1.1); empty if it does not say.
    pub issuer_key: Vec<u8>,
    /// What it calls its own key (RFC 5280, section 4.2.1.2); empty if it does not say.
    pub key_name: Vec<u8>,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Longer than [`CERTIFICATE_MAX`], or not X.509.
    pub fn read(der: &CertificateDer<'_>) -> Result<Facts, CertificateError> {
        if der.len() > CERTIFICATE_MAX {
            return Err(CertificateError::NotX509);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::NotX509)?;
        let serial = certificate.raw_serial();
        if !rest.is_empty() || serial.len() > SERIAL_MAX {
            return Err(CertificateError::NotX509);
        }
        let validity = certificate.validity();
        Ok(Facts {
            common_name: single_common_name(certificate.subject()),
            organizations: certificate
                .subject()
                .iter_organization()
                .filter_map(|o| o.as_str().ok().map(str::to_owned))
                .collect(),
            serial: HEXLOWER.encode(serial),
            not_before: seconds(validity.not_before.timestamp()),
            not_after: seconds(validity.not_after.timestamp()),
            key: Fingerprint::of_spki(certificate.public_key().raw),
            is_ca: certificate.is_ca(),
            issuer_key: key_name(&certificate, |extension| match extension {
                ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
                _ => None,
            }),
            key_name: key_name(&certificate, |extension| match extension {
                ParsedExtension::SubjectKeyIdentifier(name) => Some(name),
                _ => None,
            }),
        })
    }
}

/// Who a node is: the key in its certificate, and the name that the cloud wrote beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node's name.
    pub node: NodeName,
    /// Serial number of the certificate in lower-case hexadecimal.
    pub serial: String,
    /// First moment of the certificate's life.
    pub not_before: UnixTime,
    /// Last moment of the certificate's life. It may have passed: see [`PeerIdentity::standing`].
    pub not_after: UnixTime,
    /// Fingerprint of the node's public key.
    pub key_fingerprint: Fingerprint,
    /// What the authority that issued the certificate calls its own key ([`Facts::issuer_key`]).
    pub issuer_key: Vec<u8>,
}

/// What a session with a node of this age may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    Valid,
    /// Nothing but renew: expired, within the operator's window.
    RenewOnly,
    /// Nothing: expired longer ago than the window.
    Expired,
}

impl PeerIdentity {
    /// Judges the certificate's age. `window` is how long after its end it may still be renewed.
    pub fn standing(&self, now: UnixTime, window: Duration) -> Standing {
        let renewable = self.not_after.as_secs().saturating_add(window.as_secs());
        if now <= self.not_after {
            Standing::Valid
        } else if now.as_secs() <= renewable {
            Standing::RenewOnly
        } else {
            Standing::Expired
        }
    }
}

/// The node behind a connection, from the certificates that its TLS handshake verified.
///
/// # Errors
/// No certificate, or not one of a node: common name `system:node:<name>`, organisation `system:nodes`.
pub fn peer_node(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, CertificateError> {
    let facts = Facts::read(chain.first().ok_or(CertificateError::Missing)?)?;
    let user = facts.common_name.ok_or(CertificateError::NoName)?;
    let node = user
        .strip_prefix(NODE_USER_PREFIX)
        .and_then(|name| name.parse().ok())
        .filter(|_| facts.organizations.iter().any(|o| o == NODES_GROUP) && !facts.is_ca);
    match node {
        Some(node) => Ok(PeerIdentity {
            node,
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
            key_fingerprint: facts.key,
            issuer_key: facts.issuer_key,
        }),
        None => Err(CertificateError::NotANode(user)),
    }
}

/// A user of the Kubernetes API as its client certificate names it (Kubernetes' X.509 client certificates).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The common name.
    pub name: String,
    /// The organisations.
    pub groups: Vec<String>,
}

/// The user behind a connection to the Kubernetes API, from the certificates that its TLS handshake verified.
///
/// # Errors
/// No certificate, or one without a common name.
pub fn peer_user(chain: &[CertificateDer<'_>]) -> Result<User, CertificateError> {
    let facts = Facts::read(chain.first().ok_or(CertificateError::Missing)?)?;
    Ok(User { name: facts.common_name.ok_or(CertificateError::NoName)?, groups: facts.organizations })
}

/// When a certificate is to be renewed: at two thirds of its life.
pub fn renew_at(not_before: UnixTime, not_after: UnixTime) -> UnixTime {
    let life = not_after.as_secs().saturating_sub(not_before.as_secs());
    unix(not_before.as_secs().saturating_add(life / 3 * 2))
}

/// Whether a certificate is to be renewed: because of its age, or because it was issued by a clock that showed
/// more than `slack` later than now.
pub fn is_due(facts: &Facts, now: UnixTime, slack: Duration) -> bool {
    let is_of_the_future = now.as_secs().saturating_add(slack.as_secs()) < facts.not_before.as_secs();
    is_of_the_future || now >= renew_at(facts.not_before, facts.not_after)
}

/// Certificates in PEM form (RFC 7468), one after the other.
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem_block("CERTIFICATE", der)).collect()
}

/// The certificates in a PEM text; other blocks are passed over.
///
/// # Errors
/// Not one certificate in it, or a block that is damaged.
pub fn from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match all {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(CertificateError::NotPem),
    }
}

/// One PEM block with lines of 64 characters (RFC 7468, section 2).
pub(super) fn pem_block(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        text.push_str(&BASE64.encode(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// A key's name in an extension, bounded.
fn key_name<'a>(
    certificate: &'a X509Certificate<'a>,
    find: impl Fn(&'a ParsedExtension<'a>) -> Option<&'a KeyIdentifier<'a>>,
) -> Vec<u8> {
    let found = certificate.extensions().iter().find_map(|extension| find(extension.parsed_extension()));
    found.map(|name| name.0).filter(|name| name.len() <= KEY_NAME_MAX).unwrap_or_default().to_vec()
}

fn single_common_name(name: &X509Name<'_>) -> Option<String> {
    let mut names = name.iter_common_name();
    match (names.next(), names.next()) {
        (Some(only), None) => only.as_str().ok().map(str::to_owned),
        _ => None,
    }
}

fn seconds(timestamp: i64) -> UnixTime {
    unix(u64::try_from(timestamp).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn renewal_is_due_at_two_thirds_of_a_life() {
        assert_eq!(renew_at(unix(1000), unix(1300)), unix(1200));
        assert_eq!(renew_at(unix(1300), unix(1000)), unix(1300));
    }

    #[test]
    fn an_expired_node_may_renew_within_the_window() {
        let peer = PeerIdentity {
            node: "pi".parse().unwrap(),
            serial: "01".into(),
            not_before: unix(100),
            not_after: unix(200),
            key_fingerprint: Fingerprint::from_bytes([0; 32]),
            issuer_key: Vec::new(),
        };
        let window = Duration::from_secs(50);
        assert_eq!(peer.standing(unix(0), window), Standing::Valid);
        assert_eq!(peer.standing(unix(200), window), Standing::Valid);
        assert_eq!(peer.standing(unix(201), window), Standing::RenewOnly);
        assert_eq!(peer.standing(unix(250), window), Standing::RenewOnly);
        assert_eq!(peer.standing(unix(251), window), Standing::Expired);
        assert_eq!(peer.standing(unix(251), Duration::MAX), Standing::RenewOnly);
    }

    proptest! {
        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let garbage = CertificateDer::from(bytes);
            prop_assert_eq!(Facts::read(&garbage), Err(CertificateError::NotX509));
            prop_assert!(peer_node(&[garbage]).is_err());
        }
    }
}
