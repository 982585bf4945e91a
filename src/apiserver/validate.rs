//! Rules that objects must keep (Kubernetes API reference; "Object Names and
//! IDs"; DNS names after RFC 1123).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::registry::Row;
use super::status::Causes;
use crate::object::meta_str;
use crate::object::selector::{is_label_name, is_label_value};

const LABEL_WHY: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character, 63 characters at most";
const SUBDOMAIN_WHY: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character, 253 characters at most";

/// A DNS label: `a-1`.
pub fn is_dns_label(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| fits(c) || c == '-')
        && text.starts_with(fits)
        && text.ends_with(fits)
}

/// DNS labels with dots: `a.b-1`.
pub fn is_dns_subdomain(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=253).contains(&text.len())
        && text.split('.').all(|part| {
            part.starts_with(fits) && part.ends_with(fits) && part.chars().all(|c| fits(c) || c == '-')
        })
}

/// The rules of every object.
pub fn metadata(row: &Row, value: &Value, causes: &mut Causes) {
    let name = meta_str(value, "name").unwrap_or_default();
    if name.is_empty() {
        causes.required("metadata.name");
    } else if row.short_name_rule && !is_dns_label(name) {
        causes.invalid("metadata.name", &name.into(), LABEL_WHY);
    } else if !is_dns_subdomain(name) {
        causes.invalid("metadata.name", &name.into(), SUBDOMAIN_WHY);
    }
    let meta = value.get("metadata");
    for (name, value) in map(meta, "labels", "metadata.labels", causes) {
        if !is_label_name(name) {
            causes.invalid("metadata.labels", &name.as_str().into(), "not a qualified name");
        }
        match value.as_str() {
            Some(text) if is_label_value(text) => (),
            Some(_) => causes.invalid("metadata.labels", value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, 63 characters at most"),
            None => causes.mistyped(&format!("metadata.labels[{name}]"), "a string"),
        }
    }
    for (name, value) in map(meta, "annotations", "metadata.annotations", causes) {
        if !is_label_name(&name.to_ascii_lowercase()) {
            causes.invalid("metadata.annotations", &name.as_str().into(), "not a qualified name");
        }
        if !value.is_string() {
            causes.mistyped(&format!("metadata.annotations[{name}]"), "a string");
        }
    }
    for (at, finalizer) in list(meta, "finalizers", "metadata.finalizers", causes).iter().enumerate() {
        if !finalizer.is_string() {
            causes.mistyped(&format!("metadata.finalizers[{at}]"), "a string");
        }
    }
}

/// A map of the object; what is no map is a cause, and empty.
fn map<'a>(
    value: Option<&'a Value>,
    field: &str,
    path: &str,
    causes: &mut Causes,
) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    let found = value.and_then(|value| value.get(field)).filter(|found| !found.is_null());
    if found.is_some_and(|found| !found.is_object()) {
        causes.mistyped(path, "an object");
    }
    found.and_then(Value::as_object).into_iter().flatten()
}

/// A list of the object; what is no list is a cause, and empty.
fn list<'a>(value: Option<&'a Value>, field: &str, path: &str, causes: &mut Causes) -> &'a [Value] {
    match value.and_then(|value| value.get(field)) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(items)) => items,
        Some(_) => {
            causes.mistyped(path, "a list");
            &[]
        }
    }
}

/// A string of the object; empty if it is not there.
fn text<'a>(value: &'a Value, field: &str, path: &str, causes: &mut Causes) -> &'a str {
    match value.get(field) {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(_) => {
            causes.mistyped(&format!("{path}.{field}"), "a string");
            ""
        }
    }
}

fn one_of(value: &Value, field: &str, path: &str, known: &[&str], causes: &mut Causes) {
    let found = text(value, field, path, causes);
    if !found.is_empty() && !known.contains(&found) {
        causes.unsupported(&format!("{path}.{field}"), found, known);
    }
}

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
    }
    names
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
        text(env, "value", &path, causes);
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

/// ConfigMap.
pub fn config_map(value: &Value, causes: &mut Causes) {
    let mut size = 0;
    let mut keys = BTreeSet::new();
    for (key, value) in map(Some(value), "data", "data", causes) {
        config_key("data", key, causes);
        keys.insert(key);
        match value.as_str() {
            Some(text) => size += text.len(),
            None => causes.mistyped(&format!("data[{key}]"), "a string"),
        }
    }
    for (key, value) in map(Some(value), "binaryData", "binaryData", causes) {
        config_key("binaryData", key, causes);
        if !keys.insert(key) {
            causes.duplicate(&format!("binaryData[{key}]"), key);
        }
        size += base64_len(&format!("binaryData[{key}]"), value, causes);
    }
    too_long(size, causes);
}

/// ConfigMap: what may change once it is there.
pub fn config_map_update(old: &Value, new: &Value, causes: &mut Causes) {
    immutable(old, new, &["data", "binaryData"], causes);
}

/// Secret.
pub fn secret(value: &Value, causes: &mut Causes) {
    text(value, "type", "", causes);
    let mut size = 0;
    for (key, value) in map(Some(value), "data", "data", causes) {
        config_key("data", key, causes);
        size += base64_len(&format!("data[{key}]"), value, causes);
    }
    for (key, _) in map(Some(value), "stringData", "stringData", causes) {
        // What is left of it was no map of strings.
        causes.mistyped(&format!("stringData[{key}]"), "a string");
    }
    too_long(size, causes);
}

/// Secret: what may change once it is there.
pub fn secret_update(old: &Value, new: &Value, causes: &mut Causes) {
    immutable(old, new, &["data"], causes);
    if old.get("type") != new.get("type") {
        causes.invalid("type", new.get("type").unwrap_or(&Value::Null), "field is immutable");
    }
}

fn immutable(old: &Value, new: &Value, fields: &[&str], causes: &mut Causes) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    for field in ["immutable"].iter().chain(fields) {
        if old.get(field) != new.get(field) {
            causes.forbidden(field, "field is immutable when `immutable` is set");
        }
    }
}

fn config_key(path: &str, key: &str, causes: &mut Causes) {
    let fits = (1..=253).contains(&key.len())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !matches!(key, "." | "..")
        && !key.starts_with("..");
    if !fits {
        let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        causes.invalid(&format!("{path}[{key}]"), &key.into(), why);
    }
}

fn base64_len(path: &str, value: &Value, causes: &mut Causes) -> usize {
    match value {
        Value::Null => 0,
        Value::String(text) => match data_encoding::BASE64.decode(text.as_bytes()) {
            Ok(bytes) => bytes.len(),
            // The value is not repeated: it may be a password.
            Err(error) => {
                causes.invalid(path, &"".into(), &format!("not base64: {error}"));
                0
            }
        },
        _ => {
            causes.mistyped(path, "a string in base64");
            0
        }
    }
}

/// As much as Kubernetes takes (`MaxSecretSize`): 1 MiB.
fn too_long(size: usize, causes: &mut Causes) {
    if size > 1 << 20 {
        causes.invalid("data", &Value::Null, "must have at most 1048576 bytes");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::apiserver::{defaults, registry};

    fn causes(rule: fn(&Value, &mut Causes), value: Value) -> Vec<(String, &'static str)> {
        let mut causes = Causes::default();
        rule(&value, &mut causes);
        causes.0.into_iter().map(|cause| (cause.field, cause.reason)).collect()
    }

    fn cause(field: &str, reason: &'static str) -> (String, &'static str) {
        (field.into(), reason)
    }

    #[test]
    fn names_follow_rfc_1123() {
        assert!(is_dns_subdomain("a.b-1") && is_dns_label("a-1"));
        for name in ["", "A", "a_b", "-a", "a-", ".a", "a..b", "a/b", &"a".repeat(254)] {
            assert!(!is_dns_subdomain(name), "{name}");
        }
        assert!(!is_dns_label("a.b") && !is_dns_label(&"a".repeat(64)));
    }

    #[test]
    fn a_pod_without_what_it_needs_is_refused_with_every_field() {
        assert_eq!(causes(pod, json!({"spec": {}})), [cause("spec.containers", "FieldValueRequired")]);
        let found = causes(
            pod,
            json!({"spec": {
                "restartPolicy": "Sometimes",
                "volumes": [{"name": "v"}, {"name": "v"}],
                "containers": [
                    {"name": "a", "image": "x", "ports": [{"containerPort": 1, "hostPort": 70000}]},
                    {"name": "a", "volumeMounts": [{"name": "w", "mountPath": "/w"}]},
                ],
            }}),
        );
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
    fn two_containers_cannot_have_one_host_port() {
        let port = json!([{"containerPort": 1, "hostPort": 80, "protocol": "TCP"}]);
        let found = causes(
            pod,
            json!({"spec": {"containers": [
                {"name": "a", "image": "x", "ports": port}, {"name": "b", "image": "x", "ports": port},
            ]}}),
        );
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

    #[test]
    fn secrets_are_base64_and_an_immutable_config_stays() {
        assert_eq!(causes(secret, json!({"data": {"a": "?"}})), [cause("data[a]", "FieldValueInvalid")]);
        assert!(causes(secret, json!({"data": {"a": "eA=="}})).is_empty());
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let mut found = Causes::default();
        config_map_update(&old, &json!({"immutable": true, "data": {"a": "2"}}), &mut found);
        assert_eq!(found.0.len(), 1);
        assert_eq!(causes(config_map, json!({"data": {"a b": "1"}})).len(), 1);
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
