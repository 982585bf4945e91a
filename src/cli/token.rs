//! `holm token create`: makes a join code through the Kubernetes API, wherever that is.
//!
//! The cloud publishes what a code needs in a ConfigMap; the code's record becomes a Secret beside it. So the
//! command works the same against the embedded API and against a real cluster, and needs no connection to
//! the cloud itself.

use crate::trust::clock::{ClockError, Floor, IssueTime};
use crate::trust::code::{CodeError, JoinCode, JoinSecret, SecretId};
use crate::trust::names::NodeName;
use crate::trust::publish::{CONFIG_MAP, Published, PublishedError};
use crate::trust::record::{NAMESPACE, SecretRecord};
use crate::trust::{NoRandomness, UnixTime, unix};
use async_compat::CompatExt;
use kube::client::ClientBuilder;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::Value;
use std::error::Error;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where `holm cloud` keeps its data unless told otherwise.
pub const CLOUD_DATA_DIR: &str = "/var/lib/holm/cloud";
/// The administrator's kubeconfig within the cloud's data directory.
pub const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
/// How long a code is good for unless told otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// A code that is good for longer would be a standing password.
const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const API_TIMEOUT: Duration = Duration::from_secs(10);

/// What `holm token create` was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Bind the code to this node (`--node`).
    pub node: Option<NodeName>,
    /// How long the code is good for (`--ttl`); [`DEFAULT_TTL`] if not given.
    pub ttl: Option<Duration>,
    /// The kubeconfig to use (`--kubeconfig`).
    pub kubeconfig: Option<PathBuf>,
    /// The cloud's data directory (`--data-dir`), whose kubeconfig is used.
    pub data_dir: Option<PathBuf>,
}

/// Why no code was made. Each is one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nowhere to find the API.
    #[error("no kubeconfig at {}: run this where holm cloud runs, or give one with --kubeconfig FILE", .0.display())]
    NoKubeconfig(PathBuf),
    /// A kubeconfig of somebody else's.
    #[error("{} is not readable for this user: run this as root, or give another with --kubeconfig FILE", .0.display())]
    NotPermitted(PathBuf),
    /// A kubeconfig that says nothing usable.
    #[error("the kubeconfig {file} cannot be used ({why}): give another with --kubeconfig FILE")]
    Kubeconfig {
        /// The file or files.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// No answer, or none of a Kubernetes API.
    #[error("the Kubernetes API at {url} cannot be reached ({why}): is holm cloud, or the cluster, running?")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// The innermost cause.
        why: String,
    },
    /// An API without this program's cloud behind it.
    #[error(
        "the cluster at {0} is not one of holm cloud's (it has no ConfigMap {NAMESPACE}/{CONFIG_MAP}): start holm cloud for it, or give another with --kubeconfig FILE"
    )]
    NotACloud(String),
    /// The API said no.
    #[error("the Kubernetes API refuses to {action} ({why}): use an administrator's kubeconfig")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// What it said.
        why: String,
    },
    /// The API failed.
    #[error("the Kubernetes API failed to {action} ({why}): try again, and read holm cloud's log")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What it said.
        why: String,
    },
    /// The ConfigMap lacks something.
    #[error(transparent)]
    Published(#[from] PublishedError),
    /// This machine's clock would make codes that have expired.
    #[error("this machine's clock is wrong, so that no expiry can be given to a code: set it ({0})")]
    Clock(#[from] ClockError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The code cannot be written.
    #[error(transparent)]
    Code(#[from] CodeError),
}

/// A text is not a time to live.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time to live: write it as 30m, 24h or 7d, at most 366d")]
pub struct TtlError(String);

/// Makes a join code: reads what the cloud publishes, stores the code's record, and returns the code.
///
/// # Errors
/// No kubeconfig, no API, no cloud behind it, or no permission.
pub async fn create(options: &Options) -> Result<String, TokenError> {
    let files = kubeconfig_files(options, std::env::var_os("KUBECONFIG").as_deref());
    async {
        let api = Api::connect(&files).await?;
        let published = Published::from_config_map(&api.read_config_map().await?)?;
        let ttl = options.ttl.unwrap_or(DEFAULT_TTL);
        let (code, record) = new_code(published, options.node.clone(), ttl, UnixTime::now())?;
        // The text first: a code that cannot be written leaves no record behind.
        let text = code.to_text()?;
        api.create_secret(&record.to_secret(&code.id)).await?;
        Ok(text)
    }
    .compat()
    .await
}

/// Reads a time to live: a whole number of minutes, hours or days (`30m`, `24h`, `7d`), at most 366 days.
///
/// # Errors
/// Anything else, zero included.
pub fn parse_ttl(text: &str) -> Result<Duration, TtlError> {
    let seconds = |number: &str, unit: u64| number.parse::<u64>().ok()?.checked_mul(unit);
    let given = match text.split_at_checked(text.len().saturating_sub(1)) {
        // A sign is what u64 reads and a person does not mean.
        Some((number, _)) if number.starts_with('+') => None,
        Some((number, "m")) => seconds(number, 60),
        Some((number, "h")) => seconds(number, 60 * 60),
        Some((number, "d")) => seconds(number, 24 * 60 * 60),
        _ => None,
    };
    given
        .map(Duration::from_secs)
        .filter(|ttl| !ttl.is_zero() && *ttl <= TTL_MAX)
        .ok_or_else(|| TtlError(text.chars().take(40).collect()))
}

/// A new code, and the record of it that the cloud is to keep.
///
/// # Errors
/// This machine's clock is behind, or there are no random bytes.
pub fn new_code(
    published: Published,
    node: Option<NodeName>,
    ttl: Duration,
    now: UnixTime,
) -> Result<(JoinCode, SecretRecord), TokenError> {
    let now = IssueTime::check(now, Floor::INITIAL)?.time();
    let expires = unix(now.as_secs().saturating_add(ttl.as_secs()));
    let secret = JoinSecret::random()?;
    let record = SecretRecord { hash: secret.hash(), expires, node: node.clone(), used: None };
    let code = JoinCode {
        pins: published.pins()?,
        endpoints: published.endpoints,
        cluster: published.cluster,
        id: SecretId::random()?,
        secret,
        expires,
        node,
    };
    Ok((code, record))
}

/// The kubeconfigs to merge. What was typed comes before the environment, and that before the usual place.
pub(super) fn kubeconfig_files(options: &Options, environment: Option<&OsStr>) -> Vec<PathBuf> {
    if let Some(file) = &options.kubeconfig {
        return vec![file.clone()];
    }
    if let Some(data_dir) = &options.data_dir {
        return vec![data_dir.join(ADMIN_KUBECONFIG)];
    }
    let listed = environment.map(std::env::split_paths).into_iter().flatten();
    let listed: Vec<PathBuf> = listed.filter(|file| !file.as_os_str().is_empty()).collect();
    if listed.is_empty() { vec![Path::new(CLOUD_DATA_DIR).join(ADMIN_KUBECONFIG)] } else { listed }
}

fn read_kubeconfigs(files: &[PathBuf]) -> Result<Kubeconfig, TokenError> {
    files.iter().try_fold(Kubeconfig::default(), |merged, file| {
        let next = Kubeconfig::read_from(file).map_err(|error| match &error {
            KubeconfigError::ReadConfig(io, _) if io.kind() == ErrorKind::NotFound => {
                TokenError::NoKubeconfig(file.clone())
            }
            KubeconfigError::ReadConfig(io, _) if io.kind() == ErrorKind::PermissionDenied => {
                TokenError::NotPermitted(file.clone())
            }
            _ => unusable(std::slice::from_ref(file), &error),
        })?;
        merged.merge(next).map_err(|error| unusable(std::slice::from_ref(file), &error))
    })
}

fn unusable(files: &[PathBuf], error: &KubeconfigError) -> TokenError {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    TokenError::Kubeconfig { file: names.join(", "), why: innermost(error) }
}

/// The Kubernetes API; its methods need tokio's context.
pub(super) struct Api {
    pub(super) client: kube::Client,
    pub(super) url: String,
}

impl Api {
    pub(super) async fn connect(files: &[PathBuf]) -> Result<Api, TokenError> {
        let kubeconfig = read_kubeconfigs(files)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| unusable(files, &error))?;
        config.connect_timeout = Some(API_TIMEOUT);
        config.read_timeout = Some(API_TIMEOUT);
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        match ClientBuilder::try_from(config) {
            Ok(builder) => Ok(Api { client: builder.build(), url }),
            Err(error) => Err(explain(error, "take this kubeconfig", &url)),
        }
    }

    pub(super) async fn read_config_map(&self) -> Result<Value, TokenError> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{CONFIG_MAP}");
        let answer = self.client.request(request("GET", &path, Vec::new())?).await;
        answer.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 => TokenError::NotACloud(self.url.clone()),
            other => explain(other, "read the cloud's ConfigMap", &self.url),
        })
    }

    async fn create_secret(&self, secret: &Value) -> Result<(), TokenError> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
        let answer = self.client.request_text(request("POST", &path, secret.to_string().into_bytes())?).await;
        answer.map(drop).map_err(|error| explain(error, "store the join secret", &self.url))
    }
}

pub(super) fn request(method: &str, path: &str, body: Vec<u8>) -> Result<http::Request<Vec<u8>>, TokenError> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| TokenError::Failed { action: "take a request", why: error.to_string() })
}

pub(super) fn explain(error: kube::Error, action: &'static str, url: &str) -> TokenError {
    match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
            TokenError::Refused { action, why: first_line(&status.message) }
        }
        kube::Error::Api(status) => {
            TokenError::Failed { action, why: format!("{}: {}", status.code, first_line(&status.message)) }
        }
        other => TokenError::Unreachable { url: url.to_owned(), why: innermost(&other) },
    }
}

/// The innermost cause, in one line: the outer ones only say that something inside failed.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(inner) = deepest.source() {
        deepest = inner;
    }
    first_line(&deepest.to_string())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
