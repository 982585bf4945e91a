//! EdgeHub: keeps the connection to the cloud, for ever, and carries orders
//! down and reports up.

pub mod connect;
pub mod exchange;
pub mod renew;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use futures_lite::{FutureExt, future};

use super::meta::{self, Meta};
use super::report::{About, Up};
use crate::link::frame::{DIGEST_ALGORITHM, Hash, Hello, Trust, VERSION_MAX, VERSION_MIN, Welcome, features};
use crate::link::keepalive::KeepAlive;
use crate::link::outgoing::LatestReceiver;
use crate::link::{Body, Connection};
use crate::net::network::NetworkUp;
use crate::store::Store;
use crate::task::{Backoff, Tasks};
use crate::trust::clock::Clock;
use crate::trust::identity::{self, Identity};
use crate::trust::names::Endpoint;
use crate::trust::{tls, unix};
use exchange::{Deed, Exchange};

/// How long the cloud may take to say `Welcome`.
const WELCOME: Duration = Duration::from_secs(20);
/// The first and the longest bound of the pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// How long a board that can keep nothing waits until it lets the cloud see it
/// again.
const UNWRITABLE: Duration = Duration::from_secs(10);
/// Orders made durable in one commit at most.
const BATCH: usize = 64;

/// The task's state; [`Hub::run`] is the task.
pub struct Hub {
    /// What the task and its connections run on.
    pub tasks: Tasks,
    /// Who this board is.
    pub identity: Identity,
    /// What certificates are judged by.
    pub clock: Clock,
    /// Where the floor of time is kept.
    pub data_dir: PathBuf,
    /// What the board holds.
    pub store: Store,
    /// Where orders go.
    pub meta: Meta,
    /// What is reported.
    pub up: Up,
    /// Which reports wait.
    pub waiting: LatestReceiver<About, ()>,
    /// This start's number ([`next_epoch`]).
    pub epoch: u64,
    /// How far the next certificate is.
    pub renewal: renew::Renewal,
    /// How many times it has said `Hello`.
    pub connections: u64,
    /// What is known about how long the network bears silence.
    pub silence: KeepAlive,
}

impl Hub {
    /// Connects, serves, and connects again.
    pub async fn run(&mut self) -> Result<(), Infallible> {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut network = NetworkUp::default();
        let mut said = String::new();
        let mut full = false;
        loop {
            match self.connect().await {
                Ok((connection, welcome)) => {
                    said.clear();
                    backoff.reset();
                    network.connected();
                    if welcome.renew_only {
                        let reason = self.renew_only(connection).await;
                        self.tell_board(false, &reason).await;
                        smol::Timer::after(self.renewal.wait(self.tasks.now())).await;
                        continue;
                    }
                    if !full {
                        log::info!("connected to the cloud: holm {}", welcome.software);
                    }
                    self.tell_board(true, &format!("holm {}", welcome.software)).await;
                    let reason = self.serve(connection, &welcome).await;
                    if self.renewal.wants_reconnect(self.tasks.now(), true) {
                        log::info!(
                            "connecting again, with a new certificate or to say whom this board trusts"
                        );
                        continue;
                    }
                    // Once, and not once a try, as long as nothing can be kept.
                    if !std::mem::replace(&mut full, self.store.health().is_err()) {
                        log::warn!("the cloud is away: {reason}; the pods go on");
                    }
                    self.tell_board(false, &reason).await;
                    self.until_writable().await;
                }
                // Once a reason, not once a try: a week offline is not a log.
                Err(reason) if reason != said => {
                    log::warn!("the cloud cannot be reached: {reason}; trying again, the pods go on");
                    self.tell_board(false, &reason).await;
                    said = reason;
                }
                Err(_) => {}
            }
            network.pause(&mut backoff).await;
        }
    }

    /// Waits for the store to be writable, for a time: an order could not be
    /// kept before, and a status has been told by the connection that ended.
    async fn until_writable(&self) {
        let since = self.tasks.now();
        while self.store.health().is_err() && self.tasks.now().saturating_sub(since) < UNWRITABLE {
            smol::Timer::after(PAUSES.0).await;
        }
    }

    /// Lets whoever looks at the board see whether the cloud is there.
    async fn tell_board(&self, connected: bool, message: &str) {
        self.up.cloud(connected, message);
        if let Err(error) = self.up.show_node(&self.store).await {
            log::error!("{error}");
        }
    }

    /// Tries each certificate at each endpoint until a cloud says `Welcome`.
    async fn connect(&mut self) -> Result<(Connection, Welcome), String> {
        let mut reason = "there is no certificate to connect with: join again with a new code".to_owned();
        let membership = self.identity.membership().clone();
        let next = self.identity.next().is_some_and(|slot| slot.certificate().is_some());
        let candidates = self.identity.candidates().map(|slot| {
            tls::edge_client(&membership.cluster, &membership.pins, self.clock.floor(), Some(slot))
        });
        let candidates: Vec<_> = candidates.collect();
        for (index, config) in candidates.into_iter().enumerate() {
            let config = match config {
                Ok(config) => config,
                Err(error) => {
                    reason = error.to_string();
                    continue;
                }
            };
            for endpoint in &self.identity.endpoints() {
                match self.try_endpoint(endpoint, &membership.cluster, config.clone()).await {
                    Ok((connection, welcome)) => {
                        self.learn(&welcome, next && index == 0);
                        return Ok((connection, welcome));
                    }
                    Err(why) => reason = format!("{endpoint}: {why}"),
                }
            }
        }
        Err(reason)
    }

    async fn try_endpoint(
        &mut self,
        endpoint: &Endpoint,
        cluster: &crate::trust::names::ClusterUid,
        config: std::sync::Arc<rustls::ClientConfig>,
    ) -> Result<(Connection, Welcome), String> {
        let mut connection =
            connect::connect(&self.tasks, endpoint, cluster, config).await.map_err(|e| e.to_string())?;
        self.connections = self.connections.wrapping_add(1);
        connection.send_plain(Body::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch: self.epoch,
            generation: self.store.generation(),
            cluster: meta::synced_with(&self.store).map_err(say)?.unwrap_or_default(),
            digest_algorithm: DIGEST_ALGORITHM,
            digest: meta::digest(&self.store).map_err(say)?,
            features: features(),
            software: env!("CARGO_PKG_VERSION").into(),
            pins: membership_pins(&self.identity),
            connection: self.connections,
        }));
        match connection.first(WELCOME).await? {
            Body::Welcome(welcome) if welcome.cluster == cluster.as_str() => Ok((connection, welcome)),
            Body::Welcome(welcome) => Err(format!("it is the cloud of cluster {}", welcome.cluster)),
            Body::Refused(refused) => Err(refused.reason),
            _ => Err("it did not say Welcome".into()),
        }
    }

    /// Keeps what an authenticated cloud has told. What cannot be kept now
    /// will be told again.
    fn learn(&mut self, welcome: &Welcome, promote: bool) {
        if promote && let Err(error) = self.identity.promote() {
            log::error!("{error}");
        }
        if let Some(kept) = self.clock.confirm(unix(welcome.time_ms / 1000), self.tasks.now()) {
            match identity::write_floor(&self.data_dir, &kept) {
                Ok(()) => self.clock.written(&kept),
                Err(error) => log::error!("{error}"),
            }
        }
        self.renewal.begin(&self.identity, self.clock.now(self.tasks.now()));
        self.take_trust(&Trust {
            pins: welcome.pins.clone(),
            endpoints: welcome.endpoints.clone(),
            renew: false,
        });
    }

    /// Serves one connection to its end; gives the reason.
    async fn serve(&mut self, mut connection: Connection, welcome: &Welcome) -> String {
        let keep_alive = Duration::from_secs(welcome.keep_alive_secs.into());
        connection.agree(true, welcome.window, keep_alive);
        connection.set_peer_features(&welcome.features);
        self.silence.bound(Duration::from_secs(welcome.keep_alive_least_secs.into()), keep_alive);
        self.silence.connected(self.tasks.now());
        connection.adapt(self.silence.clone());
        let reason = match self.exchange(&mut connection, welcome).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        self.silence = connection.keep_alive();
        connection.close().await;
        reason
    }

    async fn exchange(
        &mut self,
        connection: &mut Connection,
        welcome: &Welcome,
    ) -> Result<Infallible, String> {
        let held = match welcome.inventory {
            true => Some(meta::holdings(&self.store).map_err(say)?),
            false => None,
        };
        let mut exchange = Exchange::new(held.as_ref());
        while let Some(part) = exchange.inventory() {
            connection.send_plain(part);
        }
        self.waiting.clear();
        self.up.say_all(&self.store).map_err(say)?;
        let mut bodies: VecDeque<Body> = VecDeque::new();
        loop {
            while connection.has_room() {
                if let Some(body) = bodies.pop_front() {
                    connection.send(body);
                } else if let Some((about, ())) = self.waiting.try_pop() {
                    bodies.extend(self.up.bodies(&self.store, &about).map_err(say)?);
                } else if let Some((id, body)) = self.up.item_after(exchange.items_after()) {
                    let seq = connection.send(body);
                    exchange.item_sent(seq, id);
                } else {
                    break;
                }
            }
            if let Some(body) = self.look_at_age() {
                connection.send_plain(body);
            }
            if self.renewal.wants_reconnect(self.tasks.now(), bodies.is_empty() && exchange.is_idle()) {
                return Err("this board has something new to show".into());
            }
            let waiting = self.waiting.clone();
            let ready = async {
                let look = async {
                    smol::Timer::after(renew::LOOK).await;
                    true
                };
                waiting.ready().or(look).await;
                Vec::new()
            };
            let mut heard = connection.next().or(ready).await;
            // What has arrived together is committed together.
            while heard.len() < BATCH
                && let Some(more) = future::poll_once(connection.next()).await
            {
                heard.extend(more);
            }
            let outcome = exchange.hear(heard, |key| meta::held(&self.store, key));
            for deed in outcome.deeds {
                self.perform(connection, deed).await?;
            }
            for seq in outcome.done {
                connection.done(seq);
            }
            if let Some(reason) = outcome.closed {
                return Err(reason);
            }
        }
    }

    async fn perform(&mut self, connection: &mut Connection, deed: Deed) -> Result<(), String> {
        match deed {
            Deed::Apply(orders) => self.meta.apply(orders).await.map_err(say),
            Deed::Synced => self.meta.synced().await.map_err(say),
            Deed::Say(body) => {
                connection.send_plain(body);
                Ok(())
            }
            Deed::Delivered(id) => {
                self.up.delivered(id);
                Ok(())
            }
            Deed::Renewed(renewed) => {
                self.renewal.answered(&mut self.identity, renewed, self.tasks.now());
                Ok(())
            }
            Deed::Trust(trust) => {
                self.take_trust(&trust);
                Ok(())
            }
            // The cloud cannot know better by being told.
            Deed::Odd(why) => {
                log::error!("an order of the cloud was passed over: {why}");
                Ok(())
            }
        }
    }
}

fn say(error: crate::store::StoreError) -> String {
    error.to_string()
}

fn membership_pins(identity: &Identity) -> Vec<Hash> {
    identity.membership().pins.iter().map(|pin| Hash(*pin.as_bytes())).collect()
}

/// The fact that counts the agent's starts.
const EPOCH: &str = "edge/epoch";

/// A number that grows with every start of the agent, whatever the clock says.
pub async fn next_epoch(store: &Store) -> Result<u64, crate::store::StoreError> {
    let before = store.fact(EPOCH)?.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    let epoch = before.unwrap_or_default().saturating_add(1);
    store.set_fact(EPOCH, epoch.to_be_bytes().to_vec()).await?;
    Ok(epoch)
}
