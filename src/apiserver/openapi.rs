//! `/openapi/v3` and [`v2`]: as much as kubectl asks before it writes. It wants to know
//! whether the server itself validates fields; schemas are not given yet, so
//! kubectl falls back to the types it carries for its patches.

pub mod v2;

use serde_json::{Map, Value, json};

use super::registry::{ROWS, Row, groups};

fn path_of(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

/// Where all objects of a kind are.
fn collection_path(row: &Row) -> String {
    let scope = if row.namespaced { "namespaces/{namespace}/" } else { "" };
    format!("/{}/{scope}{}", path_of(row.group, row.version), row.resource)
}

/// `/openapi/v3`.
pub fn index() -> Value {
    let paths: Map<String, Value> = groups()
        .into_iter()
        .map(|(group, version)| {
            let path = path_of(group, version);
            let url = format!("/openapi/v3/{path}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/{group}/{version}`, without the
/// part before the group.
pub fn document(path: &str, version: &str) -> Option<Value> {
    let (group, api) = groups().into_iter().find(|(group, api)| path_of(group, api) == path)?;
    let mut paths = Map::new();
    for row in ROWS.iter().filter(|row| row.group == group && row.version == api) {
        let all = collection_path(row);
        paths.insert(
            format!("{all}/{{name}}"),
            json!({
                "get": operation(row, "get", &[]),
                "put": operation(row, "put", WRITING),
                "patch": operation(row, "patch", WRITING),
                "delete": operation(row, "delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            }),
        );
        paths.insert(
            all,
            json!({
                "get": operation(row, "list", &["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch"]),
                "post": operation(row, "post", WRITING),
            }),
        );
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths,
        "components": {"schemas": {}},
    }))
}

const WRITING: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];

fn operation(row: &Row, action: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    json!({
        "operationId": format!("{action}{}{}", row.group.replace('.', ""), row.kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_a_document() {
        let index = index();
        for path in index["paths"].as_object().unwrap().keys() {
            let document = document(path, "v1").unwrap();
            assert!(document["paths"].as_object().unwrap().len() >= 2, "{path}");
        }
        let core = document("api/v1", "v1").unwrap();
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert!(patch["parameters"].to_string().contains("fieldValidation"));
        assert!(document("api/v9", "v1").is_none());
    }
}
