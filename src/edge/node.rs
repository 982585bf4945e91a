//! The Node: what this board is, and how it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::report::Up;
use crate::cri::Runtime;
use crate::net;
use crate::object::{Key, now_rfc3339};
use crate::store::{Store, StoreError};
use crate::trust::names::NodeName;

/// How often the board is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often an unchanged status is sent again, as a kubelet does.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Pods on a board at most (a kubelet's default).
const PODS: u32 = 110;
/// A disk is under pressure with less than this part of it free (a kubelet's
/// `nodefs.available` default).
const DISK_FREE: f64 = 0.10;
/// Memory is under pressure with less than this available (a kubelet's
/// `memory.available` default), in bytes.
const MEMORY_FREE: u64 = 100 << 20;

/// What was found out about the board.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Processors online.
    pub cpus: usize,
    /// Memory in bytes, and how much of it is available.
    pub memory: (u64, u64),
    /// The data directory's file system in bytes, and how much is free.
    pub disk: (u64, u64),
    /// Addresses that others may reach it by.
    pub addresses: Vec<String>,
    /// `nodeInfo`.
    pub info: Value,
    /// Why no pods can be run now, if so: reason and message.
    pub trouble: Option<(&'static str, String)>,
    /// Why the store cannot be written now, if so.
    pub store_trouble: Option<String>,
}

/// Looks at the board for ever and reports what it sees.
pub async fn run(
    runtime: Runtime,
    up: Up,
    store: Store,
    name: NodeName,
    data_dir: PathBuf,
) -> Result<(), StoreError> {
    let Ok(key) = Key::core("nodes", "", name.as_str()) else { return Ok(()) };
    let started = now_rfc3339();
    let mut status = Value::Null;
    let mut sent: Option<std::time::Instant> = None;
    loop {
        let mut facts = look(&runtime, &data_dir).await;
        facts.store_trouble = store.health().err().map(|trouble| trouble.to_string());
        let fresh = node_status(&facts, &name, &status, &now_rfc3339());
        let is_due = sent.is_none_or(|at| at.elapsed() >= HEARTBEAT);
        if is_due || !same_but_heartbeats(&status, &fresh) {
            up.node(&key, node(&name, &facts, &started), fresh.clone());
            up.show_node(&store).await?;
            status = fresh;
            sent = Some(std::time::Instant::now());
        }
        smol::Timer::after(LOOK).await;
    }
}

/// The Node object that the board registers.
fn node(name: &NodeName, facts: &Facts, made: &str) -> Value {
    let info = |field| facts.info.get(field).cloned().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name.as_str(), "creationTimestamp": made, "labels": {
            "kubernetes.io/hostname": name.as_str(),
            "kubernetes.io/os": info("operatingSystem"),
            "kubernetes.io/arch": info("architecture"),
        }},
    })
}

async fn look(runtime: &Runtime, data_dir: &Path) -> Facts {
    let (runtime_version, trouble) = match (runtime.version().await, runtime.status().await) {
        (Ok(version), Ok(status)) => {
            let unmet = status.status.into_iter().flat_map(|status| status.conditions).find(|c| !c.status);
            let trouble = unmet.map(|c| {
                let reason = if c.r#type == "NetworkReady" { "NetworkNotReady" } else { "RuntimeNotReady" };
                (reason, format!("{}: {} {}", c.r#type, c.reason, c.message).trim().to_owned())
            });
            (format!("{}://{}", version.runtime_name, version.runtime_version), trouble)
        }
        (Err(error), _) | (_, Err(error)) => {
            ("unknown://".into(), Some(("RuntimeNotReady", error.to_string())))
        }
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uname = rustix::system::uname();
    let release = read("/etc/os-release");
    Facts {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory(&read("/proc/meminfo")),
        disk: rustix::fs::statvfs(data_dir)
            .map(|fs| (fs.f_frsize.saturating_mul(fs.f_blocks), fs.f_frsize.saturating_mul(fs.f_bavail)))
            .unwrap_or_default(),
        addresses: net::reachable_addresses(),
        info: json!({
            "machineID": read("/etc/machine-id").trim(),
            "systemUUID": read("/sys/class/dmi/id/product_uuid").trim(),
            "bootID": read("/proc/sys/kernel/random/boot_id").trim(),
            "kernelVersion": uname.release().to_string_lossy(),
            "osImage": os_image(&release),
            "containerRuntimeVersion": runtime_version,
            "kubeletVersion": concat!("v1.32.0-holm.", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        }),
        trouble,
        store_trouble: None,
    }
}

/// Total and available bytes in `/proc/meminfo`.
fn memory(text: &str) -> (u64, u64) {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    let bytes = |name| field(name).unwrap_or_default().saturating_mul(1024);
    (bytes("MemTotal"), bytes("MemAvailable"))
}

/// `PRETTY_NAME` of os-release(5).
fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').into()
}

/// The architecture in Go's words, as Kubernetes has it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The Node's status; conditions keep the time of their last transition from
/// `before`.
fn node_status(facts: &Facts, name: &NodeName, before: &Value, now: &str) -> Value {
    let capacity = json!({
        "cpu": facts.cpus.to_string(),
        "memory": format!("{}Ki", facts.memory.0 / 1024),
        "ephemeral-storage": format!("{}Ki", facts.disk.0 / 1024),
        "pods": PODS.to_string(),
    });
    // A float is exact enough for a percentage.
    let is_disk_tight = facts.disk.0 > 0 && (facts.disk.1 as f64) < DISK_FREE * facts.disk.0 as f64;
    let is_memory_tight = facts.memory.0 > 0 && facts.memory.1 < MEMORY_FREE;
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let same = before.get("conditions").and_then(Value::as_array).into_iter().flatten().find(|c| {
            let field = |name| c.get(name).and_then(Value::as_str);
            field("type") == Some(kind) && field("status") == Some(status)
        });
        let since = same.and_then(|c| c.get("lastTransitionTime")).cloned().unwrap_or_else(|| now.into());
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since,
        })
    };
    let memory = match is_memory_tight {
        true => ("MemoryTight", "less than 100 MiB of memory are available"),
        false => ("MemorySufficient", "enough memory is available"),
    };
    let disk = match is_disk_tight {
        true => ("DiskTight", "less than 10 % of the data directory's disk are free"),
        false => ("DiskSufficient", "enough of the data directory's disk is free"),
    };
    let ready = match &facts.trouble {
        None => condition("Ready", true, "HolmReady", "holm edge runs pods"),
        Some((reason, message)) => condition("Ready", false, reason, message),
    };
    let store = match &facts.store_trouble {
        None => condition("StoreFailing", false, "StoreWritten", "what the cloud orders is kept"),
        Some(message) => condition("StoreFailing", true, "StoreNotWritten", message),
    };
    let mut addresses: Vec<Value> =
        facts.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    addresses.push(json!({"type": "Hostname", "address": name.as_str()}));
    json!({
        "capacity": capacity, "allocatable": capacity, "addresses": addresses, "nodeInfo": facts.info,
        "conditions": [
            condition("MemoryPressure", is_memory_tight, memory.0, memory.1),
            condition("DiskPressure", is_disk_tight, disk.0, disk.1),
            condition("PIDPressure", false, "PIDsNotLimited", "process ids are not limited by holm"),
            store,
            ready,
        ],
    })
}

/// True if two statuses differ in nothing but when they were taken.
fn same_but_heartbeats(one: &Value, other: &Value) -> bool {
    let bare = |status: &Value| {
        let mut status = status.clone();
        let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
            condition.remove("lastHeartbeatTime");
        }
        status
    };
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            cpus: 4,
            memory: (4 << 30, 1 << 30),
            disk: (16 << 30, 8 << 30),
            addresses: vec!["192.0.2.7".into()],
            info: json!({"architecture": "arm64"}),
            trouble: None,
            store_trouble: None,
        }
    }

    fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let name: NodeName = "barn-1".parse().unwrap();
        let first = node_status(&facts(), &name, &Value::Null, "t1");
        assert_eq!(condition(&first, "Ready")["status"], "True");
        let second = node_status(&facts(), &name, &first, "t2");
        assert_eq!(condition(&second, "Ready")["lastTransitionTime"], "t1");
        assert!(same_but_heartbeats(&first, &second));
        let broken = Facts { trouble: Some(("RuntimeNotReady", "no socket".into())), ..facts() };
        let third = node_status(&broken, &name, &second, "t3");
        assert_eq!(condition(&third, "Ready")["status"], "False");
        assert_eq!(condition(&third, "Ready")["lastTransitionTime"], "t3");
        assert_eq!(condition(&third, "DiskPressure")["lastTransitionTime"], "t1");
        assert!(!same_but_heartbeats(&second, &third));
    }

    #[test]
    fn a_full_disk_and_tight_memory_are_said() {
        let name: NodeName = "barn-1".parse().unwrap();
        let tight = Facts { memory: (1 << 30, 50 << 20), disk: (16 << 30, 1 << 30), ..facts() };
        let status = node_status(&tight, &name, &Value::Null, "t");
        assert_eq!(condition(&status, "DiskPressure")["status"], "True");
        assert_eq!(condition(&status, "MemoryPressure")["status"], "True");
    }

    #[test]
    fn a_store_that_cannot_be_written_is_said() {
        let name: NodeName = "barn-1".parse().unwrap();
        let well = node_status(&facts(), &name, &Value::Null, "t1");
        assert_eq!(condition(&well, "StoreFailing")["status"], "False");
        let full = Facts { store_trouble: Some("the disk is full".into()), ..facts() };
        let status = node_status(&full, &name, &well, "t2");
        assert_eq!(condition(&status, "StoreFailing")["status"], "True");
        assert_eq!(condition(&status, "StoreFailing")["message"], "the disk is full");
        assert_eq!(condition(&status, "Ready")["status"], "True");
    }

    #[test]
    fn the_kernel_s_words_are_understood() {
        let text = "MemTotal:        948304 kB\nMemFree:  1 kB\nMemAvailable:     623456 kB\n";
        assert_eq!(memory(text), (948_304 * 1024, 623_456 * 1024));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Raspberry Pi OS\"\n"), "Raspberry Pi OS");
    }
}
