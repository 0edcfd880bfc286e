//! What the jobs of a run may use together: cores and memory, by default those that the machine has; and what to do if a job
//! needs more memory than that.

use indicatif::BinaryBytes;
use serde::Serialize;
use uc_settings::Size;
use uc_store::ExitCode;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{Plan, StagePlan};
use uc_store::resources::{self, MemoryBound};

use crate::plan::pipeline::memory;
use crate::report::failure::failure;
use crate::schedule::scheduler::Budget;

/// Share of the memory that the machine has left which stays free: for the driver, file caches and other programs.
const MARGIN: f64 = 0.1;
/// Settings that bound the memory of a job, the first to lower first, each with the least value that is suggested.
const SMALLER: [(&str, u32); 4] = [
    ("calibration.max_input_block", 1024),
    ("calibration.max_output_block", 256),
    ("calibration.length", 512),
    ("evaluation.length", 512),
];

/// What jobs may use together, and where the limit of memory comes from.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Cores and bytes.
    pub budget: Budget,
    /// Where the bytes come from.
    pub origin: Origin,
}

/// Where a limit of memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The option `--memory`.
    Option,
    /// The memory that is available on the machine.
    Available,
    /// The limit of a control group.
    ControlGroup,
}

impl Limits {
    /// The limits for a number of threads: the memory of the option `--memory`, else what the machine has left.
    ///
    /// # Errors
    /// If the option is not a size.
    pub fn new(threads: u32, option: Option<&str>) -> anyhow::Result<Self> {
        let (memory, origin) = match option {
            Some(text) => {
                let size = text.parse().ok().filter(|size| *size > Size(0));
                let Size(bytes) = size.ok_or_else(|| {
                    let message = format!(
                        "--memory: found {text}, expected a size such as \"64 GiB\" or \"24 GB\""
                    );
                    failure(ExitCode::Usage, message)
                })?;
                (bytes, Origin::Option)
            }
            None => {
                let (bytes, bound) = resources::usable_memory();
                let bytes = (bytes as f64 * (1.0 - MARGIN)) as u64;
                let origin = match bound {
                    MemoryBound::Available => Origin::Available,
                    MemoryBound::ControlGroup => Origin::ControlGroup,
                };
                (bytes, origin)
            }
        };
        let budget = Budget {
            cpus: threads,
            memory,
        };
        Ok(Self { budget, origin })
    }

    /// The limit of memory and where it comes from.
    pub fn describe_memory(&self) -> String {
        describe_memory(self.budget.memory, self.origin)
    }

    /// Checks that every stage with work fits into the memory.
    ///
    /// # Errors
    /// The stage that needs the most, with what would make it fit.
    pub fn check(
        &self,
        plan: &Plan,
        model: Option<&ModelSummary>,
        has_work: impl Fn(&StagePlan) -> bool,
    ) -> anyhow::Result<()> {
        let stages = plan.stages.iter().filter(|stage| has_work(stage));
        let Some(largest) = stages.max_by_key(|stage| stage.memory) else {
            return Ok(());
        };
        if self.budget.memory == 0 || largest.memory <= self.budget.memory {
            return Ok(());
        }
        let declared = largest.declared_memory.as_deref();
        let declared = declared.map_or_else(String::new, |terms| format!(" ({terms})"));
        let needed = BinaryBytes(largest.memory);
        let mut message = format!(
            "a job of stage {} takes up to {needed}{declared}, but jobs may take {}; nothing was started. ",
            largest.name,
            self.describe_memory(),
        );
        let smaller = model.and_then(|model| smaller_setting(plan, model, self.budget));
        if let Some((setting, bytes)) = smaller {
            message += &format!(
                "With --set {setting} the largest job takes {}. ",
                BinaryBytes(bytes)
            );
        }
        message += &format!(
            "A machine with {needed} free has room; --memory \"{} GiB\" starts anyway",
            whole_gibibytes(largest.memory)
        );
        Err(failure(ExitCode::Usage, message))
    }
}

/// A limit of memory and where it comes from.
pub fn describe_memory(bytes: u64, origin: Origin) -> String {
    if bytes == 0 {
        return "any amount".into();
    }
    let origin = match origin {
        Origin::Option => "--memory",
        Origin::Available => "90 % of what is available",
        Origin::ControlGroup => "90 % of the control group's",
    };
    format!("{} ({origin})", BinaryBytes(bytes))
}

fn whole_gibibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 30)
}

/// The mildest change of one setting with which every job fits, and the bytes of the largest one then; none if no single
/// setting is enough.
pub fn smaller_setting(plan: &Plan, model: &ModelSummary, budget: Budget) -> Option<(String, u64)> {
    SMALLER.iter().find_map(|&(key, least)| {
        let (section, field) = key.split_once('.')?;
        let start: u32 = plan.settings.fields(section).get(field)?.parse().ok()?;
        let halves = std::iter::successors(Some(start / 2), |value| Some(value / 2));
        halves
            .take_while(|value| *value >= least)
            .find_map(|value| {
                let mut changed = plan.clone();
                changed.settings.set(key, &value.to_string()).ok()?;
                memory::refresh(&mut changed, model, budget.cpus);
                let running = changed.stages.iter().filter(|stage| !stage.optional);
                let bytes = running.map(|stage| stage.memory).max()?;
                (bytes <= budget.memory).then(|| (format!("{key}={value}"), bytes))
            })
    })
}

#[cfg(test)]
mod tests;
