//! What is served: groups, versions and resources, in the old form (a request
//! a group) and in the aggregated one (`apidiscovery.k8s.io/v2`).

use serde_json::{Value, json};

use super::registry::{ROWS, Row, groups};

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn group_version(group: &str, version: &str) -> String {
    match group {
        "" => version.into(),
        group => format!("{group}/{version}"),
    }
}

/// The verbs of a subresource.
fn subresource_verbs(name: &str) -> &'static [&'static str] {
    match name {
        "binding" => &["create"],
        "finalize" => &["update"],
        _ => &["get", "patch", "update"],
    }
}

fn subresources(row: &'static Row) -> impl Iterator<Item = (&'static str, &'static str)> {
    row.subresources.iter().copied().chain(row.status.then_some(("status", row.kind)))
}

/// `/api`.
pub fn versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `/apis`.
pub fn group_list() -> Value {
    let groups: Vec<Value> = named_groups().map(|(group, version)| group_value(group, version)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`.
pub fn group(name: &str) -> Option<Value> {
    let (group, version) = named_groups().find(|(group, _)| *group == name)?;
    let mut value = group_value(group, version);
    if let Some(map) = value.as_object_mut() {
        map.insert("kind".into(), "APIGroup".into());
        map.insert("apiVersion".into(), "v1".into());
    }
    Some(value)
}

fn named_groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    groups().into_iter().filter(|(group, _)| !group.is_empty())
}

fn group_value(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": group_version(group, version), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

/// `/api/v1`, `/apis/{group}/{version}`.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for row in ROWS.iter().filter(|row| row.group == group && row.version == version) {
        list.push(json!({
            "name": row.resource,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": VERBS,
            "shortNames": row.short_names,
            "categories": row.categories,
        }));
        for (name, kind) in subresources(row) {
            list.push(json!({
                "name": format!("{}/{name}", row.resource),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": kind,
                "verbs": subresource_verbs(name),
            }));
        }
    }
    (!list.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version(group, version),
            "resources": list,
        })
    })
}

/// All of the core group, or of all others, in one answer.
pub fn aggregated(core: bool) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, version)| {
            let resources: Vec<Value> = ROWS
                .iter()
                .filter(|row| row.group == group && row.version == version)
                .map(aggregated_resource)
                .collect();
            json!({
                "metadata": {"name": group},
                "versions": [{"version": version, "resources": resources, "freshness": "Current"}],
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(row: &'static Row) -> Value {
    let kind = |kind: &str| json!({"group": row.group, "version": row.version, "kind": kind});
    let subresources: Vec<Value> = subresources(row)
        .map(|(name, takes)| {
            json!({"subresource": name, "responseKind": kind(takes), "verbs": subresource_verbs(name)})
        })
        .collect();
    json!({
        "resource": row.resource,
        "responseKind": kind(row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": VERBS,
        "shortNames": row.short_names,
        "categories": row.categories,
        "subresources": subresources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_every_kind() {
        for (group, version) in groups() {
            let old = resources(group, version).unwrap().to_string();
            let new = aggregated(group.is_empty()).to_string();
            for row in ROWS.iter().filter(|row| row.group == group) {
                let quoted = format!("{:?}", row.resource);
                assert!(old.contains(&quoted) && new.contains(&quoted), "{quoted}");
            }
        }
        assert!(group("coordination.k8s.io").is_some());
        assert!(group("").is_none() && group("nothing").is_none());
        assert!(resources("nothing", "v1").is_none());
    }
}
