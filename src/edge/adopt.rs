//! Moving a board from one cluster to another (`--adopt-cluster`), and letting
//! it join its own again with a new code and a new key: a board that was
//! revoked, or whose certificate is too old to be renewed.
//!
//! The board stays what it is until the new cloud has let it in: the new
//! identity is made in a directory beside the old one and takes its place when
//! it is whole. Then the store forgets of which cluster it holds a whole set,
//! and the role starts again as the new node. What the old cluster ordered
//! stays in the store and runs on; the new cloud's difference, which counts
//! only once it has said its whole set ([`super::meta`]), takes it away.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use async_channel::Receiver;

use super::join::{self, JoinError};
use super::{Options, meta};
use crate::store::{Store, StoreError};
use crate::task::Tasks;
use crate::trust::clock::Clock;
use crate::trust::code::{JoinCode, SecretId};
use crate::trust::identity::{self, IdentityError, Membership};
use crate::trust::names::{ClusterUid, NodeName};

/// Where the identity is, in the data directory, and in it what is known of
/// the time ([`crate::trust::identity`]).
const IDENTITY: &str = "identity";
const FLOOR: &str = "floor";
/// Where a new identity is made, in the data directory.
const STAGING: &str = "adopting";
/// Where the old one goes until it is removed.
const LEFT: &str = "identity.left";

/// What a join code means to a board that belongs to a cluster already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// Nothing: there is none, or it is one of the board's own cluster.
    Nothing,
    /// It is another cluster's, and nobody said that the board is to move.
    Refused(ClusterUid),
    /// The board is to move.
    Move(ClusterUid),
    /// It is a new one of the board's own cluster, for a board of its name.
    Again,
    /// It is of the board's own cluster, for a board of another name.
    OtherName(NodeName),
}

/// Decides on a join code. `joined` is the code that the board joined with:
/// what a unit file gives it at every start.
pub fn given(code: Option<&JoinCode>, belongs: &Membership, joined: Option<&SecretId>, adopt: bool) -> Given {
    match code {
        Some(code) if code.cluster != belongs.cluster && adopt => Given::Move(code.cluster.clone()),
        Some(code) if code.cluster != belongs.cluster => Given::Refused(code.cluster.clone()),
        Some(code) if joined == Some(&code.id) => Given::Nothing,
        Some(JoinCode { node: Some(node), .. }) if *node != belongs.node => Given::OtherName(node.clone()),
        Some(_) => Given::Again,
        None => Given::Nothing,
    }
}

/// Why a board did not move.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The new cloud does not let it in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The store does not forget.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new identity cannot take the old one's place.
    #[error("cannot put the new identity in its place at {path} ({why})")]
    Place {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
}

/// Does at the start of a board that `belongs` somewhere what flags and code
/// ask for. What is received is the end of a move; nothing if there is none.
pub async fn begin(
    options: &Options,
    belongs: &Membership,
    clock: &Clock,
    store: &Store,
    tasks: &Tasks,
) -> Result<Receiver<()>, StoreError> {
    let (done, moved) = async_channel::bounded(1);
    let own = &belongs.cluster;
    match meta::synced_with(store)? {
        Some(other) if !other.is_empty() && other != own.as_str() => match options.adopt_cluster {
            true => meta::forget_cluster(store).await?,
            false => log::warn!(
                "what cluster {other} ordered runs on here, as cluster {own} may not take it away; to let it, start once with --adopt-cluster"
            ),
        },
        _ => {}
    }
    let code = options.join.clone().unwrap_or_default();
    let parsed = code.parse::<JoinCode>().ok();
    let joined = identity::read_joined(&options.data_dir);
    let given = given(parsed.as_ref(), belongs, joined.as_ref(), options.adopt_cluster);
    match (&given, code.is_empty()) {
        (Given::Nothing, true) => {}
        (Given::Nothing, false) if options.adopt_cluster && parsed.is_none() => {
            log::warn!("--adopt-cluster: the join code cannot be read; the board stays in cluster {own}");
        }
        (Given::Nothing, false) => log::info!("this board has joined already; the join code is not used"),
        (Given::OtherName(name), _) => log::warn!(
            "the join code is not used: it is for node {name}, and this board is node {}; to rename it, start with an empty --data-dir",
            belongs.node
        ),
        (Given::Refused(asked), _) => {
            let (belongs, asked) = (own.clone(), asked.clone());
            log::warn!("the join code is not used: {}", IdentityError::OtherCluster { belongs, asked });
        }
        (Given::Move(_) | Given::Again, _) => {
            let node = match &given {
                Given::Move(other) => {
                    log::info!("the board moves to cluster {other} once its cloud has let it in");
                    options.node_name.clone()
                }
                _ => {
                    log::info!("the board joins again with the new code; it goes on as it is until then");
                    belongs.node.clone()
                }
            };
            let (options, own) = (options.clone(), own.clone());
            let (clock, store, inner) = (clock.clone(), store.clone(), tasks.clone());
            tasks.spawn("adoption", async move {
                match adopt(&options.data_dir, &code, &node, &clock, &store, &inner).await {
                    // Nobody waits any more only when the role ends.
                    Ok(()) => drop(done.try_send(())),
                    Err(error) => log::error!("the board stays what it is in cluster {own}: {error}"),
                }
            });
        }
    }
    Ok(moved)
}

/// Joins the code's cluster, for as long as that takes, and makes its identity
/// the board's own. On an error the board belongs where it did.
pub async fn adopt(
    data_dir: &Path,
    code: &str,
    node: &NodeName,
    clock: &Clock,
    store: &Store,
    tasks: &Tasks,
) -> Result<(), AdoptError> {
    let staging = data_dir.join(STAGING);
    remove(&staging)?;
    join::join(&staging, code, node, clock, tasks).await?;
    // What is known of the time holds in every cluster.
    let floor = |directory: &Path| directory.join(IDENTITY).join(FLOOR);
    match fs::copy(floor(data_dir), floor(&staging)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(place(&staging)(error)),
        _ => {}
    }
    // First, as a cut between the two is then a reconnection to the old cloud.
    meta::forget_cluster(store).await?;
    swap(data_dir)
}

/// The staged identity takes the place of the board's.
fn swap(data_dir: &Path) -> Result<(), AdoptError> {
    let (own, left) = (data_dir.join(IDENTITY), data_dir.join(LEFT));
    fs::rename(&own, &left).map_err(place(&own))?;
    finish(data_dir)
}

/// Ends a move that a power cut interrupted; before the identity is read.
pub fn finish(data_dir: &Path) -> Result<(), AdoptError> {
    let (own, left) = (data_dir.join(IDENTITY), data_dir.join(LEFT));
    let staged = data_dir.join(STAGING).join(IDENTITY);
    if !own.exists() && left.exists() {
        let from = if staged.exists() { &staged } else { &left };
        fs::rename(from, &own).map_err(place(from))?;
        fs::File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(place(data_dir))?;
    }
    remove(&left)?;
    remove(&data_dir.join(STAGING))
}

fn remove(directory: &Path) -> Result<(), AdoptError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(place(directory)(error)),
        _ => Ok(()),
    }
}

fn place(path: &Path) -> impl FnOnce(io::Error) -> AdoptError {
    let path = path.to_path_buf();
    move |error| AdoptError::Place { path, why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(cluster: &ClusterUid, node: Option<&str>) -> JoinCode {
        JoinCode {
            endpoints: vec!["127.0.0.1".parse().unwrap()],
            pins: vec![crate::trust::names::Fingerprint::from_bytes([1; 32])],
            cluster: cluster.clone(),
            id: SecretId::random().unwrap(),
            secret: crate::trust::code::JoinSecret::random().unwrap(),
            expires: crate::trust::unix(0),
            node: node.map(|node| node.parse().unwrap()),
        }
    }

    #[test]
    fn a_board_moves_only_when_it_is_told_to_and_joins_again_only_with_another_code() {
        let (own, other) = (ClusterUid::random().unwrap(), ClusterUid::random().unwrap());
        let first = code(&own, None);
        let belongs = Membership {
            cluster: own.clone(),
            node: "pi".parse().unwrap(),
            endpoints: first.endpoints.clone(),
            pins: first.pins.clone(),
        };
        let judge = |code: Option<&JoinCode>, adopt| given(code, &belongs, Some(&first.id), adopt);
        for adopt in [false, true] {
            assert_eq!(judge(None, adopt), Given::Nothing);
            assert_eq!(judge(Some(&first), adopt), Given::Nothing);
            assert_eq!(judge(Some(&code(&own, None)), adopt), Given::Again);
            assert_eq!(judge(Some(&code(&own, Some("pi"))), adopt), Given::Again);
            let renames = Given::OtherName("barn".parse().unwrap());
            assert_eq!(judge(Some(&code(&own, Some("barn"))), adopt), renames);
        }
        assert_eq!(judge(Some(&code(&other, None)), false), Given::Refused(other.clone()));
        assert_eq!(judge(Some(&code(&other, None)), true), Given::Move(other));
    }

    /// Cuts the power before each of the steps of a move.
    #[test]
    fn after_a_cut_at_any_step_there_is_one_whole_identity() {
        let says = |directory: &Path| fs::read_to_string(directory.join("identity/who")).unwrap();
        for step in 0..=3 {
            let data = std::env::temp_dir().join(format!("holm-adopt-{}", crate::object::Uid::random()));
            for (directory, who) in [("identity", "old"), ("adopting/identity", "new")] {
                fs::create_dir_all(data.join(directory)).unwrap();
                fs::write(data.join(directory).join("who"), who).unwrap();
            }
            if step >= 1 {
                fs::rename(data.join("identity"), data.join(LEFT)).unwrap();
            }
            if step >= 2 {
                fs::rename(data.join("adopting/identity"), data.join("identity")).unwrap();
            }
            if step >= 3 {
                fs::remove_dir_all(data.join(LEFT)).unwrap();
            }
            finish(&data).unwrap();
            assert_eq!(says(&data), if step == 0 { "old" } else { "new" }, "step {step}");
            assert!(!data.join(LEFT).exists() && !data.join(STAGING).exists());
            fs::remove_dir_all(data).unwrap();
        }
    }
}
