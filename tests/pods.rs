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
        let pause_name = runtime.facts().await.unwrap().sandbox_image.unwrap();
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
        assert!(host::cgroups_below(&host::cgroup_parent()).is_empty());
    });
}
