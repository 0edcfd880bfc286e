//! Processes and signals: where the stage programs are, how they are started and stopped, what the driver hears of them.
//!
//! Knows nothing of plans, jobs in order or budgets.

pub mod programs;
pub mod runner;
pub mod signals;
