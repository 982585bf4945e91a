//! What a person types: each command is a function here, and `main` only chooses one.

pub mod token;
