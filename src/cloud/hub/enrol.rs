//! A board without an identity: a join code's secret for a certificate.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::Value;

use super::Context;
use super::register::{self, Keeper};
use crate::cloud::cluster::ClusterError;
use crate::link::frame::{Join, Joined, Refused};
use crate::link::{Body, Connection};
use crate::net::door::Place;
use crate::object::Key;
use crate::trust::authority::NodeRequest;
use crate::trust::certificate::Facts;
use crate::trust::code::{JoinSecret, SecretId};
use crate::trust::names::{Fingerprint, NodeName};
use crate::trust::record::{SecretRecord, redeem, secret_name};
use crate::trust::{CertificateDer, UnixTime, record};

/// How long a board may take to ask.
const ASK: Duration = Duration::from_secs(10);
/// Tries of an exchange that others keep overtaking.
const TRIES: usize = 8;

/// The field of a code's Secret with the certificate that was issued for it.
const CERTIFICATE: &str = "certificate";

/// Why a board did not get a certificate.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("the join code is not one of this cluster's: make a new one with: holm token create")]
    Unknown,
    #[error(transparent)]
    Refused(#[from] record::Refusal),
    #[error("the request is not one: {0}")]
    Request(String),
    #[error("there is a node {0} in the cluster that is not Holm's: choose another name with --node-name")]
    Foreign(NodeName),
    #[error(
        "there is a node {0} already: choose another name with --node-name, or let this board take its place with a code from: holm token create --node {0}"
    )]
    Taken(NodeName),
    #[error("{0}")]
    Revoked(String),
    #[error("too many ask to join at once from this address: try again in a minute")]
    Busy,
    #[error("the cloud cannot issue a certificate now: {0}")]
    Cloud(String),
}

impl From<ClusterError> for EnrolError {
    fn from(error: ClusterError) -> Self {
        EnrolError::Cloud(error.to_string())
    }
}

impl EnrolError {
    fn is_permanent(&self) -> bool {
        !matches!(self, EnrolError::Cloud(_) | EnrolError::Busy)
    }
}

/// Answers one board and closes.
pub(super) async fn serve(context: Arc<Context>, mut connection: Connection, place: &Place) -> String {
    let join = match connection.first(ASK).await {
        Ok(Body::Join(join)) => join,
        Ok(_) => return "a client without a certificate may only join".into(),
        Err(reason) => return reason,
    };
    // Before anything is looked up, read or signed.
    let outcome = match place.may_join() {
        true => enrol(&context, &join).await,
        false => Err(EnrolError::Busy),
    };
    let (answer, said) = match outcome {
        Ok((node, joined)) => (Body::Joined(joined), format!("node {node} joined")),
        Err(error) => {
            let refused = Refused { reason: error.to_string(), permanent: error.is_permanent() };
            (Body::Refused(refused), format!("a board was not let in: {error}"))
        }
    };
    log::info!("{said}");
    connection.send_plain(answer);
    connection.close().await;
    said
}

async fn enrol(context: &Context, join: &Join) -> Result<(NodeName, Joined), EnrolError> {
    let node: NodeName = join.node.parse().map_err(|error| EnrolError::Request(format!("{error}")))?;
    let id: SecretId = join.secret_id.parse().map_err(|_| EnrolError::Unknown)?;
    let key = Key::core("secrets", record::NAMESPACE, &secret_name(&id)).map_err(|_| EnrolError::Unknown)?;
    // Of a board that asks twice at once, both get the same answer; of two
    // boards, one.
    for _ in 0..TRIES {
        let secret = context.cluster.get(&key).await?.ok_or(EnrolError::Unknown)?;
        let known =
            SecretRecord::from_secret(&secret.value).map_err(|error| EnrolError::Cloud(error.to_string()))?;
        let presented = JoinSecret::from_bytes(join.secret);
        let request =
            NodeRequest::read(&join.request).map_err(|error| EnrolError::Request(error.to_string()))?;
        let fingerprint = request.key_fingerprint();
        let now = UnixTime::now();
        let redeemed = redeem(&known, &presented, &node, &fingerprint, now)?;
        let when = context.time.issue().map_err(|error| EnrolError::Cloud(error.to_string()))?;
        let endpoints = context.endpoints.iter().map(ToString::to_string).collect();
        let is_bound = redeemed.node.as_ref() == Some(&node);
        if let Some(reason) = context.revocations.keeps_out(&node, &fingerprint, is_bound) {
            return Err(EnrolError::Revoked(reason));
        }
        // Of a code there is one certificate: whoever asks again, because the answer was lost, gets that one.
        if redeemed == known
            && let Some(certificate) = kept_certificate(&secret.value, now)
        {
            if is_bound {
                context.revocations.admit(&node, &fingerprint, None).await?;
            }
            return Ok((node, Joined { certificate, endpoints }));
        }
        place(context, &node, &fingerprint, is_bound).await?;
        let certificate = context
            .authority
            .issue_node(&node, &request, when, context.policy.life)
            .map_err(|error| EnrolError::Cloud(error.to_string()))?;
        // The code is used up before the certificate leaves.
        let mut value = secret.value.clone();
        redeemed.write_to(&mut value);
        if let Some(data) = value.get_mut("data").and_then(Value::as_object_mut) {
            data.insert(CERTIFICATE.into(), BASE64.encode(&certificate).into());
        }
        match context.cluster.update(&secret, value).await {
            Err(ClusterError::Conflict(_)) => continue,
            outcome => outcome?,
        };
        if is_bound {
            context.revocations.admit(&node, &fingerprint, None).await?;
        }
        return Ok((node, Joined { certificate: certificate.to_vec(), endpoints }));
    }
    Err(EnrolError::Cloud("too many boards ask with the same code at once".into()))
}

/// The certificate that was given out for a code, while it is good.
fn kept_certificate(secret: &Value, now: UnixTime) -> Option<Vec<u8>> {
    let text = secret.get("data")?.get(CERTIFICATE)?.as_str()?;
    let certificate = CertificateDer::from(BASE64.decode(text.as_bytes()).ok()?);
    let facts = Facts::read(&certificate).ok()?;
    (now < facts.not_after).then(|| certificate.to_vec())
}

/// Sees to it that the board may have the name. The place of a node of ours
/// is taken only with a code made for that node; from then on the key that
/// had it is locked out.
async fn place(
    context: &Context,
    node: &NodeName,
    key: &Fingerprint,
    is_bound: bool,
) -> Result<(), EnrolError> {
    let name = Key::core("nodes", "", node.as_str()).map_err(ClusterError::from)?;
    let Some(known) = context.cluster.get(&name).await? else { return Ok(()) };
    match register::keeper(&known.value, key) {
        Keeper::ThisKey => Ok(()),
        Keeper::NotOurs => Err(EnrolError::Foreign(node.clone())),
        Keeper::AnotherKey if is_bound => {
            context.cluster.update(&known, register::with_key(known.value.clone(), key)).await?;
            Ok(())
        }
        Keeper::AnotherKey => Err(EnrolError::Taken(node.clone())),
    }
}
