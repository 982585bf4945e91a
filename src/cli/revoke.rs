//! `holm revoke`: locks a board out, through the Kubernetes API, wherever that is.
//!
//! It makes a ConfigMap in `holm-system` that every cloud follows: a session that it is about ends at once.

use crate::cli::token::{self, Api, TokenError, kubeconfig_files};
use crate::trust::names::NodeName;
use crate::trust::record::NAMESPACE;
use crate::trust::revocation::{Revocation, Subject};
use crate::trust::{UnixTime, publish::Published};
use async_compat::CompatExt;
use serde_json::Value;
use std::path::PathBuf;

/// What `holm revoke` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What is revoked.
    pub subject: Subject,
    /// Why (`--reason`), for those who read the Node.
    pub reason: String,
    /// The kubeconfig to use (`--kubeconfig`).
    pub kubeconfig: Option<PathBuf>,
    /// The cloud's data directory (`--data-dir`), whose kubeconfig is used.
    pub data_dir: Option<PathBuf>,
}

/// Tries of a change that others keep overtaking.
const TRIES: usize = 8;

/// Revokes; gives the lines to print.
///
/// # Errors
/// No kubeconfig, no API, no cloud behind it, or no permission.
pub async fn revoke(options: &Options) -> Result<String, TokenError> {
    let at = token::Options {
        kubeconfig: options.kubeconfig.clone(),
        data_dir: options.data_dir.clone(),
        ..token::Options::default()
    };
    let files = kubeconfig_files(&at, std::env::var_os("KUBECONFIG").as_deref());
    let revocation = Revocation::new(options.subject.clone(), UnixTime::now(), &options.reason);
    async {
        let api = Api::connect(&files).await?;
        // An API without a cloud behind it would keep this and do nothing.
        Published::from_config_map(&api.read_config_map().await?)?;
        let is_known = match &options.subject {
            Subject::Node(node) => {
                api.get(&format!("/api/v1/nodes/{node}"), "look for the node").await?.is_some()
            }
            _ => true,
        };
        write(&api, &revocation).await?;
        Ok(said(&revocation, is_known))
    }
    .compat()
    .await
}

/// Makes the ConfigMap. One of an earlier revocation is made new: keys that
/// were let in after it are out again.
async fn write(api: &Api, revocation: &Revocation) -> Result<(), TokenError> {
    const ACTION: &str = "store the revocation";
    let all = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let one = format!("{all}/{}", revocation.name());
    for _ in 0..TRIES {
        let is_done = match api.get(&one, ACTION).await? {
            None => api.write("POST", &all, &revocation.to_config_map(), ACTION).await?,
            Some(mut known) => {
                revocation.write_to(&mut known);
                api.write("PUT", &one, &known, ACTION).await?
            }
        };
        if is_done {
            return Ok(());
        }
    }
    Err(TokenError::Failed { action: ACTION, why: "it keeps changing".into() })
}

fn said(revocation: &Revocation, is_known: bool) -> String {
    let take_back = format!("kubectl -n {NAMESPACE} delete configmap {}", revocation.name());
    let subject = &revocation.subject;
    let mut text = format!("{subject} is revoked; this takes it back: {take_back}\n");
    if let Subject::Node(node) = subject {
        text += &match is_known {
            true => {
                format!("a new board takes its place with a code from: holm token create --node {node}\n")
            }
            false => format!("the cluster has no node {node} now: nobody can be it without a new code\n"),
        };
    }
    text
}

/// What is to be revoked, from what was typed: a node, or one of the flags.
///
/// # Errors
/// What is wrong, for a person.
pub(super) fn subject(
    node: Option<&str>,
    key: Option<&str>,
    serial: Option<&str>,
) -> Result<Subject, String> {
    match (node, key, serial) {
        (Some(node), None, None) => {
            node.parse::<NodeName>().map(Subject::Node).map_err(|error| error.to_string())
        }
        (None, Some(key), None) => key.parse().map(Subject::Key).map_err(|error| format!("--key: {error}")),
        (None, None, Some(serial)) => Subject::serial(serial).map_err(|error| format!("--serial: {error}")),
        _ => Err("name one thing to revoke: holm revoke NODE, or --key, or --serial".into()),
    }
}

impl Api {
    /// An object; `None` if there is none.
    pub(super) async fn get(&self, path: &str, action: &'static str) -> Result<Option<Value>, TokenError> {
        match self.client.request(token::request("GET", path, Vec::new())?).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(token::explain(error, action, &self.url)),
        }
    }

    /// Makes or replaces an object; false if it changed in between.
    pub(super) async fn write(
        &self,
        method: &str,
        path: &str,
        object: &Value,
        action: &'static str,
    ) -> Result<bool, TokenError> {
        let request = token::request(method, path, object.to_string().into_bytes())?;
        match self.client.request_text(request).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(token::explain(error, action, &self.url)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_revoked_at_a_time() {
        let key = "0".repeat(64);
        assert!(matches!(subject(Some("pi"), None, None), Ok(Subject::Node(_))));
        assert!(matches!(subject(None, None, Some("0A:FF")), Ok(Subject::Serial(_))));
        for (node, key, serial) in [
            (None, None, None),
            (Some("pi"), Some(key.as_str()), None),
            (Some("-"), None, None),
            (None, Some("x"), None),
            (None, None, Some("x")),
        ] {
            let line = subject(node, key, serial).unwrap_err();
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
