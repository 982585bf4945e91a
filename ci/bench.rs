//! What Holm takes, beside what KubeEdge takes and what the design allows:
//! size, memory, processor, flash, starts, and pods beside the bare runtime.
//!
//! Start it with `ci/bench`, which brings what it needs. Nothing here fails
//! for being slow.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing
)]

#[path = "figures/api.rs"]
mod api;
#[path = "../tests/host/mod.rs"]
mod host;
#[path = "figures/link.rs"]
mod link;
#[path = "figures/pods.rs"]
mod pods;
#[path = "figures/process.rs"]
mod process;
#[path = "figures/table.rs"]
mod table;

use std::time::{Duration, Instant};

use api::{Api, soon};
use async_signal::{Signal, Signals};
use futures_lite::{FutureExt as _, StreamExt as _};
use holm::task::Tasks;
use host::world::World;
use process::{Memory, Usage};
use serde_json::json;
use table::Figure;

/// How often each start is measured.
const STARTS: usize = 7;
/// Pods that stay.
const PODS: usize = 10;
/// Pods that go through the scheduler and are deleted again.
const SCHEDULED: usize = 5;
/// How long nothing happens while processor and flash are counted, unless
/// `--window SECONDS` says otherwise.
const WINDOW: Duration = Duration::from_secs(60);
/// How long things may settle before that.
const SETTLE: Duration = Duration::from_secs(8);

/// KubeEdge HEAD of August 2026, measured on 2 x86-64 cores with Kubernetes
/// 1.36 and containerd 1.6.20, release builds, cloud and edge on one machine.
/// Memory in MiB, times in ms, medians where several were measured.
mod kubeedge {
    /// edgecore, cloudcore and keadm together.
    pub const PROGRAMS_MIB: f64 = 95.2 + 68.2 + 80.1;
    /// Memory: resident, proportional, anonymous, threads.
    pub type Taken = [f64; 4];
    pub const EDGE: [Taken; 2] = [[86.5, 84.8, 21.7, 11.0], [93.8, 92.1, 28.5, 12.0]];
    /// Without the Kubernetes API server, etcd, controller manager and
    /// scheduler that it needs beside it.
    pub const CLOUD: [Taken; 2] = [[71.0, 71.0, 21.8, 8.0], [83.5, 83.5, 33.7, 8.0]];
    /// Seconds on a processor in 120 s with 0 and with 10 pods.
    pub const EDGE_CPU: [f64; 2] = [0.57, 1.11];
    pub const CLOUD_CPU: [f64; 2] = [0.08, 0.26];
    /// MB a day written by edgecore with 0 and with 10 pods: 672 kB and
    /// 1,106 kB in 120 s.
    pub const EDGE_WRITTEN: [f64; 2] = [484.0, 796.0];
    /// edgecore to its /healthz, and to the first new Ready at the API.
    pub const EDGE_START: f64 = 142.0;
    pub const EDGE_CONNECTED: f64 = 302.0;
    /// cloudcore, to its hub: 410 to 8420 by a random sleep of whole seconds.
    pub const CLOUD_START: f64 = 7400.0;
    /// Of a pod without a service account token; 563 and 931 with one.
    pub const POD_STARTED: f64 = 203.0;
    pub const POD_RUNNING: f64 = 447.0;
    /// `kubectl delete` to the object's end, grace 30 s, a container that
    /// exits at once.
    pub const POD_DELETED: f64 = 1003.0;
}

/// What the design allows (x86-64).
mod budget {
    pub const PROGRAM_MIB: f64 = 10e6 / MIB;
    pub const MIB: f64 = 1024.0 * 1024.0;
    /// Proportional and anonymous with no pods; with 10 the budget of 20.
    pub const EDGE: [[f64; 2]; 2] = [[10.0, 5.0], [14.0, 8.0]];
    /// Seconds on a processor in 120 s with 0 and with 10 pods.
    pub const EDGE_CPU: [f64; 2] = [0.05, 0.15];
    /// MB a day.
    pub const EDGE_WRITTEN: f64 = 1.0;
    pub const START: f64 = 50.0;
    /// Over the bare runtime in the same run.
    pub const POD_STARTED: f64 = 30.0;
    pub const POD_RUNNING: f64 = 60.0;
}

fn main() -> std::process::ExitCode {
    let as_json = std::env::args().any(|argument| argument == "--json");
    let seconds = std::env::args().skip_while(|argument| argument != "--window").nth(1);
    let window = seconds.map_or(WINDOW, |text| Duration::from_secs(text.parse().expect("--window SECONDS")));
    let folder = Folder(host::scratch("bench"));
    let mut world = match World::new(&folder.0) {
        Ok(world) => world,
        Err(why) => {
            eprintln!("bench: needs {why}: start it as root, with ci/bench");
            return std::process::ExitCode::FAILURE;
        }
    };
    world.own_copies();
    let stop = Stop::listen();
    let started = Instant::now();
    let step = |text: &str| eprintln!("[{:4} s] {text}", started.elapsed().as_secs());
    let load_before = load();
    let tasks = Tasks::default();
    let mut figures = Vec::new();

    let bytes = std::fs::metadata(host::world::program()).unwrap().len();
    figures.push(
        Figure::new("program, all roles (KubeEdge: its three)", "MiB", vec![bytes as f64 / budget::MIB])
            .kubeedge(kubeedge::PROGRAMS_MIB)
            .budget(budget::PROGRAM_MIB),
    );
    starts(&mut world, &tasks, &mut figures, &step);
    idle(&world, 0, window, &stop, &mut figures, &step);
    step("starting pods, in turns with bare ones");
    pods::measure(&world, &tasks, &stop, &mut figures);
    idle(&world, 1, window, &stop, &mut figures, &step);
    link::measure(&world, &tasks, &stop, &mut figures, &step);

    let conditions = json!({
        "program": std::env::var("HOLM_BIN").unwrap_or_else(|_| "a debug build".into()),
        "bytes": bytes, "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "architecture": std::env::consts::ARCH, "load_average": [load_before, load()],
        "idle_window_seconds": window.as_secs(), "seconds": started.elapsed().as_secs(),
    });
    println!();
    println!(
        "{} {bytes} bytes; {} processors, {}; load average {} before, {} after; idle windows of {} s",
        conditions["program"].as_str().unwrap_or_default(),
        conditions["processors"],
        std::env::consts::ARCH,
        conditions["load_average"][0].as_str().unwrap_or_default(),
        conditions["load_average"][1].as_str().unwrap_or_default(),
        window.as_secs(),
    );
    println!("\n{}", table::draw(&figures));
    println!("{}", NOTES.trim());
    if as_json {
        println!("\n{:#}", table::json(&figures, conditions));
    }
    std::process::ExitCode::SUCCESS
}

const NOTES: &str = "
KubeEdge: HEAD of August 2026, measured on 2 x86-64 cores with Kubernetes 1.36; pods without a
service account token, as this release mounts none (with one KubeEdge takes 563 and 931 ms).
Its cloud's memory is cloudcore's alone, without the API server and etcd that it needs.
Each role runs from its own copy of the program. Processor time and bytes written are those of one
idle window, scaled to two minutes and to a day. The bare pods have the same image and the same
configuration; the budget of a pod is their median (RunPodSandbox, CreateContainer, StartContainer)
and 30 or 60 ms, and where a pod is compared with the one beside it, 30 or 60 ms. The budget of
memory with 10 pods is the design's for 20. A median is marked, not judged: nothing fails here.
";

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A folder that is removed with this, after everything that was started in it.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ctrl-C or SIGTERM: measuring ends in a panic, and unwinding takes down all
/// that was started.
struct Stop(async_channel::Receiver<()>);

impl Stop {
    fn listen() -> Stop {
        let (sender, receiver) = async_channel::bounded(1);
        let mut signals = Signals::new([Signal::Int, Signal::Term]).unwrap();
        std::thread::spawn(move || {
            smol::block_on(signals.next());
            drop(sender);
        });
        Stop(receiver)
    }

    /// What the future gives, unless told to stop before.
    async fn or<T>(&self, future: impl Future<Output = T>) -> T {
        let stopped = async {
            let _ = self.0.recv().await;
            panic!("told to stop");
        };
        future.or(stopped).await
    }

    fn pause(&self, time: Duration) {
        smol::block_on(self.or(smol::Timer::after(time)));
    }
}

/// Milliseconds from `start` until `is_there`.
fn until(what: &str, start: impl FnOnce(), is_there: impl FnMut() -> bool) -> f64 {
    let started = Instant::now();
    start();
    soon(what, is_there);
    started.elapsed().as_secs_f64() * 1e3
}

/// Starts of both roles; leaves them running and joined.
fn starts(world: &mut World, tasks: &Tasks, figures: &mut Vec<Figure>, step: &impl Fn(&str)) {
    let cloud = Api::new(&world.cloud_dir(), tasks);
    let edge = Api::new(&world.edge_dir(), tasks);
    let times = |mut one: Box<dyn FnMut() -> f64 + '_>| (0..STARTS).map(|_| one()).collect::<Vec<f64>>();

    step("starting the cloud");
    let founding = times(Box::new(|| {
        world.stop_cloud();
        let _ = std::fs::remove_dir_all(world.cloud_dir());
        until("the cloud", || world.spawn_cloud(), || cloud.is_ready())
    }));
    figures.push(Figure::new("cloud: first start, founds a cluster, to its API", "ms", founding));
    let again = times(Box::new(|| {
        world.stop_cloud();
        until("the cloud", || world.spawn_cloud(), || cloud.is_ready())
    }));
    figures.push(
        Figure::new("cloud: start to its API", "ms", again)
            .kubeedge(kubeedge::CLOUD_START)
            .budget(budget::START),
    );

    step("starting the edge");
    let code = world.token(&[]);
    let joined = until("the edge", || world.start_edge(Some(&code)), || edge.is_ready());
    figures.push(Figure::new("edge: first start, joins, to its API", "ms", vec![joined]));
    world.until_ready();
    let connected = || {
        let nodes = edge.try_get("/api/v1/nodes").unwrap_or_default();
        let nodes = String::from_utf8_lossy(&nodes).into_owned();
        let body = nodes.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let nodes: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        host::world::condition(&nodes["items"][0], "CloudConnected").as_deref() == Some("True")
    };
    let again = times(Box::new(|| {
        world.stop_edge();
        until("the edge", || world.start_edge(None), || edge.is_ready())
    }));
    let killed = times(Box::new(|| {
        world.kill_edge();
        until("the edge", || world.start_edge(None), || edge.is_ready())
    }));
    let to_cloud = times(Box::new(|| {
        world.stop_edge();
        until("the edge's cloud", || world.start_edge(None), &connected)
    }));
    figures.push(
        Figure::new("edge: start to its API", "ms", again)
            .kubeedge(kubeedge::EDGE_START)
            .budget(budget::START),
    );
    figures.push(Figure::new("edge: start to its API after kill -9", "ms", killed).budget(budget::START));
    figures.push(
        Figure::new("edge: start to connected (KubeEdge: to Ready at the API)", "ms", to_cloud)
            .kubeedge(kubeedge::EDGE_CONNECTED),
    );
}

/// An idle window with no pods (`at` 0) or all of them (1), and the memory
/// taken at its end.
fn idle(
    world: &World,
    at: usize,
    window: Duration,
    stop: &Stop,
    figures: &mut Vec<Figure>,
    step: &impl Fn(&str),
) {
    stop.pause(SETTLE);
    let with = format!("{} pods", at * PODS);
    step(&format!("idle for {} s with {with}", window.as_secs()));
    let roles = [("edge", world.edge_pid()), ("cloud", world.cloud_pid())];
    let before = roles.map(|(_, pid)| Usage::of(pid));
    stop.pause(window);
    let scale = |seconds: f64| seconds / window.as_secs_f64();
    for ((role, pid), before) in roles.into_iter().zip(before) {
        let (is_edge, usage, memory) = (role == "edge", Usage::of(pid), Memory::of(pid));
        let taken = if is_edge { kubeedge::EDGE[at] } else { kubeedge::CLOUD[at] };
        let [rss, pss, anonymous, threads] = taken;
        let name = |what: &str| format!("{role}, {with}: {what}");
        let mut rows = [
            Figure::new(name("PSS"), "MiB", vec![memory.pss]).kubeedge(pss),
            Figure::new(name("anonymous"), "MiB", vec![memory.anonymous]).kubeedge(anonymous),
            Figure::new(name("RSS"), "MiB", vec![memory.rss]).kubeedge(rss),
            Figure::new(name("threads"), "1", vec![memory.threads]).kubeedge(threads),
            Figure::new(name("processor in 2 min"), "s", vec![usage.cpu_since(&before) * scale(120.0)])
                .kubeedge(if is_edge { kubeedge::EDGE_CPU[at] } else { kubeedge::CLOUD_CPU[at] }),
            Figure::new(
                name("written in a day"),
                "MB",
                vec![usage.written_since(&before) / 1e6 * scale(86_400.0)],
            ),
        ];
        if is_edge {
            let [pss, anonymous, _, _, cpu, written] = &mut rows;
            [pss.budget, anonymous.budget] = budget::EDGE[at].map(Some);
            cpu.budget = Some(budget::EDGE_CPU[at]);
            written.budget = Some(budget::EDGE_WRITTEN);
            written.kubeedge = Some(kubeedge::EDGE_WRITTEN[at]);
        }
        figures.extend(rows);
    }
}
