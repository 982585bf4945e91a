//! A session on its socket: what both ends' drivers share.

use std::collections::VecDeque;
use std::time::Duration;

use futures_lite::FutureExt;
use smol::Timer;

use super::frame::{Body, Frame};
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

/// One connection with its session.
pub struct Connection {
    link: Link,
    session: Session,
    /// Frames that the writer had no room for.
    backlog: VecDeque<Frame>,
    tasks: Tasks,
}

impl Connection {
    /// Starts the session of a link; the edge `asks` for signs of life.
    pub fn new(link: Link, tasks: Tasks, asks: bool, window: u32, keep_alive: Duration) -> Connection {
        let session = Session::new(tasks.now(), asks, window, keep_alive);
        Connection { link, session, backlog: VecDeque::new(), tasks }
    }

    /// True if a numbered body would leave at once: within the window, and
    /// nothing waits for the writer.
    pub fn has_room(&self) -> bool {
        self.session.has_room() && self.backlog.is_empty()
    }

    /// Sends a numbered body; its number comes back in [`Heard::Acked`]. Call
    /// only while [`Connection::has_room`].
    pub fn send(&mut self, body: Body) -> u64 {
        let (seq, frame) = self.session.send(body);
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

    /// Waits for something to act on. May be dropped and called again.
    pub async fn next(&mut self) -> Vec<Heard> {
        loop {
            let pause = self.session.next_tick().saturating_sub(self.tasks.now());
            let tick = async {
                Timer::after(pause).await;
                None
            };
            let wire = async { Some(self.link.next().await) }.or(tick).await;
            let effects = match wire {
                None => self.session.step(self.tasks.now(), Event::Tick),
                Some(Wire::Frame(frame)) => self.session.step(self.tasks.now(), Event::Frame(frame)),
                Some(Wire::Room) => {
                    self.flush();
                    return Vec::new();
                }
                Some(Wire::Closed(error)) => return vec![Heard::Closed(error.to_string())],
            };
            let heard = self.perform(effects);
            if !heard.is_empty() {
                return heard;
            }
        }
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

    /// Sends what waits and closes.
    pub async fn close(self) {
        // A peer that does not take its last frames is not waited for long.
        within(Duration::from_secs(2), self.link.close()).await;
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Vec<Heard> {
        let mut heard = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(frame) => self.write(frame),
                Effect::Deliver(seq, body) => heard.push(Heard::Body(seq, body)),
                Effect::Acked(seq) => heard.push(Heard::Acked(seq)),
                Effect::Close(reason) => heard.push(Heard::Closed(reason.into())),
            }
        }
        heard
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
    }
}
