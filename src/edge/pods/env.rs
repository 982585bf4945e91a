//! The environment of a container, resolved from the pod, ConfigMaps and Secrets.

use super::view::{Container, EnvSource, FieldRef, KeyRef, Named, Pod, ResourceRef, quantity};
use crate::object::{Key, Object};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where ConfigMaps and Secrets are looked up: the board's own store.
pub trait Lookup: Send + Sync {
    /// The object under that key, if the board has it.
    fn get(&self, key: &Key) -> Option<Arc<Object>>;

    /// The node's addresses as of now, the primary one first; they are pods' `hostIPs`, and
    /// `podIPs` of pods on the host's network.
    fn host_ips(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What is only known once the pod is placed.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    /// The pod's addresses, the primary one first.
    pub pod_ips: Vec<String>,
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<String>,
    /// The node's name.
    pub node_name: String,
}

/// The key of a ConfigMap (`configmaps`) or Secret (`secrets`).
pub fn key(resource: &str, namespace: &str, name: &str) -> Key {
    Key { group: String::new(), resource: resource.into(), namespace: namespace.into(), name: name.into() }
}

/// The bytes of a ConfigMap (`data`, `binaryData`) or Secret (`data`, base64), by key.
pub fn data(object: &Object) -> BTreeMap<String, Vec<u8>> {
    let secret = object.key.resource == "secrets";
    let mut out = BTreeMap::new();
    for (field, encoded) in [("data", secret), ("binaryData", true), ("stringData", false)] {
        let Some(map) = object.value.get(field).and_then(Value::as_object) else { continue };
        for (key, value) in map {
            let Some(text) = value.as_str() else { continue };
            let bytes = match encoded {
                false => Some(text.as_bytes().to_vec()),
                true => data_encoding::BASE64.decode(text.as_bytes()).ok(),
            };
            if let Some(bytes) = bytes {
                out.insert(key.clone(), bytes);
            }
        }
    }
    out
}

/// The variables of `container` in order, later ones replacing earlier ones of the same name.
///
/// # Errors
/// One line naming what is missing.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    lookup: &dyn Lookup,
    placed: &Placed,
) -> Result<Vec<(String, String)>, String> {
    let mut out = Variables::default();
    for from in &container.env_from {
        let sources = [("configmaps", &from.config_map_ref), ("secrets", &from.secret_ref)];
        for (resource, named) in sources {
            let Some(named) = named else { continue };
            let Some(object) = find(pod, resource, named, lookup)? else { continue };
            for (name, value) in data(&object) {
                if let Ok(value) = String::from_utf8(value) {
                    out.set(format!("{}{name}", from.prefix), value);
                }
            }
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            None => Some(expand(&variable.value, &out.0)),
            Some(source) => source_value(pod, container, source, lookup, placed)
                .map_err(|e| format!("env {}: {e}", variable.name))?,
        };
        if let Some(value) = value {
            out.set(variable.name.clone(), value);
        }
    }
    Ok(out.0)
}

#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn set(&mut self, name: String, value: String) {
        self.0.retain(|(n, _)| *n != name);
        self.0.push((name, value));
    }
}

fn find(
    pod: &Pod,
    resource: &str,
    named: &Named,
    lookup: &dyn Lookup,
) -> Result<Option<Arc<Object>>, String> {
    let namespace = &pod.metadata.namespace;
    match lookup.get(&key(resource, namespace, &named.name)) {
        Some(object) => Ok(Some(object)),
        None if named.optional => Ok(None),
        None => Err(missing(resource, &named.name)),
    }
}

/// Kubernetes' words for an object that a pod needs and that is not there.
pub fn missing(resource: &str, name: &str) -> String {
    let kind = resource.strip_suffix('s').unwrap_or(resource);
    format!("{kind} {name:?} not found")
}

fn source_value(
    pod: &Pod,
    container: &Container,
    source: &EnvSource,
    lookup: &dyn Lookup,
    placed: &Placed,
) -> Result<Option<String>, String> {
    let of_key = |resource: &str, from: &KeyRef| {
        let named = Named { name: from.name.clone(), optional: from.optional };
        let Some(object) = find(pod, resource, &named, lookup)? else { return Ok(None) };
        match data(&object).remove(&from.key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if from.optional => Ok(None),
            None => Err(format!("couldn't find key {} in {resource} {}", from.key, from.name)),
        }
    };
    if let Some(from) = &source.config_map_key_ref {
        return of_key("configmaps", from);
    }
    if let Some(from) = &source.secret_key_ref {
        return of_key("secrets", from);
    }
    if let Some(from) = &source.field_ref {
        return field(pod, from, placed).map(Some);
    }
    if let Some(from) = &source.resource_field_ref {
        let named = match from.container_name.as_str() {
            "" => container,
            name => pod.container(name).ok_or_else(|| format!("no container {name:?}"))?,
        };
        return resource(named, from).map(Some);
    }
    Err("valueFrom names no source that is known here".into())
}

/// A field of the pod, as the downward API names it.
///
/// # Errors
/// A path that is none.
pub fn field(pod: &Pod, field: &FieldRef, placed: &Placed) -> Result<String, String> {
    let meta = &pod.metadata;
    let listed = |map: &BTreeMap<String, String>| {
        map.iter().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    Ok(match field.field_path.as_str() {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => listed(&meta.labels),
        "metadata.annotations" => listed(&meta.annotations),
        "spec.nodeName" => placed.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.podIP" => first(&placed.pod_ips),
        "status.podIPs" => placed.pod_ips.join(","),
        "status.hostIP" => first(&placed.host_ips),
        "status.hostIPs" => placed.host_ips.join(","),
        path => {
            let entry = |prefix: &str, map: &BTreeMap<String, String>| {
                let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
                Some(map.get(key).cloned().unwrap_or_default())
            };
            entry("metadata.labels['", &meta.labels)
                .or_else(|| entry("metadata.annotations['", &meta.annotations))
                .ok_or_else(|| format!("fieldRef: unknown path {path:?}"))?
        }
    })
}

/// A request or limit of a container in units of the divisor, rounded up. A limit that is not set
/// is what the machine has.
///
/// # Errors
/// A resource or divisor that is none.
pub fn resource(container: &Container, from: &ResourceRef) -> Result<String, String> {
    let unknown = || format!("resourceFieldRef: unknown resource {:?}", from.resource);
    let (kind, name) = from.resource.split_once('.').ok_or_else(unknown)?;
    let set = match kind {
        "limits" => container.resources.limits.get(name),
        "requests" => container.resources.requests.get(name).or(container.resources.limits.get(name)),
        _ => return Err(unknown()),
    };
    let amount = match set {
        Some(amount) => quantity(amount).ok_or_else(unknown)?,
        None if kind == "requests" => 0,
        None => machine(name).ok_or_else(unknown)?,
    };
    let divisor = match &from.divisor {
        None => 1000,
        // "0" is how the API writes the default.
        Some(divisor) => match quantity(divisor) {
            Some(0) => 1000,
            Some(divisor) => divisor,
            None => return Err(format!("resourceFieldRef: divisor {divisor} is no quantity")),
        },
    };
    let up = amount.checked_add(divisor - 1).ok_or_else(unknown)? / divisor;
    Ok(up.to_string())
}

/// What the machine has of a resource, in thousandths.
fn machine(name: &str) -> Option<i64> {
    let whole = match name {
        "cpu" => i64::try_from(std::thread::available_parallelism().map_or(1, usize::from)).ok()?,
        "memory" => {
            let info = rustix::system::sysinfo();
            #[allow(clippy::useless_conversion)] // the type differs between processors
            let (total, unit) = (i64::try_from(info.totalram).ok()?, i64::from(info.mem_unit));
            total.checked_mul(unit)?
        }
        _ => return None,
    };
    whole.checked_mul(1000)
}

/// `$(NAME)` replaced by the variable's value, `$$` by `$`; what is not defined stays as it is.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let named = after.strip_prefix('(').and_then(|a| a.split_once(')'));
        match named {
            Some((name, after)) => {
                match variables.iter().find(|(n, _)| n == name) {
                    Some((_, value)) => out.push_str(value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = after;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::view::tests::object;
    use super::*;
    use crate::object::{Origin, Revision, Uid};
    use serde_json::json;

    /// A lookup over a list.
    #[derive(Default)]
    pub struct Objects(pub Vec<Arc<Object>>);

    impl Objects {
        pub fn with(mut self, resource: &str, name: &str, value: Value) -> Self {
            let key = key(resource, "default", name);
            let uid = Uid(name.into());
            let object = Object { key, uid, revision: Revision(1), origin: Origin::Cloud, value };
            self.0.push(Arc::new(object));
            self
        }
    }

    impl Lookup for Objects {
        fn get(&self, key: &Key) -> Option<Arc<Object>> {
            self.0.iter().find(|o| o.key == *key).cloned()
        }
    }

    fn env_of(container: Value, objects: &Objects) -> Result<Vec<(String, String)>, String> {
        let mut pod = object("web", json!({ "containers": [container], "serviceAccountName": "sa" }));
        pod.value["metadata"]["labels"] = json!({ "app": "a" });
        let pod = Pod::of(&pod).unwrap();
        let placed = Placed {
            pod_ips: vec!["10.0.0.2".into(), "fd00::2".into()],
            host_ips: vec!["192.0.2.1".into()],
            node_name: "island".into(),
        };
        resolve(&pod, &pod.spec.containers[0], objects, &placed)
    }

    #[test]
    fn every_source_of_a_variable_is_read() {
        let objects = Objects::default()
            .with("configmaps", "cm", json!({ "data": { "a": "1", "b": "2" } }))
            .with("secrets", "s", json!({ "data": { "p": "c2VjcmV0" } }));
        let env = env_of(
            json!({ "name": "c", "image": "i",
                "envFrom": [{ "prefix": "CM_", "configMapRef": { "name": "cm" } },
                            { "configMapRef": { "name": "none", "optional": true } }],
                "env": [
                    { "name": "CM_b", "value": "over" },
                    { "name": "X", "value": "$(CM_a)-$(nope)-$$(CM_a)-$" },
                    { "name": "K", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "b" } } },
                    { "name": "O", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "z", "optional": true } } },
                    { "name": "P", "valueFrom": { "secretKeyRef": { "name": "s", "key": "p" } } },
                    { "name": "F", "valueFrom": { "fieldRef": { "fieldPath": "status.podIPs" } } },
                    { "name": "L", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                    { "name": "N", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                    { "name": "R", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
                ],
                "resources": { "limits": { "memory": "64Mi" } } }),
            &objects,
        );
        let env = env.unwrap();
        let env: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            env,
            [
                ("CM_a", "1"),
                ("CM_b", "over"),
                ("X", "1-$(nope)-$(CM_a)-$"),
                ("K", "2"),
                ("P", "secret"),
                ("F", "10.0.0.2,fd00::2"),
                ("L", "a"),
                ("N", "island"),
                ("R", "64"),
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let objects = Objects::default().with("configmaps", "cm", json!({ "data": {} }));
        let error =
            |env: Value| env_of(json!({ "name": "c", "image": "i", "env": [env] }), &objects).unwrap_err();
        let of = |from: Value| error(json!({ "name": "V", "valueFrom": from }));
        assert_eq!(
            of(json!({ "secretKeyRef": { "name": "s", "key": "k" } })),
            "env V: secret \"s\" not found"
        );
        assert!(
            of(json!({ "configMapKeyRef": { "name": "cm", "key": "k" } })).contains("key k in configmaps cm")
        );
        assert!(of(json!({ "fieldRef": { "fieldPath": "metadata.nope" } })).contains("metadata.nope"));
        assert!(of(json!({ "resourceFieldRef": { "resource": "limits.x" } })).contains("limits.x"));
        assert!(of(json!({ "somethingNew": {} })).contains("no source"));
    }
}
