//! The planner against a model of a runtime: whatever happens in whatever order, it keeps its
//! promises, and when nothing more happens it comes to rest where it should.

use super::super::observed::{ImageState, Sandbox, Volumes};
use super::super::view::tests::object;
use super::*;
use crate::object::Object;
use proptest::prelude::*;
use serde_json::{Value, json};

fn pod_of(spec: Value) -> Pod {
    Pod::of(&object("p", spec)).unwrap()
}

fn simple(policy: &str) -> Value {
    json!({ "containers": [{ "name": "a", "image": "i:1" }], "restartPolicy": policy })
}

/// A runtime that does what it is told, and a clock.
struct Model {
    observed: Observed,
    now: Time,
    flying: Vec<Action>,
    made: u32,
    starts: BTreeMap<String, u32>,
}

impl Model {
    fn new() -> Model {
        let (observed, now) = (Observed::default(), Duration::from_secs(1));
        Model { observed, now, flying: Vec::new(), made: 0, starts: BTreeMap::new() }
    }

    fn plan(&mut self, pod: &Pod) -> Plan {
        self.observed.count_exits(self.now);
        plan(Desired::of(pod), &self.observed, self.now)
    }

    /// Sets the plan's actions under way.
    fn begin(&mut self, pod: &Pod) -> Plan {
        let plan = self.plan(pod);
        for action in &plan.actions {
            assert!(self.observed.busy.insert(action.work()), "{action:?} is under way already");
            if pod.is_terminating() {
                let creates = matches!(
                    action,
                    Action::Sandbox { .. } | Action::Start { .. } | Action::Prepare | Action::Pull { .. }
                );
                assert!(!creates, "{action:?} for a pod that is to go");
            }
            self.flying.push(action.clone());
        }
        plan
    }

    fn exit(&mut self, which: impl Fn(&Instance) -> bool, code: i32) {
        for run in self.observed.containers.iter_mut().filter(|r| which(r)) {
            if matches!(run.state, State::Running | State::Unknown) {
                run.state = State::Exited;
                run.exit_code = code;
                run.finished_at = run.started_at + 1;
            }
        }
    }

    /// An action under way comes to its end.
    fn end(&mut self, pod: &Pod, nth: usize, fails: bool) {
        if self.flying.is_empty() {
            return;
        }
        let action = self.flying.remove(nth % self.flying.len());
        let work = action.work();
        self.observed.busy.remove(&work);
        if fails {
            return self.observed.failed(work, "Failed", "why".into(), self.now);
        }
        self.observed.failures.remove(&work);
        let o = &mut self.observed;
        self.made += 1;
        let id = self.made.to_string();
        match action {
            Action::Prepare => o.volumes = Volumes::Ready,
            Action::Discard => {
                assert!(o.sandboxes.is_empty() && o.containers.is_empty(), "volumes go last");
                o.volumes = Volumes::Gone;
            }
            Action::Check { image } => {
                let state = ImageState { checked: true, ..Default::default() };
                o.images.insert(image, state);
            }
            Action::Pull { image, run } => {
                let state = o.images.entry(image).or_default();
                state.present = true;
                state.pulled_for.insert(run);
            }
            Action::Sandbox { attempt } => {
                assert!(o.sandbox().is_none(), "two sandboxes at once");
                assert!(o.sandboxes.iter().all(|s| s.attempt < attempt), "an attempt twice");
                o.sandboxes.push(Sandbox { id, attempt, ready: true, ..Default::default() });
            }
            Action::Start { name, restart, sandbox } => {
                let runs = o.containers.iter().filter(|c| c.name == name);
                assert!(runs.clone().all(|c| c.state == State::Exited), "{name} twice at once");
                assert!(runs.clone().all(|c| c.restart < restart), "a restart count twice");
                assert!(
                    o.containers.iter().filter(|c| c.state == State::Running).count() < 4,
                    "no more containers than there are"
                );
                let alive = o.sandboxes.iter().any(|s| s.id == sandbox && s.ready);
                if alive {
                    *self.starts.entry(name.clone()).or_default() += 1;
                    let image = pod.container(&name).unwrap().image.clone();
                    let state = State::Running;
                    let started_at = 1;
                    let sandbox_id = sandbox;
                    let run = Instance {
                        id,
                        sandbox_id,
                        name,
                        restart,
                        state,
                        image,
                        started_at,
                        ..Default::default()
                    };
                    o.containers.push(run);
                }
            }
            Action::Stop { id, .. } => self.exit(|r| r.id == id, 137),
            Action::Remove { id, .. } => {
                let run = o.containers.iter().find(|c| c.id == id);
                assert!(run.is_none_or(|r| r.state != State::Running), "a running container removed");
                o.containers.retain(|c| c.id != id);
            }
            Action::StopSandbox { id } => {
                self.exit(|r| r.sandbox_id == id, 137);
                for sandbox in self.observed.sandboxes.iter_mut().filter(|s| s.id == id) {
                    (sandbox.ready, sandbox.stopped) = (false, true);
                }
            }
            Action::TearDown { id } => {
                let running = |c: &&Instance| c.sandbox_id == id && c.state == State::Running;
                assert!(
                    !o.containers.iter().any(|c| running(&c)),
                    "a sandbox removed under a running container"
                );
                o.sandboxes.retain(|s| s.id != id);
                o.containers.retain(|c| c.sandbox_id != id);
            }
        }
    }

    /// Lets everything come to its end; answers the last plan.
    fn settle(&mut self, pod: &Pod) -> Plan {
        for _ in 0..200 {
            let plan = self.begin(pod);
            if self.flying.is_empty() {
                match plan.wake_at {
                    Some(at) => self.now = self.now.max(at),
                    None => return plan,
                }
            }
            while !self.flying.is_empty() {
                self.end(pod, 0, false);
            }
        }
        panic!("no rest after 200 rounds: {:#?}", self.observed);
    }

    fn running(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .observed
            .containers
            .iter()
            .filter(|c| c.state == State::Running)
            .map(|c| c.name.as_str())
            .collect();
        names.sort_unstable();
        names
    }
}

fn terminating(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
    pod
}

#[test]
fn a_pod_starts_in_as_few_rounds_as_its_steps_allow() {
    let pod = pod_of(simple("Always"));
    let mut model = Model::new();
    let first: Vec<Work> = model.plan(&pod).actions.iter().map(Action::work).collect();
    assert_eq!(first, [Work::Volumes, Work::Sandbox, Work::Image("i:1".into())], "all at the same time");
    let plan = model.settle(&pod);
    assert_eq!(model.running(), ["a"]);
    assert_eq!(plan, Plan::default());
}

#[test]
fn init_containers_run_one_after_another_and_sidecars_beside_the_rest() {
    let pod = pod_of(json!({
        "initContainers": [{ "name": "one", "image": "i:1" },
                           { "name": "side", "image": "i:1", "restartPolicy": "Always" },
                           { "name": "two", "image": "i:1" }],
        "containers": [{ "name": "a", "image": "i:1" }],
    }));
    let mut model = Model::new();
    model.settle(&pod);
    assert_eq!(model.running(), ["one"]);
    model.exit(|r| r.name == "one", 1);
    model.settle(&pod);
    assert_eq!(model.running(), ["one"], "again until it succeeds");
    model.exit(|r| r.name == "one", 0);
    model.settle(&pod);
    assert_eq!(model.running(), ["side", "two"]);
    model.exit(|r| r.name == "two", 0);
    model.settle(&pod);
    assert_eq!(model.running(), ["a", "side"]);
    model.exit(|r| r.name == "side", 0);
    model.settle(&pod);
    assert_eq!(model.running(), ["a", "side"]);
    let plan = model.plan(&terminating(&pod));
    let [Action::Stop { id, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
    let first = model.observed.containers.iter().find(|c| c.id == *id).unwrap();
    assert_eq!(first.name, "a", "sidecars stop last");
    assert!(model.settle(&terminating(&pod)).removed);
}

#[test]
fn a_finished_pod_rests_and_keeps_its_logs() {
    for (policy, code, outcome) in [("Never", 0, true), ("Never", 3, false), ("OnFailure", 0, true)] {
        let pod = pod_of(simple(policy));
        let mut model = Model::new();
        model.settle(&pod);
        model.exit(|_| true, code);
        let plan = model.settle(&pod);
        assert_eq!(plan.finished, Some(outcome), "{policy} {code}");
        assert_eq!(model.starts["a"], 1);
        assert_eq!(model.observed.containers.len(), 1, "kept for its logs");
        assert!(model.observed.sandbox().is_none(), "its network is given back");
        // After the machine was off, it is still finished.
        model.observed.sandboxes.iter_mut().for_each(|s| s.stopped = false);
        assert_eq!(model.settle(&pod).finished, Some(outcome));
        assert_eq!(model.starts["a"], 1);
    }
}

#[test]
fn a_reported_end_is_final_even_if_the_runtime_forgot() {
    let mut object = object("p", simple("Never"));
    object.value["status"] = json!({ "phase": "Succeeded" });
    let pod = Pod::of(&object).unwrap();
    let mut model = Model::new();
    assert_eq!(model.settle(&pod).finished, Some(true));
    assert!(model.starts.is_empty());
}

#[test]
fn crashes_wait_and_say_so() {
    let pod = pod_of(simple("Always"));
    let mut model = Model::new();
    model.settle(&pod);
    model.exit(|_| true, 1);
    model.settle(&pod);
    assert_eq!(model.starts["a"], 2, "the first time at once");
    let before = model.now;
    model.exit(|_| true, 1);
    let plan = model.plan(&pod);
    assert_eq!(plan.waiting["a"].reason, "CrashLoopBackOff");
    assert_eq!(plan.waiting["a"].message, "back-off 10s restarting failed container=a pod=p_default");
    assert_eq!(plan.wake_at, Some(before + Duration::from_secs(10)));
    model.settle(&pod);
    assert_eq!(model.starts["a"], 3);
}

#[test]
fn what_a_container_lacks_is_said() {
    let pod = pod_of(json!({ "containers": [
        { "name": "never", "image": "n:1", "imagePullPolicy": "Never" },
        { "name": "config", "image": "i:1" },
        { "name": "pull", "image": "p:1" }] }));
    let mut model = Model::new();
    model.observed.config_errors.insert("config".into(), "configmap \"x\" not found".into());
    for _ in 0..4 {
        model.begin(&pod);
        while let Some(action) = model.flying.first().cloned() {
            let fails = matches!(&action, Action::Pull { image, .. } if image == "p:1");
            model.end(&pod, 0, fails);
        }
    }
    let waiting = model.plan(&pod).waiting;
    assert_eq!(waiting["never"].reason, "ErrImageNeverPull");
    assert_eq!(waiting["config"].reason, "CreateContainerConfigError");
    assert!(waiting["config"].message.contains("configmap \"x\""));
    assert_eq!(waiting["pull"].reason, "ErrImagePull");
    model.now += Duration::from_secs(10);
    model.begin(&pod);
    model.end(&pod, 0, true);
    assert_eq!(model.plan(&pod).waiting["pull"].reason, "ImagePullBackOff");
}

#[test]
fn an_image_that_must_be_pulled_is_pulled_for_every_run() {
    let pod = pod_of(json!({ "containers": [{ "name": "a", "image": "i:latest" }] }));
    let mut model = Model::new();
    model.settle(&pod);
    model.exit(|_| true, 0);
    let plan = model.plan(&pod);
    let run = ("a".to_string(), 1);
    assert_eq!(plan.actions, [Action::Pull { image: "i:latest".into(), run }]);
}

#[test]
fn a_changed_image_replaces_the_container() {
    let mut pod = pod_of(simple("Always"));
    let mut model = Model::new();
    model.settle(&pod);
    pod.spec.containers[0].image = "i:2".into();
    model.settle(&pod);
    assert_eq!(model.running(), ["a"]);
    assert_eq!(model.observed.latest("a").unwrap().image, "i:2");
}

#[test]
fn a_shorter_grace_overtakes_a_longer_one() {
    let pod = pod_of(simple("Always"));
    let mut model = Model::new();
    model.settle(&pod);
    let stops = |plan: &Plan| matches!(plan.actions.as_slice(), [Action::Stop { .. }]);
    let mut gone = terminating(&pod);
    assert!(stops(&model.begin(&gone)));
    assert!(model.begin(&gone).actions.is_empty());
    gone.metadata.deletion_grace_period_seconds = Some(0);
    assert!(stops(&model.begin(&gone)));
}

/// Things that happen.
#[derive(Clone, Debug)]
enum Happening {
    Plan,
    End { nth: usize, fails: bool },
    Exit { nth: usize, code: i32 },
    SandboxDies,
    Lost { nth: usize },
    Time { seconds: u64 },
    AgentRestarts,
    Image,
    Delete,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        8 => Just(Plan),
        8 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(nth, fails)| End { nth, fails }),
        3 => (any::<usize>(), 0..3i32).prop_map(|(nth, code)| Exit { nth, code }),
        1 => Just(SandboxDies),
        1 => any::<usize>().prop_map(|nth| Lost { nth }),
        3 => (0..400u64).prop_map(|seconds| Time { seconds }),
        1 => Just(AgentRestarts),
        1 => Just(Image),
    ]
}

fn spec() -> impl Strategy<Value = Object> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let sidecar = prop::option::of(Just(json!({ "name": "s", "image": "i:1", "restartPolicy": "Always" })));
    let init = prop::option::of(Just(json!({ "name": "n", "image": "i:1" })));
    (policy, sidecar, init, any::<bool>()).prop_map(|(policy, sidecar, init, two)| {
        let mut containers = vec![json!({ "name": "a", "image": "i:1" })];
        if two {
            containers.push(json!({ "name": "b", "image": "i:latest" }));
        }
        let inits: Vec<_> = sidecar.into_iter().chain(init).collect();
        object("p", json!({ "containers": containers, "initContainers": inits, "restartPolicy": policy }))
    })
}

proptest! {
    #[test]
    fn whatever_happens_the_planner_keeps_its_promises(
        object in spec(),
        happenings in prop::collection::vec(happening(), 0..120),
        delete_at in prop::option::of(0..120usize),
    ) {
        let mut pod = Pod::of(&object).unwrap();
        let mut model = Model::new();
        for (n, happening) in happenings.into_iter().enumerate() {
            let happening = if delete_at == Some(n) { Happening::Delete } else { happening };
            match happening {
                Happening::Plan => { model.begin(&pod); }
                Happening::End { nth, fails } => model.end(&pod, nth, fails),
                Happening::Exit { nth, code } => {
                    let running: Vec<_> = model.observed.containers.iter()
                        .filter(|c| c.state == State::Running).map(|c| c.id.clone()).collect();
                    if !running.is_empty() {
                        let id = running[nth % running.len()].clone();
                        model.exit(|r| r.id == id, code);
                    }
                }
                Happening::SandboxDies => {
                    model.observed.sandboxes.iter_mut().for_each(|s| s.ready = false);
                    model.exit(|_| true, 255);
                }
                Happening::Lost { nth } => {
                    let runs = &mut model.observed.containers;
                    if !runs.is_empty() {
                        let nth = nth % runs.len();
                        if runs[nth].state == State::Running {
                            runs[nth].state = State::Unknown;
                        }
                    }
                }
                Happening::Time { seconds } => model.now += Duration::from_secs(seconds),
                Happening::AgentRestarts => {
                    // What was under way breaks off; what is known is what the runtime says.
                    model.flying.clear();
                    let mut observed = Observed {
                        sandboxes: std::mem::take(&mut model.observed.sandboxes),
                        containers: std::mem::take(&mut model.observed.containers),
                        ..Default::default()
                    };
                    observed.sandboxes.iter_mut().for_each(|s| s.stopped = false);
                    model.observed = observed;
                }
                Happening::Image => if pod.spec.restart_policy == RestartPolicy::Always {
                    pod.spec.containers[0].image = "i:3".into();
                },
                Happening::Delete => pod = terminating(&pod),
            }
            if pod.spec.restart_policy == RestartPolicy::Never {
                for container in &pod.spec.containers {
                    let starts = model.starts.get(&container.name).copied().unwrap_or(0);
                    prop_assert!(starts <= 1, "{} started {starts} times", container.name);
                }
            }
        }
        while !model.flying.is_empty() {
            model.end(&pod, 0, false);
        }
        // Nothing more happens, but that init containers do their work.
        let mut last = model.settle(&pod);
        for _ in 0..3 {
            model.exit(|r| r.name == "n", 0);
            last = model.settle(&pod);
        }
        if pod.is_terminating() {
            prop_assert!(last.removed);
            prop_assert!(model.observed.containers.is_empty() && model.observed.sandboxes.is_empty());
            prop_assert_eq!(model.observed.volumes, Volumes::Gone);
        } else if last.finished.is_some() {
            prop_assert!(model.running().is_empty());
            prop_assert!(model.observed.sandbox().is_none());
        } else {
            let running = model.running();
            for container in &pod.spec.containers {
                let run = model.observed.latest(&container.name).unwrap();
                let ended = run.state == State::Exited && !restarts(pod.spec.restart_policy, run);
                prop_assert!(ended || running.contains(&container.name.as_str()), "{} rests: {run:?}", container.name);
                prop_assert!(ended || run.image == container.image);
            }
            prop_assert_eq!(model.observed.sandboxes.iter().filter(|s| s.ready).count(), 1);
            let most = 2 * (pod.spec.containers.len() + pod.spec.init_containers.len());
            prop_assert!(model.observed.containers.len() <= most, "old runs are removed");
        }
    }
}
