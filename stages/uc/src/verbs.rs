//! One module per verb: each turns its arguments into calls and prints its result on standard output.

use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::progress::Display;
use crate::report::summary;
use crate::schedule::limits::Limits;
use crate::session::Session;

pub mod bench;
pub mod completions;
pub mod compress;
pub mod diff;
pub mod eval;
pub mod export;
pub mod generate;
pub mod inspect;
pub mod man;
pub mod plan;
pub mod resume;
pub mod serve;
pub mod stage;
pub mod status;
pub mod upload;
pub mod verify;

/// Runs every job of a session that is not up to date, then prints the summary of the run.
fn work_and_summarize(
    session: &Session,
    programs: &Programs,
    limits: Limits,
    json: bool,
    display: &mut Display,
    signals: &Listener,
) -> anyhow::Result<()> {
    let outcome = session.work(programs, limits, display, signals);
    summary::finish(
        &session.run,
        &session.plan,
        outcome,
        limits.budget.cpus,
        json,
        display,
    )
}
