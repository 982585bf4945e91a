//! How a board gets its identity: the join code names the cloud and how to
//! recognise it, and its secret is exchanged for a certificate.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::hub::connect;
use crate::link::Body;
use crate::link::frame::Join;
use crate::task::{Backoff, Tasks};
use crate::trust::CertificateDer;
use crate::trust::clock::Clock;
use crate::trust::code::{CodeError, JoinCode};
use crate::trust::identity::{self, Identity, IdentityError, Membership};
use crate::trust::names::{Endpoint, NodeName};
use crate::trust::tls::{self, TlsError};

/// How long the cloud may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Different reasons that are logged at most.
const REASONS: usize = 100;

/// Why a board did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The code is none.
    #[error("the join code cannot be read: {0}")]
    Code(#[from] CodeError),
    /// The cloud said no, and would again.
    #[error("the cloud does not let this board in: {0}")]
    Refused(String),
    /// Something answers at each of the code's endpoints, and nowhere is it the cloud that the code names.
    #[error("what answers is not the cloud that the join code names: {0}")]
    NotTheCloud(String),
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Joins, trying the code's endpoints in turn until the cloud answers: a board
/// may start before its network does.
pub async fn join(
    data_dir: &Path,
    code: &str,
    node: &NodeName,
    clock: &Clock,
    tasks: &Tasks,
) -> Result<Identity, JoinError> {
    let code: JoinCode = code.parse()?;
    let node = code.node.clone().unwrap_or_else(|| node.clone());
    let membership = Membership {
        cluster: code.cluster.clone(),
        node: node.clone(),
        endpoints: code.endpoints.clone(),
        pins: code.pins.clone(),
    };
    // Whatever an earlier try left here never became a membership.
    let mut identity = Identity::join(data_dir, membership, true)?;
    let request = identity.request()?;
    let tls = tls::edge_client(&code.cluster, &code.pins, clock.floor(), None)?;
    let ask = Join {
        secret_id: code.id.to_string(),
        secret: *code.secret.as_bytes(),
        node: node.to_string(),
        request,
    };
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut said = BTreeSet::new();
    loop {
        let mut reasons = Vec::new();
        let mut strangers = 0;
        for endpoint in &code.endpoints {
            let why = match try_endpoint(tasks, endpoint, &code, &tls, &ask).await {
                Ok(Body::Joined(joined)) => {
                    identity.install(CertificateDer::from(joined.certificate))?;
                    identity::write_joined(data_dir, &code.id)?;
                    let endpoints =
                        joined.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect();
                    identity.learn(endpoints, Vec::new())?;
                    log::info!("joined cluster {} as node {node}", code.cluster);
                    return Ok(identity);
                }
                Ok(Body::Refused(refused)) if refused.permanent => {
                    return Err(JoinError::Refused(refused.reason));
                }
                Ok(Body::Refused(refused)) => refused.reason,
                Ok(_) => "an answer that makes no sense".into(),
                Err(Away::Stranger(why)) => {
                    strangers += 1;
                    why
                }
                Err(Away::Silent(why)) => why,
            };
            reasons.push(format!("{endpoint} ({why})"));
        }
        // One address may belong to someone else by now; all of them hardly.
        if strangers == code.endpoints.len() {
            return Err(JoinError::NotTheCloud(reasons.join(", ")));
        }
        // Once a reason, not once a try.
        let line = reasons.join(", nor at ");
        if said.len() < REASONS && said.insert(line.clone()) {
            log::warn!(
                "the cloud cannot be joined at {line}: trying on; see that holm cloud runs and its port can be reached"
            );
        }
        smol::Timer::after(backoff.next_pause()).await;
    }
}

/// Why an endpoint gave no answer.
enum Away {
    /// What answers is not this cluster's cloud.
    Stranger(String),
    /// Nothing answers, or not for now.
    Silent(String),
}

async fn try_endpoint(
    tasks: &Tasks,
    endpoint: &Endpoint,
    code: &JoinCode,
    tls: &Arc<ClientConfig>,
    ask: &Join,
) -> Result<Body, Away> {
    let connected = connect::connect(tasks, endpoint, &code.cluster, tls.clone()).await;
    let mut connection = connected.map_err(|error| match error.is_not_the_cloud() {
        true => Away::Stranger(error.to_string()),
        false => Away::Silent(error.to_string()),
    })?;
    connection.send_plain(Body::Join(ask.clone()));
    let answer = connection.first(ANSWER).await;
    connection.close().await;
    answer.map_err(Away::Silent)
}
