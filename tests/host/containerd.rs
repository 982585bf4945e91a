//! A containerd of the test's own: own root, state, socket, CNI and, unless told otherwise,
//! network namespace, so that what the machine has is never touched.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running private containerd. Dropping it ends it, its shims and what they ran.
pub struct Containerd {
    folder: PathBuf,
    bin: PathBuf,
    child: Option<Child>,
}

impl Containerd {
    /// Starts one in `folder` with the programs of `HOLM_TEST_BIN` and the plugins of
    /// `HOLM_TEST_CNI`; says what is missing if it cannot.
    pub fn start(folder: &Path) -> Result<Containerd, String> {
        let bin = super::folder_of("HOLM_TEST_BIN")?;
        let cni = super::folder_of("HOLM_TEST_CNI")?;
        for program in ["containerd", "containerd-shim-runc-v2", "runc"] {
            if !bin.join(program).exists() {
                return Err(format!("{program} in {}", bin.display()));
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("root".into());
        }
        let at = |name: &str| folder.join(name).display().to_string();
        std::fs::create_dir_all(folder.join("net.d")).unwrap();
        // A network of a bridge inside the namespace that containerd runs in.
        let network = r#"{"cniVersion":"0.4.0","name":"test","plugins":[
            {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,
             "ipam":{"type":"host-local","dataDir":"IPAM","ranges":[[{"subnet":"10.123.0.0/24"}]],
                     "routes":[{"dst":"0.0.0.0/0"}]}}]}"#;
        std::fs::write(folder.join("net.d/10.conflist"), network.replace("IPAM", &at("ipam"))).unwrap();
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{net}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
"#,
            root = at("root"),
            state = at("state"),
            socket = at("containerd.sock"),
            opt = at("opt"),
            cni = cni.display(),
            net = at("net.d"),
            runc = bin.join("runc").display(),
        );
        std::fs::write(folder.join("config.toml"), config).unwrap();
        let mut containerd = Containerd { folder: folder.into(), bin, child: None };
        containerd.up();
        Ok(containerd)
    }

    /// The folder with the programs that this containerd was started from.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// `unix:///…` of its socket.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.folder.join("containerd.sock").display())
    }

    /// Starts it (again) and waits until its socket is there.
    pub fn up(&mut self) {
        let socket = self.folder.join("containerd.sock");
        let _ = std::fs::remove_file(&socket);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("containerd.log"))
            .unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        // Its own network namespace, entered again after a restart: containers live on in it.
        let netns = self.folder.join("netns");
        if !netns.exists() {
            std::fs::write(&netns, "").unwrap();
            let made = Command::new("unshare").arg(format!("--net={}", netns.display())).arg("true").status();
            assert!(made.unwrap().success(), "a network namespace for containerd");
        }
        let enter = || {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", netns.display()));
            command
        };
        // containerd's streaming server listens on loopback.
        assert!(enter().args(["ip", "link", "set", "lo", "up"]).status().unwrap().success(), "loopback");
        let mut command = enter();
        let child = command
            .arg(self.bin.join("containerd"))
            .arg("--config")
            .arg(self.folder.join("config.toml"))
            .env("PATH", format!("{}:{path}", self.bin.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.loopback_up(&netns);
        let until = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let text = self.log();
            assert!(Instant::now() < until, "containerd came up; its log: {text}");
            pause(Duration::from_millis(10));
        }
    }

    /// In a new network namespace even the loopback is down, and CRI's own server listens on it.
    fn loopback_up(&self, netns: &Path) {
        let busybox = self.bin.join("busybox");
        let ip: &[&str] = match busybox.exists() {
            true => &[busybox.to_str().unwrap(), "ip"],
            false => &["ip"],
        };
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", netns.display())).args(ip).args(["link", "set", "lo", "up"]);
            let done = command.stdin(Stdio::null()).stderr(Stdio::null()).status();
            if done.is_ok_and(|s| s.success()) {
                return;
            }
            assert!(Instant::now() < until, "nsenter and ip bring the loopback up");
            pause(Duration::from_millis(2));
        }
    }

    /// Kills containerd itself (SIGKILL); containers and their shims live on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("containerd.log")).unwrap_or_default()
    }

    /// The shims that this containerd started, found by their own socket's address.
    pub fn shims(&self) -> Vec<i32> {
        let socket = self.folder.join("containerd.sock").display().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).into_owned();
                line.contains("containerd-shim") && line.contains(&socket)
            })
            .collect()
    }

    /// Kills every container of this containerd with its shim (SIGKILL), as a power cut would.
    pub fn kill_containers(&self) {
        let kill = |pid: i32| {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        };
        for shim in self.shims() {
            let children = format!("/proc/{shim}/task/{shim}/children");
            let mut children = std::fs::read_to_string(children).unwrap_or_default();
            // The threads of a shim are the parents of what it runs.
            for task in std::fs::read_dir(format!("/proc/{shim}/task")).into_iter().flatten() {
                let Ok(task) = task else { continue };
                let more = std::fs::read_to_string(task.path().join("children"));
                children.push_str(&format!(" {}", more.unwrap_or_default()));
            }
            kill(shim);
            children.split_whitespace().filter_map(|c| c.parse().ok()).for_each(kill);
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill_containers();
        self.kill();
        pause(Duration::from_millis(50));
        // Mounts of root file systems and namespaces, deepest first.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let folder = self.folder.display().to_string();
        let mut mounts: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|m| m.starts_with(&folder)).collect();
        mounts.sort_by_key(|m| std::cmp::Reverse(m.len()));
        for mount in mounts {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        remove_cgroups(super::cgroup_parent().trim_start_matches('/'));
    }
}

/// Removes a cgroup and those below it: of each controller (v1), or the one (v2).
pub fn remove_cgroups(name: &str) {
    remove_cgroup(&Path::new("/sys/fs/cgroup").join(name));
    for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_cgroup(&controller.path().join(name));
    }
}

fn remove_cgroup(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

#[allow(clippy::disallowed_methods)] // a test's own thread
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
