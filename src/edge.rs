//! The edge role: wiring. It opens the store, adopts what runs, and goes on
//! with what it has; the cloud comes when it comes.

pub mod adopt;
pub mod hub;
pub mod join;
pub mod meta;
pub mod node;
pub mod pods;
pub mod recover;
pub mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_channel::bounded;
use futures_lite::FutureExt;

use crate::apiserver::{self, ApiServer};
use crate::cri::{self, Runtime};
use crate::net::{self, NetError};
use crate::object::{Key, Object};
use crate::store::{self, Store, StoreError};
use crate::task::Tasks;
use crate::trust::clock::Clock;
use crate::trust::identity::{self, Identity, IdentityError};
use crate::trust::names::NodeName;
use join::JoinError;

/// How the edge is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where identity and store are kept.
    pub data_dir: PathBuf,
    /// The join code, if one was given.
    pub join: Option<String>,
    /// Whether a code of another cluster than the board's own moves it there.
    pub adopt_cluster: bool,
    /// The node's name; for a board that has joined, the one it joined with
    /// counts.
    pub node_name: NodeName,
    /// The container runtime's socket.
    pub runtime_endpoint: String,
    /// Where the board's own API listens.
    pub api_listen: SocketAddr,
}

/// Why the edge cannot run. One line for a person.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The board could not join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The container runtime cannot be used at the very first start.
    #[error(transparent)]
    Runtime(#[from] cri::Error),
    /// What listens at the runtime's socket gives no answer that makes sense.
    #[error("{0}: see that a container runtime listens there, or name its socket with --runtime-endpoint")]
    NoRuntime(cri::Error),
    /// An address cannot be listened on.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Neither identity nor code.
    #[error(
        "this board has not joined a cloud yet: give it a code with --join or HOLM_JOIN (on the cloud, holm token create prints one)"
    )]
    Alone,
}

/// The data directory if none is given.
pub const DATA_DIR: &str = "/var/lib/holm/edge";

/// Why the role is to be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The board has moved to another cluster.
    Moved,
    /// Its store was damaged while it ran; opening it sets it aside.
    Damaged,
}

/// Runs the edge for ever; it returns if it cannot start, or is to be started
/// again.
pub async fn run(options: Options, tasks: Tasks) -> Result<Again, EdgeError> {
    let api_listener = net::listen("--api-listen", options.api_listen)?;
    let api_address = net::local_address(&api_listener, options.api_listen);
    let (store, setback) = recover::open(
        &options.data_dir,
        store::Options {
            history: 256,
            history_bytes: 1 << 20,
            watch_queue: 256,
            watch_bytes: 1 << 20,
            ..Default::default()
        },
    )?;
    let runtime = Runtime::new(tasks.executor().clone(), &options.runtime_endpoint)?;
    // The service is up from here on, though joining may wait for a network.
    tasks.spawn("watchdog", crate::notify::watchdog());
    crate::notify::ready();
    let clock = Clock::new(identity::read_floor(&options.data_dir)?, crate::boot::now());

    let identity = match identity(&options.data_dir)? {
        Some(identity) => identity,
        None => {
            let code = options.join.as_deref().ok_or(EdgeError::Alone)?;
            // A person is watching the first start: what will not work later
            // is said now.
            runtime.version().await.map_err(|error| match error {
                cri::Error::Lost { .. } | cri::Error::Timeout { .. } | cri::Error::Answer { .. } => {
                    EdgeError::NoRuntime(error)
                }
                error => EdgeError::Runtime(error),
            })?;
            join::join(&options.data_dir, code, &options.node_name, &clock, &tasks).await?
        }
    };
    let node_name = identity.membership().node.clone();
    let cluster = identity.membership().cluster.clone();
    log::info!("node {node_name} of cluster {cluster}");
    let moved = adopt::begin(&options, identity.membership(), &clock, &store, &tasks).await?;

    // The picture: orders come down from the hub through meta to the pods;
    // what they report goes up through the reporter to the hub.
    let (up, waiting) = report::Up::new(&store)?;
    if let Some(setback) = &setback {
        up.event(report::about_node(&node_name, "StoreRebuilt", &setback.message()));
    }
    let (reports, reported) = bounded(256);
    let pods = pods::start(
        tasks.executor().clone(),
        pod_options(&options.data_dir, &node_name),
        runtime.clone(),
        Arc::new(FromStore(store.clone())),
        reports,
    );
    {
        let (store, up, node_name) = (store.clone(), up.clone(), node_name.clone());
        tasks.supervise("reporter", move || {
            report::run(store.clone(), up.clone(), node_name.clone(), reported.clone())
        });
    }
    let epoch = hub::next_epoch(&store).await?;
    let meta = meta::Meta::start(&tasks, store.clone(), pods, cluster.clone());
    {
        let (runtime, up, store) = (runtime.clone(), up.clone(), store.clone());
        let (data_dir, name) = (options.data_dir.clone(), node_name.clone());
        tasks.supervise("node", move || {
            node::run(runtime.clone(), up.clone(), store.clone(), name.clone(), data_dir.clone())
        });
    }
    {
        let hub = hub::Hub {
            tasks: tasks.clone(),
            identity,
            clock,
            data_dir: options.data_dir.clone(),
            store: store.clone(),
            meta,
            up,
            waiting,
            epoch,
            renewal: Default::default(),
            connections: 0,
            silence: Default::default(),
        };
        // It goes on as it was, whatever a connection made it stumble over.
        let hub = Arc::new(smol::lock::Mutex::new(hub));
        tasks.supervise("hub", move || {
            let hub = hub.clone();
            async move { hub.lock().await.run().await }
        });
    }

    let watched = store.clone();
    let cloud = format!("cluster {cluster}");
    let role = apiserver::Role::Board { cloud };
    let api = ApiServer::new(store, apiserver::Options { role, version: env!("CARGO_PKG_VERSION").into() });
    net::serve_socket(&tasks, &options.data_dir, api.clone())?;
    net::serve_plain(&tasks, api_listener, api)?;
    log::info!(
        "the board's own API is at http://{api_address}; look with: holm get pods --data-dir {}",
        options.data_dir.display()
    );
    let moved = async {
        match moved.recv().await {
            Ok(()) => Again::Moved,
            Err(_) => futures_lite::future::pending().await,
        }
    };
    let damaged = async {
        let why = recover::damaged(&watched, recover::LOOK).await;
        log::error!("the board's store is damaged ({why}): starting again to set it aside");
        Again::Damaged
    };
    Ok(moved.or(damaged).await)
}

/// The identity of a board that has joined; `None` before that.
pub fn identity(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    if let Err(error) = adopt::finish(data_dir) {
        log::error!("{error}");
    }
    Ok(Identity::load(data_dir)?.filter(|identity| identity.candidates().next().is_some()))
}

/// A board with a data directory of its own keeps everything in it; the
/// default one writes container logs where log shippers look for them.
fn pod_options(data_dir: &Path, node_name: &NodeName) -> pods::Options {
    let usual = pods::Options::new(data_dir, node_name.as_str());
    match data_dir == Path::new(DATA_DIR) {
        true => usual,
        false => pods::Options { log_dir: data_dir.join("log/pods"), ..usual },
    }
}

/// ConfigMaps and Secrets for the pods.
struct FromStore(Store);

impl pods::Lookup for FromStore {
    fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.0.get(key).unwrap_or_else(|error| {
            log::error!("{key}: {error}");
            None
        })
    }

    fn host_ips(&self) -> Vec<String> {
        net::reachable_addresses()
    }
}
