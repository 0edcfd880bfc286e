//! Tests of the client against the fake Hub: every fault once, hundreds of random faults, and that the token never
//! leaks.
#![allow(clippy::disallowed_methods)]

mod download;
mod fixture;
mod hostile;
mod random_faults;
mod responses;
mod secrets;
mod upload;
