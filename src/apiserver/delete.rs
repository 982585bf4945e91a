//! delete and deletecollection.

use std::sync::Arc;

use http::Response;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Call;
use super::http::{Body, answer, parse};
use super::read::{Selection, find, shown};
use super::registry::Row;
use super::request::Target;
use super::status::ApiError;
use super::write::is_finished;
use crate::object::{Object, time_rfc3339};
use crate::store::{Action, Durability, Expect, Store, Write, WriteError};

const TRIES: usize = 8;

/// How to delete (Kubernetes: `DeleteOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Seconds that a Pod's containers have to end.
    pub grace: Option<u64>,
    /// Only if it has this uid.
    pub uid: Option<String>,
    /// Only if it is at this revision.
    pub revision: Option<String>,
    /// Only say whether it could be done.
    pub dry_run: bool,
}

impl Options {
    fn of(call: &Call) -> Result<Options, ApiError> {
        let mut options = Options {
            grace: call.query.number("gracePeriodSeconds")?,
            dry_run: call.is_dry_run()?,
            ..Options::default()
        };
        if call.body.is_empty() {
            return Ok(options);
        }
        let body = parse(&call.content_type, &call.body)?;
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(Into::into);
        if let Some(grace) = body.get("gracePeriodSeconds").filter(|grace| !grace.is_null()) {
            let grace = grace.as_u64().ok_or_else(|| {
                ApiError::bad_request("gracePeriodSeconds: must be a whole number, not negative")
            })?;
            options.grace = Some(grace);
        }
        options.uid = text("/preconditions/uid");
        options.revision = text("/preconditions/resourceVersion");
        options.dry_run |= body
            .get("dryRun")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|item| item == "All"));
        Ok(options)
    }
}

/// DELETE of one object.
pub async fn delete(store: &Store, call: &Call, target: &Target) -> Result<Response<Body>, ApiError> {
    if target.subresource.is_some() {
        return Err(ApiError::not_allowed());
    }
    let row = target.row;
    let found = find(store, target)?;
    if row.resource == "namespaces" && PERMANENT.contains(&found.key.name.as_str()) {
        return Err(ApiError::forbidden(format!(
            "namespaces {:?} is forbidden: this namespace may not be deleted",
            found.key.name
        )));
    }
    let options = Options::of(call)?;
    let value = match delete_object(store, row, found, &options).await? {
        Left::Stays(object) => shown(call, row, &object.to_api())?,
        // A Pod's last state is told; for the others it is enough that they are gone.
        Left::Gone(object) if row.resource == "pods" => shown(call, row, &object.to_api())?,
        Left::Gone(object) => json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": object.key.name, "group": row.group, "kind": row.resource, "uid": object.uid.0,
            },
        }),
    };
    Ok(answer(200, "application/json", &value))
}

/// Namespaces that every cluster has.
const PERMANENT: &[&str] = &["default", "kube-system", "kube-public", "holm-system"];

/// DELETE of many objects.
pub async fn delete_collection(
    store: &Store,
    call: &Call,
    target: &Target,
) -> Result<Response<Body>, ApiError> {
    let row = target.row;
    if row.resource == "namespaces" {
        return Err(ApiError::not_allowed());
    }
    let selection = Selection::of(target, &call.query)?;
    let options = Options::of(call)?;
    let listing = store.list(&selection.scope, None, None)?;
    let mut items = Vec::new();
    for object in listing.objects.into_iter().filter(|object| selection.matches(&object.value)) {
        match delete_object(store, row, object, &options).await {
            Ok(Left::Gone(object) | Left::Stays(object)) => items.push(object.to_api()),
            // Someone else was faster.
            Err(error) if error.code == 404 => (),
            Err(error) => return Err(error),
        }
    }
    let value = json!({
        "kind": format!("{}List", row.kind),
        "apiVersion": row.api_version(),
        "metadata": {"resourceVersion": store.revision().to_string()},
        "items": items,
    });
    Ok(answer(200, "application/json", &value))
}

/// What a deletion left.
pub enum Left {
    /// It is gone; as it last was.
    Gone(Arc<Object>),
    /// It waits for its node or its finalizers.
    Stays(Arc<Object>),
}

/// Deletes one object as its kind demands: at once, or marked.
pub async fn delete_object(
    store: &Store,
    row: &Row,
    mut found: Arc<Object>,
    options: &Options,
) -> Result<Left, ApiError> {
    let mut tries = TRIES;
    loop {
        check_preconditions(row, &found, options)?;
        let next = marked(row, &found.value, options.grace, Timestamp::now());
        let is_gone = is_finished(&next);
        if options.dry_run {
            return Ok(if is_gone { Left::Gone(found) } else { Left::Stays(found) });
        }
        let action = match is_gone {
            true => Action::Delete,
            false => Action::Put { value: next, origin: found.origin, durability: Durability::Durable },
        };
        let expect = Expect::Present { revision: Some(found.revision), uid: Some(found.uid.clone()) };
        match store.write(Write { key: found.key.clone(), expect, action }).await {
            Ok(object) if is_gone => return Ok(Left::Gone(object)),
            Ok(object) => return Ok(Left::Stays(object)),
            Err(WriteError::Conflict { key, .. }) if tries > 0 => {
                tries -= 1;
                found = store.get(&key)?.ok_or_else(|| ApiError::not_found(row, &key.name))?;
            }
            Err(error) => return Err(ApiError::from_write(row, error)),
        }
    }
}

fn check_preconditions(row: &Row, found: &Object, options: &Options) -> Result<(), ApiError> {
    let refuse = |what: &str, asked: &str, is: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}");
        ApiError::conflict(row, &found.key.name, &why)
    };
    if let Some(uid) = &options.uid
        && *uid != found.uid.0
    {
        return Err(refuse("UID", uid, &found.uid.0));
    }
    if let Some(revision) = &options.revision
        && *revision != found.revision.to_string()
    {
        return Err(refuse("ResourceVersion", revision, &found.revision.to_string()));
    }
    Ok(())
}

/// The object with its deletion asked for. A second request can only shorten
/// the grace of the first.
fn marked(row: &Row, value: &Value, asked: Option<u64>, now: Timestamp) -> Value {
    let mut grace = if row.resource == "pods" { pod_grace(value, asked) } else { 0 };
    let earlier = value.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64);
    let is_marked = value.pointer("/metadata/deletionTimestamp").is_some_and(Value::is_string);
    let mut next = value.clone();
    if is_marked && earlier.unwrap_or_default() <= grace {
        return next;
    }
    grace = grace.min(earlier.unwrap_or(grace));
    let span = SignedDuration::from_secs(i64::try_from(grace).unwrap_or(i64::MAX));
    let end = now.checked_add(span).unwrap_or(Timestamp::MAX);
    if let Some(meta) = next.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("deletionTimestamp".into(), time_rfc3339(end).into());
        meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if row.resource == "namespaces"
        && let Some(status) = next.get_mut("status").and_then(Value::as_object_mut)
    {
        status.insert("phase".into(), "Terminating".into());
    }
    next
}

/// A Pod that no node has, or that has ended, needs no time.
fn pod_grace(value: &Value, asked: Option<u64>) -> u64 {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Succeeded" | "Failed") {
        return 0;
    }
    let own = value.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    asked.unwrap_or_else(|| own.unwrap_or(30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::registry;

    fn marked_pod(value: Value, asked: Option<u64>) -> Value {
        marked(
            registry::find("", "v1", "pods").unwrap(),
            &value,
            asked,
            "2026-01-01T00:00:00Z".parse().unwrap(),
        )
    }

    #[test]
    fn a_pod_on_a_node_has_its_time() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}});
        let once = marked_pod(pod.clone(), None);
        assert_eq!(once["metadata"]["deletionTimestamp"], "2026-01-01T00:00:20Z");
        assert_eq!(once["metadata"]["deletionGracePeriodSeconds"], 20);
        assert!(!is_finished(&once));
        let later = marked_pod(once.clone(), Some(60));
        assert_eq!(later, once, "grace is not made longer");
        let sooner = marked_pod(once.clone(), Some(5));
        assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
        assert!(is_finished(&marked_pod(once, Some(0))));
        assert!(is_finished(&marked_pod(pod, Some(0))));
    }

    #[test]
    fn a_pod_on_no_node_goes_at_once_and_a_finalizer_holds_it() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {}});
        assert!(is_finished(&marked_pod(pod.clone(), None)));
        pod["metadata"]["finalizers"] = json!(["x/y"]);
        let held = marked_pod(pod, None);
        assert!(!is_finished(&held) && held["metadata"]["deletionTimestamp"].is_string());
        let ended = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}});
        assert!(is_finished(&marked_pod(ended, None)));
    }

    #[test]
    fn a_namespace_waits_for_its_contents() {
        let row = registry::find("", "v1", "namespaces").unwrap();
        let mut space = json!({"kind": "Namespace", "metadata": {"name": "a"}});
        (row.default)(&mut space);
        let next = marked(row, &space, None, Timestamp::now());
        assert_eq!(next["status"]["phase"], "Terminating");
        assert!(!is_finished(&next));
    }
}
