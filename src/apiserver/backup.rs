//! `GET /holm/backup`: the cloud's store as of one moment, as a file.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use futures_lite::stream;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::http::{Body, respond};
use super::status::ApiError;
use crate::object::now_rfc3339;
use crate::store::{Contents, Store, StoreError};

/// Where it is.
pub const PATH: &str = "/holm/backup";
/// The fact, in a backup, that says when it was begun (RFC 3339).
pub const BEGUN: &str = "cloud/backup-at";
/// Read from the copy at a time, in bytes.
const PART: usize = 64 << 10;

/// Copies a store into a file, with the time when that was begun. Blocks for
/// as long as it takes.
///
/// # Errors
/// The store is damaged or cannot be written, or the file cannot be made.
pub fn copy_into(store: &Store, to: &Path) -> Result<Contents, StoreError> {
    let begun = now_rfc3339().into_bytes();
    smol::block_on(store.set_fact(BEGUN, begun))?;
    let contents = store.backup(to)?;
    // Whoever copies the store's own file later has no time for it.
    smol::block_on(store.set_fact(BEGUN, Vec::new()))?;
    Ok(contents)
}

/// Copies the store beside itself and gives the copy, which has no name any
/// more by then. Callers do one at a time: the copy's name is always the same.
pub async fn backup(store: &Store) -> Result<Response<Body>, ApiError> {
    let copy = store.path().with_extension("backup");
    let store = store.clone();
    let file = smol::unblock(move || -> Result<File, ApiError> {
        copy_into(&store, &copy)?;
        let unreadable = |error: io::Error| {
            ApiError::from(StoreError::Storage { path: copy.clone(), why: error.to_string() })
        };
        let file = File::open(&copy).map_err(unreadable)?;
        fs::remove_file(&copy).map_err(unreadable)?;
        Ok(file)
    })
    .await?;
    let length = file.metadata().map(|metadata| metadata.len());
    let parts = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let read = smol::unblock(move || {
            let mut part = vec![0; PART];
            let read = file.read(&mut part);
            read.map(|count| {
                part.truncate(count);
                (part, file)
            })
        });
        match read.await {
            Ok((part, file)) if !part.is_empty() => {
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(part))), Some(file)))
            }
            Ok(_) => None,
            // The answer is then shorter than it said, which the client sees.
            Err(error) => {
                log::error!("a backup cannot be read: {error}");
                None
            }
        }
    });
    let mut response = respond(200, "application/octet-stream", StreamBody::new(parts).boxed_unsync());
    if let Ok(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}
