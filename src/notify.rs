//! Signs of life to systemd (sd_notify(3)): ready, still here, stopping.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Says one thing to the service manager, if there is one. A manager that does
/// not listen is no reason to fail.
fn tell(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let _ = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => match SocketAddr::from_abstract_name(name) {
            Ok(address) => socket.send_to_addr(message.as_bytes(), &address),
            Err(error) => Err(error),
        },
        None => socket.send_to(message.as_bytes(), &path),
    };
}

/// The role serves.
pub fn ready() {
    tell("READY=1");
}

/// The role is stopping in good order.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Tells the manager regularly that the executor still turns, as often as
/// `WatchdogSec` asks for. A task that blocks the executor stops this one too,
/// and the manager restarts the process.
pub async fn watchdog() {
    let asked = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse::<u64>().ok());
    let Some(micros) = asked.filter(|micros| *micros > 0) else { return };
    loop {
        tell("WATCHDOG=1");
        smol::Timer::after(Duration::from_micros(micros / 3)).await;
    }
}
