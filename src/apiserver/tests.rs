//! The API as bytes on a connection: what kubectl does not show.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use smol::net::unix::UnixStream;
use smol::{Executor, block_on};

use super::*;
use crate::object::{Key, Uid};
use crate::store;

struct Bench {
    api: ApiServer,
    executor: Arc<Executor<'static>>,
    directory: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Runs a test against an API over a new store.
fn with_api<F: Future<Output = ()>>(test: impl FnOnce(Arc<Bench>) -> F) {
    let directory = std::env::temp_dir().join(format!("holm-api-{}", Uid::random()));
    let options = store::Options { history: 8, ..Default::default() };
    let store = Store::open(&directory, options).unwrap();
    let api = ApiServer::new(store, Options { role: Role::Cloud, version: "0".into() });
    let executor = Arc::new(Executor::new());
    let bench = Arc::new(Bench { api: api.clone(), executor: executor.clone(), directory });
    block_on(executor.run(async {
        bench.made("/api/v1/namespaces", json!({"metadata": {"name": "default"}})).await;
        test(bench).await;
    }));
}

impl Bench {
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Response<Incoming> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let api = self.api.clone();
        self.executor
            .spawn(async move {
                let _ = api.serve_connection(theirs, User::admin()).await;
            })
            .detach();
        let (mut sender, connection) = http1::handshake(FuturesIo::new(ours)).await.unwrap();
        self.executor
            .spawn(async move {
                let _ = connection.await;
            })
            .detach();
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, content_type: &str, body: &Value) -> (u16, Value) {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let response = self.send(method, path, &[("content-type", content_type)], bytes).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.call(method, path, "application/json", &body).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.json("GET", path, Value::Null).await
    }

    async fn made(&self, path: &str, body: Value) -> Value {
        let (code, value) = self.json("POST", path, body).await;
        assert_eq!(code, 201, "{value}");
        value
    }

    async fn watch(&self, path: &str) -> Events {
        let response = self.send("GET", path, &[], Vec::new()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), text: String::new() }
    }
}

/// The events of a watch.
struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    /// Kind and name, or none at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let event: Value = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].clone()));
            }
            let frame = self.body.frame().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let (found, object) = self.next().await.unwrap();
        assert_eq!((found.as_str(), object["metadata"]["name"].as_str()), (kind, Some(name)), "{object}");
        object
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MERGE: &str = "application/merge-patch+json";

fn map(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}})
}

#[test]
fn a_watch_tells_of_entering_changing_and_leaving() {
    with_api(async |bench| {
        bench.made(MAPS, map("there", json!({"a": "1"}))).await;
        let (_, list) = bench.get(MAPS).await;
        let from = list["metadata"]["resourceVersion"].as_str().unwrap();
        let mut all = bench.watch(&format!("{MAPS}?watch=true&labelSelector=a%3D1")).await;
        all.expect("ADDED", "there").await;
        let mut later =
            bench.watch(&format!("{MAPS}?watch=1&resourceVersion={from}&labelSelector=a=1")).await;
        bench.made(MAPS, map("other", json!({"a": "2"}))).await;
        let path = format!("{MAPS}/other");
        bench.call("PATCH", &path, MERGE, &json!({"metadata": {"labels": {"a": "1"}}})).await;
        bench.call("PATCH", &path, MERGE, &json!({"data": {"k": "v"}})).await;
        bench.call("PATCH", &path, MERGE, &json!({"metadata": {"labels": {"a": "3"}}})).await;
        bench.json("DELETE", &format!("{MAPS}/there"), Value::Null).await;
        for events in [&mut all, &mut later] {
            events.expect("ADDED", "other").await;
            let changed = events.expect("MODIFIED", "other").await;
            assert_eq!(changed["data"]["k"], "v");
            let left = events.expect("DELETED", "other").await;
            assert_eq!(left["metadata"]["labels"]["a"], "1", "as it was when it was last selected");
            let number = |value: &Value| {
                value["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
            };
            assert!(number(&left) > number(&changed));
            events.expect("DELETED", "there").await;
        }
    });
}

/// What is done to one of three objects.
#[derive(Clone, Debug)]
enum Step {
    Label(u8),
    Annotate(u8),
    Delete,
}

#[test]
fn who_follows_a_watch_has_what_a_list_says() {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let step = prop_oneof![
        3 => (0..3u8).prop_map(Step::Label),
        1 => any::<u8>().prop_map(Step::Annotate),
        1 => Just(Step::Delete),
    ];
    let steps = prop::collection::vec((0..3usize, step), 1..6);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(48) });
    with_api(async |bench| {
        for _ in 0..48 {
            let steps = steps.new_tree(&mut runner).unwrap().current();
            let (_, list) = bench.get(LEASES).await;
            let from = list["metadata"]["resourceVersion"].as_str().unwrap();
            let selector = "labelSelector=step%20in%20(1,2)";
            let mut events =
                bench.watch(&format!("{LEASES}?watch=1&resourceVersion={from}&{selector}")).await;
            for (at, step) in &steps {
                let path = format!("{LEASES}/object-{at}");
                let patch = match step {
                    Step::Label(label) => json!({"metadata": {"labels": {"step": label.to_string()}}}),
                    Step::Annotate(number) => json!({"metadata": {"annotations": {"n": number.to_string()}}}),
                    Step::Delete => {
                        bench.json("DELETE", &path, Value::Null).await;
                        continue;
                    }
                };
                bench.call("PATCH", &path, "application/apply-patch+yaml", &patch).await;
            }
            let end = json!({"metadata": {"name": "end", "labels": {"step": "1"}}});
            bench.made(LEASES, end).await;
            let mut known = std::collections::BTreeMap::new();
            while !known.contains_key("end") {
                let (kind, object) = events.next().await.unwrap();
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                let was_known = match kind.as_str() {
                    "DELETED" => known.remove(&name).is_some(),
                    _ => known.insert(name, object).is_some(),
                };
                assert_eq!(was_known, kind != "ADDED", "{kind} after {steps:?}");
            }
            let (_, list) = bench.get(&format!("{LEASES}?{selector}")).await;
            let known: Vec<Value> = known.into_values().collect();
            assert_eq!(list["items"], Value::from(known), "after {steps:?}");
            bench.json("DELETE", LEASES, Value::Null).await;
        }
    });
}

#[test]
fn a_watch_begins_with_the_state_and_says_when_it_is_complete() {
    with_api(async |bench| {
        bench.made(MAPS, map("a", json!({}))).await;
        let path = format!(
            "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
        );
        let mut events = bench.watch(&path).await;
        events.expect("ADDED", "a").await;
        let (kind, bookmark) = events.next().await.unwrap();
        assert_eq!(kind, "BOOKMARK");
        assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(bookmark["metadata"]["resourceVersion"], bench.api.inner.store.revision().to_string());
        assert!(events.next().await.is_none(), "it ends after its time");
    });
}

#[test]
fn what_is_no_longer_known_is_expired() {
    with_api(async |bench| {
        let (_, list) = bench.get(&format!("{MAPS}?limit=1")).await;
        let old = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        for number in 0..20 {
            bench.made(MAPS, map(&format!("m{number}"), json!({}))).await;
        }
        let (code, status) = bench.get(&format!("{MAPS}?watch=1&resourceVersion={old}")).await;
        assert_eq!((code, status["reason"].as_str()), (410, Some("Expired")));
        let (code, _) = bench.get(&format!("{MAPS}?watch=1&resourceVersion=999999")).await;
        assert_eq!(code, 410, "a revision of another store");
        let (code, _) = bench.get(&format!("{MAPS}?resourceVersion=999999")).await;
        assert_eq!(code, 504);
        let (code, _) = bench.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await;
        assert_eq!(code, 410);
        let (_, page) = bench.get(&format!("{MAPS}?limit=3")).await;
        assert_eq!(page["items"].as_array().unwrap().len(), 3);
        let token = page["metadata"]["continue"].as_str().unwrap();
        let (_, next) = bench.get(&format!("{MAPS}?limit=50&continue={token}")).await;
        assert_eq!(next["items"].as_array().unwrap().len(), 17);
        assert_eq!(next["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
        assert!(next["metadata"].get("continue").is_none());
        for number in 0..20 {
            bench.json("DELETE", &format!("{MAPS}/m{number}"), Value::Null).await;
        }
        assert_eq!(bench.get(&format!("{MAPS}?limit=3&continue={token}")).await.0, 410);
    });
}

#[test]
fn writes_keep_to_what_the_writer_has_seen() {
    with_api(async |bench| {
        let made = bench.made(MAPS, map("a", json!({}))).await;
        let path = format!("{MAPS}/a");
        let mut first = made.clone();
        first["data"] = json!({"by": "first"});
        assert_eq!(bench.json("PUT", &path, first).await.0, 200);
        let mut second = made.clone();
        second["data"] = json!({"by": "second"});
        let (code, status) = bench.json("PUT", &path, second).await;
        assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
        assert!(status["message"].as_str().unwrap().contains("the object has been modified"));
        assert_eq!(bench.json("PUT", &path, map("a", json!({}))).await.0, 200, "no precondition");
        let mut other = map("a", json!({}));
        other["metadata"]["uid"] = json!("other");
        assert_eq!(bench.json("PUT", &path, other).await.0, 409);
        let stale = json!({"preconditions": {"resourceVersion": made["metadata"]["resourceVersion"]}});
        assert_eq!(bench.json("DELETE", &path, stale).await.0, 409);
        let patch = json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "y"}});
        assert_eq!(bench.call("PATCH", &path, MERGE, &patch).await.0, 409);
        assert_eq!(bench.json("PUT", &format!("{MAPS}/none"), map("none", json!({}))).await.0, 404);
        let (_, same) = bench.get(&path).await;
        let (_, patched) = bench.call("PATCH", &path, MERGE, &json!({})).await;
        assert_eq!(same, patched, "a patch of nothing makes no revision");
    });
}

#[test]
fn status_and_the_rest_change_through_their_own_paths() {
    with_api(async |bench| {
        let mut value = pod("p");
        value["status"] = json!({"phase": "Running"});
        let made = bench.made(PODS, value).await;
        assert_eq!(made["status"]["phase"], "Pending");
        let path = format!("{PODS}/p");
        let both = json!({"metadata": {"labels": {"a": "1"}}, "status": {"phase": "Running"}});
        let (_, main) = bench.call("PATCH", &path, MERGE, &both).await;
        assert_eq!(
            (&main["status"]["phase"], &main["metadata"]["labels"]["a"]),
            (&json!("Pending"), &json!("1"))
        );
        let both = json!({"metadata": {"labels": {"a": "2"}}, "status": {"phase": "Running"}});
        let (_, status) = bench.call("PATCH", &format!("{path}/status"), MERGE, &both).await;
        assert_eq!(
            (&status["status"]["phase"], &status["metadata"]["labels"]["a"]),
            (&json!("Running"), &json!("1"))
        );
        for field in ["uid", "creationTimestamp"] {
            let (_, after) = bench.call("PATCH", &path, MERGE, &json!({"metadata": {field: null}})).await;
            assert_eq!(after["metadata"][field], made["metadata"][field], "{field}");
        }
    });
}

#[test]
fn a_pod_is_bound_once_and_ends_when_its_node_says_so() {
    with_api(async |bench| {
        bench.made(PODS, pod("p")).await;
        let binding =
            json!({"kind": "Binding", "apiVersion": "v1", "target": {"kind": "Node", "name": "barn"}});
        let path = format!("{PODS}/p");
        assert_eq!(bench.json("POST", &format!("{path}/binding"), binding.clone()).await.0, 201);
        assert_eq!(bench.json("POST", &format!("{path}/binding"), binding).await.0, 409);
        let (_, bound) = bench.get(&path).await;
        assert_eq!(bound["spec"]["nodeName"], "barn");
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
        let (code, ending) = bench.json("DELETE", &path, Value::Null).await;
        assert_eq!((code, &ending["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
        let (code, _) = bench
            .json("DELETE", &path, json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}}))
            .await;
        assert_eq!(code, 409);
        let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": bound["metadata"]["uid"]}});
        assert_eq!(bench.json("DELETE", &path, last).await.0, 200);
        assert_eq!(bench.get(&path).await.0, 404);
    });
}

#[test]
fn a_finalizer_holds_an_object() {
    with_api(async |bench| {
        let mut value = map("a", json!({}));
        value["metadata"]["finalizers"] = json!(["holm.dev/test"]);
        bench.made(MAPS, value).await;
        let path = format!("{MAPS}/a");
        let (_, held) = bench.json("DELETE", &path, Value::Null).await;
        assert!(held["metadata"]["deletionTimestamp"].is_string());
        assert_eq!(bench.get(&path).await.0, 200);
        let (code, _) = bench.call("PATCH", &path, MERGE, &json!({"metadata": {"finalizers": null}})).await;
        assert_eq!(code, 200);
        assert_eq!(bench.get(&path).await.0, 404);
    });
}

#[test]
fn names_are_generated_and_memory_is_not_flash() {
    with_api(async |bench| {
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let made = bench.made(MAPS, json!({"metadata": {"generateName": "gen-"}})).await;
            let name = made["metadata"]["name"].as_str().unwrap().to_owned();
            assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
            names.insert(name);
        }
        assert_eq!(names.len(), 3);
        let commits = bench.api.inner.store.commits();
        bench.made("/api/v1/namespaces/default/events", json!({"metadata": {"name": "e"}})).await;
        bench
            .made(
                "/apis/coordination.k8s.io/v1/namespaces/default/leases",
                json!({"metadata": {"name": "l"}}),
            )
            .await;
        assert_eq!(bench.api.inner.store.commits(), commits);
        assert!(bench.api.inner.store.get(&Key::core("events", "default", "e").unwrap()).unwrap().is_some());
    });
}

#[test]
fn what_cannot_be_served_has_a_code_and_a_status() {
    with_api(async |bench| {
        let put = |path: &'static str, body: Value| ("PUT", path, body, "application/json");
        let post = |path: &'static str, body: Value| ("POST", path, body, "application/json");
        for (code, (method, path, body, content_type)) in [
            (404, post("/api/v1/namespaces/none/configmaps", map("a", json!({})))),
            (404, ("GET", "/api/v1/nothing", Value::Null, "")),
            (404, ("GET", "/api/v1/namespaces/default/pods/p/log", Value::Null, "")),
            (400, post(MAPS, json!({"kind": "Secret", "metadata": {"name": "a"}}))),
            (400, post(MAPS, json!([1]))),
            (400, post(MAPS, json!({"metadata": {"name": "a", "namespace": "other"}}))),
            (400, post(MAPS, json!({"metadata": []}))),
            (422, post(MAPS, json!({"metadata": {"name": "a/b"}}))),
            (422, post(MAPS, json!({"metadata": {"name": "A"}}))),
            (422, post(MAPS, json!({}))),
            (422, post(PODS, json!({"metadata": {"name": "a"}, "spec": "x"}))),
            (405, post("/api/v1/configmaps", map("a", json!({})))),
            (405, put(MAPS, map("a", json!({})))),
            (400, put("/api/v1/namespaces/default/configmaps/b", map("a", json!({})))),
            (415, ("POST", MAPS, map("a", json!({})), "text/plain")),
            (415, ("PATCH", "/api/v1/namespaces/default/configmaps/b", json!({}), "application/json")),
            (400, ("GET", "/api/v1/pods?labelSelector=(", Value::Null, "")),
            (400, ("GET", "/api/v1/pods?fieldSelector=spec.x%3D1", Value::Null, "")),
            (400, ("GET", "/api/v1/pods?limit=x", Value::Null, "")),
            (400, ("GET", "/api/v1/pods?continue=x", Value::Null, "")),
        ] {
            let (found, status) = bench.call(method, path, content_type, &body).await;
            assert_eq!(found, code, "{method} {path} {body}: {status}");
            assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{status}");
        }
        let response = bench.send("GET", "/api/v1/pods", &[("accept", "text/html")], Vec::new()).await;
        assert_eq!(response.status(), 406);
        let response =
            bench.send("POST", MAPS, &[("content-type", "application/json")], vec![b' '; 4 << 20]).await;
        assert_eq!(response.status(), 413);
        let deep = (0..100).fold(json!(1), |inner, _| json!({"x": inner}));
        let mut value = map("deep", json!({}));
        value["data"] = deep;
        assert_eq!(bench.json("POST", MAPS, value).await.0, 400);
        let text = "x".repeat(1 << 20);
        let mut value = map("large", json!({}));
        value["data"] = json!({"a": text, "b": "y"});
        assert_eq!(bench.json("POST", MAPS, value).await.0, 422);
        let mut value = map("large", json!({}));
        value["metadata"]["annotations"] = json!({"a": "x".repeat((2 << 20) + 1)});
        assert_eq!(bench.json("POST", MAPS, value).await.0, 413);
    });
}

#[test]
fn bytes_that_are_no_http_end_the_connection() {
    with_api(async |bench| {
        for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let mut serving = pin!(bench.api.serve_connection(theirs, User::admin()));
            futures_lite::AsyncWriteExt::write_all(&mut ours, bytes).await.unwrap();
            drop(ours);
            assert!(serving.as_mut().await.is_err());
        }
    });
}

/// A disk in memory that can be broken and mended.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<(redb::backends::InMemoryBackend, AtomicBool)>);

impl Disk {
    fn whole(&self) -> std::io::Result<&redb::backends::InMemoryBackend> {
        match self.0.1.load(Ordering::SeqCst) {
            false => Ok(&self.0.0),
            true => Err(std::io::Error::from_raw_os_error(5)),
        }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.whole()?.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.whole()?.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.whole()?.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.whole()?.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.whole()?.write(offset, data)
    }
}

#[test]
fn the_api_is_not_ready_while_its_store_cannot_be_written() {
    let disk = Disk::default();
    let pace =
        store::Pace { retry: (Duration::from_millis(1), Duration::from_millis(4)), ..Default::default() };
    let options = store::Options { pace, ..Default::default() };
    let store = Store::open_backend(std::path::Path::new("/its/file"), disk.clone(), options).unwrap();
    let api = ApiServer::new(store, Options { role: Role::Cloud, version: "0".into() });
    let executor = Arc::new(Executor::new());
    let bench = Bench { api, executor: executor.clone(), directory: PathBuf::new() };
    block_on(executor.run(async {
        let ask = async |path: &str| {
            let response = bench.send("GET", path, &[], Vec::new()).await;
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (code, String::from_utf8(bytes.to_vec()).unwrap())
        };
        assert_eq!(ask("/readyz").await, (200, "ok".into()));
        disk.0.1.store(true, Ordering::SeqCst);
        let namespace = json!({"metadata": {"name": "default"}});
        let (code, status) = bench.json("POST", "/api/v1/namespaces", namespace.clone()).await;
        assert_eq!(code, 500);
        assert!(status["message"].as_str().unwrap().contains("/its/file"), "{status}");
        let (code, said) = ask("/readyz").await;
        assert!(code == 500 && said.contains("/its/file"), "{code} {said}");
        assert_eq!(ask("/livez").await.0, 200, "to start it again would not help");
        disk.0.1.store(false, Ordering::SeqCst);
        while ask("/readyz").await.0 != 200 {}
        bench.made("/api/v1/namespaces", namespace).await;
    }));
}
