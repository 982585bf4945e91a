//! The edge role: a board that keeps working when its network, power and clock do not.

pub mod pods;
