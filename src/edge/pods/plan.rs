//! What to do next for one pod: a pure function of what is wanted, what is there and the time.
//!
//! A plan's actions may be carried out at the same time; what must wait for them is not in the
//! plan yet. Planning again before they are done gives nothing twice: steps under way are part of
//! [`Observed`].

use super::observed::{Instance, Observed, State, Time, Work};
use super::view::{Container, Pod, PullPolicy, RestartPolicy};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is wanted of a pod.
#[derive(Clone, Copy, Debug)]
pub enum Desired<'a> {
    /// It should run.
    Run(&'a Pod),
    /// It should be gone. The pod, where it is still known, says which containers stop last.
    Stop {
        /// What each container gets to stop by itself.
        grace: Duration,
        /// The pod as it was last known.
        pod: Option<&'a Pod>,
    },
}

impl<'a> Desired<'a> {
    /// What a pod object that is still there asks for.
    pub fn of(pod: &'a Pod) -> Desired<'a> {
        match pod.is_terminating() {
            true => Desired::Stop { grace: pod.grace(), pod: Some(pod) },
            false => Desired::Run(pod),
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the volumes.
    Prepare,
    /// Ask the runtime whether it has the image.
    Check {
        /// As the container names it.
        image: String,
    },
    /// Pull the image.
    Pull {
        /// As the container names it.
        image: String,
        /// The run that needs it: container and restart count.
        run: (String, u32),
    },
    /// Make and start a sandbox.
    Sandbox {
        /// Counts the pod's sandboxes.
        attempt: u32,
    },
    /// Make and start a container.
    Start {
        /// The container's name.
        name: String,
        /// Counts its runs.
        restart: u32,
        /// The sandbox to make it in.
        sandbox: String,
    },
    /// Stop a container.
    Stop {
        /// The run's identifier.
        id: String,
        /// What it gets to stop by itself.
        grace: Duration,
    },
    /// Remove an ended container and what it left on disk.
    Remove {
        /// The run's identifier.
        id: String,
        /// The container's name.
        name: String,
        /// Which run of it.
        restart: u32,
    },
    /// Stop a sandbox: give its network back.
    StopSandbox {
        /// Its identifier.
        id: String,
    },
    /// Stop and remove a sandbox with what is left in it.
    TearDown {
        /// Its identifier.
        id: String,
    },
    /// Remove the pod's folder.
    Discard,
}

impl Action {
    /// What the step is about.
    pub fn work(&self) -> Work {
        match self {
            Action::Prepare => Work::Volumes,
            Action::Check { image } | Action::Pull { image, .. } => Work::Image(image.clone()),
            Action::Sandbox { .. } => Work::Sandbox,
            Action::Start { name, .. } => Work::Start(name.clone()),
            Action::Stop { id, grace } => Work::Stop(id.clone(), *grace),
            Action::Remove { id, .. } => Work::Remove(id.clone()),
            Action::StopSandbox { id } => Work::StopSandbox(id.clone()),
            Action::TearDown { id } => Work::TearDown(id.clone()),
            Action::Discard => Work::Discard,
        }
    }
}

/// Why a container is not running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Kubernetes' word: `ContainerCreating`, `ImagePullBackOff`, `CrashLoopBackOff`, ….
    pub reason: &'static str,
    /// The same for a person.
    pub message: String,
}

/// What comes next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be started now.
    pub actions: Vec<Action>,
    /// Plan again then, if nothing happens before.
    pub wake_at: Option<Time>,
    /// Containers that do not run, and why.
    pub waiting: BTreeMap<String, Waiting>,
    /// Every container has ended for good (`Some(true)`: all well).
    pub finished: Option<bool>,
    /// Nothing is left of the pod on this machine.
    pub removed: bool,
}

/// What to do next.
pub fn plan(desired: Desired<'_>, observed: &Observed, now: Time) -> Plan {
    let mut planner = Planner { observed, now, plan: Plan::default() };
    match desired {
        Desired::Run(pod) => planner.run(pod),
        Desired::Stop { grace, pod } => planner.stop(grace, pod),
    }
    planner.plan
}

/// Whether every container of the pod has ended for good, and then whether all ended well.
pub fn finished(pod: &Pod, observed: &Observed) -> Option<bool> {
    match pod.status.phase.as_str() {
        "Succeeded" => return Some(true),
        "Failed" => return Some(false),
        _ => {}
    }
    let policy = pod.spec.restart_policy;
    if policy == RestartPolicy::Always {
        return None;
    }
    let ended = |name: &str| {
        let run = observed.latest(name).filter(|run| run.state == State::Exited)?;
        (!restarts(policy, run)).then_some(run.exit_code == 0)
    };
    let inits = pod.spec.init_containers.iter().filter(|c| !c.is_sidecar());
    if inits.clone().any(|c| ended(&c.name) == Some(false)) {
        return Some(false);
    }
    let mut well = true;
    for container in &pod.spec.containers {
        well &= ended(&container.name)?;
    }
    Some(well)
}

fn restarts(policy: RestartPolicy, run: &Instance) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => run.exit_code != 0,
        RestartPolicy::Never => false,
    }
}

fn remove(run: &Instance) -> Action {
    Action::Remove { id: run.id.clone(), name: run.name.clone(), restart: run.restart }
}

struct Planner<'a> {
    observed: &'a Observed,
    now: Time,
    plan: Plan,
}

impl Planner<'_> {
    /// Adds a step unless one on the same subject is under way or has to wait.
    fn act(&mut self, action: Action) {
        let work = action.work();
        if self.observed.busy.contains(&work) {
            return;
        }
        if let Some(failure) = self.observed.failures.get(&work)
            && failure.retry_at > self.now
        {
            self.wake(failure.retry_at);
            return;
        }
        if self.plan.actions.iter().all(|a| a.work() != work) {
            self.plan.actions.push(action);
        }
    }

    fn wake(&mut self, at: Time) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |w| w.min(at)));
    }

    fn waits(&mut self, container: &Container, reason: &'static str, message: impl Into<String>) {
        let waiting = Waiting { reason, message: message.into() };
        self.plan.waiting.insert(container.name.clone(), waiting);
    }

    fn busy(&self, is: impl Fn(&Work) -> bool) -> bool {
        self.observed.busy.iter().any(is)
    }

    // Taking a pod down.

    fn stop(&mut self, grace: Duration, pod: Option<&Pod>) {
        let observed = self.observed;
        let sidecar = |name: &str| {
            let container = pod.and_then(|p| p.container(name));
            container.is_some_and(Container::is_sidecar)
        };
        let alive = |c: &&Instance| matches!(c.state, State::Running | State::Unknown);
        let main = observed.containers.iter().filter(alive).any(|c| !sidecar(&c.name));
        for run in observed.containers.iter().filter(alive) {
            // Sidecars serve the others until these have stopped.
            if !(main && sidecar(&run.name)) {
                self.stop_run(run, grace);
            }
        }
        let creating = self.busy(|w| matches!(w, Work::Sandbox | Work::Start(_) | Work::Volumes));
        if creating || observed.containers.iter().any(|c| alive(&c)) {
            return;
        }
        for sandbox in &observed.sandboxes {
            self.act(Action::TearDown { id: sandbox.id.clone() });
        }
        for run in &observed.containers {
            if !observed.sandboxes.iter().any(|s| s.id == run.sandbox_id) {
                self.act(remove(run));
            }
        }
        let removing = |w: &Work| {
            matches!(w, Work::TearDown(_) | Work::Remove(_) | Work::Stop(..) | Work::StopSandbox(_))
        };
        if !observed.sandboxes.is_empty() || !observed.containers.is_empty() || self.busy(removing) {
            return;
        }
        if observed.volumes == super::observed::Volumes::Gone {
            self.plan.removed = true;
        } else {
            self.act(Action::Discard);
        }
    }

    /// Stops a run, unless it is being stopped with no more grace than this already.
    fn stop_run(&mut self, run: &Instance, grace: Duration) {
        let grace = if run.state == State::Unknown { Duration::ZERO } else { grace };
        if !self.busy(|w| matches!(w, Work::Stop(id, g) if *id == run.id && *g <= grace)) {
            self.act(Action::Stop { id: run.id.clone(), grace });
        }
    }

    // Keeping a pod up.

    fn run(&mut self, pod: &Pod) {
        self.collect(pod);
        self.plan.finished = finished(pod, self.observed);
        if self.plan.finished.is_some() {
            return self.rest(pod);
        }
        let observed = self.observed;
        if observed.volumes != super::observed::Volumes::Ready {
            self.act(Action::Prepare);
        }
        let sandbox = observed.sandbox();
        if sandbox.is_none() {
            self.make_sandbox();
        }
        let sandbox = sandbox.map(|s| s.id.as_str());
        for init in &pod.spec.init_containers {
            if !self.init(pod, init, sandbox) {
                return;
            }
        }
        for container in &pod.spec.containers {
            self.app(pod, container, sandbox);
        }
    }

    /// A pod whose containers ended for good: nothing runs, the network is given back, the ended
    /// containers stay for their logs until the pod is deleted.
    fn rest(&mut self, pod: &Pod) {
        let observed = self.observed;
        let mut alive = false;
        for run in &observed.containers {
            if matches!(run.state, State::Running | State::Unknown) {
                alive = true;
                self.stop_run(run, pod.grace());
            }
        }
        for sandbox in observed.sandboxes.iter().filter(|s| s.ready && !alive) {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
    }

    fn make_sandbox(&mut self) {
        let observed = self.observed;
        // What a dead sandbox still holds (an address, a host port) the next one may need.
        let held: Vec<_> = observed.sandboxes.iter().filter(|s| !s.stopped).collect();
        for sandbox in &held {
            self.act(Action::StopSandbox { id: sandbox.id.clone() });
        }
        if held.is_empty() {
            let newest = observed.sandboxes.iter().map(|s| s.attempt).max();
            let attempt = newest.map_or(0, |a| a.saturating_add(1));
            self.act(Action::Sandbox { attempt });
        }
    }

    /// Removes what no one will ask for again: of each container all but the newest two runs, and
    /// dead sandboxes that are empty.
    fn collect(&mut self, pod: &Pod) {
        let observed = self.observed;
        let newest = observed.sandboxes.iter().map(|s| s.attempt).max().unwrap_or(0);
        for run in &observed.containers {
            let newer = observed.containers.iter().filter(|o| o.name == run.name && o.restart > run.restart);
            let stray = pod.container(&run.name).is_none();
            let newer = newer.count();
            match run.state {
                State::Running | State::Unknown if newer > 0 => self.stop_run(run, pod.grace()),
                State::Exited if newer > 1 || stray => self.act(remove(run)),
                // Made, but the start never came; its name is in the way of the next try.
                State::Created if !self.busy(|w| *w == Work::Start(run.name.clone())) => {
                    self.act(remove(run));
                }
                _ => {}
            }
        }
        let current = observed.sandbox().map(|s| s.attempt);
        for sandbox in &observed.sandboxes {
            let empty = !observed.containers.iter().any(|c| c.sandbox_id == sandbox.id);
            let newest =
                if sandbox.ready { current == Some(sandbox.attempt) } else { sandbox.attempt == newest };
            if empty && !newest {
                self.act(Action::TearDown { id: sandbox.id.clone() });
            }
        }
    }

    /// Sees to one init container; true if the next may have its turn.
    fn init(&mut self, pod: &Pod, container: &Container, sandbox: Option<&str>) -> bool {
        let observed = self.observed;
        let run = sandbox.and_then(|s| observed.latest_in(s, &container.name));
        match run {
            Some(run) if run.state == State::Exited && !container.is_sidecar() => {
                if run.exit_code == 0 {
                    return true;
                }
                self.start(pod, container, sandbox);
                false
            }
            Some(run) if run.state == State::Running => container.is_sidecar(),
            Some(run) if run.state == State::Unknown => {
                self.stop_run(run, Duration::ZERO);
                false
            }
            Some(run) if run.state == State::Exited => {
                // A sidecar that ended is started again while the others go on.
                self.start(pod, container, sandbox);
                true
            }
            _ => {
                self.start(pod, container, sandbox);
                false
            }
        }
    }

    fn app(&mut self, pod: &Pod, container: &Container, sandbox: Option<&str>) {
        let observed = self.observed;
        let Some(run) = observed.latest(&container.name) else {
            return self.start(pod, container, sandbox);
        };
        let changed = !run.image.is_empty() && run.image != container.image;
        match run.state {
            State::Running if Some(run.sandbox_id.as_str()) != sandbox => {
                // Its sandbox is dead and being stopped, and it with it.
            }
            State::Running if changed => self.stop_run(run, pod.grace()),
            State::Running => {}
            State::Unknown => self.stop_run(run, Duration::ZERO),
            State::Created => self.waits(container, "ContainerCreating", ""),
            State::Exited if changed || restarts(pod.spec.restart_policy, run) => {
                self.start(pod, container, sandbox);
            }
            State::Exited => {}
        }
    }

    /// Starts a container as soon as everything it needs is there.
    fn start(&mut self, pod: &Pod, container: &Container, sandbox: Option<&str>) {
        let observed = self.observed;
        let name = &container.name;
        let last = observed.latest(name);
        if last.is_some_and(|l| l.state != State::Exited) {
            // Stopping, or being removed; its end will be seen.
            return;
        }
        let restart = last.map_or(0, |l| l.restart.saturating_add(1));
        if let Some(crash) = observed.crashes.get(name)
            && crash.restart_at > self.now
        {
            let wait = crash.delay.as_secs();
            let pod = &pod.metadata;
            self.waits(
                container,
                "CrashLoopBackOff",
                format!(
                    "back-off {wait}s restarting failed container={name} pod={}_{}",
                    pod.name, pod.namespace
                ),
            );
            return self.wake(crash.restart_at);
        }
        if !self.image(container, restart) {
            return;
        }
        let failure = |work: &Work| observed.failures.get(work).map(|f| (f.reason, f.message.clone()));
        if let Some(error) = observed.config_errors.get(name) {
            return self.waits(container, "CreateContainerConfigError", error.clone());
        }
        let ready = observed.volumes == super::observed::Volumes::Ready;
        let Some(sandbox) = sandbox.filter(|_| ready) else {
            let failed = failure(&Work::Sandbox).or_else(|| failure(&Work::Volumes));
            let (reason, message) = failed.unwrap_or(("ContainerCreating", String::new()));
            return self.waits(container, reason, message);
        };
        let (reason, message) =
            failure(&Work::Start(name.clone())).unwrap_or(("ContainerCreating", String::new()));
        if last.is_none() || !message.is_empty() {
            self.waits(container, reason, message);
        }
        self.act(Action::Start { name: name.clone(), restart, sandbox: sandbox.into() });
    }

    /// True if the image for this run is there; else sees to it.
    fn image(&mut self, container: &Container, restart: u32) -> bool {
        let observed = self.observed;
        let image = &container.image;
        let work = Work::Image(image.clone());
        let run = (container.name.clone(), restart);
        let state = observed.images.get(image).filter(|s| s.checked);
        let policy = container.pull_policy();
        if let Some(state) = state {
            let here = match policy {
                PullPolicy::Never | PullPolicy::IfNotPresent => state.present,
                PullPolicy::Always => state.pulled_for.contains(&run),
            };
            if here {
                return true;
            }
            if policy == PullPolicy::Never {
                let message = format!("container image {image:?} is not present with pull policy of Never");
                self.waits(container, "ErrImageNeverPull", message);
                return false;
            }
        }
        match observed.failures.get(&work) {
            None => self.waits(container, "ContainerCreating", ""),
            Some(failure) if failure.count > 1 => {
                let message = format!("back-off pulling image {image:?}: {}", failure.message);
                self.waits(container, "ImagePullBackOff", message);
            }
            Some(failure) => self.waits(container, "ErrImagePull", failure.message.clone()),
        }
        match state {
            Some(_) => self.act(Action::Pull { image: image.clone(), run }),
            None => self.act(Action::Check { image: image.clone() }),
        }
        false
    }
}

#[cfg(test)]
mod tests;
