//! Who is who: the certificate authority, join codes, a node's identity, and the clock that can be wrong.
//!
//! Reading order: [`names`] (validated words), [`clock`] (what time may be believed), [`certificate`]
//! (what a certificate says), [`authority`] (who writes certificates), [`code`] (the string that a person
//! carries to a board), [`record`] (what the cloud remembers of it) and [`publish`] (what it tells of itself to
//! those who make codes), [`identity`] (what a board keeps),
//! [`revocation`] (who may connect no more), [`tls`] (how the two ends verify each other).
//!
//! Everything here is synchronous and takes the time as an argument; nothing reads the system clock.

pub mod authority;
pub mod certificate;
pub mod clock;
pub mod code;
pub mod identity;
pub mod names;
pub mod publish;
pub mod record;
pub mod revocation;
pub mod rotation;
pub mod tls;

pub use rustls::pki_types::{CertificateDer, UnixTime};

use std::time::Duration;

/// The point in time `seconds` after 1970-01-01T00:00:00Z.
pub const fn unix(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Fills an array with random bytes from the operating system.
///
/// # Errors
/// The operating system has no randomness to give (early boot without an entropy source).
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes: wait for the boot to finish and try again")]
pub struct NoRandomness;
