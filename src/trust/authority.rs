//! The certificate authority of a cluster: made once, kept as a pair of PEM texts, issues three kinds of
//! certificate. Subjects are written here and never taken from a request.

use super::certificate::{self, CertificateError, Facts, NODE_USER_PREFIX, NODES_GROUP};
use super::clock::IssueTime;
use super::names::{ClusterUid, Fingerprint, NodeName};
use super::{CertificateDer, NoRandomness, UnixTime, unix};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::fmt;
use std::time::Duration;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Longest certificate request that is looked at, in bytes. One of ours has about 300.
pub const REQUEST_MAX: usize = 4096;
/// How long a certificate authority lives: longer than the boards do.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(30 * 365 * DAY);
/// How long a node's certificate lives where the operator says nothing else (`--node-certificate-life`).
pub const NODE_LIFE: Duration = Duration::from_secs(30 * DAY);
/// The longest life that an operator may give a node's certificate.
pub const NODE_LIFE_MAX: Duration = Duration::from_secs(366 * DAY);
/// The shortest: a reconnect must fit between its renewal and its end.
pub const NODE_LIFE_MIN: Duration = Duration::from_secs(60 * 60);
/// How long after its end a node's certificate can still be renewed where the operator says nothing else
/// (`--renew-window`): a season in a drawer.
pub const RENEW_WINDOW: Duration = Duration::from_secs(180 * DAY);
/// The longest window that an operator may give.
pub const RENEW_WINDOW_MAX: Duration = Duration::from_secs(366 * DAY);
/// How long the cloud's server certificate lives: it is renewed while the cloud runs.
pub const CLOUD_LIFE: Duration = Duration::from_secs(30 * DAY);
/// How long the administrator's certificate lives: it is renewed while the cloud runs.
pub const ADMIN_LIFE: Duration = Duration::from_secs(365 * DAY);
/// The group that may do everything (Kubernetes' default cluster role bindings).
pub const ADMIN_GROUP: &str = "system:masters";
/// The administrator's user name, as kubeadm writes it.
pub const ADMIN_USER: &str = "kubernetes-admin";

const DAY: u64 = 24 * 60 * 60;
/// Certificates begin their life this much earlier, in seconds, for clients whose clocks are a little behind.
pub const BACKDATED: u64 = 60 * 60;
/// What stands before the cluster's UID in the authority's common name.
const AUTHORITY_NAME_PREFIX: &str = "holm-ca ";
/// Last second that X.509 can write: 9999-12-31T23:59:59Z (RFC 5280, section 4.1.2.5).
const END_OF_TIME: u64 = 253_402_300_799;

/// Why a certificate was not issued, or an authority not read back.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request is longer than [`REQUEST_MAX`], which is not looked into.
    #[error("the certificate request has {0} bytes, more than {REQUEST_MAX}")]
    RequestTooLong(usize),
    /// The request is not PKCS #10 in DER.
    #[error("the certificate request is not PKCS #10 in DER")]
    RequestMalformed,
    /// The requester did not prove that it has the key.
    #[error("the certificate request is not signed by its own key")]
    RequestForged,
    /// A key other than ECDSA on P-256.
    #[error("the certificate request's key is not ECDSA on P-256")]
    RequestKey,
    /// The authority's own life is over.
    #[error("the certificate authority has expired: rotate it")]
    AuthorityExpired,
    /// The kept certificate cannot be read.
    #[error("the kept certificate authority is damaged, restore it from a backup: {0}")]
    Certificate(#[from] CertificateError),
    /// The kept certificate is not one that [`Authority::create`] made.
    #[error("the kept certificate authority is not one of this program's: restore it from a backup")]
    NotOurs,
    /// The kept key cannot be read, or belongs to another certificate.
    #[error("the kept key does not belong to the certificate authority: restore both from one backup")]
    Key,
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate authority with its key.
pub struct Authority {
    uid: ClusterUid,
    certificate: CertificateDer<'static>,
    facts: Facts,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority on P-256 whose name carries the cluster's UID.
    ///
    /// The caller stores it create-only: an authority is never overwritten.
    ///
    /// # Errors
    /// No random bytes, or the certificate could not be made.
    pub fn create(uid: &ClusterUid, when: IssueTime) -> Result<Authority, AuthorityError> {
        let key = new_key()?;
        let end = when.time().as_secs().saturating_add(AUTHORITY_LIFE.as_secs());
        let life = params(when, unix(end))?;
        let mut params = authority_params(uid)?;
        (params.not_before, params.not_after) = (life.not_before, life.not_after);
        let certificate = CertificateDer::from(params.self_signed(&key)?);
        Authority::assemble(certificate, key)
    }

    /// Reads back what [`Authority::certificate_pem`] and [`Authority::key_pem`] gave.
    ///
    /// # Errors
    /// Damaged, not made by [`Authority::create`], or a key of another certificate.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, AuthorityError> {
        let certificate = certificate::from_pem(certificate.as_bytes())?
            .into_iter()
            .next()
            .ok_or(CertificateError::NotPem)?;
        Authority::assemble(certificate, KeyPair::from_pem(key).map_err(|_| AuthorityError::Key)?)
    }

    /// The cluster that this authority speaks for.
    pub fn cluster_uid(&self) -> &ClusterUid {
        &self.uid
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What join codes pin: the fingerprint of the authority's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.facts.key
    }

    /// The authority's certificate in PEM form.
    pub fn certificate_pem(&self) -> String {
        certificate::to_pem(std::slice::from_ref(&self.certificate))
    }

    /// The authority's key in PEM form: the cluster's deepest secret.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Whether this authority issued a certificate, from what the certificate calls its issuer's key. The issuer's
    /// signature is for the TLS handshake to verify.
    pub fn has_issued(&self, issuer_key: &[u8]) -> bool {
        !issuer_key.is_empty() && issuer_key == self.facts.key_name
    }

    /// Certifies the key of another authority of the same cluster, so that whoever trusts this one recognises what
    /// the other one issues. It is good for as long as both authorities are.
    ///
    /// # Errors
    /// No random bytes, or the certificate could not be made.
    pub fn vouch_for(&self, other: &Authority) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = authority_params(&other.uid)?;
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + writable(self.facts.not_before.max(other.facts.not_before));
        params.not_after = epoch + writable(self.facts.not_after.min(other.facts.not_after));
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(other.issuer.key(), &self.issuer)?.into())
    }

    /// Issues a server certificate for the hub and the Kubernetes API: the cluster's fixed name and whatever
    /// names and addresses clients of the API use.
    ///
    /// # Errors
    /// The authority has expired, no random bytes, or the certificate could not be made.
    pub fn issue_cloud(
        &self,
        names: &[ServerName<'_>],
        when: IssueTime,
        life: Duration,
    ) -> Result<Credentials, AuthorityError> {
        let key = new_key()?;
        let mut params = self.leaf_params(when, life)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::CommonName, format!("holm-cloud {}", self.uid));
        params.subject_alt_names.push(SanType::DnsName(self.uid.cloud_name().try_into()?));
        for name in names {
            let san = match name {
                ServerName::DnsName(name) => SanType::DnsName(name.as_ref().try_into()?),
                ServerName::IpAddress(address) => SanType::IpAddress(std::net::IpAddr::from(*address)),
                _ => continue,
            };
            if !params.subject_alt_names.contains(&san) {
                params.subject_alt_names.push(san);
            }
        }
        self.credentials(&params, key)
    }

    /// Issues a node's client certificate for the key of its request; the subject is `system:node:<name>` in
    /// the group `system:nodes` whatever the request says.
    ///
    /// # Errors
    /// The authority has expired, no random bytes, or the certificate could not be made.
    pub fn issue_node(
        &self,
        node: &NodeName,
        request: &NodeRequest,
        when: IssueTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = self.leaf_params(when, life)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::OrganizationName, NODES_GROUP);
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER_PREFIX}{node}"));
        Ok(params.signed_by(&request.key, &self.issuer)?.into())
    }

    /// Issues the administrator's client certificate for the Kubernetes API.
    ///
    /// # Errors
    /// The authority has expired, no random bytes, or the certificate could not be made.
    pub fn issue_admin(&self, when: IssueTime, life: Duration) -> Result<Credentials, AuthorityError> {
        let mut params = self.leaf_params(when, life)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::OrganizationName, ADMIN_GROUP);
        params.distinguished_name.push(DnType::CommonName, ADMIN_USER);
        self.credentials(&params, new_key()?)
    }

    fn assemble(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Authority, AuthorityError> {
        let facts = Facts::read(&certificate)?;
        let uid = facts
            .common_name
            .as_deref()
            .and_then(|name| name.strip_prefix(AUTHORITY_NAME_PREFIX))
            .and_then(|uid| uid.parse().ok())
            .filter(|_| facts.is_ca)
            .ok_or(AuthorityError::NotOurs)?;
        if Fingerprint::of_spki(&key.subject_public_key_info()) != facts.key {
            return Err(AuthorityError::Key);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Authority { uid, certificate, facts, issuer })
    }

    fn leaf_params(&self, when: IssueTime, life: Duration) -> Result<CertificateParams, AuthorityError> {
        if when.time() >= self.facts.not_after {
            return Err(AuthorityError::AuthorityExpired);
        }
        let end = when.time().as_secs().saturating_add(life.as_secs());
        let mut params = params(when, unix(end).min(self.facts.not_after))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn credentials(&self, params: &CertificateParams, key: KeyPair) -> Result<Credentials, AuthorityError> {
        Ok(Credentials {
            certificate: params.signed_by(&key, &self.issuer)?.into(),
            key,
            vouched: Vec::new(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({}, {})", self.uid, self.facts.key)
    }
}

/// What is taken from a node's certificate request (PKCS #10): its public key and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRequest {
    key: SubjectPublicKeyInfo,
}

impl NodeRequest {
    /// Reads a request in DER, and verifies by its signature that the requester has the private key.
    ///
    /// # Errors
    /// Longer than [`REQUEST_MAX`], malformed, forged, or of a key that is not ECDSA on P-256.
    pub fn read(der: &[u8]) -> Result<NodeRequest, AuthorityError> {
        if der.len() > REQUEST_MAX {
            return Err(AuthorityError::RequestTooLong(der.len()));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| AuthorityError::RequestMalformed)?;
        if !rest.is_empty() {
            return Err(AuthorityError::RequestMalformed);
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| AuthorityError::RequestKey)?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(AuthorityError::RequestKey);
        }
        request.verify_signature().map_err(|_| AuthorityError::RequestForged)?;
        Ok(NodeRequest { key })
    }

    /// Fingerprint of the public key: what the redeemed join code is bound to.
    pub fn key_fingerprint(&self) -> Fingerprint {
        Fingerprint::of_spki(&self.key.subject_public_key_info())
    }
}

/// A certificate with the key that it certifies.
pub struct Credentials {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    /// Sent along by a server: what [`Authority::vouch_for`] gave.
    vouched: Vec<CertificateDer<'static>>,
}

impl Credentials {
    /// Reads back what [`Credentials::certificate_pem`] and [`Credentials::key_pem`] gave.
    ///
    /// # Errors
    /// Damaged, or a key of another certificate.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Credentials, AuthorityError> {
        let certificate = certificate::from_pem(certificate.as_bytes())?
            .into_iter()
            .next()
            .ok_or(CertificateError::NotPem)?;
        let key = KeyPair::from_pem(key).map_err(|_| AuthorityError::Key)?;
        if Fingerprint::of_spki(&key.subject_public_key_info()) != Facts::read(&certificate)?.key {
            return Err(AuthorityError::Key);
        }
        Ok(Credentials { certificate, key, vouched: Vec::new() })
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Further certificates that a server sends along: those of its authority's key by other authorities
    /// ([`Authority::vouch_for`]).
    pub fn vouched_for_by(&mut self, certificates: Vec<CertificateDer<'static>>) {
        self.vouched = certificates;
    }

    /// What a server sends along.
    pub fn vouched(&self) -> &[CertificateDer<'static>] {
        &self.vouched
    }

    /// The certificate in PEM form.
    pub fn certificate_pem(&self) -> String {
        certificate::to_pem(std::slice::from_ref(&self.certificate))
    }

    /// The key in PEM form: a secret.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The key as TLS takes it: a secret.
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(key not shown)")
    }
}

/// A new key of the one kind that is used everywhere: ECDSA on P-256.
pub(super) fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// What every authority's certificate has but its life.
fn authority_params(uid: &ClusterUid) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(new_serial()?);
    // No path length: a rotation certifies one authority's key by the other.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{AUTHORITY_NAME_PREFIX}{uid}"));
    Ok(params)
}

/// What every certificate has: a random serial, a life, and an empty subject to write into.
fn params(when: IssueTime, not_after: UnixTime) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(new_serial()?);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let not_before = unix(when.time().as_secs().saturating_sub(BACKDATED));
    params.not_before = epoch + writable(not_before);
    params.not_after = epoch + writable(not_after);
    Ok(params)
}

/// 126 random bits in 16 bytes, positive and without leading zeroes (RFC 5280, section 4.1.2.2).
fn new_serial() -> Result<SerialNumber, NoRandomness> {
    let random = u128::from_be_bytes(super::random()?);
    let serial = (random >> 2) | (1 << 126);
    Ok(SerialNumber::from_slice(&serial.to_be_bytes()))
}

/// The time since 1970, as far as X.509 can write it.
fn writable(time: UnixTime) -> Duration {
    Duration::from_secs(time.as_secs().min(END_OF_TIME))
}

#[cfg(test)]
mod tests;
