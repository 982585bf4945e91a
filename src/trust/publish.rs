//! What the cloud publishes of itself for those who make join codes: the ConfigMap `holm-system/holm-cloud`.

use super::CertificateDer;
use super::certificate::{self, Facts};
use super::names::{ClusterUid, Endpoint, Fingerprint};
use super::record::{MANAGED_BY, NAMESPACE};
use serde_json::{Value, json};

/// The name of the ConfigMap.
pub const CONFIG_MAP: &str = "holm-cloud";

mod field {
    pub(super) const CLUSTER: &str = "clusterUID";
    pub(super) const ENDPOINTS: &str = "endpoints";
    pub(super) const AUTHORITIES: &str = "ca.crt";
}

/// A cloud as boards are to find and recognise it. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The cluster.
    pub cluster: ClusterUid,
    /// Where the hub listens, as boards reach it.
    pub endpoints: Vec<Endpoint>,
    /// The certificate authorities: one, and its successor during a rotation.
    pub authorities: Vec<CertificateDer<'static>>,
}

impl Published {
    /// The whole ConfigMap.
    pub fn to_config_map(&self) -> Value {
        let (label, value) = MANAGED_BY;
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": CONFIG_MAP, "namespace": NAMESPACE, "labels": { label: value } },
            "data": {
                field::CLUSTER: self.cluster.as_str(),
                field::ENDPOINTS: endpoints.join(","),
                field::AUTHORITIES: certificate::to_pem(&self.authorities),
            },
        })
    }

    /// Reads the ConfigMap.
    ///
    /// # Errors
    /// A key that is missing or wrong.
    pub fn from_config_map(config_map: &Value) -> Result<Published, PublishedError> {
        let text = |key| {
            let value = config_map.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
            value.ok_or(PublishedError(key))
        };
        let endpoints = text(field::ENDPOINTS)?.split(',').map(|endpoint| endpoint.trim().parse());
        let endpoints: Result<_, _> = endpoints.collect();
        let published = Published {
            cluster: text(field::CLUSTER)?.parse().map_err(|_| PublishedError(field::CLUSTER))?,
            endpoints: endpoints.map_err(|_| PublishedError(field::ENDPOINTS))?,
            authorities: certificate::from_pem(text(field::AUTHORITIES)?.as_bytes())
                .map_err(|_| PublishedError(field::AUTHORITIES))?,
        };
        published.pins()?;
        Ok(published)
    }

    /// What join codes pin: the fingerprint of each authority.
    ///
    /// # Errors
    /// A certificate that is none, or not an authority's.
    pub fn pins(&self) -> Result<Vec<Fingerprint>, PublishedError> {
        let pin = |certificate| match Facts::read(certificate) {
            Ok(facts) if facts.is_ca => Ok(facts.key),
            _ => Err(PublishedError(field::AUTHORITIES)),
        };
        self.authorities.iter().map(pin).collect()
    }
}

/// A key of the ConfigMap is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ConfigMap {NAMESPACE}/{CONFIG_MAP} has no valid {0}: restart holm cloud, which writes it")]
pub struct PublishedError(&'static str);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::authority::{ADMIN_LIFE, Authority};
    use crate::trust::clock::{BUILD_TIME, Floor, IssueTime};

    fn published() -> (Published, Authority) {
        let when = IssueTime::check(BUILD_TIME, Floor::INITIAL).unwrap();
        let authority = Authority::create(&ClusterUid::random().unwrap(), when).unwrap();
        let published = Published {
            cluster: authority.cluster_uid().clone(),
            endpoints: vec!["cloud.example.com".parse().unwrap(), "[fd00::1]:7".parse().unwrap()],
            authorities: vec![authority.certificate().clone()],
        };
        (published, authority)
    }

    #[test]
    fn it_survives_its_config_map() {
        let (published, authority) = published();
        let config_map = published.to_config_map();
        assert_eq!(config_map["data"]["endpoints"], "cloud.example.com:10000,[fd00::1]:7");
        assert_eq!(Published::from_config_map(&config_map), Ok(published.clone()));
        assert_eq!(published.pins(), Ok(vec![authority.fingerprint()]));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let (published, authority) = published();
        for key in [field::CLUSTER, field::ENDPOINTS, field::AUTHORITIES] {
            let mut config_map = published.to_config_map();
            config_map["data"][key] = "wrong value".into();
            assert_eq!(Published::from_config_map(&config_map), Err(PublishedError(key)));
            config_map["data"].as_object_mut().unwrap().remove(key);
            assert_eq!(Published::from_config_map(&config_map), Err(PublishedError(key)));
        }
        let when = IssueTime::check(BUILD_TIME, Floor::INITIAL).unwrap();
        let leaf = authority.issue_admin(when, ADMIN_LIFE).unwrap();
        let wrong = Published { authorities: vec![leaf.certificate().clone()], ..published };
        let read = Published::from_config_map(&wrong.to_config_map());
        assert_eq!(read, Err(PublishedError(field::AUTHORITIES)));
    }
}
