//! Listeners, and this machine's addresses.

pub mod admission;
pub mod door;
pub mod mdns;
pub mod network;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_rustls::TlsAcceptor;
use smol::Async;

use crate::apiserver::{ApiServer, User};
use crate::net::door::Door;
use crate::task::{Tasks, within};
use crate::trust::certificate::peer_user;
use crate::trust::tls::Serving;

/// The name, in the data directory, of the socket that `holm get` and `holm
/// status` use.
pub const SOCKET: &str = "holm.sock";

/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another program listens there.
    #[error("{flag} {address} is in use by another program: stop it, or choose another address with {flag}")]
    InUse {
        /// The flag that sets the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("{flag} {address} cannot be listened on ({why}): choose another address with {flag}")]
    Listen {
        /// The flag that sets the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's words.
        why: String,
    },
    /// The local socket cannot be made.
    #[error("cannot listen on {path} ({why}): choose another --data-dir")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The listener cannot be polled.
    #[error("a listener failed: {0}")]
    Listener(String),
}

/// Listens on an address that a flag gave.
pub fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, NetError> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => NetError::InUse { flag, address },
        io::ErrorKind::AddrNotAvailable => {
            NetError::Listen { flag, address, why: "no interface of this machine has it".into() }
        }
        _ => NetError::Listen { flag, address, why: error.to_string() },
    })
}

/// Lets this process have as many files open as the system allows it; gives how many that is. The usual limit of
/// 1024 would be used up by the boards of one town.
pub fn raise_file_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // What a system without a limit is taken to allow.
    const PLENTY: u64 = 1 << 20;
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(PLENTY).min(PLENTY);
    let current = limit.current.unwrap_or(PLENTY);
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    let files = match current < wanted && setrlimit(Resource::Nofile, raised).is_ok() {
        true => wanted,
        false => current,
    };
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// Where a listener really listens, if port 0 was asked for.
pub fn local_address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// The addresses of this machine's interfaces that are up, without link-local
/// ones (they need an interface to mean anything).
pub fn addresses() -> Vec<IpAddr> {
    let Ok(entries) = std::fs::read_to_string("/proc/net/fib_trie") else { return Vec::new() };
    let mut found: Vec<IpAddr> = local_v4(&entries).into_iter().map(IpAddr::V4).collect();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    found.extend(local_v6(&v6).into_iter().map(IpAddr::V6));
    found
}

/// The addresses that others may reach this machine by.
pub fn reachable_addresses() -> Vec<String> {
    addresses().iter().filter(|address| !address.is_loopback()).map(ToString::to_string).collect()
}

/// The host addresses in `/proc/net/fib_trie`: a leaf `|-- ADDRESS` followed
/// by `/32 host LOCAL`.
fn local_v4(text: &str) -> Vec<std::net::Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = leaf
            && !found.contains(&address)
            && !std::net::Ipv4Addr::is_link_local(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The addresses in `/proc/net/if_inet6` that reach beyond their link: scope
/// 00 (global), or loopback.
fn local_v6(text: &str) -> Vec<std::net::Ipv6Addr> {
    let address = |line: &str| {
        let mut fields = line.split_whitespace();
        let hex = fields.next()?;
        let scope = fields.nth(2)?;
        let number = u128::from_str_radix(hex, 16).ok()?;
        matches!(scope, "00" | "10").then(|| std::net::Ipv6Addr::from(number))
    };
    text.lines().filter_map(address).collect()
}

/// Serves the Kubernetes API over TLS for ever. The user is the one that the
/// client's certificate names; without one, nobody in particular.
pub async fn serve_api(
    tasks: Tasks,
    listener: Arc<Async<TcpListener>>,
    tls: Serving,
    api: ApiServer,
    door: Arc<Door>,
) -> io::Result<()> {
    loop {
        let Some((stream, address)) = accepted(listener.accept().await).await else { continue };
        // Only latency is lost where this fails.
        let _ = stream.get_ref().set_nodelay(true);
        let place = door.enter(address.ip());
        let (acceptor, api, door) = (TlsAcceptor::from(tls.now()), api.clone(), door.clone());
        tasks.spawn("api connection", async move {
            // A client that keeps no promise in its handshake is not answered.
            let accept = Box::pin(door.in_turns(acceptor.accept(stream)));
            let Some(Some(Ok(stream))) = within(HANDSHAKE, place.hold(accept)).await else { return };
            drop(place);
            let user = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| peer_user(chain).ok())
                .map_or_else(User::anonymous, |user| User { name: user.name, groups: user.groups });
            answered(Box::pin(api.serve_connection(stream, user)).await);
        });
        // However many wait to be accepted, the others have their turns.
        futures_lite::future::yield_now().await;
    }
}

/// Serves the API on a socket in the data directory, for this user and root.
pub fn serve_socket(tasks: &Tasks, data_dir: &Path, api: ApiServer) -> Result<(), NetError> {
    let path = data_dir.join(SOCKET);
    let refuse = |error: io::Error| NetError::Socket { path: path.clone(), why: error.to_string() };
    // Left over from a process that was killed: the store's lock says that
    // there is no other. The directory is this user's only.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(refuse)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(refuse)?;
    let listener = Async::new(listener).map_err(refuse)?;
    let inner = tasks.clone();
    tasks.spawn("local socket", async move {
        loop {
            let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
            let api = api.clone();
            inner.spawn("local connection", async move {
                answered(api.serve_connection(stream, User::admin()).await);
            });
        }
    });
    Ok(())
}

/// Serves the API on an address of the board: whoever connects is nobody in
/// particular.
pub fn serve_plain(tasks: &Tasks, listener: TcpListener, api: ApiServer) -> Result<(), NetError> {
    let listener = Async::new(listener).map_err(|error| NetError::Listener(error.to_string()))?;
    let inner = tasks.clone();
    tasks.spawn("board api", async move {
        loop {
            let Some(stream) = accept(&listener).await else { continue };
            let api = api.clone();
            inner.spawn("board api connection", async move {
                answered(api.serve_connection(stream, User::anonymous()).await);
            });
        }
    });
    Ok(())
}

/// How a client leaves is its own affair.
fn answered(outcome: Result<(), hyper::Error>) {
    if let Err(error) = outcome {
        log::debug!("an api connection ended: {error}");
    }
}

/// One connection; `None` after a pause if none can be had now.
async fn accept(listener: &Async<TcpListener>) -> Option<Async<std::net::TcpStream>> {
    let (stream, _) = accepted(listener.accept().await).await?;
    // Only latency is lost where this fails.
    let _ = stream.get_ref().set_nodelay(true);
    Some(stream)
}

/// What was accepted; `None` after a pause if nothing could be.
pub async fn accepted<T>(outcome: io::Result<T>) -> Option<T> {
    match outcome {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            // Out of file descriptors, most likely: let some be closed.
            log::warn!("a connection cannot be accepted: {error}");
            smol::Timer::after(Duration::from_millis(200)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_addresses_are_read_from_the_routing_tables() {
        let trie = "Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 192.0.2.7
        /32 host LOCAL
     |-- 169.254.1.1
        /32 host LOCAL
";
        let found: Vec<String> = local_v4(trie).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.1", "192.0.2.7"]);
        let v6 = "00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000021122fffe334455 02 40 20 80     eth0
20010db8000000000000000000000007 02 40 00 80     eth0
";
        let found: Vec<String> = local_v6(v6).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["::1", "2001:db8::7"]);
    }
}
