//! A pod's status as a kubelet would report it: a pure function, and a stable one. The same
//! observation gives the same JSON; times are those of transitions, carried from the status that
//! was reported before.

use super::observed::{Instance, Observed, State};
use super::plan::{Plan, Waiting};
use super::view::{Container, Pod, RestartPolicy, quantity};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a status says beside the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The node's addresses, the primary one first.
    pub host_ips: &'a [String],
    /// The wall clock, RFC 3339.
    pub now: &'a str,
    /// `containerd` in `containerd://<id>`.
    pub runtime: &'a str,
}

/// The status of a pod that reads as one.
pub fn status(
    pod: &Pod,
    observed: &Observed,
    plan: &Plan,
    previous: Option<&Value>,
    facts: Facts<'_>,
) -> Value {
    let spec = &pod.spec;
    let of = |containers: &[Container]| -> Vec<Report> {
        containers.iter().map(|c| container(c, pod, observed, plan, previous, facts)).collect()
    };
    let inits = of(&spec.init_containers);
    let apps = of(&spec.containers);
    let phase = phase(pod, plan, &inits, &apps);
    let sandbox = observed.sandbox();
    let host_ips = || facts.host_ips.iter();
    let pod_ips: Vec<&String> = match sandbox {
        Some(_) if spec.host_network => host_ips().collect(),
        Some(sandbox) => sandbox.ips.iter().collect(),
        None => Vec::new(),
    };
    let finished = matches!(phase, "Succeeded" | "Failed");
    let unready = |reports: &[Report]| {
        let names: Vec<_> = reports.iter().filter(|r| !r.ready).map(|r| r.name.as_str()).collect();
        (!names.is_empty()).then(|| format!("containers with unready status: [{}]", names.join(" ")))
    };
    let incomplete: Vec<_> = inits.iter().filter(|r| !r.ready).map(|r| r.name.as_str()).collect();
    let ready = match (phase, unready(&apps)) {
        ("Succeeded", _) => Err(("PodCompleted", String::new())),
        ("Failed", _) => Err(("PodFailed", String::new())),
        (_, Some(message)) => Err(("ContainersNotReady", message)),
        (_, None) => Ok(()),
    };
    let initialized = match incomplete.as_slice() {
        _ if phase == "Succeeded" => Ok(()),
        [] => Ok(()),
        names => Err((
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", names.join(" ")),
        )),
    };
    let has_sandbox = if sandbox.is_some() { Ok(()) } else { Err(("", String::new())) };
    let conditions = [
        ("PodReadyToStartContainers", has_sandbox),
        ("Initialized", initialized),
        ("Ready", ready.clone()),
        ("ContainersReady", ready),
        ("PodScheduled", Ok(())),
    ];
    let conditions: Vec<Value> =
        conditions.into_iter().map(|(kind, outcome)| condition(kind, outcome, previous, facts.now)).collect();
    let mut status = json!({
        "phase": phase,
        "conditions": conditions,
        "qosClass": qos(pod),
        "startTime": carried(previous, "startTime").unwrap_or_else(|| facts.now.into()),
        "containerStatuses": apps.iter().map(|r| r.json.clone()).collect::<Vec<_>>(),
    });
    let mut put = |key: &str, value: Value| {
        if let Some(map) = status.as_object_mut() {
            map.insert(key.into(), value);
        }
    };
    if !inits.is_empty() {
        put("initContainerStatuses", inits.iter().map(|r| r.json.clone()).collect());
    }
    if let Some(ip) = facts.host_ips.first() {
        put("hostIP", ip.clone().into());
        put("hostIPs", host_ips().map(|ip| json!({ "ip": ip })).collect());
    }
    if let Some(ip) = pod_ips.first() {
        put("podIP", ip.as_str().into());
        put("podIPs", pod_ips.iter().map(|ip| json!({ "ip": ip })).collect());
    } else if finished {
        for key in ["podIP", "podIPs"] {
            if let Some(value) = previous.and_then(|p| p.get(key)) {
                put(key, value.clone());
            }
        }
    }
    status
}

/// The status of a pod object that cannot run here as it is written.
pub fn invalid(why: &str, previous: Option<&Value>, now: &str) -> Value {
    let not_ready = Err(("InvalidPod", why.to_owned()));
    json!({
        "phase": "Pending",
        "reason": "InvalidPod",
        "message": why,
        "startTime": carried(previous, "startTime").unwrap_or_else(|| now.into()),
        "conditions": [
            condition("Ready", not_ready.clone(), previous, now),
            condition("ContainersReady", not_ready, previous, now),
            condition("PodScheduled", Ok(()), previous, now),
        ],
    })
}

fn carried(previous: Option<&Value>, key: &str) -> Option<Value> {
    previous.and_then(|p| p.get(key)).filter(|v| !v.is_null()).cloned()
}

fn condition(
    kind: &str,
    outcome: Result<(), (&'static str, String)>,
    previous: Option<&Value>,
    now: &str,
) -> Value {
    let status = if outcome.is_ok() { "True" } else { "False" };
    let conditions = previous.and_then(|p| p.get("conditions")).and_then(Value::as_array);
    let before = conditions.into_iter().flatten().find(|c| c.get("type").is_some_and(|t| t == kind));
    let since = before
        .filter(|c| c.get("status").is_some_and(|s| s == status))
        .and_then(|c| c.get("lastTransitionTime"))
        .cloned()
        .unwrap_or_else(|| now.into());
    let mut out =
        json!({ "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since });
    if let (Err((reason, message)), Some(map)) = (outcome, out.as_object_mut()) {
        for (key, text) in [("reason", reason), ("message", &message)] {
            if !text.is_empty() {
                map.insert(key.into(), text.into());
            }
        }
    }
    out
}

/// What is said of one container.
struct Report {
    name: String,
    json: Value,
    ready: bool,
    /// It ran at least once.
    ran: bool,
    running: bool,
    waiting: bool,
    /// The exit code of one that ended.
    ended: Option<i64>,
}

fn container(
    container: &Container,
    pod: &Pod,
    observed: &Observed,
    plan: &Plan,
    previous: Option<&Value>,
    facts: Facts<'_>,
) -> Report {
    let name = &container.name;
    let run = observed.latest(name);
    let before = run.and_then(|run| {
        let older = observed.containers.iter().filter(|c| c.name == *name && c.restart < run.restart);
        older.filter(|c| c.state == State::Exited).max_by_key(|c| c.restart)
    });
    let init = pod.spec.init_containers.iter().any(|c| c.name == *name);
    let reported = previous_of(previous, name);
    let mut last = before.map(|b| terminated(b, facts.runtime));
    let waiting = plan.waiting.get(name);
    let state = match (run, waiting) {
        (Some(run), _) if run.state == State::Running => {
            json!({ "running": { "startedAt": time(run.started_at) } })
        }
        (Some(run), Some(waiting)) if run.state == State::Exited => {
            last = Some(terminated(run, facts.runtime));
            waits(waiting)
        }
        (Some(run), None) if run.state == State::Exited => terminated(run, facts.runtime),
        (_, Some(waiting)) => waits(waiting),
        // A terminating pod's removed containers are as they were last reported.
        (None, None) if pod.is_terminating() && reported.is_some() => {
            reported.and_then(|r| r.get("state")).cloned().unwrap_or_default()
        }
        (_, None) => {
            let started = pod.spec.init_containers.is_empty() || init;
            let reason = if started { "ContainerCreating" } else { "PodInitializing" };
            waits(&Waiting { reason, message: String::new() })
        }
    };
    let running = state.get("running").is_some();
    let ended = state.pointer("/terminated/exitCode").and_then(Value::as_i64);
    let restarts = run.map_or(0, |r| r.restart);
    let restarts = match run {
        Some(_) => u64::from(restarts),
        None => reported.and_then(|r| r.get("restartCount")).and_then(Value::as_u64).unwrap_or(0),
    };
    if last.is_none() {
        let same = reported.filter(|r| r.get("restartCount").and_then(Value::as_u64) == Some(restarts));
        last = same.and_then(|r| r.get("lastState")).cloned();
    }
    let ready = match init && !container.is_sidecar() {
        true => ended == Some(0),
        false => running,
    };
    let mut out = json!({
        "name": name,
        "image": container.image,
        "imageID": run.map_or("", |r| r.image_ref.as_str()),
        "ready": ready,
        "started": running,
        "restartCount": restarts,
        "state": state,
        "lastState": last.clone().unwrap_or_else(|| json!({})),
    });
    if let (Some(run), Some(map)) = (run, out.as_object_mut()) {
        map.insert("containerID".into(), format!("{}://{}", facts.runtime, run.id).into());
    }
    Report {
        name: name.clone(),
        ready,
        ran: running || ended.is_some() || last.is_some_and(|l| l.get("terminated").is_some()),
        running,
        waiting: out.pointer("/state/waiting").is_some(),
        ended,
        json: out,
    }
}

fn previous_of<'a>(previous: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let all = lists.iter().filter_map(|l| previous?.get(*l)?.as_array()).flatten();
    all.into_iter().find(|c| c.get("name").is_some_and(|n| n == name))
}

fn waits(waiting: &Waiting) -> Value {
    let mut out = Map::new();
    out.insert("reason".into(), waiting.reason.into());
    if !waiting.message.is_empty() {
        out.insert("message".into(), waiting.message.as_str().into());
    }
    json!({ "waiting": out })
}

fn terminated(run: &Instance, runtime: &str) -> Value {
    let reason = match run.reason.as_str() {
        "" if run.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    let mut out = json!({
        "exitCode": run.exit_code,
        "reason": reason,
        "startedAt": time(run.started_at),
        "finishedAt": time(run.finished_at),
        "containerID": format!("{runtime}://{}", run.id),
    });
    if let Some(map) = out.as_object_mut().filter(|_| !run.message.is_empty()) {
        map.insert("message".into(), run.message.as_str().into());
    }
    json!({ "terminated": out })
}

/// Nanoseconds since 1970 as RFC 3339 in whole seconds, as the API has times; null if never.
fn time(nanoseconds: i64) -> Value {
    if nanoseconds <= 0 {
        return Value::Null;
    }
    match jiff::Timestamp::from_second(nanoseconds / 1_000_000_000) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
        Err(_) => Value::Null,
    }
}

fn phase(pod: &Pod, plan: &Plan, inits: &[Report], apps: &[Report]) -> &'static str {
    match plan.finished {
        Some(true) => return "Succeeded",
        Some(false) => return "Failed",
        None => {}
    }
    // A pod that is being deleted ends as its containers did.
    let ended_all = !apps.is_empty() && apps.iter().all(|a| a.ended.is_some());
    if pod.is_terminating() && ended_all && pod.spec.restart_policy != RestartPolicy::Always {
        return if apps.iter().all(|a| a.ended == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let initializing = inits.iter().any(|i| !i.ready);
    let never_ran = apps.iter().any(|a| a.waiting && !a.ran);
    match initializing && !apps.iter().any(|a| a.running) || never_ran {
        true => "Pending",
        false => "Running",
    }
}

/// The quality of service class (core/v1 `qosClass`).
fn qos(pod: &Pod) -> &'static str {
    let containers = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let counted =
        |map: &BTreeMap<String, Value>, what: &str| map.get(what).and_then(quantity).filter(|q| *q > 0);
    let both = ["cpu", "memory"];
    let any = containers().any(|c| {
        both.iter().any(|w| counted(&c.resources.requests, w).or(counted(&c.resources.limits, w)).is_some())
    });
    let all = containers().all(|c| {
        both.iter().all(|w| {
            let limit = counted(&c.resources.limits, w);
            limit.is_some() && counted(&c.resources.requests, w).or(limit) == limit
        })
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}

#[cfg(test)]
mod tests;
