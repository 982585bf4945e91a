//! What both ends of the websocket share: frames, the session, the queue of
//! what is to be sent, and the socket itself.
//!
//! State is replicated, commands are not queued. On connect the edge says with
//! one digest what it holds; only where that differs it lists its holdings,
//! and the cloud answers with the difference. Then changes flow, each frame
//! with a sequence number that the other end acknowledges once it has done
//! what the frame asks.

pub mod calls;
pub mod channels;
pub mod compress;
pub mod connection;
pub mod frame;
#[cfg(test)]
mod frozen;
pub mod keepalive;
pub mod outgoing;
pub mod session;
pub mod shape;
pub mod socket;
pub mod streams;
pub mod sync;

pub use connection::{Connection, Heard};
pub use frame::{Body, Frame, FrameError, Holding, ItemId};
pub use outgoing::{Latest, Outgoing};
pub use session::{Effect, Event, Session};
pub use socket::{Link, LinkError, Wire};
