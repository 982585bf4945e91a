//! Holm: Kubernetes and devices at the edge in one static binary.
//!
//! The modules in reading order; `ARCHITECTURE.md` has the picture.

pub mod cri;
pub mod object;
pub mod store;
pub mod trust;
