//! Pods on a real containerd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod host;

use holm::cri::{Code, Runtime, image::Image, pause, v1};
use host::containerd::Containerd;
use std::sync::Arc;
use std::time::Duration;

/// An image of one static busybox, from the tests' programs or from the machine.
fn busybox(bin: &std::path::Path) -> Result<Image, String> {
    let places = [bin.join("busybox"), "/bin/busybox".into()];
    let program = places.iter().find_map(|p| std::fs::read(p).ok());
    let program = program.ok_or("a static busybox")?;
    Ok(Image::of_program(pause::Arch::own().unwrap(), "/bin/busybox", &program))
}

#[test]
fn the_runtime_answers_every_call() {
    const TEST: &str = "the_runtime_answers_every_call";
    let folder = host::scratch("cri-calls");
    let mut containerd = match Containerd::start(&folder) {
        Ok(containerd) => containerd,
        Err(why) => return host::skipped(TEST, &why),
    };
    let image = match busybox(containerd.bin()) {
        Ok(image) => image,
        Err(why) => return host::skipped(TEST, &why),
    };
    let executor = Arc::new(smol::Executor::new());
    let runtime = Runtime::new(executor.clone(), &containerd.endpoint()).unwrap();
    smol::block_on(executor.run(async {
        let version = host::until("CRI", async || runtime.version().await.ok()).await;
        assert_eq!(version.runtime_name, "containerd");
        let status = runtime.status().await.unwrap();
        let conditions = status.status.unwrap().conditions;
        assert!(conditions.iter().any(|c| c.r#type == "RuntimeReady" && c.status));

        let pause_image = pause::image(pause::Arch::own().unwrap());
        let pause_name = runtime.sandbox_image().await.unwrap().unwrap();
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
    }));
    drop(containerd);
    std::fs::remove_dir_all(&folder).unwrap();
}
