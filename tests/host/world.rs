//! A cloud and an edge as real processes, over a private containerd.

use super::board::{IMAGE, busybox};
use super::containerd::Containerd;
use holm::cri::Runtime;
use holm::task::Tasks;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The node of every world.
pub const NODE: &str = "island";

/// A cloud, an edge, and what they need.
pub struct World {
    pub folder: PathBuf,
    pub containerd: Containerd,
    /// What each role is started from.
    programs: Programs,
    cloud: Option<Child>,
    edge: Option<Child>,
    hub: u16,
    api: u16,
}

struct Programs {
    cloud: PathBuf,
    edge: PathBuf,
}

/// A port that nothing listens on now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("HOLM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_holm").into()).into()
}

/// A command of the program under test.
pub fn holm() -> Command {
    command(&program())
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env_remove("HOLM_JOIN").env_remove("KUBECONFIG");
    command
}

impl World {
    /// Everything in `folder`, nothing started but containerd; an error names
    /// what is missing.
    pub fn new(folder: &Path) -> Result<World, String> {
        let containerd = Containerd::start(folder)?;
        if !containerd.bin().join("kubectl").exists() {
            return Err(format!("kubectl in {}", containerd.bin().display()));
        }
        let image = busybox(containerd.bin())?;
        let tasks = Tasks::default();
        smol::block_on(tasks.executor().run(async {
            let runtime = Runtime::new(tasks.executor().clone(), &containerd.endpoint()).unwrap();
            super::until("CRI", async || runtime.version().await.ok()).await;
            runtime.import_image(IMAGE, &image).await.unwrap();
        }));
        let (hub, api) = (free_port(), free_port());
        let programs = Programs { cloud: program(), edge: program() };
        Ok(World { folder: folder.into(), containerd, programs, cloud: None, edge: None, hub, api })
    }

    /// Starts each role from its own copy of the program from now on, so that
    /// the kernel counts no page of it as shared between them.
    pub fn own_copies(&mut self) {
        let copy = |role: &str| {
            let path = self.folder.join(format!("holm-{role}"));
            std::fs::copy(program(), &path).unwrap();
            path
        };
        self.programs = Programs { cloud: copy("cloud"), edge: copy("edge") };
    }

    /// The cloud's process.
    pub fn cloud_pid(&self) -> u32 {
        self.cloud.as_ref().unwrap().id()
    }

    /// The edge's process.
    pub fn edge_pid(&self) -> u32 {
        self.edge.as_ref().unwrap().id()
    }

    /// Where the cloud's hub listens, on loopback.
    pub fn hub_port(&self) -> u16 {
        self.hub
    }

    /// The cloud's data directory.
    pub fn cloud_dir(&self) -> PathBuf {
        self.folder.join("cloud")
    }

    /// The edge's data directory.
    pub fn edge_dir(&self) -> PathBuf {
        self.folder.join("edge")
    }

    fn log(&self, name: &str) -> std::fs::File {
        std::fs::File::options().create(true).append(true).open(self.folder.join(name)).unwrap()
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Child {
        command.stdout(self.log(name)).stderr(self.log(name)).spawn().unwrap()
    }

    /// Where clouds listen from the next start on; gives where they did.
    pub fn listen_at(&mut self, hub: u16, api: u16) -> (u16, u16) {
        (std::mem::replace(&mut self.hub, hub), std::mem::replace(&mut self.api, api))
    }

    /// Starts the cloud and waits for its API.
    pub fn start_cloud(&mut self) {
        self.spawn_cloud();
        self.until("the cloud's API", |world| world.kubectl(&["get", "namespaces"]).status.success());
    }

    /// Starts the cloud and does not wait.
    pub fn spawn_cloud(&mut self) {
        let mut command = command(&self.programs.cloud);
        command
            .args(["cloud", "--data-dir"])
            .arg(self.cloud_dir())
            .arg(format!("--listen=127.0.0.1:{}", self.hub))
            .arg(format!("--api-listen=127.0.0.1:{}", self.api));
        self.cloud = Some(self.spawn("cloud.log", &mut command));
    }

    /// A join code of the cloud.
    pub fn token(&self, more: &[&str]) -> String {
        let output =
            holm().args(["token", "create", "--data-dir"]).arg(self.cloud_dir()).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The edge's command line.
    pub fn edge_command(&self) -> Command {
        let mut command = command(&self.programs.edge);
        command.args(["edge", "--api-listen=127.0.0.1:0", "--data-dir"]).arg(self.edge_dir()).args([
            "--node-name",
            NODE,
            "--runtime-endpoint",
            &self.containerd.endpoint(),
        ]);
        command
    }

    /// Starts the edge, with a join code if one is given.
    pub fn start_edge(&mut self, code: Option<&str>) {
        let code = code.map(|code| format!("--join={code}"));
        self.start_edge_with(&code.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Starts the edge with more flags.
    pub fn start_edge_with(&mut self, flags: &[&str]) {
        let mut command = self.edge_command();
        self.edge = Some(self.spawn("edge.log", command.args(flags)));
    }

    /// Cloud and edge, joined, the node Ready.
    pub fn start(&mut self) {
        self.start_cloud();
        let code = self.token(&[]);
        self.start_edge(Some(&code));
        self.until_ready();
    }

    /// Waits until the API says that the node is Ready.
    pub fn until_ready(&self) {
        self.until("the node to be Ready", |world| {
            world
                .json(&["get", "node", NODE])
                .is_some_and(|node| condition(&node, "Ready") == Some("True".into()))
        });
    }

    /// Kills the cloud (SIGKILL).
    pub fn kill_cloud(&mut self) {
        kill(&mut self.cloud);
    }

    /// Kills the edge (SIGKILL).
    pub fn kill_edge(&mut self) {
        kill(&mut self.edge);
    }

    /// Stops the cloud (SIGTERM) and waits for its end.
    pub fn stop_cloud(&mut self) {
        stop(&mut self.cloud);
    }

    /// Stops the edge (SIGTERM) and waits for its end.
    pub fn stop_edge(&mut self) {
        stop(&mut self.edge);
    }

    /// Removes an edge's memory: identity, store and volumes.
    pub fn forget_edge(&self) {
        std::fs::remove_dir_all(self.edge_dir()).unwrap();
    }

    /// kubectl against the cloud.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        Command::new(self.containerd.bin().join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.cloud_dir().join("admin.kubeconfig"))
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// kubectl that must succeed; gives what it printed.
    #[track_caller]
    pub fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What kubectl prints as JSON, if it succeeds.
    pub fn json(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.kubectl(&[arguments, &["-o", "json"]].concat());
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Applies objects.
    #[track_caller]
    pub fn apply(&self, objects: &[Value]) {
        for object in objects {
            let path = self.folder.join("apply.json");
            std::fs::write(&path, object.to_string()).unwrap();
            self.kubectl_ok(&["apply", "-f", path.to_str().unwrap()]);
        }
    }

    /// `holm get` on the board.
    pub fn board(&self, arguments: &[&str]) -> Option<Value> {
        let output = holm()
            .arg("get")
            .args(arguments)
            .args(["-o", "json", "--data-dir"])
            .arg(self.edge_dir())
            .output()
            .unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until something holds; shows the logs if it does not.
    #[track_caller]
    pub fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            if started.elapsed() > Duration::from_secs(60) {
                let log = |name: &str| {
                    let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
                    let from = text.len().saturating_sub(4000);
                    text.get(from..).unwrap_or_default().to_owned()
                };
                panic!("waited 60 s for {what}\ncloud: {}\nedge: {}", log("cloud.log"), log("edge.log"));
            }
            pause(Duration::from_millis(20));
        }
    }

    /// Waits until the API says that the pod is in a phase.
    #[track_caller]
    pub fn until_phase(&self, pod: &str, phase: &str) {
        self.until(&format!("pod {pod} to be {phase}"), |world| {
            world.json(&["get", "pod", pod]).is_some_and(|pod| pod["status"]["phase"] == phase)
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_edge();
        self.kill_cloud();
        self.containerd.kill_containers();
        for pod in std::fs::read_dir(self.edge_dir().join("pods")).into_iter().flatten().flatten() {
            let pod = format!("holm/pod{}", pod.file_name().to_string_lossy());
            super::containerd::remove_cgroups(&pod);
        }
    }
}

fn stop(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn pause(time: Duration) {
    smol::block_on(async { smol::Timer::after(time).await });
}

/// The status of a condition.
pub fn condition(object: &Value, kind: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == kind)?;
    condition["status"].as_str().map(str::to_owned)
}

/// Runs a test with a world in a folder of its own.
pub fn in_a_world(test: &str, run: impl FnOnce(&mut World)) {
    let folder = super::scratch(test);
    match World::new(&folder) {
        Ok(mut world) => run(&mut world),
        Err(why) => return super::skipped(test, &why),
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
