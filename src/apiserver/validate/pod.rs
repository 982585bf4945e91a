//! The rules of Pods.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::super::status::Causes;
use super::{LABEL_WHY, is_dns_label, list, map, one_of, text};

/// Pod.
pub fn pod(value: &Value, causes: &mut Causes) {
    let Some(spec) = value.get("spec").filter(|spec| spec.is_object()) else {
        return causes.required("spec");
    };
    one_of(spec, "restartPolicy", "spec", &["Always", "OnFailure", "Never"], causes);
    one_of(
        spec,
        "dnsPolicy",
        "spec",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        causes,
    );
    for field in
        ["nodeName", "hostname", "subdomain", "serviceAccountName", "schedulerName", "runtimeClassName"]
    {
        text(spec, field, "spec", causes);
    }
    if let Some(grace) = spec.get("terminationGracePeriodSeconds")
        && grace.as_u64().is_none()
    {
        let why = "must be a whole number, not negative";
        causes.invalid("spec.terminationGracePeriodSeconds", grace, why);
    }
    let volumes = volume_names(spec, causes);
    if list(Some(spec), "containers", "spec.containers", causes).is_empty() {
        causes.required("spec.containers");
    }
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for field in ["initContainers", "containers"] {
        let path = format!("spec.{field}");
        for (at, each) in list(Some(spec), field, &path, causes).iter().enumerate() {
            let path = format!("{path}[{at}]");
            if !each.is_object() {
                causes.mistyped(&path, "an object");
                continue;
            }
            container(each, &path, &volumes, causes);
            let name = each.get("name").and_then(Value::as_str).unwrap_or_default();
            if !name.is_empty() && !names.insert(name) {
                causes.duplicate(&format!("{path}.name"), name);
            }
            // Init containers run one after the other and may share a port.
            if field == "containers" {
                ports(each, &path, &mut host_ports, causes);
            } else {
                ports(each, &path, &mut BTreeSet::new(), causes);
            }
        }
    }
}

fn volume_names<'a>(spec: &'a Value, causes: &mut Causes) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (at, volume) in list(Some(spec), "volumes", "spec.volumes", causes).iter().enumerate() {
        let path = format!("spec.volumes[{at}]");
        let name = text(volume, "name", &path, causes);
        let path = format!("{path}.name");
        if name.is_empty() {
            causes.required(&path);
        } else if !is_dns_label(name) {
            causes.invalid(&path, &name.into(), LABEL_WHY);
        } else if !names.insert(name) {
            causes.duplicate(&path, name);
        }
        volume_source(volume, &format!("spec.volumes[{at}]"), causes);
    }
    names
}

/// Sources with the field that each cannot do without.
const NEEDED: &[(&str, &str)] = &[
    ("configMap", "name"),
    ("secret", "secretName"),
    ("hostPath", "path"),
    ("persistentVolumeClaim", "claimName"),
];

fn volume_source(volume: &Value, path: &str, causes: &mut Causes) {
    let sources = volume.as_object().into_iter().flatten().filter(|(field, _)| *field != "name");
    for (at, (source, value)) in sources.enumerate() {
        let path = format!("{path}.{source}");
        if at > 0 {
            causes.forbidden(&path, "may not specify more than 1 volume type");
        }
        if !value.is_object() {
            causes.mistyped(&path, "an object");
        } else if let Some((_, needed)) = NEEDED.iter().find(|(known, _)| known == source)
            && text(value, needed, &path, causes).is_empty()
        {
            causes.required(&format!("{path}.{needed}"));
        }
    }
}

fn container(container: &Value, path: &str, volumes: &BTreeSet<&str>, causes: &mut Causes) {
    let name = text(container, "name", path, causes);
    if name.is_empty() {
        causes.required(&format!("{path}.name"));
    } else if !is_dns_label(name) {
        causes.invalid(&format!("{path}.name"), &name.into(), LABEL_WHY);
    }
    let image = text(container, "image", path, causes);
    if image.is_empty() {
        causes.required(&format!("{path}.image"));
    } else if image.trim() != image {
        causes.invalid(
            &format!("{path}.image"),
            &image.into(),
            "must not have leading or trailing whitespace",
        );
    }
    one_of(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], causes);
    one_of(container, "restartPolicy", path, &["Always"], causes);
    for field in ["command", "args"] {
        let path = format!("{path}.{field}");
        for (at, item) in list(Some(container), field, &path, causes).iter().enumerate() {
            if !item.is_string() {
                causes.mistyped(&format!("{path}[{at}]"), "a string");
            }
        }
    }
    let env_path = format!("{path}.env");
    for (at, env) in list(Some(container), "env", &env_path, causes).iter().enumerate() {
        let path = format!("{env_path}[{at}]");
        if text(env, "name", &path, causes).is_empty() {
            causes.required(&format!("{path}.name"));
        }
        if !text(env, "value", &path, causes).is_empty() && env.get("valueFrom").is_some_and(Value::is_object)
        {
            let why = "may not be specified when `value` is not empty";
            causes.invalid(&format!("{path}.valueFrom"), &"".into(), why);
        }
    }
    resources(container, &format!("{path}.resources"), causes);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = container.get(probe).filter(|value| !value.is_null()) else { continue };
        let path = format!("{path}.{probe}");
        match HANDLERS.iter().filter(|handler| value.get(handler).is_some_and(Value::is_object)).count() {
            0 => causes.required(&path),
            1 => (),
            _ => causes.forbidden(&path, "may not specify more than 1 handler type"),
        }
    }
    let mounts_path = format!("{path}.volumeMounts");
    let mut paths = BTreeSet::new();
    for (at, mount) in list(Some(container), "volumeMounts", &mounts_path, causes).iter().enumerate() {
        let path = format!("{mounts_path}[{at}]");
        let name = text(mount, "name", &path, causes);
        if name.is_empty() {
            causes.required(&format!("{path}.name"));
        } else if !volumes.contains(name) {
            causes.not_found(&format!("{path}.name"), name);
        }
        let mount_path = text(mount, "mountPath", &path, causes);
        if mount_path.is_empty() {
            causes.required(&format!("{path}.mountPath"));
        } else if !paths.insert(mount_path) {
            causes.invalid(&format!("{path}.mountPath"), &mount_path.into(), "must be unique");
        }
    }
}

/// What a probe may do.
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];

fn resources(container: &Value, path: &str, causes: &mut Causes) {
    let resources = container.get("resources");
    for kind in ["limits", "requests"] {
        let path = format!("{path}.{kind}");
        for (name, value) in map(resources, kind, &path, causes) {
            let path = format!("{path}[{name}]");
            let Some(amount) = quantity(value) else {
                causes.invalid(&path, value, "not a quantity such as 500m, 2 or 64Mi");
                continue;
            };
            if amount < 0.0 {
                causes.invalid(&path, value, "must be greater than or equal to 0");
            }
            let limit = resources.and_then(|all| all.get("limits")?.get(name)).and_then(quantity);
            if kind == "requests" && limit.is_some_and(|limit| amount > limit) {
                causes.invalid(&path, value, &format!("must be less than or equal to {name} limit"));
            }
        }
    }
}

/// A quantity in its base unit (Kubernetes: `resource.Quantity`).
pub(crate) fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => text,
        _ => return None,
    };
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let suffix = unsigned.trim_start_matches(is_digit);
    let number: f64 = text.strip_suffix(suffix)?.parse().ok()?;
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i32>().ok());
    let factor = match (suffix, exponent) {
        (_, Some(exponent @ -30..=30)) => 10f64.powi(exponent),
        ("", _) => 1.0,
        ("n", _) => 1e-9,
        ("u", _) => 1e-6,
        ("m", _) => 1e-3,
        ("k", _) => 1e3,
        ("M", _) => 1e6,
        ("G", _) => 1e9,
        ("T", _) => 1e12,
        ("P", _) => 1e15,
        ("E", _) => 1e18,
        (binary, _) => {
            let power = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|known| *known == binary)?;
            1024f64.powi(i32::try_from(power).ok()? + 1)
        }
    };
    Some(number * factor)
}

fn ports<'a>(
    container: &'a Value,
    path: &str,
    host_ports: &mut BTreeSet<(u64, &'a str, &'a str)>,
    causes: &mut Causes,
) {
    let path = format!("{path}.ports");
    for (at, port) in list(Some(container), "ports", &path, causes).iter().enumerate() {
        let path = format!("{path}[{at}]");
        one_of(port, "protocol", &path, &["SCTP", "TCP", "UDP"], causes);
        if port.get("containerPort").is_none() {
            causes.required(&format!("{path}.containerPort"));
        }
        for field in ["containerPort", "hostPort"] {
            let Some(number) = port.get(field).filter(|number| !number.is_null()) else { continue };
            if !number.as_u64().is_some_and(|number| (1..=65535).contains(&number)) {
                causes.invalid(&format!("{path}.{field}"), number, "must be between 1 and 65535, inclusive");
            }
        }
        if let Some(number) = port.get("hostPort").and_then(Value::as_u64) {
            let text = |field: &str| port.get(field).and_then(Value::as_str).unwrap_or_default();
            if !host_ports.insert((number, text("protocol"), text("hostIP"))) {
                causes.duplicate(&format!("{path}.hostPort"), &number.to_string());
            }
        }
    }
}

/// Pod: what may change once it is there.
pub fn pod_update(old: &Value, new: &Value, causes: &mut Causes) {
    let spec = |value: &Value| value.get("spec").cloned().unwrap_or_default();
    let (old, mut allowed) = (spec(old), spec(new));
    // What may change is set back; the rest must then be the same.
    for field in ["containers", "initContainers"] {
        let images: Vec<Option<Value>> = list(Some(&old), field, "", &mut Causes::default())
            .iter()
            .map(|container| container.get("image").cloned())
            .collect();
        let containers = allowed.get_mut(field).and_then(Value::as_array_mut);
        for (container, image) in containers.into_iter().flatten().zip(images) {
            if let (Some(container), Some(image)) = (container.as_object_mut(), image) {
                container.insert("image".into(), image);
            }
        }
    }
    if let Some(spec) = allowed.as_object_mut() {
        let added = |old: Option<&Value>, new: Option<&Value>| {
            let items = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
            let new = items(new);
            items(old).iter().all(|toleration| new.contains(toleration))
        };
        if added(old.get("tolerations"), spec.get("tolerations")) {
            restore(spec, &old, "tolerations");
        }
        restore(spec, &old, "activeDeadlineSeconds");
    }
    if allowed != old {
        causes.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)",
        );
    }
}

fn restore(spec: &mut Map<String, Value>, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => spec.insert(field.into(), value.clone()),
        None => spec.remove(field),
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::apiserver::validate::metadata;
    use crate::apiserver::{defaults, registry};

    fn causes(value: Value) -> Vec<(String, &'static str)> {
        let mut causes = Causes::default();
        pod(&value, &mut causes);
        causes.0.into_iter().map(|cause| (cause.field, cause.reason)).collect()
    }

    fn cause(field: &str, reason: &'static str) -> (String, &'static str) {
        (field.into(), reason)
    }

    #[test]
    fn a_pod_without_what_it_needs_is_refused_with_every_field() {
        assert_eq!(causes(json!({"spec": {}})), [cause("spec.containers", "FieldValueRequired")]);
        let found = causes(json!({"spec": {
            "restartPolicy": "Sometimes",
            "volumes": [{"name": "v"}, {"name": "v"}],
            "containers": [
                {"name": "a", "image": "x", "ports": [{"containerPort": 1, "hostPort": 70000}]},
                {"name": "a", "volumeMounts": [{"name": "w", "mountPath": "/w"}]},
            ],
        }}));
        assert_eq!(
            found,
            [
                cause("spec.restartPolicy", "FieldValueNotSupported"),
                cause("spec.volumes[1].name", "FieldValueDuplicate"),
                cause("spec.containers[0].ports[0].hostPort", "FieldValueInvalid"),
                cause("spec.containers[1].image", "FieldValueRequired"),
                cause("spec.containers[1].volumeMounts[0].name", "FieldValueNotFound"),
                cause("spec.containers[1].name", "FieldValueDuplicate"),
            ]
        );
    }

    #[test]
    fn quantities_are_read() {
        for (text, amount) in [
            ("1", 1.0),
            ("500m", 0.5),
            ("1Ki", 1024.0),
            ("1.5Gi", 1.5 * 1073741824.0),
            ("2e3", 2000.0),
            ("1E", 1e18),
            ("-1k", -1000.0),
        ] {
            assert_eq!(quantity(&json!(text)), Some(amount), "{text}");
        }
        for text in ["", "m", "1 Mi", "1MiB", "one", "--1", "1e", "nan", "inf", "1e99999"] {
            assert_eq!(quantity(&json!(text)), None, "{text}");
        }
    }

    #[test]
    fn what_a_node_could_not_do_is_refused_before() {
        let found = causes(json!({"spec": {
            "volumes": [{"name": "v", "secret": {}}, {"name": "w", "emptyDir": {}, "configMap": {"name": "c"}}],
            "containers": [{
                "name": "a", "image": "x",
                "env": [{"name": "A", "value": "1", "valueFrom": {}}],
                "resources": {"limits": {"memory": "1Mi", "cpu": "lots"}, "requests": {"memory": "2Mi"}},
                "livenessProbe": {},
                "readinessProbe": {"exec": {}, "grpc": {}},
            }],
        }}));
        assert_eq!(
            found,
            [
                cause("spec.volumes[0].secret.secretName", "FieldValueRequired"),
                cause("spec.volumes[1].emptyDir", "FieldValueForbidden"),
                cause("spec.containers[0].env[0].valueFrom", "FieldValueInvalid"),
                cause("spec.containers[0].resources.limits[cpu]", "FieldValueInvalid"),
                cause("spec.containers[0].resources.requests[memory]", "FieldValueInvalid"),
                cause("spec.containers[0].livenessProbe", "FieldValueRequired"),
                cause("spec.containers[0].readinessProbe", "FieldValueForbidden"),
            ]
        );
    }

    #[test]
    fn two_containers_cannot_have_one_host_port() {
        let port = json!([{"containerPort": 1, "hostPort": 80, "protocol": "TCP"}]);
        let found = causes(json!({"spec": {"containers": [
            {"name": "a", "image": "x", "ports": port}, {"name": "b", "image": "x", "ports": port},
        ]}}));
        assert_eq!(found, [cause("spec.containers[1].ports[0].hostPort", "FieldValueDuplicate")]);
    }

    #[test]
    fn of_a_pod_only_images_and_more_tolerations_may_change() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}], "tolerations": []}});
        let changed = |change: Value| {
            let mut new = old.clone();
            json_merge(&mut new, &change);
            let mut causes = Causes::default();
            pod_update(&old, &new, &mut causes);
            causes.0.is_empty()
        };
        assert!(changed(json!({})));
        assert!(changed(json!({"spec": {"containers": [{"name": "a", "image": "x:2"}]}})));
        assert!(changed(json!({"spec": {"tolerations": [{"key": "a"}], "activeDeadlineSeconds": 5}})));
        assert!(!changed(json!({"spec": {"containers": [{"name": "b", "image": "x:1"}]}})));
        assert!(!changed(json!({"spec": {"nodeName": "n"}})));
        assert!(!changed(json!({"spec": {"containers": []}})));
    }

    fn json_merge(into: &mut Value, patch: &Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                for (key, value) in patch {
                    json_merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
            (into, patch) => *into = patch.clone(),
        }
    }

    proptest! {
        #[test]
        fn no_shape_panics(
            field in prop_oneof![Just("containers"), Just("volumes"), Just("initContainers"), Just("tolerations")],
            inner in prop_oneof![
                Just(json!(1)), Just(json!([1, null])), Just(json!({"name": 1})),
                Just(json!([{"ports": [1, {"containerPort": -1}], "env": 1, "command": [1], "volumeMounts": ["x"]}])),
            ],
        ) {
            let mut value = json!({"metadata": {"labels": 1, "annotations": [1]}, "spec": {field: inner}});
            defaults::pod(&mut value);
            let mut causes = Causes::default();
            pod(&value, &mut causes);
            pod_update(&value, &value, &mut causes);
            metadata(registry::find("", "v1", "pods").unwrap(), &value, &mut causes);
            prop_assert!(!causes.0.is_empty());
        }
    }
}
