//! What a client may leave out (Kubernetes API reference, "defaults to").

use serde_json::{Map, Value, json};

/// The part of a map, made if it is not there; `None` if it is something else.
pub(super) fn part<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    let part = map.entry(field).or_insert(Value::Null);
    if part.is_null() {
        *part = Value::Object(Map::new());
    }
    part.as_object_mut()
}

/// Sets a field that is not there or null.
fn set(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.into(), value.into());
    }
}

fn items<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Namespace: phase, finalizer and the label of its name.
pub fn namespace(value: &mut Value) {
    let name = crate::object::meta_str(value, "name").unwrap_or_default().to_owned();
    let Some(object) = value.as_object_mut() else { return };
    if let Some(spec) = part(object, "spec") {
        set(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = part(object, "status") {
        set(status, "phase", "Active");
    }
    if let Some(labels) = part(object, "metadata").and_then(|meta| part(meta, "labels")) {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
}

/// Node: an empty spec and status.
pub fn node(value: &mut Value) {
    if let Some(object) = value.as_object_mut() {
        part(object, "spec");
        part(object, "status");
    }
}

/// Secret: `type`, and `stringData` moved into `data`.
pub fn secret(value: &mut Value) {
    let Some(object) = value.as_object_mut() else { return };
    set(object, "type", "Opaque");
    // Anything but strings stays for the validation to name.
    let is_text = |value: &Value| value.as_object().is_some_and(|map| map.values().all(Value::is_string));
    if object.get("stringData").is_some_and(is_text)
        && let Some(Value::Object(texts)) = object.remove("stringData")
        && let Some(data) = part(object, "data")
    {
        for (key, text) in texts {
            let bytes = text.as_str().unwrap_or_default().as_bytes();
            data.insert(key, data_encoding::BASE64.encode(bytes).into());
        }
    }
}

/// Pod: everything that a node agent relies on.
pub fn pod(value: &mut Value) {
    let Some(object) = value.as_object_mut() else { return };
    if let Some(spec) = part(object, "spec") {
        pod_spec(spec);
    }
    let class = qos_class(object.get("spec"));
    if let Some(status) = part(object, "status") {
        set(status, "phase", "Pending");
        set(status, "qosClass", class);
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    set(spec, "restartPolicy", "Always");
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    set(spec, "enableServiceLinks", true);
    set(spec, "preemptionPolicy", "PreemptLowerPriority");
    set(spec, "priority", 0);
    // The old name of the field and the new one say the same.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|field| spec.get(*field).and_then(Value::as_str).filter(|name| !name.is_empty()))
        .unwrap_or("default")
        .to_owned();
    spec.insert("serviceAccountName".into(), account.as_str().into());
    spec.insert("serviceAccount".into(), account.into());
    tolerations(spec);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for field in ["initContainers", "containers"] {
        for each in items(spec, field) {
            container(each, host_network);
        }
    }
    for volume in items(spec, "volumes") {
        for (source, field) in [
            ("configMap", "defaultMode"),
            ("secret", "defaultMode"),
            ("downwardAPI", "defaultMode"),
            ("projected", "defaultMode"),
        ] {
            if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
                set(source, field, 0o644);
            }
        }
        if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
            set(path, "type", "");
        }
        // A volume of no source is an empty directory.
        if volume.len() == 1 && volume.contains_key("name") {
            volume.insert("emptyDir".into(), json!({}));
        }
    }
}

/// A pod stays five minutes on a node that cannot be reached, unless it says otherwise.
fn tolerations(spec: &mut Map<String, Value>) {
    set(spec, "tolerations", json!([]));
    let Some(list) = spec.get_mut("tolerations").and_then(Value::as_array_mut) else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let is_tolerated = list.iter().any(|toleration| {
            let text = |field: &str| toleration.get(field).and_then(Value::as_str).unwrap_or_default();
            (text("key") == key || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
        });
        if !is_tolerated {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300,
            }));
        }
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for port in items(container, "ports") {
        set(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    for env in items(container, "env") {
        if let Some(reference) =
            env.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")).and_then(Value::as_object_mut)
        {
            set(reference, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
                set(http, "path", "/");
                set(http, "scheme", "HTTP");
            }
        }
    }
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
        && let Some(requests) = part(resources, "requests")
    {
        for (name, quantity) in limits {
            set(requests, &name, quantity);
        }
    }
}

/// True if an image reference has the tag `latest`, said or meant.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// Kubernetes: "Pod Quality of Service Classes".
pub fn qos_class(spec: Option<&Value>) -> &'static str {
    let containers = ["initContainers", "containers"]
        .iter()
        .filter_map(|field| spec?.get(*field)?.as_array())
        .flatten()
        .map(|container| container.get("resources").unwrap_or(&Value::Null));
    let (mut is_some, mut is_guaranteed) = (false, true);
    let mut count = 0;
    for resources in containers {
        count += 1;
        for name in ["cpu", "memory"] {
            let quantity =
                |kind: &str| resources.get(kind).and_then(|map| map.get(name)).filter(|q| !is_zero(q));
            let (limit, request) = (quantity("limits"), quantity("requests"));
            is_some |= limit.is_some() || request.is_some();
            is_guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (is_some, is_guaranteed && count > 0) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn is_zero(quantity: &Value) -> bool {
    matches!(quantity.as_str(), Some("0")) || quantity.as_f64() == Some(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pod_becomes_a_whole_one() {
        let mut value = json!({"spec": {"containers": [
            {"name": "a", "image": "x", "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 1}}},
        ], "volumes": [{"name": "v"}]}});
        pod(&mut value);
        let spec = &value["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["livenessProbe"]["failureThreshold"], 3);
        assert_eq!(container["livenessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(value["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        let once = value.clone();
        pod(&mut value);
        assert_eq!(value, once, "defaulting twice changes nothing");
    }

    #[test]
    fn what_was_said_stays() {
        let mut value = json!({"spec": {
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "a", "image": "x:1", "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}],
        }});
        pod(&mut value);
        assert_eq!(value["spec"]["restartPolicy"], "Never");
        assert_eq!(value["spec"]["tolerations"].as_array().unwrap().len(), 1);
        let container = &value["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(container["resources"]["requests"], json!({"cpu": "1", "memory": "1Mi"}));
        assert_eq!(value["status"]["qosClass"], "Guaranteed");
    }

    #[test]
    fn the_tag_decides_the_pull_policy() {
        for image in ["a", "a/b", "host:5000/a", "a:latest"] {
            assert!(is_latest(image), "{image}");
        }
        for image in ["a:1", "host:5000/a:1", "a@sha256:0"] {
            assert!(!is_latest(image), "{image}");
        }
    }

    #[test]
    fn other_types_do_not_panic() {
        for value in [
            json!(null),
            json!([]),
            json!({"spec": 1}),
            json!({"spec": {"containers": {"a": 1}, "tolerations": 1}}),
        ] {
            for default in [pod, secret, namespace, node] {
                default(&mut value.clone());
            }
        }
    }

    #[test]
    fn string_data_becomes_data() {
        let mut value = json!({"stringData": {"a": "hello"}, "data": {"b": "eA=="}});
        secret(&mut value);
        assert_eq!(value, json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eA=="}}));
    }
}
