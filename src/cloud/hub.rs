//! CloudHub: where the edges connect. One port, TLS, one websocket a node.
//!
//! A client with a certificate of this cluster's authority is the node that
//! the certificate names, and gets a session; one without may only join.

mod enrol;
pub mod refusals;
mod register;
mod renew;
mod session;
pub mod sync;

use std::sync::Arc;
use std::time::Duration;

use async_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use futures_rustls::TlsAcceptor;
use smol::Async;
use smol::net::SocketAddr;

use super::authorities::Authorities;
use super::cluster::Cluster;
use super::lifecycle::Lifecycle;
use super::nodes::Nodes;
use super::revocation::Revocations;
use super::time::CloudTime;
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::socket::{BoxIo, PATH, SUBPROTOCOL, config, stranger_config};
use crate::link::{Connection, Link, LinkError};
use crate::net;
use crate::net::door::{Door, Place};
use crate::task::{Tasks, within};
use crate::trust::certificate::{PeerIdentity, peer_node};
use crate::trust::names::{ClusterUid, Endpoint};
use crate::trust::tls::Serving;
pub use register::is_key_of;
pub use renew::Policy;

/// How long a client may take for TLS and websocket handshakes.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that the kernel may keep until they are accepted.
const BACKLOG: i32 = 4096;

/// What the sessions share.
pub struct Context {
    /// The cluster behind the cloud.
    pub cluster: Cluster,
    /// Its UID.
    pub cluster_uid: ClusterUid,
    /// Who signs certificates.
    pub authority: Authorities,
    /// How long nodes' certificates are good for.
    pub policy: Policy,
    /// The time that certificates are issued at.
    pub time: CloudTime,
    /// Who may connect no more.
    pub revocations: Revocations,
    /// Where edges find the cloud.
    pub endpoints: Vec<Endpoint>,
    /// What each node needs.
    pub nodes: Nodes,
    /// Who was heard when.
    pub lifecycle: Lifecycle,
    /// What nodes were refused.
    pub refusals: refusals::Ledger,
}

/// Accepts edges for ever.
pub async fn serve(
    tasks: Tasks,
    listener: Arc<Async<std::net::TcpListener>>,
    tls: Serving,
    context: Arc<Context>,
    door: Arc<Door>,
) -> Result<(), std::io::Error> {
    // The standard library asks for 128, which a flood fills; the system's own limit still counts.
    rustix::net::listen(listener.get_ref(), BACKLOG)?;
    loop {
        let Some((stream, address)) = net::accepted(listener.accept().await).await else { continue };
        let place = door.enter(address.ip());
        let (acceptor, context, door) = (TlsAcceptor::from(tls.now()), context.clone(), door.clone());
        let inner = tasks.clone();
        tasks.spawn("hub connection", async move {
            let shaken = shake(&inner, &door, &place, &acceptor, stream);
            let (connection, peer) = match within(HANDSHAKE, place.hold(shaken)).await {
                Some(Some(Ok(shaken))) => shaken,
                Some(Some(Err(error))) => return log::debug!("{address}: {error}"),
                Some(None) => return log::debug!("{address}: made way for another connection"),
                None => return log::debug!("{address}: no handshake within {} s", HANDSHAKE.as_secs()),
            };
            // In a box of its own, so that unfinished connections are small.
            Box::pin(serve_peer(context, connection, peer, address, place)).await;
        });
        // However many wait to be accepted, the sessions have their turns.
        futures_lite::future::yield_now().await;
    }
}

/// Who is at the other end.
enum Peer {
    Stranger,
    Node(PeerIdentity),
}

async fn shake(
    tasks: &Tasks,
    door: &Door,
    place: &Place,
    acceptor: &TlsAcceptor,
    stream: Async<std::net::TcpStream>,
) -> Result<(Connection, Peer), LinkError> {
    let socket = |error: std::io::Error| LinkError::Socket(crate::trust::tls::explain(&error));
    stream.get_ref().set_nodelay(true).map_err(socket)?;
    let stream = Box::pin(door.in_turns(acceptor.accept(stream))).await.map_err(socket)?;
    let peer = match stream.get_ref().1.peer_certificates() {
        None => Peer::Stranger,
        Some(chain) => Peer::Node(peer_node(chain).map_err(|error| LinkError::Socket(error.to_string()))?),
    };
    let (config, is_welcome) = match peer {
        Peer::Stranger => (stranger_config(), place.may_be_stranger()),
        Peer::Node(..) => (config(), true),
    };
    let stream: BoxIo = Box::new(stream);
    #[expect(clippy::result_large_err, reason = "the websocket library's signature")]
    let check = |request: &Request, response| check_request(request, response, is_welcome);
    let accept = async_tungstenite::accept_hdr_async_with_config(stream, check, Some(config));
    let link = Link::new(Box::pin(accept).await?, tasks.executor());
    Ok((Connection::new(link, tasks.clone(), false, WINDOW, KEEP_ALIVE), peer))
}

#[expect(clippy::result_large_err, reason = "the websocket library's signature")]
fn check_request(
    request: &Request,
    mut response: Response,
    is_welcome: bool,
) -> Result<Response, ErrorResponse> {
    let refuse = |status: http::StatusCode, why: String| {
        let mut refusal = ErrorResponse::new(Some(why));
        *refusal.status_mut() = status;
        Err(refusal)
    };
    if request.uri().path() != PATH {
        return refuse(http::StatusCode::NOT_FOUND, format!("nothing is served here but {PATH}\n"));
    }
    if !is_welcome {
        return refuse(http::StatusCode::TOO_MANY_REQUESTS, "too many ask to join at once\n".into());
    }
    if request.headers().get("sec-websocket-protocol").is_some_and(|offered| offered == SUBPROTOCOL) {
        response.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

async fn serve_peer(
    context: Arc<Context>,
    connection: Connection,
    peer: Peer,
    address: SocketAddr,
    place: Place,
) {
    match peer {
        Peer::Stranger => {
            // It keeps its place: it is not one of the cluster's yet.
            let served = place.hold(enrol::serve(context, connection, &place)).await;
            log::debug!("{address}: {}", served.as_deref().unwrap_or("made way for another connection"));
        }
        Peer::Node(identity) => {
            drop(place);
            renew::serve(context, connection, identity, address).await;
        }
    }
}
