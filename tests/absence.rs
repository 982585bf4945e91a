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
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use host::board::IMAGE;
use host::world::{NODE, World, condition, free_port, holm, in_a_world};
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
        assert_eq!(
            count(&log(world, "edge.log"), "is not this cluster's cloud"),
            1,
            "said once, not once a try"
        );

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

/// Whether an Event with that reason about the node says all of that.
fn is_told(world: &World, reason: &str, words: &[&str]) -> bool {
    let events = world.json(&["get", "events"]).unwrap_or_default();
    events["items"].as_array().into_iter().flatten().any(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["reason"] == reason
            && event["involvedObject"]["name"] == NODE
            && words.iter().all(|word| message.contains(word))
    })
}

/// A command of the program that must succeed.
#[track_caller]
fn holm_ok(world: &World, arguments: &[&str]) -> String {
    let output = holm().args(arguments).arg("--data-dir").arg(world.cloud_dir()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_restored_cloud_takes_nothing_away_until_it_is_told_to() {
    in_a_world("a_restored_cloud_takes_nothing_away", |world| {
        world.start();
        world.apply(&[pod("old"), pod("goes")]);
        world.until_phase("old", "Running");
        world.until_phase("goes", "Running");
        let backup = world.folder.join("backup");
        holm_ok(world, &["cloud", "backup", backup.to_str().unwrap()]);
        world.apply(&[pod("new")]);
        world.until_phase("new", "Running");
        // After the backup the board gets another key, too.
        world.kill_edge();
        world.forget_edge();
        let code = world.token(&["--node", NODE]);
        world.start_edge(Some(&code));
        world.until("the board to know its pods again", |world| running(world).len() == 3);
        let (before, shims) = (running(world), world.containerd.shims());

        // Its store is lost, and what came after the backup with it.
        world.kill_cloud();
        std::fs::write(world.cloud_dir().join("holm.redb"), "damaged").unwrap();
        holm_ok(world, &["cloud", "restore", backup.to_str().unwrap()]);
        world.start_cloud();
        world.until("what is kept to be said", |world| {
            is_told(world, "HeldThoughUnknown", &["pods/default/new", "holm cloud restore --confirm"])
        });
        world.until_ready();
        assert!(world.json(&["get", "pod", "new"]).is_none());
        assert_eq!((running(world), world.containerd.shims()), (before.clone(), shims));

        // An order is an order also then.
        world.kubectl_ok(&["delete", "pod", "goes", "--timeout=30s"]);
        world.until("the deleted pod to be gone", |world| running(world).keys().eq(["new", "old"]));
        // Another start of the agent changes nothing either.
        world.kill_edge();
        world.start_edge(None);
        world.until("both to be known again", |world| running(world).len() == 2);
        world.until("the board to be connected", |world| {
            let nodes = world.board(&["nodes"]).unwrap_or_default();
            condition(&nodes["items"][0], "CloudConnected") == Some("True".into())
        });

        // Told to, it lets go of what it does not know, on the same connection.
        let connections = count(&log(world, "edge.log"), "connected to the cloud");
        holm_ok(world, &["cloud", "restore", "--confirm"]);
        world.until("the unknown pod to be gone", |world| world.containerd.shims().len() == 1);
        assert_eq!(running(world), BTreeMap::from([("old".to_owned(), before["old"].clone())]));
        assert_eq!(count(&log(world, "edge.log"), "connected to the cloud"), connections);
    });
}

/// A small file system of its own, in memory, at a directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// An error says why there is none.
    fn mount(at: PathBuf) -> Result<SmallDisk, String> {
        std::fs::create_dir_all(&at).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs"])
            .arg(&at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Ok(SmallDisk(at)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("mount: {error}")),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let part = [0; 4096];
        while file.write_all(&part).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Makes a ConfigMap that no store has room for by chance; kubectl's answer.
fn create_big(world: &World, name: &str) -> std::process::Output {
    let path = world.folder.join("big.json");
    let meta = json!({"name": name, "namespace": "default"});
    let data = json!({"text": "0123456789".repeat(90_000)});
    let big = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data});
    std::fs::write(&path, big.to_string()).unwrap();
    world.kubectl(&["create", "-f", path.to_str().unwrap()])
}

#[test]
fn a_board_with_a_full_disk_runs_its_pods_and_heals() {
    const TEST: &str = "a_board_with_a_full_disk_runs_its_pods_and_heals";
    in_a_world(TEST, |world| {
        let disk = match SmallDisk::mount(world.edge_dir()) {
            Ok(disk) => disk,
            Err(why) => return host::skipped(TEST, &why),
        };
        world.start();
        world.apply(&[pod("one")]);
        world.until_phase("one", "Running");
        let before = running(world);
        disk.fill();
        assert!(create_big(world, "big").status.success());
        let mut two = pod("two");
        two["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "big"}}]);
        world.apply(&[two]);
        until_said(world, "the disk is full", 1);
        world.until("the board to say so on its Node", |world| {
            let node = world.json(&["get", "node", NODE]).unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|condition| {
                condition["type"] == "StoreFailing"
                    && condition["status"] == "True"
                    && condition["message"].as_str().unwrap().contains("free space")
            })
        });
        assert_eq!(running(world), before);
        disk.free();
        world.until_phase("two", "Running");
        until_said(world, "can be written again", 1);
        assert_eq!(running(world)["one"], before["one"]);
        assert!(count(&log(world, "edge.log"), "the disk is full") <= 3, "{}", log(world, "edge.log"));
        world.kill_edge();
        world.containerd.kill_containers();
        drop(disk);
    });
}

#[test]
fn a_cloud_with_a_full_disk_says_so_and_heals() {
    const TEST: &str = "a_cloud_with_a_full_disk_says_so_and_heals";
    in_a_world(TEST, |world| {
        let disk = match SmallDisk::mount(world.cloud_dir()) {
            Ok(disk) => disk,
            Err(why) => return host::skipped(TEST, &why),
        };
        world.start();
        world.apply(&[pod("one")]);
        world.until_phase("one", "Running");
        let before = running(world);
        disk.fill();
        let refused =
            (0..20).map(|n| create_big(world, &format!("big-{n}"))).find(|output| !output.status.success());
        let said = String::from_utf8_lossy(&refused.expect("no write was refused").stderr).into_owned();
        assert!(said.contains("the disk is full") && said.contains("free space"), "{said}");
        assert!(said.lines().count() == 1, "{said}");
        // What is there can be read, and the board goes on.
        assert_eq!(world.json(&["get", "pod", "one"]).unwrap()["status"]["phase"], "Running");
        let ready = world.kubectl(&["get", "--raw", "/readyz"]);
        assert!(
            !ready.status.success() && String::from_utf8_lossy(&ready.stderr).contains("the disk is full")
        );
        assert!(world.kubectl(&["get", "--raw", "/livez"]).status.success());
        assert_eq!(running(world), before);
        disk.free();
        world.until("writes to be taken again", |world| create_big(world, "later").status.success());
        world.kubectl_ok(&["get", "--raw", "/readyz"]);
        assert_eq!(running(world), before);
        world.kill_cloud();
        drop(disk);
    });
}
