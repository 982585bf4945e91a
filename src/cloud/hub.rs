//! CloudHub: where the edges connect. One port, TLS, one websocket a node.
//!
//! A client with a certificate of this cluster's authority is the node that
//! the certificate names, and gets a session; one without may only join.

mod enrol;
pub mod refusals;
mod register;
mod renew;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use futures_rustls::TlsAcceptor;
use smol::Async;
use smol::net::SocketAddr;

use super::cluster::Cluster;
use super::lifecycle::Lifecycle;
use super::nodes::Nodes;
use super::revocation::Revocations;
use super::time::CloudTime;
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::socket::{BoxIo, PATH, SUBPROTOCOL, config};
use crate::link::{Connection, Link, LinkError};
use crate::net;
use crate::task::{Tasks, within};
use crate::trust::authority::Authority;
use crate::trust::certificate::{PeerIdentity, peer_node};
use crate::trust::names::{ClusterUid, Endpoint};
use crate::trust::tls::Serving;
pub use register::is_key_of;
pub use renew::Policy;

/// How long a client may take for TLS and websocket handshakes.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections in their handshakes at most; more are closed at once.
const HANDSHAKES: usize = 256;

/// What the sessions share.
pub struct Context {
    /// The cluster behind the cloud.
    pub cluster: Cluster,
    /// Its UID.
    pub cluster_uid: ClusterUid,
    /// Who signs certificates.
    pub authority: Arc<Authority>,
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
) -> Result<(), std::io::Error> {
    let handshakes = Arc::new(AtomicUsize::new(0));
    loop {
        let Some((stream, address)) = net::accepted(listener.accept().await).await else { continue };
        if handshakes.fetch_add(1, Ordering::Relaxed) >= HANDSHAKES {
            handshakes.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let acceptor = TlsAcceptor::from(tls.now());
        let (context, handshakes) = (context.clone(), handshakes.clone());
        let inner = tasks.clone();
        tasks.spawn("hub connection", async move {
            let shaken = within(HANDSHAKE, shake(&inner, &acceptor, stream)).await;
            handshakes.fetch_sub(1, Ordering::Relaxed);
            let (connection, peer) = match shaken {
                Some(Ok(shaken)) => shaken,
                Some(Err(error)) => return log::debug!("{address}: {error}"),
                None => return log::debug!("{address}: no handshake within {} s", HANDSHAKE.as_secs()),
            };
            serve_peer(context, connection, peer, address).await;
        });
    }
}

/// Who is at the other end.
enum Peer {
    Stranger,
    Node(PeerIdentity),
}

async fn shake(
    tasks: &Tasks,
    acceptor: &TlsAcceptor,
    stream: Async<std::net::TcpStream>,
) -> Result<(Connection, Peer), LinkError> {
    let socket = |error: std::io::Error| LinkError::Socket(crate::trust::tls::explain(&error));
    stream.get_ref().set_nodelay(true).map_err(socket)?;
    let stream = acceptor.accept(stream).await.map_err(socket)?;
    let peer = match stream.get_ref().1.peer_certificates() {
        None => Peer::Stranger,
        Some(chain) => Peer::Node(peer_node(chain).map_err(|error| LinkError::Socket(error.to_string()))?),
    };
    let stream: BoxIo = Box::new(stream);
    let socket = async_tungstenite::accept_hdr_async_with_config(stream, check_path, Some(config())).await?;
    let link = Link::new(socket, tasks.executor());
    Ok((Connection::new(link, tasks.clone(), false, WINDOW, KEEP_ALIVE), peer))
}

#[expect(clippy::result_large_err, reason = "the websocket library's signature")]
fn check_path(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() != PATH {
        let mut refusal = ErrorResponse::new(Some(format!("nothing is served here but {PATH}\n")));
        *refusal.status_mut() = http::StatusCode::NOT_FOUND;
        return Err(refusal);
    }
    if request.headers().get("sec-websocket-protocol").is_some_and(|offered| offered == SUBPROTOCOL) {
        response.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

async fn serve_peer(context: Arc<Context>, connection: Connection, peer: Peer, address: SocketAddr) {
    match peer {
        Peer::Stranger => {
            let reason = enrol::serve(context, connection).await;
            log::debug!("{address}: {reason}");
        }
        Peer::Node(identity) => renew::serve(context, connection, identity, address).await,
    }
}
