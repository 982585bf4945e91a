//! The four kinds of patch.

use serde_json::{Map, Value};

use super::registry::Row;
use super::status::ApiError;
use super::strategic;

/// What a patch's content type says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// A merge that knows Kubernetes' lists.
    Strategic,
    /// Server-side apply. Merged like [`PatchKind::Strategic`] and made if it
    /// is not there; who owns which field is not kept.
    Apply,
}

impl PatchKind {
    /// The kind of a content type; 415 for any other.
    pub fn of(content_type: &str) -> Result<PatchKind, ApiError> {
        match content_type {
            "application/json-patch+json" => Ok(PatchKind::Json),
            "application/merge-patch+json" => Ok(PatchKind::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
            "application/apply-patch+yaml" => Ok(PatchKind::Apply),
            other => Err(ApiError::new(
                415,
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format {other:?} - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, \
                     application/strategic-merge-patch+json, application/apply-patch+yaml"
                ),
            )),
        }
    }
}

/// A JSON patch may have this many operations (as upstream).
const MOST_OPERATIONS: usize = 10_000;
/// What the `copy` operations of one JSON patch may add, in bytes of JSON.
const MOST_COPIED: usize = 3 << 20;

/// The object after the patch.
pub fn apply(mut object: Value, kind: PatchKind, patch: &Value, row: &Row) -> Result<Value, ApiError> {
    match kind {
        PatchKind::Strategic | PatchKind::Apply => strategic::apply(&mut object, patch, row.kind)?,
        PatchKind::Merge => {
            if !patch.is_object() {
                return Err(ApiError::bad_request("a merge patch is a JSON object"));
            }
            merge(&mut object, patch);
        }
        PatchKind::Json => operate(&mut object, patch)?,
    }
    Ok(object)
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Value::Object(into) = into else { return };
    for (field, value) in patch {
        match value {
            Value::Null => {
                into.remove(field);
            }
            value => merge(into.entry(field.as_str()).or_insert(Value::Null), value),
        }
    }
}

fn operate(object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > MOST_OPERATIONS {
        return Err(ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!("a JSON patch of {count} operations is over the limit of {MOST_OPERATIONS}"),
        ));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| ApiError::bad_request(format!("not a JSON patch: {error}")))?;
    let mut copied = 0;
    for operation in &patch.0 {
        // Copies of copies grow like a power of two.
        if let json_patch::PatchOperation::Copy(copy) = operation
            && let Some(source) = object.pointer(copy.from.as_str())
        {
            copied += source.to_string().len();
            if copied > MOST_COPIED {
                return Err(ApiError::new(413, "RequestEntityTooLarge", "the JSON patch copies too much"));
            }
        }
        // The object is a copy: one that is half patched is dropped.
        json_patch::patch_unsafe(object, std::slice::from_ref(operation)).map_err(|error| {
            ApiError::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {error}"),
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::registry;

    fn patched(object: Value, kind: PatchKind, patch: Value) -> Result<Value, ApiError> {
        apply(object, kind, &patch, registry::find("", "v1", "pods").unwrap())
    }

    #[test]
    fn a_merge_patch_replaces_lists_and_removes_nulls() {
        let object = json!({"a": [1, 2], "b": {"c": 1, "d": 2}});
        let after = patched(object, PatchKind::Merge, json!({"a": [3], "b": {"c": null}, "e": {"f": null}}));
        assert_eq!(after.unwrap(), json!({"a": [3], "b": {"d": 2}, "e": {}}));
        assert_eq!(patched(json!({}), PatchKind::Merge, json!("x")).unwrap_err().code, 400);
    }

    #[test]
    fn a_json_patch_is_done_in_order_or_refused() {
        let object = json!({"a": [1]});
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/-", "value": 2},
            {"op": "replace", "path": "/a/0", "value": 0},
        ]);
        assert_eq!(patched(object.clone(), PatchKind::Json, patch).unwrap(), json!({"a": [0, 2]}));
        let failing = json!([{"op": "test", "path": "/a/0", "value": 9}]);
        assert_eq!(patched(object.clone(), PatchKind::Json, failing).unwrap_err().code, 422);
        assert_eq!(patched(object, PatchKind::Json, json!({"op": "add"})).unwrap_err().code, 400);
    }

    #[test]
    fn a_json_patch_cannot_grow_without_bound() {
        let copies: Vec<Value> =
            (0..40).map(|at| json!({"op": "copy", "from": "", "path": format!("/x{at}")})).collect();
        let error = patched(json!({"a": "some text"}), PatchKind::Json, Value::from(copies)).unwrap_err();
        assert_eq!(error.code, 413);
    }
}
