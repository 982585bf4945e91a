//! Pods through all of Holm, each beside the same pod by bare CRI calls.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::Receiver;
use holm::cri::{Runtime, v1};
use holm::edge::pods::config::{self, Making};
use holm::edge::pods::view::Pod;
use holm::object::Object;
use holm::task::Tasks;
use serde_json::{Value, json};

use super::api::{Api, Seen, next_of, now_ms};
use super::table::{Figure, median};
use super::{PODS, SCHEDULED, Stop, budget, kubeedge};
use crate::host::board::{self, IMAGE};
use crate::host::world::{NODE, World};

/// Exits at once when it is told to.
const SCRIPT: &str = "trap 'exit 0' TERM; /bin/busybox sleep 1000000 & wait";

/// Milliseconds from the moment that the watch told of the pod.
#[derive(Clone, Copy)]
struct Timeline {
    bound: f64,
    created: f64,
    started: f64,
    running: f64,
    deleted: f64,
}

/// Milliseconds that the bare calls took.
#[derive(Clone, Copy)]
struct Bare {
    sandbox: f64,
    create: f64,
    start: f64,
    stop: f64,
    remove: f64,
}

/// Measures, and leaves [`PODS`] pods running.
pub fn measure(world: &World, tasks: &Tasks, stop: &Stop, figures: &mut Vec<Figure>) {
    let runtime = Runtime::new(tasks.executor().clone(), &world.containerd.endpoint()).unwrap();
    let logs = world.folder.join("bare-logs");
    let api = Api::new(&world.cloud_dir(), tasks);
    let (bare, bound, scheduled) = smol::block_on(tasks.executor().run(stop.or(async {
        let watch = api.watch("/api/v1/pods").await;
        // What is read from disk for the first time is read here, and the edge
        // brings the pause image.
        one_pod(&api, &runtime, &watch, "warm", true, true).await;
        bare_pod(&runtime, &logs, "bare-warm").await;
        let (mut bare, mut bound, mut scheduled) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..SCHEDULED {
            settled().await;
            scheduled.push(one_pod(&api, &runtime, &watch, &format!("scheduled-{n}"), false, true).await);
        }
        for n in 0..PODS {
            // In turns, as the first of a pair may have it easier.
            for is_bare in [n % 2 == 0, n % 2 == 1] {
                settled().await;
                if is_bare {
                    bare.push(bare_pod(&runtime, &logs, &format!("bare-{n}")).await);
                } else {
                    bound.push(one_pod(&api, &runtime, &watch, &format!("pod-{n}"), true, false).await);
                }
            }
        }
        (bare, bound, scheduled)
    })));

    let each = |of: fn(&Bare) -> f64| bare.iter().map(of).collect::<Vec<f64>>();
    let floor = each(|bare| bare.sandbox + bare.create + bare.start);
    let floor_median = median(&floor);
    let over = |of: fn(&Timeline) -> f64| {
        bound.iter().zip(&floor).map(|(pod, bare)| of(pod) - bare).collect::<Vec<f64>>()
    };
    let (started_over, running_over) = (over(|pod| pod.started), over(|pod| pod.running));
    let pods = |of: fn(&Timeline) -> f64| bound.iter().map(of).collect::<Vec<f64>>();
    let others = |of: fn(&Timeline) -> f64| scheduled.iter().map(of).collect::<Vec<f64>>();
    figures.extend([
        Figure::new("bare CRI: RunPodSandbox", "ms", each(|bare| bare.sandbox)),
        Figure::new("bare CRI: CreateContainer", "ms", each(|bare| bare.create)),
        Figure::new("bare CRI: StartContainer", "ms", each(|bare| bare.start)),
        Figure::new("bare CRI: the three, the floor", "ms", floor),
        Figure::new("bare CRI: StopContainer, StopPodSandbox", "ms", each(|bare| bare.stop)),
        Figure::new("bare CRI: RemovePodSandbox", "ms", each(|bare| bare.remove)),
        Figure::new("pod in the API to container created", "ms", pods(|pod| pod.created)),
        Figure::new("pod in the API to container started", "ms", pods(|pod| pod.started))
            .kubeedge(kubeedge::POD_STARTED)
            .budget(floor_median + budget::POD_STARTED),
        Figure::new("the same, over the bare pod beside it", "ms", started_over).budget(budget::POD_STARTED),
        Figure::new("pod in the API to API says Running", "ms", pods(|pod| pod.running))
            .kubeedge(kubeedge::POD_RUNNING)
            .budget(floor_median + budget::POD_RUNNING),
        Figure::new("the same, over the bare pod beside it", "ms", running_over).budget(budget::POD_RUNNING),
        Figure::new("container started to API says Running", "ms", pods(|pod| pod.running - pod.started)),
        Figure::new("pod in the API to bound by the scheduler", "ms", others(|pod| pod.bound)),
        Figure::new("with the scheduler: to container started", "ms", others(|pod| pod.started)),
        Figure::new("with the scheduler: to API says Running", "ms", others(|pod| pod.running)),
        Figure::new("pod deleted to object gone, sandbox and all", "ms", others(|pod| pod.deleted))
            .kubeedge(kubeedge::POD_DELETED),
    ]);
}

fn object(name: &str) -> Object {
    board::pod(name, SCRIPT, json!({"containers": [{"imagePullPolicy": "Never"}]}))
}

/// One pod through the API. `bound` names the node in it, as KubeEdge's was;
/// `ends` deletes it again.
async fn one_pod(
    api: &Api,
    runtime: &Runtime,
    watch: &Receiver<Seen>,
    name: &str,
    bound: bool,
    ends: bool,
) -> Timeline {
    let mut spec = object(name).value["spec"].take();
    if bound {
        spec["nodeName"] = json!(NODE);
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    });
    let pods = "/api/v1/namespaces/default/pods";
    api.ask("POST", pods, Some(&pod)).await;
    let added = next_of(watch, name).await;
    assert_eq!(added.kind, "ADDED");
    let mut seen = added;
    let zero = seen.at;
    let mut bound_at = None;
    loop {
        if bound_at.is_none() && seen.object["spec"]["nodeName"].is_string() {
            bound_at = Some(seen.at);
        }
        if seen.object["status"]["phase"] == "Running" {
            break;
        }
        seen = next_of(watch, name).await;
    }
    let running = seen.at;
    let id = seen.object["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().to_owned();
    let id = id.rsplit('/').next().unwrap();
    let status = runtime.container_status(id).await.unwrap().unwrap();
    let mut deleted = running;
    let mut asked = running;
    if ends {
        settled().await;
        asked = now_ms();
        api.ask("DELETE", &format!("{pods}/{name}"), None::<&Value>).await;
        while seen.kind != "DELETED" {
            seen = next_of(watch, name).await;
        }
        deleted = seen.at;
    }
    let since = |nanoseconds: i64| nanoseconds as f64 / 1e6 - zero;
    Timeline {
        bound: bound_at.unwrap() - zero,
        created: since(status.created_at),
        started: since(status.started_at),
        running: running - zero,
        deleted: deleted - asked,
    }
}

/// Gives the kernel the time to take a network namespace down, which would
/// slow down the next pod, and a container's shell the time to hear a TERM.
async fn settled() {
    smol::Timer::after(Duration::from_millis(500)).await;
}

/// The same pod by CRI calls alone, and removed again.
async fn bare_pod(runtime: &Runtime, logs: &Path, name: &str) -> Bare {
    let object = object(name);
    let pod = Arc::new(Pod::of(&object).unwrap());
    let container = &pod.spec.containers[0];
    std::fs::create_dir_all(logs.join(config::log_folder(&pod)).join(&container.name)).unwrap();
    let cgroup = format!("{}/pod{}", crate::host::cgroup_parent(), object.uid);
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut sandbox = config::sandbox(&pod, 0, logs, &resolv, &cgroup);
    let making =
        Making { restart: 0, env: Vec::new(), mounts: Vec::new(), image_user: None, memory: 1 << 30 };
    let mut config = config::container(&pod, container, making).unwrap();
    // Not Holm's: the agent would remove it as left over.
    sandbox.labels.clear();
    config.labels.clear();
    config.image = Some(v1::ImageSpec { image: IMAGE.into(), ..Default::default() });

    let mut clock = Instant::now();
    let mut lap = || {
        let ms = clock.elapsed().as_secs_f64() * 1e3;
        clock = Instant::now();
        ms
    };
    let id = runtime.run_pod_sandbox(sandbox.clone()).await.unwrap();
    let sandbox_ms = lap();
    let run = runtime.create_container(&id, config, sandbox).await.unwrap();
    let create = lap();
    runtime.start_container(&run).await.unwrap();
    let start = lap();
    settled().await;
    lap();
    runtime.stop_container(&run, Duration::from_secs(1)).await.unwrap();
    runtime.stop_pod_sandbox(&id).await.unwrap();
    let stop = lap();
    runtime.remove_pod_sandbox(&id).await.unwrap();
    Bare { sandbox: sandbox_ms, create, start, stop, remove: lap() }
}
