//! Carrying out one action of a plan against the runtime and the disk.

use super::config::{self, Making};
use super::env::{self, Placed};
use super::observed::Work;
use super::plan::Action;
use super::view::Pod;
use super::volume::{self, Folder};
use super::{Shared, image};
use crate::cri::v1;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What became of an action.
#[derive(Debug)]
pub enum Outcome {
    /// Done, and nothing more to say.
    Done,
    /// The image is there, or is not.
    Image {
        /// As the container names it.
        image: String,
        /// Whether the runtime has it.
        present: bool,
        /// The run it was pulled for.
        run: Option<(String, u32)>,
        /// A pull that failed, of an image that is there from before.
        stale: Option<String>,
    },
    /// It failed, and will be tried again.
    Failed {
        /// Kubernetes' word.
        reason: &'static str,
        /// One line for a person.
        message: String,
        /// It is the runtime that is away; the pod has nothing to do with it.
        away: bool,
    },
    /// A container could not be made because its image is not there (any more).
    ImageGone(String),
}

/// What a step needs to know of the pod.
#[derive(Clone)]
pub struct Context {
    /// What all pods share.
    pub shared: Arc<Shared>,
    /// The pod, unless only its leftovers are known.
    pub pod: Option<Arc<Pod>>,
    /// Its identity.
    pub uid: String,
    /// Its addresses in its present sandbox.
    pub pod_ips: Vec<String>,
}

impl Context {
    fn folder(&self) -> Folder {
        Folder::new(&self.shared.options.data_dir, &self.uid)
    }

    /// What is known once the pod is placed.
    pub fn placed(&self) -> Placed {
        let host_ips = self.shared.lookup.host_ips();
        let host_network = self.pod.as_ref().is_some_and(|p| p.spec.host_network);
        Placed {
            pod_ips: if host_network { host_ips.clone() } else { self.pod_ips.clone() },
            host_ips,
            node_name: self.shared.options.node_name.clone(),
        }
    }
}

fn failed(reason: &'static str) -> impl Fn(crate::cri::Error) -> Outcome {
    move |e| Outcome::Failed { reason, message: e.words(), away: e.is_away() }
}

fn refused(reason: &'static str, message: impl ToString) -> Outcome {
    Outcome::Failed { reason, message: message.to_string(), away: false }
}

/// Carries out `action`.
pub async fn perform(context: Context, action: Action) -> Outcome {
    let done = match &action {
        Action::Prepare => prepare(&context).await,
        Action::Check { image } => check(&context, image).await,
        Action::Pull { image, run } => pull(&context, image, run).await,
        Action::Sandbox { attempt } => sandbox(&context, *attempt).await,
        Action::Start { name, restart, sandbox } => start(&context, name, *restart, sandbox).await,
        Action::Stop { id, grace } => {
            let stopped = context.shared.runtime.stop_container(id, *grace).await;
            stopped.map(|()| Outcome::Done).map_err(failed("FailedKillPod"))
        }
        Action::Remove { id, name, restart } => remove(&context, id, name, *restart).await,
        Action::StopSandbox { id } => {
            let stopped = context.shared.runtime.stop_pod_sandbox(id).await;
            stopped.map(|()| Outcome::Done).map_err(failed("FailedKillPod"))
        }
        Action::TearDown { id } => tear_down(&context, id).await,
        Action::Discard => discard(&context).await,
    };
    done.unwrap_or_else(|failed| failed)
}

type Step = Result<Outcome, Outcome>;

fn pod(context: &Context) -> Result<Arc<Pod>, Outcome> {
    context.pod.clone().ok_or_else(|| refused("Unknown", "the pod's object is gone"))
}

async fn prepare(context: &Context) -> Step {
    let pod = pod(context)?;
    let placed = context.placed();
    let content = |v: &super::view::Volume| {
        volume::content(&pod, v, context.shared.lookup.as_ref(), &placed).map(|c| (v.name.clone(), c))
    };
    let contents: Result<Vec<_>, _> = pod.spec.volumes.iter().map(content).collect();
    let contents = contents.map_err(|e| refused("FailedMount", e))?;
    let folder = context.folder();
    let prepared = smol::unblock(move || folder.prepare(&pod, &contents)).await;
    prepared.map(|()| Outcome::Done).map_err(|e| refused("FailedMount", e))
}

async fn check(context: &Context, image: &str) -> Step {
    let found = context.shared.runtime.image_status(image).await.map_err(failed("ErrImagePull"))?;
    Ok(Outcome::Image { image: image.into(), present: found.is_some(), run: None, stale: None })
}

async fn pull(context: &Context, name: &str, run: &(String, u32)) -> Step {
    let pod = pod(context)?;
    let shared = &context.shared;
    let mut credentials: Vec<_> = image::credentials(&pod, name, shared.lookup.as_ref());
    let mut tries: Vec<Option<v1::AuthConfig>> = credentials.drain(..).map(Some).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    let mut error = None;
    for auth in tries {
        match shared.runtime.pull_image(name, auth, None).await {
            Ok(_) => {
                let run = Some(run.clone());
                return Ok(Outcome::Image { image: name.into(), present: true, run, stale: None });
            }
            Err(e) => error = Some(e),
        }
    }
    let Some(error) = error else { return Ok(Outcome::Done) };
    // Without its registry a board goes on with the image it has, unless the registry refused.
    let here = shared.runtime.image_status(name).await.ok().flatten().is_some();
    if here && !error.is_away() && !image::is_refusal(&error.words()) {
        let (run, stale) = (Some(run.clone()), Some(error.words()));
        return Ok(Outcome::Image { image: name.into(), present: true, run, stale });
    }
    Err(failed("ErrImagePull")(error))
}

async fn sandbox(context: &Context, attempt: u32) -> Step {
    const REASON: &str = "FailedCreatePodSandBox";
    let pod = pod(context)?;
    let shared = &context.shared;
    let facts = shared.facts().await.map_err(failed(REASON))?;
    if let Some(name) = &facts.sandbox_image {
        image::ensure_pause(&shared.runtime, name).await.map_err(failed(REASON))?;
    }
    let logs = shared.options.log_dir.clone();
    let folder = logs.join(config::log_folder(&pod));
    let resolv = smol::unblock(move || {
        std::fs::create_dir_all(&folder).map_err(|e| format!("create {}: {e}", folder.display()))?;
        Ok::<_, String>(host_resolv())
    });
    let resolv = resolv.await.map_err(|e| refused(REASON, e))?;
    let cgroup = shared.cgroup(&context.uid).await.map_err(failed(REASON))?;
    let config = config::sandbox(&pod, attempt, &logs, &resolv, &cgroup);
    let ran = match shared.runtime.run_pod_sandbox(config.clone()).await {
        Err(e) => match image::missing_pause(&e.words()) {
            Some(name) => {
                image::ensure_pause(&shared.runtime, name).await.map_err(failed(REASON))?;
                shared.runtime.run_pod_sandbox(config).await
            }
            None => Err(e),
        },
        ran => ran,
    };
    ran.map(|_| Outcome::Done).map_err(failed(REASON))
}

/// The host's resolv.conf; behind systemd-resolved's local stub, which a pod cannot reach, the
/// one with the real servers.
fn host_resolv() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    if own.lines().any(|l| l.trim() == "nameserver 127.0.0.53") {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    own
}

async fn start(context: &Context, name: &str, restart: u32, sandbox: &str) -> Step {
    let pod = pod(context)?;
    let shared = &context.shared;
    let Some(container) = pod.container(name) else {
        return Err(refused("CreateContainerError", format!("no container {name:?} in the pod")));
    };
    let placed = context.placed();
    let env = env::resolve(&pod, container, shared.lookup.as_ref(), &placed)
        .map_err(|e| refused("CreateContainerConfigError", e))?;
    let found =
        shared.runtime.image_status(&container.image).await.map_err(failed("CreateContainerError"))?;
    let Some(found) = found else { return Err(Outcome::ImageGone(container.image.clone())) };
    let user = found.uid.as_ref().map(|u| u.value.to_string()).unwrap_or(found.username);

    let folder = context.folder();
    let mut mounts = folder.mounts(&pod, container);
    let message_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let message = folder.message(name, restart);
    mounts.push(mount(message_path, &message));
    let own_hosts = !pod.spec.host_network && !mounts.iter().any(|m| m.container_path == "/etc/hosts");
    let hosts = own_hosts.then(|| (folder.hosts(), config::hosts(&pod, &placed.pod_ips)));
    if let Some((path, _)) = &hosts {
        mounts.push(mount("/etc/hosts", path));
    }
    let logs = shared.options.log_dir.join(config::log_folder(&pod)).join(name);
    let files = smol::unblock(move || {
        std::fs::create_dir_all(&logs).map_err(|e| format!("create {}: {e}", logs.display()))?;
        volume::write_file(&message, b"", 0o666).map_err(|e| e.to_string())?;
        if let Some((path, text)) = hosts {
            volume::write_file(&path, text.as_bytes(), 0o644).map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(())
    });
    files.await.map_err(|e| refused("CreateContainerError", e))?;

    let making = Making { restart, env, mounts, image_user: Some(&user), memory: shared.memory };
    let config =
        config::container(&pod, container, making).map_err(|e| refused("CreateContainerConfigError", e))?;
    let cgroup = shared.cgroup(&context.uid).await.map_err(failed("CreateContainerError"))?;
    let sandbox_config = config::sandbox(&pod, 0, &shared.options.log_dir, "", &cgroup);
    let id = shared.runtime.create_container(sandbox, config, sandbox_config).await;
    let id = id.map_err(failed("CreateContainerError"))?;
    shared.runtime.start_container(&id).await.map_err(failed("RunContainerError"))?;
    Ok(Outcome::Done)
}

fn mount(container_path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container_path.into(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

async fn remove(context: &Context, id: &str, name: &str, restart: u32) -> Step {
    context.shared.runtime.remove_container(id).await.map_err(failed("FailedKillPod"))?;
    // A container that is restarted for years must not fill the disk.
    let message = context.folder().message(name, restart);
    let log = context.pod.as_ref().map(|pod| {
        let folder = context.shared.options.log_dir.join(config::log_folder(pod));
        folder.join(name).join(format!("{restart}.log"))
    });
    smol::unblock(move || {
        for path in [Some(message), log].into_iter().flatten() {
            // Gone already, or gone with the pod's folder later.
            let _ = std::fs::remove_file(path);
        }
    })
    .await;
    Ok(Outcome::Done)
}

async fn tear_down(context: &Context, id: &str) -> Step {
    let runtime = &context.shared.runtime;
    runtime.stop_pod_sandbox(id).await.map_err(failed("FailedKillPod"))?;
    runtime.remove_pod_sandbox(id).await.map_err(failed("FailedKillPod"))?;
    Ok(Outcome::Done)
}

async fn discard(context: &Context) -> Step {
    let folder = context.folder();
    let cgroup = context.shared.cgroup(&context.uid).await.map_err(failed("FailedKillPod"))?;
    let logs = context.shared.options.log_dir.clone();
    let suffix = format!("_{}", context.uid);
    let removed = smol::unblock(move || {
        folder.remove().map_err(|e| e.to_string())?;
        remove_logs(&logs, &suffix).map_err(|e| format!("remove logs in {}: {e}", logs.display()))?;
        remove_cgroup(&cgroup).map_err(|e| format!("remove cgroup {cgroup}: {e}"))
    });
    removed.await.map(|()| Outcome::Done).map_err(|e| refused("FailedKillPod", e))
}

/// Log folders end in the pod's uid, whatever its name was.
fn remove_logs(logs: &Path, suffix: &str) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(logs) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(suffix) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Removes the pod's own cgroup, of each controller (version 1) or the one (version 2).
fn remove_cgroup(cgroup: &str) -> std::io::Result<()> {
    let relative = cgroup.trim_start_matches('/');
    if relative.is_empty() || relative.ends_with(".slice") {
        return Ok(()); // systemd's, which removes it when it is empty
    }
    let root = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    for base in controllers.chain([PathBuf::from(root)]) {
        let path = base.join(relative);
        for child in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            if child.file_type().is_ok_and(|t| t.is_dir()) {
                let _ = std::fs::remove_dir(child.path());
            }
        }
        match std::fs::remove_dir(&path) {
            // A controller's folder may be a link to another's.
            Err(e) if path.exists() && e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Work whose result changes what the runtime would say.
pub fn changes_runtime(work: &Work) -> bool {
    !matches!(work, Work::Volumes | Work::Discard | Work::Image(_))
}
