//! Streams of bytes beside the state: credit, turns and ends, without a clock
//! or a socket.
//!
//! ```text
//!   write ─► outgoing ─ next_bulk ─► Open, Data, End ─► peer ─► frame ─► incoming ─► read
//!                          ▲ credit                                                   │
//!                          └──────── Credit ◄─ next_credit ◄──────────────────────────┘
//! ```
//!
//! Frames of streams are not numbered: a stream dies with its connection. Each
//! end has at most [`STREAMS`] streams open that it began itself, and nobody
//! sends more on one than it was given credit for. So an end keeps at most
//! [`CREDIT`] bytes a stream of what arrives and [`SEND_BUFFER`] of what
//! leaves, and an order waits at most behind the credit of the streams that are
//! open. A peer that breaks these rules is cut off ([`Violation`]).

use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;

use super::frame::{Body, Credit, Data, End, Open};

/// The longest [`Data`], in bytes: what an order can find ahead of it in the
/// writer.
pub const CHUNK: usize = 16 * 1024;
/// Bytes that may be under way on a stream, each way.
pub const CREDIT: u32 = 64 * 1024;
/// Bytes that wait to be sent on a stream at most; a writer of more waits.
pub const SEND_BUFFER: usize = 2 * CHUNK;
/// Streams that one end may have begun and not ended.
pub const STREAMS: usize = 16;
/// The longest name of a service, in bytes.
pub const MAX_SERVICE: usize = 128;
/// The longest [`Open::header`], in bytes.
pub const MAX_HEADER: usize = 4096;
/// The longest [`End::reason`] that is kept, in bytes.
const MAX_REASON: usize = 512;

/// How a peer broke the rules of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A number of the other end's, or one that was used before.
    #[error("it opened a stream under a number that is not its to give")]
    Number,
    /// More than [`STREAMS`].
    #[error("it opened more than {STREAMS} streams")]
    TooMany,
    /// A service or header that is too long.
    #[error("it opened a stream with a header over the limit")]
    Header,
    /// A frame of a stream that never was.
    #[error("it spoke of a stream that nobody opened")]
    Unknown,
    /// More than it was given credit for.
    #[error("it sent more on a stream than it was given credit for")]
    Credit,
    /// More than [`CHUNK`].
    #[error("it sent more than {CHUNK} bytes of a stream in one frame")]
    Chunk,
    /// Something after its `End`.
    #[error("it sent on a stream that it had ended")]
    AfterEnd,
}

/// What a peer's frame means for the owners of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The peer began a stream: [`Streams::accept`] it or [`Streams::reset`] it.
    Opened {
        /// Its number.
        stream: u64,
        /// What it is for.
        service: String,
        /// What the service is told.
        header: Vec<u8>,
    },
    /// Something about this stream is new: read and write again.
    Changed(u64),
    /// Nothing that matters any more.
    Nothing,
}

/// The streams of one connection; both ends have one.
#[derive(Debug)]
pub struct Streams {
    streams: BTreeMap<u64, Stream>,
    /// The next number of this end's.
    next: u64,
    /// The newest number of the peer's.
    newest: u64,
    /// Streams whose `Open` has not left.
    opening: VecDeque<u64>,
    /// The stream whose turn was last.
    turn: u64,
    /// Bytes that may still arrive for streams that were reset here.
    stale: u64,
    /// Bytes of `Data` that have left, and that have arrived.
    traffic: (u64, u64),
}

#[derive(Debug, Default)]
struct Stream {
    /// What its `Open` says, until that has left.
    open: Option<(String, Vec<u8>)>,
    /// True while this end reads or writes it.
    is_held: bool,
    outgoing: VecDeque<u8>,
    may_send: u32,
    /// True if nothing is to follow `outgoing`.
    is_finished: bool,
    has_sent_end: bool,
    incoming: VecDeque<u8>,
    /// What the peer may still send.
    granted: u32,
    /// What was read and has not been granted again.
    read: u32,
    has_heard_end: bool,
    /// Why this end ends it, until that has left.
    resetting: Option<String>,
    /// Why it is over at once.
    failed: Option<String>,
}

impl Stream {
    /// True while there may be frames about it.
    fn is_live(&self) -> bool {
        self.failed.is_none() && !(self.has_sent_end && self.has_heard_end)
    }

    /// True if it has a frame for [`Streams::next_bulk`].
    fn has_bulk(&self) -> bool {
        self.is_live()
            && (self.open.is_some()
                || !self.outgoing.is_empty() && self.may_send > 0
                || self.is_end_due()
                || self.is_reset_due())
    }

    fn is_end_due(&self) -> bool {
        self.is_finished && !self.has_sent_end && self.outgoing.is_empty()
    }

    fn is_reset_due(&self) -> bool {
        // What was finished before is still sent.
        self.resetting.is_some() && (!self.is_finished || self.has_sent_end)
    }

    fn is_credit_due(&self) -> bool {
        self.is_live() && self.open.is_none() && !self.has_heard_end && self.read >= CREDIT / 2
    }
}

impl Streams {
    /// No streams yet. The edge gives odd numbers, the cloud even ones.
    pub fn new(is_edge: bool) -> Streams {
        Streams {
            streams: BTreeMap::new(),
            next: if is_edge { 1 } else { 2 },
            newest: 0,
            opening: VecDeque::new(),
            turn: 0,
            stale: 0,
            traffic: (0, 0),
        }
    }

    fn is_mine(&self, stream: u64) -> bool {
        stream % 2 == self.next % 2
    }

    /// Begins a stream; gives its number, or `None` if there are [`STREAMS`]
    /// already or the name or the header is too long.
    pub fn open(&mut self, service: &str, header: Vec<u8>) -> Option<u64> {
        let mine = self.streams.keys().filter(|stream| self.is_mine(**stream)).count();
        if mine >= STREAMS || service.len() > MAX_SERVICE || header.len() > MAX_HEADER {
            return None;
        }
        let stream = self.next;
        self.next += 2;
        let open = Some((service.to_owned(), header));
        self.streams.insert(stream, Stream { open, is_held: true, granted: CREDIT, ..Stream::default() });
        self.opening.push_back(stream);
        Some(stream)
    }

    /// Takes a stream that the peer began.
    pub fn accept(&mut self, stream: u64) {
        if let Some(it) = self.streams.get_mut(&stream)
            && !it.is_held
            && it.resetting.is_none()
        {
            it.is_held = true;
            // Granted by the first Credit.
            it.read = CREDIT;
        }
    }

    /// Takes bytes to send; gives how many, `None` if none can be taken now.
    ///
    /// # Errors
    /// The stream is over, for this reason.
    pub fn write(&mut self, stream: u64, bytes: &[u8]) -> Result<Option<usize>, String> {
        let it = self.streams.get_mut(&stream).ok_or("the stream is over")?;
        if let Some(reason) = it.failed.as_ref().or(it.resetting.as_ref()) {
            return Err(reason.clone());
        }
        if it.is_finished {
            return Err("this half of the stream has ended".into());
        }
        let room = SEND_BUFFER.saturating_sub(it.outgoing.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        it.outgoing.extend(taken);
        Ok((!taken.is_empty() || bytes.is_empty()).then_some(taken.len()))
    }

    /// Nothing more will be written.
    pub fn finish(&mut self, stream: u64) {
        if let Some(it) = self.streams.get_mut(&stream) {
            it.is_finished = true;
        }
    }

    /// True once the stream is open and all that was written has left, and the
    /// `End` if it was the last.
    ///
    /// # Errors
    /// The stream is over, for this reason.
    pub fn has_left(&self, stream: u64) -> Result<bool, String> {
        let Some(it) = self.streams.get(&stream) else { return Ok(true) };
        match &it.failed {
            Some(reason) if !it.has_sent_end => Err(reason.clone()),
            _ => Ok(it.has_sent_end || it.open.is_none() && it.outgoing.is_empty() && !it.is_finished),
        }
    }

    /// Moves what has arrived into `buffer`; gives how much, 0 at the end of
    /// the peer's half, `None` if there is nothing yet.
    ///
    /// # Errors
    /// The stream is over, for this reason.
    pub fn read(&mut self, stream: u64, buffer: &mut [u8]) -> Result<Option<usize>, String> {
        let it = self.streams.get_mut(&stream).ok_or("the stream is over")?;
        if it.incoming.is_empty() {
            return match &it.failed {
                _ if it.has_heard_end => Ok(Some(0)),
                Some(reason) => Err(reason.clone()),
                None => Ok(None),
            };
        }
        // Reading from memory cannot fail.
        let count = it.incoming.read(buffer).unwrap_or_default();
        it.read = it.read.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if it.incoming.is_empty() {
            it.incoming = VecDeque::new();
        }
        Ok(Some(count))
    }

    /// Ends a stream at once, both ways.
    pub fn reset(&mut self, stream: u64, reason: &str) {
        if let Some(it) = self.streams.get_mut(&stream)
            && it.resetting.is_none()
        {
            it.resetting = Some(bounded(reason.to_owned()));
            it.outgoing = VecDeque::new();
            it.incoming = VecDeque::new();
            it.is_finished = it.has_sent_end;
        }
    }

    /// Nobody reads or writes a stream any more. What was finished is still
    /// sent; what was not is reset.
    pub fn release(&mut self, stream: u64) {
        let Some(it) = self.streams.get_mut(&stream) else { return };
        it.is_held = false;
        it.incoming = VecDeque::new();
        if it.is_finished {
            it.resetting.get_or_insert_with(|| "nobody reads it any more".into());
        } else {
            self.reset(stream, "it was given up");
        }
        self.forget(stream);
    }

    /// Removes what neither end speaks of any more.
    fn forget(&mut self, stream: u64) {
        if self.streams.get(&stream).is_some_and(|it| !it.is_held && !it.is_live()) {
            self.streams.remove(&stream);
        }
    }

    /// The next Credit to send. It does not wait for bulk to leave.
    pub fn next_credit(&mut self) -> Option<Body> {
        let (stream, it) = self.streams.iter_mut().find(|(_, it)| it.is_held && it.is_credit_due())?;
        let bytes = std::mem::take(&mut it.read);
        it.granted = it.granted.saturating_add(bytes);
        Some(Body::Credit(Credit { stream: *stream, bytes }))
    }

    /// The next Open, Data or End to send, in this order on the wire, and the
    /// stream it is of: streams that have something to say take turns.
    pub fn next_bulk(&mut self) -> Option<(u64, Body)> {
        // The order of numbers is the order of Opens.
        while let Some(stream) = self.opening.pop_front() {
            let Some(it) = self.streams.get_mut(&stream) else { continue };
            let Some((service, header)) = it.open.take() else { continue };
            // Given up before anybody heard of it.
            if it.is_reset_due() {
                it.failed = it.resetting.take();
                self.forget(stream);
                continue;
            }
            return Some((stream, Body::Open(Open { stream, service, header, credit: CREDIT })));
        }
        let has_bulk = |(stream, it): (&u64, &Stream)| it.has_bulk().then_some(*stream);
        let later = self.streams.range(self.turn.saturating_add(1)..).find_map(has_bulk);
        let stream = later.or_else(|| self.streams.range(..=self.turn).find_map(has_bulk))?;
        self.turn = stream;
        let it = self.streams.get_mut(&stream)?;
        let body = if it.is_reset_due() {
            if !it.has_heard_end {
                self.stale = self.stale.saturating_add(it.granted.into());
            }
            it.failed = it.resetting.take();
            Body::End(End { stream, reason: it.failed.clone() })
        } else if it.is_end_due() {
            it.has_sent_end = true;
            Body::End(End { stream, reason: None })
        } else {
            let may_send = usize::try_from(it.may_send).unwrap_or(usize::MAX);
            let count = it.outgoing.len().min(may_send).min(CHUNK);
            let mut bytes = vec![0; count];
            // Reading from memory cannot fail.
            let _ = it.outgoing.read_exact(&mut bytes);
            it.may_send = it.may_send.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            self.traffic.0 = self.traffic.0.saturating_add(count as u64);
            Body::Data(Data { stream, bytes })
        };
        self.forget(stream);
        Some((stream, body))
    }

    /// Takes a frame of the peer's about streams; other bodies are nothing.
    ///
    /// # Errors
    /// The peer broke the rules and is to be cut off.
    pub fn frame(&mut self, body: Body) -> Result<Heard, Violation> {
        match body {
            Body::Open(open) => self.opened(open),
            Body::Data(data) => self.data(data),
            Body::Credit(Credit { stream, bytes }) => {
                let Some(it) = self.known(stream)? else { return Ok(Heard::Nothing) };
                it.may_send = it.may_send.saturating_add(bytes);
                Ok(Heard::Changed(stream))
            }
            Body::End(End { stream, reason }) => {
                let Some(it) = self.known(stream)? else { return Ok(Heard::Nothing) };
                // Both have ended it at once, for reasons of their own.
                if it.failed.is_some() {
                    return Ok(Heard::Nothing);
                }
                if it.has_heard_end && reason.is_none() {
                    return Err(Violation::AfterEnd);
                }
                if let Some(reason) = reason {
                    it.failed = Some(bounded(reason));
                    it.outgoing = VecDeque::new();
                    // The whole of a half is worth reading, a part is not.
                    if !it.has_heard_end {
                        it.incoming = VecDeque::new();
                    }
                } else {
                    it.has_heard_end = true;
                }
                self.forget(stream);
                Ok(Heard::Changed(stream))
            }
            _ => Ok(Heard::Nothing),
        }
    }

    fn opened(&mut self, open: Open) -> Result<Heard, Violation> {
        let Open { stream, service, header, credit } = open;
        if stream == 0 || self.is_mine(stream) || stream <= self.newest {
            return Err(Violation::Number);
        }
        if service.len() > MAX_SERVICE || header.len() > MAX_HEADER {
            return Err(Violation::Header);
        }
        self.newest = stream;
        let is_mine = |stream: u64| stream % 2 == self.next % 2;
        let theirs = self.streams.iter().filter(|(stream, _)| !is_mine(**stream));
        let (live, over): (Vec<_>, Vec<_>) = theirs.partition(|(_, it)| it.is_live());
        if live.len() >= STREAMS {
            return Err(Violation::TooMany);
        }
        // Streams that the peer ended and that are still held here: it cannot
        // know of them, but they are not to become many.
        let is_busy = over.len() >= STREAMS;
        self.streams.insert(stream, Stream { may_send: credit, ..Stream::default() });
        if is_busy {
            self.reset(stream, "too many streams are still being read");
            return Ok(Heard::Nothing);
        }
        Ok(Heard::Opened { stream, service, header })
    }

    fn data(&mut self, data: Data) -> Result<Heard, Violation> {
        let Data { stream, bytes } = data;
        if bytes.len() > CHUNK {
            return Err(Violation::Chunk);
        }
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.traffic.1 = self.traffic.1.saturating_add(count.into());
        let Some(it) = self.known(stream)? else {
            self.stale = self.stale.checked_sub(count.into()).ok_or(Violation::Credit)?;
            return Ok(Heard::Nothing);
        };
        if it.has_heard_end {
            return Err(Violation::AfterEnd);
        }
        if it.failed.is_some() {
            // Ended by the peer, or here while this was under way.
            self.stale = self.stale.checked_sub(count.into()).ok_or(Violation::AfterEnd)?;
            return Ok(Heard::Nothing);
        }
        it.granted = it.granted.checked_sub(count).ok_or(Violation::Credit)?;
        if it.is_held && it.resetting.is_none() {
            it.incoming.extend(bytes);
        }
        Ok(Heard::Changed(stream))
    }

    /// A stream; `None` if it is over and forgotten.
    fn known(&mut self, stream: u64) -> Result<Option<&mut Stream>, Violation> {
        let was_opened = match self.is_mine(stream) {
            true => stream < self.next,
            false => stream != 0 && stream <= self.newest,
        };
        match was_opened {
            true => Ok(self.streams.get_mut(&stream).filter(|it| it.open.is_none())),
            false => Err(Violation::Unknown),
        }
    }

    /// Bytes of all streams that wait here: `outgoing` and `incoming`.
    pub fn memory(&self) -> usize {
        self.streams.values().map(|it| it.outgoing.len() + it.incoming.len()).sum()
    }

    /// Streams that are open or still held.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes in `Data` frames that have left, and that have arrived.
    pub fn traffic(&self) -> (u64, u64) {
        self.traffic
    }
}

/// A peer's words, not too many of them.
fn bounded(mut reason: String) -> String {
    if reason.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(end);
    }
    reason
}

#[cfg(test)]
mod tests;
