//! What every module asks of a Pod's JSON.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Key, meta_str};

/// The node that the pod is bound to.
pub fn node_name(pod: &Value) -> Option<&str> {
    pod.get("spec")?.get("nodeName")?.as_str().filter(|name| !name.is_empty())
}

/// True once every container has ended for good (`status.phase`).
pub fn is_finished(pod: &Value) -> bool {
    let phase = pod.get("status").and_then(|status| status.get("phase")).and_then(Value::as_str);
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The ConfigMaps and Secrets that the pod names, whether they exist or not.
pub fn references(pod: &Value) -> BTreeSet<Key> {
    let mut found = BTreeSet::new();
    let Some(namespace) = meta_str(pod, "namespace") else { return found };
    let Some(spec) = pod.get("spec") else { return found };
    let mut add = |resource: &str, name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str)
            && let Ok(key) = Key::core(resource, namespace, name)
        {
            found.insert(key);
        }
    };
    let list =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    for volume in list(spec, "volumes") {
        let projected =
            volume.get("projected").map(|projected| list(projected, "sources")).unwrap_or_default();
        add("configmaps", volume.get("configMap").and_then(|source| source.get("name")));
        add("secrets", volume.get("secret").and_then(|source| source.get("secretName")));
        for source in projected {
            add("configmaps", source.get("configMap").and_then(|source| source.get("name")));
            add("secrets", source.get("secret").and_then(|source| source.get("name")));
        }
    }
    for secret in list(spec, "imagePullSecrets") {
        add("secrets", secret.get("name"));
    }
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(spec, field) {
            for source in list(&container, "envFrom") {
                add("configmaps", source.get("configMapRef").and_then(|source| source.get("name")));
                add("secrets", source.get("secretRef").and_then(|source| source.get("name")));
            }
            for variable in list(&container, "env") {
                let source = variable.get("valueFrom");
                let named = |field| source?.get(field)?.get("name");
                add("configmaps", named("configMapKeyRef"));
                add("secrets", named("secretKeyRef"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_can_name_a_config_map_or_secret_is_read() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {
                "imagePullSecrets": [{"name": "s-pull"}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "c-volume"}},
                    {"name": "b", "secret": {"secretName": "s-volume"}},
                    {"name": "c", "projected": {"sources": [
                        {"configMap": {"name": "c-projected"}}, {"secret": {"name": "s-projected"}},
                        {"serviceAccountToken": {"path": "token"}},
                    ]}},
                    {"name": "d", "emptyDir": {}},
                ],
                "initContainers": [{"envFrom": [{"configMapRef": {"name": "c-from"}}]}],
                "containers": [{
                    "envFrom": [{"secretRef": {"name": "s-from"}}],
                    "env": [
                        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c-env", "key": "k"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k"}}},
                        {"name": "C", "value": "literal"},
                    ],
                }],
            },
        });
        let names: Vec<String> = references(&pod).iter().map(Key::to_string).collect();
        assert_eq!(
            names,
            [
                "configmaps/ns/c-env",
                "configmaps/ns/c-from",
                "configmaps/ns/c-projected",
                "configmaps/ns/c-volume",
                "secrets/ns/s-env",
                "secrets/ns/s-from",
                "secrets/ns/s-projected",
                "secrets/ns/s-pull",
                "secrets/ns/s-volume",
            ]
        );
    }

    #[test]
    fn odd_shapes_name_nothing() {
        for pod in [
            json!(null),
            json!({"metadata": {"namespace": "n"}, "spec": {"volumes": {}}}),
            json!({"spec": []}),
        ] {
            assert!(references(&pod).is_empty());
        }
    }
}
