//! `holm get` and `holm status`: the API of the role that runs on this
//! machine, through its socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use http::Response;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use serde_json::Value;
use smol::Async;
use smol_hyper::rt::FuturesIo;

use super::arguments::{Get, Status};
use super::exit::{Failure, Mistakes};
use super::token::CLOUD_DATA_DIR;
use crate::net::SOCKET;
use crate::object::meta_str;

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// How `holm get` prints.
enum Output {
    Table { wide: bool },
    Json,
    Name,
}

fn output(text: &str) -> Result<Output, String> {
    match text {
        "wide" => Ok(Output::Table { wide: true }),
        "json" => Ok(Output::Json),
        "name" => Ok(Output::Name),
        _ => Err(format!("{text:?} is none of wide, json, name (yaml and the others: kubectl has them)")),
    }
}

/// A name of a namespace or object: at least one that can stand in a path.
fn name(text: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_');
    match !text.is_empty() && text.chars().all(fits) {
        true => Ok(()),
        false => Err(format!("{text:?} is not a name: use letters, digits, '-' and '.'")),
    }
}

pub(super) fn get(arguments: Get, mut mistakes: Mistakes) -> Result<(), Failure> {
    let output = mistakes.value("--output", arguments.output.as_deref(), output);
    mistakes.value("--namespace", arguments.namespace.as_deref(), name);
    mistakes.value("the object", arguments.name.as_deref(), name);
    mistakes.end()?;
    let output = output.unwrap_or(Output::Table { wide: false });
    let socket = socket(arguments.data_dir)?;
    smol::block_on(async {
        let resource = find(&socket, &arguments.resource).await?;
        let mut path = resource.path.clone();
        match (&arguments.namespace, resource.namespaced, &arguments.name) {
            (Some(namespace), true, _) => path.push_str(&format!("/namespaces/{namespace}")),
            (None, true, Some(_)) => path.push_str("/namespaces/default"),
            _ => {}
        }
        path.push_str(&format!("/{}", resource.name));
        if let Some(name) = &arguments.name {
            path.push_str(&format!("/{name}"));
        }
        match output {
            Output::Json => {
                let value = ask(&socket, &path, "application/json").await?;
                super::out(&format!("{value:#}\n"))
            }
            Output::Name => {
                let value = ask(&socket, &path, "application/json").await?;
                let items =
                    value.get("items").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![value]);
                let names: Vec<&str> = items.iter().filter_map(|item| meta_str(item, "name")).collect();
                super::out(
                    &names.iter().map(|name| format!("{}/{name}\n", resource.name)).collect::<String>(),
                )
            }
            Output::Table { wide } => {
                let table = ask(&socket, &path, "application/json;as=Table;v=v1;g=meta.k8s.io").await?;
                let with_namespace = resource.namespaced && arguments.namespace.is_none();
                super::out(&draw(&table, wide, with_namespace))
            }
        }
    })
}

pub(super) fn status(arguments: Status, mistakes: Mistakes) -> Result<(), Failure> {
    mistakes.end()?;
    let socket = socket(arguments.data_dir)?;
    smol::block_on(async {
        let nodes = ask(&socket, "/api/v1/nodes", "application/json").await?;
        let pods = ask(&socket, "/api/v1/pods", "application/json").await?;
        super::out(&summary(&nodes, &pods))
    })
}

/// The socket of the role that runs here.
fn socket(data_dir: Option<String>) -> Result<PathBuf, Failure> {
    let tried: Vec<PathBuf> = match data_dir {
        Some(directory) => vec![PathBuf::from(directory)],
        None => vec![crate::edge::DATA_DIR.into(), CLOUD_DATA_DIR.into()],
    };
    for directory in &tried {
        match std::fs::metadata(directory.join(SOCKET)) {
            Ok(_) => return Ok(directory.join(SOCKET)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(Failure::unavailable(&format!(
                    "{} is not open to this user: run this as root, or as the user that runs holm",
                    directory.display()
                )));
            }
            Err(_) => {}
        }
    }
    let places: Vec<String> = tried.iter().map(|place| place.display().to_string()).collect();
    Err(Failure::unavailable(&format!(
        "no holm runs with its data in {}: start it, or name its --data-dir",
        places.join(" or ")
    )))
}

/// Why nothing came over a socket.
pub(super) fn broken(socket: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::unavailable(&format!(
        "holm does not answer at {} ({error}): start it, or name the --data-dir of one that runs",
        socket.display()
    ))
}

/// The failure that an answer describes.
pub(super) async fn refusal(response: Response<Incoming>) -> Failure {
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let value: Value =
        body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok()).unwrap_or_default();
    Failure::failed(&value.get("message").and_then(Value::as_str).unwrap_or("refused"))
}

/// One request over a socket; `read` takes the answer.
pub(super) async fn exchange<T>(
    socket: &Path,
    method: &str,
    path: &str,
    accept: &str,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let stream = Async::<UnixStream>::connect(socket).await.map_err(|error| broken(socket, &error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(FuturesIo::new(stream))
        .await
        .map_err(|error| broken(socket, &error))?;
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "holm")
        .header("accept", accept)
        .body(Empty::<Bytes>::new())
        .map_err(|_| Failure::mistake(format!("{path:?} cannot be asked for: check the names")))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| broken(socket, &error))?;
        read(response).await
    };
    let drive = async {
        // The exchange says what went wrong.
        let _ = connection.await;
        futures_lite::future::pending().await
    };
    futures_lite::future::or(exchange, drive).await
}

/// One GET; an answer that is not a success is the failure it describes.
async fn ask(socket: &Path, path: &str, accept: &str) -> Result<Value, Failure> {
    exchange(socket, "GET", path, accept, async |response| {
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|error| broken(socket, &error))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| broken(socket, &error))
    })
    .await
}

struct Resource {
    path: String,
    name: String,
    namespaced: bool,
}

/// The resource that a person means by a word.
async fn find(socket: &Path, word: &str) -> Result<Resource, Failure> {
    let groups = ask(socket, "/apis", "application/json").await?;
    let preferred = groups.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
    let versions = preferred.iter().filter_map(|group| {
        Some(format!("/apis/{}", group.get("preferredVersion")?.get("groupVersion")?.as_str()?))
    });
    for path in std::iter::once("/api/v1".to_owned()).chain(versions) {
        let list = ask(socket, &path, "application/json").await?;
        for resource in list.get("resources").and_then(Value::as_array).into_iter().flatten() {
            let text = |field| resource.get(field).and_then(Value::as_str).unwrap_or_default();
            let short = resource.get("shortNames").and_then(Value::as_array);
            let is_meant = text("name") == word
                || text("singularName") == word
                || short.into_iter().flatten().any(|name| name == word);
            if is_meant && !word.is_empty() {
                let namespaced = resource.get("namespaced").and_then(Value::as_bool).unwrap_or_default();
                return Ok(Resource { path, name: text("name").into(), namespaced });
            }
        }
    }
    Err(Failure::mistake(format!(
        "there is no resource {word:?}: try pods, nodes, configmaps, secrets, events"
    )))
}

/// A `meta.k8s.io/v1` Table as text.
fn draw(table: &Value, wide: bool, with_namespace: bool) -> String {
    let list =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let columns: Vec<(usize, String)> = list(table, "columnDefinitions")
        .iter()
        .enumerate()
        .filter(|(_, column)| wide || column.get("priority").and_then(Value::as_i64).unwrap_or_default() == 0)
        .map(|(index, column)| {
            (index, column.get("name").and_then(Value::as_str).unwrap_or_default().to_uppercase())
        })
        .collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let heading = columns.iter().map(|(_, name)| name.clone());
    rows.push(with_namespace.then(|| "NAMESPACE".to_owned()).into_iter().chain(heading).collect());
    for row in list(table, "rows") {
        let cells = list(&row, "cells");
        let text = |index: &usize| match cells.get(*index) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "<none>".into(),
            Some(other) => other.to_string(),
        };
        let namespace =
            row.get("object").and_then(|object| meta_str(object, "namespace")).unwrap_or_default();
        let first = with_namespace.then(|| namespace.to_owned());
        rows.push(first.into_iter().chain(columns.iter().map(|(index, _)| text(index))).collect());
    }
    if rows.len() == 1 {
        return "No resources found\n".into();
    }
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len() + usize::from(with_namespace)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A few lines about the nodes and pods of this store.
fn summary(nodes: &Value, pods: &Value) -> String {
    let items = |list: &Value| list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut text = String::new();
    for node in items(nodes) {
        text.push_str(&format!("node    {}\n", meta_str(&node, "name").unwrap_or_default()));
        let conditions =
            node.get("status").and_then(|status| status.get("conditions")).and_then(Value::as_array).cloned();
        for condition in conditions.unwrap_or_default() {
            let field =
                |name: &str| condition.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let label = match field("type").as_str() {
                "Ready" => "ready",
                "CloudConnected" => "cloud",
                // The others matter when they hold.
                _ if field("status") == "False" => continue,
                _ => "beware",
            };
            let (status, since, message) = (field("status"), field("lastTransitionTime"), field("message"));
            text.push_str(&format!("{label:<7} {status} since {since}: {message}\n"));
        }
    }
    let mut phases: std::collections::BTreeMap<String, usize> = Default::default();
    for pod in items(pods) {
        let phase = pod.get("status").and_then(|status| status.get("phase")).and_then(Value::as_str);
        *phases.entry(phase.unwrap_or("Pending").to_owned()).or_default() += 1;
    }
    let counts: Vec<String> = phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    text.push_str(&format!(
        "pods    {}\n",
        if counts.is_empty() { "none".into() } else { counts.join(", ") }
    ));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_drawn_as_kubectl_would() {
        let table = json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Age"}, {"name": "IP", "priority": 1}],
            "rows": [
                {"cells": ["hello", "5m", "192.0.2.1"], "object": {"metadata": {"namespace": "default"}}},
                {"cells": ["a", 7, null], "object": {"metadata": {"namespace": "x"}}},
            ],
        });
        assert_eq!(
            draw(&table, false, true),
            "NAMESPACE   NAME    AGE\ndefault     hello   5m\nx           a       7\n"
        );
        assert_eq!(
            draw(&table, true, false),
            "NAME    AGE   IP\nhello   5m    192.0.2.1\na       7     <none>\n"
        );
        assert_eq!(
            draw(&json!({"columnDefinitions": [{"name": "Name"}], "rows": []}), false, false),
            "No resources found\n"
        );
    }

    #[test]
    fn a_summary_leaves_out_what_is_well() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": "t", "message": "m"});
        let nodes = json!({"items": [{"metadata": {"name": "barn-1"}, "status": {"conditions": [
            condition("DiskPressure", "False"), condition("MemoryPressure", "True"), condition("Ready", "True"),
            condition("CloudConnected", "False"),
        ]}}]});
        let pods = json!({"items": [{"status": {"phase": "Running"}}, {}, {"status": {"phase": "Running"}}]});
        assert_eq!(
            summary(&nodes, &pods),
            "node    barn-1\nbeware  True since t: m\nready   True since t: m\ncloud   False since t: m\npods    1 Pending, 2 Running\n"
        );
    }
}
