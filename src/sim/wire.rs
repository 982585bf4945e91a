//! The modelled network: each connection is two pipes that keep their order.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Event, World};
use crate::link::Frame;

/// Which end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Cloud,
    Edge,
}

impl End {
    pub fn other(self) -> End {
        match self {
            End::Cloud => End::Edge,
            End::Edge => End::Cloud,
        }
    }
}

/// Frames on their way to one end.
#[derive(Default)]
struct Pipe {
    frames: VecDeque<Vec<u8>>,
    /// When the last of them arrives.
    last: Duration,
}

/// One connection.
pub struct Wire {
    /// Whose.
    pub edge: usize,
    /// Seconds a frame takes.
    delay: f64,
    pub is_cut: bool,
    /// True once a cloud has seen its first frame.
    pub accepted: bool,
    to_cloud: Pipe,
    to_edge: Pipe,
}

impl Wire {
    pub fn new(edge: usize, delay: f64) -> Wire {
        Wire {
            edge,
            delay,
            is_cut: false,
            accepted: false,
            to_cloud: Pipe::default(),
            to_edge: Pipe::default(),
        }
    }

    fn pipe(&mut self, to: End) -> &mut Pipe {
        match to {
            End::Cloud => &mut self.to_cloud,
            End::Edge => &mut self.to_edge,
        }
    }
}

impl World {
    /// A new wire; it will break some time.
    pub fn new_wire(&mut self, edge: usize) -> usize {
        let delay = match self.rng.u8(..4) {
            0 => 0.001,
            1 => 1.0,
            _ => 0.2,
        };
        self.wires.push(Wire::new(edge, delay * self.rng.f64()));
        let wire = self.wires.len() - 1;
        self.after(40.0, Event::Cut(wire));
        wire
    }

    /// A frame leaves an end.
    pub fn send(&mut self, wire: usize, from: End, frame: &Frame) {
        let now = self.now;
        let jitter = 0.5 + self.rng.f64();
        // Once in a while the network holds its breath.
        let stall = if !self.is_calm() && self.rng.u16(..500) == 0 { 25.0 * self.rng.f64() } else { 0.0 };
        let to = from.other();
        let it = &mut self.wires[wire];
        if it.is_cut {
            return;
        }
        let arrives = now + Duration::from_secs_f64(it.delay * jitter + stall);
        let pipe = it.pipe(to);
        pipe.frames.push_back(frame.encode());
        pipe.last = pipe.last.max(arrives);
        let arrives = pipe.last;
        self.at(arrives, Event::Arrive(wire, to));
    }

    /// Takes the next frame that has arrived at an end.
    pub fn take(&mut self, wire: usize, end: End) -> Option<Frame> {
        let bytes = self.wires[wire].pipe(end).frames.pop_front()?;
        Some(Frame::decode(&bytes).expect("what was encoded is read"))
    }

    /// The wire breaks: some of what is under way is lost, and an end may not
    /// be told.
    pub fn cut(&mut self, wire: usize) {
        if self.is_calm() || std::mem::replace(&mut self.wires[wire].is_cut, true) {
            return;
        }
        for end in [End::Cloud, End::Edge] {
            let kept = self.rng.usize(..=self.wires[wire].pipe(end).frames.len());
            self.wires[wire].pipe(end).frames.truncate(kept);
            if self.rng.u8(..4) != 0 {
                self.after(5.0, Event::Notice(wire, end));
            }
        }
    }

    /// An end has closed: what it sent still arrives, and then its end does.
    pub fn hang_up(&mut self, wire: usize, from: End) {
        let last = self.wires[wire].pipe(from.other()).last;
        if self.rng.u8(..4) != 0 {
            self.at(last + Duration::from_millis(1), Event::Notice(wire, from.other()));
        }
    }

    /// Frames on a wire.
    pub fn under_way(&self) -> usize {
        self.wires
            .iter()
            .map(|wire| wire.to_cloud.frames.len() + wire.to_edge.frames.len())
            .max()
            .unwrap_or(0)
    }
}
