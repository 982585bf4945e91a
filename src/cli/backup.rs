//! `holm cloud backup` and `holm cloud restore`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use http_body_util::BodyExt;

use super::arguments::{Backup, Restore};
use super::exit::{Failure, Mistakes};
use super::local::{self, exchange};
use super::role::data_dir;
use super::token::CLOUD_DATA_DIR;
use crate::apiserver::backup::{PATH, copy_into};
use crate::cloud::absence;
use crate::cloud::restore::{self, Restored};
use crate::net::SOCKET;
use crate::store::{self, Contents, Store, StoreError};

fn directory(given: Option<&str>, mistakes: &mut Mistakes) -> PathBuf {
    mistakes.value("--data-dir", Some(given.unwrap_or(CLOUD_DATA_DIR)), data_dir).unwrap_or_default()
}

pub(super) fn backup(arguments: &Backup, mut mistakes: Mistakes) -> Result<(), Failure> {
    let data_dir = directory(arguments.data_dir.as_deref(), &mut mistakes);
    mistakes.end()?;
    let to = Path::new(&arguments.file);
    let store = data_dir.join("holm.redb");
    if fs::canonicalize(to).is_ok_and(|to| fs::canonicalize(&store).is_ok_and(|store| store == to)) {
        return Err(Failure::mistake(format!("{} is the store itself: name another file", to.display())));
    }
    let own = data_dir.join("holm.redb");
    if to.canonicalize().is_ok_and(|to| own.canonicalize().is_ok_and(|own| own == to)) {
        return Err(Failure::mistake(format!(
            "{} is the cloud's store itself: name another file",
            to.display()
        )));
    }
    let socket = data_dir.join(SOCKET);
    let contents = match std::os::unix::net::UnixStream::connect(&socket) {
        Ok(_) => smol::block_on(receive(&socket, to))?,
        // The cloud does not run: the store's lock keeps it from starting.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            if !own.exists() {
                return Err(Failure::unavailable(&format!(
                    "no cloud has its data in {}: name its --data-dir",
                    data_dir.display()
                )));
            }
            copy_into(&Store::open(&data_dir, store::Options::default())?, to)?
        }
        Err(error) => {
            return Err(Failure::unavailable(&format!(
                "{} is not open to this user ({error}): run this as root, or as the user that runs holm",
                socket.display()
            )));
        }
    };
    super::out(&format!(
        "{} objects are in {}; it holds every Secret and the key of the certificate authority: keep it as safe as that\n",
        contents.objects,
        to.display()
    ))
}

/// Lets the running cloud copy its store, and writes the copy.
async fn receive(socket: &Path, to: &Path) -> Result<Contents, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::cannot_create(&format!("cannot write {} ({error}): choose another file", to.display()))
    };
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = to.with_file_name(name);
    let _ = fs::remove_file(&beside);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(cannot)?;
    let received = exchange(socket, "GET", PATH, "application/octet-stream", async |response| {
        if !response.status().is_success() {
            return Err(local::refusal(response).await);
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| local::broken(socket, &error))?;
            if let Some(part) = frame.data_ref() {
                file.write_all(part).map_err(cannot)?;
            }
        }
        Ok(())
    });
    let outcome = match received.await {
        Ok(()) => finish(&mut file, &beside, to).map_err(cannot),
        Err(failure) => Err(failure),
    };
    if outcome.is_err() {
        let _ = fs::remove_file(&beside);
    }
    outcome
}

/// The file gets its name once all of it is on the disk and is whole.
fn finish(file: &mut File, beside: &Path, to: &Path) -> std::io::Result<Contents> {
    file.sync_all()?;
    let contents = Store::verify_file(beside).map_err(std::io::Error::other)?;
    fs::rename(beside, to)?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(contents)
}

pub(super) fn restore(arguments: &Restore, mut mistakes: Mistakes) -> Result<(), Failure> {
    let data_dir = directory(arguments.data_dir.as_deref(), &mut mistakes);
    match (&arguments.file, arguments.confirm) {
        (None, false) => mistakes.add(
            "the backup is missing: holm cloud restore FILE puts one back, holm cloud restore --confirm lets go of what it did not know".into(),
        ),
        (Some(_), true) => mistakes.add(
            "--confirm is for a cloud that runs, a file for one that does not: give one of the two".into(),
        ),
        _ => {}
    }
    mistakes.end()?;
    let Some(file) = &arguments.file else { return confirm(&data_dir) };
    let Restored { contents, replaced } = restore::restore(&data_dir, Path::new(file))?;
    let kept = match replaced {
        Some(kept) => format!("; the store that was there is {} now", kept.display()),
        None => String::new(),
    };
    super::out(&format!(
        "{} objects are restored{kept}; start holm cloud; what the boards hold and it does not know stays until: {}\n",
        contents.objects,
        absence::CONFIRM
    ))
}

fn confirm(data_dir: &Path) -> Result<(), Failure> {
    let key = absence::restored_key();
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", key.namespace, key.name);
    let socket = data_dir.join(SOCKET);
    let said =
        smol::block_on(exchange(
            &socket,
            "DELETE",
            &path,
            "application/json",
            async |response| match response.status() {
                status if status.is_success() => {
                    Ok("what the boards hold and this cloud does not know is dropped now\n")
                }
                http::StatusCode::NOT_FOUND => {
                    Ok("nothing is held back: it was confirmed, or nothing was restored\n")
                }
                _ => Err(local::refusal(response).await),
            },
        ))?;
    super::out(said)
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::of_store(&error)
    }
}
