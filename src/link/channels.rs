//! The streams and calls of one connection, for those who use them.
//!
//! [`super::Connection`] carries them; a [`Channels`] is the handle to open
//! and to ask, [`Services`] says who answers what the other end opens and asks.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use futures_lite::{AsyncRead, AsyncWrite};

use super::calls::{self, CallError, Calls};
use super::frame::{Body, FEATURE_CALLS, FEATURE_STREAMS};
use super::streams::{Heard, STREAMS, Streams};
use crate::task::Tasks;

/// Who answers what the other end opens and asks. Where a service's queue is
/// full the other end is told that the service is busy.
#[derive(Clone, Debug, Default)]
pub struct Services {
    streams: BTreeMap<&'static str, Sender<Incoming>>,
    calls: BTreeMap<&'static str, Sender<Question>>,
}

impl Services {
    /// Streams of this service go to `queue`.
    pub fn streams(&mut self, service: &'static str, queue: Sender<Incoming>) {
        self.streams.insert(service, queue);
    }

    /// Questions to this service go to `queue`.
    pub fn calls(&mut self, service: &'static str, queue: Sender<Question>) {
        self.calls.insert(service, queue);
    }
}

/// A stream that the other end began.
#[derive(Debug)]
pub struct Incoming {
    /// What the other end told the service to begin with.
    pub header: Vec<u8>,
    /// The stream.
    pub stream: Stream,
}

/// A question of the other end's. Dropped without an answer, the asker is told.
#[derive(Debug)]
pub struct Question {
    /// The question.
    pub question: Vec<u8>,
    /// When nobody waits any longer, in the time of [`Tasks::now`].
    pub deadline: Duration,
    call: u64,
    channels: Channels,
}

impl Question {
    /// Answers, or says why not.
    pub fn answer(self, outcome: Result<Vec<u8>, String>) {
        self.channels.lock().calls.answer(self.call, outcome);
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Counts for nothing if it was answered.
        self.channels.lock().calls.answer(self.call, Err("the service gave no answer".into()));
        self.channels.kick();
    }
}

/// Why a stream cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// [`STREAMS`] are open, or the header is over its limit.
    #[error("{STREAMS} streams to the other end are open already, or a header is too long")]
    Full,
    /// The connection is over.
    #[error("the connection has ended: {0}")]
    Closed(String),
    /// The other end is of a release that knows no streams.
    #[error("the other end takes no streams: update holm there")]
    NotSpoken,
}

/// The handle of a connection's streams and calls.
#[derive(Clone)]
pub struct Channels {
    state: Arc<Mutex<State>>,
    /// Tells the connection that there may be something to send.
    kick: Sender<()>,
    tasks: Tasks,
}

struct State {
    streams: Streams,
    calls: Calls,
    /// Who waits to read and to write.
    wakers: BTreeMap<u64, (Option<Waker>, Option<Waker>)>,
    /// Who waits for an answer.
    askers: BTreeMap<u64, Sender<Result<Vec<u8>, CallError>>>,
    services: Services,
    peer: Peer,
    /// True if a call goes before the next stream.
    is_call_next: bool,
    closed: Option<String>,
}

/// What the other end has said that it can do.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    streams: bool,
    calls: bool,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

impl State {
    fn wake(&mut self, stream: u64) {
        if let Some((read, write)) = self.wakers.remove(&stream) {
            read.into_iter().chain(write).for_each(Waker::wake);
        }
    }

    fn wait(&mut self, stream: u64, is_read: bool, context: &Context<'_>) {
        let wakers = self.wakers.entry(stream).or_default();
        *(if is_read { &mut wakers.0 } else { &mut wakers.1 }) = Some(context.waker().clone());
    }

    fn settle(&mut self, effect: calls::Effect) -> Option<(u64, String, Vec<u8>, Duration)> {
        match effect {
            calls::Effect::Asked { call, service, question, deadline } => {
                return Some((call, service, question, deadline));
            }
            calls::Effect::Answered(call, outcome) => {
                if let Some(asker) = self.askers.remove(&call) {
                    // It holds one; nobody there means that it was given up.
                    let _ = asker.try_send(outcome);
                }
            }
            // The service finds out when it answers.
            calls::Effect::Forgotten(_) => {}
        }
        None
    }
}

impl Channels {
    /// Those of a new connection, and what says that there may be something to
    /// send. The edge gives odd numbers.
    pub(super) fn new(tasks: Tasks, is_edge: bool) -> (Channels, Receiver<()>) {
        let (kick, kicked) = async_channel::bounded(1);
        let state = State {
            streams: Streams::new(is_edge),
            calls: Calls::new(is_edge),
            wakers: BTreeMap::new(),
            askers: BTreeMap::new(),
            services: Services::default(),
            peer: Peer::default(),
            is_call_next: true,
            closed: None,
        };
        (Channels { state: Arc::new(Mutex::new(state)), kick, tasks }, kicked)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each operation on the state is whole or not begun.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn kick(&self) {
        // Full means that the connection is about to look anyway.
        let _ = self.kick.try_send(());
    }

    /// Begins a stream to a service of the other end. If nobody serves it
    /// there, the first read or write says so.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, service: &str, header: Vec<u8>) -> Result<Stream, OpenError> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(OpenError::Closed(reason.clone()));
        }
        if !state.peer.streams {
            return Err(OpenError::NotSpoken);
        }
        let stream = state.streams.open(service, header).ok_or(OpenError::Full)?;
        drop(state);
        self.kick();
        Ok(Stream { stream, channels: self.clone() })
    }

    /// Asks a service of the other end. Dropped before the answer, the other
    /// end is told that nobody waits.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn ask(&self, service: &str, question: Vec<u8>, limit: Duration) -> Result<Vec<u8>, CallError> {
        let (answer, answered) = async_channel::bounded(1);
        let call = {
            let mut state = self.lock();
            if let Some(reason) = &state.closed {
                return Err(CallError::Closed(reason.clone()));
            }
            if !state.peer.calls {
                return Err(CallError::NotSpoken);
            }
            let call = state.calls.ask(self.tasks.now(), service, question, limit)?;
            state.askers.insert(call, answer);
            call
        };
        self.kick();
        let _asked = Asked { call, channels: self };
        answered.recv().await.unwrap_or_else(|_| Err(CallError::Closed("it was dropped".into())))
    }

    /// Takes over what the other end can do, from its `Hello` or `Welcome`.
    pub(super) fn set_peer(&self, features: &[String]) {
        let has = |feature: &str| features.iter().any(|it| it == feature);
        self.lock().peer = Peer { streams: has(FEATURE_STREAMS), calls: has(FEATURE_CALLS) };
    }

    /// Who answers the other end from now on.
    pub(super) fn set_services(&self, services: Services) {
        self.lock().services = services;
    }

    /// Takes a frame of the other end's. Errors end the connection.
    pub(super) fn frame(&self, body: Body) -> Result<(), String> {
        let mut state = self.lock();
        if matches!(body, Body::Call(_) | Body::Answer(_) | Body::Cancel(_)) {
            let effect = state.calls.frame(self.tasks.now(), body).map_err(|broken| broken.to_string())?;
            if let Some((call, service, question, deadline)) = effect.and_then(|effect| state.settle(effect))
            {
                let queue = state.services.calls.get(service.as_str()).cloned();
                // The lock is not held where a Question may be dropped.
                drop(state);
                self.deliver_call(queue, call, &service, question, deadline);
            }
            return Ok(());
        }
        match state.streams.frame(body).map_err(|broken| broken.to_string())? {
            Heard::Opened { stream, service, header } => match state.services.streams.get(service.as_str()) {
                None => state.streams.reset(stream, &format!("no such service: {service}")),
                Some(queue) if queue.is_full() => {
                    state.streams.reset(stream, &format!("the service is busy: {service}"));
                }
                Some(queue) => {
                    let queue = queue.clone();
                    state.streams.accept(stream);
                    drop(state);
                    let stream = Stream { stream, channels: self.clone() };
                    // A service that is gone drops the stream, which resets it.
                    let _ = queue.try_send(Incoming { header, stream });
                }
            },
            Heard::Changed(stream) => state.wake(stream),
            Heard::Nothing => {}
        }
        Ok(())
    }

    fn deliver_call(
        &self,
        queue: Option<Sender<Question>>,
        call: u64,
        service: &str,
        question: Vec<u8>,
        deadline: Duration,
    ) {
        let question = Question { question, deadline, call, channels: self.clone() };
        let Some(queue) = queue else {
            return question.answer(Err(format!("no such service: {service}")));
        };
        if let Err(back) = queue.try_send(question) {
            back.into_inner().answer(Err(format!("the service is busy: {service}")));
        }
    }

    /// Credit to give, ahead of all bulk.
    pub(super) fn next_credit(&self) -> Option<Body> {
        self.lock().streams.next_credit()
    }

    /// The next frame of a call or a stream, in turns.
    pub(super) fn next_bulk(&self) -> Option<Body> {
        let mut state = self.lock();
        let is_call_next = std::mem::replace(&mut state.is_call_next, true);
        if is_call_next && let Some(body) = state.calls.next_frame() {
            state.is_call_next = false;
            return Some(body);
        }
        if let Some((stream, body)) = state.streams.next_bulk() {
            state.wake(stream);
            return Some(body);
        }
        state.calls.next_frame()
    }

    /// When [`Channels::tick`] is due.
    pub(super) fn next_tick(&self) -> Option<Duration> {
        self.lock().calls.next_tick()
    }

    /// Deadlines may have passed.
    pub(super) fn tick(&self) {
        let mut state = self.lock();
        for effect in state.calls.tick(self.tasks.now()) {
            state.settle(effect);
        }
    }

    /// The connection is over: so is all that it carried.
    pub(super) fn close(&self, reason: &str) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| reason.to_owned());
        for (_, asker) in std::mem::take(&mut state.askers) {
            let _ = asker.try_send(Err(CallError::Closed(reason.to_owned())));
        }
        for (_, (read, write)) in std::mem::take(&mut state.wakers) {
            read.into_iter().chain(write).for_each(Waker::wake);
        }
    }

    /// Bytes of streams that have left this end, and that have arrived.
    pub fn traffic(&self) -> (u64, u64) {
        self.lock().streams.traffic()
    }
}

/// A question under way.
struct Asked<'a> {
    call: u64,
    channels: &'a Channels,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.channels.lock();
        if state.askers.remove(&self.call).is_some() {
            state.calls.give_up(self.call);
            self.channels.kick();
        }
    }
}

/// A stream of bytes both ways. Closing ends this end's half once all of it
/// has left; dropping it before resets the stream.
#[derive(Debug)]
pub struct Stream {
    stream: u64,
    channels: Channels,
}

impl Stream {
    /// Ends both halves at once; the other end is told why.
    pub fn reset(self, reason: &str) {
        self.channels.lock().streams.reset(self.stream, reason);
    }

    fn poll<T>(
        &self,
        context: &Context<'_>,
        is_read: bool,
        act: impl FnOnce(&mut Streams) -> Result<Option<T>, String>,
    ) -> Poll<io::Result<T>> {
        let mut state = self.channels.lock();
        let outcome = act(&mut state.streams);
        let outcome = match (outcome, &state.closed) {
            (Ok(None), Some(reason)) => Err(reason.clone()),
            (outcome, _) => outcome,
        };
        match outcome {
            Ok(None) => {
                state.wait(self.stream, is_read, context);
                drop(state);
                self.channels.kick();
                Poll::Pending
            }
            Ok(Some(value)) => {
                drop(state);
                self.channels.kick();
                Poll::Ready(Ok(value))
            }
            Err(reason) => {
                let kind = if is_read { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe };
                Poll::Ready(Err(io::Error::new(kind, reason)))
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.channels.lock();
        state.streams.release(self.stream);
        state.wakers.remove(&self.stream);
        drop(state);
        self.channels.kick();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.stream;
        self.poll(context, true, |streams| match buffer.is_empty() {
            true => Ok(Some(0)),
            false => streams.read(stream, buffer),
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.stream;
        self.poll(context, false, |streams| streams.write(stream, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream;
        self.poll(context, false, |streams| Ok(streams.has_left(stream)?.then_some(())))
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream;
        self.poll(context, false, |streams| {
            streams.finish(stream);
            Ok(streams.has_left(stream)?.then_some(()))
        })
    }
}
