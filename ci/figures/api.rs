//! A role's API through the socket in its data directory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_channel::Receiver;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use serde_json::Value;
use smol::Async;
use smol_hyper::rt::FuturesIo;

use holm::task::Tasks;

/// Milliseconds of the one clock that this machine's containerd uses too.
pub fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as f64 / 1e6
}

/// Waits, at most 30 s, until `holds`; asks five thousand times a second.
pub fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited 30 s for {what}");
        crate::host::containerd::pause(Duration::from_micros(200));
    }
}

/// A role's socket.
#[derive(Clone)]
pub struct Api {
    socket: PathBuf,
    tasks: Tasks,
}

/// An object as a watch told of it.
pub struct Seen {
    /// When, in milliseconds since 1970.
    pub at: f64,
    /// `ADDED`, `MODIFIED`, `DELETED`.
    pub kind: String,
    pub object: Value,
}

impl Api {
    pub fn new(data_dir: &Path, tasks: &Tasks) -> Api {
        Api { socket: data_dir.join(holm::net::SOCKET), tasks: tasks.clone() }
    }

    /// The answer to a GET, if there is one now and it is a success.
    pub fn try_get(&self, path: &str) -> Option<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: holm\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        answer.starts_with(b"HTTP/1.1 200").then_some(answer)
    }

    /// Whether the role serves.
    pub fn is_ready(&self) -> bool {
        self.try_get("/readyz").is_some()
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> http::Response<Incoming> {
        let stream = Async::<UnixStream>::connect(&self.socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(FuturesIo::new(stream)).await.unwrap();
        self.tasks.spawn("bench connection", async move {
            let _ = connection.await;
        });
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "holm")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// A request that must succeed.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let response = self.send(method, path, body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{method} {path}: {status}: {}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Everything that a watch tells, with the moment of its arrival, until
    /// the receiver is dropped.
    pub async fn watch(&self, path: &str) -> Receiver<Seen> {
        let response = self.send("GET", &format!("{path}?watch=1"), None).await;
        assert!(response.status().is_success(), "watch {path}: {}", response.status());
        let (sender, receiver) = async_channel::unbounded();
        let mut body = response.into_body();
        self.tasks.spawn("bench watch", async move {
            let mut buffer: Vec<u8> = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let at = now_ms();
                buffer.extend_from_slice(frame.data_ref().unwrap());
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    let mut event: Value = serde_json::from_slice(&line).unwrap();
                    let kind = event["type"].as_str().unwrap().to_owned();
                    let seen = Seen { at, kind, object: event["object"].take() };
                    if sender.send(seen).await.is_err() {
                        return;
                    }
                }
            }
        });
        receiver
    }
}

/// The next thing told about an object of that name; fails after 60 s.
pub async fn next_of(watch: &Receiver<Seen>, name: &str) -> Seen {
    let next = async {
        loop {
            let seen = watch.recv().await.unwrap();
            if seen.object["metadata"]["name"] == name {
                return seen;
            }
        }
    };
    let next = holm::task::within(Duration::from_secs(60), next).await;
    next.unwrap_or_else(|| panic!("waited 60 s for news of {name}"))
}
