//! create, update and patch.

use std::sync::Arc;

use http::Response;
use serde_json::{Map, Value, json};

use super::http::{Body, answer, parse};
use super::patch::{self, PatchKind};
use super::read::{find, shown};
use super::registry::{Kept, Row};
use super::request::Target;
use super::status::{ApiError, Causes};
use super::{Call, defaults, validate};
use crate::object::{Key, Object, Origin, Revision, Uid, codec, meta_str, now_rfc3339, strip_server_fields};
use crate::store::{Action, Durability, Expect, Store, Write, WriteError};

/// A patch or an update without a precondition is tried again this often when
/// someone else was faster.
const TRIES: usize = 8;

/// POST.
pub async fn create(store: &Store, call: &Call, target: &Target) -> Result<Response<Body>, ApiError> {
    let body = parse(&call.content_type, &call.body)?;
    match target.subresource.as_deref() {
        None => {
            let made = create_value(store, call, target, body).await?;
            Ok(answer(201, "application/json", &shown(call, target.row, &made)?))
        }
        Some("binding") => bind(store, target, &body).await,
        Some(_) => Err(ApiError::not_allowed()),
    }
}

async fn create_value(
    store: &Store,
    call: &Call,
    target: &Target,
    mut value: Value,
) -> Result<Value, ApiError> {
    let row = target.row;
    check_identity(target, &value)?;
    if meta_str(&value, "resourceVersion").is_some_and(|revision| !revision.is_empty()) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let prefix = meta_str(&value, "generateName").unwrap_or_default().to_owned();
    let is_generated = meta_str(&value, "name").unwrap_or_default().is_empty() && !prefix.is_empty();
    let mut tries = TRIES;
    loop {
        if is_generated {
            let prefix: String = prefix.chars().take(248).collect();
            set_meta(&mut value, "name", format!("{prefix}{}", suffix()).into());
        }
        let mut fresh = value.clone();
        prepare_new(row, target.namespace.as_deref(), &mut fresh)?;
        let key = key_of(row, &fresh)?;
        if row.namespaced {
            check_namespace(store, row, &key)?;
        }
        match put(store, call, row, &key, None, fresh, Expect::Absent).await {
            Err(error) if is_generated && error.reason == "AlreadyExists" && tries > 0 => tries -= 1,
            other => return other.map(|object| object.to_api()),
        }
    }
}

/// Five characters that spell no word.
fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .filter_map(|_| LETTERS.get(fastrand::usize(..LETTERS.len())).map(|byte| char::from(*byte)))
        .collect()
}

/// The object that a client sent as the first one of its name.
fn prepare_new(row: &Row, namespace: Option<&str>, value: &mut Value) -> Result<(), ApiError> {
    strip_server_fields(value);
    let Some(object) = value.as_object_mut() else {
        return Err(ApiError::bad_request("the object is not a JSON object"));
    };
    object.insert("kind".into(), row.kind.into());
    object.insert("apiVersion".into(), row.api_version().into());
    // A node says its first status itself; any other is made by the server.
    if row.status && row.resource != "nodes" {
        object.remove("status");
    }
    let meta = defaults::part(object, "metadata")
        .ok_or_else(|| ApiError::bad_request("metadata is not a JSON object"))?;
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta.remove(field);
    }
    match namespace {
        Some(namespace) => meta.insert("namespace".into(), namespace.into()),
        None => meta.remove("namespace"),
    };
    meta.insert("uid".into(), Uid::random().0.into());
    meta.insert("creationTimestamp".into(), now_rfc3339().into());
    match row.status {
        true => meta.insert("generation".into(), 1.into()),
        false => meta.remove("generation"),
    };
    (row.default)(value);
    check(row, value, None)
}

/// 422 unless the object keeps its kind's rules, and may follow `old`.
fn check(row: &Row, value: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    check_depth(value)?;
    let mut causes = Causes::default();
    validate::metadata(row, value, &mut causes);
    (row.validate)(value, &mut causes);
    if let Some(old) = old {
        (row.validate_update)(old, value, &mut causes);
    }
    refuse(row, value, &causes)
}

fn refuse(row: &Row, value: &Value, causes: &Causes) -> Result<(), ApiError> {
    match causes.0.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid(row, meta_str(value, "name").unwrap_or_default(), &causes.0)),
    }
}

/// 400 for what the store could not read back.
fn check_depth(value: &Value) -> Result<(), ApiError> {
    match depth(value) > codec::MAX_DEPTH - 2 {
        true => Err(ApiError::bad_request("the object nests too deeply")),
        false => Ok(()),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// 400 unless the body is of the kind, name and namespace of the path.
fn check_identity(target: &Target, value: &Value) -> Result<(), ApiError> {
    let row = target.row;
    if !value.is_object() {
        return Err(ApiError::bad_request("the object provided is unrecognized: not a JSON object"));
    }
    for (field, wanted) in [("apiVersion", row.api_version()), ("kind", row.kind.to_owned())] {
        match value.get(field) {
            None | Some(Value::Null) => (),
            Some(found) if *found == wanted => (),
            Some(found) => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({found}) does not match the expected {field} ({wanted})"
                )));
            }
        }
    }
    if let (Some(found), Some(wanted)) = (meta_str(value, "name"), target.name.as_deref())
        && found != wanted
    {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({wanted})"
        )));
    }
    let namespace = meta_str(value, "namespace").unwrap_or_default();
    if row.namespaced && target.namespace.is_none() {
        return Err(ApiError::not_allowed());
    }
    if !namespace.is_empty() && row.namespaced && target.namespace.as_deref() != Some(namespace) {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

fn set_meta(value: &mut Value, field: &str, to: Value) {
    if let Some(meta) = value.as_object_mut().and_then(|object| defaults::part(object, "metadata")) {
        meta.insert(field.into(), to);
    }
}

fn key_of(row: &Row, value: &Value) -> Result<Key, ApiError> {
    let text = |field| meta_str(value, field).unwrap_or_default();
    Key::new(row.group, row.resource, text("namespace"), text("name"))
        .map_err(|error| ApiError::bad_request(error.to_string()))
}

/// New objects need a namespace that is there to stay.
fn check_namespace(store: &Store, row: &Row, key: &Key) -> Result<(), ApiError> {
    let missing = || ApiError::new(404, "NotFound", format!("namespaces {:?} not found", key.namespace));
    let space = Key::core("namespaces", "", &key.namespace).map_err(|_| missing())?;
    match store.get(&space)? {
        None => Err(missing()),
        Some(space) if space.is_terminating() => Err(ApiError::forbidden(format!(
            "{} {:?} is forbidden: unable to create new content in namespace {} because it is being terminated",
            row.qualified(),
            key.name,
            key.namespace
        ))),
        Some(_) => Ok(()),
    }
}

/// Whether a write goes to the flash.
fn durability(row: &Row, old: Option<&Value>, new: &Value) -> Durability {
    let is_volatile = match row.kept {
        Kept::Durable => false,
        Kept::Volatile => true,
        Kept::DurableButHeartbeats => {
            old.is_some_and(|old| old != new && without_heartbeats(old) == without_heartbeats(new))
        }
    };
    if is_volatile { Durability::Volatile } else { Durability::Durable }
}

fn without_heartbeats(value: &Value) -> Value {
    let mut value = value.clone();
    let conditions = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        condition.remove("lastHeartbeatTime");
    }
    value
}

/// Writes one object, unless the client only wants to know whether it could.
async fn put(
    store: &Store,
    call: &Call,
    row: &Row,
    key: &Key,
    old: Option<&Object>,
    value: Value,
    expect: Expect,
) -> Result<Arc<Object>, ApiError> {
    let durability = durability(row, old.map(|old| &old.value), &value);
    let origin = old.map_or(Origin::Local, |old| old.origin);
    if call.is_dry_run()? {
        if expect == Expect::Absent && store.get(key)?.is_some() {
            return Err(ApiError::already_exists(row, &key.name));
        }
        let uid = Uid(meta_str(&value, "uid").unwrap_or_default().into());
        let revision = old.map_or(Revision(0), |old| old.revision);
        return Ok(Arc::new(Object { key: key.clone(), uid, revision, origin, value }));
    }
    let action = Action::Put { value, origin, durability };
    let write = Write { key: key.clone(), expect, action };
    store.write(write).await.map_err(|error| ApiError::from_write(row, error))
}

/// PUT.
pub async fn update(store: &Store, call: &Call, target: &Target) -> Result<Response<Body>, ApiError> {
    let body = parse(&call.content_type, &call.body)?;
    check_identity(target, &body)?;
    if meta_str(&body, "name").unwrap_or_default().is_empty() {
        return Err(ApiError::bad_request("metadata.name: Required value"));
    }
    let mut tries = TRIES;
    loop {
        let old = find(store, target)?;
        match replace(store, call, target, &old, body.clone(), true).await {
            // Without a precondition the last writer wins.
            Err(error) if error.reason == "Conflict" && is_unconditional(&body) && tries > 0 => tries -= 1,
            other => return Ok(answer(200, "application/json", &shown(call, target.row, &other?)?)),
        }
    }
}

fn is_unconditional(value: &Value) -> bool {
    ["resourceVersion", "uid"].iter().all(|field| meta_str(value, field).unwrap_or_default().is_empty())
}

/// PATCH.
pub async fn patch(store: &Store, call: &Call, target: &Target) -> Result<Response<Body>, ApiError> {
    let kind = PatchKind::of(&call.content_type)?;
    let patch = parse(&call.content_type, &call.body)?;
    if kind == PatchKind::Apply {
        check_identity(target, &patch)?;
    }
    let mut tries = TRIES;
    loop {
        let old = match find(store, target) {
            Ok(old) => old,
            Err(error) if kind == PatchKind::Apply && error.code == 404 && target.subresource.is_none() => {
                let mut value = patch.clone();
                set_meta(&mut value, "name", target.name.clone().unwrap_or_default().into());
                match create_value(store, call, target, value).await {
                    Err(error) if error.reason == "AlreadyExists" && tries > 0 => {
                        tries -= 1;
                        continue;
                    }
                    made => return Ok(answer(201, "application/json", &shown(call, target.row, &made?)?)),
                }
            }
            Err(error) => return Err(error),
        };
        let value = patch::apply(old.to_api(), kind, &patch, target.row)?;
        check_identity(target, &value)?;
        match replace(store, call, target, &old, value, false).await {
            Err(error) if error.reason == "Conflict" && is_unconditional(&patch) && tries > 0 => tries -= 1,
            other => return Ok(answer(200, "application/json", &shown(call, target.row, &other?)?)),
        }
    }
}

/// Puts a new value in an old one's place, after its preconditions and rules.
async fn replace(
    store: &Store,
    call: &Call,
    target: &Target,
    old: &Object,
    mut value: Value,
    is_from_client: bool,
) -> Result<Value, ApiError> {
    let row = target.row;
    let name = &old.key.name;
    let asked = meta_str(&value, "resourceVersion").unwrap_or_default();
    if !asked.is_empty() && asked != old.revision.to_string() {
        let error = WriteError::Conflict { key: old.key.clone(), found: old.revision };
        return Err(ApiError::from_write(row, error));
    }
    let uid = meta_str(&value, "uid").unwrap_or_default();
    if !uid.is_empty() && uid != old.uid.0 {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid);
        return Err(ApiError::conflict(row, name, &why));
    }
    prepare_update(row, &old.value, &mut value, target.subresource.as_deref(), is_from_client)?;
    let expect = Expect::Present { revision: Some(old.revision), uid: Some(old.uid.clone()) };
    if is_finished(&value) {
        if call.is_dry_run()? {
            return Ok(value);
        }
        let write = Write { key: old.key.clone(), expect, action: Action::Delete };
        let last = store.write(write).await.map_err(|error| ApiError::from_write(row, error))?;
        return Ok(Object { value, ..(*last).clone() }.to_api());
    }
    Ok(put(store, call, row, &old.key, Some(old), value, expect).await?.to_api())
}

/// True if deletion was asked for and nothing holds the object any longer.
pub fn is_finished(value: &Value) -> bool {
    let meta = value.get("metadata");
    let list = |list: Option<&Value>| list.and_then(Value::as_array).is_none_or(Vec::is_empty);
    let grace = meta.and_then(|meta| meta.get("deletionGracePeriodSeconds")).and_then(Value::as_u64);
    let is_namespace = value.get("kind").is_some_and(|kind| kind == "Namespace");
    meta_str(value, "deletionTimestamp").is_some()
        && grace.unwrap_or_default() == 0
        && list(meta.and_then(|meta| meta.get("finalizers")))
        // A namespace is held by its contents too.
        && (!is_namespace || list(value.pointer("/spec/finalizers")))
}

/// Makes the new value of an update: what clients may not change stays, and
/// status and the rest change through their own paths only.
fn prepare_update(
    row: &Row,
    old: &Value,
    value: &mut Value,
    subresource: Option<&str>,
    is_whole: bool,
) -> Result<(), ApiError> {
    strip_server_fields(value);
    match subresource {
        Some("status") => {
            let mut next = old.clone();
            if let Some(map) = next.as_object_mut() {
                match value.get("status") {
                    Some(status) => map.insert("status".into(), status.clone()),
                    None => map.remove("status"),
                };
            }
            // A node agent keeps its labels and annotations with its status.
            if row.resource == "nodes" {
                for field in ["labels", "annotations"] {
                    if let Some(map) = value.pointer(&format!("/metadata/{field}")).cloned() {
                        set_meta(&mut next, field, map);
                    }
                }
            }
            *value = next;
            check_depth(value)?;
            let mut causes = Causes::default();
            validate::metadata(row, value, &mut causes);
            return refuse(row, value, &causes);
        }
        Some("finalize") => {
            let mut next = old.clone();
            if let Some(spec) = next.as_object_mut().and_then(|object| defaults::part(object, "spec")) {
                spec.insert(
                    "finalizers".into(),
                    value.pointer("/spec/finalizers").cloned().unwrap_or(json!([])),
                );
            }
            *value = next;
            return Ok(());
        }
        _ => (),
    }
    let Some(object) = value.as_object_mut() else {
        return Err(ApiError::bad_request("the object is not a JSON object"));
    };
    object.insert("kind".into(), row.kind.into());
    object.insert("apiVersion".into(), row.api_version().into());
    if row.status {
        match old.get("status") {
            Some(status) => object.insert("status".into(), status.clone()),
            None => object.remove("status"),
        };
    }
    if row.resource == "namespaces"
        && let Some(spec) = old.get("spec")
    {
        object.insert("spec".into(), spec.clone());
    }
    // A client that replaces a Pod need not know what the server has set.
    if is_whole && row.resource == "pods" {
        keep_assigned(object, old);
    }
    let meta = defaults::part(object, "metadata")
        .ok_or_else(|| ApiError::bad_request("metadata is not a JSON object"))?;
    for field in [
        "name",
        "generateName",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ] {
        match old.get("metadata").and_then(|meta| meta.get(field)) {
            Some(kept) => meta.insert(field.into(), kept.clone()),
            None => meta.remove(field),
        };
    }
    (row.default)(value);
    check(row, value, Some(old))?;
    let content = |value: &Value| {
        let mut map = value.as_object().cloned().unwrap_or_default();
        map.remove("metadata");
        map.remove("status");
        map
    };
    if row.status && content(old) != content(value) {
        let generation = old.pointer("/metadata/generation").and_then(Value::as_u64).unwrap_or(1);
        set_meta(value, "generation", generation.saturating_add(1).into());
    }
    Ok(())
}

fn keep_assigned(object: &mut Map<String, Value>, old: &Value) {
    let (Some(spec), Some(old)) = (defaults::part(object, "spec"), old.get("spec")) else { return };
    for field in ["nodeName", "tolerations", "serviceAccountName", "serviceAccount"] {
        if let Some(kept) = old.get(field)
            && !spec.contains_key(field)
        {
            spec.insert(field.into(), kept.clone());
        }
    }
}

/// POST of a Pod's binding: says where it runs, once.
async fn bind(store: &Store, target: &Target, body: &Value) -> Result<Response<Body>, ApiError> {
    let node = body.pointer("/target/name").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request("target.name: Required value"));
    }
    bind_pod(store, target, node).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer(201, "application/json", &status))
}

async fn bind_pod(store: &Store, target: &Target, node: &str) -> Result<(), ApiError> {
    let mut tries = TRIES;
    loop {
        let old = find(store, target)?;
        let refuse = |why: &str| ApiError::conflict(target.row, &old.key.name, why);
        if old.is_terminating() {
            return Err(refuse("it is being deleted, cannot be assigned to a host"));
        }
        let assigned = old.value.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if !assigned.is_empty() {
            return Err(refuse(&format!("it is already assigned to node {assigned:?}")));
        }
        let mut value = old.value.clone();
        let Some(object) = value.as_object_mut() else { return Err(refuse("it is not an object")) };
        if let Some(spec) = defaults::part(object, "spec") {
            spec.insert("nodeName".into(), node.into());
        }
        if let Some(status) = defaults::part(object, "status") {
            let condition = json!({
                "type": "PodScheduled", "status": "True", "lastProbeTime": null,
                "lastTransitionTime": now_rfc3339(),
            });
            let conditions = status.entry("conditions").or_insert_with(|| json!([]));
            if let Some(list) = conditions.as_array_mut() {
                list.retain(|known| known.get("type") != condition.get("type"));
                list.push(condition);
            }
        }
        let write = Write {
            key: old.key.clone(),
            expect: Expect::Present { revision: Some(old.revision), uid: Some(old.uid.clone()) },
            action: Action::Put { value, origin: old.origin, durability: Durability::Durable },
        };
        match store.write(write).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Conflict { .. }) if tries > 0 => tries -= 1,
            Err(error) => return Err(ApiError::from_write(target.row, error)),
        }
    }
}
