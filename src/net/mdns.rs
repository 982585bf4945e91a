//! Names that end in `.local`, by a query of our own: the C library of a static binary asks only name servers,
//! which do not know them.
//!
//! One question for the addresses of one name is sent from an ephemeral port to the multicast groups, as RFC 6762,
//! section 5.1, allows a host that is not a whole resolver; whoever has the name answers to that port. Anybody on the
//! link may answer anything: who is really there, the certificate says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use futures_lite::FutureExt;
use rustix::net::sockopt;
use smol::{Async, Timer};

use crate::task::within;

/// How long answers are waited for; a board that sleeps deeply misses the first question.
const ANSWER: Duration = Duration::from_secs(2);
/// When the question is asked again.
const AGAIN: Duration = Duration::from_millis(700);
/// After the first answer, others may come: the same host by its other address.
const MORE: Duration = Duration::from_millis(50);
/// The port of multicast DNS.
const PORT: u16 = 5353;
/// The IPv4 group.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// The IPv6 group.
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// Longest message that is read (RFC 6762, section 17).
const MESSAGE_MAX: usize = 9000;
/// Longest name on the wire (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 255;
/// Addresses that are taken from answers.
const ADDRESSES_MAX: usize = 16;
/// Interfaces that are asked on.
const INTERFACES_MAX: usize = 64;

mod kind {
    pub(super) const A: u16 = 1;
    pub(super) const AAAA: u16 = 28;
    /// The Internet, without the bit that asks for a unicast answer or flushes a cache.
    pub(super) const INTERNET: u16 = 1;
}

/// Whether a name is one that only multicast DNS knows (RFC 6762, section 3).
pub fn is_local(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let suffix = host.len().checked_sub(".local".len()).and_then(|at| host.get(at..));
    suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(".local"))
}

/// The addresses of a `.local` name with this port.
///
/// # Errors
/// Nobody answered, or no question could be sent.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut refused = None;
    for interface in interfaces().into_iter().take(INTERFACES_MAX) {
        match Group::open(interface) {
            Ok(group) => groups.push(group),
            Err(error) => refused = Some(error),
        }
    }
    if groups.is_empty() {
        let none =
            || io::Error::new(io::ErrorKind::NetworkUnreachable, "no interface is up that has multicast");
        return Err(refused.unwrap_or_else(none));
    }
    let found = ask(host, &groups).await;
    if found.is_empty() {
        let why = format!("no host on this link answers to it (multicast DNS, {} s)", ANSWER.as_secs());
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    Ok(found.into_iter().map(|address| address.with_port(port)).collect())
}

/// An address, with the interface that a link-local one is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    address: IpAddr,
    scope: u32,
}

impl Found {
    fn with_port(self, port: u16) -> SocketAddr {
        match self.address {
            IpAddr::V6(address) if address.is_unicast_link_local() => {
                SocketAddrV6::new(address, port, 0, self.scope).into()
            }
            address => SocketAddr::new(address, port),
        }
    }
}

/// Asks in all groups at once; gives what is answered within [`MORE`] of the first answer.
async fn ask(host: &str, groups: &[Group]) -> Vec<Found> {
    let Some(question) = question(host) else { return Vec::new() };
    let asking = async {
        loop {
            for group in groups {
                // One interface may be down by now; the others are asked still.
                let _ = group.socket.send_to(&question, group.address).await;
            }
            Timer::after(AGAIN).await;
        }
    };
    let mut found = Vec::new();
    let hear = async {
        while found.is_empty() {
            take(&mut found, heard(groups).await, host);
        }
    };
    within(ANSWER, hear.or(asking)).await;
    if !found.is_empty() {
        // Of what comes late, no more is looked at than could be kept.
        let more = async {
            for _ in 0..ADDRESSES_MAX {
                take(&mut found, heard(groups).await, host);
            }
        };
        within(MORE, more).await;
    }
    found
}

fn take(found: &mut Vec<Found>, (answer, scope): (Vec<u8>, u32), host: &str) {
    for address in addresses(&answer, host) {
        let one = Found { address, scope };
        if found.len() < ADDRESSES_MAX && !found.contains(&one) {
            found.push(one);
        }
    }
}

/// The next message in any group, and the interface it came by.
async fn heard(groups: &[Group]) -> (Vec<u8>, u32) {
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let ready = groups.iter().map(|group| Box::pin(group.socket.readable()));
        let mut ready: Vec<_> = ready.collect();
        futures_lite::future::poll_fn(|context| {
            match ready.iter_mut().any(|ready| ready.as_mut().poll(context).is_ready()) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        for group in groups {
            if let Ok((length, _)) = group.socket.get_ref().recv_from(&mut buffer) {
                return (buffer.get(..length).unwrap_or_default().to_vec(), group.interface);
            }
        }
        // Somebody else's readiness, or an error that was waiting: not in a hurry.
        futures_lite::future::yield_now().await;
    }
}

/// A socket for one group on one interface.
struct Group {
    socket: Async<UdpSocket>,
    address: SocketAddr,
    interface: u32,
}

/// Where to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    /// The interface that has this address.
    V4(Ipv4Addr),
    /// The interface with this index.
    V6(u32),
}

impl Group {
    fn open(interface: Interface) -> io::Result<Group> {
        let (socket, address, index) = match interface {
            Interface::V4(own) => {
                let socket = UdpSocket::bind((own, 0))?;
                sockopt::set_ip_multicast_if(&socket, &own)?;
                (socket, SocketAddr::from((GROUP_V4, PORT)), 0)
            }
            Interface::V6(index) => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                sockopt::set_ipv6_multicast_if(&socket, index)?;
                (socket, SocketAddrV6::new(GROUP_V6, PORT, 0, index).into(), index)
            }
        };
        Ok(Group { socket: Async::new(socket)?, address, interface: index })
    }
}

/// This machine's interfaces that are up.
fn interfaces() -> Vec<Interface> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut found: Vec<Interface> = super::local_v4(&v4).into_iter().map(Interface::V4).collect();
    for index in link_local(&v6) {
        let interface = Interface::V6(index);
        if !found.contains(&interface) {
            found.push(interface);
        }
    }
    found
}

/// The indices of the interfaces with a link-local address (scope 20) in `/proc/net/if_inet6`.
fn link_local(text: &str) -> Vec<u32> {
    let index = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let index = u32::from_str_radix(fields.next()?, 16).ok()?;
        (fields.nth(1)? == "20").then_some(index)
    };
    text.lines().filter_map(index).collect()
}

/// The question for both kinds of address; nothing for a name that cannot be written.
fn question(host: &str) -> Option<Vec<u8>> {
    let name = name(host)?;
    // Identifier 0 (RFC 6762, section 18.1), no flags, two questions.
    let mut message = vec![0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    for kind in [kind::A, kind::AAAA] {
        message.extend_from_slice(&name);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&kind::INTERNET.to_be_bytes());
    }
    Some(message)
}

/// A name as labels, in lower case.
fn name(host: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in host.strip_suffix('.').unwrap_or(host).split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    bytes.push(0);
    (bytes.len() <= NAME_MAX).then_some(bytes)
}

/// The addresses of a name in an answer; nothing if the message is none, as far as it can be read.
fn addresses(message: &[u8], host: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let (Some(wanted), Some(mut reader)) = (name(host), Reader::open(message)) else { return found };
    while let Some(record) = reader.next_record() {
        // The top bit of the class tells a cache to forget what it knew.
        let is_ours = record.name == wanted && record.class & 0x7fff == kind::INTERNET;
        let address = match (record.kind, record.data) {
            (kind::A, data) => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            (kind::AAAA, data) => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        let is_usable = |address: &IpAddr| !address.is_unspecified() && !address.is_multicast();
        if let Some(address) = address.filter(is_usable)
            && is_ours
            && found.len() < ADDRESSES_MAX
        {
            found.push(address);
        }
    }
    found
}

struct Record<'a> {
    name: Vec<u8>,
    kind: u16,
    class: u16,
    data: &'a [u8],
}

/// Reads a DNS message (RFC 1035, section 4.1).
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
    records: usize,
}

impl<'a> Reader<'a> {
    /// At the first record of an answer.
    fn open(message: &'a [u8]) -> Option<Reader<'a>> {
        let mut reader = Reader { message, at: 2, records: 0 };
        let flags = reader.number()?;
        // A response, to a standard query, without an error.
        if flags & 0x8000 == 0 || flags & 0x7800 != 0 || flags & 0x000f != 0 {
            return None;
        }
        let questions = reader.number()?;
        for _ in 0..3 {
            reader.records += usize::from(reader.number()?);
        }
        for _ in 0..questions {
            reader.name()?;
            reader.take(4)?;
        }
        Some(reader)
    }

    fn next_record(&mut self) -> Option<Record<'a>> {
        self.records = self.records.checked_sub(1)?;
        let name = self.name()?;
        let (kind, class) = (self.number()?, self.number()?);
        // How long it is good for: it is used at once.
        self.take(4)?;
        let length = usize::from(self.number()?);
        Some(Record { name, kind, class, data: self.take(length)? })
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.message.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// A name as labels, in lower case. Each pointer must lead further back than the one before, so that none can
    /// lead in a circle.
    fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut at = self.at;
        let mut end = None;
        let mut least = self.at;
        loop {
            let length = *self.message.get(at)?;
            match length & 0xc0 {
                0x00 => {
                    let label = self.message.get(at..at.checked_add(1 + usize::from(length))?)?;
                    at += label.len();
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    if name.len() > NAME_MAX {
                        return None;
                    }
                    if length == 0 {
                        self.at = end.unwrap_or(at);
                        return Some(name);
                    }
                }
                0xc0 => {
                    let low = *self.message.get(at.checked_add(1)?)?;
                    let to = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    end.get_or_insert(at + 2);
                    if to >= least {
                        return None;
                    }
                    (at, least) = (to, to);
                }
                // Kinds of labels that nobody uses.
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests;
