//! Holm: Kubernetes and devices at the edge in one static binary.
//!
//! The modules in reading order; `ARCHITECTURE.md` has the picture.

// What everything speaks of: keys, revisions, values.
pub mod object;

// Objects with revisions and watches in one file.
pub mod store;

// The Kubernetes HTTP API over a store.
pub mod apiserver;

// Who is who, and what time it may be.
pub mod trust;

// What both ends of the websocket share.
pub mod link;

// The client of the container runtime.
pub mod cri;

// Supervised tasks, listeners, signs of life, log lines, the boot.
pub mod boot;
pub mod logger;
pub mod net;
pub mod notify;
pub mod task;

// The mainland.
pub mod cloud;

// The island.
pub mod edge;

// Both at once, for tests: virtual time, seeded faults.
#[cfg(test)]
mod sim;

// What a person types.
pub mod cli;
