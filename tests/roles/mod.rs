//! A cloud and edges as processes, and boards that say what no edge would.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use data_encoding::BASE64;
use holm::edge::hub::connect;
use holm::link::frame::{DIGEST_ALGORITHM, Hello, Inventory, Join, Renew, VERSION_MAX, VERSION_MIN, Welcome};
use holm::link::{Body, Connection};
use holm::task::Tasks;
use holm::trust::authority::{Authority, NodeRequest};
use holm::trust::clock::{Floor, IssueTime};
use holm::trust::code::JoinCode;
use holm::trust::identity::{Identity, Membership, Slot};
use holm::trust::{CertificateDer, UnixTime, tls};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A folder that is removed at the end of the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let name = holm::trust::random::<8>().unwrap().map(|byte| format!("{byte:02x}")).concat();
        let folder = std::env::temp_dir().join(format!("holm-life-{name}"));
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

/// A role as a process of its own, killed at the end.
pub struct Role(Child);

impl Role {
    /// All that it says goes to `log`.
    pub fn start(log: &Path, command: &mut Command) -> Role {
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Role(command.env("HOLM_LOG", "trace").spawn().unwrap())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn holm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holm"));
    command.env_remove("HOLM_JOIN").env_remove("KUBECONFIG");
    command
}

/// A cloud with its data directory, which outlives it.
pub struct Cloud {
    pub folder: PathBuf,
    pub hub: SocketAddr,
    pub api: SocketAddr,
    pub role: Option<Role>,
    /// What it finds in its environment.
    pub env: Vec<(&'static str, PathBuf)>,
}

pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Cloud {
    pub fn start(folder: PathBuf, flags: &[&str]) -> Cloud {
        Cloud::start_in(folder, flags, vec![])
    }

    pub fn start_in(folder: PathBuf, flags: &[&str], env: Vec<(&'static str, PathBuf)>) -> Cloud {
        std::fs::create_dir_all(&folder).unwrap();
        let mut cloud = Cloud { folder, hub: free_address(), api: free_address(), role: None, env };
        cloud.restart(flags);
        cloud
    }

    pub fn restart(&mut self, flags: &[&str]) {
        self.role = None;
        let mut command = holm();
        command.arg("cloud").arg("--data-dir").arg(&self.folder).args(flags).envs(self.env.clone());
        command.arg(format!("--listen={}", self.hub)).arg(format!("--api-listen={}", self.api));
        self.role = Some(Role::start(&self.folder.with_extension("log"), &mut command));
        until("the cloud's API", || self.get("/api/v1/namespaces/holm-system/configmaps/holm-cloud"));
    }

    /// An object, if it is there.
    pub fn get(&self, path: &str) -> Option<Value> {
        let mut socket = UnixStream::connect(self.folder.join("holm.sock")).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: holm\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).unwrap())
    }

    pub fn node(&self) -> Option<Value> {
        self.get("/api/v1/nodes/pi")
    }

    /// The cluster's authority: what issues certificates of any age.
    pub fn authority(&self) -> Authority {
        let secret = self.get("/api/v1/namespaces/holm-system/secrets/holm-ca").unwrap();
        let part = |name: &str| {
            let text = BASE64.decode(secret["data"][name].as_str().unwrap().as_bytes()).unwrap();
            String::from_utf8(text).unwrap()
        };
        Authority::from_pem(&part("tls.crt"), &part("tls.key")).unwrap()
    }

    pub fn code(&self, node: Option<&str>) -> JoinCode {
        let mut command = holm();
        command.args(["token", "create", "--data-dir"]).arg(&self.folder);
        command.args(node.into_iter().flat_map(|node| ["--node", node]));
        said(&mut command).trim().parse().unwrap()
    }

    pub fn revoke(&self, what: &[&str]) -> String {
        let reason = "--reason=stolen from the barn";
        said(holm().arg("revoke").args(what).arg(reason).arg("--data-dir").arg(&self.folder))
    }
}

pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "waited 60 s for {what}");
        smol::block_on(async { smol::Timer::after(Duration::from_millis(20)).await });
    }
}

/// A board that says what the test wants.
pub struct Board {
    pub tasks: Tasks,
    pub folder: PathBuf,
    pub identity: Identity,
}

impl Board {
    pub fn new(folder: &Path, code: &JoinCode) -> Board {
        let membership = Membership {
            cluster: code.cluster.clone(),
            node: "pi".parse().unwrap(),
            endpoints: code.endpoints.clone(),
            pins: code.pins.clone(),
        };
        let identity = Identity::join(folder, membership, true).unwrap();
        Board { tasks: Tasks::default(), folder: folder.into(), identity }
    }

    /// The board after a power cut.
    pub fn rebooted(&self) -> Board {
        let identity = Identity::load(&self.folder).unwrap().unwrap();
        Board { tasks: Tasks::default(), folder: self.folder.clone(), identity }
    }

    /// Joins with a new key; an error is the cloud's reason.
    pub fn join(folder: &Path, code: &JoinCode) -> Result<Board, String> {
        let mut board = Board::new(folder, code);
        let request = board.identity.request().unwrap();
        let join = Join {
            secret_id: code.id.to_string(),
            secret: *code.secret.as_bytes(),
            node: "pi".into(),
            request,
        };
        match board.talk(None, Body::Join(join), async |_, answer| answer)? {
            Body::Joined(joined) => board.identity.install(CertificateDer::from(joined.certificate)).unwrap(),
            Body::Refused(refused) => return Err(refused.reason),
            other => panic!("{other:?}"),
        }
        board.identity.promote().unwrap();
        Ok(board)
    }

    /// A member with a certificate that lives for so long from now.
    pub fn member(folder: &Path, cloud: &Cloud, life: Duration) -> Board {
        let mut board = Board::new(folder, &cloud.code(None));
        let request = NodeRequest::read(&board.identity.request().unwrap()).unwrap();
        let when = IssueTime::check(UnixTime::now(), Floor::INITIAL).unwrap();
        let node = "pi".parse().unwrap();
        board.identity.install(cloud.authority().issue_node(&node, &request, when, life).unwrap()).unwrap();
        board.identity.promote().unwrap();
        board
    }

    pub fn slot(&self) -> &Slot {
        self.identity.candidates().next().unwrap()
    }

    /// One connection: what is said first, and what is done with the answer.
    pub fn talk<T>(
        &self,
        slot: Option<&Slot>,
        first: Body,
        then: impl AsyncFnOnce(Connection, Body) -> T,
    ) -> Result<T, String> {
        let Membership { cluster, pins, endpoints, .. } = self.identity.membership().clone();
        let config = tls::edge_client(&cluster, &pins, Floor::INITIAL, slot).unwrap();
        smol::block_on(self.tasks.executor().run(async {
            let connected = connect::connect(&self.tasks, &endpoints[0], &cluster, config).await;
            let mut connection = connected.map_err(|error| error.to_string())?;
            connection.send_plain(first);
            let answer = connection.first(Duration::from_secs(20)).await?;
            Ok(then(connection, answer).await)
        }))
    }

    pub fn session<T>(&self, then: impl AsyncFnOnce(Connection, Welcome) -> T) -> Result<T, String> {
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch: 1,
            digest_algorithm: DIGEST_ALGORITHM,
            ..Hello::default()
        };
        self.talk(Some(self.slot()), Body::Hello(hello), async |mut connection, answer| match answer {
            Body::Welcome(welcome) => {
                if welcome.inventory {
                    connection.send_plain(Body::Inventory(Inventory { holdings: vec![], last: true }));
                }
                Ok(then(connection, welcome).await)
            }
            Body::Refused(refused) => Err(refused.reason),
            other => panic!("{other:?}"),
        })?
    }

    /// Why the cloud does not let it in.
    pub fn refused(&self) -> String {
        self.session(async |_, welcome| panic!("let in: {welcome:?}")).unwrap_err()
    }

    /// Asks for the next certificate over a session; gives it, and whether that session could only renew.
    pub fn ask(&mut self) -> Result<(CertificateDer<'static>, bool), String> {
        let before = self.rebooted();
        let request = self.identity.request().unwrap();
        let (renewed, only) = before.session(async |mut connection, welcome| {
            connection.agree(true, welcome.window, Duration::from_secs(15));
            connection.send(Body::Renew(Renew { request }));
            loop {
                match connection.first(Duration::from_secs(20)).await? {
                    Body::Renewed(renewed) => return Ok::<_, String>((renewed, welcome.renew_only)),
                    Body::Synced => {}
                    other => return Err(format!("{other:?}")),
                }
            }
        })??;
        match renewed.reason {
            Some(reason) => Err(reason),
            None => Ok((CertificateDer::from(renewed.certificate), only)),
        }
    }

    /// Asks for the next certificate and keeps it.
    pub fn renew(&mut self) -> Result<bool, String> {
        let (certificate, only) = self.ask()?;
        self.identity.install(certificate).unwrap();
        Ok(only)
    }
}

/// A certificate that has just been issued for a moment is over.
pub fn wait_for_its_end(slot: &Slot) {
    let end = slot.facts().unwrap().not_after;
    until("the certificate's end", || (UnixTime::now() > end).then_some(()));
}

/// A whole edge, without a container runtime: the link is what matters.
pub fn start_edge(folder: &Path) -> Role {
    start_edge_with(folder, "")
}

/// A whole edge with a join code in its environment, as a unit file gives it.
pub fn start_edge_with(folder: &Path, code: &str) -> Role {
    start_edge_in(folder, vec![("HOLM_JOIN", code.into())])
}

/// A whole edge with an environment.
pub fn start_edge_in(folder: &Path, env: Vec<(&'static str, PathBuf)>) -> Role {
    let mut command = holm();
    command.envs(env);
    command.arg("edge").arg("--data-dir").arg(folder).arg(format!("--api-listen={}", free_address()));
    command.arg(format!("--runtime-endpoint=unix://{}/no-runtime.sock", folder.display()));
    Role::start(&folder.with_extension("log"), &mut command)
}

pub fn start_edge_until_registered(cloud: &Cloud, folder: &Path) -> Role {
    let edge = start_edge(folder);
    until("the node to have registered", || cloud.node().filter(|node| key_of(node).is_some()));
    edge
}

pub fn key_of(node: &Value) -> Option<String> {
    node["metadata"]["annotations"]["holm.dev/key"].as_str().map(str::to_owned)
}

pub fn current_key(folder: &Path) -> Option<String> {
    Some(Identity::load(folder).ok()??.current()?.key_fingerprint().to_string())
}
