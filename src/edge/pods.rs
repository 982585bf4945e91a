//! Pods on this board (KubeEdge: Edged): a task a pod, driving the container runtime.
//!
//! The manager task, here, gives every pod a worker, hears from the runtime what changed, and
//! judges what is left over. A worker observes, plans ([`plan`], pure) and carries out.
//!
//! What changed is heard from CRI's events (containerd 1.7 and later) or containerd's own. Beside
//! them everything is listed every 30 s; without any events every 5 s, and every second while a
//! pod was told of within the last half minute.
//!
//! A restart of the agent stops nothing: running containers are found by their labels. What
//! carries Holm's label and belongs to no desired pod is removed once the desired set is known
//! ([`ToPods::Known`]); what others made is never touched.

pub mod config;
pub mod env;
mod image;
pub mod observed;
pub mod plan;
mod quantity;
pub mod status;
mod step;
pub mod view;
pub mod volume;
mod watch;
mod worker;

pub use env::Lookup;

use crate::cri;
use crate::object::{Key, Object, Uid};
use futures_lite::FutureExt as _;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use worker::Mailbox;

/// What the pods task can be told.
#[derive(Clone, Debug)]
pub enum ToPods {
    /// A new or changed pod, one with `metadata.deletionTimestamp` included.
    Desired(Arc<Object>),
    /// The pod is not desired any more: take it down.
    Gone(Key, Uid),
    /// A ConfigMap or Secret was made, changed or removed.
    Dependency(Key),
    /// Everything that is desired has been told: what is left over may be judged.
    Known,
}

/// What the pods task tells.
#[derive(Clone, Debug)]
pub enum Report {
    /// A pod's status, whenever it differs from the last one.
    Status {
        /// The pod.
        key: Key,
        /// Which one of that name.
        uid: Uid,
        /// Its whole `status`.
        status: serde_json::Value,
    },
    /// Containers, sandbox, volumes, logs and cgroup of the pod are gone.
    Removed {
        /// The pod.
        key: Key,
        /// Which one of that name.
        uid: Uid,
    },
    /// Something worth a Kubernetes Event. Dropped when the channel is full.
    Event(PodEvent),
}

/// Whether an event is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It is.
    Normal,
    /// It is not.
    Warning,
}

impl EventKind {
    /// The Event's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        }
    }
}

/// One thing that happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod (`involvedObject`).
    pub pod: Key,
    /// Which one of that name.
    pub uid: Uid,
    /// Good or bad (`type`).
    pub kind: EventKind,
    /// One word, for example `Started`.
    pub reason: &'static str,
    /// One line.
    pub message: String,
}

/// How this board runs pods.
#[derive(Clone, Debug)]
pub struct Options {
    /// Volumes are made below `<data_dir>/pods`.
    pub data_dir: PathBuf,
    /// This node's name.
    pub node_name: String,
    /// Container logs; kubelets and log shippers expect `/var/log/pods`.
    pub log_dir: PathBuf,
    /// The sandbox image by the name that the runtime uses; asked of the runtime if `None`.
    pub pause_image: Option<String>,
    /// The name of the cgroup below which every pod has its own; with the runtime's systemd
    /// driver the name of the slice.
    pub cgroup: String,
    /// `containerd` in `containerd://<id>`.
    pub runtime_name: String,
}

impl Options {
    /// The usual ones.
    pub fn new(data_dir: &Path, node_name: &str) -> Options {
        Options {
            data_dir: data_dir.into(),
            node_name: node_name.into(),
            log_dir: "/var/log/pods".into(),
            pause_image: None,
            cgroup: "holm".into(),
            runtime_name: "containerd".into(),
        }
    }
}

/// What workers share.
pub struct Shared {
    options: Options,
    runtime: cri::Runtime,
    lookup: Arc<dyn Lookup>,
    reports: async_channel::Sender<Report>,
    executor: Arc<smol::Executor<'static>>,
    started: Instant,
    /// What the runtime said of itself, once asked.
    facts: smol::lock::Mutex<Option<cri::Facts>>,
    /// All memory of the machine in bytes.
    memory: i64,
}

impl Shared {
    /// Monotonic time since the start.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    async fn facts(&self) -> Result<cri::Facts, cri::Error> {
        let mut known = self.facts.lock().await;
        if let Some(facts) = &*known {
            return Ok(facts.clone());
        }
        let mut facts = self.runtime.facts().await?;
        facts.sandbox_image = self.options.pause_image.clone().or(facts.sandbox_image);
        *known = Some(facts.clone());
        Ok(facts)
    }

    /// The pod's own cgroup, in the form that the runtime's driver takes.
    async fn cgroup(&self, uid: &str) -> Result<String, cri::Error> {
        let name = &self.options.cgroup;
        Ok(match self.facts().await?.systemd_cgroup {
            true => format!("{name}-pod{}.slice", uid.replace('-', "_")),
            false => format!("/{name}/pod{uid}"),
        })
    }
}

/// The handle on the pods task. The task ends, and leaves every container running, when the last
/// one is dropped.
#[derive(Clone, Debug)]
pub struct Pods {
    inbox: async_channel::Sender<ToPods>,
}

impl Pods {
    /// Tells the task something; waits while 256 messages are before it.
    pub async fn send(&self, message: ToPods) {
        // Fails only when the executor is going down.
        let _ = self.inbox.send(message).await;
    }
}

/// Starts the pods task. It must be read what it reports: a worker waits for room in `reports`
/// (only events are dropped instead), while its containers go on.
pub fn start(
    executor: Arc<smol::Executor<'static>>,
    options: Options,
    runtime: cri::Runtime,
    lookup: Arc<dyn Lookup>,
    reports: async_channel::Sender<Report>,
) -> Pods {
    let (inbox, messages) = async_channel::bounded(256);
    let memory = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion)] // the types differ between processors
    let memory =
        i64::try_from(memory.totalram).unwrap_or(i64::MAX).saturating_mul(i64::from(memory.mem_unit));
    let shared = Arc::new(Shared {
        options,
        runtime,
        lookup,
        reports,
        executor: executor.clone(),
        started: Instant::now(),
        facts: smol::lock::Mutex::default(),
        memory,
    });
    let (ended, ends) = async_channel::bounded(64);
    let manager = Manager {
        shared,
        pods: BTreeMap::new(),
        known: false,
        swept: false,
        away: false,
        ended,
        last_told: Duration::ZERO,
    };
    executor.spawn(manager.run(messages, ends)).detach();
    Pods { inbox }
}

struct Entry {
    mailbox: Arc<Mailbox>,
    key: Key,
    /// What the runtime last listed for it.
    seen: watch::Fingerprint,
    /// Ends the worker when it is dropped; containers go on.
    _task: smol::Task<()>,
}

struct Manager {
    shared: Arc<Shared>,
    pods: BTreeMap<Uid, Entry>,
    known: bool,
    /// Folders that are left over were removed.
    swept: bool,
    /// The runtime did not answer the last listing.
    away: bool,
    ended: async_channel::Sender<Uid>,
    /// When a pod was last told of.
    last_told: Duration,
}

enum Woken {
    Message(ToPods),
    Ended(Uid),
    List,
    Closed,
}

impl Manager {
    async fn run(mut self, messages: async_channel::Receiver<ToPods>, ends: async_channel::Receiver<Uid>) {
        let (bell, rings) = async_channel::bounded(1);
        let has_events = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let watching = watch::watch(self.shared.runtime.clone(), bell, has_events.clone());
        let _watching = self.shared.executor.spawn(watching);
        let mut listed = self.list().await;
        loop {
            let now = self.shared.now();
            let busy = now.saturating_sub(self.last_told) < Duration::from_secs(30);
            let pause = match (self.away, has_events.load(std::sync::atomic::Ordering::Relaxed), busy) {
                (true, ..) => Duration::from_secs(1),
                (_, true, _) => Duration::from_secs(30),
                (_, _, true) => Duration::from_secs(1),
                _ => Duration::from_secs(5),
            };
            let message = async { messages.recv().await.map_or(Woken::Closed, Woken::Message) };
            let end = async { ends.recv().await.map_or(Woken::Closed, Woken::Ended) };
            let ring = async {
                let _ = rings.recv().await;
                Woken::List
            };
            let time = async {
                smol::Timer::after(listed.saturating_add(pause).saturating_sub(now)).await;
                Woken::List
            };
            match message.or(end).or(ring).or(time).await {
                Woken::Message(message) => {
                    let known = matches!(message, ToPods::Known);
                    self.told(message);
                    if known {
                        self.known = true;
                        listed = self.list().await;
                    }
                }
                Woken::Ended(uid) => {
                    if let Some(entry) = self.pods.remove(&uid)
                        && !entry.mailbox.is_gone()
                    {
                        // Wanted again after its worker had ended.
                        self.spawn(entry.key, uid, entry.mailbox);
                    }
                }
                Woken::List => listed = self.list().await,
                Woken::Closed => return,
            }
        }
    }

    fn told(&mut self, message: ToPods) {
        self.last_told = self.shared.now();
        match message {
            ToPods::Desired(object) => {
                // Another pod of the same name took the place of an earlier one.
                let others = self.pods.iter().filter(|(uid, e)| e.key == object.key && **uid != object.uid);
                others.for_each(|(_, e)| e.mailbox.gone());
                self.entry(&object.key, &object.uid, |mailbox| mailbox.desired(object.clone()));
            }
            ToPods::Gone(key, uid) => self.entry(&key, &uid, Mailbox::gone),
            ToPods::Dependency(key) => {
                for entry in self.pods.values() {
                    entry.mailbox.news(|n| {
                        n.dependencies.insert(key.clone());
                    });
                }
            }
            ToPods::Known => {}
        }
    }

    /// Tells a pod's worker something; makes the worker if there is none.
    fn entry(&mut self, key: &Key, uid: &Uid, tell: impl FnOnce(&Mailbox)) {
        if !view::is_plain(&uid.0) {
            log::warn!("pod {}/{}: metadata.uid {uid} is empty or a path: ignored", key.namespace, key.name);
            return;
        }
        if let Some(entry) = self.pods.get(uid) {
            return tell(&entry.mailbox);
        }
        let mailbox = Arc::new(Mailbox::default());
        tell(&mailbox);
        self.spawn(key.clone(), uid.clone(), mailbox);
    }

    fn spawn(&mut self, key: Key, uid: Uid, mailbox: Arc<Mailbox>) {
        let task = tend(self.shared.clone(), key.clone(), uid.clone(), mailbox.clone(), self.ended.clone());
        let task = self.shared.executor.spawn(task);
        let entry = Entry { mailbox, key, seen: watch::Fingerprint::default(), _task: task };
        self.pods.insert(uid, entry);
    }

    /// Removes the folders of pods that neither the runtime nor anyone else knows any more.
    async fn sweep(&self) {
        let data_dir = self.shared.options.data_dir.clone();
        let uids: std::collections::BTreeSet<String> = self.pods.keys().map(|u| u.0.clone()).collect();
        let swept = smol::unblock(move || volume::sweep(&data_dir, &uids)).await;
        if let Err(e) = swept {
            log::warn!("{e}");
        }
    }

    /// Lists everything of Holm's, tells workers what changed and judges what is left over.
    async fn list(&mut self) -> Duration {
        match watch::list(&self.shared.runtime).await {
            Ok(found) => {
                let back = std::mem::replace(&mut self.away, false);
                if back {
                    log::info!("the container runtime at {} is back", self.shared.runtime.endpoint());
                }
                for (uid, entry) in &mut self.pods {
                    let now = found.get(uid).map(|f| f.fingerprint.clone()).unwrap_or_default();
                    if now != entry.seen || back {
                        entry.seen = now;
                        entry.mailbox.news(|n| {
                            n.runtime = true;
                            n.back |= back;
                        });
                    }
                }
                if self.known {
                    for (uid, leftover) in found {
                        if !self.pods.contains_key(&uid) {
                            log::info!("pod {uid} is not wanted here any more: removing it");
                            self.entry(&leftover.key, &uid, Mailbox::gone);
                        }
                    }
                    if !std::mem::replace(&mut self.swept, true) {
                        self.sweep().await;
                    }
                }
            }
            Err(e) => {
                if !std::mem::replace(&mut self.away, true) {
                    log::warn!("{e}");
                }
            }
        }
        self.shared.now()
    }
}

/// Runs a pod's worker, again if it fails.
async fn tend(
    shared: Arc<Shared>,
    key: Key,
    uid: Uid,
    mailbox: Arc<Mailbox>,
    ended: async_channel::Sender<Uid>,
) {
    let mut pause = Duration::from_secs(1);
    loop {
        let worker = worker::run(shared.clone(), key.clone(), uid.clone(), mailbox.clone());
        if AssertUnwindSafe(worker).catch_unwind().await.is_ok() {
            if mailbox.is_gone() {
                let _ = ended.send(uid).await;
                return;
            }
            continue; // wanted again in this very moment
        }
        log::error!("pod {}/{}: its task failed; again in {pause:?}", key.namespace, key.name);
        smol::Timer::after(pause).await;
        pause = pause.saturating_mul(2).min(Duration::from_secs(60));
    }
}
