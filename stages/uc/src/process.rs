//! Processes and signals: locating stage programs, starting and stopping them, receiving what they report.
//!
//! Knows nothing about plans, the order of jobs or budgets.

pub mod programs;
pub mod runner;
pub mod signals;
