//! A session on its socket: what both ends' drivers share.

use std::collections::VecDeque;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::FutureExt;
use smol::Timer;

use super::channels::{Channels, Services};
use super::frame::{Body, Frame};
use super::keepalive::KeepAlive;
use super::session::{Effect, Event, Session};
use super::socket::{Link, Wire};
use crate::task::{Tasks, within};

/// What a connection gives its owner to act on.
#[derive(Debug)]
pub enum Heard {
    /// A body. Call [`Connection::done`] with its number once it is done.
    Body(u64, Body),
    /// The other end has done everything up to this number.
    Acked(u64),
    /// The connection is over.
    Closed(String),
}

/// Frames of streams and calls that are taken in one go; then the owner has a
/// turn.
const BULK_TURN: usize = 8;

/// Frames that wait for a peer that does not read, at most: answers to what it
/// sent, for nothing else is made while something waits. Above what two
/// windows could ask for.
const BACKLOG: usize = 256;

/// One connection with its session, its streams and its calls.
///
/// What is sent goes in this order: the session's frames, then credit, then
/// calls and streams in turns. One frame of the last waits at the writer at
/// most, and the others overtake it there.
pub struct Connection {
    link: Link,
    session: Session,
    channels: Channels,
    /// Says that the channels may have something to send.
    kicked: Receiver<()>,
    /// Frames that the writer had no room for.
    backlog: VecDeque<Frame>,
    /// Things taken in since the other tasks had a turn.
    streak: usize,
    tasks: Tasks,
}

/// Things that a connection takes in before the other tasks have a turn: a
/// peer that sends faster than it is heard would never let them.
const STREAK: usize = 16;

impl Connection {
    /// Starts the session of a link; the edge `asks` for signs of life.
    pub fn new(link: Link, tasks: Tasks, asks: bool, window: u32, keep_alive: Duration) -> Connection {
        let session = Session::new(tasks.now(), asks, window, keep_alive);
        let (channels, kicked) = Channels::new(tasks.clone(), asks);
        Connection { link, session, channels, kicked, backlog: VecDeque::new(), streak: 0, tasks }
    }

    /// The handle of this connection's streams and calls. It can be used once
    /// the other end's features are known.
    pub fn channels(&self) -> Channels {
        self.channels.clone()
    }

    /// Takes over the features in the other end's `Hello` or `Welcome`.
    pub fn set_peer_features(&self, features: &[String]) {
        self.channels.set_peer(features);
    }

    /// Says who answers what the other end opens and asks; until then nobody
    /// does.
    pub fn set_services(&self, services: Services) {
        self.channels.set_services(services);
    }

    /// True if a numbered body would leave at once: within the window, and
    /// nothing waits for the writer.
    pub fn has_room(&self) -> bool {
        self.session.has_room() && self.backlog.is_empty()
    }

    /// Sends a numbered body; its number comes back in [`Heard::Acked`]. Call
    /// only while [`Connection::has_room`].
    pub fn send(&mut self, body: Body) -> u64 {
        let (seq, frame) = self.session.send(self.tasks.now(), body);
        self.write(frame);
        seq
    }

    /// Sends a body that is not numbered.
    pub fn send_plain(&mut self, body: Body) {
        self.write(Frame::plain(body));
    }

    /// What this body asked for is done.
    pub fn done(&mut self, seq: u64) {
        if seq != 0 {
            let effects = self.session.step(self.tasks.now(), Event::Done(seq));
            // Only acknowledgements follow from being done.
            let _ = self.perform(effects);
        }
    }

    /// Waits for something to act on; nothing means that there may be room to
    /// send. May be dropped and called again.
    pub async fn next(&mut self) -> Vec<Heard> {
        for _ in 0..BULK_TURN {
            self.streak += 1;
            if self.streak >= STREAK {
                self.streak = 0;
                futures_lite::future::yield_now().await;
            }
            let had_room = self.has_room();
            let ticks = self.channels.next_tick().into_iter().chain([self.session.next_tick()]);
            let pause = ticks.min().unwrap_or_default().saturating_sub(self.tasks.now());
            let tick = async {
                Timer::after(pause).await;
                Next::Tick
            };
            let kicked = async {
                match self.kicked.recv().await {
                    Ok(()) => Next::Kicked,
                    Err(_) => futures_lite::future::pending().await,
                }
            };
            let wire = async { Next::Wire(self.link.next().await) };
            let effects = match wire.or(kicked).or(tick).await {
                Next::Tick => {
                    self.channels.tick();
                    if self.link.has_read() {
                        self.session.step(self.tasks.now(), Event::Bytes);
                    }
                    self.session.step(self.tasks.now(), Event::Tick)
                }
                Next::Wire(Wire::Frame(frame)) => self.session.step(self.tasks.now(), Event::Frame(frame)),
                Next::Wire(Wire::Closed(error)) => return vec![self.closed(error.to_string())],
                Next::Wire(Wire::Room) | Next::Kicked => Vec::new(),
            };
            let heard = self.perform(effects);
            self.flush();
            if !heard.is_empty() || !had_room && self.has_room() {
                return heard;
            }
        }
        Vec::new()
    }

    /// The first body of the other end, if it comes within `limit`.
    pub async fn first(&mut self, limit: Duration) -> Result<Body, String> {
        let wait = async {
            loop {
                for heard in self.next().await {
                    match heard {
                        Heard::Body(_, body) => return Ok(body),
                        Heard::Acked(_) => {}
                        Heard::Closed(reason) => return Err(reason),
                    }
                }
            }
        };
        within(limit, wait).await.unwrap_or_else(|| Err("the other end says nothing".into()))
    }

    /// Takes over what the handshake agreed on.
    pub fn agree(&mut self, asks: bool, window: u32, keep_alive: Duration) {
        self.session = Session::new(self.tasks.now(), asks, window, keep_alive);
    }

    /// Takes over what this edge has learnt about silence.
    pub fn adapt(&mut self, keep_alive: KeepAlive) {
        self.session.adapt(keep_alive);
    }

    /// What this edge knows about silence by now.
    pub fn keep_alive(&self) -> KeepAlive {
        self.session.keep_alive().clone()
    }

    /// Sends what waits and closes.
    pub async fn close(mut self) {
        // What waits for the writer is not lost, but a peer that does not take
        // its last frames is not waited for long.
        within(Duration::from_secs(2), self.link.close()).await;
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Vec<Heard> {
        let mut heard = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(frame) => {
                    self.write(frame);
                    if self.backlog.len() > BACKLOG {
                        heard.push(self.closed("the other end asks and does not read the answers".into()));
                        break;
                    }
                }
                Effect::Deliver(seq, body) if is_channels(&body) => {
                    if let Err(broken) = self.channels.frame(body) {
                        heard.push(self.closed(broken));
                        break;
                    }
                    self.done(seq);
                }
                Effect::Deliver(seq, body) => heard.push(Heard::Body(seq, body)),
                Effect::Acked(seq) => heard.push(Heard::Acked(seq)),
                Effect::Close(reason) => heard.push(self.closed(reason.into())),
            }
        }
        heard
    }

    fn closed(&self, reason: String) -> Heard {
        self.channels.close(&reason);
        Heard::Closed(reason)
    }

    fn write(&mut self, frame: Frame) {
        // Of acknowledgements that wait only the last one matters, so a slow
        // reader cannot make the backlog grow.
        if let Some(last) = self.backlog.back_mut()
            && !last.has_body
            && !frame.has_body
        {
            *last = frame;
        } else {
            self.backlog.push_back(frame);
        }
        self.flush();
    }

    fn flush(&mut self) {
        while self.link.is_ready()
            && let Some(frame) = self.backlog.pop_front()
        {
            self.link.send(&frame);
        }
        while self.backlog.is_empty()
            && self.link.is_ready()
            && let Some(body) = self.channels.next_credit()
        {
            self.link.send(&Frame::plain(body));
        }
        while self.link.is_ready_for_bulk()
            && let Some(body) = self.channels.next_bulk()
        {
            self.link.send_bulk(&Frame::plain(body));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.channels.close("the connection was given up");
    }
}

enum Next {
    Wire(Wire),
    Kicked,
    Tick,
}

/// True for what streams and calls say.
fn is_channels(body: &Body) -> bool {
    matches!(
        body,
        Body::Open(_)
            | Body::Data(_)
            | Body::Credit(_)
            | Body::End(_)
            | Body::Call(_)
            | Body::Answer(_)
            | Body::Cancel(_)
    )
}

#[cfg(test)]
mod tests;
