//! What the runtime has of Holm's, and when that changes.

use super::config;
use crate::cri::{self, Code, Runtime};
use crate::object::{Key, Uid};
use futures_lite::FutureExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Identifiers and states of everything the runtime has of one pod.
pub type Fingerprint = BTreeSet<(String, i32)>;

/// What the runtime has of one pod.
pub struct Found {
    /// The pod, by the labels of its sandbox.
    pub key: Key,
    /// To see changes by.
    pub fingerprint: Fingerprint,
}

/// Everything that carries Holm's label, by pod.
pub async fn list(runtime: &Runtime) -> Result<BTreeMap<Uid, Found>, cri::Error> {
    let sandboxes = runtime.list_pod_sandbox(config::managed()).await?;
    let containers = runtime.list_containers(None, config::managed()).await?;
    let mut out = BTreeMap::new();
    let sandboxes = sandboxes.into_iter().map(|s| (s.labels, s.id, s.state));
    let containers = containers.into_iter().map(|c| (c.labels, c.id, c.state));
    for (labels, id, state) in sandboxes.chain(containers) {
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let uid = Uid(label(config::POD_UID));
        let found = out.entry(uid).or_insert_with(|| Found {
            key: Key {
                group: String::new(),
                resource: "pods".into(),
                namespace: label(config::POD_NAMESPACE),
                name: label(config::POD_NAME),
            },
            fingerprint: Fingerprint::new(),
        });
        found.fingerprint.insert((id, state));
    }
    Ok(out)
}

/// After an event of containerd's own, CRI may need a moment to see the same.
const ECHOES: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(400)];

/// Rings `bell` whenever the runtime says that something changed; `heard` tells whether it would.
pub async fn watch(runtime: Runtime, bell: async_channel::Sender<()>, heard: Arc<AtomicBool>) {
    let ring = || {
        // Full: the last ring was not answered yet, and one answer serves both.
        let _ = bell.try_send(());
    };
    loop {
        match of_cri(&runtime, &heard, ring).await {
            Err(e) if e.code() == Some(Code::UNIMPLEMENTED) => {
                match of_containerd(&runtime, &heard, ring).await {
                    Err(e) if e.code() == Some(Code::UNIMPLEMENTED) => {
                        // Neither; it may be another runtime some day.
                        heard.store(false, Ordering::Relaxed);
                        smol::Timer::after(Duration::from_secs(600)).await;
                    }
                    Err(e) => log::debug!("events: {e}"),
                    Ok(()) => {}
                }
            }
            Err(e) => log::debug!("events: {e}"),
            Ok(()) => {}
        }
        heard.store(false, Ordering::Relaxed);
        ring();
        smol::Timer::after(Duration::from_millis(500)).await;
    }
}

/// A runtime without events says so at once; one that is silent for a moment has them.
async fn accepted<T>(heard: &AtomicBool) -> T {
    smol::Timer::after(Duration::from_secs(1)).await;
    heard.store(true, Ordering::Relaxed);
    smol::future::pending().await
}

async fn of_cri(runtime: &Runtime, heard: &AtomicBool, ring: impl Fn()) -> Result<(), cri::Error> {
    let mut events = runtime.container_events().await?;
    while events.next().or(accepted(heard)).await?.is_some() {
        ring();
    }
    Ok(())
}

async fn of_containerd(runtime: &Runtime, heard: &AtomicBool, ring: impl Fn()) -> Result<(), cri::Error> {
    let mut exits = runtime.exits().await?;
    let mut echoes = ECHOES.iter();
    let mut echo: Option<Duration> = None;
    loop {
        let next = async { Some(exits.next().or(accepted(heard)).await) };
        let again = async {
            match echo {
                Some(pause) => {
                    smol::Timer::after(pause).await;
                }
                None => smol::future::pending().await,
            }
            None
        };
        match next.or(again).await {
            Some(Ok(Some(_))) => {
                echoes = ECHOES.iter();
                ring();
            }
            Some(Ok(None)) => return Ok(()),
            Some(Err(e)) => return Err(e),
            None => ring(),
        }
        echo = echoes.next().copied();
    }
}
