//! Absence is not an order: whatever becomes of the cloud, no container stops
//! for it. Real processes over a real containerd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing
)]

mod host;

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::board::IMAGE;
use host::world::{NODE, World, condition, free_port, in_a_world};
use serde_json::{Value, json};

/// A pod that does nothing, for ever, on the world's node.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": NODE,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sleep", "100000"],
            }],
        },
    })
}

/// The running containers of the board's pods, as the board's own API has
/// them: pod → container id.
fn running(world: &World) -> BTreeMap<String, String> {
    let Some(pods) = world.board(&["pods"]) else { return BTreeMap::new() };
    let id = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        container["state"]["running"].as_object()?;
        let name = pod["metadata"]["name"].as_str()?.to_owned();
        Some((name, container["containerID"].as_str()?.to_owned()))
    };
    pods["items"].as_array().unwrap().iter().filter_map(id).collect()
}

fn log(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.folder.join(name)).unwrap_or_default()
}

fn count(text: &str, words: &str) -> usize {
    text.lines().filter(|line| line.contains(words)).count()
}

/// Puts the cloud's data directory aside.
fn put_aside(world: &World, name: &str) -> PathBuf {
    let aside = world.folder.join(name);
    std::fs::rename(world.cloud_dir(), &aside).unwrap();
    aside
}

/// Waits until the board has said something that many times.
#[track_caller]
fn until_said(world: &World, words: &str, times: usize) {
    world.until(&format!("{times} times {words:?} in the edge's log"), |world| {
        count(&log(world, "edge.log"), words) >= times
    });
}

#[test]
fn an_emptied_or_another_cloud_is_refused_and_the_board_moves_only_when_told() {
    in_a_world("an_emptied_or_another_cloud_is_refused", |world| {
        world.start();
        world.apply(&[pod("one"), pod("two")]);
        world.until_phase("one", "Running");
        world.until_phase("two", "Running");
        let (before, shims) = (running(world), world.containerd.shims());
        assert_eq!(before.len(), 2, "{before:?}");

        // Its data is gone: what starts at the address has another UID and authority.
        world.kill_cloud();
        let first = put_aside(world, "cloud-first");
        world.start_cloud();
        until_said(world, "is not this cluster's cloud", 1);
        let code = world.token(&[]);
        assert_eq!(running(world), before);

        // A code alone moves nothing; nor does another start of the agent.
        world.kill_edge();
        world.start_edge(Some(&code));
        until_said(world, "give --adopt-cluster", 1);
        until_said(world, "is not this cluster's cloud", 2);
        world.until("the pods to be known again", |world| running(world) == before);
        assert_eq!(world.containerd.shims(), shims);
        assert_eq!(world.json(&["get", "nodes"]).unwrap()["items"], json!([]));

        // It has an address of its own from now on; the first is still the board's.
        world.kill_cloud();
        let home = world.listen_at(free_port(), free_port());
        world.start_cloud();
        let code = world.token(&[]);
        world.kill_cloud();
        let second = put_aside(world, "cloud-second");
        std::fs::rename(&first, world.cloud_dir()).unwrap();
        let away = world.listen_at(home.0, home.1);
        world.start_cloud();
        world.until_ready();
        world.until("the cloud to be there", |world| {
            let nodes = world.board(&["nodes"]).unwrap();
            condition(&nodes["items"][0], "CloudConnected") == Some("True".into())
        });
        assert_eq!((running(world), world.containerd.shims()), (before, shims));

        // Told to move, it stays where it is while the other cloud is away.
        world.kill_edge();
        world.start_edge_with(&["--adopt-cluster", &format!("--join={code}")]);
        until_said(world, "the cloud cannot be joined", 1);
        world.apply(&[pod("three")]);
        world.until_phase("three", "Running");
        let pid = world.edge_pid();
        assert_eq!(running(world).len(), 3);

        // The other cloud comes, and wants one pod of its own.
        world.kill_cloud();
        put_aside(world, "cloud-first");
        world.listen_at(away.0, away.1);
        std::fs::rename(second, world.cloud_dir()).unwrap();
        world.start_cloud();
        world.apply(&[pod("four")]);
        world.until_phase("four", "Running");
        world.until("the old cluster's pods to be gone", |world| world.containerd.shims().len() == 1);
        assert_eq!(running(world).keys().collect::<Vec<_>>(), ["four"]);
        world.until_ready();
        assert_eq!(world.edge_pid(), pid, "the agent goes on in the same process");
        assert!(
            !world.edge_dir().join("identity.left").exists() && !world.edge_dir().join("adopting").exists()
        );
        let ends = count(&log(world, "edge.log"), "ERROR");
        assert_eq!(ends, 0, "{}", log(world, "edge.log"));
    });
}

/// What becomes of a file on a bad card.
fn damages(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut flipped = whole.to_vec();
    flipped.iter_mut().step_by(509).for_each(|byte| *byte ^= 0x10);
    let garbage = (0..whole.len()).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
    vec![
        ("cut short", whole[..whole.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("zeroes", vec![0; whole.len()]),
        ("garbage", garbage),
        ("flipped", flipped),
    ]
}

#[test]
fn a_damaged_store_of_a_board_is_made_anew_and_no_container_stops() {
    in_a_world("a_damaged_store_of_a_board_is_made_anew", |world| {
        world.start();
        world.apply(&[pod("one"), pod("two")]);
        world.until_phase("one", "Running");
        world.until_phase("two", "Running");
        let (before, shims) = (running(world), world.containerd.shims());
        let identity = |world: &World| std::fs::read(world.edge_dir().join("identity/current.pem")).unwrap();
        let own = identity(world);
        let store = world.edge_dir().join("holm.redb");
        world.stop_edge();
        let whole = std::fs::read(&store).unwrap();
        let cases = damages(&whole);
        for (number, (name, bytes)) in cases.iter().enumerate() {
            world.stop_edge();
            // The last time nobody can tell it anything at first.
            let alone = number + 1 == cases.len();
            if alone {
                world.kill_cloud();
            }
            std::fs::write(&store, bytes).unwrap();
            world.start_edge(None);
            until_said(world, "the board's store was damaged", number + 1);
            if alone {
                world.until("the board to answer", |world| world.board(&["pods"]).is_some());
                assert_eq!(world.containerd.shims(), shims, "{name}, without the cloud");
                world.start_cloud();
            }
            world.until(&format!("everything to be known again: {name}"), |world| running(world) == before);
            assert_eq!(world.containerd.shims(), shims, "{name}");
        }
        assert_eq!(identity(world), own);
        let kept: Vec<String> = std::fs::read_dir(world.edge_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("damaged"))
            .collect();
        assert_eq!(kept.len(), 2, "{kept:?}");
        world.until("an Event on the Node", |world| {
            world.json(&["get", "events"]).is_some_and(|events| {
                events["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|event| event["reason"] == "StoreRebuilt" && event["involvedObject"]["name"] == NODE)
            })
        });
        world.until_ready();
        // And it follows orders as before.
        world.kubectl_ok(&["delete", "pod", "one", "--timeout=30s"]);
        world.until("one container to be gone", |world| running(world).keys().eq(["two"]));
        assert_eq!(running(world)["two"], before["two"]);
    });
}
