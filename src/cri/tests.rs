//! The client against sockets that are absent, mute, or something else.
//! Against a real containerd: `tests/pods.rs`.

use super::*;

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("holm-cri-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Asks for the version of what `serve` makes of one connection.
fn version_of(name: &str, serve: impl AsyncFnOnce(smol::net::unix::UnixStream) + 'static) -> Error {
    let folder = folder(name);
    let path = folder.join("s.sock");
    let executor = Arc::new(smol::Executor::new());
    let runtime = Runtime::new(executor.clone(), path.to_str().unwrap()).unwrap();
    let listener = smol::net::unix::UnixListener::bind(&path).unwrap();
    let error = smol::block_on(executor.run(async {
        let server = async {
            let (socket, _) = listener.accept().await.unwrap();
            serve(socket).await;
            smol::future::pending::<Result<VersionResponse, Error>>().await
        };
        smol::future::or(runtime.version(), server).await.unwrap_err()
    }));
    std::fs::remove_dir_all(&folder).unwrap();
    error
}

#[test]
fn an_absent_socket_is_named_with_the_remedy() {
    let folder = folder("absent");
    let path = folder.join("none.sock");
    let executor = Arc::new(smol::Executor::new());
    let runtime = Runtime::new(executor.clone(), path.to_str().unwrap()).unwrap();
    let error = smol::block_on(executor.run(runtime.version())).unwrap_err();
    assert!(error.is_away());
    let line = error.to_string();
    assert!(line.contains("none.sock") && line.contains("--runtime-endpoint"), "{line}");
    assert!(!line.contains('\n'));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_socket_that_speaks_something_else_is_named() {
    use smol::io::AsyncWriteExt as _;
    let error = version_of("http", async |mut socket| {
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    assert!(matches!(error, Error::NotGrpc { .. }), "{error:?}");
    assert!(error.to_string().contains("http"), "{error}");
}

#[test]
fn a_socket_that_closes_is_away() {
    let error = version_of("closes", async |socket| drop(socket));
    assert!(error.is_away(), "{error:?}");
}

#[test]
fn a_grpc_server_without_cri_is_named() {
    let error = version_of("nocri", async |socket| {
        use tokio_util::compat::FuturesAsyncReadCompatExt as _;
        let mut connection = h2::server::handshake(socket.compat()).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "12")
                .header("grpc-message", "unknown service runtime.v1.RuntimeService")
                .body(())
                .unwrap();
            respond.send_response(head, true).unwrap();
        }
    });
    assert!(matches!(error, Error::NoCri { .. }), "{error:?}");
    assert!(error.to_string().contains("runtime.v1"), "{error}");
}

#[test]
fn settings_are_read_as_containerd_gives_them() {
    let config = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"options":
        {"SystemdCgroup":true}}}},"sandboxImage":"registry.k8s.io/pause:3.6"}"#;
    let facts = Facts::of(config);
    assert_eq!(facts.sandbox_image.as_deref(), Some("registry.k8s.io/pause:3.6"));
    assert!(facts.systemd_cgroup);
    for other in ["", "{}", "[]", r#"{"sandboxImage":""}"#, r#"{"containerd":{"runtimes":null}}"#] {
        assert_eq!(Facts::of(other), Facts::default(), "{other}");
    }
}
