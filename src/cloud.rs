//! The cloud role: wiring. It makes the parts, gives each the handles it
//! needs, and reads like the picture in ARCHITECTURE.md.

pub mod absence;
pub mod authorise;
pub mod authorities;
pub mod certificates;
pub mod cluster;
pub mod found;
pub mod hub;
pub mod kubeconfig;
pub mod lifecycle;
pub mod nodes;
pub mod restore;
pub mod revocation;
pub mod rotation;
pub mod scheduler;
pub mod time;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use smol::Async;

use crate::apiserver::{self, ApiServer};
use crate::net::door::Door;
use crate::net::{self, NetError};
use crate::object::KeyError;
use crate::store::{self, Store, StoreError};
use crate::task::Tasks;
use crate::trust::names::{Endpoint, NameError};
use crate::trust::rotation::Patience;
use authorities::Authorities;
use certificates::{Certificates, CertificatesError};
use cluster::{Cluster, ClusterError};
use found::FoundError;

/// How the cloud is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its store and kubeconfig are kept.
    pub data_dir: PathBuf,
    /// Where the hub listens for edges.
    pub listen: SocketAddr,
    /// Where the Kubernetes API listens.
    pub api_listen: SocketAddr,
    /// Where edges find the hub; the interfaces' addresses if empty.
    pub advertise: Vec<Endpoint>,
    /// Further names and addresses in the API's certificate.
    pub api_san: Vec<String>,
    /// How long nodes' certificates are good for.
    pub policy: hub::Policy,
}

/// Why the cloud cannot run. One line for a person.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is not what was written, or gone. It is never begun anew: all
    /// boards would belong to a cluster that is no more.
    #[error(
        "the cloud's store {path} is {what}: put a backup in its place with: holm cloud restore FILE --data-dir {}; the boards go on meanwhile", .path.parent().unwrap_or(path).display()
    )]
    Lost {
        /// Its file.
        path: PathBuf,
        /// What has become of it.
        what: String,
    },
    /// An address cannot be listened on.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The cluster's first objects could not be made.
    #[error(transparent)]
    Found(#[from] FoundError),
    /// There is no certificate to serve with.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// A name given for the API's certificate is none.
    #[error("--api-san {0:?} is neither a host name nor an address")]
    San(String),
    /// An address could not be written as an endpoint.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The cluster's API failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A name cannot be.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Runs the cloud for ever; it returns only if it cannot start.
pub async fn run(options: Options, tasks: Tasks) -> Result<(), CloudError> {
    let files = net::raise_file_limit();
    log::debug!("up to {files} connections and files may be open (RLIMIT_NOFILE)");
    // The ports first: an address in use is the commonest mistake.
    let hub_listener = net::listen("--listen", options.listen)?;
    let api_listener = net::listen("--api-listen", options.api_listen)?;
    let api_address = net::local_address(&api_listener, options.api_listen);

    let store = open(&options.data_dir)?;
    let cluster = Cluster::embedded(store.clone());
    let time = time::CloudTime::open(cluster.clone()).await?;
    let cluster_uid = found::namespaces(&cluster).await?;
    let authorities = Authorities::open(cluster.clone(), cluster_uid.clone(), time.issue()).await?;
    let endpoints = endpoints(&options, net::local_address(&hub_listener, options.listen))?;
    found::publish(&cluster, &cluster_uid, &authorities.now(), &endpoints).await?;

    let mut api_names =
        vec![ServerName::try_from("localhost").map_err(|_| CloudError::San("localhost".into()))?];
    api_names.extend(net::addresses().into_iter().map(|address| ServerName::IpAddress(address.into())));
    for host in endpoints.iter().map(Endpoint::host).chain(options.api_san.iter().map(String::as_str)) {
        api_names.push(ServerName::try_from(host.to_owned()).map_err(|_| CloudError::San(host.into()))?);
    }
    let certificates = Certificates::open(
        certificates::Subject {
            authorities: authorities.now(),
            names: api_names,
            api: reachable(api_address),
            data_dir: options.data_dir.clone(),
        },
        time.issue(),
    )?;
    let (hub_tls, api_tls) = (certificates.hub(), certificates.api());
    let kubeconfig = options.data_dir.join(kubeconfig::FILE);

    // The picture, from the API to the edges.
    let version = env!("CARGO_PKG_VERSION").into();
    let api = ApiServer::new(store, apiserver::Options { role: apiserver::Role::Cloud, version });
    let nodes = nodes::Nodes::start(&tasks, cluster.clone());
    let lifecycle = lifecycle::Lifecycle::start(&tasks, cluster.clone());
    scheduler::start(&tasks, cluster.clone());
    {
        let (tasks, listener, api) = (tasks.clone(), shared(api_listener)?, api.clone());
        let door = Door::new(&tasks, files);
        tasks.clone().supervise("api", move || {
            net::serve_api(tasks.clone(), listener.clone(), api_tls.clone(), api.clone(), door.clone())
        });
    }
    net::serve_socket(&tasks, &options.data_dir, api.clone())?;
    tasks.spawn("namespaces", api.clone().finish_namespaces());
    tasks.spawn("events", api.expire_events());
    time.start(&tasks);
    certificates.clone().start(&tasks, time.clone());
    rotation::Rotating {
        authorities: authorities.clone(),
        certificates: Some(certificates),
        endpoints: endpoints.clone(),
        time: time.clone(),
        patience: Patience::new(options.policy.life.saturating_add(options.policy.window)),
    }
    .start(&tasks);
    let revocations = revocation::Revocations::start(&tasks, cluster.clone(), time.clone()).await?;
    let context = Arc::new(hub::Context {
        cluster,
        cluster_uid,
        authority: authorities,
        policy: options.policy,
        time,
        revocations,
        endpoints: endpoints.clone(),
        nodes,
        lifecycle,
        refusals: hub::refusals::Ledger::new(&tasks),
    });
    {
        let (tasks, listener) = (tasks.clone(), shared(hub_listener)?);
        let door = Door::new(&tasks, files);
        tasks.clone().supervise("hub", move || {
            hub::serve(tasks.clone(), listener.clone(), hub_tls.clone(), context.clone(), door.clone())
        });
    }
    tasks.spawn("watchdog", crate::notify::watchdog());
    crate::notify::ready();

    let places: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    log::info!("edges are told to connect to {}", places.join(", "));
    log::info!(
        "the Kubernetes API is at https://{}; export KUBECONFIG={}",
        reachable(api_address),
        kubeconfig.display()
    );
    log::info!(
        "a board joins with the code that this prints: holm token create --data-dir {}",
        options.data_dir.display()
    );
    futures_lite::future::pending().await
}

fn open(data_dir: &Path) -> Result<Store, CloudError> {
    let options = store::Options {
        cache_bytes: 8 << 20,
        history: 8192,
        history_bytes: 8 << 20,
        verify: true,
        ..Default::default()
    };
    let path = data_dir.join("holm.redb");
    if data_dir.join(kubeconfig::FILE).is_file() && !path.exists() {
        let what = format!("gone, and a cluster was here ({} is still)", kubeconfig::FILE);
        return Err(CloudError::Lost { path, what });
    }
    Store::open(data_dir, options).map_err(|error| match error {
        StoreError::Damaged { path, at, why } => {
            CloudError::Lost { path, what: format!("damaged at {at} ({why})") }
        }
        other => other.into(),
    })
}

fn shared(listener: TcpListener) -> Result<Arc<Async<TcpListener>>, NetError> {
    Async::new(listener).map(Arc::new).map_err(|error| NetError::Listener(error.to_string()))
}

/// Where edges find the hub: as told, else every address of this machine.
fn endpoints(options: &Options, hub: SocketAddr) -> Result<Vec<Endpoint>, NameError> {
    if !options.advertise.is_empty() {
        return Ok(options.advertise.clone());
    }
    let addresses: Vec<IpAddr> = match hub.ip().is_unspecified() {
        true => net::addresses(),
        false => vec![hub.ip()],
    };
    // A loopback address serves only where there is no other.
    let (loopback, real): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_loopback);
    let chosen = if real.is_empty() { loopback } else { real };
    chosen.into_iter().map(|address| SocketAddr::new(address, hub.port()).to_string().parse()).collect()
}

/// The address that a program on this machine uses for a listener.
fn reachable(listener: SocketAddr) -> SocketAddr {
    match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V4([127, 0, 0, 1].into()), listener.port())
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), listener.port())
        }
        _ => listener,
    }
}
