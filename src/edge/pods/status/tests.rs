use super::super::observed::{ImageState, Sandbox, Volumes};
use super::super::plan::{Desired, plan};
use super::super::view::tests::object;
use super::*;
use std::time::Duration;

const T0: &str = "2026-01-01T00:00:00Z";
const T1: &str = "2026-01-01T00:00:10Z";

fn pod_of(spec: Value) -> Pod {
    Pod::of(&object("web", spec)).unwrap()
}

fn pod() -> Pod {
    pod_of(json!({ "containers": [{ "name": "a", "image": "i:1" }] }))
}

fn run(name: &str, restart: u32, state: State) -> Instance {
    Instance {
        id: format!("{name}{restart}"),
        sandbox_id: "s".into(),
        name: name.into(),
        restart,
        state,
        image: "i:1".into(),
        image_ref: "sha256:00".into(),
        started_at: 1_767_225_600_000_000_000,
        finished_at: if state == State::Exited { 1_767_225_601_500_000_000 } else { 0 },
        ..Default::default()
    }
}

fn observed(runs: &[Instance]) -> Observed {
    let sandbox = Sandbox {
        id: "s".into(),
        ready: true,
        ips: vec!["10.0.0.2".into(), "fd00::2".into()],
        ..Default::default()
    };
    Observed {
        sandboxes: vec![sandbox],
        containers: runs.to_vec(),
        volumes: Volumes::Ready,
        images: [("i:1".into(), ImageState { checked: true, present: true, ..Default::default() })].into(),
        ..Default::default()
    }
}

fn status_at(pod: &Pod, observed: &Observed, previous: Option<&Value>, now: &str) -> Value {
    let plan = plan(Desired::of(pod), observed, Duration::from_secs(1));
    let host_ips = ["192.0.2.1".to_string()];
    let facts = Facts { host_ips: &host_ips, now, runtime: "containerd" };
    status(pod, observed, &plan, previous, facts)
}

fn is_true(status: &Value, kind: &str) -> bool {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|c| c["type"] == kind).unwrap()["status"] == "True"
}

#[test]
fn a_running_pod_reads_as_a_kubelets() {
    let status = status_at(&pod(), &observed(&[run("a", 0, State::Running)]), None, T0);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.0.0.2");
    assert_eq!(status["podIPs"], json!([{ "ip": "10.0.0.2" }, { "ip": "fd00::2" }]));
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["startTime"], T0);
    assert_eq!(status["qosClass"], "BestEffort");
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    assert!(kinds.iter().all(|k| is_true(&status, k)), "{status:#}");
    assert_eq!(
        status["containerStatuses"],
        json!([{ "name": "a", "image": "i:1", "imageID": "sha256:00", "ready": true, "started": true,
                 "restartCount": 0, "containerID": "containerd://a0", "lastState": {},
                 "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } }])
    );
}

#[test]
fn the_same_observation_gives_the_same_status_at_any_time() {
    let observed = observed(&[run("a", 0, State::Running)]);
    let first = status_at(&pod(), &observed, None, T0);
    assert_eq!(status_at(&pod(), &observed, Some(&first), T1), first);
}

#[test]
fn times_are_those_of_transitions() {
    let starting = status_at(&pod(), &observed(&[]), None, T0);
    assert_eq!(starting["phase"], "Pending");
    assert_eq!(starting["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    let running = status_at(&pod(), &observed(&[run("a", 0, State::Running)]), Some(&starting), T1);
    let since = |kind: &str| {
        let conditions = running["conditions"].as_array().unwrap();
        conditions.iter().find(|c| c["type"] == kind).unwrap()["lastTransitionTime"].clone()
    };
    assert_eq!((since("Ready"), since("PodScheduled")), (json!(T1), json!(T0)));
    assert_eq!(running["startTime"], T0);
}

#[test]
fn a_crash_shows_as_waiting_with_the_last_end() {
    let mut last = run("a", 1, State::Exited);
    (last.exit_code, last.message) = (3, "why".into());
    let mut observed = observed(&[run("a", 0, State::Exited), last]);
    observed.count_exits(Duration::from_secs(1));
    let status = status_at(&pod(), &observed, None, T0);
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let ended = &container["lastState"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["message"]),
        (&json!(3), &json!("Error"), &json!("why"))
    );
    assert_eq!(ended["finishedAt"], "2026-01-01T00:00:01Z");
    assert_eq!(container["restartCount"], 1);
    assert_eq!(status["phase"], "Running");
    assert!(!is_true(&status, "Ready") && is_true(&status, "Initialized"));
}

#[test]
fn the_last_end_is_carried_when_the_runtime_forgot_it() {
    let with_last = observed(&[run("a", 1, State::Exited), run("a", 2, State::Running)]);
    let before = status_at(&pod(), &with_last, None, T0);
    let after = status_at(&pod(), &observed(&[run("a", 2, State::Running)]), Some(&before), T1);
    assert_eq!(before, after);
    assert_eq!(after["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 0);
}

#[test]
fn phases_follow_the_restart_policy() {
    let phase = |policy: &str, codes: &[i32]| {
        let containers: Vec<_> =
            (0..codes.len()).map(|n| json!({ "name": format!("c{n}"), "image": "i:1" })).collect();
        let pod = pod_of(json!({ "containers": containers, "restartPolicy": policy }));
        let ended = codes.iter().enumerate().map(|(n, code)| {
            let mut run = run(&format!("c{n}"), 0, State::Exited);
            run.exit_code = *code;
            run
        });
        let status = status_at(&pod, &observed(&ended.collect::<Vec<_>>()), None, T0);
        status["phase"].as_str().unwrap().to_owned()
    };
    assert_eq!(phase("Never", &[0, 0]), "Succeeded");
    assert_eq!(phase("Never", &[0, 1]), "Failed");
    assert_eq!(phase("OnFailure", &[0]), "Succeeded");
    assert_eq!(phase("OnFailure", &[1]), "Running");
    assert_eq!(phase("Always", &[0]), "Running");
}

#[test]
fn init_containers_hold_the_pod_back() {
    let pod = pod_of(json!({ "initContainers": [{ "name": "n", "image": "i:1" }],
                             "containers": [{ "name": "a", "image": "i:1" }] }));
    let status = status_at(&pod, &observed(&[run("n", 0, State::Running)]), None, T0);
    assert_eq!(status["phase"], "Pending");
    assert!(!is_true(&status, "Initialized"));
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    let done = observed(&[run("n", 0, State::Exited), run("a", 0, State::Running)]);
    let status = status_at(&pod, &done, None, T0);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["initContainerStatuses"][0]["ready"], true);
}

#[test]
fn a_pod_that_ended_keeps_its_address_and_is_not_ready() {
    let pod = pod_of(json!({ "containers": [{ "name": "a", "image": "i:1" }], "restartPolicy": "Never" }));
    let before = status_at(&pod, &observed(&[run("a", 0, State::Running)]), None, T0);
    let mut ended = observed(&[run("a", 0, State::Exited)]);
    ended.sandboxes[0].ready = false;
    let status = status_at(&pod, &ended, Some(&before), T1);
    assert_eq!((&status["phase"], &status["podIP"]), (&json!("Succeeded"), &json!("10.0.0.2")));
    assert!(!is_true(&status, "Ready") && is_true(&status, "Initialized"));
}

#[test]
fn classes_of_service_are_kubernetes() {
    let class = |resources: Value| {
        qos(&pod_of(json!({ "containers": [{ "name": "a", "image": "i:1", "resources": resources }] })))
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({ "limits": { "cpu": "1", "memory": "1Gi" } })), "Guaranteed");
    let both = json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "500m" } });
    assert_eq!(class(both), "Burstable");
    assert_eq!(class(json!({ "requests": { "memory": "1Mi" } })), "Burstable");
}

#[test]
fn a_pod_that_cannot_run_says_why() {
    let first = invalid("volume v: nfs is not supported", None, T0);
    assert_eq!((&first["phase"], &first["reason"]), (&json!("Pending"), &json!("InvalidPod")));
    assert_eq!(invalid("volume v: nfs is not supported", Some(&first), T1), first);
}
