//! Events are kept in memory, for a time, and not too many.

use std::time::Duration;

use futures_lite::{FutureExt, future};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::object::Object;
use crate::store::{Action, Expect, Gone, Scope, Store, StoreError, Write};

/// At most this many are kept; the oldest go.
pub const MOST: usize = 1000;
/// They are looked at again when this many came on top.
const SLACK: usize = 100;
/// An Event is forgotten after this time (Kubernetes' own default).
const TIME: SignedDuration = SignedDuration::from_hours(1);
const EVERY: Duration = Duration::from_secs(60);

/// Removes old and surplus Events, for as long as it is polled.
pub async fn run(store: Store) {
    loop {
        if let Err(error) = round(&store).await {
            log::warn!("old events stay: {error}");
            smol::Timer::after(EVERY).await;
        }
    }
}

async fn round(store: &Store) -> Result<(), StoreError> {
    let (listing, mut watch) = store.list_and_watch(Scope::all("", "events"))?;
    let mut count = listing.objects.len();
    let gone: Vec<Write> = surplus(&listing.objects, Timestamp::now(), MOST)
        .into_iter()
        .map(|object| Write {
            key: object.key.clone(),
            expect: Expect::Present { revision: Some(object.revision), uid: None },
            action: Action::Delete,
        })
        .collect();
    if !gone.is_empty() {
        // One that was seen again meanwhile stays.
        store.write_all(gone).await?;
        return Ok(());
    }
    let crowd = async {
        while count < MOST + SLACK {
            match watch.next().await {
                Ok(change) if change.removed => count = count.saturating_sub(1),
                Ok(change) if change.previous.is_none() => count += 1,
                Ok(_) => (),
                // Too many at once for the watch: the minute will do.
                Err(Gone) => future::pending().await,
            }
        }
    };
    let time = async {
        smol::Timer::after(EVERY).await;
    };
    crowd.or(time).await;
    Ok(())
}

fn last_seen(value: &Value) -> Option<Timestamp> {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .find_map(|pointer| value.pointer(pointer)?.as_str()?.parse().ok())
}

/// The Events that go: those of another hour, and the oldest above the limit.
fn surplus<T: AsRef<Object>>(events: &[T], now: Timestamp, most: usize) -> Vec<&Object> {
    let mut by_time: Vec<(Timestamp, &Object)> = events
        .iter()
        .map(|event| event.as_ref())
        .map(|event| (last_seen(&event.value).unwrap_or(Timestamp::MIN), event))
        .collect();
    by_time.sort_by_key(|(seen, _)| std::cmp::Reverse(*seen));
    let oldest = now.checked_sub(TIME).unwrap_or(Timestamp::MIN);
    by_time
        .into_iter()
        .enumerate()
        .filter(|(at, (seen, _))| *at >= most || *seen < oldest)
        .map(|(_, (_, event))| event)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::object::{Key, Origin, Revision, Uid};

    fn event(name: &str, seen: &str) -> Arc<Object> {
        Arc::new(Object {
            key: Key::core("events", "default", name).unwrap(),
            uid: Uid::default(),
            revision: Revision(1),
            origin: Origin::Local,
            value: json!({"lastTimestamp": seen}),
        })
    }

    #[test]
    fn old_and_surplus_events_go() {
        let events = [
            event("new", "2026-01-01T11:59:00Z"),
            event("middle", "2026-01-01T11:50:00Z"),
            event("old", "2026-01-01T10:00:00Z"),
            event("never", "?"),
        ];
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let names = |most| -> Vec<String> {
            surplus(&events, now, most).iter().map(|event| event.key.name.clone()).collect()
        };
        assert_eq!(names(10), ["old", "never"]);
        assert_eq!(names(1), ["middle", "old", "never"]);
    }
}
