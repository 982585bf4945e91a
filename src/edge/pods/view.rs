//! A pod object as the planner reads it: the fields of core/v1 `Pod` that a kubelet acts on.
//!
//! Unknown fields are skipped. A field that Holm knows and cannot honour is refused by name
//! ([`Pod::refused`]), so that nothing is silently ignored that would change what runs.

pub use super::quantity::quantity;
use crate::object::{Object, Uid};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// A pod that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod {name}: {why}")]
pub struct ViewError {
    /// `namespace/name`.
    pub name: String,
    /// The field and what is wrong with it.
    pub why: String,
}

/// What is read of a pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Pod {
    /// Name, identity, deletion.
    pub metadata: Meta,
    /// What is to run.
    pub spec: Spec,
    /// What was last reported, as far as it decides anything.
    pub status: LastStatus,
}

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)] // the names are the API's, here and below
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub deletion_timestamp: Option<String>,
    pub deletion_grace_period_seconds: Option<u32>,
}

/// `status`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct LastStatus {
    pub phase: String,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Spec {
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_period_seconds: Option<u32>,
    pub host_network: bool,
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    #[serde(rename = "hostIPC")]
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    pub hostname: String,
    pub subdomain: String,
    pub node_name: String,
    pub service_account_name: String,
    pub dns_policy: String,
    pub dns_config: Option<DnsConfig>,
    pub host_aliases: Vec<HostAlias>,
    pub image_pull_secrets: Vec<Named>,
    pub security_context: PodSecurityContext,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// `spec.dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<DnsOption>,
}

/// `spec.dnsConfig.options[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct DnsOption {
    pub name: String,
    pub value: Option<String>,
}

/// `spec.hostAliases[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

/// A reference by name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Named {
    pub name: String,
    pub optional: bool,
}

/// `spec.securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct PodSecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub fs_group: Option<u32>,
    pub supplemental_groups: Vec<i64>,
    pub sysctls: Vec<Sysctl>,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// `spec.securityContext.sysctls[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

/// `securityContext.seccompProfile`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SeccompProfile {
    pub r#type: String,
    pub localhost_profile: String,
}

/// `spec.containers[]` and `spec.initContainers[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub image_pull_policy: Option<PullPolicy>,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env: Vec<EnvVar>,
    pub env_from: Vec<EnvFrom>,
    pub ports: Vec<Port>,
    pub volume_mounts: Vec<VolumeMount>,
    pub resources: Resources,
    pub security_context: SecurityContext,
    /// Only `Always`, and only on init containers: a sidecar.
    pub restart_policy: Option<RestartPolicy>,
    pub termination_message_path: Option<String>,
    pub termination_message_policy: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub volume_devices: Vec<Value>,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// `env[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
    pub value_from: Option<EnvSource>,
}

/// `env[].valueFrom`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct EnvSource {
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceRef>,
}

/// One key of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    pub optional: bool,
}

/// A field of the pod itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct FieldRef {
    pub field_path: String,
}

/// A request or limit of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ResourceRef {
    pub container_name: String,
    pub resource: String,
    pub divisor: Option<Value>,
}

/// `envFrom[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct EnvFrom {
    pub prefix: String,
    pub config_map_ref: Option<Named>,
    pub secret_ref: Option<Named>,
}

/// `ports[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Port {
    pub container_port: u16,
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub protocol: String,
}

/// `volumeMounts[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub read_only: bool,
    pub sub_path: String,
    pub sub_path_expr: String,
    pub mount_propagation: Option<String>,
}

/// `resources`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Resources {
    pub requests: BTreeMap<String, Value>,
    pub limits: BTreeMap<String, Value>,
}

/// `securityContext` of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub privileged: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub read_only_root_filesystem: bool,
    pub capabilities: Capabilities,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// `securityContext.capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

/// `spec.volumes[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Volume {
    pub name: String,
    pub empty_dir: Option<EmptyDir>,
    pub host_path: Option<HostPath>,
    pub config_map: Option<FilesOf>,
    pub secret: Option<FilesOf>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<FieldFiles>,
    pub projected: Option<Projected>,
    /// Whatever else it is: the name of the kind, to be refused by.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// `emptyDir`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct EmptyDir {
    pub medium: String,
    pub size_limit: Option<Value>,
}

/// `hostPath`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct HostPath {
    pub path: String,
    pub r#type: String,
}

/// `configMap`, `secret`, and these as sources of a projected volume.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct FilesOf {
    #[serde(alias = "secretName")]
    pub name: String,
    pub items: Option<Vec<KeyPath>>,
    pub default_mode: Option<u32>,
    pub optional: bool,
}

/// `items[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct KeyPath {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

/// `downwardAPI`, alone or as a source of a projected volume.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct FieldFiles {
    pub items: Vec<FieldFile>,
    pub default_mode: Option<u32>,
}

/// `downwardAPI.items[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct FieldFile {
    pub path: String,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceRef>,
    pub mode: Option<u32>,
}

/// `projected`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Projected {
    pub sources: Vec<Source>,
    pub default_mode: Option<u32>,
}

/// `projected.sources[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Source {
    pub config_map: Option<FilesOf>,
    pub secret: Option<FilesOf>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<FieldFiles>,
    pub service_account_token: Option<TokenFile>,
}

/// `serviceAccountToken`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct TokenFile {
    pub path: String,
    pub audience: String,
}

/// The grace period where a pod names none.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

impl Pod {
    /// Reads a pod object. Name, namespace and uid are those of the key, whatever the value says.
    ///
    /// # Errors
    /// [`ViewError`] naming the field that has the wrong type.
    pub fn of(object: &Object) -> Result<Pod, ViewError> {
        let name = || format!("{}/{}", object.key.namespace, object.key.name);
        let mut pod = Pod::deserialize(without_nulls(&object.value))
            .map_err(|e| ViewError { name: name(), why: e.to_string() })?;
        pod.metadata.name = object.key.name.clone();
        pod.metadata.namespace = object.key.namespace.clone();
        let Uid(uid) = &object.uid;
        pod.metadata.uid = uid.clone();
        match pod.refused() {
            Some(why) => Err(ViewError { name: name(), why }),
            None => Ok(pod),
        }
    }

    /// The first thing asked for that cannot be had here.
    fn refused(&self) -> Option<String> {
        let spec = &self.spec;
        if spec.containers.is_empty() {
            return Some("spec.containers is empty".into());
        }
        // Names become parts of paths.
        let meta = &self.metadata;
        for (field, value) in [("name", &meta.name), ("namespace", &meta.namespace), ("uid", &meta.uid)] {
            if !is_plain(value) {
                return Some(format!("metadata.{field} {value:?} is empty or a path"));
            }
        }
        let mut names = std::collections::BTreeSet::new();
        for container in spec.init_containers.iter().chain(&spec.containers) {
            let name = &container.name;
            if !is_plain(name) || !names.insert(name) {
                return Some(format!("container name {name:?} is empty, twice there, or a path"));
            }
            if container.image.is_empty() {
                return Some(format!("container {name}: image is empty"));
            }
            if !container.volume_devices.is_empty() {
                return Some(format!("container {name}: volumeDevices are not supported"));
            }
            for mount in &container.volume_mounts {
                if !mount.sub_path.is_empty() || !mount.sub_path_expr.is_empty() {
                    return Some(format!(
                        "container {name}: volumeMounts: subPath ({}) is not supported",
                        mount.mount_path
                    ));
                }
                if !spec.volumes.iter().any(|v| v.name == mount.name) {
                    return Some(format!(
                        "container {name}: volumeMounts: no volume {:?} in spec.volumes",
                        mount.name
                    ));
                }
            }
            for (kind, resources) in
                [("requests", &container.resources.requests), ("limits", &container.resources.limits)]
            {
                for (what, amount) in resources {
                    if quantity(amount).is_none() {
                        return Some(format!(
                            "container {name}: resources.{kind}.{what}: {amount} is no quantity"
                        ));
                    }
                }
            }
        }
        for volume in &spec.volumes {
            if !is_plain(&volume.name) {
                return Some(format!("volume name {:?} is empty or a path", volume.name));
            }
            if let Some(kind) = volume.other.keys().next() {
                return Some(format!("volume {}: {kind} is not supported", volume.name));
            }
        }
        None
    }

    /// Deletion was asked for.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers may take to stop.
    pub fn grace(&self) -> Duration {
        let seconds = self
            .metadata
            .deletion_grace_period_seconds
            .filter(|_| self.is_terminating())
            .or(self.spec.termination_grace_period_seconds);
        seconds.map_or(DEFAULT_GRACE, |s| Duration::from_secs(s.into()))
    }

    /// The host name inside: `spec.hostname`, else the name, cut to what the kernel takes.
    pub fn hostname(&self) -> String {
        let name = match self.spec.hostname.as_str() {
            "" => &self.metadata.name,
            name => name,
        };
        let cut: String = name.chars().take(63).collect();
        cut.trim_end_matches(['-', '.']).to_owned()
    }

    /// The container of that name, init containers included.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers).find(|c| c.name == name)
    }
}

impl Container {
    /// An init container that keeps running beside the others.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }

    /// `imagePullPolicy`, or its default: `Always` for the tag `latest` or none.
    pub fn pull_policy(&self) -> PullPolicy {
        self.image_pull_policy.unwrap_or_else(|| {
            let last = self.image.rsplit('/').next().unwrap_or_default();
            let latest = !last.contains('@') && last.split_once(':').is_none_or(|(_, t)| t == "latest");
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        })
    }
}

/// Whether a name can be a part of a path without leading out of it.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']) && name != "." && name != ".."
}

/// The value without its nulls: in Kubernetes' JSON a null is an absent field.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, v)| !v.is_null());
            Value::Object(kept.map(|(k, v)| (k.clone(), without_nulls(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
pub(super) mod tests;
