//! Much of everything, and what neighbours feel of it.

use super::host::{
    self,
    liar::{Cloud, Talk},
};
use super::{key, node, register, run, settled, status};
use async_tungstenite::tungstenite::Message;
use async_tungstenite::tungstenite::protocol::frame::Frame as WsFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::{Data as WsData, OpCode};
use holm::link::Body;
use holm::link::frame::*;
use holm::trust::clock::Floor;
use holm::trust::code::JoinCode;
use holm::trust::tls;
use rustls::ClientConnection;
use serde_json::json;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One flood at a time: what is measured in one would be the other's.
static ALONE: Mutex<()> = Mutex::new(());

/// A ConfigMap's content that does not compress.
fn noise(bytes: usize, seed: u64) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| random.alphanumeric()).collect()
}

/// The n-th thing that is asked, as a frame.
type Question = Box<dyn Fn(u64) -> Vec<u8> + Send>;

#[test]
fn a_node_that_never_reads_costs_only_its_own_set() {
    const CHANGES: u64 = 150;
    const BIG: usize = 400_000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let cloud = Cloud::start("hostile-silent").await;
        let config = async |name: &str, text: String, method: &str| {
            let path = match method {
                "POST" => "/api/v1/namespaces/default/configmaps".to_owned(),
                _ => format!("/api/v1/namespaces/default/configmaps/{name}"),
            };
            let config = json!({"metadata": {"name": name}, "data": {"text": text}});
            cloud.api(method, &path, Some(config)).await;
        };
        config("big", noise(BIG, 0), "POST").await;
        config("small", "0".into(), "POST").await;
        cloud.bind_pod("silent-pod", "silent", json!([{"name": "v", "configMap": {"name": "big"}}])).await;
        cloud.bind_pod("other-pod", "other", json!([{"name": "v", "configMap": {"name": "small"}}])).await;
        let (silent, other) = (cloud.join("silent").await, cloud.join("other").await);
        let silent = silent.greet().await;
        let mut honest = other.greet().await;
        honest.until_synced().await;
        honest.puts.clear();

        let before = cloud.peak_memory();
        // Others ask, as fast as they can, and never read an answer: what nobody knows, for what nobody
        // serves, for life; or it says something else of itself each time.
        let unknown = vec![0xa2, 0x02, 0x82, 0x18, 0x63, 0x80, 0x03, 0xf5];
        let call = |n| {
            Frame::plain(Body::Call(Call {
                call: 2 * n + 1,
                service: "x".into(),
                deadline_ms: 60_000,
                ..Call::default()
            }))
        };
        let open = |n| {
            Frame::plain(Body::Open(Open {
                stream: 2 * n + 1,
                service: "x".into(),
                credit: 1,
                ..Open::default()
            }))
        };
        let truth = |n: u64| {
            let status = status(key("nodes", "status"), "", json!({"capacity": {"cpu": n.to_string()}}));
            Frame { seq: n + 2, ..Frame::plain(status) }
        };
        let kinds: [(&str, Question); 5] = [
            ("status", Box::new(move |n| truth(n).encode())),
            ("unknown", Box::new(move |_| unknown.clone())),
            ("call", Box::new(move |n| call(n).encode())),
            ("open", Box::new(move |n| open(n).encode())),
            ("ping", Box::new(|_| Frame::plain(Body::Ping).encode())),
        ];
        let mut askers = Vec::new();
        for (kind, question) in kinds {
            let mut talk = cloud.join(kind).await.connect().await;
            talk.greet().await;
            if kind == "status" {
                // Of a node that is there, so that each is written.
                talk.frame(&Frame { seq: 1, ..Frame::plain(register(node(kind))) }).await;
            }
            askers.push(std::thread::spawn(move || {
                smol::block_on(async {
                    let mut asked = 0;
                    while !talk.closed {
                        talk.message(Message::Binary(question(asked).into())).await;
                        asked += 1;
                    }
                    println!("{kind}: {asked} questions");
                })
            }));
        }
        // Meanwhile the object of one that neither asks nor reads churns, and the neighbour gets every change of its own, in order.
        for n in 1..=CHANGES {
            config("big", noise(BIG, n), "PATCH").await;
            config("small", n.to_string(), "PATCH").await;
            while (honest.puts.len() as u64) < n {
                assert!(honest.next_frame().await.is_some(), "the neighbour was hung up on");
                honest.acknowledge().await;
            }
        }
        assert_eq!(honest.puts.len() as u64, CHANGES);
        let grown = cloud.peak_memory() - before;
        println!("{} MB changed, memory grew by {} KiB", CHANGES as usize * BIG / 1_000_000, grown / 1024);
        drop(cloud);
        askers.into_iter().for_each(|asker| asker.join().unwrap());
        drop(silent);
        // What the store's cache and history may take (16 MiB), and a frame for each of seven connections:
        // less than what changed, and far less than the answers that nobody read.
        assert!(grown < (16 << 20) + 7 * MAX_FRAME, "{grown}");
    });
}

/// The middle one of some times.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn ten_thousand_half_open_connections_move_nobody() {
    const EACH: usize = 3_250;
    const GREETED: usize = 250;
    const OPERATIONS: usize = 300;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run(async {
        let cloud = Cloud::start("hostile-open").await;
        // The cloud keeps the limit that it was started with; this end needs more.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let more = rustix::process::Rlimit { current: limit.maximum, ..limit };
        if limit.maximum.is_some_and(|most| most < 12_000) {
            return host::skipped("ten_thousand_half_open_connections", "12000 open files");
        }
        rustix::process::setrlimit(rustix::process::Resource::Nofile, more).unwrap();

        let (_neighbour, mut honest, theirs) = settled(&cloud, "neighbour").await;
        let mut operate = async || {
            let begun = Instant::now();
            honest.send(status(key("pods", "neighbour-pod"), &theirs, json!({"phase": "Running"}))).await;
            assert!(honest.settle().await, "the neighbour was hung up on");
            begun.elapsed()
        };
        let mut quiet = Vec::new();
        for _ in 0..OPERATIONS {
            quiet.push(operate().await);
        }
        let before = cloud.peak_memory();

        let code = cloud.token(&[]).await;
        let tls = tls::edge_client(&code.cluster, &code.pins, Floor::INITIAL, None).unwrap();
        let hello = client_hello(&code, tls.clone());
        let hub = cloud.hub;
        let cluster = code.cluster.clone();
        let attack = smol::unblock(move || {
            let mut open: Vec<TcpStream> = Vec::new();
            let connect = || TcpStream::connect_timeout(&hub, Duration::from_secs(5)).ok();
            // Nothing said; a ClientHello; TLS done, and the websocket's request begun; and a websocket on
            // which a Join is begun.
            open.extend((0..EACH).filter_map(|_| connect()));
            open.extend((0..EACH).filter_map(|_| {
                let mut stream = connect()?;
                stream.write_all(&hello).ok()?;
                Some(stream)
            }));
            open.extend((0..EACH).filter_map(|_| {
                let mut stream = connect()?;
                // A handshake that is refused is a connection that was open for a while, too.
                let mut client = ClientConnection::new(tls.clone(), cluster.server_name()).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
                let _ = client.complete_io(&mut stream);
                let _ = client.writer().write_all(b"GET /holm/link HTTP/1.1\r\nhost: x\r\n");
                let _ = client.write_tls(&mut stream);
                Some(stream)
            }));
            let talks = smol::block_on(async {
                let mut talks = Vec::new();
                for _ in 0..GREETED {
                    if let Ok(mut talk) = Talk::open(hub, &cluster, tls.clone()).await {
                        let opcode = OpCode::Data(WsData::Binary);
                        let half = WsFrame::message(vec![0; 128 * 1024], opcode, false);
                        talk.message(Message::Frame(half)).await;
                        talks.push(talk);
                    }
                }
                talks
            });
            (open, talks)
        });
        let mut attack = Box::pin(attack);
        let mut loud = Vec::new();
        let held = loop {
            loud.push(operate().await);
            if let Some(held) = smol::future::poll_once(&mut attack).await {
                break held;
            }
        };
        while loud.len() < OPERATIONS {
            loud.push(operate().await);
        }
        println!(
            "{} sockets and {} websockets open; {} operations meanwhile; median {:?} before, {:?} meanwhile: ratio {:.2}; memory grew by {} KiB",
            held.0.len(),
            held.1.len(),
            loud.len(),
            median(quiet.clone()),
            median(loud.clone()),
            median(loud).as_secs_f64() / median(quiet).as_secs_f64(),
            (cloud.peak_memory() - before) / 1024,
        );
        assert_eq!(held.0.len(), 3 * EACH);
        // While all of them are held, another board joins and connects.
        let late = cloud.join("late").await;
        let mut talk = late.greet().await;
        talk.send(register(node("late"))).await;
        assert!(talk.settle().await);
        operate().await;
        drop(held);
        // A thousand handshakes under way, and a few bytes for each of the rest.
        assert!(cloud.peak_memory() - before < 96 << 20);
    });
}

/// The first message of a TLS handshake.
fn client_hello(code: &JoinCode, tls: Arc<rustls::ClientConfig>) -> Vec<u8> {
    let mut client = ClientConnection::new(tls, code.cluster.server_name()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}
