//! A cloud as a real process without anything else, and nodes that say what they like to it: with real
//! certificates that they joined for, over real TLS and websockets.

use super::world::{free_port, holm};
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::{ClientRequestBuilder, Message};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use futures_rustls::TlsConnector;
use holm::link::Body;
use holm::link::frame::{Frame, Hello, Join, Joined, Put, Refused, VERSION_MAX, VERSION_MIN, Welcome};
use holm::link::socket::{BoxIo, PATH, SUBPROTOCOL, config};
use holm::object::codec;
use holm::trust::CertificateDer;
use holm::trust::clock::Floor;
use holm::trust::code::JoinCode;
use holm::trust::identity::{Identity, Membership};
use holm::trust::names::{ClusterUid, NodeName};
use holm::trust::tls;
use rustls::ClientConfig;
use serde_json::{Value, json};
use smol::Async;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

/// A `holm cloud`.
pub struct Cloud {
    folder: PathBuf,
    child: Child,
    /// Where its hub is.
    pub hub: SocketAddr,
}

impl Cloud {
    /// Starts one in a new folder and waits for its API.
    pub async fn start(test: &str) -> Cloud {
        let folder = super::scratch(test);
        let hub = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let child = holm()
            .args(["cloud", "--data-dir"])
            .arg(folder.join("data"))
            .arg(format!("--listen={hub}"))
            .arg(format!("--api-listen=127.0.0.1:{}", free_port()))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let cloud = Cloud { folder, child, hub };
        super::until("the cloud's API", async || {
            cloud.try_api("GET", "/api/v1/namespaces/default", None).await
        })
        .await;
        cloud
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// The most memory it ever had, in bytes.
    pub fn peak_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// A new folder of its own.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// True while the process runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A join code.
    pub async fn token(&self, more: &[&str]) -> JoinCode {
        let mut command = holm();
        command.args(["token", "create", "--data-dir"]).arg(self.folder.join("data")).args(more);
        let output = smol::unblock(move || command.output().unwrap()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    /// One request to its local socket, which is the administrator's.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.try_api(method, path, body).await;
        answer.unwrap_or_else(|| panic!("{method} {path} failed; {}", self.log()))
    }

    /// The same, if it succeeds.
    pub async fn try_api(&self, method: &str, path: &str, body: Option<Value>) -> Option<Value> {
        let socket = self.folder.join("data").join(holm::net::SOCKET);
        let mut stream = Async::<std::os::unix::net::UnixStream>::connect(socket).await.ok()?;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: cloud\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let is_good = head.split(' ').nth(1)?.starts_with('2');
        is_good.then(|| serde_json::from_str(body).unwrap())
    }

    /// Makes a pod that is bound to a node and names what it is told to.
    pub async fn bind_pod(&self, name: &str, node: &str, volumes: Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "volumes": volumes},
        });
        self.api("POST", "/api/v1/namespaces/default/pods", Some(pod)).await;
    }

    /// Joins as a node.
    pub async fn join(&self, name: &str) -> Member {
        let code = self.token(&[]).await;
        Member::join(&code, name, &self.folder(&format!("identity-{name}"))).await.unwrap()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A name with a certificate.
pub struct Member {
    pub name: String,
    pub identity: Identity,
    cluster: ClusterUid,
    hub: SocketAddr,
}

impl Member {
    /// Exchanges a code for a certificate; a refusal is given in its own words.
    pub async fn join(code: &JoinCode, name: &str, folder: &Path) -> Result<Member, Refused> {
        let membership = Membership {
            cluster: code.cluster.clone(),
            node: name.parse::<NodeName>().unwrap(),
            endpoints: code.endpoints.clone(),
            pins: code.pins.clone(),
        };
        let mut identity = Identity::join(folder, membership, true).unwrap();
        let request = identity.request().unwrap();
        let joined = ask(code, name, request).await?;
        identity.install(CertificateDer::from(joined.certificate)).unwrap();
        identity.promote().unwrap();
        let hub = code.endpoints[0].to_string().parse().unwrap();
        Ok(Member { name: name.into(), identity, cluster: code.cluster.clone(), hub })
    }

    /// A connection that has said nothing yet.
    pub async fn connect(&self) -> Talk {
        let slot = self.identity.current().unwrap();
        let pins = &self.identity.membership().pins;
        let tls = tls::edge_client(&self.cluster, pins, Floor::INITIAL, Some(slot)).unwrap();
        Talk::open(self.hub, &self.cluster, tls).await.unwrap()
    }

    /// A connection that has been greeted; what the node is to hold is asked for with an empty inventory.
    pub async fn greet(&self) -> Talk {
        let mut talk = self.connect().await;
        let welcome = talk.greet().await;
        if welcome.inventory {
            let none = holm::link::frame::Inventory { holdings: Vec::new(), last: true };
            talk.send(Body::Inventory(none)).await;
        }
        talk
    }
}

/// Asks for a certificate with whatever one likes, patiently: the cloud may limit how often.
pub async fn ask(code: &JoinCode, name: &str, request: Vec<u8>) -> Result<Joined, Refused> {
    let hub = code.endpoints[0].to_string().parse().unwrap();
    let tls = tls::edge_client(&code.cluster, &code.pins, Floor::INITIAL, None).unwrap();
    for _ in 0..60 {
        let Ok(mut talk) = Talk::open(hub, &code.cluster, tls.clone()).await else {
            smol::Timer::after(Duration::from_millis(250)).await;
            continue;
        };
        let join = Join {
            secret_id: code.id.to_string(),
            secret: *code.secret.as_bytes(),
            node: name.into(),
            request: request.clone(),
        };
        talk.plain(Body::Join(join)).await;
        match talk.next_body().await {
            Some(Body::Joined(joined)) => return Ok(joined),
            Some(Body::Refused(refused)) if refused.permanent => return Err(refused),
            Some(Body::Refused(_)) => smol::Timer::after(Duration::from_millis(250)).await,
            None => return Err(Refused { reason: "it hung up".into(), permanent: true }),
            Some(other) => panic!("{other:?}"),
        };
    }
    panic!("never let in nor refused");
}

/// One connection, on which anything can be said.
pub struct Talk {
    socket: WebSocketStream<BoxIo>,
    sent: u64,
    /// What the other end has done everything up to.
    pub acked: u64,
    received: u64,
    /// What was put here.
    pub puts: Vec<Put>,
    /// Why it closed, as far as it said.
    pub closed: bool,
}

impl Talk {
    /// TCP, TLS and the websocket's handshake.
    pub async fn open(hub: SocketAddr, cluster: &ClusterUid, tls: Arc<ClientConfig>) -> Result<Talk, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let stream = Async::<TcpStream>::connect(hub).await.map_err(|e| said(&e))?;
        stream.get_ref().set_nodelay(true).map_err(|e| said(&e))?;
        let stream =
            TlsConnector::from(tls).connect(cluster.server_name(), stream).await.map_err(|e| said(&e))?;
        let uri = format!("wss://{}{PATH}", cluster.cloud_name()).parse().unwrap();
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL);
        // This end believes that there are no limits.
        let config = config().max_write_buffer_size(usize::MAX);
        let stream: BoxIo = Box::new(stream);
        let (socket, _) = async_tungstenite::client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|e| said(&e))?;
        Ok(Talk { socket, sent: 0, acked: 0, received: 0, puts: Vec::new(), closed: false })
    }

    /// Says Hello as one that holds nothing.
    pub async fn greet(&mut self) -> Welcome {
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch: 1,
            digest: [9; 32],
            software: "liar".into(),
            ..Hello::default()
        };
        self.plain(Body::Hello(hello)).await;
        match self.next_body().await {
            Some(Body::Welcome(welcome)) => welcome,
            other => panic!("not welcome: {other:?}"),
        }
    }

    /// A numbered body; its number.
    pub async fn send(&mut self, body: Body) -> u64 {
        self.sent += 1;
        let frame = Frame { seq: self.sent, ack: self.received, body: Some(body), has_body: true };
        self.frame(&frame).await;
        self.sent
    }

    /// A body without a number.
    pub async fn plain(&mut self, body: Body) {
        self.frame(&Frame::plain(body)).await;
    }

    /// A frame as it is.
    pub async fn frame(&mut self, frame: &Frame) {
        self.message(Message::Binary(frame.encode().into())).await;
    }

    /// A websocket message as it is. That the other end has hung up is noticed by reading.
    pub async fn message(&mut self, message: Message) {
        self.closed |= self.socket.send(message).await.is_err();
    }

    /// The next frame; `None` once the other end has hung up.
    pub async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    let frame = Frame::decode(&bytes).unwrap();
                    self.acked = self.acked.max(frame.ack);
                    if frame.seq != 0 {
                        self.received = frame.seq;
                    }
                    if let Some(Body::Put(put)) = &frame.body {
                        self.puts.push(put.clone());
                    }
                    return Some(frame);
                }
                Some(Ok(Message::Close(_))) | None | Some(Err(_)) => {
                    self.closed = true;
                    return None;
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next body.
    pub async fn next_body(&mut self) -> Option<Body> {
        loop {
            if let Some(body) = self.next_frame().await?.body {
                return Some(body);
            }
        }
    }

    /// Reads until everything that was sent is done; false if the other end hung up before.
    pub async fn settle(&mut self) -> bool {
        while self.acked < self.sent {
            if self.next_frame().await.is_none() {
                return false;
            }
        }
        true
    }

    /// Reads until the other end says that it was all.
    pub async fn until_synced(&mut self) {
        while let Some(frame) = self.next_frame().await {
            if frame.body == Some(Body::Synced) {
                self.frame(&Frame { ack: self.received, ..Frame::default() }).await;
                return;
            }
        }
        panic!("hung up before Synced");
    }

    /// Acknowledges what came.
    pub async fn acknowledge(&mut self) {
        self.frame(&Frame { ack: self.received, ..Frame::default() }).await;
    }

    /// Reads until the other end hangs up.
    pub async fn until_closed(&mut self) {
        while self.next_frame().await.is_some() {}
    }

    /// The bytes below the websocket.
    pub fn raw(&mut self) -> &mut BoxIo {
        self.socket.get_mut()
    }
}

/// An object as frames carry it.
pub fn cbor(value: Value) -> Vec<u8> {
    codec::encode(&value)
}
