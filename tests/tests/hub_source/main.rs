//! Compression of a model that comes from the Hub: it is downloaded, resumed, verified and pinned to a commit.
#![allow(clippy::disallowed_methods)]

mod download;
mod eviction;
mod fixture;
mod network;
mod random_faults;
