//! What a cluster has before anything else: its namespaces, its UID, its
//! certificate authority, and the note that tells `holm token` about it.

use serde_json::{Value, json};

use super::authorities::Set;
use super::cluster::{Cluster, ClusterError};
use crate::object::{Key, Object};
use crate::trust::authority::Authority;
use crate::trust::clock::{ClockError, IssueTime};
use crate::trust::names::{ClusterUid, Endpoint};
use crate::trust::publish::{CONFIG_MAP, Published};
use crate::trust::record::{MANAGED_BY, NAMESPACE};
use crate::trust::rotation::{Generation, RotationError};

/// Why the cluster could not be founded.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The API refused or failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The stored authority cannot be used.
    #[error(
        "the certificate authority in Secret {NAMESPACE}/{0} cannot be used: {1}; restore the data directory from a backup"
    )]
    Authority(Generation, String),
    /// What is written of a rotation cannot be read.
    #[error(transparent)]
    Rotation(#[from] RotationError),
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

/// One of the cluster's authorities, made if it is not there, and never
/// overwritten.
pub async fn authority(
    cluster: &Cluster,
    uid: &ClusterUid,
    generation: Generation,
    when: Result<IssueTime, ClockError>,
) -> Result<Authority, FoundError> {
    let secret = ensure(cluster, &authority_key(generation)?, || {
        let authority = Authority::create(uid, when?)
            .map_err(|error| FoundError::Authority(generation, error.to_string()))?;
        let encode = |text: String| data_encoding::BASE64.encode(text.as_bytes());
        Ok(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "immutable": true,
            "metadata": {"labels": {MANAGED_BY.0: MANAGED_BY.1}},
            "data": {"tls.crt": encode(authority.certificate_pem()), "tls.key": encode(authority.key_pem())},
        }))
    })
    .await?;
    parse_authority(&secret, generation)
}

/// One of the cluster's authorities, which must be there.
pub async fn read_authority(cluster: &Cluster, generation: Generation) -> Result<Authority, FoundError> {
    match cluster.get(&authority_key(generation)?).await? {
        Some(secret) => parse_authority(&secret, generation),
        None => Err(FoundError::Authority(generation, "it is not there".into())),
    }
}

fn authority_key(generation: Generation) -> Result<Key, ClusterError> {
    Ok(Key::core("secrets", NAMESPACE, &generation.to_string())?)
}

fn parse_authority(secret: &Object, generation: Generation) -> Result<Authority, FoundError> {
    let unusable = |error: &dyn std::fmt::Display| FoundError::Authority(generation, error.to_string());
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
    uid: &ClusterUid,
    authorities: &Set,
    endpoints: &[Endpoint],
) -> Result<(), FoundError> {
    let published = Published {
        cluster: uid.clone(),
        endpoints: endpoints.to_vec(),
        authorities: authorities.certificates(),
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
