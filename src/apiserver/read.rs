//! get and list.

use serde_json::{Map, Value, json};

use super::Call;
use super::http::{Body, Form, answer};
use super::registry::Row;
use super::request::{Query, Target};
use super::status::ApiError;
use super::table::{self, Include};
use crate::object::selector::{FieldSelector, LabelSelector};
use crate::object::{Key, Object, Revision, labels};
use crate::store::{Scope, Store};

/// Which objects of a target are meant.
#[derive(Clone, Debug)]
pub struct Selection {
    /// By place.
    pub scope: Scope,
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
}

impl Selection {
    /// From the path and the query.
    pub fn of(target: &Target, query: &Query) -> Result<Selection, ApiError> {
        let row = target.row;
        let bad = |error: crate::object::selector::SelectorError| ApiError::bad_request(error.to_string());
        let known = |path: &str| {
            path == "metadata.name"
                || (path == "metadata.namespace" && row.namespaced)
                || row.fields.contains(&path)
        };
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let fields =
            FieldSelector::parse(query.get("fieldSelector").unwrap_or_default(), known).map_err(bad)?;
        let mut scope = Scope::all(row.group, row.resource);
        scope.namespace = match row.namespaced {
            true => target.namespace.clone(),
            // So that a name alone is a range of one.
            false => Some(String::new()),
        };
        scope.name = target.name.clone().or_else(|| fields.single_name().map(Into::into));
        Ok(Selection { scope, labels, fields })
    }

    /// True if it means this object, whose place is in the scope.
    pub fn matches(&self, value: &Value) -> bool {
        self.labels.matches(labels(value)) && self.fields.matches(value)
    }

    fn is_whole_scope(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

/// What rows of tables carry (`includeObject`).
pub fn include(query: &Query) -> Result<Include, ApiError> {
    match query.get("includeObject") {
        None | Some("Metadata") => Ok(Include::Metadata),
        Some("None") => Ok(Include::None),
        Some("Object") => Ok(Include::Object),
        Some(other) => {
            Err(ApiError::bad_request(format!("includeObject: {other:?} is none of None, Metadata, Object")))
        }
    }
}

/// One object in the form asked for.
pub fn shown(call: &Call, row: &Row, object: &Value) -> Result<Value, ApiError> {
    Ok(match call.form {
        Form::Table => {
            let meta = json!({"resourceVersion": object.pointer("/metadata/resourceVersion")});
            let line = table::table_row(row, object, include(&call.query)?, jiff::Timestamp::now());
            table::table(&meta, table::columns(row), vec![line])
        }
        Form::Partial => table::partial(object),
        Form::Whole | Form::Discovery => object.clone(),
    })
}

/// GET of one object.
pub fn get(store: &Store, call: &Call, target: &Target) -> Result<http::Response<Body>, ApiError> {
    let object = find(store, target)?;
    Ok(answer(200, "application/json", &shown(call, target.row, &object.to_api())?))
}

/// The object that a target names.
pub fn find(store: &Store, target: &Target) -> Result<std::sync::Arc<Object>, ApiError> {
    let name = target.name.as_deref().unwrap_or_default();
    let missing = || ApiError::not_found(target.row, name);
    let key = Key::new(target.row.group, target.row.resource, target.key_namespace(), name)
        .map_err(|_| missing())?;
    store.get(&key)?.ok_or_else(missing)
}

/// GET of many objects.
pub fn list(store: &Store, call: &Call, target: &Target) -> Result<http::Response<Body>, ApiError> {
    let row = target.row;
    let selection = Selection::of(target, &call.query)?;
    let limit = call.query.number("limit")?.filter(|limit| *limit > 0);
    let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let (mut after, first_page) = match call.query.get("continue") {
        Some(token) => {
            let (key, revision) = open_token(token)?;
            // What changed since the first page must still be known to the
            // watch that will follow it.
            if store.watch(selection.scope.clone(), revision).is_err() {
                return Err(ApiError::expired(
                    "The provided continue parameter is too old to display a consistent list result: list again without it",
                ));
            }
            (Some(key), Some(revision))
        }
        None => {
            check_revision(store, &call.query)?;
            (None, None)
        }
    };
    let mut found = Vec::new();
    let (revision, token) = loop {
        let page = limit.map(|limit| limit.saturating_sub(found.len()).max(1));
        let listing = store.list(&selection.scope, after.as_ref(), page)?;
        let revision = first_page.unwrap_or(listing.revision);
        after = listing.objects.last().map(|object| object.key.clone());
        found.extend(
            listing
                .objects
                .into_iter()
                .filter(|object| selection.is_whole_scope() || selection.matches(&object.value)),
        );
        let is_full = limit.is_some_and(|limit| found.len() >= limit);
        match &after {
            Some(last) if listing.more && is_full => break (revision, Some(make_token(last, revision))),
            Some(_) if listing.more => (),
            _ => break (revision, None),
        }
    };
    let mut meta = Map::new();
    meta.insert("resourceVersion".into(), revision.to_string().into());
    if let Some(token) = token {
        meta.insert("continue".into(), token.into());
    }
    let meta = Value::Object(meta);
    let objects = found.iter().map(|object| object.to_api());
    let value = match call.form {
        Form::Table => {
            let (include, now) = (include(&call.query)?, jiff::Timestamp::now());
            let rows = objects.map(|object| table::table_row(row, &object, include, now)).collect();
            table::table(&meta, table::columns(row), rows)
        }
        Form::Partial => {
            let items: Vec<Value> = objects.map(|object| table::partial(&object)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items})
        }
        Form::Whole | Form::Discovery => {
            let items: Vec<Value> = objects.collect();
            json!({
                "kind": format!("{}List", row.kind),
                "apiVersion": row.api_version(),
                "metadata": meta,
                "items": items,
            })
        }
    };
    Ok(answer(200, "application/json", &value))
}

/// A revision of the query, where one is given and not 0.
pub fn asked_revision(query: &Query) -> Result<Option<Revision>, ApiError> {
    Ok(query.number("resourceVersion")?.filter(|number| *number != 0).map(Revision))
}

/// Lists are of now: another exact revision is gone, a later one has not been.
fn check_revision(store: &Store, query: &Query) -> Result<(), ApiError> {
    let Some(asked) = asked_revision(query)? else { return Ok(()) };
    let now = store.revision();
    if asked > now {
        return Err(ApiError::new(
            504,
            "Timeout",
            format!("Too large resource version: {asked}, current: {now}"),
        ));
    }
    if query.get("resourceVersionMatch") == Some("Exact") && asked != now {
        return Err(ApiError::expired(format!(
            "The resourceVersion for the provided list is too old: {asked}, current: {now}"
        )));
    }
    Ok(())
}

/// Where the next page begins: opaque to the client.
fn make_token(last: &Key, revision: Revision) -> String {
    let value = json!([revision.0, last.group, last.resource, last.namespace, last.name]);
    data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

fn open_token(token: &str) -> Result<(Key, Revision), ApiError> {
    let open = || {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let (revision, group, resource, namespace, name): (u64, String, String, String, String) =
            serde_json::from_slice(&bytes).ok()?;
        Some((Key::new(&group, &resource, &namespace, &name).ok()?, Revision(revision)))
    };
    open().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_its_place() {
        let key = Key::core("pods", "a", "b").unwrap();
        assert_eq!(open_token(&make_token(&key, Revision(7))).unwrap(), (key, Revision(7)));
        for token in ["", "x", "W10", "!"] {
            assert_eq!(open_token(token).unwrap_err().code, 400, "{token}");
        }
    }
}
