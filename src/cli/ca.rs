//! `holm ca`: how the cluster's certificate authority is, and its rotation, through the Kubernetes API, wherever
//! that is. The key of the new authority is made by the cloud and never leaves it.

use crate::cli::token::{self, Api, TokenError, kubeconfig_files};
use crate::trust::certificate::Facts;
use crate::trust::names::Fingerprint;
use crate::trust::publish::Published;
use crate::trust::record::{MANAGED_BY, NAMESPACE, rfc3339};
use crate::trust::rotation::{
    Asked, Decision, Generation, NAME, NodeTrust, Patience, Phase, Rotation, RotationError, decide,
};
use crate::trust::{UnixTime, unix};
use async_compat::CompatExt;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// Where the command looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The kubeconfig to use (`--kubeconfig`).
    pub kubeconfig: Option<PathBuf>,
    /// The cloud's data directory (`--data-dir`), whose kubeconfig is used.
    pub data_dir: Option<PathBuf>,
}

/// Why nothing was done. Each is one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The API cannot be used.
    #[error(transparent)]
    Api(#[from] TokenError),
    /// What is written of a rotation cannot be read.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// One at a time.
    #[error(
        "the authority is being rotated already ({0}): see holm ca status, or go on without waiting with --force"
    )]
    UnderWay(String),
}

/// Tries of a change that others keep overtaking.
const TRIES: usize = 8;
/// Names of nodes that are listed.
const LISTED: usize = 20;
const STORE: &str = "store the state of the rotation";

/// What there is to see.
struct View {
    rotation: Rotation,
    /// Its ConfigMap, if there is one.
    object: Option<Value>,
    published: Published,
}

/// Tells how the authority is; gives the lines to print.
///
/// # Errors
/// No kubeconfig, no API, no cloud behind it, or no permission.
pub async fn status(options: &Options) -> Result<String, CaError> {
    async {
        let api = connect(options).await?;
        let view = read(&api).await?;
        let nodes = api.get("/api/v1/nodes", "list the nodes").await?.unwrap_or_default();
        let items = nodes.get("items").and_then(Value::as_array);
        let ours = items.into_iter().flatten().filter(|node| is_ours(node));
        Ok(told(&view, &ours.map(NodeTrust::of).collect::<Vec<_>>(), UnixTime::now()))
    }
    .compat()
    .await
}

/// Asks for a new authority, or, with `force`, that the present phase of a rotation waits for nobody; gives the
/// lines to print.
///
/// # Errors
/// As for [`status`]; or a rotation is under way and is not to be forced.
pub async fn rotate(options: &Options, force: bool) -> Result<String, CaError> {
    async {
        let api = connect(options).await?;
        for _ in 0..TRIES {
            let view = read(&api).await?;
            let asked = match (view.rotation.phase, view.rotation.asked, force) {
                (Phase::Steady, ..) => Asked::Rotate,
                (_, _, true) => Asked::Force,
                (phase, _, false) => return Err(CaError::UnderWay(named(phase).into())),
            };
            let rotation = Rotation { asked: Some(asked), ..view.rotation };
            let all = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
            let is_done = match view.object {
                None => api.write("POST", &all, &rotation.to_config_map(), STORE).await?,
                Some(mut known) => {
                    rotation.write_to(&mut known);
                    api.write("PUT", &format!("{all}/{NAME}"), &known, STORE).await?
                }
            };
            if is_done {
                return Ok(match asked {
                    Asked::Rotate => BEGUN.into(),
                    Asked::Force => {
                        format!("{}: it waits for nobody; see holm ca status\n", named(rotation.phase))
                    }
                });
            }
        }
        Err(TokenError::Failed { action: STORE, why: "it keeps changing".into() }.into())
    }
    .compat()
    .await
}

const BEGUN: &str = "a new authority is being made; boards learn of it, then renew, without a visit: holm ca status\n\
join codes and copies of the admin kubeconfig made before now end with the old authority: make new ones\n";

async fn connect(options: &Options) -> Result<Api, TokenError> {
    let at = token::Options {
        kubeconfig: options.kubeconfig.clone(),
        data_dir: options.data_dir.clone(),
        ..token::Options::default()
    };
    Api::connect(&kubeconfig_files(&at, std::env::var_os("KUBECONFIG").as_deref())).await
}

async fn read(api: &Api) -> Result<View, CaError> {
    // An API without a cloud behind it would keep what is asked and do nothing.
    let published = Published::from_config_map(&api.read_config_map().await?).map_err(TokenError::from)?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}");
    let object = api.get(&path, "read the state of the rotation").await?;
    let rotation = object.as_ref().map(Rotation::from_config_map).transpose()?;
    let rotation = rotation.unwrap_or_else(|| Rotation::steady(Generation::FIRST));
    Ok(View { rotation, object, published })
}

fn is_ours(node: &Value) -> bool {
    let (label, value) = MANAGED_BY;
    let labels = node.get("metadata").and_then(|meta| meta.get("labels"));
    labels.and_then(|labels| labels.get(label)).and_then(Value::as_str) == Some(value)
}

fn named(phase: Phase) -> &'static str {
    match phase {
        Phase::Steady => "Steady",
        Phase::Announcing => "Announcing",
        Phase::Renewing => "Renewing",
    }
}

fn told(view: &View, nodes: &[NodeTrust], now: UnixTime) -> String {
    let View { rotation, published, .. } = view;
    let facts: Vec<Facts> =
        published.authorities.iter().filter_map(|certificate| Facts::read(certificate).ok()).collect();
    // The one that issues is published first.
    let key = |index: usize| facts.get(index).map(|facts| facts.key);
    let line = |role: &str, generation: Generation, index: usize| match facts.get(index) {
        Some(facts) => {
            format!("{role:<10} {generation}  {}  until {}\n", facts.key, rfc3339(facts.not_after))
        }
        None => format!("{role:<10} {generation}  not published yet\n"),
    };
    let since = match rotation.phase {
        Phase::Steady => String::new(),
        _ => format!(" since {}", rfc3339(rotation.since)),
    };
    let mut text = format!("{:<10} {}{since}\n", "phase", named(rotation.phase));
    text += &line("issuing", rotation.issuing, 0);
    let (role, what) = match rotation.phase {
        Phase::Announcing => ("successor", "have not said that they trust the successor"),
        _ => ("former", "have no certificate of the new authority"),
    };
    if let Some(other) = rotation.other {
        text += &line(role, other, 1);
        // How long certificates live is the cloud's to know; who is waited for does not depend on it.
        let patience = Patience::new(Duration::MAX);
        let issuing = key(0).unwrap_or(Fingerprint::from_bytes([0; 32]));
        let unforced = Rotation { asked: None, ..rotation.clone() };
        let other = Some(key(1).unwrap_or(Fingerprint::from_bytes([0; 32])));
        let (waiting, until) = match decide(&unforced, other, issuing, nodes, now, &patience) {
            Decision::Wait { nodes, until } => (nodes, until),
            Decision::Become(_) => (Vec::new(), unix(0)),
        };
        if !waiting.is_empty() {
            let mut listed = waiting.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
            if waiting.len() > LISTED {
                listed += ", …";
            }
            text +=
                &format!("{:<10} {} of {} nodes {what}: {listed}\n", "waiting", waiting.len(), nodes.len());
            text += &format!("{:<10} holm ca rotate --force goes on without them\n", "");
        } else if until > now {
            text += &format!("{:<10} until {}, so that all have heard\n", "waiting", rfc3339(until));
        }
    }
    match rotation.asked {
        Some(_) => text += &format!("{:<10} asked of the cloud, which has not done it yet\n", "next"),
        None if rotation.phase == Phase::Steady => {
            text += &format!("{:<10} holm ca rotate makes a new one\n", "next");
        }
        None => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::authority::Authority;
    use crate::trust::clock::{BUILD_TIME, Floor, IssueTime};
    use crate::trust::names::ClusterUid;

    #[test]
    fn it_says_who_is_waited_for_and_what_can_be_done() {
        let when = IssueTime::check(BUILD_TIME, Floor::INITIAL).unwrap();
        let uid = ClusterUid::random().unwrap();
        let (old, new) = (Authority::create(&uid, when).unwrap(), Authority::create(&uid, when).unwrap());
        let mut view = View {
            rotation: Rotation::steady(Generation::FIRST),
            object: None,
            published: Published {
                cluster: uid,
                endpoints: vec!["cloud.example.com".parse().unwrap()],
                authorities: vec![old.certificate().clone()],
            },
        };
        let node = |name: &str, trusts| NodeTrust {
            name: name.into(),
            seen: BUILD_TIME,
            trusts,
            certified_by: None,
        };
        let nodes = [node("barn", vec![]), node("mill", vec![new.fingerprint()])];
        let steady = told(&view, &nodes, BUILD_TIME);
        assert!(steady.contains("Steady") && steady.contains(&old.fingerprint().to_string()), "{steady}");
        assert!(steady.contains("holm ca rotate"), "{steady}");

        view.published.authorities.push(new.certificate().clone());
        view.rotation.phase = Phase::Announcing;
        view.rotation.other = Some(Generation::FIRST.next());
        let announcing = told(&view, &nodes, BUILD_TIME);
        assert!(announcing.contains("1 of 2 nodes have not said"), "{announcing}");
        assert!(announcing.contains("successor: barn\n") && announcing.contains("holm-ca-2"), "{announcing}");
        assert!(announcing.contains("--force"), "{announcing}");
    }
}
