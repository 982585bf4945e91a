//! The end of a namespace: first what is in it goes, then the namespace.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_lite::FutureExt;
use serde_json::{Value, json};

use super::delete::{Options, delete_object};
use super::registry::{self, ROWS, Row};
use super::status::ApiError;
use crate::object::{Object, Uid};
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
    let mut empty = BTreeSet::new();
    loop {
        match round(&store, &mut empty).await {
            Ok(()) => (),
            Err(error) => {
                log::warn!("namespaces that are to be deleted stay: {error}");
                smol::Timer::after(LATER).await;
            }
        }
    }
}

/// One look at all namespaces, then a wait for something to do. `empty` has
/// those in which nothing was found the last time.
async fn round(store: &Store, empty: &mut BTreeSet<Uid>) -> Result<(), ApiError> {
    let (listing, mut watch) = store.list_and_watch(Scope::all("", "namespaces"))?;
    let mut is_waiting = false;
    let mut empty_now = BTreeSet::new();
    for space in listing.objects.iter().filter(|space| space.is_terminating()) {
        if !clear(store, space).await? {
            is_waiting = true;
        } else if empty.contains(&space.uid) {
            is_waiting |= !remove(store, space).await?;
        } else {
            // What was let in just before the end may be on its way.
            empty_now.insert(space.uid.clone());
            is_waiting = true;
        }
    }
    *empty = empty_now;
    let change = async {
        // The watch has ended; should the store have too, that is no reason to hurry.
        if watch.next().await.is_err() {
            smol::Timer::after(LATER).await;
        }
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

/// Deletes what is in a namespace. False if something was there.
async fn clear(store: &Store, space: &Object) -> Result<bool, ApiError> {
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
    Ok(is_empty)
}

/// Removes an empty namespace, or says that only its finalizers hold it. False
/// if it has changed meanwhile.
async fn remove(store: &Store, space: &Object) -> Result<bool, ApiError> {
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
