//! The websocket under a session: frames in and out, with small buffers, and
//! never a reader that waits for a writer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_channel::{Receiver, Sender};
use async_tungstenite::tungstenite::protocol::WebSocketConfig;
use async_tungstenite::tungstenite::{Error as WsError, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use futures_lite::{AsyncRead, AsyncWrite, StreamExt, future};
use smol::{Executor, Task};

use super::frame::{Frame, FrameError, MAX_FRAME};

/// Any byte stream under a websocket.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A boxed byte stream, so that sessions are compiled once.
pub type BoxIo = Box<dyn Io>;

/// The path of the link's websocket; the version of the protocol is in the
/// frames.
pub const PATH: &str = "/holm/link";
/// The websocket subprotocol (RFC 6455 section 1.9).
pub const SUBPROTOCOL: &str = "holm.v1";

/// Why a link broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end closed the connection.
    #[error("the other end closed the connection")]
    Closed,
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A websocket message that is not a frame's.
    #[error("a websocket message that is not binary")]
    NotBinary,
    /// The transport failed.
    #[error("{0}")]
    Socket(String),
}

impl From<WsError> for LinkError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed => LinkError::Closed,
            WsError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => LinkError::Closed,
            WsError::Io(error) => LinkError::Socket(crate::trust::tls::explain(&error)),
            other => LinkError::Socket(other.to_string()),
        }
    }
}

/// The websocket settings of both ends: the defaults would take 146 KiB a
/// connection and accept 64 MiB.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(MAX_FRAME + 64 * 1024)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME))
}

/// The settings of the cloud's end for a client without a certificate: the only message that it may send is a
/// [`super::frame::Join`], whose request has at most 4 KiB.
pub fn stranger_config() -> WebSocketConfig {
    config().max_message_size(Some(STRANGER_MAX)).max_frame_size(Some(STRANGER_MAX))
}

/// The longest message of a client without a certificate, in bytes.
const STRANGER_MAX: usize = 8 * 1024;

/// A byte stream that tells when bytes come.
struct Watched {
    io: BoxIo,
    has_read: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_read(context, buffer);
        if matches!(outcome, Poll::Ready(Ok(count)) if count > 0) {
            self.has_read.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_close(context)
    }
}

/// What comes out of a [`Link`].
#[derive(Debug)]
pub enum Wire {
    /// A frame.
    Frame(Frame),
    /// The writer has taken a frame: there is room again.
    Room,
    /// The end.
    Closed(LinkError),
}

/// Frames that wait for the writer at most, beside one of bulk.
const WRITER_QUEUE: usize = 4;

/// One websocket as frames.
pub struct Link {
    reader: WebSocketReceiver<BoxIo>,
    frames: Sender<Vec<u8>>,
    bulk: Sender<Vec<u8>>,
    room: Receiver<()>,
    has_read: Arc<AtomicBool>,
    writer: Task<Result<(), LinkError>>,
}

impl Link {
    /// Wraps a websocket whose handshake is done. The writer runs on
    /// `executor` and ends with the link.
    pub fn new(mut socket: WebSocketStream<BoxIo>, executor: &Executor<'static>) -> Link {
        let has_read = Arc::new(AtomicBool::new(false));
        let io = std::mem::replace(socket.get_mut(), Box::new(futures_lite::io::Cursor::new(Vec::new())));
        *socket.get_mut() = Box::new(Watched { io, has_read: has_read.clone() });
        let (sender, reader) = socket.split();
        let (frames, queue) = async_channel::bounded(WRITER_QUEUE);
        let (bulk, bulk_queue) = async_channel::bounded(1);
        let (has_room, room) = async_channel::bounded(1);
        let writer = executor.spawn(write(sender, queue, bulk_queue, has_room));
        Link { reader, frames, bulk, room, has_read, writer }
    }

    /// True if any bytes have come since the last call and the last frame: of a
    /// long frame over a slow network nothing else is seen for a while.
    pub fn has_read(&self) -> bool {
        self.has_read.swap(false, Ordering::Relaxed)
    }

    /// True if the writer takes one more frame; if not, wait for
    /// [`Wire::Room`].
    pub fn is_ready(&self) -> bool {
        !self.frames.is_full()
    }

    /// Gives a frame to the writer. Call only while [`Link::is_ready`]: a frame
    /// too many is lost. After the link has closed, frames go nowhere and
    /// [`Link::next`] says so.
    pub fn send(&self, frame: &Frame) {
        let _ = self.frames.try_send(frame.encode());
    }

    /// True if the writer takes one more frame of bulk; if not, wait for
    /// [`Wire::Room`].
    pub fn is_ready_for_bulk(&self) -> bool {
        !self.bulk.is_full()
    }

    /// Like [`Link::send`], for a frame that all others overtake until the
    /// writer has begun with it.
    pub fn send_bulk(&self, frame: &Frame) {
        let _ = self.bulk.try_send(frame.encode());
    }

    /// Waits for what comes next. May be dropped and called again.
    pub async fn next(&mut self) -> Wire {
        let (reader, has_read) = (&mut self.reader, &self.has_read);
        let read = async {
            loop {
                return match reader.next().await {
                    None => Wire::Closed(LinkError::Closed),
                    Some(Err(error)) => Wire::Closed(error.into()),
                    Some(Ok(Message::Binary(bytes))) => {
                        has_read.store(false, Ordering::Relaxed);
                        match Frame::decode(&bytes) {
                            Ok(frame) => Wire::Frame(frame),
                            Err(error) => Wire::Closed(error.into()),
                        }
                    }
                    Some(Ok(Message::Text(_))) => Wire::Closed(LinkError::NotBinary),
                    Some(Ok(Message::Close(_))) => Wire::Closed(LinkError::Closed),
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                        // However many of them come, others have their turns.
                        futures_lite::future::yield_now().await;
                        continue;
                    }
                };
            }
        };
        let room = async {
            match self.room.recv().await {
                Ok(()) => Wire::Room,
                // The writer has failed; the reader will say why, or soon does.
                Err(_) => future::pending().await,
            }
        };
        future::or(read, room).await
    }

    /// Sends what waits, then closes the websocket. Only once.
    pub async fn close(&mut self) {
        self.frames.close();
        // The reason no longer matters to anyone.
        let _ = (&mut self.writer).await;
    }
}

async fn write(
    mut sender: WebSocketSender<BoxIo>,
    queue: Receiver<Vec<u8>>,
    bulk: Receiver<Vec<u8>>,
    room: Sender<()>,
) -> Result<(), LinkError> {
    loop {
        let next = async { queue.recv().await.ok() };
        let next_bulk = async {
            match bulk.recv().await {
                Ok(bytes) => Some(bytes),
                Err(_) => future::pending().await,
            }
        };
        let Some(bytes) = future::or(next, next_bulk).await else { break };
        sender.send(Message::Binary(bytes.into())).await?;
        // Full means that the reader has not yet noticed the room before.
        let _ = room.try_send(());
    }
    sender.close(None).await?;
    Ok(())
}
