//! One module per verb: each turns its arguments into calls and prints its result on standard output.

pub mod compress;
pub mod eval;
pub mod inspect;
pub mod plan;
pub mod resume;
pub mod stage;
pub mod status;
pub mod upload;
pub mod verify;
