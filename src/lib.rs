//! Holm: Kubernetes and devices at the edge in one static binary.
//!
//! The modules in reading order; `ARCHITECTURE.md` has the picture.

pub mod apiserver;
pub mod cli;
pub mod cloud;
pub mod cri;
pub mod edge;
pub mod link;
pub mod logger;
pub mod net;
pub mod notify;
pub mod object;
pub mod store;
pub mod task;
pub mod trust;
