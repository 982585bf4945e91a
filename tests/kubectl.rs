//! The API as the real kubectl sees it, over plain HTTP on loopback.
// What tests may do and the product may not, also in helpers of tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holm::apiserver::{ApiServer, Options, Role, User};
use holm::object::{Key, Origin, Uid};
use holm::store::{self, Action, Durability, Expect, Store, Write};
use serde_json::{Value, json};
use smol::{Executor, block_on};

/// A server with a store of its own, and kubectl to ask it.
struct Bench {
    kubectl: PathBuf,
    url: String,
    directory: PathBuf,
    store: Store,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bench {
    /// None, after saying why, where there is no kubectl.
    fn start(test: &str, role: Role, user: User) -> Option<Bench> {
        let Some(kubectl) = std::env::var_os("HOLM_TEST_BIN").map(|bin| PathBuf::from(bin).join("kubectl"))
        else {
            println!("SKIPPED: {test}: HOLM_TEST_BIN names no folder with kubectl 1.32");
            return None;
        };
        if !kubectl.is_file() {
            println!("SKIPPED: {test}: {} is not there", kubectl.display());
            return None;
        }
        let directory = std::env::temp_dir().join(format!("holm-kubectl-{}", Uid::random()));
        let store = Store::open(&directory, store::Options::default()).unwrap();
        let api = ApiServer::new(store.clone(), Options { role: role.clone(), version: "0".into() });
        let listener = block_on(smol::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || serve(api, role, user, listener, &stopped));
        let bench = Bench { kubectl, url, directory, store, stop, thread: Some(thread) };
        bench.ok(&["get", "--raw", "/readyz"]);
        bench.put(Key::core("namespaces", "", "default").unwrap(), |value| {
            *value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        });
        Some(bench)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .env_clear()
            .env("HOME", &self.directory)
            .env("PATH", "/usr/bin:/bin")
            .args(["--kubeconfig", "/dev/null", "--server", &self.url, "--request-timeout", "20s"])
            .args(arguments);
        command
    }

    /// What it printed, or what it complained about.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        finished(&self.command(arguments).output().unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    fn refused(&self, arguments: &[&str]) -> String {
        match self.run(arguments) {
            Ok(text) => panic!("kubectl {} should be refused: {text}", arguments.join(" ")),
            Err(error) => error,
        }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        // What begins with a brace kubectl takes for JSON.
        std::fs::write(&path, format!("---\n{text}")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn apply(&self, text: &str) -> String {
        self.ok(&["apply", "-f", &self.file("manifest.yaml", text)])
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// What an agent would write.
    fn put(&self, key: Key, change: impl Fn(&mut Value)) {
        let mut value = self.store.get(&key).unwrap().map(|object| object.value.clone()).unwrap_or_default();
        change(&mut value);
        let action = Action::Put { value, origin: Origin::Local, durability: Durability::Durable };
        block_on(self.store.write(Write { key, expect: Expect::Anything, action })).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn finished(output: &Output) -> Result<String, String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(out),
        false => Err(format!("{out}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn serve(api: ApiServer, role: Role, user: User, listener: smol::net::TcpListener, stopped: &AtomicBool) {
    let executor = Arc::new(Executor::new());
    if role == Role::Cloud {
        executor.spawn(api.clone().finish_namespaces()).detach();
        executor.spawn(api.clone().expire_events()).detach();
    }
    let accepting = executor.clone();
    executor
        .spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (api, user) = (api.clone(), user.clone());
                accepting
                    .spawn(async move {
                        let _ = api.serve_connection(stream, user).await;
                    })
                    .detach();
            }
        })
        .detach();
    block_on(executor.run(async {
        while !stopped.load(Ordering::Relaxed) {
            smol::Timer::after(Duration::from_millis(20)).await;
        }
    }));
}

/// A kubectl that goes on, and the lines it prints.
struct Following {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Following {
    fn start(bench: &Bench, arguments: &[&str]) -> Following {
        let mut child = bench.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Following { child, lines }
    }

    /// Waits for a line with all of these words.
    fn expect(&self, words: &[&str]) {
        let end = Instant::now() + Duration::from_secs(20);
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if words.iter().all(|word| line.contains(word)) {
                return;
            }
            seen.push(line);
        }
        panic!("no line with {words:?} in {seen:#?}");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: hello
  labels: {app: hello}
spec:
  containers:
  - name: web
    image: example:1
    ports: [{containerPort: 80, hostPort: 8080}]
    resources: {limits: {memory: 32Mi}}
";

fn pod_key(name: &str) -> Key {
    Key::core("pods", "default", name).unwrap()
}

#[test]
fn a_pod_is_applied_shown_watched_described_and_deleted() {
    let Some(bench) = Bench::start("a_pod_is_applied", Role::Cloud, User::admin()) else { return };
    assert_eq!(bench.apply(POD).trim(), "pod/hello created");
    assert_eq!(bench.apply(POD).trim(), "pod/hello unchanged");

    let table = bench.ok(&["get", "pods"]);
    let mut lines = table.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    );
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["hello", "0/1", "Pending", "0"]);

    let watching = Following::start(&bench, &["get", "pods", "-w"]);
    watching.expect(&["hello", "Pending"]);
    let condition =
        Following::start(&bench, &["wait", "--for=condition=Ready", "pod/hello", "--timeout=20s"]);
    bench.put(pod_key("hello"), |value| {
        value["spec"]["nodeName"] = json!("barn");
        value["status"] = json!({
            "phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}],
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "web", "image": "example:1", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        });
    });
    watching.expect(&["hello", "1/1", "Running"]);
    condition.expect(&["condition met"]);
    assert!(bench.ok(&["get", "pods", "-o", "wide"]).contains("10.0.0.9"));

    let described = bench.ok(&["describe", "pod", "hello"]);
    for part in [
        "Name:             hello",
        "Node:             barn",
        "Image:",
        "example:1",
        "QoS Class:",
        "Burstable",
    ] {
        assert!(described.contains(part), "{part} is not in\n{described}");
    }

    let changed = POD.replace("example:1", "example:2").replace("{app: hello}", "{app: hello, more: x}");
    assert_eq!(bench.apply(&changed).trim(), "pod/hello configured");
    let pod = bench.json(&["get", "pod", "hello"]);
    assert_eq!(pod["spec"]["containers"][0]["image"], "example:2");
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(pod["status"]["phase"], "Running", "apply leaves the status alone");
    assert_eq!(pod["metadata"]["generation"], 2);

    // The pod has a node, so it stays until the node says that it is gone.
    let deleting = Following::start(&bench, &["delete", "pod", "hello"]);
    watching.expect(&["hello", "Terminating"]);
    assert_eq!(bench.json(&["get", "pod", "hello"])["metadata"]["deletionGracePeriodSeconds"], 30);
    bench.ok(&["delete", "pod", "hello", "--force", "--grace-period=0"]);
    deleting.expect(&["pod \"hello\" deleted"]);
    let error = bench.refused(&["get", "pod", "hello"]);
    assert!(error.contains("Error from server (NotFound): pods \"hello\" not found"), "{error}");
}

#[test]
fn what_is_wrong_is_said() {
    let Some(bench) = Bench::start("what_is_wrong_is_said", Role::Cloud, User::admin()) else { return };
    let wrong =
        bench.file("wrong.yaml", &POD.replace("image: example:1", "image: \"\"").replace("8080", "808080"));
    let error = bench.refused(&["apply", "-f", &wrong]);
    assert!(error.contains("The Pod \"hello\" is invalid"), "{error}");
    assert!(error.contains("spec.containers[0].image: Required value"), "{error}");
    assert!(error.contains("spec.containers[0].ports[0].hostPort: Invalid value: 808080"), "{error}");
    bench.apply(POD);
    let error = bench.refused(&["create", "-f", &bench.file("again.yaml", POD)]);
    assert!(error.contains("(AlreadyExists)") && error.contains("pods \"hello\" already exists"), "{error}");
    let error = bench.refused(&[
        "apply",
        "-f",
        &bench.file("port.yaml", &POD.replace("containerPort: 80,", "containerPort: 81,")),
    ]);
    assert!(error.contains("pod updates may not change fields"), "{error}");
    let error = bench.refused(&["apply", "-n", "nowhere", "-f", &bench.file("nowhere.yaml", POD)]);
    assert!(error.contains("namespaces \"nowhere\" not found"), "{error}");
    let error = bench.refused(&["get", "pods", "--field-selector", "spec.colour=red"]);
    assert!(error.contains("field label not supported"), "{error}");
}

#[test]
fn configuration_and_labels_are_edited() {
    let Some(bench) = Bench::start("configuration_is_edited", Role::Cloud, User::admin()) else { return };
    bench.ok(&["create", "configmap", "settings", "--from-literal=a=1", "--from-literal=b=2"]);
    bench.ok(&["create", "secret", "generic", "password", "--from-literal=key=hidden"]);
    let secret = bench.json(&["get", "secret", "password"]);
    assert_eq!(secret["data"]["key"], "aGlkZGVu");
    assert_eq!(secret["type"], "Opaque");
    assert!(bench.ok(&["describe", "secret", "password"]).contains("6 bytes"));
    bench.ok(&["label", "configmap", "settings", "tier=edge"]);
    bench.ok(&["annotate", "configmap", "settings", "note=x"]);
    assert!(bench.ok(&["get", "cm", "-l", "tier in (edge)", "-o", "name"]).contains("configmap/settings"));
    assert_eq!(bench.ok(&["get", "cm", "-l", "tier=cloud", "-o", "name"]), "");
    bench.ok(&["patch", "cm", "settings", "--type=merge", "-p", "{\"data\":{\"a\":null,\"c\":\"3\"}}"]);
    bench.ok(&["patch", "cm", "settings", "--type=json", "-p", "[{\"op\":\"remove\",\"path\":\"/data/b\"}]"]);
    bench.ok(&["patch", "cm", "settings", "-p", "{\"data\":{\"d\":\"4\"}}"]);
    assert_eq!(bench.json(&["get", "cm", "settings"])["data"], json!({"c": "3", "d": "4"}));
    let replaced = "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {z: '9'}}";
    bench.ok(&["replace", "-f", &bench.file("replace.yaml", replaced)]);
    assert_eq!(bench.json(&["get", "cm", "settings"])["data"], json!({"z": "9"}));
    let applied = "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {y: '8'}}";
    let applied = bench.file("server-side.yaml", applied);
    assert!(bench.ok(&["apply", "--server-side", "-f", &applied]).contains("serverside-applied"));
    bench.ok(&["apply", "--dry-run=server", "-f", &bench.file("dry.yaml", POD)]);
    assert!(bench.refused(&["get", "pod", "hello"]).contains("NotFound"));
    assert!(bench.ok(&["get", "all,cm,secrets,sa,nodes,events,leases", "-A"]).contains("configmap/settings"));
    bench.ok(&["delete", "cm", "--all"]);
    assert_eq!(bench.ok(&["get", "cm", "-o", "name"]), "");
}

#[test]
fn a_list_is_applied_item_by_item() {
    let test = "a_list_is_applied_item_by_item";
    let Some(bench) = Bench::start(test, Role::Cloud, User::admin()) else { return };
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: one}\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: two}\n";
    let said = bench.apply(list);
    assert!(said.contains("configmap/one created") && said.contains("secret/two created"), "{said}");
    let said = bench.apply(list);
    assert!(said.contains("configmap/one unchanged"), "{said}");
}

#[test]
fn nodes_and_events_are_shown() {
    let Some(bench) = Bench::start("nodes_and_events", Role::Cloud, User::admin()) else { return };
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "barn", "labels": {"node-role.kubernetes.io/edge": ""}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
            "nodeInfo": {"kubeletVersion": "v1.32.0-holm"},
            "capacity": {"cpu": "4", "memory": "1Gi"}, "allocatable": {"cpu": "4", "memory": "1Gi"},
        },
    });
    bench.ok(&["create", "-f", &bench.file("node.json", &node.to_string())]);
    let row = bench.ok(&["get", "nodes", "--no-headers"]);
    assert!(
        row.contains("barn") && row.contains("Ready") && row.contains("edge") && row.contains("v1.32.0-holm")
    );
    bench.apply(POD);
    bench.put(pod_key("hello"), |value| value["spec"]["nodeName"] = json!("barn"));
    let uid = bench.json(&["get", "pod", "hello"])["metadata"]["uid"].clone();
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "hello.1", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "hello", "namespace": "default", "uid": uid},
        "type": "Normal", "reason": "Started", "message": "Started container web",
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1,
        "source": {"component": "holm"},
    });
    bench.ok(&["create", "-f", &bench.file("event.json", &event.to_string())]);
    let events = bench.ok(&["get", "events"]);
    assert!(events.starts_with("LAST SEEN"), "{events}");
    assert!(events.contains("pod/hello") && events.contains("Started container web"), "{events}");
    assert!(bench.ok(&["describe", "pod", "hello"]).contains("Started container web"));
    let described = bench.ok(&["describe", "node", "barn"]);
    assert!(described.contains("Non-terminated Pods:          (1 in total)"), "{described}");
    let status =
        "{\"status\":{\"conditions\":[{\"type\":\"Ready\",\"lastHeartbeatTime\":\"2026-01-02T00:00:00Z\"}]}}";
    let commits = bench.store.commits();
    bench.ok(&["patch", "node", "barn", "--subresource=status", "-p", status]);
    assert_eq!(bench.store.commits(), commits, "a heartbeat does not touch the flash");
    let node = bench.json(&["get", "node", "barn"]);
    assert_eq!(node["status"]["conditions"][0]["lastHeartbeatTime"], "2026-01-02T00:00:00Z");
    assert_eq!(node["status"]["conditions"][0]["status"], "True");
    bench.ok(&["cordon", "barn"]);
    assert!(bench.ok(&["get", "nodes"]).contains("Ready,SchedulingDisabled"));
    bench.ok(&["uncordon", "barn"]);
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    let Some(bench) = Bench::start("a_namespace_goes", Role::Cloud, User::admin()) else { return };
    bench.ok(&["create", "namespace", "barn"]);
    bench.ok(&["create", "configmap", "settings", "-n", "barn"]);
    bench.ok(&["create", "serviceaccount", "worker", "-n", "barn"]);
    bench.ok(&["apply", "-n", "barn", "-f", &bench.file("pod.yaml", POD)]);
    bench.ok(&["delete", "namespace", "barn"]);
    assert!(bench.refused(&["get", "namespace", "barn"]).contains("NotFound"));
    assert!(bench.ok(&["get", "pods,cm", "-A", "-o", "name"]).is_empty());
    assert!(bench.refused(&["delete", "namespace", "default"]).contains("may not be deleted"));
}

#[test]
fn a_board_is_read_only_and_strangers_see_nothing() {
    let role = Role::Board { cloud: "mainland".into() };
    let Some(bench) = Bench::start("a_board_is_read_only", role, User::admin()) else { return };
    bench.put(pod_key("hello"), |value| {
        *value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hello", "namespace": "default"}});
    });
    assert!(bench.ok(&["get", "pods"]).contains("hello"));
    let error = bench.refused(&["create", "-f", &bench.file("pod.yaml", POD)]);
    assert!(error.contains("this board's objects are managed by its cloud mainland"), "{error}");
    assert!(bench.refused(&["delete", "pod", "hello"]).contains("Forbidden"));
    drop(bench);

    let Some(bench) = Bench::start("strangers", Role::Cloud, User::anonymous()) else { return };
    let error = bench.refused(&["get", "--raw", "/api/v1/pods"]);
    assert!(error.contains("Forbidden") && error.contains("system:anonymous"), "{error}");
    assert!(bench.ok(&["get", "--raw", "/version"]).contains("v1.32.0+holm"));
}

#[test]
fn long_lists_come_in_pages() {
    let Some(bench) = Bench::start("long_lists_come_in_pages", Role::Cloud, User::admin()) else { return };
    for number in 0..7 {
        let key = Key::core("configmaps", "default", &format!("c{number}")).unwrap();
        bench.put(key, |value| {
            *value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{number}"), "namespace": "default"}});
        });
    }
    let names = bench.ok(&["get", "cm", "--chunk-size=3", "-o", "name"]);
    assert_eq!(names.lines().count(), 7, "{names}");
}
