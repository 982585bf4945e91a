//! The client of the container runtime interface, CRI v1, over a unix socket.
//!
//! [`Runtime`] is a cloneable handle. It connects when first used and again after the runtime
//! restarted; a call that finds no runtime fails with [`Error::Absent`] and the next one tries
//! anew. Every call has a deadline. What CRI does not offer is asked of containerd's own services
//! on the same socket ([`containerd`]).

pub mod containerd;
mod error;
mod grpc;
pub mod image;
pub mod pause;
pub mod v1;

pub use error::{Code, Error};

use grpc::{Channel, Incoming, Rpc};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use v1::*;

/// For calls that only read or mark something.
const QUICK: Duration = Duration::from_secs(20);
/// For calls that run programs (network plugins, mounts) on a slow card.
const SLOW: Duration = Duration::from_secs(240);
/// For an image over a slow link.
const PULL: Duration = Duration::from_secs(3600);

macro_rules! rpc {
    (runtime $name:literal) => {
        Rpc { path: concat!("/runtime.v1.RuntimeService/", $name), metadata: &[] }
    };
    (image $name:literal) => {
        Rpc { path: concat!("/runtime.v1.ImageService/", $name), metadata: &[] }
    };
}

/// The container runtime at one socket.
#[derive(Clone)]
pub struct Runtime {
    channel: Arc<Channel>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Runtime({})", self.endpoint())
    }
}

impl Runtime {
    /// A handle on the runtime at `endpoint`: `unix:///path` or `/path`. Connects at the first
    /// call, on `executor`.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if `endpoint` has another form.
    pub fn new(executor: Arc<smol::Executor<'static>>, endpoint: &str) -> Result<Runtime, Error> {
        Ok(Runtime { channel: Arc::new(Channel::new(executor, endpoint)?) })
    }

    /// The socket, as `unix:///path`.
    pub fn endpoint(&self) -> &str {
        self.channel.endpoint()
    }

    async fn quick<Q, A>(&self, rpc: Rpc, request: &Q) -> Result<A, Error>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        self.channel.unary(rpc, request, None, QUICK).await
    }

    async fn slow<Q, A>(&self, rpc: Rpc, request: &Q) -> Result<A, Error>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        self.channel.unary(rpc, request, None, SLOW).await
    }

    /// Name and version of the runtime. Also the way to ask whether a socket speaks CRI v1.
    ///
    /// # Errors
    /// As every call here: [`Error`].
    pub async fn version(&self) -> Result<VersionResponse, Error> {
        self.quick(rpc!(runtime "Version"), &VersionRequest { version: "v1".into() }).await
    }

    /// The conditions `RuntimeReady` and `NetworkReady`, and the runtime's own settings as JSON
    /// texts in `info`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<StatusResponse, Error> {
        self.quick(rpc!(runtime "Status"), &StatusRequest { verbose: true }).await
    }

    /// What the runtime says of its settings.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn facts(&self) -> Result<Facts, Error> {
        let status = self.status().await?;
        let config = status.info.get("config").map(String::as_str).unwrap_or_default();
        Ok(Facts::of(config))
    }

    /// Creates and starts a sandbox; answers its identifier.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String, Error> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let answer: SandboxId = self.slow(rpc!(runtime "RunPodSandbox"), &request).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Stops every container of a sandbox and takes its network down. Done already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = SandboxId { pod_sandbox_id: id.into() };
        gone_is_fine(self.slow(rpc!(runtime "StopPodSandbox"), &request).await)
    }

    /// Removes a stopped sandbox and its containers. Gone already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = SandboxId { pod_sandbox_id: id.into() };
        let _: Empty = self.slow(rpc!(runtime "RemovePodSandbox"), &request).await?;
        Ok(())
    }

    /// State and addresses of one sandbox; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<Option<PodSandboxStatus>, Error> {
        let request = SandboxId { pod_sandbox_id: id.into() };
        let answer: Result<PodSandboxStatusResponse, Error> =
            self.quick(rpc!(runtime "PodSandboxStatus"), &request).await;
        match answer {
            Ok(answer) => Ok(answer.status),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The sandboxes that carry every one of `labels`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_pod_sandbox(&self, labels: BTreeMap<String, String>) -> Result<Vec<PodSandbox>, Error> {
        let filter = PodSandboxFilter { id: String::new(), label_selector: labels };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer: ListPodSandboxResponse = self.quick(rpc!(runtime "ListPodSandbox"), &request).await?;
        Ok(answer.items)
    }

    /// Creates a container in a sandbox; answers its identifier. `sandbox` is the configuration
    /// that the sandbox was run with.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox: PodSandboxConfig,
    ) -> Result<String, Error> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.into(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let answer: ContainerId = self.slow(rpc!(runtime "CreateContainer"), &request).await?;
        Ok(answer.container_id)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = ContainerId { container_id: id.into() };
        let _: Empty = self.slow(rpc!(runtime "StartContainer"), &request).await?;
        Ok(())
    }

    /// Sends the stop signal, and the kill `grace` later; returns when the container has exited.
    /// Gone already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.into(), timeout };
        let deadline = grace.saturating_add(SLOW);
        let rpc = rpc!(runtime "StopContainer");
        gone_is_fine(self.channel.unary(rpc, &request, None, deadline).await)
    }

    /// Removes a container, stopped or not. Gone already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let request = ContainerId { container_id: id.into() };
        gone_is_fine(self.slow(rpc!(runtime "RemoveContainer"), &request).await)
    }

    /// The containers of one sandbox, or of all (`None`), that carry every one of `labels`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_containers(
        &self,
        sandbox_id: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<Container>, Error> {
        let filter = ContainerFilter {
            id: String::new(),
            pod_sandbox_id: sandbox_id.unwrap_or_default().into(),
            label_selector: labels,
        };
        let request = ListContainersRequest { filter: Some(filter) };
        let answer: ListContainersResponse = self.quick(rpc!(runtime "ListContainers"), &request).await?;
        Ok(answer.containers)
    }

    /// State, times and exit code of one container; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn container_status(&self, id: &str) -> Result<Option<ContainerStatus>, Error> {
        let request = ContainerId { container_id: id.into() };
        let answer: Result<ContainerStatusResponse, Error> =
            self.quick(rpc!(runtime "ContainerStatus"), &request).await;
        match answer {
            Ok(answer) => Ok(answer.status),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Runs `command` in a container and answers its output (at most 16 MiB) and exit code;
    /// the runtime kills it after `timeout`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecSyncResponse, Error> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request = ExecSyncRequest { container_id: id.into(), cmd: command, timeout: seconds };
        let deadline = timeout.saturating_add(QUICK);
        self.channel.unary(rpc!(runtime "ExecSync"), &request, None, deadline).await
    }

    /// CPU and memory of every container.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_container_stats(&self) -> Result<Vec<ContainerStats>, Error> {
        let answer: ListContainerStatsResponse =
            self.quick(rpc!(runtime "ListContainerStats"), &Empty {}).await?;
        Ok(answer.stats)
    }

    /// Every container event from now on. A runtime without them (containerd before 1.7) answers
    /// [`Code::UNIMPLEMENTED`] at the first [`Events::next`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn container_events(&self) -> Result<Events, Error> {
        let rpc = rpc!(runtime "GetContainerEvents");
        let incoming = self.channel.stream(rpc, &Empty {}).await?;
        Ok(Events { channel: self.channel.clone(), incoming })
    }

    /// All images.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_images(&self) -> Result<Vec<Image>, Error> {
        let request = ListImagesRequest { filter: None };
        let answer: ListImagesResponse = self.quick(rpc!(image "ListImages"), &request).await?;
        Ok(answer.images)
    }

    /// The image of that name, tag or digest; `None` if it is not on this machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn image_status(&self, image: &str) -> Result<Option<Image>, Error> {
        let request = ImageRequest { image: Some(image_spec(image)) };
        let answer: ImageStatusResponse = self.quick(rpc!(image "ImageStatus"), &request).await?;
        Ok(answer.image)
    }

    /// Pulls an image; answers a reference by which containers can be made of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        sandbox: Option<PodSandboxConfig>,
    ) -> Result<String, Error> {
        let image = Some(image_spec(image));
        let request = PullImageRequest { image, auth, sandbox_config: sandbox };
        let answer: PullImageResponse =
            self.channel.unary(rpc!(image "PullImage"), &request, None, PULL).await?;
        Ok(answer.image_ref)
    }

    /// Removes an image. Gone already is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_image(&self, image: &str) -> Result<(), Error> {
        let request = ImageRequest { image: Some(image_spec(image)) };
        gone_is_fine(self.slow(rpc!(image "RemoveImage"), &request).await)
    }
}

/// Settings of the runtime that pods depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The image it makes sandboxes of, if it says so.
    pub sandbox_image: Option<String>,
    /// Its default runtime makes cgroups through systemd.
    pub systemd_cgroup: bool,
}

impl Facts {
    /// Reads containerd's settings of its CRI, JSON in `Status`'s verbose answer.
    fn of(config: &str) -> Facts {
        let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
        let text = |v: &serde_json::Value| v.as_str().filter(|t| !t.is_empty()).map(String::from);
        let sandbox_image = config.get("sandboxImage").and_then(text);
        let containerd = config.get("containerd");
        let name = containerd.and_then(|c| c.get("defaultRuntimeName")).and_then(text);
        let runtimes = containerd.and_then(|c| c.get("runtimes"));
        let runtime = runtimes.and_then(|r| r.get(name.as_deref().unwrap_or("runc")));
        let systemd = runtime.and_then(|r| r.get("options")).and_then(|o| o.get("SystemdCgroup"));
        let systemd_cgroup = systemd.and_then(serde_json::Value::as_bool).unwrap_or(false);
        Facts { sandbox_image, systemd_cgroup }
    }
}

/// Container events as they happen.
pub struct Events {
    channel: Arc<Channel>,
    incoming: Incoming<ContainerEventResponse>,
}

impl Events {
    /// The next event; `None` when the runtime ended the stream.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<ContainerEventResponse>, Error> {
        self.incoming.next(&self.channel).await
    }
}

fn gone_is_fine(answer: Result<Empty, Error>) -> Result<(), Error> {
    match answer {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..Default::default() }
}

#[cfg(test)]
mod tests;
