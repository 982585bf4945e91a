//! What the runtime is told: a sandbox's and a container's configuration, from the pod.

use super::env;
use super::view::{Container, Pod, Resources, SeccompProfile, quantity};
use crate::cri::v1;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The label of every sandbox and container that Holm made.
pub const MANAGED_BY: (&str, &str) = ("holm.dev/managed-by", "holm");
/// The labels by which kubelets and their tools know pods; here for the same tools.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// See [`POD_NAME`].
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// See [`POD_NAME`].
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// See [`POD_NAME`].
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation of a container: how often it was restarted before this run.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation of a container: the image as the pod named it.
pub const IMAGE: &str = "holm.dev/image";

/// The label that [`MANAGED_BY`] is, as a selector.
pub fn managed() -> BTreeMap<String, String> {
    let (key, value) = MANAGED_BY;
    [(key.into(), value.into())].into()
}

/// The name of a pod's log folder: `<namespace>_<name>_<uid>`, as kubelets have it.
pub fn log_folder(pod: &Pod) -> String {
    let meta = &pod.metadata;
    format!("{}_{}_{}", meta.namespace, meta.name, meta.uid)
}

fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let meta = &pod.metadata;
    let mut labels = managed();
    labels.insert(POD_NAME.into(), meta.name.clone());
    labels.insert(POD_NAMESPACE.into(), meta.namespace.clone());
    labels.insert(POD_UID.into(), meta.uid.clone());
    labels
}

/// The sandbox of a pod. `resolv` is the host's resolv.conf, `cgroup` the pod's parent cgroup.
pub fn sandbox(pod: &Pod, attempt: u32, logs: &Path, resolv: &str, cgroup: &str) -> v1::PodSandboxConfig {
    let spec = &pod.spec;
    let meta = &pod.metadata;
    let security = &spec.security_context;
    let privileged =
        spec.containers.iter().chain(&spec.init_containers).any(|c| c.security_context.privileged);
    let mut all_labels = meta.labels.clone();
    all_labels.extend(labels(pod));
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            namespace: meta.namespace.clone(),
            attempt,
        }),
        // With the host's network it is the host's name that counts.
        hostname: if spec.host_network { String::new() } else { pod.hostname() },
        log_directory: logs.join(log_folder(pod)).display().to_string(),
        dns_config: dns(pod, resolv),
        port_mappings: if spec.host_network { Vec::new() } else { ports(pod) },
        labels: all_labels,
        annotations: meta.annotations.clone(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup.into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: security.run_as_user.map(int64),
                run_as_group: security.run_as_group.filter(|_| security.run_as_user.is_some()).map(int64),
                readonly_rootfs: false,
                supplemental_groups: groups(pod),
                privileged,
                seccomp: Some(seccomp(security.seccomp_profile.as_ref(), None)),
            }),
            sysctls: security.sysctls.iter().map(|s| (s.name.clone(), s.value.clone())).collect(),
        }),
    }
}

fn int64(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    let spec = &pod.spec;
    let host = |host: bool| if host { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => v1::NamespaceMode::Node,
        (false, true) => v1::NamespaceMode::Pod,
        (false, false) => v1::NamespaceMode::Container,
    };
    v1::NamespaceOption {
        network: host(spec.host_network).into(),
        pid: pid.into(),
        ipc: host(spec.host_ipc).into(),
        target_id: String::new(),
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let security = &pod.spec.security_context;
    let own = security.fs_group.map(i64::from);
    security.supplemental_groups.iter().copied().chain(own).collect()
}

fn seccomp(pod: Option<&SeccompProfile>, container: Option<&SeccompProfile>) -> v1::SecurityProfile {
    let profile = container.or(pod);
    let (kind, local) = match profile.map(|p| (p.r#type.as_str(), &p.localhost_profile)) {
        Some(("RuntimeDefault", _)) => (v1::ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", path)) => (v1::ProfileType::Localhost, path.clone()),
        // The default of a kubelet that was not told otherwise.
        _ => (v1::ProfileType::Unconfined, String::new()),
    };
    v1::SecurityProfile { profile_type: kind.into(), localhost_ref: local }
}

fn ports(pod: &Pod) -> Vec<v1::PortMapping> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.is_sidecar());
    let ports = sidecars.chain(&pod.spec.containers).flat_map(|c| &c.ports);
    let mapped = ports.filter(|p| p.host_port != 0).map(|p| {
        let protocol = match p.protocol.as_str() {
            "UDP" => v1::Protocol::Udp,
            "SCTP" => v1::Protocol::Sctp,
            _ => v1::Protocol::Tcp,
        };
        v1::PortMapping {
            protocol: protocol.into(),
            container_port: p.container_port.into(),
            host_port: p.host_port.into(),
            host_ip: p.host_ip.clone(),
        }
    });
    mapped.collect()
}

/// `dnsPolicy: None` is `dnsConfig` alone; every other policy is the host's resolv.conf with
/// `dnsConfig` added, as long as there is no name server of the cluster's own on the board.
fn dns(pod: &Pod, resolv: &str) -> Option<v1::DnsConfig> {
    let mut dns = v1::DnsConfig::default();
    if pod.spec.dns_policy != "None" {
        for line in resolv.lines() {
            let mut words = line.split_whitespace();
            let key = words.next().unwrap_or_default();
            match key {
                "nameserver" => dns.servers.extend(words.next().map(String::from)),
                "search" | "domain" => dns.searches = words.map(String::from).collect(),
                "options" => dns.options.extend(words.map(String::from)),
                _ => {}
            }
        }
    }
    if let Some(own) = &pod.spec.dns_config {
        let add = |to: &mut Vec<String>, more: &mut dyn Iterator<Item = String>| {
            for item in more {
                if !to.contains(&item) {
                    to.push(item);
                }
            }
        };
        add(&mut dns.servers, &mut own.nameservers.iter().cloned());
        add(&mut dns.searches, &mut own.searches.iter().cloned());
        let option = |o: &super::view::DnsOption| match &o.value {
            Some(value) => format!("{}:{value}", o.name),
            None => o.name.clone(),
        };
        add(&mut dns.options, &mut own.options.iter().map(option));
    }
    Some(dns)
}

/// What a container is made of beside the pod.
pub struct Making<'a> {
    /// Counts its runs.
    pub restart: u32,
    /// Its resolved variables.
    pub env: Vec<(String, String)>,
    /// Volumes and files of the agent's own.
    pub mounts: Vec<v1::Mount>,
    /// The user that the image asks for, a name or a number, if known: for `runAsNonRoot`.
    pub image_user: Option<&'a str>,
    /// All memory of the machine in bytes, for the OOM score.
    pub memory: i64,
}

/// One run of a container.
///
/// # Errors
/// One line naming what the pod forbids.
pub fn container(
    pod: &Pod,
    container: &Container,
    making: Making<'_>,
) -> Result<v1::ContainerConfig, String> {
    let security = &container.security_context;
    let of_pod = &pod.spec.security_context;
    let user = security.run_as_user.or(of_pod.run_as_user);
    let non_root = security.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false);
    let root_image = making.image_user.is_none_or(|u| u.is_empty() || u == "0" || u == "root");
    if non_root && (user == Some(0) || user.is_none() && root_image) {
        return Err(format!(
            "container {}: runAsNonRoot is set, and it would run as root: set runAsUser",
            container.name
        ));
    }
    let expanded = |words: &[String]| words.iter().map(|w| env::expand(w, &making.env)).collect();
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut labels = labels(pod);
    labels.insert(CONTAINER_NAME.into(), container.name.clone());
    let annotations = [
        (RESTART_COUNT.to_string(), making.restart.to_string()),
        (IMAGE.to_string(), container.image.clone()),
    ];
    let key_value = |(key, value): (String, String)| v1::KeyValue { key, value: value.into_bytes() };
    let capabilities = &security.capabilities;
    // Paths of the kernel that are hidden or read-only in a container, as the OCI's defaults.
    let (masked, readonly): (&[&str], &[&str]) = match security.privileged {
        true => (&[], &[]),
        false => (&MASKED, &READONLY),
    };
    let strings = |paths: &[&str]| paths.iter().map(|p| p.to_string()).collect();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt: making.restart }),
        image: Some(v1::ImageSpec {
            image: container.image.clone(),
            user_specified_image: container.image.clone(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone(),
        envs: making.env.into_iter().map(key_value).collect(),
        mounts: making.mounts,
        labels,
        annotations: annotations.into(),
        log_path: format!("{}/{}.log", container.name, making.restart),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(&container.resources, making.memory)),
            security_context: Some(v1::LinuxContainerSecurityContext {
                capabilities: Some(v1::Capability {
                    add_capabilities: capabilities.add.clone(),
                    drop_capabilities: capabilities.drop.clone(),
                }),
                privileged: security.privileged,
                namespace_options: Some(namespaces(pod)),
                run_as_user: user.map(int64),
                run_as_group: security.run_as_group.or(of_pod.run_as_group).map(int64),
                readonly_rootfs: security.read_only_root_filesystem,
                supplemental_groups: groups(pod),
                no_new_privs: security.allow_privilege_escalation == Some(false),
                masked_paths: strings(masked),
                readonly_paths: strings(readonly),
                seccomp: Some(seccomp(of_pod.seccomp_profile.as_ref(), security.seccomp_profile.as_ref())),
            }),
        }),
    })
}

const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Length of a scheduling period in microseconds.
const PERIOD: i64 = 100_000;

/// Requests and limits as cgroup settings, and the order in which the kernel kills when memory
/// runs out: pods that promised nothing first, those that keep what they promised last.
fn resources(resources: &Resources, memory: i64) -> v1::LinuxContainerResources {
    let amount = |map: &BTreeMap<String, Value>, what: &str| map.get(what).and_then(quantity);
    let limit = |what| amount(&resources.limits, what);
    let request = |what| amount(&resources.requests, what).or(limit(what));
    // A core is 1024 shares, and 2 the least the kernel takes.
    let shares = request("cpu").map_or(2, |m| (m.saturating_mul(1024) / 1000).clamp(2, 262_144));
    let quota = limit("cpu").map_or(0, |m| (m.saturating_mul(PERIOD) / 1000).max(1000));
    let bytes = |thousandths: i64| thousandths / 1000;
    let best_effort = resources.requests.is_empty() && resources.limits.is_empty();
    let guaranteed = ["cpu", "memory"].iter().all(|w| limit(w).is_some() && request(w) == limit(w));
    let oom_score_adj = match (best_effort, guaranteed) {
        (true, _) => 1000,
        (_, true) => -997,
        _ => {
            let asked = request("memory").map_or(0, bytes);
            let share = asked.saturating_mul(1000).checked_div(memory).unwrap_or(0);
            (1000 - share).clamp(3, 999)
        }
    };
    v1::LinuxContainerResources {
        cpu_period: if quota > 0 { PERIOD } else { 0 },
        cpu_quota: quota,
        cpu_shares: shares,
        memory_limit_in_bytes: limit("memory").map_or(0, bytes),
        oom_score_adj,
    }
}

/// The pod's own `/etc/hosts`.
pub fn hosts(pod: &Pod, ips: &[String]) -> String {
    let mut out = String::from(
        "# Made by holm for this pod.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        out.push_str(&format!("{ip}\t{}\n", pod.hostname()));
    }
    for alias in &pod.spec.host_aliases {
        out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::object;
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Pod {
        Pod::of(&object("web", spec)).unwrap()
    }

    #[test]
    fn a_sandbox_carries_the_pods_identity_ports_and_names() {
        let pod = pod(json!({ "containers": [{ "name": "c", "image": "i", "ports": [
            { "containerPort": 80, "hostPort": 8080, "protocol": "TCP" },
            { "containerPort": 81 }] }],
            "dnsConfig": { "nameservers": ["192.0.2.9"], "options": [{ "name": "ndots", "value": "2" }] } }));
        let resolv = "# comment\nnameserver 192.0.2.1\nsearch a b\noptions edns0\n";
        let config = sandbox(&pod, 3, Path::new("/logs"), resolv, "/holm/x");
        assert_eq!(config.metadata.unwrap().attempt, 3);
        assert_eq!(config.log_directory, "/logs/default_web_uid-of-web");
        assert_eq!(config.labels[POD_UID], "uid-of-web");
        assert_eq!(config.labels["holm.dev/managed-by"], "holm");
        assert_eq!(config.port_mappings.len(), 1);
        let dns = config.dns_config.unwrap();
        assert_eq!(dns.servers, ["192.0.2.1", "192.0.2.9"]);
        assert_eq!(dns.searches, ["a", "b"]);
        assert_eq!(dns.options, ["edns0", "ndots:2"]);
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/holm/x");
        let namespaces = linux.security_context.unwrap().namespace_options.unwrap();
        assert_eq!(namespaces.network(), v1::NamespaceMode::Pod);
        assert_eq!(namespaces.pid(), v1::NamespaceMode::Container);
    }

    #[test]
    fn the_host_network_brings_the_hosts_name() {
        let pod = pod(json!({ "hostNetwork": true, "hostPID": true, "containers": [
            { "name": "c", "image": "i", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] }));
        let config = sandbox(&pod, 0, Path::new("/logs"), "", "");
        assert!(config.hostname.is_empty() && config.port_mappings.is_empty());
        let namespaces = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(namespaces.network(), v1::NamespaceMode::Node);
        assert_eq!(namespaces.pid(), v1::NamespaceMode::Node);
    }

    fn making(restart: u32) -> Making<'static> {
        let env = vec![("A".into(), "1".into())];
        Making { restart, env, mounts: Vec::new(), image_user: None, memory: 1 << 30 }
    }

    #[test]
    fn a_container_carries_command_resources_and_security() {
        let pod = pod(json!({ "containers": [{ "name": "c", "image": "i:1", "command": ["/x", "$(A)"],
            "resources": { "requests": { "cpu": "250m", "memory": "512Mi" },
                           "limits": { "cpu": "500m", "memory": "1Gi" } },
            "securityContext": { "runAsUser": 7, "allowPrivilegeEscalation": false,
                                 "readOnlyRootFilesystem": true,
                                 "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } } }] }));
        let config = container(&pod, &pod.spec.containers[0], making(2)).unwrap();
        assert_eq!(config.command, ["/x", "1"]);
        assert_eq!(config.log_path, "c/2.log");
        assert_eq!(config.annotations[RESTART_COUNT], "2");
        assert_eq!(config.annotations[IMAGE], "i:1");
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.cpu_period), (256, 50_000, PERIOD));
        assert_eq!(resources.memory_limit_in_bytes, 1 << 30);
        assert_eq!(resources.oom_score_adj, 500);
        let security = linux.security_context.unwrap();
        assert_eq!(security.run_as_user, Some(int64(7)));
        assert!(security.no_new_privs && security.readonly_rootfs);
        assert_eq!(security.capabilities.unwrap().drop_capabilities, ["ALL"]);
    }

    #[test]
    fn a_pod_that_must_not_be_root_is_not() {
        let with = |security: Value| {
            let pod =
                pod(json!({ "securityContext": security, "containers": [{ "name": "c", "image": "i" }] }));
            let mut making = making(0);
            making.image_user = Some("");
            container(&pod, &pod.spec.containers[0], making)
        };
        assert!(with(json!({ "runAsNonRoot": true })).unwrap_err().contains("runAsUser"));
        assert!(with(json!({ "runAsNonRoot": true, "runAsUser": 0 })).is_err());
        assert!(with(json!({ "runAsNonRoot": true, "runAsUser": 5 })).is_ok());
        assert!(with(json!({})).is_ok());
    }

    #[test]
    fn the_hosts_file_names_the_pod() {
        let pod = pod(json!({ "containers": [{ "name": "c", "image": "i" }],
            "hostAliases": [{ "ip": "192.0.2.7", "hostnames": ["a", "b"] }] }));
        let hosts = hosts(&pod, &["10.0.0.2".into()]);
        assert!(hosts.contains("10.0.0.2\tweb\n") && hosts.contains("192.0.2.7\ta\tb\n"));
    }
}
