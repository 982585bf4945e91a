//! How the two ends verify each other: rustls configurations with ring, made explicitly.
//!
//! The edge trusts a pinned authority and the cluster's fixed name, whatever address it connected to. It
//! ignores notBefore and judges notAfter by its floor of time, never by the system clock. The hub verifies
//! that a client certificate is from its authority and leaves its age to the session, so that an expired
//! node can still ask for a new certificate. There is no switch that turns any of this off.

use super::authority::Credentials;
use super::certificate::Facts;
use super::clock::Floor;
use super::identity::Slot;
use super::names::{ClusterUid, Fingerprint};
use super::{CertificateDer, UnixTime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::ServerName;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    NoServerSessionStorage, ParsedCertificate, ServerConfig, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most certificates that a peer may send beside its own.
const CHAIN_MAX: usize = 8;

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The slot's request has not been answered yet.
    #[error("this node has no certificate yet: join it with: holm edge --join CODE")]
    NoCertificate,
    /// A certificate or key that TLS cannot use.
    #[error("the certificate or key cannot be used: {0}")]
    Unusable(#[from] Error),
    /// No authority, or one that cannot be read.
    #[error("the certificate authority cannot be used: {0}")]
    Authority(#[from] VerifierBuilderError),
}

/// The edge's side of the link. Without `client` the hub lets it do nothing but join.
///
/// Connect with [`ClusterUid::server_name`]; the verifier looks for that name whatever is passed.
///
/// # Errors
/// The slot has no certificate, or its key cannot be used.
pub fn edge_client(
    cluster: &ClusterUid,
    pins: &[Fingerprint],
    floor: Floor,
    client: Option<&Slot>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = PinnedCloud {
        name: cluster.server_name(),
        pins: pins.to_vec(),
        floor,
        algorithms: provider.signature_verification_algorithms,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some(slot) => {
            let certificate = slot.certificate().ok_or(TlsError::NoCertificate)?;
            config.with_client_auth_cert(vec![certificate.clone()], slot.key_der())?
        }
    };
    config.time_provider = Arc::new(AtFloor(floor));
    // Every connection verifies anew: a pin, a floor or a certificate may have changed.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The hub's side of the link. A client without a certificate is let in, to join; one with a certificate is
/// let in only if one of `authorities` issued it, however old it is: read it with
/// [`super::certificate::peer_node`] and judge its age with [`super::certificate::PeerIdentity::standing`].
///
/// `authorities` holds the one that issued `credentials` and, during a rotation, the others.
///
/// # Errors
/// No authority, or a certificate or key that cannot be used.
pub fn hub_server(
    credentials: &Credentials,
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    Ok(Arc::new(server(credentials, authorities, &[&TLS13], Expiry::LeftToTheSession)?))
}

/// The Kubernetes API's side. A client without a certificate is let in, to show a token; one with a
/// certificate must have one of ours that has not expired: read it with [`super::certificate::peer_user`].
///
/// # Errors
/// No authority, or a certificate or key that cannot be used.
pub fn api_server(
    credentials: &Credentials,
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = server(credentials, authorities, &[&TLS13, &TLS12], Expiry::Refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What a listener serves TLS with, which may be exchanged while it listens: connections that are there go
/// on, new ones get the new certificate. Clones share it.
#[derive(Debug, Clone)]
pub struct Serving(Arc<Mutex<Arc<ServerConfig>>>);

impl Serving {
    /// Begins with a configuration.
    pub fn new(config: Arc<ServerConfig>) -> Serving {
        Serving(Arc::new(Mutex::new(config)))
    }

    /// The configuration for a connection that begins now.
    pub fn now(&self) -> Arc<ServerConfig> {
        self.lock().clone()
    }

    /// New connections get this one from now on.
    pub fn exchange(&self, config: Arc<ServerConfig>) {
        *self.lock() = config;
    }

    fn lock(&self) -> MutexGuard<'_, Arc<ServerConfig>> {
        // Every change to it is a plain assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a failed handshake means, as one line for a person; errors that are not TLS's are shown as they are.
pub fn explain(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the server is not this cluster's cloud: none of the pinned certificate authorities vouches for it \
             (check the endpoint, or join again with a new code)"
                .into()
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "the server is the cloud of another cluster: check the endpoint".into(),
        Some(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "the cloud's certificate has expired: see that holm cloud runs with the right time; if this board was \
             told a time that is too late, stop holm edge, remove identity/floor in its data directory, and \
             start it again"
                .into(),
        Some(Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        )) => "the cloud does not accept this node's certificate: join again with a new code".into(),
        Some(Error::InvalidMessage(_)) => {
            "the server does not speak TLS: check the endpoint's port".into()
        }
        Some(other) => format!("TLS failed: {other}"),
        None => error.to_string(),
    }
}

fn server(
    credentials: &Credentials,
    authorities: &[CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
    expiry: Expiry,
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .clear_root_hint_subjects()
        .build()?;
    let mut certificates = vec![credentials.certificate().clone()];
    certificates.extend_from_slice(authorities);
    certificates.extend_from_slice(credentials.vouched());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(Arc::new(OurClients { chain, expiry }))
        .with_single_cert(certificates, credentials.key_der())?;
    // A resumed session would skip the client's verification, and remembering costs memory for each client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads all certificates of a chain, bounded; the first moment at which every one of them is valid.
fn read_chain(
    end_entity: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<(Vec<Facts>, UnixTime), Error> {
    if others.len() > CHAIN_MAX {
        return Err(CertificateError::BadEncoding.into());
    }
    let facts: Result<Vec<Facts>, _> = std::iter::once(end_entity).chain(others).map(Facts::read).collect();
    let facts = facts.map_err(|_| CertificateError::BadEncoding)?;
    let begun = facts.iter().map(|facts| facts.not_before).max().unwrap_or(super::unix(0));
    Ok((facts, begun))
}

/// What an edge's TLS takes for the time: the system clock has no say, and may show anything.
#[derive(Debug)]
struct AtFloor(Floor);

impl TimeProvider for AtFloor {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.time())
    }
}

/// Verifies the cloud for an edge.
#[derive(Debug)]
struct PinnedCloud {
    name: ServerName<'static>,
    pins: Vec<Fingerprint>,
    floor: Floor,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedCloud {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (facts, begun) = read_chain(end_entity, intermediates)?;
        let now = self.floor.time().max(begun);
        let mut roots = RootCertStore::empty();
        for (certificate, facts) in intermediates.iter().zip(facts.iter().skip(1)) {
            if facts.is_ca && self.pins.contains(&facts.key) && now <= facts.not_after {
                roots.add(certificate.clone().into_owned())?;
            }
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, self.algorithms.all)?;
        verify_server_name(&parsed, &self.name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What becomes of a client certificate of ours that has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expiry {
    /// It is authentic, and what it may still do is decided after the handshake.
    LeftToTheSession,
    /// It fails the handshake.
    Refused,
}

/// Verifies clients for the hub and the Kubernetes API.
#[derive(Debug)]
struct OurClients {
    chain: Arc<dyn ClientCertVerifier>,
    expiry: Expiry,
}

impl ClientCertVerifier for OurClients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // What we issued began its life when our clock said so; that this clock was set back since then is
        // no reason to lock anybody out.
        let (_, begun) = read_chain(end_entity, intermediates)?;
        let judged_at = match self.expiry {
            Expiry::LeftToTheSession => begun,
            Expiry::Refused => now.max(begun),
        };
        self.chain.verify_client_cert(end_entity, intermediates, judged_at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
