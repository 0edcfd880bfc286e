//! The client against the fake Hub: every fault by name, hundreds by chance, and the token's whereabouts.
#![allow(clippy::disallowed_methods)]

mod answers;
mod download;
mod random;
mod secrets;
mod support;
mod upload;
