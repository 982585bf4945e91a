//! The thread: kubectl to container and back, with every part a real process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing
)]

mod host;

use host::board::IMAGE;
use host::world::{NODE, World, condition, in_a_world};
use serde_json::{Value, json};

/// A pod that prints the content of its ConfigMap whenever it changes, and a
/// Secret's value first.
fn pod(name: &str) -> Value {
    let script = "echo $GREETING; while :; do /bin/busybox cat /config/text; /bin/busybox sleep 0.1; done";
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c", script],
                "env": [{"name": "GREETING", "valueFrom": {"secretKeyRef": {"name": "greeting", "key": "text"}}}],
                "volumeMounts": [{"name": "config", "mountPath": "/config"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "config"}}],
        },
    })
}

fn config(text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "config", "namespace": "default"}, "data": {"text": format!("{text}\n")}})
}

fn secret() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "greeting", "namespace": "default"}, "stringData": {"text": "good-morning"}})
}

/// The id of the pod's container as the API knows it.
fn container_id(world: &World, pod: &str) -> Option<String> {
    let pod = world.json(&["get", "pod", pod])?;
    pod["status"]["containerStatuses"][0]["containerID"].as_str().map(str::to_owned)
}

/// What the pod's container has printed.
fn printed(world: &World, pod: &str) -> String {
    let logs = world.edge_dir().join("log/pods");
    let folders = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let of_pod = folders.filter(|f| f.file_name().to_string_lossy().starts_with(&format!("default_{pod}_")));
    let files = of_pod.flat_map(|f| std::fs::read_dir(f.path().join("main")).into_iter().flatten().flatten());
    files.map(|f| std::fs::read_to_string(f.path()).unwrap_or_default()).collect()
}

#[test]
fn a_pod_goes_all_the_way_and_back() {
    in_a_world("a_pod_goes_all_the_way_and_back", |world| {
        world.start();
        // The pod first: what it names comes later, and it starts then.
        world.apply(&[pod("hello")]);
        world.until("the pod to wait for its Secret", |world| {
            let pod = world.json(&["get", "pod", "hello"]).unwrap();
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            waiting == "CreateContainerConfigError"
                || pod["status"]["containerStatuses"].is_null() && pod["spec"]["nodeName"] == NODE
        });
        world.apply(&[config("first-text"), secret()]);
        world.until_phase("hello", "Running");
        world.until("the Secret and ConfigMap in the container", |world| {
            let text = printed(world, "hello");
            text.contains("good-morning") && text.contains("first-text")
        });
        let table = world.kubectl_ok(&["get", "pod", "hello", "-o", "wide"]);
        assert!(table.contains("1/1") && table.contains("Running") && table.contains(NODE), "{table}");

        world.apply(&[config("second-text")]);
        world.until("the changed ConfigMap in the container", |world| {
            printed(world, "hello").contains("second-text")
        });

        let described = world.kubectl_ok(&["describe", "pod", "hello"]);
        assert!(described.contains("Started"), "{described}");
        let node = world.kubectl_ok(&["describe", "node", NODE]);
        assert!(node.contains("hello") && node.contains("containerd://"), "{node}");

        let on_board = world.board(&["pods"]).unwrap();
        assert_eq!(on_board["items"][0]["status"]["phase"], "Running", "{on_board}");
        world.kubectl_ok(&["delete", "pod", "hello", "--timeout=30s"]);
        assert!(world.containerd.shims().is_empty(), "the object was gone before its sandbox");
        world.until("the board to have forgotten it", |world| {
            world.board(&["pods"]).unwrap()["items"].as_array().unwrap().is_empty()
                && world.board(&["secrets"]).unwrap()["items"].as_array().unwrap().is_empty()
        });
        let log = std::fs::read_to_string(world.folder.join("cloud.log")).unwrap();
        assert!(!log.contains("was refused"), "an honest node was refused: {log}");
    });
}

#[test]
fn a_power_cut_without_the_cloud_brings_the_pod_back() {
    in_a_world("a_power_cut_without_the_cloud_brings_the_pod_back", |world| {
        world.start();
        world.apply(&[config("the-text"), secret(), pod("hello")]);
        world.until_phase("hello", "Running");
        let before = container_id(world, "hello").unwrap();

        world.kill_cloud();
        world.kill_edge();
        world.containerd.kill_containers();
        world.containerd.kill();
        world.until("everything to be dead", |world| world.containerd.shims().is_empty());
        world.containerd.up();
        world.start_edge(None);
        world.until("the pod to run again without the cloud", |world| {
            let Some(pods) = world.board(&["pods"]) else { return false };
            let pod = &pods["items"][0];
            let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
            pod["status"]["phase"] == "Running"
                && id.is_some_and(|id| id != before)
                && !world.containerd.shims().is_empty()
        });
        let pods = world.board(&["pods"]).unwrap();
        let after =
            pods["items"][0]["status"]["containerStatuses"][0]["containerID"].as_str().map(str::to_owned);
        let nodes = world.board(&["nodes"]).unwrap();
        assert_eq!(condition(&nodes["items"][0], "CloudConnected"), Some("False".into()), "{nodes}");

        world.start_cloud();
        world.until("the cloud to agree", |world| container_id(world, "hello") == after);
        world.until_ready();
        assert_eq!(world.json(&["get", "pod", "hello"]).unwrap()["status"]["phase"], "Running");
    });
}

#[test]
fn a_restart_of_the_agent_touches_no_container() {
    in_a_world("a_restart_of_the_agent_touches_no_container", |world| {
        world.start();
        world.apply(&[config("the-text"), secret(), pod("hello")]);
        world.until_phase("hello", "Running");
        let (id, shims) = (container_id(world, "hello"), world.containerd.shims());
        assert!(id.is_some() && !shims.is_empty());
        world.kill_edge();
        world.start_edge(None);
        world.until("the board to answer", |world| world.board(&["pods"]).is_some());
        // A change that goes all the way shows that the agent has taken up its work.
        world.apply(&[config("another-text")]);
        world.until("the change in the container", |world| printed(world, "hello").contains("another-text"));
        assert_eq!(container_id(world, "hello"), id);
        assert_eq!(world.containerd.shims(), shims);
        let pod = world.json(&["get", "pod", "hello"]).unwrap();
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    });
}

#[test]
fn what_changed_while_the_edge_was_away_arrives_and_nothing_comes_back() {
    in_a_world("what_changed_while_the_edge_was_away_arrives", |world| {
        world.start();
        world.apply(&[config("old-text"), secret(), pod("stays"), pod("goes")]);
        world.until_phase("stays", "Running");
        world.until_phase("goes", "Running");
        let stays = container_id(world, "stays");
        world.kill_edge();
        world.kubectl_ok(&["delete", "pod", "goes", "--force", "--grace-period=0"]);
        world.apply(&[config("new-text"), pod("comes")]);
        world.start_edge(None);
        world.until_phase("comes", "Running");
        world.until("the deleted pod to be gone", |world| world.containerd.shims().len() == 2);
        world.until("the changed ConfigMap", |world| printed(world, "stays").contains("new-text"));
        assert_eq!(container_id(world, "stays"), stays);
        let names: Vec<String> = world.board(&["pods"]).unwrap()["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["comes", "stays"]);
    });
}

#[test]
fn a_lost_card_joins_again_and_gets_everything() {
    in_a_world("a_lost_card_joins_again_and_gets_everything", |world| {
        world.start();
        world.apply(&[config("the-text"), secret(), pod("hello")]);
        world.until_phase("hello", "Running");
        let id = container_id(world, "hello");
        world.kill_edge();
        world.forget_edge();
        let code = world.token(&["--node", NODE]);
        world.start_edge(Some(&code));
        world.until("the board to know its pod again", |world| {
            world.board(&["pods"]).is_some_and(|pods| pods["items"][0]["status"]["phase"] == "Running")
        });
        // What ran was adopted, not restarted.
        assert_eq!(container_id(world, "hello"), id);
        assert_eq!(world.containerd.shims().len(), 1);
    });
}

#[test]
fn an_idle_board_writes_nothing() {
    in_a_world("an_idle_board_writes_nothing", |world| {
        world.start();
        world.apply(&[config("the-text"), secret(), pod("hello")]);
        world.until_phase("hello", "Running");
        let file = world.edge_dir().join("holm.redb");
        let changed = || std::fs::metadata(&file).unwrap().modified().unwrap();
        // The last commit of the start may still be under way.
        host::containerd::pause(std::time::Duration::from_secs(2));
        let before = changed();
        // Longer than a look at the node and a keep-alive of the link.
        host::containerd::pause(std::time::Duration::from_secs(16));
        assert_eq!(changed(), before);
    });
}
