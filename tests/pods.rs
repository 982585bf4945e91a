//! Pods on a real containerd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod host;

use holm::cri::{Code, Runtime, pause, v1};
use holm::edge::pods::ToPods;
use holm::task::Tasks;
use host::board::{Board, busybox, log_folder, pod};
use host::containerd::Containerd;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs a test with a containerd of its own in a folder of its own.
fn on_a_board(test: &str, run: impl AsyncFnOnce(&Tasks, &Path, &mut Containerd)) {
    let folder = host::scratch(test);
    let mut containerd = match Containerd::start(&folder) {
        Ok(containerd) => containerd,
        Err(why) => return host::skipped(test, &why),
    };
    if let Err(why) = busybox(containerd.bin()) {
        return host::skipped(test, &why);
    }
    let tasks = Tasks::default();
    smol::block_on(tasks.executor().run(run(&tasks, &folder, &mut containerd)));
    drop(containerd);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_runtime_answers_every_call() {
    on_a_board("the_runtime_answers_every_call", async |tasks, folder, containerd| {
        let runtime = Runtime::new(tasks.executor().clone(), &containerd.endpoint()).unwrap();
        let image = busybox(containerd.bin()).unwrap();
        let version = host::until("CRI", async || runtime.version().await.ok()).await;
        assert_eq!(version.runtime_name, "containerd");
        let status = runtime.status().await.unwrap();
        let conditions = status.status.unwrap().conditions;
        assert!(conditions.iter().any(|c| c.r#type == "RuntimeReady" && c.status));

        let pause_image = pause::image(pause::Arch::own().unwrap());
        // containerd 2 says it only when it lacks it.
        let pause_name = runtime.facts().await.unwrap().sandbox_image;
        let pause_name = pause_name.unwrap_or_else(|| "registry.k8s.io/pause:3.10".into());
        runtime.import_image(&pause_name, &pause_image).await.unwrap();
        assert_eq!(runtime.image_status("holm.dev/test:1").await.unwrap(), None);
        runtime.import_image("holm.dev/test:1", &image).await.unwrap();
        runtime.import_image("holm.dev/test:1", &image).await.unwrap();
        assert_eq!(runtime.list_images().await.unwrap().len(), 2);
        let missing = runtime.pull_image("127.0.0.1:1/none:1", None, None).await.unwrap_err();
        assert!(missing.to_string().contains("PullImage"), "{missing}");

        let mut exits = runtime.exits().await.unwrap();
        let mut events = runtime.container_events().await.unwrap();
        let sandbox = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "p".into(),
                uid: "u".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: "p".into(),
            log_directory: folder.join("logs").display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: host::cgroup_parent(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let id = runtime.run_pod_sandbox(sandbox.clone()).await.unwrap();
        let status = runtime.pod_sandbox_status(&id).await.unwrap().unwrap();
        assert_eq!(status.state(), v1::PodSandboxState::Ready);
        assert!(status.network.unwrap().ip.starts_with("10.123.0."));

        let script = "echo hello; sleep 0.1; exit 3";
        let command = ["/bin/busybox", "sh", "-c", script].map(String::from).into();
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: "holm.dev/test:1".into(), ..Default::default() }),
            command,
            log_path: "c/0.log".into(),
            ..Default::default()
        };
        std::fs::create_dir_all(folder.join("logs/c")).unwrap();
        let c = runtime.create_container(&id, container, sandbox).await.unwrap();
        runtime.start_container(&c).await.unwrap();
        assert_eq!(exits.next().await.unwrap(), Some(c.clone()));
        let exited = host::until("CRI to see the exit", async || {
            let status = runtime.container_status(&c).await.unwrap().unwrap();
            (status.state() == v1::ContainerState::Exited).then_some(status)
        });
        assert_eq!(exited.await.exit_code, 3);
        // CRI's own events, where the runtime has them (containerd 1.7).
        match events.next().await {
            Ok(event) => assert!(event.is_some()),
            Err(e) => assert_eq!(e.code(), Some(Code::UNIMPLEMENTED)),
        }
        let log = std::fs::read_to_string(folder.join("logs/c/0.log")).unwrap();
        assert!(log.ends_with(" stdout F hello\n"), "{log}");

        runtime.stop_container(&c, Duration::from_secs(1)).await.unwrap();
        runtime.remove_container(&c).await.unwrap();
        runtime.stop_pod_sandbox(&id).await.unwrap();
        runtime.remove_pod_sandbox(&id).await.unwrap();
        assert_eq!(runtime.pod_sandbox_status(&id).await.unwrap(), None);
        assert_eq!(runtime.container_status(&c).await.unwrap(), None);
        // Gone already is fine.
        runtime.stop_pod_sandbox(&id).await.unwrap();
        runtime.remove_pod_sandbox(&id).await.unwrap();
        runtime.remove_container(&c).await.unwrap();

        // A runtime that was restarted is found again by the same handle.
        containerd.kill();
        assert!(runtime.version().await.unwrap_err().is_away());
        containerd.up();
        host::until("CRI again", async || runtime.version().await.ok()).await;
    });
}

#[test]
fn a_pod_comes_up_and_goes_without_a_trace() {
    on_a_board("a_pod_comes_up_and_goes_without_a_trace", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let pod = pod("web", "echo hello from $HOSTNAME; exec sleep 1000", json!({}));
        let asked = Instant::now();
        board.desire(&pod).await;
        let status = board.until_at(&pod, "/phase", json!("Running")).await;
        println!("running after {:?}", asked.elapsed());
        assert_eq!(status["containerStatuses"][0]["ready"], true);
        assert!(status["podIP"].as_str().unwrap().starts_with("10.123.0."));
        board.until_printed(folder, &pod, "c", 0, "hello from web\n").await;

        let asked = Instant::now();
        board.pods.send(ToPods::Gone(pod.key.clone(), pod.uid.clone())).await;
        board.until_removed(&pod).await;
        println!("gone after {:?}", asked.elapsed());
        assert!(board.runtime.list_pod_sandbox(Default::default()).await.unwrap().is_empty());
        assert!(!folder.join("data/pods").join(&pod.uid.0).exists());
        assert!(!log_folder(folder, &pod).exists());
        let cgroups = host::cgroups_below(&host::cgroup_parent());
        assert!(!cgroups.iter().any(|c| c.to_string_lossy().contains(&pod.uid.0)), "{cgroups:?}");
    });
}

#[test]
fn a_crashing_container_is_restarted_with_waits() {
    on_a_board("a_crashing_container_is_restarted_with_waits", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let pod = pod("crash", "echo why > /dev/termination-log; exit 3", json!({}));
        board.desire(&pod).await;
        let reason = "/containerStatuses/0/state/waiting/reason";
        let status = board.until_at(&pod, reason, json!("CrashLoopBackOff")).await;
        let container = &status["containerStatuses"][0];
        assert_eq!(container["restartCount"], 1, "the first restart comes at once: {status:#}");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
        assert_eq!(container["lastState"]["terminated"]["message"], "why\n");
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["conditions"][2]["reason"], "ContainersNotReady");
    });
}

#[test]
fn a_finished_pod_stays_finished() {
    on_a_board("a_finished_pod_stays_finished", async |tasks, folder, containerd| {
        let pod = pod("job", "echo done", json!({ "restartPolicy": "Never" }));
        {
            let mut board = Board::start(tasks, folder, containerd);
            board.ready(containerd).await;
            board.desire(&pod).await;
            let status = board.until_at(&pod, "/phase", json!("Succeeded")).await;
            let state = &status["containerStatuses"][0]["state"]["terminated"];
            assert_eq!((&state["exitCode"], &state["reason"]), (&json!(0), &json!("Completed")));
            board.until_printed(folder, &pod, "c", 0, "done\n").await;
            let runtime = board.runtime.clone();
            host::until("its network to be given back", async || {
                let sandboxes = runtime.list_pod_sandbox(Default::default()).await.unwrap();
                sandboxes.iter().all(|s| s.state() == v1::PodSandboxState::NotReady).then_some(())
            })
            .await;
        }
        // An agent that knows nothing but what the runtime says sees the same.
        let mut board = Board::start(tasks, folder, containerd);
        board.desire(&pod).await;
        board.until_at(&pod, "/phase", json!("Succeeded")).await;
        assert_eq!(board.runtime.list_containers(None, Default::default()).await.unwrap().len(), 1);
    });
}

#[test]
fn an_agents_restart_stops_nothing() {
    on_a_board("an_agents_restart_stops_nothing", async |tasks, folder, containerd| {
        let kept = pod("kept", "exec /bin/busybox sleep 1000", json!({}));
        let dropped = pod("dropped", "exec /bin/busybox sleep 1000", json!({}));
        let (before, others) = {
            let mut board = Board::start(tasks, folder, containerd);
            board.ready(containerd).await;
            board.desire(&kept).await;
            board.desire(&dropped).await;
            board.until_at(&dropped, "/phase", json!("Running")).await;
            let status = board.until_at(&kept, "/phase", json!("Running")).await;
            // What someone else made beside them.
            let metadata = v1::PodSandboxMetadata {
                name: "other".into(),
                uid: "other".into(),
                namespace: "default".into(),
                attempt: 0,
            };
            let linux =
                v1::LinuxPodSandboxConfig { cgroup_parent: host::cgroup_parent(), ..Default::default() };
            let config = v1::PodSandboxConfig {
                metadata: Some(metadata),
                log_directory: folder.join("other").display().to_string(),
                linux: Some(linux),
                ..Default::default()
            };
            (status, board.runtime.run_pod_sandbox(config).await.unwrap())
        };
        let mut board = Board::start(tasks, folder, containerd);
        board.desire(&kept).await;
        let after = board.until_at(&kept, "/phase", json!("Running")).await;
        let id = |status: &serde_json::Value| status["containerStatuses"][0]["containerID"].clone();
        assert_eq!(id(&before), id(&after));
        assert_eq!(after["containerStatuses"][0]["restartCount"], 0);
        assert_eq!(before["podIP"], after["podIP"]);
        // Nothing is judged before the desired set is known.
        smol::Timer::after(Duration::from_millis(1500)).await;
        assert_eq!(board.runtime.list_containers(None, Default::default()).await.unwrap().len(), 2);
        board.pods.send(ToPods::Known).await;
        board.until_removed(&dropped).await;
        let left = board.runtime.list_pod_sandbox(Default::default()).await.unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.iter().any(|s| s.id == others), "what others made is never touched");
        assert_eq!(board.runtime.list_containers(None, Default::default()).await.unwrap().len(), 1);
    });
}

#[test]
fn after_a_power_cut_the_pod_runs_again() {
    on_a_board("after_a_power_cut_the_pod_runs_again", async |tasks, folder, containerd| {
        let pod = pod("web", "exec /bin/busybox sleep 1000", json!({}));
        {
            let mut board = Board::start(tasks, folder, containerd);
            board.ready(containerd).await;
            board.desire(&pod).await;
            board.until_at(&pod, "/phase", json!("Running")).await;
        }
        containerd.kill();
        containerd.kill_containers();
        // The agent is there before the runtime is.
        let mut board = Board::start(tasks, folder, containerd);
        board.desire(&pod).await;
        smol::Timer::after(Duration::from_millis(200)).await;
        containerd.up();
        let started = Instant::now();
        let status = board.until_running_again(&pod, 1).await;
        println!("running again after {:?}", started.elapsed());
        let container = &status["containerStatuses"][0];
        assert!(container["lastState"]["terminated"].is_object(), "{status:#}");

        // And when only the containers are killed under a running agent.
        containerd.kill_containers();
        board.until_running_again(&pod, 2).await;
        board.pods.send(ToPods::Gone(pod.key.clone(), pod.uid.clone())).await;
        board.until_removed(&pod).await;
    });
}

#[test]
fn configuration_reaches_the_pod_and_follows_changes() {
    on_a_board("configuration_reaches_the_pod_and_follows_changes", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let script = "echo $WHO $NODE $IP; cat /etc/secret/p; echo; exec /bin/busybox sleep 1000";
        let pod = pod(
            "conf",
            script,
            json!({
                "containers": [{
                    "env": [{ "name": "WHO", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "who" } } },
                            { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
                    "volumeMounts": [{ "name": "cm", "mountPath": "/etc/cm" },
                                     { "name": "secret", "mountPath": "/etc/secret", "readOnly": true },
                                     { "name": "memory", "mountPath": "/memory" }] }],
                "volumes": [{ "name": "cm", "configMap": { "name": "cm", "optional": true } },
                            { "name": "secret", "secret": { "secretName": "s", "optional": true } },
                            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }],
            }),
        );
        board.desire(&pod).await;
        let reason = "/containerStatuses/0/state/waiting/reason";
        let status = board.until_at(&pod, reason, json!("CreateContainerConfigError")).await;
        let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
        assert!(message.contains("configmap \"cm\" not found"), "{message}");
        assert_eq!(status["phase"], "Pending");

        let secret = board.objects.put("secrets", "s", json!({ "data": { "p": "c2VjcmV0" } }));
        board.pods.send(ToPods::Dependency(secret)).await;
        let map = board.objects.put("configmaps", "cm", json!({ "data": { "who": "me", "f": "one" } }));
        board.pods.send(ToPods::Dependency(map)).await;
        let status = board.until_at(&pod, "/phase", json!("Running")).await;
        let ip = status["podIP"].as_str().unwrap();
        board.until_printed(folder, &pod, "c", 0, &format!("me island {ip}\nsecret\n")).await;

        // A change is seen inside the container.
        let map = board.objects.put("configmaps", "cm", json!({ "data": { "who": "me", "f": "two" } }));
        let changed = Instant::now();
        board.pods.send(ToPods::Dependency(map)).await;
        let id = status["containerStatuses"][0]["containerID"].as_str().unwrap();
        let id = id.strip_prefix("containerd://").unwrap().to_owned();
        let runtime = board.runtime.clone();
        let run = async |command: &[&str]| {
            let command = command.iter().map(|c| c.to_string()).collect();
            let ran = runtime.exec_sync(&id, command, Duration::from_secs(5)).await.unwrap();
            String::from_utf8(ran.stdout).unwrap()
        };
        host::until("the file to change", async || {
            (run(&["/bin/busybox", "cat", "/etc/cm/f"]).await == "two").then_some(())
        })
        .await;
        assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
        let hosts = run(&["/bin/busybox", "cat", "/etc/hosts"]).await;
        assert!(hosts.contains(&format!("{ip}\tconf")), "{hosts}");
        let mounts = run(&["/bin/busybox", "cat", "/proc/mounts"]).await;
        assert!(mounts.contains(" /memory tmpfs "), "{mounts}");
        let written = run(&["/bin/busybox", "sh", "-c", "echo x > /etc/cm/x 2>&1; echo $?"]).await;
        assert!(written.contains('1'), "configuration is read-only inside: {written}");

        board.pods.send(ToPods::Gone(pod.key.clone(), pod.uid.clone())).await;
        board.until_removed(&pod).await;
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(&pod.uid.0), "the file system in memory is gone");
    });
}

#[test]
fn init_containers_come_first_and_share_volumes() {
    on_a_board("init_containers_come_first_and_share_volumes", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let mount = json!([{ "name": "v", "mountPath": "/v" }]);
        let init = |name: &str, script: &str| {
            json!({ "name": name, "image": host::board::IMAGE, "volumeMounts": mount,
                    "command": ["/bin/busybox", "sh", "-c", script] })
        };
        let pod = pod(
            "init",
            "/bin/busybox cat /v/log; exec /bin/busybox sleep 1000",
            json!({ "initContainers": [init("one", "/bin/busybox sleep 0.2; echo one >> /v/log"),
                                       init("two", "echo two >> /v/log")],
                    "containers": [{ "volumeMounts": mount }],
                    "volumes": [{ "name": "v", "emptyDir": {} }] }),
        );
        board.desire(&pod).await;
        let status = board.until_at(&pod, "/phase", json!("Running")).await;
        board.until_printed(folder, &pod, "c", 0, "one\ntwo\n").await;
        for init in status["initContainerStatuses"].as_array().unwrap() {
            assert_eq!(init["state"]["terminated"]["exitCode"], 0);
            assert_eq!(init["ready"], true);
        }
    });
}

#[test]
fn a_deleted_pod_gets_its_grace_and_reports_its_end() {
    on_a_board("a_deleted_pod_gets_its_grace_and_reports_its_end", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do /bin/busybox sleep 0.05; done";
        let mut pod = pod("graceful", script, json!({ "terminationGracePeriodSeconds": 20 }));
        board.desire(&pod).await;
        board.until_printed(folder, &pod, "c", 0, "up\n").await;
        pod.value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod.value["metadata"]["deletionGracePeriodSeconds"] = json!(20);
        let asked = Instant::now();
        board.desire(&pod).await;
        board.until_at(&pod, "/containerStatuses/0/state/terminated/exitCode", json!(7)).await;
        board.until_removed(&pod).await;
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(board.runtime.list_pod_sandbox(Default::default()).await.unwrap().is_empty());
        // The object is still there: it is the cloud that lets it go.
        board.pods.send(ToPods::Gone(pod.key.clone(), pod.uid.clone())).await;
    });
}

#[test]
fn images_that_cannot_be_had_are_named() {
    on_a_board("images_that_cannot_be_had_are_named", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let never = pod(
            "never",
            "",
            json!({ "containers": [{ "image": "none.example/none:1", "imagePullPolicy": "Never" }] }),
        );
        let pull = pod("pull", "", json!({ "containers": [{ "image": "127.0.0.1:1/none:1" }] }));
        // A registry that is away must not keep an image that is here from running.
        let always = pod(
            "always",
            "exec /bin/busybox sleep 1000",
            json!({ "containers": [{ "image": "127.0.0.1:1/test:1", "imagePullPolicy": "Always" }] }),
        );
        let image = busybox(containerd.bin()).unwrap();
        board.runtime.import_image("127.0.0.1:1/test:1", &image).await.unwrap();
        for pod in [&never, &pull, &always] {
            board.desire(pod).await;
        }
        let reason = "/containerStatuses/0/state/waiting/reason";
        board.until_at(&never, reason, json!("ErrImageNeverPull")).await;
        let status = board.until_at(&pull, reason, json!("ErrImagePull")).await;
        let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
        assert!(message.contains("127.0.0.1:1/none:1") && !message.contains('\n'), "{message}");
        board.until_at(&always, "/phase", json!("Running")).await;
        let warned = board.events.iter().any(|e| e.reason == "PullFailed" && e.uid == always.uid);
        assert!(warned, "{:#?}", board.events);
        // One that waits for its image goes at once.
        board.pods.send(ToPods::Gone(pull.key.clone(), pull.uid.clone())).await;
        board.until_removed(&pull).await;
    });
}

#[test]
fn a_pod_on_the_hosts_network_has_the_hosts_address() {
    on_a_board("a_pod_on_the_hosts_network_has_the_hosts_address", async |tasks, folder, containerd| {
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let pod = pod("host", "exec /bin/busybox sleep 1000", json!({ "hostNetwork": true }));
        board.desire(&pod).await;
        let status = board.until_at(&pod, "/phase", json!("Running")).await;
        assert_eq!(status["podIP"], "192.0.2.1");
        let broken = host::board::pod("broken", "", json!({ "volumes": [{ "name": "v", "nfs": {} }] }));
        board.desire(&broken).await;
        let status = board.until_at(&broken, "/reason", json!("InvalidPod")).await;
        assert!(status["message"].as_str().unwrap().contains("nfs"), "{status:#}");
    });
}

#[test]
fn a_pod_that_is_wanted_again_comes_back() {
    on_a_board("a_pod_that_is_wanted_again_comes_back", async |tasks, folder, containerd| {
        let left_over = folder.join("data/pods/left-over/volumes/v");
        std::fs::create_dir_all(&left_over).unwrap();
        let mut board = Board::start(tasks, folder, containerd);
        board.ready(containerd).await;
        let pod = pod("again", "exec /bin/busybox sleep 1000", json!({}));
        board.desire(&pod).await;
        board.until_at(&pod, "/phase", json!("Running")).await;
        // While it is being taken down.
        board.pods.send(ToPods::Gone(pod.key.clone(), pod.uid.clone())).await;
        smol::Timer::after(Duration::from_millis(100)).await;
        board.desire(&pod).await;
        board.until_running_again(&pod, 1).await;
        assert!(board.removed.is_empty());
        // After it is gone.
        board.pods.send(ToPods::Gone(pod.key.clone(), pod.uid.clone())).await;
        board.until_removed(&pod).await;
        board.statuses.clear();
        board.desire(&pod).await;
        board.until_at(&pod, "/phase", json!("Running")).await;
        // Folders that belong to no pod go, once that is known.
        assert!(left_over.exists());
        board.pods.send(ToPods::Known).await;
        host::until("the left-over folder to go", async || (!left_over.exists()).then_some(())).await;
        assert!(folder.join("data/pods").join(&pod.uid.0).exists());
        // One that does not read as a pod can be deleted all the same.
        let mut broken = host::board::pod("broken", "", json!({ "volumes": [{ "name": "v", "nfs": {} }] }));
        board.desire(&broken).await;
        board.until_at(&broken, "/reason", json!("InvalidPod")).await;
        broken.value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        board.desire(&broken).await;
        board.until_removed(&broken).await;
    });
}
