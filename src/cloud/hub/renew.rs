//! The life of nodes' certificates: who may still connect, and how a node
//! gets its next certificate.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::FutureExt;
use smol::net::SocketAddr;

use super::Context;
use super::register::{self, Keeper};
use super::session;
use crate::cloud::cluster::ClusterError;
use crate::link::frame::{Hello, Refused, Renew, Renewed, Welcome, negotiate};
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::{Body, Connection, Heard};
use crate::object::{Key, time_rfc3339};
use crate::task::within;
use crate::trust::UnixTime;
use crate::trust::authority::{AuthorityError, NODE_LIFE, NodeRequest, RENEW_WINDOW};
use crate::trust::certificate::{PeerIdentity, Standing};
use crate::trust::clock::ClockError;
use crate::trust::names::{Fingerprint, NodeName};

/// How long a node may take to say `Hello`.
const HELLO: Duration = Duration::from_secs(10);
/// How long a session may last that may do nothing but renew.
const RENEW_ONLY: Duration = Duration::from_secs(60);
/// Certificates that one session may ask for: each is a write.
pub(super) const ASKS: usize = 4;
/// Tries of a change that others keep overtaking.
const TRIES: usize = 8;

/// How long nodes' certificates are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a certificate lives; it is renewed at two thirds of that.
    pub life: Duration,
    /// How long after its end a certificate may still renew.
    pub window: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { life: NODE_LIFE, window: RENEW_WINDOW }
    }
}

/// Why a node gets no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Request(AuthorityError),
    #[error("{0}")]
    Revoked(String),
    #[error("another board has taken the place of node {0}")]
    Replaced(NodeName),
    #[error("the cluster has a node {0} that is not Holm's")]
    Foreign(NodeName),
    #[error("the cloud issues no certificates now: {0}")]
    Clock(#[from] ClockError),
    #[error("the cloud cannot issue a certificate now: {0}")]
    Cloud(String),
    #[error("it has asked for {ASKS} certificates on one connection already")]
    Often,
}

impl From<ClusterError> for RenewError {
    fn from(error: ClusterError) -> Self {
        RenewError::Cloud(error.to_string())
    }
}

/// Serves a node that has shown a certificate of ours, as far as its
/// certificate's age and the revocations allow.
pub(super) async fn serve(
    context: Arc<Context>,
    connection: Connection,
    peer: PeerIdentity,
    address: SocketAddr,
) {
    let node = peer.node.clone();
    let standing = peer.standing(UnixTime::now(), context.policy.window);
    if let Some(reason) = refusal(&context, &peer, standing) {
        log::warn!("node {node} at {address} was refused: {reason}");
        refuse(connection, reason).await;
        return;
    }
    let revoked = {
        let (context, peer) = (context.clone(), peer.clone());
        async move {
            let reason = context.revocations.revoked(&peer).await;
            tell_node(&context, &peer.node, &reason).await;
            reason
        }
    };
    // Dropping the session closes its connection at once.
    let reason = match standing {
        Standing::Valid => session::serve(context, connection, peer).or(revoked).await,
        _ => only_renew(&context, connection, &peer).or(revoked).await,
    };
    log::info!("node {node} disconnected: {reason}");
}

/// Why the peer may not connect, if so.
fn refusal(context: &Context, peer: &PeerIdentity, standing: Standing) -> Option<String> {
    if let Some(reason) = context.revocations.why(peer) {
        return Some(reason);
    }
    (standing == Standing::Expired).then(|| {
        format!(
            "its certificate expired on {}, longer ago than the {} days in which it may be renewed: \
             join the board again with a code from: holm token create --node {}",
            date(peer.not_after),
            context.policy.window.as_secs() / (24 * 3600),
            peer.node
        )
    })
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "a day beyond the calendar".into(), time_rfc3339)
}

/// Says no to the node's `Hello`: what is closed unread may lose what is sent.
async fn refuse(mut connection: Connection, reason: String) {
    // Whatever it says, or whether it says anything, makes no difference.
    let _ = connection.first(HELLO).await;
    connection.send_plain(Body::Refused(Refused { reason, permanent: false }));
    connection.close().await;
}

async fn tell_node(context: &Context, node: &NodeName, reason: &str) {
    if let Err(error) = context.revocations.tell_node(node, reason).await {
        log::warn!("node {node} does not show that it was revoked: {error}");
    }
}

/// A session of a node whose certificate has expired: nothing but `Renew` is
/// heard.
async fn only_renew(context: &Context, mut connection: Connection, peer: &PeerIdentity) -> String {
    let hello = match connection.first(HELLO).await {
        Ok(Body::Hello(hello)) => hello,
        Ok(_) => return "it did not begin with Hello".into(),
        Err(reason) => return reason,
    };
    let Some(version) = negotiate(&hello) else {
        let reason = "no protocol version in common: update holm on the older side".to_owned();
        connection.send_plain(Body::Refused(Refused { reason: reason.clone(), permanent: false }));
        connection.close().await;
        return reason;
    };
    connection.send_plain(Body::Welcome(welcome(context, version)));
    connection.agree(false, WINDOW, KEEP_ALIVE);
    let renewed = within(RENEW_ONLY, renew_once(context, &mut connection, peer, &hello)).await;
    connection.close().await;
    renewed.unwrap_or_else(|| format!("it did not renew within {} s", RENEW_ONLY.as_secs()))
}

fn welcome(context: &Context, version: u32) -> Welcome {
    Welcome {
        version,
        cluster: context.cluster_uid.to_string(),
        time_ms: UnixTime::now().as_secs().saturating_mul(1000),
        window: WINDOW,
        keep_alive_secs: u32::try_from(KEEP_ALIVE.as_secs()).unwrap_or(15),
        endpoints: context.endpoints.iter().map(ToString::to_string).collect(),
        software: env!("CARGO_PKG_VERSION").into(),
        pins: context.authority.pins(),
        renew_only: true,
        ..Welcome::default()
    }
}

async fn renew_once(
    context: &Context,
    connection: &mut Connection,
    peer: &PeerIdentity,
    hello: &Hello,
) -> String {
    log::info!(
        "node {} may only renew: its certificate expired on {}; holm {}",
        peer.node,
        date(peer.not_after),
        hello.software
    );
    let mut asked = 0;
    loop {
        for heard in connection.next().await {
            match heard {
                Heard::Acked(_) => {}
                Heard::Closed(reason) => return reason,
                Heard::Body(seq, Body::Renew(renew)) => {
                    let renewed = answer(context, peer, &renew, asked).await;
                    asked += 1;
                    connection.send_plain(Body::Renewed(renewed));
                    connection.done(seq);
                }
                Heard::Body(..) => {
                    return "its certificate has expired, and it said something else than Renew".into();
                }
            }
        }
    }
}

/// Answers a node that asks for its next certificate: with it, or with the
/// reason why not. `asked` is how often the session has asked before.
pub(super) async fn answer(context: &Context, peer: &PeerIdentity, renew: &Renew, asked: usize) -> Renewed {
    match issue(context, peer, renew, asked).await {
        Ok(certificate) => {
            log::info!("node {} gets its next certificate", peer.node);
            Renewed { certificate, reason: None }
        }
        Err(error) => {
            log::warn!("node {} gets no new certificate: {error}", peer.node);
            Renewed { certificate: Vec::new(), reason: Some(error.to_string()) }
        }
    }
}

async fn issue(
    context: &Context,
    peer: &PeerIdentity,
    renew: &Renew,
    asked: usize,
) -> Result<Vec<u8>, RenewError> {
    if asked >= ASKS {
        return Err(RenewError::Often);
    }
    if let Some(reason) = context.revocations.why(peer) {
        return Err(RenewError::Revoked(reason));
    }
    let request = NodeRequest::read(&renew.request).map_err(RenewError::Request)?;
    let when = context.time.issue()?;
    let next = request.key_fingerprint();
    // Who may be the node is written down before the certificate leaves.
    record_next(context, &peer.node, &peer.key_fingerprint, &next).await?;
    context.revocations.admit(&peer.node, &next, Some(&peer.key_fingerprint)).await?;
    let certificate = context.authority.issue_node(&peer.node, &request, when, context.policy.life);
    certificate.map(|der| der.to_vec()).map_err(|error| RenewError::Cloud(error.to_string()))
}

/// Records that the next key may be the node too, until it has registered.
async fn record_next(
    context: &Context,
    node: &NodeName,
    key: &Fingerprint,
    next: &Fingerprint,
) -> Result<(), RenewError> {
    let name = Key::core("nodes", "", node.as_str()).map_err(ClusterError::from)?;
    for _ in 0..TRIES {
        let Some(known) = context.cluster.get(&name).await? else { return Ok(()) };
        match register::keeper(&known.value, key) {
            Keeper::ThisKey => {}
            Keeper::AnotherKey => return Err(RenewError::Replaced(node.clone())),
            Keeper::NotOurs => return Err(RenewError::Foreign(node.clone())),
        }
        let Some(value) = register::with_next(known.value.clone(), next) else { return Ok(()) };
        match context.cluster.update(&known, value).await {
            Err(ClusterError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
    Err(RenewError::Cloud(format!("{name} keeps changing")))
}
