//! From an endpoint to a connection: name or address, TCP, TLS, websocket.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_tungstenite::tungstenite::{ClientRequestBuilder, Error as WsError};
use futures_rustls::TlsConnector;
use http::StatusCode;
use rustls::ClientConfig;
use smol::Async;

use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::socket::{BoxIo, PATH, SUBPROTOCOL, config};
use crate::link::{Connection, Link, LinkError};
use crate::net::mdns;
use crate::task::{Tasks, within};
use crate::trust::names::{ClusterUid, Endpoint};
use crate::trust::tls::explain;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("the name {0} has no address: {1}")]
    Name(String, String),
    /// Nothing listens, or the network is away.
    #[error("{0}")]
    Tcp(std::io::Error),
    /// What listens is not trusted, or does not trust us.
    #[error("{}", explain(.0))]
    Tls(std::io::Error),
    /// What listens is no hub.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The cloud refuses before it looks closer: too many ask at once from here.
    #[error("the cloud is asked to let in too many boards at once from this address")]
    Busy,
    /// It took longer than [`CONNECT`].
    #[error("no answer within {} s", CONNECT.as_secs())]
    Slow,
}

impl ConnectError {
    /// True if something answered and it is not this cluster's cloud.
    pub fn is_not_the_cloud(&self) -> bool {
        let ConnectError::Tls(error) = self else { return false };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
    }
}

/// Connects to one endpoint.
pub async fn connect(
    tasks: &Tasks,
    endpoint: &Endpoint,
    cluster: &ClusterUid,
    tls: Arc<ClientConfig>,
) -> Result<Connection, ConnectError> {
    within(CONNECT, attempt(tasks, endpoint, cluster, tls)).await.unwrap_or(Err(ConnectError::Slow))
}

async fn attempt(
    tasks: &Tasks,
    endpoint: &Endpoint,
    cluster: &ClusterUid,
    tls: Arc<ClientConfig>,
) -> Result<Connection, ConnectError> {
    let stream = tcp(endpoint).await?;
    // Only latency is lost where this fails.
    let _ = stream.get_ref().set_nodelay(true);
    let stream =
        TlsConnector::from(tls).connect(cluster.server_name(), stream).await.map_err(ConnectError::Tls)?;
    // The host in the request means nothing: the certificate says who it is.
    let uri = format!("wss://{}{PATH}", cluster.cloud_name());
    let uri = uri.parse().map_err(|error| LinkError::Socket(format!("{uri}: {error}")))?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL);
    let stream: BoxIo = Box::new(stream);
    let (socket, _) = async_tungstenite::client_async_with_config(request, stream, Some(config()))
        .await
        .map_err(|error| match error {
            WsError::Http(answer) if answer.status() == StatusCode::TOO_MANY_REQUESTS => ConnectError::Busy,
            error => LinkError::from(error).into(),
        })?;
    let link = Link::new(socket, tasks.executor());
    Ok(Connection::new(link, tasks.clone(), true, WINDOW, KEEP_ALIVE))
}

async fn tcp(endpoint: &Endpoint) -> Result<Async<std::net::TcpStream>, ConnectError> {
    let addresses: Vec<SocketAddr> = match endpoint.host().trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, endpoint.port())],
        Err(_) => resolve(endpoint.host(), endpoint.port())
            .await
            .map_err(|error| ConnectError::Name(endpoint.host().into(), error.to_string()))?,
    };
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in addresses {
        match Async::<std::net::TcpStream>::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Tcp(last))
}

/// The addresses of a name. Name servers do not know those that end in
/// `.local`; but a host file may.
async fn resolve(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    if !mdns::is_local(host) {
        return smol::net::resolve((host, port)).await;
    }
    match mdns::resolve(host, port).await {
        Ok(found) => Ok(found),
        Err(error) => smol::net::resolve((host, port)).await.map_err(|_| error),
    }
}
