//! `uc plan RUN`: what is stale and why, and the work to be done. Writes nothing.

use uc_store::freshness;
use uc_store::run::RunDir;

use crate::cli::PlanArgs;
use crate::planning;
use crate::programs::Programs;
use crate::progress::Display;
use crate::session::explain;

/// Runs the verb.
pub fn run(args: &PlanArgs, display: &Display) -> anyhow::Result<()> {
    let (run, mut plan) = RunDir::open(&args.run)?;
    planning::apply(&mut plan.settings, &args.set)?;
    Programs::of_this_process().refresh_versions(&mut plan)?;
    let work = freshness::plan_work(&plan, &run)?;
    let to_do = work.to_run(&plan);
    for line in explain(&plan, &work) {
        println!("{line}");
    }
    println!("{} of {} jobs to do", to_do.len(), work.states.len());
    for stage in plan.stages.iter().filter(|stage| stage.optional) {
        display.detail(&format!("{} runs only when asked for", stage.name));
    }
    if !to_do.is_empty() {
        let set: Vec<String> = args.set.iter().map(|set| format!(" --set {set}")).collect();
        println!("do it: uc resume {}{}", args.run, set.concat());
    }
    Ok(())
}
