//! Upload of a pack to a repository: during compression and afterwards, with faults and kills, and not at all if the pack is
//! damaged.
#![allow(clippy::disallowed_methods)]

mod deletion;
mod failures;
mod fixture;
mod model_card;
mod refusals;
