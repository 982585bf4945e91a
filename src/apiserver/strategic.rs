//! Strategic merge patch: a merge patch that knows which lists are really
//! maps (Kubernetes: "Update API Objects in Place Using kubectl patch",
//! `sig-api-machinery/strategic-merge-patch.md`).

use serde_json::{Map, Value};

use super::status::ApiError;

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    /// The patch's list replaces it.
    Atomic,
    /// Items are objects, told apart by this field.
    ByKey(&'static str),
    /// Items are plain values; the union.
    Set,
}

/// What is known of a field: how its list merges, and the type of what is in it.
#[derive(Clone, Copy, Debug)]
struct Rule {
    merge: Merge,
    of: &'static str,
}

const UNKNOWN: Rule = Rule { merge: Merge::Atomic, of: "" };

/// (type, field, how its list merges, type inside).
const RULES: &[(&str, &str, Merge, &str)] = &[
    ("", "metadata", Merge::Atomic, "ObjectMeta"),
    ("ObjectMeta", "finalizers", Merge::Set, ""),
    ("ObjectMeta", "ownerReferences", Merge::ByKey("uid"), ""),
    ("Pod", "spec", Merge::Atomic, "PodSpec"),
    ("Pod", "status", Merge::Atomic, "PodStatus"),
    ("PodStatus", "conditions", Merge::ByKey("type"), ""),
    ("PodStatus", "podIPs", Merge::ByKey("ip"), ""),
    ("PodStatus", "hostIPs", Merge::ByKey("ip"), ""),
    ("PodSpec", "containers", Merge::ByKey("name"), "Container"),
    ("PodSpec", "initContainers", Merge::ByKey("name"), "Container"),
    ("PodSpec", "ephemeralContainers", Merge::ByKey("name"), "Container"),
    ("PodSpec", "volumes", Merge::ByKey("name"), ""),
    ("PodSpec", "imagePullSecrets", Merge::ByKey("name"), ""),
    ("PodSpec", "hostAliases", Merge::ByKey("ip"), ""),
    ("PodSpec", "topologySpreadConstraints", Merge::ByKey("topologyKey"), ""),
    ("PodSpec", "schedulingGates", Merge::ByKey("name"), ""),
    ("PodSpec", "resourceClaims", Merge::ByKey("name"), ""),
    ("Container", "env", Merge::ByKey("name"), ""),
    ("Container", "ports", Merge::ByKey("containerPort"), ""),
    ("Container", "volumeMounts", Merge::ByKey("mountPath"), ""),
    ("Container", "volumeDevices", Merge::ByKey("devicePath"), ""),
    ("Node", "spec", Merge::Atomic, "NodeSpec"),
    ("Node", "status", Merge::Atomic, "NodeStatus"),
    ("NodeSpec", "podCIDRs", Merge::Set, ""),
    ("NodeStatus", "conditions", Merge::ByKey("type"), ""),
    ("NodeStatus", "addresses", Merge::ByKey("type"), ""),
    ("Namespace", "status", Merge::Atomic, "NamespaceStatus"),
    ("NamespaceStatus", "conditions", Merge::ByKey("type"), ""),
    ("ServiceAccount", "secrets", Merge::ByKey("name"), ""),
    ("PodTemplateSpec", "metadata", Merge::Atomic, "ObjectMeta"),
    ("PodTemplateSpec", "spec", Merge::Atomic, "PodSpec"),
];

fn rule(of: &str, field: &str) -> Rule {
    let find = |of: &str| RULES.iter().find(|(known, name, ..)| *known == of && *name == field);
    // Every kind has `metadata`.
    let found = find(of).or_else(|| if field == "metadata" && KINDS.contains(&of) { find("") } else { None });
    found.map_or(UNKNOWN, |(_, _, merge, of)| Rule { merge: *merge, of })
}

/// Kinds whose own fields are in the table, besides `metadata`.
const KINDS: &[&str] =
    &["Pod", "Node", "Namespace", "ServiceAccount", "ConfigMap", "Secret", "Event", "Lease"];

/// Applies a patch to an object of a kind.
pub fn apply(object: &mut Value, patch: &Value, kind: &str) -> Result<(), ApiError> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(ApiError::bad_request("a strategic merge patch is a JSON object"));
    };
    merge_map(object, patch, kind)
}

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

fn merge_map(into: &mut Map<String, Value>, patch: &Map<String, Value>, of: &str) -> Result<(), ApiError> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => (),
        Some("delete") => {
            into.clear();
            return Ok(());
        }
        Some("replace") => into.clear(),
        Some(other) => return Err(unknown_directive(other)),
    }
    if let Some(retained) = patch.get(RETAIN) {
        let retained =
            retained.as_array().ok_or_else(|| ApiError::bad_request("$retainKeys is a list of strings"))?;
        into.retain(|field, _| retained.iter().any(|kept| kept == field));
    }
    for (field, value) in patch {
        if let Some(field) = field.strip_prefix(DELETE) {
            let gone = value
                .as_array()
                .ok_or_else(|| ApiError::bad_request("$deleteFromPrimitiveList is a list of plain values"))?;
            if let Some(Value::Array(items)) = into.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (field, value) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
        let rule = rule(of, field);
        match value {
            Value::Null => {
                into.remove(field);
            }
            Value::Object(part) => {
                // `$patch: delete` of what is not there makes nothing.
                let is_deleted = part.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
                match into.get_mut(field) {
                    Some(Value::Object(present)) => merge_map(present, part, rule.of)?,
                    _ if is_deleted => (),
                    _ => {
                        let mut fresh = Map::new();
                        merge_map(&mut fresh, part, rule.of)?;
                        into.insert(field.clone(), Value::Object(fresh));
                    }
                }
            }
            Value::Array(items) => {
                let order = patch.get(&format!("{ORDER}{field}"));
                let present = match into.remove(field) {
                    Some(Value::Array(present)) => present,
                    _ => Vec::new(),
                };
                let merged = merge_list(present, items, order, rule)?;
                into.insert(field.clone(), Value::Array(merged));
            }
            plain => {
                into.insert(field.clone(), plain.clone());
            }
        }
    }
    // An order may come without a change of any item.
    for (field, order) in patch.iter() {
        if let Some(field) = field.strip_prefix(ORDER)
            && !patch.contains_key(field)
            && let Some(Value::Array(items)) = into.get_mut(field)
        {
            let rule = rule(of, field);
            *items = reorder(std::mem::take(items), &[], order, rule.merge)?;
        }
    }
    Ok(())
}

fn unknown_directive(directive: &str) -> ApiError {
    ApiError::bad_request(format!("unknown $patch directive {directive:?}: merge, replace, delete"))
}

fn merge_list(
    present: Vec<Value>,
    patch: &[Value],
    order: Option<&Value>,
    rule: Rule,
) -> Result<Vec<Value>, ApiError> {
    let before: Vec<Value> = present.iter().map(|item| identity(item, rule.merge)).collect();
    let mut items = present;
    match rule.merge {
        Merge::Atomic => {
            let mut fresh = Vec::new();
            for item in patch {
                fresh.push(cleaned(item, rule.of)?);
            }
            return Ok(fresh);
        }
        Merge::Set => {
            for item in patch {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
        Merge::ByKey(key) => {
            if patch.iter().any(|item| item.get(DIRECTIVE).is_some_and(|directive| directive == "replace")) {
                items.clear();
            }
            for item in patch {
                let part = item.as_object().ok_or_else(|| {
                    ApiError::bad_request(format!("an item told apart by {key} is an object"))
                })?;
                let directive = part.get(DIRECTIVE).and_then(Value::as_str);
                let Some(id) = part.get(key) else {
                    if directive == Some("replace") {
                        continue;
                    }
                    return Err(ApiError::bad_request(format!("an item of the patch has no {key}")));
                };
                let found = items.iter().position(|item| item.get(key) == Some(id));
                match (directive, found) {
                    (Some("delete"), _) => items.retain(|item| item.get(key) != Some(id)),
                    (None | Some("merge" | "replace"), Some(at)) => {
                        if let Some(Value::Object(present)) = items.get_mut(at) {
                            merge_map(present, part, rule.of)?;
                        }
                    }
                    (None | Some("merge" | "replace"), None) => items.push(cleaned(item, rule.of)?),
                    (Some(other), _) => return Err(unknown_directive(other)),
                }
            }
        }
    }
    match order {
        Some(order) => reorder(items, &before, order, rule.merge),
        None => Ok(items),
    }
}

/// A value as it becomes part of an object: without directives and nulls.
fn cleaned(value: &Value, of: &str) -> Result<Value, ApiError> {
    let Value::Object(part) = value else { return Ok(value.clone()) };
    let mut fresh = Map::new();
    merge_map(&mut fresh, part, of)?;
    Ok(Value::Object(fresh))
}

fn identity(item: &Value, merge: Merge) -> Value {
    match merge {
        Merge::ByKey(key) => item.get(key).cloned().unwrap_or_default(),
        _ => item.clone(),
    }
}

/// Puts the items that `order` names into its order; the others keep their
/// place among those that were there `before`.
fn reorder(items: Vec<Value>, before: &[Value], order: &Value, merge: Merge) -> Result<Vec<Value>, ApiError> {
    let order: Vec<Value> = order
        .as_array()
        .ok_or_else(|| ApiError::bad_request("$setElementOrder is a list"))?
        .iter()
        .map(|item| match item {
            Value::Object(_) => identity(item, merge),
            plain => plain.clone(),
        })
        .collect();
    let before: Vec<Value> = match before {
        [] => items.iter().map(|item| identity(item, merge)).collect(),
        before => before.to_vec(),
    };
    let place = |id: &Value| order.iter().position(|wanted| wanted == id);
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| place(&identity(item, merge)).is_some());
    named.sort_by_key(|item| place(&identity(item, merge)));
    let was_at = |item: &Value| before.iter().position(|id| *id == identity(item, merge));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let takes_named = match (named.peek(), others.peek()) {
            (Some(left), Some(right)) => match (was_at(left), was_at(right)) {
                (Some(left), Some(right)) => left < right,
                _ => true,
            },
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return Ok(out),
        };
        out.extend(if takes_named { named.next() } else { others.next() });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(mut object: Value, patch: Value) -> Value {
        apply(&mut object, &patch, "Pod").unwrap();
        object
    }

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn containers_merge_by_name_and_ports_by_number() {
        let before = pod(json!([
            {"name": "a", "image": "x:1", "ports": [{"containerPort": 80, "protocol": "TCP"}]},
            {"name": "b", "image": "y:1"},
        ]));
        let patch = pod(json!([{"name": "a", "image": "x:2", "ports": [{"containerPort": 81}]}]));
        let expected = pod(json!([
            {"name": "a", "image": "x:2",
             "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81}]},
            {"name": "b", "image": "y:1"},
        ]));
        assert_eq!(patched(before, patch), expected);
    }

    #[test]
    fn items_are_deleted_and_replaced() {
        let before = pod(json!([{"name": "a"}, {"name": "b"}]));
        let delete = pod(json!([{"name": "a", "$patch": "delete"}]));
        assert_eq!(patched(before.clone(), delete), pod(json!([{"name": "b"}])));
        let replace = pod(json!([{"name": "c"}, {"$patch": "replace"}]));
        assert_eq!(patched(before, replace), pod(json!([{"name": "c"}])));
    }

    #[test]
    fn maps_are_deleted_replaced_and_retained() {
        let before = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        let patch = |labels: Value| json!({"metadata": {"labels": labels}});
        assert_eq!(patched(before.clone(), patch(json!({"a": null}))), patch(json!({"b": "2"})));
        assert_eq!(patched(before.clone(), patch(json!({"$patch": "delete"}))), patch(json!({})));
        let replaced = patched(before.clone(), patch(json!({"$patch": "replace", "c": "3"})));
        assert_eq!(replaced, patch(json!({"c": "3"})));
        let retained = patched(before, patch(json!({"$retainKeys": ["b", "c"], "c": "3"})));
        assert_eq!(retained, patch(json!({"b": "2", "c": "3"})));
    }

    #[test]
    fn a_volume_changes_its_source() {
        let volume = |volume: Value| json!({"spec": {"volumes": [volume]}});
        let after = patched(
            volume(json!({"name": "v", "emptyDir": {}})),
            volume(json!({"name": "v", "$retainKeys": ["configMap", "name"], "configMap": {"name": "c"}})),
        );
        assert_eq!(after, volume(json!({"name": "v", "configMap": {"name": "c"}})));
    }

    #[test]
    fn plain_lists_are_sets_where_kubernetes_says_so() {
        let meta = |list: Value| json!({"metadata": {"finalizers": list}});
        assert_eq!(patched(meta(json!(["a"])), meta(json!(["b", "a"]))), meta(json!(["a", "b"])));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(patched(meta(json!(["a", "b"])), patch), meta(json!(["b"])));
        let spec = |list: Value| json!({"spec": {"tolerations": list}});
        assert_eq!(
            patched(spec(json!([{"key": "a"}])), spec(json!([{"key": "b"}]))),
            spec(json!([{"key": "b"}]))
        );
    }

    #[test]
    fn the_order_of_elements_is_set() {
        let before = pod(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}]));
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
            "containers": [{"name": "new"}],
        }});
        let after = patched(before, patch);
        let names: Vec<&str> = after["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["server", "b", "new", "a"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for patch in [
            json!([]),
            json!({"$patch": "burn"}),
            pod(json!(["a"])),
            pod(json!([{"image": "x"}])),
            json!({"spec": {"$setElementOrder/containers": 1, "containers": []}}),
        ] {
            assert_eq!(apply(&mut json!({}), &patch, "Pod").unwrap_err().code, 400, "{patch}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[ab]".prop_map(Value::from)];
        leaf.prop_recursive(5, 40, 4, |inner| {
            let name = prop_oneof![
                Just("spec"),
                Just("containers"),
                Just("name"),
                Just("metadata"),
                Just("finalizers"),
                Just("$patch"),
                Just("$retainKeys"),
                Just("$setElementOrder/containers"),
                Just("$deleteFromPrimitiveList/finalizers"),
                Just("x"),
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name.prop_map(String::from), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn has_directive(value: &Value) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(key, value)| key.starts_with('$') || has_directive(value)),
            Value::Array(items) => items.iter().any(has_directive),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn no_patch_panics(object in json_value(), patch in json_value()) {
            let mut object = object;
            let _ = apply(&mut object, &patch, "Pod");
        }

        #[test]
        fn patching_twice_is_patching_once(object in json_value(), patch in json_value()) {
            prop_assume!(!has_directive(&patch));
            let mut once = object;
            if apply(&mut once, &patch, "Pod").is_ok() {
                let mut twice = once.clone();
                apply(&mut twice, &patch, "Pod").unwrap();
                prop_assert_eq!(once, twice);
            }
        }
    }
}
