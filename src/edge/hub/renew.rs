//! When the board asks for its next certificate, and what becomes of the
//! answer.
//!
//! It asks over its session once two thirds of the certificate's life have
//! passed by the cloud's time; the board's own clock has no say. The new key
//! is on flash before it is sent anywhere. The new certificate is tried with
//! the next connection, which is made soon, and the old one is kept until
//! that has worked.

use std::time::Duration;

use super::Hub;
use crate::link::frame::{Renew, Renewed, Trust};
use crate::link::{Body, Connection, Heard};
use crate::task::{Backoff, within};
use crate::trust::certificate::is_due;
use crate::trust::identity::{self, Identity, Slot};
use crate::trust::names::Fingerprint;
use crate::trust::{CertificateDer, UnixTime};

/// How often an idle session looks at the age of its certificate.
pub(super) const LOOK: Duration = Duration::from_secs(60);
/// How long the cloud may take to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Bounds of the pause after a renewal that came to nothing.
const PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));
/// The longest pause of a board that may do nothing but renew: it is away as
/// long as it has not.
const AWAY: Duration = Duration::from_secs(300);
/// How long a session that is never idle keeps its old certificate.
const BUSY: Duration = Duration::from_secs(24 * 3600);
/// Clouds' clocks may differ by so much before a certificate counts as issued
/// by a wrong one.
const SLACK: Duration = Duration::from_secs(24 * 3600);

/// The state of renewal across sessions. Times are the role's monotonic ones.
#[derive(Debug)]
pub struct Renewal {
    backoff: Backoff,
    /// Nothing is asked before this.
    not_before: Duration,
    /// Asked then, on this session, and not answered yet.
    asked: Option<Duration>,
    /// The cloud wants it, whatever the certificate's age.
    ordered: bool,
    /// There is a new certificate to connect with, since then.
    installed: Option<Duration>,
    /// The board trusts others than it has said in its `Hello`.
    trusts_others: bool,
    /// What was last said about a failure.
    said: String,
}

impl Default for Renewal {
    fn default() -> Self {
        Renewal {
            backoff: Backoff::new(PAUSES.0, PAUSES.1),
            not_before: Duration::ZERO,
            asked: None,
            ordered: false,
            installed: None,
            trusts_others: false,
            said: String::new(),
        }
    }
}

impl Renewal {
    /// A session begins.
    pub fn begin(&mut self, identity: &Identity, time: UnixTime) {
        self.asked = None;
        self.installed = None;
        self.trusts_others = false;
        if !wants(identity, time) && !self.ordered {
            self.backoff.reset();
            self.not_before = Duration::ZERO;
            self.said.clear();
        }
    }

    /// The cloud orders a renewal: its authority is going, or the certificate
    /// is good for nothing else any more.
    pub fn order(&mut self) {
        self.ordered = true;
    }

    /// What to send, if it is time to ask. A request whose answer was lost is
    /// repeated with the same key.
    pub fn ask(&mut self, identity: &mut Identity, time: UnixTime, now: Duration) -> Option<Body> {
        if self.asked.is_some_and(|at| now.saturating_sub(at) >= ANSWER) {
            self.failed(now, "the cloud does not answer");
        }
        let is_time = self.ordered || wants(identity, time);
        if !is_time || self.asked.is_some() || self.installed.is_some() || now < self.not_before {
            return None;
        }
        match identity.request() {
            Ok(request) => {
                self.asked = Some(now);
                Some(Body::Renew(Renew { request }))
            }
            Err(error) => {
                self.failed(now, &error.to_string());
                None
            }
        }
    }

    /// The cloud has answered.
    pub fn answered(&mut self, identity: &mut Identity, renewed: Renewed, now: Duration) {
        if self.asked.take().is_none() {
            return log::warn!("the cloud sent a certificate that was not asked for");
        }
        if let Some(reason) = renewed.reason {
            return self.failed(now, &reason);
        }
        match identity.install(CertificateDer::from(renewed.certificate)) {
            Ok(()) => {
                self.ordered = false;
                self.installed = Some(now);
                // If it turns out that it cannot connect, not at once again.
                self.pause(now);
            }
            Err(error) => self.failed(now, &error.to_string()),
        }
    }

    /// The board has learnt to trust others than it has said in its `Hello`:
    /// the cloud waits to hear it.
    pub(super) fn trust_changed(&mut self) {
        self.trusts_others = true;
    }

    /// True once the session is to end so that the new certificate connects, or
    /// `Hello` says whom the board trusts by now: as soon as nothing is under
    /// way.
    pub fn wants_reconnect(&self, now: Duration, is_idle: bool) -> bool {
        if self.trusts_others && is_idle {
            return true;
        }
        self.installed.is_some_and(|at| is_idle || now.saturating_sub(at) >= BUSY)
    }

    /// How long a board that may only renew waits before it connects again.
    pub fn wait(&mut self, now: Duration) -> Duration {
        if self.installed.is_some() {
            return Duration::ZERO;
        }
        self.not_before = self.not_before.min(now.saturating_add(AWAY));
        self.not_before.saturating_sub(now).max(Duration::from_secs(1))
    }

    fn failed(&mut self, now: Duration, reason: &str) {
        self.asked = None;
        self.pause(now);
        // Once a reason, not once a try.
        if self.said != reason {
            log::warn!("this board's certificate was not renewed: {reason}; it is tried again");
            self.said = reason.to_owned();
        }
    }

    fn pause(&mut self, now: Duration) {
        self.not_before = now.saturating_add(PAUSES.0).saturating_add(self.backoff.next_pause());
    }
}

/// Whether the certificate that has proven itself is due at this time.
fn wants(identity: &Identity, time: UnixTime) -> bool {
    let slot = identity.current().or_else(|| identity.next());
    slot.and_then(Slot::facts).is_some_and(|facts| is_due(facts, time, SLACK))
}

impl Hub {
    /// Keeps whom to trust and where to find the cloud, as an authenticated
    /// cloud has told it. What cannot be kept now will be told again.
    pub(super) fn take_trust(&mut self, trust: &Trust) {
        let endpoints = trust.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect();
        let pins = trust.pins.iter().map(|pin| Fingerprint::from_bytes(pin.0)).collect();
        let before = self.identity.membership().pins.clone();
        if let Err(error) = self.identity.learn(endpoints, pins) {
            log::error!("{error}");
        }
        if self.identity.membership().pins != before {
            log::info!("the cluster's certificate authorities have changed");
            self.renewal.trust_changed();
        }
        if trust.renew {
            self.renewal.order();
        }
    }

    /// Looks at time and certificate; gives what to send, if anything.
    pub(super) fn look_at_age(&mut self) -> Option<Body> {
        let now = self.tasks.now();
        if let Some(kept) = self.clock.tick(now) {
            match identity::write_floor(&self.data_dir, &kept) {
                Ok(()) => self.clock.written(&kept),
                Err(error) => log::error!("{error}"),
            }
        }
        self.renewal.ask(&mut self.identity, self.clock.now(now), now)
    }

    /// A session in which nothing may be done but renew; gives the reason of
    /// its end.
    pub(super) async fn renew_only(&mut self, mut connection: Connection) -> String {
        log::info!("this board's certificate has expired: the cloud only renews it");
        self.renewal.order();
        let Some(body) = self.look_at_age() else {
            connection.close().await;
            return "the certificate has expired, and was not renewed a moment ago".into();
        };
        connection.send_plain(body);
        let answer = within(ANSWER, renewed(&mut connection)).await;
        connection.close().await;
        let now = self.tasks.now();
        match answer.unwrap_or_else(|| Err("the cloud does not answer".into())) {
            Ok(renewed) => {
                self.renewal.answered(&mut self.identity, renewed, now);
                "the certificate has expired".into()
            }
            Err(reason) => {
                self.renewal.failed(now, &reason);
                format!("the certificate has expired, and is not renewed: {reason}")
            }
        }
    }
}

async fn renewed(connection: &mut Connection) -> Result<Renewed, String> {
    loop {
        for heard in connection.next().await {
            match heard {
                Heard::Body(_, Body::Renewed(renewed)) => return Ok(renewed),
                Heard::Body(_, Body::Refused(refused)) => return Err(refused.reason),
                Heard::Closed(reason) => return Err(reason),
                Heard::Body(..) | Heard::Acked(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
