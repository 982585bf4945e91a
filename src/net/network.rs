//! Notices when a network comes up, so that who waits to connect need not wait
//! any longer.
//!
//! The kernel tells by rtnetlink(7) of links, addresses and routes. A socket
//! for that exists only while somebody waits: whoever is connected pays
//! nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use futures_lite::{FutureExt, future};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use smol::{Async, Timer};

use crate::task::Backoff;

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR
/// | RTMGRP_IPV6_ROUTE` of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
/// `IFF_UP | IFF_RUNNING` of linux/if.h.
const UP: u32 = 0x1 | 0x40;
const IFF_LOOPBACK: u32 = 0x8;
/// Scopes above this reach no further than the link (rtnetlink's
/// `RT_SCOPE_LINK` is 253).
const LAST_GLOBAL_SCOPE: u8 = 252;
/// `RTN_UNICAST`.
const RTN_UNICAST: u8 = 1;

/// Pods come and go on a board without a network too, and each has a link: so
/// many tries a second are made for such news, and no more.
const GAP: Duration = Duration::from_secs(1);

/// The pauses between tries to connect, which end early when a network comes
/// up.
#[derive(Debug, Default)]
pub struct NetworkUp {
    socket: Option<Async<OwnedFd>>,
    /// When a pause last ended early.
    ended_early: Option<Instant>,
}

impl NetworkUp {
    /// Waits for the back-off's next pause, or less: if a network comes up, or
    /// has come up since the last pause, the pause ends and the next ones are
    /// short again. True if it was that.
    pub async fn pause(&mut self, backoff: &mut Backoff) -> bool {
        let pause = backoff.next_pause();
        if self.socket.is_none() {
            match open() {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => log::debug!("networks that come up are not noticed: {error}"),
            }
        }
        let early = async {
            self.news().await;
            true
        };
        let late = async {
            Timer::after(pause).await;
            false
        };
        // News of what happened during the last try go first.
        let is_early = early.or(late).await;
        if is_early {
            self.ended_early = Some(Instant::now());
            backoff.reset();
        }
        is_early
    }

    /// There is a connection: no more news are wanted.
    pub fn connected(&mut self) {
        self.socket = None;
    }

    /// Waits until something has come up, at most once in [`GAP`].
    async fn news(&self) {
        let Some(socket) = &self.socket else { return future::pending().await };
        let mut buffer = vec![0; 8 * 1024];
        loop {
            let received = socket
                .read_with(|socket| Ok(recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?.1))
                .await;
            match received {
                Ok(count) if !is_up(buffer.get(..count).unwrap_or_default()) => {}
                // More happened than the socket can hold: something came up, for all we know.
                Err(error) if Errno::from_io_error(&error) != Some(Errno::NOBUFS) => {
                    log::debug!("networks that come up are not noticed: {error}");
                    return future::pending().await;
                }
                _ => break,
            }
        }
        if let Some(early) = self.ended_early {
            Timer::after(GAP.saturating_sub(early.elapsed())).await;
        }
    }
}

fn open() -> io::Result<Async<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a protocol it is NETLINK_ROUTE, which is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Async::new(socket)
}

/// True if the kernel's messages say that a link, an address or a route came
/// up that may lead somewhere (netlink(7), rtnetlink(7); all in the machine's
/// byte order).
fn is_up(mut messages: &[u8]) -> bool {
    while let Some((header, _)) = messages.split_first_chunk::<16>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(body) = messages.get(16..length) else { return false };
        let is_news = match u16::from_ne_bytes([t0, t1]) {
            // struct ifinfomsg: family, pad, type (2), index (4), flags (4).
            RTM_NEWLINK => body.get(8..12).and_then(|flags| flags.try_into().ok()).is_some_and(|flags| {
                let flags = u32::from_ne_bytes(flags);
                flags & UP == UP && flags & IFF_LOOPBACK == 0
            }),
            // struct ifaddrmsg: family, prefix length, flags, scope, ...
            RTM_NEWADDR => body.get(3).is_some_and(|scope| *scope <= LAST_GLOBAL_SCOPE),
            // struct rtmsg: family, three lengths, tos, table, protocol, scope, type, ...
            RTM_NEWROUTE => body.get(7).is_some_and(|kind| *kind == RTN_UNICAST),
            _ => false,
        };
        if is_news {
            return true;
        }
        // Messages are aligned to four bytes.
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests;
