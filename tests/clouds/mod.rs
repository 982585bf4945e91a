//! Clouds in this process: hubs over real TLS on loopback, as many as are wanted over one store.
#![allow(dead_code, reason = "each test uses a part of it")]

use holm::cli::token;
use holm::cloud::authorities::Authorities;
use holm::cloud::certificates::{Certificates, Subject};
use holm::cloud::cluster::Cluster;
use holm::cloud::revocation::Revocations;
use holm::cloud::time::CloudTime;
use holm::cloud::{found, hub, lifecycle, nodes, rotation};
use holm::edge::hub::connect;
use holm::link::frame::Join;
use holm::link::{Body, Connection};
use holm::net::door::Door;
use holm::object::Key;
use holm::store::{self, Store};
use holm::task::Tasks;
use holm::trust::clock::{Floor, IssueTime};
use holm::trust::code::JoinCode;
use holm::trust::identity::{Identity, Membership};
use holm::trust::names::{ClusterUid, Endpoint, NodeName};
use holm::trust::publish::Published;
use holm::trust::record::{NAMESPACE, secret_name};
use holm::trust::rotation::Patience;
use holm::trust::tls::{self, Serving};
use holm::trust::{UnixTime, random};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A folder that is removed at the end of the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let name = random::<8>().unwrap().map(|byte| format!("{byte:02x}")).concat();
        let folder = std::env::temp_dir().join(format!("holm-clouds-{name}"));
        std::fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a test on the executor that its clouds and boards run on.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Tasks) -> F) {
    let tasks = Tasks::default();
    let executor = tasks.executor().clone();
    smol::block_on(executor.run(test(tasks)));
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..3000 {
        if is_so().await {
            return;
        }
        smol::Timer::after(Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

pub fn now() -> IssueTime {
    IssueTime::check(UnixTime::now(), Floor::INITIAL).unwrap()
}

/// A cluster: one store.
pub struct Site {
    scratch: Arc<Scratch>,
    pub tasks: Tasks,
    pub cluster: Cluster,
    pub uid: ClusterUid,
}

impl Site {
    pub async fn new(tasks: &Tasks) -> Site {
        let scratch = Arc::new(Scratch::new());
        let cluster =
            Cluster::embedded(Store::open(&scratch.path("store"), store::Options::default()).unwrap());
        let uid = found::namespaces(&cluster).await.unwrap();
        Site { scratch, tasks: tasks.clone(), cluster, uid }
    }

    /// One more hub over the store.
    pub async fn replica(&self) -> Replica {
        self.patient_replica(Patience::new(Duration::from_secs(3600))).await
    }

    /// One that waits so long in a rotation.
    pub async fn patient_replica(&self, patience: Patience) -> Replica {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let time = CloudTime::open(self.cluster.clone()).await.unwrap();
        let authorities =
            Authorities::open(self.cluster.clone(), self.uid.clone(), time.issue()).await.unwrap();
        let folder = self.scratch.path(&format!("cloud-{}", endpoint.port()));
        std::fs::create_dir_all(&folder).unwrap();
        let subject = Subject {
            authorities: authorities.now(),
            names: vec!["localhost".try_into().unwrap()],
            api: ([127, 0, 0, 1], 6443).into(),
            data_dir: folder.clone(),
        };
        let certificates = Certificates::open(subject, time.issue()).unwrap();
        let (tls, api) = (certificates.hub(), certificates.api());
        let endpoints = vec![endpoint.clone()];
        rotation::Rotating {
            authorities: authorities.clone(),
            certificates: Some(certificates),
            endpoints: endpoints.clone(),
            time: time.clone(),
            patience,
        }
        .start(&self.tasks);
        let context = Arc::new(hub::Context {
            cluster: self.cluster.clone(),
            cluster_uid: self.uid.clone(),
            authority: authorities.clone(),
            policy: hub::Policy::default(),
            refusals: hub::refusals::Ledger::new(&self.tasks),
            revocations: Revocations::start(&self.tasks, self.cluster.clone(), time.clone()).await.unwrap(),
            time,
            endpoints,
            nodes: nodes::Nodes::start(&self.tasks, self.cluster.clone()),
            lifecycle: lifecycle::Lifecycle::start(&self.tasks, self.cluster.clone()),
        });
        let door = Door::new(&self.tasks, holm::net::raise_file_limit());
        let (tasks, listener) = (self.tasks.clone(), Arc::new(smol::Async::new(listener).unwrap()));
        let serve = hub::serve(tasks, listener, tls, context, door.clone());
        self.tasks.spawn("hub", async move { serve.await.unwrap() });
        Replica { endpoint, door, authorities, api, folder }
    }

    /// A new code for what is published.
    pub async fn code(&self, published: &Published) -> JoinCode {
        let ttl = Duration::from_secs(3600);
        let (code, record) = token::new_code(published.clone(), None, ttl, UnixTime::now()).unwrap();
        let key = Key::core("secrets", NAMESPACE, &secret_name(&code.id)).unwrap();
        self.cluster.create(&key, record.to_secret(&code.id)).await.unwrap();
        code
    }
}

/// A hub, and what belongs to it.
pub struct Replica {
    pub endpoint: Endpoint,
    pub door: Arc<Door>,
    pub authorities: Authorities,
    /// What its API serves with.
    pub api: Serving,
    /// Where its kubeconfig is.
    pub folder: PathBuf,
}

impl Replica {
    /// What it tells those who make codes.
    pub fn published(&self) -> Published {
        let set = self.authorities.now();
        Published {
            cluster: set.issuing.cluster_uid().clone(),
            endpoints: vec![self.endpoint.clone()],
            authorities: set.certificates(),
        }
    }
}

/// A board that has a code and no certificate yet.
pub struct Asker {
    pub identity: Identity,
    pub ask: Join,
}

impl Asker {
    pub fn new(folder: PathBuf, code: &JoinCode, node: &str) -> Asker {
        let membership = Membership {
            cluster: code.cluster.clone(),
            node: node.parse().unwrap(),
            endpoints: code.endpoints.clone(),
            pins: code.pins.clone(),
        };
        let mut identity = Identity::join(&folder, membership, false).unwrap();
        let ask = Join {
            secret_id: code.id.to_string(),
            secret: *code.secret.as_bytes(),
            node: node.into(),
            request: identity.request().unwrap(),
        };
        Asker { identity, ask }
    }

    /// Asks once at one hub.
    pub async fn ask(&self, tasks: &Tasks, endpoint: &Endpoint) -> Result<Body, String> {
        let mut connection = stranger(tasks, endpoint, &self.identity).await?;
        connection.send_plain(Body::Join(self.ask.clone()));
        let answer = connection.first(Duration::from_secs(20)).await;
        connection.close().await;
        answer
    }
}

/// A connection without a certificate.
pub async fn stranger(tasks: &Tasks, endpoint: &Endpoint, of: &Identity) -> Result<Connection, String> {
    let membership = of.membership();
    let config = tls::edge_client(&membership.cluster, &membership.pins, Floor::INITIAL, None).unwrap();
    let connected = connect::connect(tasks, endpoint, &membership.cluster, config).await;
    connected.map_err(|error| error.to_string())
}

pub fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}
