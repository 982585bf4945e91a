//! The link, as a real cloud serves it: handshakes, a thousand connections,
//! a thousand ConfigMaps over a slow network.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use holm::edge::hub::connect::connect;
use holm::edge::hub::exchange::{Deed, Exchange};
use holm::link::frame::{DIGEST_ALGORITHM, FEATURE_LZ4, Hello, VERSION_MAX, VERSION_MIN};
use holm::link::sync::{Set, set_digest};
use holm::link::{Body, Connection};
use holm::task::Tasks;
use holm::trust::UnixTime;
use holm::trust::authority::{Authority, NodeRequest};
use holm::trust::clock::{Floor, IssueTime};
use holm::trust::identity::{Identity, Membership};
use holm::trust::names::{Endpoint, NodeName};
use holm::trust::tls;
use serde_json::{Value, json};
use smol::Async;

use crate::Stop;
use crate::api::Api;
use crate::host::world::World;
use crate::process::{Memory, Usage};
use crate::table::Figure;

/// Handshakes that are timed one by one.
const HANDSHAKES: usize = 50;
/// Connections that stay.
const CONNECTIONS: usize = 1000;
/// ConfigMaps that go to one node.
const CONFIG_MAPS: usize = 1000;
/// Pods that name them.
const NAMING: usize = 10;
/// One way through the slow network.
const ONE_WAY: Duration = Duration::from_millis(100);
/// Times that they go.
const TIMES: usize = 3;

/// What nodes are made of.
struct Maker<'a> {
    authority: Authority,
    folder: &'a Path,
    tasks: Tasks,
}

impl Maker<'_> {
    fn identity(&self, name: &str, hub: SocketAddr) -> Identity {
        let directory = self.folder.join("nodes").join(name);
        let node: NodeName = name.parse().unwrap();
        let endpoint: Endpoint = hub.to_string().parse().unwrap();
        let membership = Membership {
            cluster: self.authority.cluster_uid().clone(),
            node: node.clone(),
            endpoints: vec![endpoint],
            pins: vec![self.authority.fingerprint()],
        };
        let mut identity = Identity::join(&directory, membership, false).unwrap();
        let request = NodeRequest::read(&identity.request().unwrap()).unwrap();
        let when = IssueTime::check(UnixTime::now(), Floor::INITIAL).unwrap();
        let life = Duration::from_secs(24 * 3600);
        identity.install(self.authority.issue_node(&node, &request, when, life).unwrap()).unwrap();
        identity
    }

    /// Connects as far as the cloud's `Welcome`; says whether it wants an
    /// inventory.
    async fn connect(&self, identity: &Identity) -> (Connection, bool) {
        let membership = identity.membership();
        let slot = identity.candidates().next();
        let config = tls::edge_client(&membership.cluster, &membership.pins, Floor::INITIAL, slot).unwrap();
        let endpoint = &membership.endpoints[0];
        let mut connection = connect(&self.tasks, endpoint, &membership.cluster, config).await.unwrap();
        connection.send_plain(Body::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch: 1,
            generation: 1,
            digest_algorithm: DIGEST_ALGORITHM,
            digest: set_digest(&Set::new()),
            features: vec![FEATURE_LZ4.into()],
            ..Hello::default()
        }));
        match connection.first(Duration::from_secs(20)).await {
            Ok(Body::Welcome(welcome)) => {
                let keep_alive = Duration::from_secs(welcome.keep_alive_secs.into());
                connection.agree(true, welcome.window, keep_alive);
                (connection, welcome.inventory)
            }
            other => panic!("no Welcome: {other:?}"),
        }
    }
}

/// The cluster's authority, as its Secret keeps it.
async fn authority(api: &Api) -> Authority {
    let secret = api.ask("GET", "/api/v1/namespaces/holm-system/secrets/holm-ca", None).await;
    let part = |name: &str| {
        let text = secret["data"][name].as_str().unwrap();
        String::from_utf8(data_encoding::BASE64.decode(text.as_bytes()).unwrap()).unwrap()
    };
    Authority::from_pem(&part("tls.crt"), &part("tls.key")).unwrap()
}

/// Measures all of it; the cloud of `world` runs.
pub fn measure(world: &World, tasks: &Tasks, stop: &Stop, figures: &mut Vec<Figure>, step: &impl Fn(&str)) {
    let api = Api::new(&world.cloud_dir(), tasks);
    let hub = SocketAddr::from((Ipv4Addr::LOCALHOST, world.hub_port()));
    smol::block_on(tasks.executor().run(stop.or(async {
        let folder = world.cloud_dir().with_file_name("link");
        let maker = Maker { authority: authority(&api).await, folder: &folder, tasks: tasks.clone() };
        step("handshakes");
        handshakes(&maker, hub, world.cloud_pid(), figures).await;
        step("a thousand connections");
        connections(&maker, hub, world.cloud_pid(), figures).await;
        step("a thousand ConfigMaps over a slow network");
        config_maps(&maker, hub, &api, figures).await;
    })));
}

async fn handshakes(maker: &Maker<'_>, hub: SocketAddr, cloud: u32, figures: &mut Vec<Figure>) {
    let identity = maker.identity("handshake", hub);
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    let before = Usage::of(cloud);
    for _ in 0..HANDSHAKES {
        let started = Instant::now();
        drop(TcpStream::connect(hub).unwrap());
        bare.push(started.elapsed().as_secs_f64() * 1e3);
        let started = Instant::now();
        let (connection, _) = maker.connect(&identity).await;
        whole.push(started.elapsed().as_secs_f64() * 1e3);
        connection.close().await;
    }
    let processor = Usage::of(cloud).cpu_since(&before) * 1e3 / HANDSHAKES as f64;
    figures.push(Figure::new("link: TCP connect alone (the floor)", "ms", bare));
    figures.push(Figure::new("link: TCP, mutual TLS, websocket, Hello, Welcome", "ms", whole));
    figures.push(Figure::new("link: the cloud's processor time a handshake", "ms", vec![processor]));
}

async fn connections(maker: &Maker<'_>, hub: SocketAddr, cloud: u32, figures: &mut Vec<Figure>) {
    let identities: Vec<Identity> =
        (0..CONNECTIONS).map(|number| maker.identity(&format!("node-{number}"), hub)).collect();
    let own = std::process::id();
    let before = (Memory::of(cloud), Memory::of(own));
    let mut open = Vec::with_capacity(CONNECTIONS);
    for identity in &identities {
        open.push(maker.connect(identity).await.0);
    }
    // What handshakes needed is given back by then.
    smol::Timer::after(Duration::from_secs(3)).await;
    let after = (Memory::of(cloud), Memory::of(own));
    let each = |before: f64, after: f64| vec![(after - before) * 1024.0 / CONNECTIONS as f64];
    figures.push(Figure::new(
        "link: the cloud's memory a connection, of 1,000 (anonymous)",
        "KiB",
        each(before.0.anonymous, after.0.anonymous),
    ));
    figures.push(Figure::new(
        "link: an edge's end of a connection, of 1,000 (anonymous)",
        "KiB",
        each(before.1.anonymous, after.1.anonymous),
    ));
    drop(open);
}

async fn config_maps(maker: &Maker<'_>, hub: SocketAddr, api: &Api, figures: &mut Vec<Figure>) {
    let all = "/api/v1/namespaces/default";
    for number in 0..CONFIG_MAPS {
        let value = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("far-{number}")},
            "data": {"key": format!("value {number}, and some more of it to make a line")},
        });
        api.ask("POST", &format!("{all}/configmaps"), Some(&value)).await;
    }
    for pod in 0..NAMING {
        let sources: Vec<Value> = (0..CONFIG_MAPS)
            .skip(pod)
            .step_by(NAMING)
            .map(|number| json!({"configMap": {"name": format!("far-{number}")}}))
            .collect();
        let value = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("far-{pod}")},
            "spec": {
                "nodeName": "far", "containers": [{"name": "c", "image": "none"}],
                "volumes": [{"name": "v", "projected": {"sources": sources}}],
            },
        });
        api.ask("POST", &format!("{all}/pods"), Some(&value)).await;
    }
    let listener = Async::<TcpListener>::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let slow = listener.get_ref().local_addr().unwrap();
    let tasks = maker.tasks.clone();
    maker.tasks.spawn("slow network", async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = Async::<TcpStream>::connect(hub).await.unwrap();
            let (near_reader, near_writer) = futures_lite::io::split(near);
            let (far_reader, far_writer) = futures_lite::io::split(far);
            tasks.spawn("slow up", slowly(tasks.clone(), near_reader, far_writer));
            tasks.spawn("slow down", slowly(tasks.clone(), far_reader, near_writer));
        }
    });
    let identity = maker.identity("far", slow);
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let (mut connection, inventory) = maker.connect(&identity).await;
        let started = Instant::now();
        let mut exchange = Exchange::new(inventory.then_some(&Set::new()));
        while let Some(part) = exchange.inventory() {
            connection.send_plain(part);
        }
        let mut held = 0;
        'synced: loop {
            let outcome = exchange.hear(connection.next().await, |_| None);
            for deed in outcome.deeds {
                match deed {
                    Deed::Apply(orders) => held += orders.len(),
                    Deed::Synced => break 'synced,
                    _ => {}
                }
            }
            for seq in outcome.done {
                connection.done(seq);
            }
            assert!(outcome.closed.is_none(), "{:?}", outcome.closed);
        }
        times.push(started.elapsed().as_secs_f64() * 1e3);
        assert_eq!(held, CONFIG_MAPS + NAMING);
        connection.close().await;
    }
    figures.push(Figure::new("link: 1,000 ConfigMaps to one node, round trip 200 ms", "ms", times));
}

/// Copies bytes, each as long after it came as the way is.
async fn slowly(
    tasks: Tasks,
    mut from: impl futures_lite::AsyncRead + Unpin,
    mut to: impl futures_lite::AsyncWrite + Unpin + Send + 'static,
) {
    let (sender, receiver) = async_channel::bounded::<(Instant, Vec<u8>)>(1024);
    tasks.spawn("slow way", async move {
        while let Ok((due, bytes)) = receiver.recv().await {
            smol::Timer::at(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.close().await;
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if sender.send((Instant::now() + ONE_WAY, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}
