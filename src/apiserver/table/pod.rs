//! A Pod in one line: how kubectl words its state.

use serde_json::Value;

use super::{Column, Now, age, column, list, since, text, wide};

/// Pod.
pub const POD: &[Column] = &[
    column("Ready", "containers that are ready, of all"),
    column("Status", "its state in a word"),
    column("Restarts", "how often its containers were started again, and when last"),
    column("Age", "time since it was made"),
    wide("IP", "its address"),
    wide("Node", "where it runs"),
    wide("Nominated Node", "where it would run after others make room"),
    wide("Readiness Gates", "its further conditions that are true, of all"),
];

/// Pod.
pub fn pod(value: &Value, now: Now) -> Vec<Value> {
    let summary = summarize(value);
    let restarts = match (&summary.last_restart, summary.restarts) {
        (Some(last), 1..) => format!("{} ({} ago)", summary.restarts, since(last, now)),
        _ => summary.restarts.to_string(),
    };
    let or_none = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
    let ip = list(value, "/status/podIPs")
        .first()
        .map(|ip| text(ip, "/ip"))
        .filter(|ip| !ip.is_empty())
        .unwrap_or_else(|| text(value, "/status/podIP"));
    let gates = list(value, "/spec/readinessGates");
    let gates_text = match gates.len() {
        0 => "<none>".to_owned(),
        all => {
            let is_met = |gate: &&Value| condition(value, text(gate, "/conditionType"));
            format!("{}/{all}", gates.iter().filter(is_met).count())
        }
    };
    vec![
        format!("{}/{}", summary.ready, summary.containers).into(),
        summary.status.into(),
        restarts.into(),
        age(value, now),
        or_none(ip),
        or_none(text(value, "/spec/nodeName")),
        or_none(text(value, "/status/nominatedNodeName")),
        gates_text.into(),
    ]
}

/// A Pod's state in a word: `Running`, `Init:0/1`, `CrashLoopBackOff`, `Terminating`, …
pub fn pod_status(value: &Value) -> String {
    summarize(value).status
}

struct Summary {
    status: String,
    ready: usize,
    containers: usize,
    restarts: u64,
    last_restart: Option<String>,
}

fn condition(value: &Value, kind: &str) -> bool {
    list(value, "/status/conditions")
        .iter()
        .any(|condition| text(condition, "/type") == kind && text(condition, "/status") == "True")
}

/// `Signal:9` or `ExitCode:1` of a container that ended without a reason.
fn ending(terminated: &Value) -> String {
    let number = |field: &str| terminated.get(field).and_then(Value::as_i64).unwrap_or_default();
    match number("signal") {
        0 => format!("ExitCode:{}", number("exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

/// Restarts counted, and the latest end of what was restarted.
#[derive(Default)]
struct Restarts {
    count: u64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        let count = status.get("restartCount").and_then(Value::as_u64).unwrap_or_default();
        self.count = self.count.saturating_add(count);
        let ended = text(status, "/lastState/terminated/finishedAt");
        // RFC 3339 times in UTC order as text.
        if !ended.is_empty() && self.last.as_deref().is_none_or(|last| last < ended) {
            self.last = Some(ended.to_owned());
        }
    }
}

fn summarize(value: &Value) -> Summary {
    let init_specs = list(value, "/spec/initContainers");
    let is_sidecar = |name: &str| {
        init_specs.iter().any(|spec| text(spec, "/name") == name && text(spec, "/restartPolicy") == "Always")
    };
    let sidecars = init_specs.iter().filter(|spec| text(spec, "/restartPolicy") == "Always").count();
    let mut ready = 0;
    let mut all_restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();

    let mut status = text(value, "/status/phase").to_owned();
    let reason = text(value, "/status/reason");
    if !reason.is_empty() {
        status = reason.to_owned();
    }
    let is_gated = list(value, "/status/conditions").iter().any(|condition| {
        text(condition, "/type") == "PodScheduled" && text(condition, "/reason") == "SchedulingGated"
    });
    if is_gated {
        status = "SchedulingGated".into();
    }

    let mut is_initializing = false;
    for (at, container) in list(value, "/status/initContainerStatuses").iter().enumerate() {
        all_restarts.add(container);
        let sidecar = is_sidecar(text(container, "/name"));
        if sidecar {
            sidecar_restarts.add(container);
        }
        let flag = |field: &str| container.get(field) == Some(&Value::Bool(true));
        let terminated = container.pointer("/state/terminated");
        let waiting = text(container, "/state/waiting/reason");
        if terminated.is_some_and(|ended| ended.get("exitCode").and_then(Value::as_i64) == Some(0)) {
            continue;
        }
        if sidecar && flag("started") {
            ready += usize::from(flag("ready"));
            continue;
        }
        status = match (terminated, waiting) {
            (Some(ended), _) => match text(ended, "/reason") {
                "" => format!("Init:{}", ending(ended)),
                reason => format!("Init:{reason}"),
            },
            (None, "" | "PodInitializing") => format!("Init:{at}/{}", init_specs.len()),
            (None, reason) => format!("Init:{reason}"),
        };
        is_initializing = true;
        break;
    }

    let mut restarts = all_restarts;
    if !is_initializing || condition(value, "Initialized") {
        restarts = sidecar_restarts;
        let mut is_running = false;
        // The first container that has something to say has the last word.
        for container in list(value, "/status/containerStatuses").iter().rev() {
            restarts.add(container);
            let is_ready = container.get("ready") == Some(&Value::Bool(true));
            let waiting = text(container, "/state/waiting/reason");
            if !waiting.is_empty() {
                status = waiting.to_owned();
            } else if let Some(ended) = container.pointer("/state/terminated") {
                status = match text(ended, "/reason") {
                    "" => ending(ended),
                    reason => reason.to_owned(),
                };
            } else if is_ready && container.pointer("/state/running").is_some() {
                is_running = true;
                ready += 1;
            }
        }
        if status == "Completed" && is_running {
            status = if condition(value, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }
    if !text(value, "/metadata/deletionTimestamp").is_empty() {
        if reason == "NodeLost" {
            status = "Unknown".into();
        } else if !matches!(text(value, "/status/phase"), "Failed" | "Succeeded") {
            status = "Terminating".into();
        }
    }
    Summary {
        status,
        ready,
        containers: list(value, "/spec/containers").len() + sidecars,
        restarts: restarts.count,
        last_restart: restarts.last,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status_of(status: Value) -> String {
        pod_status(
            &json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}, "status": status}),
        )
    }

    #[test]
    fn states_are_worded_as_kubectl_does() {
        let running = json!({"running": {}});
        for (status, word) in [
            (json!({"phase": "Pending"}), "Pending"),
            (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "Init:0/1",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "Init:CrashLoopBackOff",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
                "Init:ExitCode:3",
            ),
            (
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
                "ContainerCreating",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "CrashLoopBackOff",
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                "Completed",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}]}),
                "ExitCode:1",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
                "Signal:9",
            ),
            (
                json!({"phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {"state": {"terminated": {"reason": "Completed"}}},
                    {"ready": true, "state": running},
                ]}),
                "Running",
            ),
        ] {
            assert_eq!(status_of(status.clone()), word, "{status}");
        }
    }

    #[test]
    fn a_pod_that_is_deleted_is_terminating() {
        let value = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(pod_status(&value), "Terminating");
    }

    #[test]
    fn restarts_and_readiness_are_counted() {
        let value = json!({
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "barn"},
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.9",
                "containerStatuses": [
                    {"ready": true, "restartCount": 2, "state": {"running": {}},
                     "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}},
                    {"ready": false, "restartCount": 1, "state": {"running": {}}},
                ],
            },
        });
        let cells = pod(&value, "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(cells[0], "1/2");
        assert_eq!(cells[1], "Running");
        assert_eq!(cells[2], "3 (60s ago)");
        assert_eq!(cells[4], "10.0.0.9");
        assert_eq!(cells[5], "barn");
    }
}
