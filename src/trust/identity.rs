//! What a board keeps of itself: which cluster it belongs to, and its key and certificate in two slots.
//!
//! The directory `<data-dir>/identity/` (mode 0700) holds files of mode 0600:
//!
//! | file | holds |
//! |---|---|
//! | `cluster.json` | cluster UID, node name, endpoints (the cloud's words, and the join code's), pins |
//! | `current.pem` | key and certificate that have connected |
//! | `next.pem` | key, and the certificate for it once it was issued, that have not connected yet |
//! | `floor` | the time that has certainly passed, and when it was confirmed ([`Kept`]) |
//! | `joined` | the id of the join code that it joined with, so that this code is not tried again |
//!
//! A key is written before it is first used, so that a request whose answer was lost is repeated with the
//! same key. A slot is one file, so that promotion is one rename. Every write is atomic, and nothing is
//! written that is there already.

use super::authority;
use super::certificate::{self, CERTIFICATE_MAX, CertificateError, Facts};
use super::clock::Kept;
use super::code::SecretId;
use super::code::{ENDPOINTS_MAX, PINS_MAX};
use super::names::{ClusterUid, Endpoint, Fingerprint, NodeName};
use super::{CertificateDer, UnixTime};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DIRECTORY: &str = "identity";
const CLUSTER: &str = "cluster.json";
const CURRENT: &str = "current.pem";
const NEXT: &str = "next.pem";
const FLOOR: &str = "floor";
const JOINED: &str = "joined";
/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 4 * CERTIFICATE_MAX as u64;

/// Why the identity cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{} is damaged ({what}): restore it from a backup, or remove it and join again with: holm edge --join CODE", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The board belongs to another cluster.
    #[error(
        "this node belongs to cluster {belongs}, not to {asked}: to move it, give --adopt-cluster beside the code"
    )]
    OtherCluster {
        /// The cluster it belongs to.
        belongs: ClusterUid,
        /// The cluster it was asked to join.
        asked: ClusterUid,
    },
    /// A certificate that cannot be read.
    #[error("the cloud issued something that is not a certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// A certificate for a key that this board did not ask for.
    #[error("the cloud issued a certificate for another key than this node asked for: ask again")]
    OtherKey,
    /// A certificate for another node.
    #[error("the cloud issued a certificate for another node than {0}")]
    OtherNode(NodeName),
    /// Nothing was asked for, or nothing has been issued.
    #[error("there is no new certificate to {0}")]
    NothingNext(&'static str),
    /// The key or the request could not be made.
    #[error("cannot make a key or certificate request: {0}")]
    Make(#[from] rcgen::Error),
}

/// Which cluster a board belongs to, and how it finds and recognises its cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterUid,
    /// This board's name in it.
    pub node: NodeName,
    /// Where the cloud may be found, to be tried in turn.
    pub endpoints: Vec<Endpoint>,
    /// The certificate authorities to trust.
    pub pins: Vec<Fingerprint>,
}

/// A key, and the certificate for it once there is one.
pub struct Slot {
    key: KeyPair,
    certificate: Option<(CertificateDer<'static>, Facts)>,
}

impl Slot {
    /// The certificate, once issued.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certificate.as_ref().map(|(der, _)| der)
    }

    /// What the certificate says, once issued.
    pub fn facts(&self) -> Option<&Facts> {
        self.certificate.as_ref().map(|(_, facts)| facts)
    }

    /// When the certificate is to be renewed: at two thirds of its life.
    pub fn renew_at(&self) -> Option<UnixTime> {
        self.facts().map(|facts| certificate::renew_at(facts.not_before, facts.not_after))
    }

    /// Fingerprint of the public key.
    pub fn key_fingerprint(&self) -> Fingerprint {
        Fingerprint::of_spki(&self.key.subject_public_key_info())
    }

    /// The private key as TLS takes it: a secret.
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn to_pem(&self) -> String {
        let certificate = self.certificate().map(|der| certificate::pem_block("CERTIFICATE", der));
        self.key.serialize_pem() + &certificate.unwrap_or_default()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot(key not shown, certificate {:?})", self.facts().map(|facts| &facts.serial))
    }
}

/// A board's identity, with the directory that it is kept in.
#[derive(Debug)]
pub struct Identity {
    directory: PathBuf,
    membership: Membership,
    /// The endpoints of the join code: whatever the cloud tells later, these are tried too.
    code_endpoints: Vec<Endpoint>,
    current: Option<Slot>,
    next: Option<Slot>,
}

impl Identity {
    /// Reads the identity under `data_dir`; `None` if the board never joined.
    ///
    /// A damaged `next.pem` is left out with a warning: it is made again.
    ///
    /// # Errors
    /// A file that cannot be read, or whose content is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
        let directory = data_dir.join(DIRECTORY);
        let Some(cluster) = read(&directory.join(CLUSTER))? else {
            return Ok(None);
        };
        let (membership, code_endpoints) = membership_from_json(&cluster)
            .map_err(|what| IdentityError::Damaged { path: directory.join(CLUSTER), what })?;
        let current = load_slot(&directory.join(CURRENT))?;
        let next = load_slot(&directory.join(NEXT)).unwrap_or_else(|error| {
            log::warn!("{error}; going on without it");
            None
        });
        Ok(Some(Identity { directory, membership, code_endpoints, current, next }))
    }

    /// Makes the board a member of a cluster, before its key and certificate exist.
    ///
    /// Joining the same cluster again under the same name keeps the keys and takes the new endpoints and pins;
    /// under another name it begins anew. Joining another cluster is refused unless `adopt_cluster`, which
    /// drops the keys of the old one.
    ///
    /// # Errors
    /// The board belongs to another cluster, or the directory cannot be read or written.
    pub fn join(
        data_dir: &Path,
        membership: Membership,
        adopt_cluster: bool,
    ) -> Result<Identity, IdentityError> {
        let kept = match Identity::load(data_dir) {
            // Adopting is also the way out of a damaged identity.
            Err(IdentityError::Damaged { .. }) if adopt_cluster => None,
            kept => kept?,
        };
        if let Some(kept) = &kept
            && kept.membership.cluster != membership.cluster
            && !adopt_cluster
        {
            return Err(IdentityError::OtherCluster {
                belongs: kept.membership.cluster.clone(),
                asked: membership.cluster,
            });
        }
        let directory = data_dir.join(DIRECTORY);
        make_directory(&directory)?;
        let (current, next) = match kept {
            Some(kept) if kept.is_same_node(&membership) => (kept.current, kept.next),
            _ => {
                remove(&directory, CURRENT)?;
                remove(&directory, NEXT)?;
                (None, None)
            }
        };
        let code_endpoints = membership.endpoints.clone();
        let identity = Identity { directory, membership, code_endpoints, current, next };
        identity.write_membership()?;
        Ok(identity)
    }

    /// Which cluster this is.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The key and certificate that have connected.
    pub fn current(&self) -> Option<&Slot> {
        self.current.as_ref()
    }

    /// The key, and the certificate once issued, that have not connected yet.
    pub fn next(&self) -> Option<&Slot> {
        self.next.as_ref()
    }

    /// What to connect with, in the order to try: a new certificate first, then the proven one.
    pub fn candidates(&self) -> impl Iterator<Item = &Slot> {
        [self.next(), self.current()].into_iter().flatten().filter(|slot| slot.certificate.is_some())
    }

    /// Where to look for the cloud, in turn: where it said that it is, then where the join code said. So a cloud
    /// that tells nonsense of itself can still be found to tell better.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let mut all = self.membership.endpoints.clone();
        all.extend(
            self.code_endpoints.iter().filter(|code| !self.membership.endpoints.contains(code)).cloned(),
        );
        all
    }

    /// Takes over endpoints and pins that the cloud told over an authenticated session; an empty list
    /// changes nothing. Returns whether anything changed.
    ///
    /// Of each, as many are kept as a join code may have. Pins without one of those that this board trusts already
    /// are passed over: whoever told them is vouched for by one of these, and it would lock itself out.
    ///
    /// # Errors
    /// The file cannot be written; the identity is then as before.
    pub fn learn(&mut self, endpoints: Vec<Endpoint>, pins: Vec<Fingerprint>) -> Result<bool, IdentityError> {
        let mut learned = self.membership.clone();
        if !endpoints.is_empty() {
            learned.endpoints = first_of(endpoints, ENDPOINTS_MAX);
        }
        let pins = first_of(pins, PINS_MAX);
        if pins.iter().any(|pin| self.membership.pins.contains(pin)) {
            learned.pins = pins;
        }
        if learned == self.membership {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.membership, learned);
        if let Err(error) = self.write_membership() {
            self.membership = before;
            return Err(error);
        }
        Ok(true)
    }

    /// A certificate request (PKCS #10 in DER) with a new key in the next slot. While a request is
    /// unanswered, the same key is used again; a certificate that was issued but never promoted is dropped.
    ///
    /// # Errors
    /// The key cannot be made or written.
    pub fn request(&mut self) -> Result<Vec<u8>, IdentityError> {
        let slot = match self.next.take() {
            Some(slot) if slot.certificate.is_none() => slot,
            _ => Slot { key: authority::new_key()?, certificate: None },
        };
        write(&self.directory, NEXT, slot.to_pem().as_bytes())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let user = format!("{}{}", certificate::NODE_USER_PREFIX, self.membership.node);
        params.distinguished_name.push(DnType::CommonName, user);
        let request = params.serialize_request(&slot.key)?.der().to_vec();
        self.next = Some(slot);
        Ok(request)
    }

    /// Puts the issued certificate beside its key in the next slot.
    ///
    /// # Errors
    /// No request was made; the certificate is for another key or node; the file cannot be written.
    pub fn install(&mut self, certificate: CertificateDer<'static>) -> Result<(), IdentityError> {
        let peer = certificate::peer_node(std::slice::from_ref(&certificate))?;
        let facts = Facts::read(&certificate)?;
        let slot = self.next.as_mut().ok_or(IdentityError::NothingNext("install"))?;
        if slot.key_fingerprint() != peer.key_fingerprint {
            return Err(IdentityError::OtherKey);
        }
        if peer.node != self.membership.node {
            return Err(IdentityError::OtherNode(self.membership.node.clone()));
        }
        slot.certificate = Some((certificate, facts));
        write(&self.directory, NEXT, slot.to_pem().as_bytes())
    }

    /// Makes the next slot the current one, after it has connected.
    ///
    /// # Errors
    /// There is no issued certificate in the next slot, or the file cannot be renamed.
    pub fn promote(&mut self) -> Result<(), IdentityError> {
        if self.next().and_then(Slot::certificate).is_none() {
            return Err(IdentityError::NothingNext("promote"));
        }
        let (from, to) = (self.directory.join(NEXT), self.directory.join(CURRENT));
        fs::rename(&from, &to).map_err(failed("rename", &from))?;
        sync_directory(&self.directory)?;
        self.current = self.next.take();
        Ok(())
    }

    fn is_same_node(&self, other: &Membership) -> bool {
        self.membership.cluster == other.cluster && self.membership.node == other.node
    }

    fn write_membership(&self) -> Result<(), IdentityError> {
        write(&self.directory, CLUSTER, membership_to_json(&self.membership, &self.code_endpoints).as_bytes())
    }
}

/// Reads the kept floor of time; `None` if none was kept or it is damaged, as it only ever helps. An operator
/// resets the floor by removing the file while the agent is stopped.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read_floor(data_dir: &Path) -> Result<Option<Kept>, IdentityError> {
    let text = read(&data_dir.join(DIRECTORY).join(FLOOR))?;
    Ok(text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
}

/// Writes the floor of time.
///
/// # Errors
/// The directory or the file cannot be written.
pub fn write_floor(data_dir: &Path, kept: &Kept) -> Result<(), IdentityError> {
    let directory = data_dir.join(DIRECTORY);
    make_directory(&directory)?;
    write(&directory, FLOOR, kept.to_string().as_bytes())
}

/// The join code that the board joined with, if that is known.
pub fn read_joined(data_dir: &Path) -> Option<SecretId> {
    let text = read(&data_dir.join(DIRECTORY).join(JOINED)).ok()??;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

/// Writes down the join code that the board joined with: its id, which is no secret.
///
/// # Errors
/// The file cannot be written.
pub fn write_joined(data_dir: &Path, id: &SecretId) -> Result<(), IdentityError> {
    write(&data_dir.join(DIRECTORY), JOINED, format!("{id}\n").as_bytes())
}

fn load_slot(path: &Path) -> Result<Option<Slot>, IdentityError> {
    let Some(pem) = read(path)? else {
        return Ok(None);
    };
    let damaged = |what| IdentityError::Damaged { path: path.to_owned(), what };
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| damaged("no private key in it"))?;
    let key = KeyPair::try_from(&key).map_err(|_| damaged("its private key cannot be read"))?;
    let mut slot = Slot { key, certificate: None };
    let mut certificates = CertificateDer::pem_slice_iter(&pem);
    if let Some(certificate) = certificates.next() {
        let certificate = certificate.map_err(|_| damaged("its certificate cannot be read"))?;
        let facts = Facts::read(&certificate).map_err(|_| damaged("its certificate cannot be read"))?;
        if facts.key != slot.key_fingerprint() {
            return Err(damaged("its certificate is for another key"));
        }
        slot.certificate = Some((certificate, facts));
    }
    Ok(Some(slot))
}

/// The first `most` of the items, each once.
fn first_of<T: PartialEq>(items: Vec<T>, most: usize) -> Vec<T> {
    let mut kept = Vec::new();
    for item in items {
        if kept.len() < most && !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

fn membership_to_json(membership: &Membership, code_endpoints: &[Endpoint]) -> String {
    let texts = |items: Vec<String>| Value::from(items);
    let json = json!({
        "clusterUID": membership.cluster.as_str(),
        "nodeName": membership.node.as_str(),
        "endpoints": texts(membership.endpoints.iter().map(Endpoint::to_string).collect()),
        "joinEndpoints": texts(code_endpoints.iter().map(Endpoint::to_string).collect()),
        "pins": texts(membership.pins.iter().map(Fingerprint::to_string).collect()),
    });
    format!("{json:#}\n")
}

/// The membership, and the endpoints of the join code.
fn membership_from_json(bytes: &[u8]) -> Result<(Membership, Vec<Endpoint>), &'static str> {
    let json: Value = serde_json::from_slice(bytes).map_err(|_| "not JSON")?;
    let membership = Membership {
        cluster: word(json.get("clusterUID")).ok_or("no valid clusterUID")?,
        node: word(json.get("nodeName")).ok_or("no valid nodeName")?,
        endpoints: words(json.get("endpoints")).ok_or("no valid endpoints")?,
        pins: words(json.get("pins")).filter(|pins| !pins.is_empty()).ok_or("no valid pins")?,
    };
    // Boards that joined with the first release have only the one list.
    let code_endpoints = words(json.get("joinEndpoints")).unwrap_or_default();
    Ok((membership, code_endpoints))
}

fn word<T: FromStr>(value: Option<&Value>) -> Option<T> {
    value?.as_str()?.parse().ok()
}

fn words<T: FromStr>(value: Option<&Value>) -> Option<Vec<T>> {
    value?.as_array()?.iter().map(|item| word(Some(item))).collect()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { action, path, source }
}

/// The content of a file, `None` if there is none. A file that others may read is closed to them.
fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let metadata = file.metadata().map_err(failed("read", path))?;
    if metadata.permissions().mode() & 0o077 != 0
        && let Err(error) = file.set_permissions(Permissions::from_mode(0o600))
    {
        // A board with a read-only disk still has to connect.
        log::warn!("{} can be read by others and cannot be closed to them: {error}", path.display());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(IdentityError::Damaged { path: path.to_owned(), what: "too long" });
    }
    Ok(Some(bytes))
}

/// Replaces a file's content so that after a power cut it is the old or the new one.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = directory.join(name);
    if read(&path)?.is_some_and(|kept| kept == bytes) {
        return Ok(());
    }
    let temporary = directory.join(format!(".{name}.tmp"));
    // One that a power cut left could have any mode.
    remove_file(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("create", &temporary))?;
    file.write_all(bytes).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(failed("replace", &path))?;
    sync_directory(directory)
}

fn remove(directory: &Path, name: &str) -> Result<(), IdentityError> {
    remove_file(&directory.join(name))
}

fn remove_file(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn make_directory(path: &Path) -> Result<(), IdentityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
    let mode = fs::metadata(path).map_err(failed("read", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("protect", path))?;
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), IdentityError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("write", path))
}

#[cfg(test)]
mod tests;
