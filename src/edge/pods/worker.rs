//! The task of one pod: observes, plans, starts steps, reports; until nothing is left of the pod.
//!
//! It never waits for a step: each runs as a future of its own, so that a pod that pulls an image
//! for an hour can be deleted at once.

use super::config;
use super::env;
use super::observed::{Instance, Observed, Sandbox, State, Time, Volumes, Work};
use super::plan::{self, Action, Desired, Plan};
use super::status::{self, Facts};
use super::step::{self, Context, Outcome};
use super::view::{DEFAULT_GRACE, Pod};
use super::volume::{self, Folder};
use super::{EventKind, PodEvent, Report, Shared};
use crate::cri::{self, v1};
use crate::object::{Key, Object, Uid, now_rfc3339};
use futures_lite::FutureExt as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a worker waits before it asks a runtime again that did not answer.
const AWAY: Duration = Duration::from_secs(1);
/// The longest termination message that is reported (a kubelet's limit).
const MESSAGE: usize = 4096;

/// What a worker was told and has not looked at yet. Newer tidings replace older ones, so that
/// telling never waits.
pub struct Mailbox {
    mail: Mutex<Mail>,
    bell: async_channel::Sender<()>,
    heard: async_channel::Receiver<()>,
}

#[derive(Clone, Default)]
struct Mail {
    desired: Option<Arc<Object>>,
    gone: bool,
    news: News,
}

/// What is new since the worker last looked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// The pod object, or that it is gone.
    pub desired: bool,
    /// Something in the runtime.
    pub runtime: bool,
    /// The runtime is back after it was away.
    pub back: bool,
    /// ConfigMaps and Secrets.
    pub dependencies: BTreeSet<Key>,
}

impl Default for Mailbox {
    fn default() -> Self {
        let (bell, heard) = async_channel::bounded(1);
        Mailbox { mail: Mutex::default(), bell, heard }
    }
}

impl Mailbox {
    fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        // Full: it has not answered the last ring yet, and will find this as well.
        let _ = self.bell.try_send(());
    }

    /// The pod as it is wanted now.
    pub fn desired(&self, object: Arc<Object>) {
        self.put(|m| {
            m.desired = Some(object);
            m.gone = false;
            m.news.desired = true;
        });
    }

    /// Whether the last word was that the pod is not wanted.
    pub fn is_gone(&self) -> bool {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).gone
    }

    /// The pod is not wanted any more.
    pub fn gone(&self) {
        self.put(|m| {
            m.gone = true;
            m.news.desired = true;
        });
    }

    /// Anything else that is new.
    pub fn news(&self, change: impl FnOnce(&mut News)) {
        self.put(|m| change(&mut m.news));
    }

    fn take(&self) -> Mail {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = mail.clone();
        mail.news = News::default();
        taken
    }
}

/// Tends one pod until nothing is left of it and it is not wanted.
pub async fn run(shared: Arc<Shared>, key: Key, uid: Uid, mailbox: Arc<Mailbox>) {
    let (done, finished) = async_channel::bounded(16);
    let mut worker = Worker {
        shared,
        key,
        uid,
        mailbox,
        pod: None,
        invalid: None,
        ending: false,
        gone: false,
        observed: Observed::default(),
        stopped: BTreeSet::new(),
        previous: None,
        reported: None,
        told_removed: false,
        tearing_down: false,
        stale: true,
        away: false,
        steps: BTreeMap::new(),
        done,
        finished,
    };
    // A worker that was started again reads everything anew.
    worker.read_object();
    loop {
        if worker.stale && !worker.observe().await {
            worker.wait(Some(worker.shared.now().saturating_add(AWAY))).await;
            continue;
        }
        let plan = worker.plan();
        worker.report(&plan).await;
        if plan.removed && worker.gone {
            return;
        }
        let wake_at = plan.wake_at;
        for action in plan.actions {
            worker.start(action);
        }
        worker.wait(wake_at).await;
    }
}

struct Worker {
    shared: Arc<Shared>,
    key: Key,
    uid: Uid,
    mailbox: Arc<Mailbox>,
    pod: Option<Arc<Pod>>,
    /// Why the object cannot run here as it is written.
    invalid: Option<String>,
    /// Its deletion was asked for.
    ending: bool,
    gone: bool,
    observed: Observed,
    /// Sandboxes that were stopped by a step.
    stopped: BTreeSet<String>,
    /// The status that transition times are carried from.
    previous: Option<Value>,
    /// The status that was reported last by this worker.
    reported: Option<Value>,
    told_removed: bool,
    /// The sandbox is being removed: what was reported before stays the last word.
    tearing_down: bool,
    /// The runtime has to be asked.
    stale: bool,
    /// The runtime did not answer when it was last asked.
    away: bool,
    steps: BTreeMap<Work, smol::Task<()>>,
    done: async_channel::Sender<(Action, Outcome)>,
    finished: async_channel::Receiver<(Action, Outcome)>,
}

impl Worker {
    fn read_object(&mut self) {
        let mail = self.mailbox.take();
        self.take(mail, true);
    }

    /// Takes in what was told.
    fn take(&mut self, mail: Mail, first: bool) {
        let news = mail.news;
        if self.gone && !mail.gone {
            // Wanted again before it was gone.
            (self.told_removed, self.tearing_down) = (false, false);
            self.observed.volumes = Volumes::Unknown;
        }
        self.gone = mail.gone;
        if let Some(object) = mail.desired.filter(|_| news.desired || first) {
            if self.previous.is_none() {
                self.previous = object.value.get("status").filter(|s| s.is_object()).cloned();
            }
            self.ending = object.is_terminating();
            match Pod::of(&object) {
                Ok(pod) => {
                    let pod = Arc::new(pod);
                    let changed = self.pod.as_ref().is_none_or(|old| old.spec != pod.spec);
                    if changed || self.pod.as_ref().is_some_and(|old| old.metadata != pod.metadata) {
                        self.renew();
                    }
                    self.invalid = None;
                    self.pod = Some(pod);
                }
                Err(e) => self.invalid = Some(e.why),
            }
        }
        let wanted = self.pod.as_ref().map(|p| volume::dependencies(p)).unwrap_or_default();
        if !wanted.is_disjoint(&news.dependencies) {
            self.renew();
        }
        if news.back {
            // What failed while the runtime was away says nothing about the pod.
            let now = self.shared.now();
            self.observed.failures.values_mut().for_each(|f| f.retry_at = f.retry_at.min(now));
        }
        self.stale |= news.runtime || news.back;
    }

    /// Something that volumes or variables are made of has changed.
    fn renew(&mut self) {
        self.observed.volumes = Volumes::Unknown;
        let failures = &mut self.observed.failures;
        failures.retain(|work, _| !matches!(work, Work::Volumes | Work::Start(_)));
        // A step that reads the old state is of no use; it starts again.
        if self.steps.remove(&Work::Volumes).is_some() {
            self.observed.busy.remove(&Work::Volumes);
        }
    }

    fn context(&self) -> Context {
        Context {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            uid: self.uid.0.clone(),
            pod_ips: self.observed.sandbox().map(|s| s.ips.clone()).unwrap_or_default(),
        }
    }

    fn desired(&self) -> Option<Desired<'_>> {
        let pod = self.pod.as_deref();
        // One that is to be deleted goes, whether or not its object reads.
        if self.gone || self.ending && self.invalid.is_some() {
            let grace = pod.map_or(DEFAULT_GRACE, Pod::grace);
            return Some(Desired::Stop { grace, pod });
        }
        // An object that does not read any more changes nothing about what runs.
        pod.map(Desired::of)
    }

    fn plan(&mut self) -> Plan {
        let now = self.shared.now();
        self.observed.count_exits(now);
        self.check_config();
        let Some(desired) = self.desired() else { return Plan::default() };
        let plan = plan::plan(desired, &self.observed, now);
        // An image that is being pulled for a pod that is to go is of no use.
        let stopping = matches!(desired, Desired::Stop { .. });
        if stopping {
            self.steps.retain(|work, _| !matches!(work, Work::Image(_)));
            self.observed.busy.retain(|work| !matches!(work, Work::Image(_)));
        }
        plan
    }

    fn check_config(&mut self) {
        self.observed.config_errors.clear();
        let Some(pod) = self.pod.clone() else { return };
        let placed = self.context().placed();
        for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
            if let Err(e) = env::resolve(&pod, container, self.shared.lookup.as_ref(), &placed) {
                self.observed.config_errors.insert(container.name.clone(), e);
            }
        }
    }

    /// Asks the runtime; true if it answered.
    async fn observe(&mut self) -> bool {
        match self.look().await {
            Ok(()) => {
                self.stale = false;
                self.away = false;
                true
            }
            Err(e) => {
                if !std::mem::replace(&mut self.away, true) {
                    log::warn!("pod {}/{}: {e}", self.key.namespace, self.key.name);
                }
                false
            }
        }
    }

    async fn look(&mut self) -> Result<(), cri::Error> {
        let runtime = &self.shared.runtime;
        let mut labels = config::managed();
        labels.insert(config::POD_UID.into(), self.uid.0.clone());
        let listed = runtime.list_pod_sandbox(labels.clone()).await?;
        let mut sandboxes = Vec::with_capacity(listed.len());
        for found in listed {
            let ready = found.state() == v1::PodSandboxState::Ready;
            let known = self.observed.sandboxes.iter().find(|s| s.id == found.id && !s.ips.is_empty());
            let ips = match known {
                Some(known) => known.ips.clone(),
                None if ready => runtime.pod_sandbox_status(&found.id).await?.map(ips).unwrap_or_default(),
                None => Vec::new(),
            };
            sandboxes.push(Sandbox {
                stopped: self.stopped.contains(&found.id),
                attempt: found.metadata.map_or(0, |m| m.attempt),
                created_at: found.created_at,
                id: found.id,
                ready,
                ips,
            });
        }
        let listed = runtime.list_containers(None, labels).await?;
        let mut containers = Vec::with_capacity(listed.len());
        for found in listed {
            let state = state(found.state());
            let known = self.observed.containers.iter().find(|c| c.id == found.id && c.state == state);
            match known {
                Some(known) => containers.push(known.clone()),
                None => {
                    if let Some(status) = runtime.container_status(&found.id).await? {
                        containers.push(self.instance(found.pod_sandbox_id, status).await);
                    }
                }
            }
        }
        self.stopped.retain(|id| sandboxes.iter().any(|s| s.id == *id));
        self.observed.sandboxes = sandboxes;
        self.observed.containers = containers;
        Ok(())
    }

    async fn instance(&self, sandbox_id: String, status: v1::ContainerStatus) -> Instance {
        let metadata = status.metadata.clone().unwrap_or_default();
        let annotated = status.annotations.get(config::RESTART_COUNT).and_then(|c| c.parse().ok());
        let restart = annotated.unwrap_or(metadata.attempt);
        let state = state(status.state());
        let mut message = status.message;
        if state == State::Exited {
            let path =
                Folder::new(&self.shared.options.data_dir, &self.uid.0).message(&metadata.name, restart);
            let left = smol::unblock(move || read_message(&path)).await;
            if !left.is_empty() {
                message = left;
            }
        }
        Instance {
            id: status.id,
            sandbox_id,
            name: metadata.name,
            restart,
            state,
            image: status.annotations.get(config::IMAGE).cloned().unwrap_or_default(),
            image_ref: status.image_ref,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason,
            message,
        }
    }

    /// Starts a step; its outcome comes through [`Worker::wait`].
    fn start(&mut self, action: Action) {
        let work = action.work();
        self.tearing_down |= matches!(action, Action::TearDown { .. } | Action::Discard)
            && !matches!(self.desired(), Some(Desired::Run(_)));
        self.tell_start(&action);
        let (context, done) = (self.context(), self.done.clone());
        let step = async move {
            let performed = AssertUnwindSafe(step::perform(context, action.clone())).catch_unwind().await;
            let outcome = performed.unwrap_or_else(|_| Outcome::Failed {
                reason: "Failed",
                message: "a fault in holm itself; its log has more".into(),
                away: false,
            });
            // Fails only when the worker is gone.
            let _ = done.send((action, outcome)).await;
        };
        self.observed.busy.insert(work.clone());
        self.steps.insert(work, self.shared.executor.spawn(step));
    }

    /// Waits for tidings, for the end of a step, or until `wake_at`.
    async fn wait(&mut self, wake_at: Option<Time>) {
        enum Woken {
            Bell,
            Step(Action, Outcome),
            Time,
        }
        let bell = async {
            match self.mailbox.heard.recv().await {
                Ok(()) => Woken::Bell,
                Err(_) => Woken::Time,
            }
        };
        let step = async {
            match self.finished.recv().await {
                Ok((action, outcome)) => Woken::Step(action, outcome),
                Err(_) => Woken::Time,
            }
        };
        let time = async {
            match wake_at {
                Some(at) => {
                    smol::Timer::after(at.saturating_sub(self.shared.now())).await;
                }
                None => smol::future::pending().await,
            }
            Woken::Time
        };
        match bell.or(step).or(time).await {
            Woken::Bell | Woken::Time => {}
            Woken::Step(action, outcome) => self.end(action, outcome),
        }
        while let Ok((action, outcome)) = self.finished.try_recv() {
            self.end(action, outcome);
        }
        let mail = self.mailbox.take();
        self.take(mail, false);
    }

    /// Takes in what became of a step.
    fn end(&mut self, action: Action, outcome: Outcome) {
        let work = action.work();
        if self.steps.remove(&work).is_none() {
            return; // given up meanwhile
        }
        self.observed.busy.remove(&work);
        self.stale |= step::changes_runtime(&work);
        let now = self.shared.now();
        match outcome {
            Outcome::Failed { reason, message, away } => {
                self.tell(EventKind::Warning, reason, &message);
                self.observed.failed(work.clone(), reason, message, now);
                if away && let Some(failure) = self.observed.failures.get_mut(&work) {
                    failure.count = failure.count.saturating_sub(1);
                    failure.retry_at = now.saturating_add(AWAY);
                }
                return;
            }
            Outcome::ImageGone(image) => {
                self.observed.images.remove(&image);
            }
            Outcome::Image { image, present, run, stale } => {
                let state = self.observed.images.entry(image.clone()).or_default();
                state.checked = true;
                state.present = present;
                if let Some((name, restart)) = run {
                    state.pulled_for.retain(|(n, _)| *n != name);
                    state.pulled_for.insert((name, restart));
                    match stale {
                        None => self.tell(EventKind::Normal, "Pulled", &format!("pulled image {image:?}")),
                        Some(why) => self.tell(
                            EventKind::Warning,
                            "PullFailed",
                            &format!("using the image {image:?} that is on the board: {why}"),
                        ),
                    }
                }
            }
            Outcome::Done => match &action {
                Action::Prepare => self.observed.volumes = Volumes::Ready,
                Action::Discard => self.observed.volumes = Volumes::Gone,
                Action::StopSandbox { id } => {
                    self.stopped.insert(id.clone());
                }
                Action::Sandbox { .. } => {
                    self.observed.made_sandbox(now);
                    return;
                }
                Action::Start { name, .. } => {
                    self.tell(EventKind::Normal, "Started", &format!("started container {name}"));
                }
                _ => {}
            },
        }
        self.observed.failures.remove(&work);
    }

    async fn report(&mut self, plan: &Plan) {
        if plan.removed && !self.told_removed {
            self.told_removed = true;
            self.send(Report::Removed { key: self.key.clone(), uid: self.uid.clone() }).await;
        }
        if self.tearing_down || self.told_removed {
            return;
        }
        let now = now_rfc3339();
        let host_ips = self.shared.lookup.host_ips();
        let facts = Facts { host_ips: &host_ips, now: &now, runtime: &self.shared.options.runtime_name };
        let status = match (&self.pod, &self.invalid) {
            (_, Some(why)) => status::invalid(why, self.previous.as_ref(), &now),
            (Some(pod), None) => status::status(pod, &self.observed, plan, self.previous.as_ref(), facts),
            (None, None) => return,
        };
        if self.reported.as_ref() == Some(&status) {
            return;
        }
        self.previous = Some(status.clone());
        self.reported = Some(status.clone());
        self.send(Report::Status { key: self.key.clone(), uid: self.uid.clone(), status }).await;
    }

    async fn send(&self, report: Report) {
        // Fails only when no one is left who wants to know.
        let _ = self.shared.reports.send(report).await;
    }

    fn tell_start(&self, action: &Action) {
        let (reason, message) = match action {
            Action::Pull { image, .. } => ("Pulling", format!("pulling image {image:?}")),
            Action::Stop { id, .. } => {
                let run = self.observed.containers.iter().find(|c| c.id == *id);
                ("Killing", format!("stopping container {}", run.map_or("", |r| r.name.as_str())))
            }
            _ => return,
        };
        self.tell(EventKind::Normal, reason, &message);
    }

    /// An event; given up rather than waited for where no one reads.
    fn tell(&self, kind: EventKind, reason: &'static str, message: &str) {
        let event = PodEvent {
            pod: self.key.clone(),
            uid: self.uid.clone(),
            kind,
            reason,
            message: message.to_owned(),
        };
        if kind == EventKind::Warning {
            log::warn!("pod {}/{}: {reason}: {message}", self.key.namespace, self.key.name);
        }
        let _ = self.shared.reports.try_send(Report::Event(event));
    }
}

fn state(state: v1::ContainerState) -> State {
    match state {
        v1::ContainerState::Created => State::Created,
        v1::ContainerState::Running => State::Running,
        v1::ContainerState::Exited => State::Exited,
        v1::ContainerState::Unknown => State::Unknown,
    }
}

fn ips(status: v1::PodSandboxStatus) -> Vec<String> {
    let Some(network) = status.network else { return Vec::new() };
    let all = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|a| a.ip));
    all.filter(|ip| !ip.is_empty()).collect()
}

fn read_message(path: &std::path::Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MESSAGE as u64).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
