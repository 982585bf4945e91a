//! Images: credentials to pull with, and the sandbox image that Holm brings along.

use super::env::{self, Lookup};
use super::view::Pod;
use crate::cri::{self, pause, v1::AuthConfig};
use serde_json::Value;

/// The registry host of an image name, as credentials name it.
pub fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The credentials in a pod's `imagePullSecrets` for the registry of `image`, in order.
pub fn credentials(pod: &Pod, image: &str, lookup: &dyn Lookup) -> Vec<AuthConfig> {
    let host = registry(image);
    let mut out = Vec::new();
    for named in &pod.spec.image_pull_secrets {
        let key = env::key("secrets", &pod.metadata.namespace, &named.name);
        let Some(secret) = lookup.get(&key) else { continue };
        let data = env::data(&secret);
        let auths = data.get(".dockerconfigjson").and_then(|b| {
            let config: Value = serde_json::from_slice(b).ok()?;
            config.get("auths").cloned()
        });
        let auths = auths.or_else(|| serde_json::from_slice(data.get(".dockercfg")?).ok());
        let Some(Value::Object(auths)) = auths else { continue };
        for (server, auth) in auths {
            if is_for(&server, host) {
                let text = |key: &str| auth.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                out.push(AuthConfig {
                    username: text("username"),
                    password: text("password"),
                    auth: text("auth"),
                    server_address: server,
                    identity_token: text("identitytoken"),
                    registry_token: text("registrytoken"),
                });
            }
        }
    }
    out
}

/// Credentials name a server as `host`, `https://host/v1/` and the like.
fn is_for(server: &str, host: &str) -> bool {
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or_default();
    bare == host || host == "docker.io" && bare == "index.docker.io"
}

/// A registry's own refusal: then an older copy on the board must not be run instead.
pub fn is_refusal(message: &str) -> bool {
    let message = message.to_lowercase();
    let words =
        ["unauthorized", "forbidden", "denied", "authorization failed", "not found", "invalid reference"];
    words.iter().any(|w| message.contains(w))
}

/// Sees to it that the runtime has its sandbox image: Holm's own under that name, where it has
/// none.
///
/// # Errors
/// [`cri::Error`].
pub async fn ensure_pause(runtime: &cri::Runtime, name: &str) -> Result<(), cri::Error> {
    if runtime.image_status(name).await?.is_some() {
        return Ok(());
    }
    let Some(arch) = pause::Arch::own() else { return Ok(()) };
    runtime.import_image(name, &pause::image(arch)).await?;
    log::info!("imported Holm's sandbox image as {name}");
    Ok(())
}

/// The sandbox image that a runtime says it could not get: containerd 2 tells its name nowhere
/// else (`failed to get sandbox image "…"`).
pub fn missing_pause(message: &str) -> Option<&str> {
    let (_, after) = message.split_once("failed to get sandbox image \"")?;
    let (name, _) = after.split_once('"')?;
    Some(name).filter(|n| !n.is_empty() && n.len() < 256)
}

#[cfg(test)]
mod tests {
    use super::super::env::tests::Objects;
    use super::super::view::tests::object;
    use super::*;
    use serde_json::json;

    #[test]
    fn credentials_are_those_of_the_images_registry() {
        let config = json!({ "auths": { "https://index.docker.io/v1/": { "auth": "aaa" },
                                        "reg.example:5000": { "username": "u", "password": "p" } } });
        let config = data_encoding::BASE64.encode(config.to_string().as_bytes());
        let objects =
            Objects::default().with("secrets", "s", json!({ "data": { ".dockerconfigjson": config } }));
        let spec = json!({ "containers": [{ "name": "c", "image": "i" }],
                           "imagePullSecrets": [{ "name": "gone" }, { "name": "s" }] });
        let pod = Pod::of(&object("p", spec)).unwrap();
        let of = |image: &str| credentials(&pod, image, &objects);
        assert_eq!(of("reg.example:5000/a:1")[0].username, "u");
        assert_eq!(of("library/a")[0].auth, "aaa");
        assert_eq!(of("a")[0].auth, "aaa");
        assert!(of("other.example/a").is_empty());
    }

    #[test]
    fn the_missing_sandbox_image_is_named_by_the_runtime() {
        let message = "failed to start sandbox \"39ec\": failed to get sandbox image \
                       \"registry.k8s.io/pause:3.10\": failed to pull image: no route to host";
        assert_eq!(missing_pause(message), Some("registry.k8s.io/pause:3.10"));
        assert_eq!(missing_pause("failed to setup network"), None);
    }

    #[test]
    fn only_a_registrys_answer_is_a_refusal() {
        assert!(is_refusal("pull access denied, repository does not exist"));
        assert!(is_refusal("unexpected status: 401 Unauthorized"));
        assert!(!is_refusal("dial tcp: lookup registry: no such host"));
        assert!(!is_refusal("dial tcp 192.0.2.1:443: i/o timeout"));
    }
}
