//! Nodes that lie, with real certificates, against a real cloud: each lie is refused with a reason, and
//! nobody else feels it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing
)]

mod flood;
mod frames;
#[path = "../host/mod.rs"]
mod host;
mod join;
mod lies;

use holm::link::Body;
use holm::link::frame::{Register, Status, WireKey};
use host::liar::{Cloud, Member, Talk, cbor};
use serde_json::{Value, json};

fn run(test: impl Future<Output = ()>) {
    smol::block_on(test);
}

fn key(resource: &str, name: &str) -> WireKey {
    let namespace = if resource == "nodes" { "" } else { "default" };
    WireKey { group: "".into(), resource: resource.into(), namespace: namespace.into(), name: name.into() }
}

fn status(key: WireKey, uid: &str, status: Value) -> Body {
    Body::Status(Status { key, uid: uid.into(), status: cbor(status) })
}

fn register(node: Value) -> Body {
    Body::Register(Register { node: cbor(node) })
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
}

/// A node that registers, with a pod of its own that names a Secret.
async fn settled(cloud: &Cloud, name: &str) -> (Member, Talk, String) {
    let member = cloud.join(name).await;
    let secret = json!({"metadata": {"name": format!("{name}-secret")}, "stringData": {"text": name}});
    cloud.api("POST", "/api/v1/namespaces/default/secrets", Some(secret)).await;
    let volumes = json!([{"name": "v", "secret": {"secretName": format!("{name}-secret")}}]);
    cloud.bind_pod(&format!("{name}-pod"), name, volumes).await;
    let pod = cloud.api("GET", &format!("/api/v1/namespaces/default/pods/{name}-pod"), None).await;
    let mut talk = member.greet().await;
    talk.send(register(node(name))).await;
    talk.send(status(key("nodes", name), "", json!({"capacity": {"cpu": "1"}}))).await;
    assert!(talk.settle().await);
    host::until("the node's objects", async || {
        while talk.puts.len() < 2 {
            talk.next_frame().await.unwrap();
        }
        Some(())
    })
    .await;
    talk.acknowledge().await;
    (member, talk, pod["metadata"]["uid"].as_str().unwrap().into())
}
