//! Holm
