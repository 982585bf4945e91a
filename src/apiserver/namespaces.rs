//! The end of a namespace: first what is in it goes, then the namespace.

use std::time::Duration;

use futures_lite::FutureExt;
use serde_json::{Value, json};

use super::delete::{Options, delete_object};
use super::registry::{self, ROWS, Row};
use super::status::ApiError;
use crate::object::Object;
use crate::store::{Action, Durability, Expect, Scope, Store, Write, WriteError};

/// While a namespace waits for its pods, it is looked at this often.
const AGAIN: Duration = Duration::from_millis(500);
/// After the store failed.
const LATER: Duration = Duration::from_secs(5);

fn row() -> Option<&'static Row> {
    registry::find("", "v1", "namespaces")
}

/// Empties and removes namespaces that are terminating, for as long as it is
/// polled.
pub async fn run(store: Store) {
    loop {
        match round(&store).await {
            Ok(()) => (),
            Err(error) => {
                log::warn!("namespaces that are to be deleted stay: {error}");
                smol::Timer::after(LATER).await;
            }
        }
    }
}

/// One look at all namespaces, then a wait for something to do.
async fn round(store: &Store) -> Result<(), ApiError> {
    let (listing, mut watch) = store.list_and_watch(Scope::all("", "namespaces"))?;
    let mut is_waiting = false;
    for space in listing.objects.iter().filter(|space| space.is_terminating()) {
        is_waiting |= !finish(store, space).await?;
    }
    let change = async {
        // Also when the watch has ended: the next round begins a new one.
        let _ = watch.next().await;
    };
    match is_waiting {
        true => {
            let time = async {
                smol::Timer::after(AGAIN).await;
            };
            change.or(time).await;
        }
        false => change.await,
    }
    Ok(())
}

/// Deletes what is in a namespace, and then the namespace. False if something
/// is still there.
async fn finish(store: &Store, space: &Object) -> Result<bool, ApiError> {
    let mut is_empty = true;
    for row in ROWS.iter().filter(|row| row.namespaced) {
        let mut scope = Scope::all(row.group, row.resource);
        scope.namespace = Some(space.key.name.clone());
        for object in store.list(&scope, None, None)?.objects {
            is_empty = false;
            if object.is_terminating() {
                continue;
            }
            match delete_object(store, row, object, &Options::default()).await {
                Err(error) if error.code != 404 && error.code != 409 => return Err(error),
                _ => (),
            }
        }
    }
    // What was deleted just now is looked for once more before the end.
    if !is_empty {
        return Ok(false);
    }
    let is_held = space
        .value
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    let mut value = space.value.clone();
    let action = match is_held {
        false => Action::Delete,
        true => {
            if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
                spec.insert("finalizers".into(), json!([]));
            }
            Action::Put { value, origin: space.origin, durability: Durability::Durable }
        }
    };
    let expect = Expect::Present { revision: Some(space.revision), uid: Some(space.uid.clone()) };
    match (store.write(Write { key: space.key.clone(), expect, action }).await, row()) {
        (Ok(_) | Err(WriteError::Missing(_)), _) => Ok(true),
        (Err(WriteError::Conflict { .. }), _) => Ok(false),
        (Err(error), Some(row)) => Err(ApiError::from_write(row, error)),
        (Err(_), None) => Ok(true),
    }
}
