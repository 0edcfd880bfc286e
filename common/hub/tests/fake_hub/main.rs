//! The client against the fake Hub: every fault once, hundreds at random, and no leak of the token.
#![allow(clippy::disallowed_methods)]

mod download;
mod fixture;
mod random_faults;
mod responses;
mod secrets;
mod upload;
