use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;
use crate::task::within;

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link(flags: u32) -> Vec<u8> {
    message(RTM_NEWLINK, &[&[0; 8][..], &flags.to_ne_bytes(), &[0; 4]].concat())
}

#[test]
fn news_are_links_that_run_addresses_that_reach_and_routes_that_lead() {
    assert!(is_up(&link(UP)));
    assert!(!is_up(&link(0x1)), "up, but without a carrier");
    assert!(!is_up(&link(UP | IFF_LOOPBACK)));
    assert!(!is_up(&message(17, &[0xff; 16])), "a link that is removed");
    assert!(is_up(&message(RTM_NEWADDR, &[2, 24, 0, 0])));
    assert!(!is_up(&message(RTM_NEWADDR, &[10, 64, 0, 253])), "of the link only");
    assert!(is_up(&message(RTM_NEWROUTE, &[2, 0, 0, 0, 254, 3, 0, RTN_UNICAST])));
    assert!(!is_up(&message(RTM_NEWROUTE, &[2, 32, 0, 0, 255, 2, 254, 2])), "a local one");
    assert!(is_up(&[link(0), message(RTM_NEWADDR, &[10, 64, 0, 253, 1]), link(UP)].concat()));
    assert!(!is_up(&[]));
}

proptest! {
    #[test]
    fn garbage_from_the_kernel_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..3) {
        is_up(&bytes);
        let mut cut = [link(0), link(0), bytes].concat();
        cut.truncate(cut.len().saturating_sub(at));
        is_up(&cut);
    }
}

/// A network namespace of this test, with a name for ip(8).
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Option<Namespace> {
        let name = format!("holm-{name}-{}", std::process::id());
        ip(&["netns", "add", &name]).then_some(Namespace(name))
    }

    fn ip(&self, arguments: &[&str]) -> bool {
        ip(&[&["-n", self.0.as_str()], arguments].concat())
    }

    fn path(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.0)
    }

    /// Runs `work` on a thread of its own in the namespace.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        use std::os::fd::AsFd;
        let file = std::fs::File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    let done = Command::new("ip").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

/// A board and a cloud, each in a namespace of its own, with a cable between
/// them whose end at the board is down; `None` if this machine makes none.
fn cable() -> Option<(Namespace, Namespace)> {
    let (board, cloud) = (Namespace::new("up-board")?, Namespace::new("up-cloud")?);
    let ends = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &cloud.0];
    let is_made = board.ip(&ends)
        && board.ip(&["address", "add", "192.0.2.2/24", "dev", "eth0"])
        && cloud.ip(&["address", "add", "192.0.2.1/24", "dev", "eth0"])
        && cloud.ip(&["link", "set", "eth0", "up"]);
    is_made.then_some((board, cloud))
}

/// The pauses are an hour: it connects at the second try or never.
fn forever() -> Backoff {
    Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600))
}

#[test]
fn a_board_that_waits_connects_when_the_cable_is_plugged_in() {
    let Some((board, cloud)) = cable() else {
        eprintln!("SKIPPED: no network namespaces here (they take root and ip(8))");
        return;
    };
    let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 4000));
    let listener = cloud.run(move || TcpListener::bind(address).unwrap()).join().unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let (waits, waiting) = async_channel::bounded::<()>(16);
    let counted = tries.clone();
    let connecting = board.run(move || {
        smol::block_on(async {
            let (mut network, mut backoff) = (NetworkUp::default(), forever());
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                if Async::<TcpStream>::connect(address).await.is_ok() {
                    return true;
                }
                waits.send(()).await.unwrap();
                let is_early = within(Duration::from_secs(30), network.pause(&mut backoff)).await;
                if is_early != Some(true) {
                    return false;
                }
            }
        })
    });
    smol::block_on(waiting.recv()).unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 1);
    assert!(board.ip(&["link", "set", "eth0", "up"]));
    assert!(connecting.join().unwrap(), "the news never came, or the pause was waited for");
    listener.accept().unwrap();
    // News of the link, its address and its route may each be worth a try.
    assert!((2..=5).contains(&tries.load(Ordering::Relaxed)), "{tries:?}");
}

#[test]
fn what_came_up_during_a_try_is_not_missed() {
    let Some((board, _cloud)) = cable() else {
        eprintln!("SKIPPED: no network namespaces here (they take root and ip(8))");
        return;
    };
    let (ready, is_ready) = async_channel::bounded::<()>(1);
    let (go, goes) = async_channel::bounded::<()>(1);
    let waiting = board.run(move || {
        smol::block_on(async {
            let (mut network, mut backoff) = (NetworkUp::default(), forever());
            // A first pause that nothing ends but this.
            let stop = async {
                ready.send(()).await.unwrap();
                future::yield_now().await;
                false
            };
            assert!(!network.pause(&mut backoff).or(stop).await);
            goes.recv().await.unwrap();
            within(Duration::from_secs(30), network.pause(&mut backoff)).await
        })
    });
    smol::block_on(is_ready.recv()).unwrap();
    assert!(board.ip(&["link", "set", "eth0", "up"]));
    smol::block_on(go.send(())).unwrap();
    assert_eq!(waiting.join().unwrap(), Some(true));
}
