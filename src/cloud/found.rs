//! What a cluster has before anything else: its namespaces, its UID, its
//! certificate authority, and the note that tells `holm token` about it.

use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError};
use crate::object::{Key, Object};
use crate::trust::authority::Authority;
use crate::trust::clock::{ClockError, IssueTime};
use crate::trust::names::{ClusterUid, Endpoint};
use crate::trust::publish::{CONFIG_MAP, Published};
use crate::trust::record::{MANAGED_BY, NAMESPACE};

/// The Secret that holds the authority.
const AUTHORITY: &str = "holm-ca";

/// Why the cluster could not be founded.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The API refused or failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The stored authority cannot be used.
    #[error(
        "the certificate authority in Secret {NAMESPACE}/{AUTHORITY} cannot be used: {0}; restore the data directory from a backup"
    )]
    Authority(String),
    /// The authority is to be made by a clock that is wrong.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The cluster has no usable UID.
    #[error("the namespace kube-system has no usable uid: {0}")]
    Uid(String),
}

/// Gives the object, making it first if need be. Of two that make it at once
/// one wins, and both get the same.
async fn ensure(
    cluster: &Cluster,
    key: &Key,
    make: impl FnOnce() -> Result<Value, FoundError>,
) -> Result<std::sync::Arc<Object>, FoundError> {
    if let Some(object) = cluster.get(key).await? {
        return Ok(object);
    }
    match cluster.create(key, make()?).await {
        Err(ClusterError::Exists(_)) => {
            cluster.get(key).await?.ok_or_else(|| ClusterError::Missing(key.clone()).into())
        }
        outcome => Ok(outcome?),
    }
}

/// Makes the namespaces that every cluster has and ours. The cluster's UID is
/// that of `kube-system`, as is the custom.
pub async fn namespaces(cluster: &Cluster) -> Result<ClusterUid, FoundError> {
    let mut uid = String::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease", NAMESPACE] {
        let key = Key::core("namespaces", "", name).map_err(ClusterError::from)?;
        let namespace = ensure(cluster, &key, || {
            Ok(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            }))
        })
        .await?;
        if name == "kube-system" {
            uid = namespace.uid.0.clone();
        }
    }
    uid.parse().map_err(|error| FoundError::Uid(format!("{error}")))
}

/// The cluster's authority, made at the first start and never overwritten.
pub async fn authority(
    cluster: &Cluster,
    uid: &ClusterUid,
    when: Result<IssueTime, ClockError>,
) -> Result<Authority, FoundError> {
    let unusable = |error: &dyn std::fmt::Display| FoundError::Authority(error.to_string());
    let key = Key::core("secrets", NAMESPACE, AUTHORITY).map_err(ClusterError::from)?;
    let secret = ensure(cluster, &key, || {
        let authority = Authority::create(uid, when?).map_err(|error| unusable(&error))?;
        let encode = |text: String| data_encoding::BASE64.encode(text.as_bytes());
        Ok(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "immutable": true,
            "metadata": {"labels": {MANAGED_BY.0: MANAGED_BY.1}},
            "data": {"tls.crt": encode(authority.certificate_pem()), "tls.key": encode(authority.key_pem())},
        }))
    })
    .await?;
    let part = |name: &str| -> Result<String, FoundError> {
        let text = secret.value.get("data").and_then(|data| data.get(name)).and_then(Value::as_str);
        let bytes = data_encoding::BASE64
            .decode(text.unwrap_or_default().as_bytes())
            .map_err(|error| unusable(&format!("{name}: {error}")))?;
        String::from_utf8(bytes).map_err(|error| unusable(&format!("{name}: {error}")))
    };
    Authority::from_pem(&part("tls.crt")?, &part("tls.key")?).map_err(|error| unusable(&error))
}

/// Writes down, for `holm token`, where the cloud is and whom to trust.
pub async fn publish(
    cluster: &Cluster,
    authority: &Authority,
    endpoints: &[Endpoint],
) -> Result<(), FoundError> {
    let published = Published {
        cluster: authority.cluster_uid().clone(),
        endpoints: endpoints.to_vec(),
        authorities: vec![authority.certificate().clone()],
    };
    let wanted = published.to_config_map();
    let key = Key::core("configmaps", NAMESPACE, CONFIG_MAP).map_err(ClusterError::from)?;
    let known = ensure(cluster, &key, || Ok(wanted.clone())).await?;
    let mut value = known.value.clone();
    if let (Some(object), Some(data)) = (value.as_object_mut(), wanted.get("data")) {
        object.insert("data".into(), data.clone());
    }
    // An equal value is not written again.
    cluster.update(&known, value).await?;
    Ok(())
}
