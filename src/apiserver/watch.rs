//! watch: changes as they are committed, as one line of JSON each.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::{FutureExt, future, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::Call;
use super::http::{Body, Form, respond};
use super::read::{Selection, asked_revision, include};
use super::registry::Row;
use super::request::Target;
use super::status::ApiError;
use super::table::{self, Include};
use crate::object::{Object, Revision};
use crate::store::{Change, Gone, Store, Watch};

/// A client that asked for bookmarks gets one this often.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` ends after this and up to as much again,
/// so that not all clients come back at once.
const LONGEST: u64 = 1800;

/// One watch that a client reads.
struct Watching {
    store: Store,
    row: &'static Row,
    selection: Selection,
    form: Form,
    include: Include,
    watch: Option<Watch>,
    lines: VecDeque<Bytes>,
    /// Everything up to here was told.
    revision: Revision,
    ends: Instant,
    next_bookmark: Option<Instant>,
    has_columns: bool,
}

/// GET with `watch=true`.
pub fn watch(store: &Store, call: &Call, target: &Target) -> Result<http::Response<Body>, ApiError> {
    let query = &call.query;
    let selection = Selection::of(target, query)?;
    let seconds = query.number("timeoutSeconds")?.unwrap_or_else(|| LONGEST + fastrand::u64(..LONGEST));
    let has_bookmarks = query.flag("allowWatchBookmarks");
    let wants_state = match query.get("sendInitialEvents") {
        Some(_) => query.flag("sendInitialEvents"),
        None => asked_revision(query)?.is_none(),
    };
    let now = Instant::now();
    let mut watching = Watching {
        store: store.clone(),
        row: target.row,
        form: call.form,
        include: include(query)?,
        watch: None,
        lines: VecDeque::new(),
        revision: Revision(0),
        // A time so far that it cannot be counted is as good as a week.
        ends: now.checked_add(Duration::from_secs(seconds.min(604_800))).unwrap_or(now),
        next_bookmark: has_bookmarks.then(|| now + BOOKMARKS),
        has_columns: false,
        selection,
    };
    if wants_state {
        let (listing, watch) = store.list_and_watch(watching.selection.scope.clone())?;
        watching.watch = Some(watch);
        watching.revision = listing.revision;
        for object in &listing.objects {
            if watching.selection.matches(&object.value) {
                watching.event("ADDED", &object.to_api());
            }
        }
        if has_bookmarks && query.flag("sendInitialEvents") {
            watching.bookmark(true);
        }
    } else {
        let from = asked_revision(query)?.unwrap_or_else(|| store.revision());
        let too_old =
            || ApiError::expired(format!("too old resource version: {from} ({})", store.revision()));
        // A revision that has not been belongs to another store.
        if from > store.revision() {
            return Err(too_old());
        }
        watching.revision = from;
        watching.watch = Some(store.watch(watching.selection.scope.clone(), from).map_err(|Gone| too_old())?);
    }
    let lines = stream::unfold(watching, |mut watching| async move {
        let line = watching.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watching))
    });
    Ok(respond(200, "application/json", StreamBody::new(lines).boxed_unsync()))
}

enum Next {
    Change(Arc<Change>),
    Gone,
    Time,
}

impl Watching {
    /// The next line; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            let until = self.next_bookmark.map_or(self.ends, |bookmark| bookmark.min(self.ends));
            let change = async {
                match self.watch.as_mut() {
                    Some(watch) => watch.next().await.map_or(Next::Gone, Next::Change),
                    None => Next::Time,
                }
            };
            let time = async {
                smol::Timer::at(until).await;
                Next::Time
            };
            match change.or(time).await {
                Next::Change(change) => self.change(&change),
                Next::Gone => {
                    self.watch = None;
                    self.ends = Instant::now();
                    let error =
                        ApiError::expired("the watch was too slow or the store has closed: list again");
                    self.line(&json!({"type": "ERROR", "object": error.to_value()}));
                }
                Next::Time if Instant::now() >= self.ends => return None,
                Next::Time => {
                    self.next_bookmark = Some(Instant::now() + BOOKMARKS);
                    self.catch_up().await;
                    self.bookmark(false);
                }
            }
        }
    }

    /// Tells all that is committed by now, so that a bookmark may say so even
    /// where nothing of this selection changed.
    async fn catch_up(&mut self) {
        let now = self.store.revision();
        while let Some(watch) = self.watch.as_mut()
            && let Some(Ok(change)) = future::poll_once(watch.next()).await
        {
            self.change(&change);
        }
        self.revision = self.revision.max(now);
    }

    fn change(&mut self, change: &Change) {
        self.revision = self.revision.max(change.revision);
        let matches = |object: &Object| self.selection.matches(&object.value);
        let was = change.previous.as_ref().filter(|previous| matches(previous));
        let is = !change.removed && matches(&change.object);
        match (was, is) {
            (None, true) => self.event("ADDED", &change.object.to_api()),
            (Some(_), true) => self.event("MODIFIED", &change.object.to_api()),
            // As it was when it was last selected, at the revision of leaving.
            (Some(previous), false) => {
                let last = Object { revision: change.revision, ..(**previous).clone() };
                self.event("DELETED", &last.to_api());
            }
            (None, false) => (),
        }
    }

    fn event(&mut self, kind: &str, object: &Value) {
        let object = match self.form {
            Form::Table => {
                let columns = match std::mem::replace(&mut self.has_columns, true) {
                    true => Value::Null,
                    false => table::columns(self.row),
                };
                let meta = json!({"resourceVersion": object.pointer("/metadata/resourceVersion")});
                let row = table::table_row(self.row, object, self.include, jiff::Timestamp::now());
                table::table(&meta, columns, vec![row])
            }
            Form::Partial => table::partial(object),
            Form::Whole | Form::Discovery => object.clone(),
        };
        self.line(&json!({"type": kind, "object": object}));
    }

    fn bookmark(&mut self, is_first: bool) {
        let mut meta = json!({"resourceVersion": self.revision.to_string(), "creationTimestamp": null});
        if is_first && let Some(meta) = meta.as_object_mut() {
            meta.insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let object = match self.form {
            Form::Table => table::table(&meta, Value::Null, Vec::new()),
            Form::Partial => table::partial(&json!({"metadata": meta})),
            Form::Whole | Form::Discovery => {
                json!({"kind": self.row.kind, "apiVersion": self.row.api_version(), "metadata": meta})
            }
        };
        self.line(&json!({"type": "BOOKMARK", "object": object}));
    }

    fn line(&mut self, value: &Value) {
        let mut line = value.to_string();
        line.push('\n');
        self.lines.push_back(Bytes::from(line));
    }
}
