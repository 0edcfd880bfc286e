//! The source of a run whose shards are fetched on demand: which job reads which shards, and what that downloads.
//!
//! Keeps the state and the order of reads for the driver, which moves the files.

use std::collections::BTreeMap;

use indicatif::BinaryBytes;
use uc_settings::SourceRetention;
use uc_store::ExitCode;
use uc_store::freshness::PendingWork;
use uc_store::plan::{JobId, Plan, SOURCE, Unit};

use crate::report::failure::failure;
use crate::schedule::scheduler::{Budget, Scheduler, Status};
use crate::schedule::shards::{Shards, Traffic};

/// The source of a run whose shards are fetched on demand.
#[derive(Debug)]
pub struct Source {
    /// State of every shard.
    pub shards: Shards,
    /// Consecutive retries of a fetch.
    pub retries: u32,
    /// The stage that fetches.
    stage: String,
    /// Bytes that the shards may take up.
    budget: u64,
    /// The shards that each job reads; jobs that read none are left out.
    needs: BTreeMap<JobId, Vec<usize>>,
    /// The remaining jobs in their expected order.
    order: Vec<JobId>,
}

impl Source {
    /// The source of a plan; none if the whole source stays on disk.
    ///
    /// # Errors
    /// If the plan has no stage that fetches shards, or if its budget is smaller than what one job reads.
    pub fn new(plan: &Plan, work: &PendingWork, budget: Budget) -> anyhow::Result<Option<Self>> {
        let budget_bytes = source_budget(plan);
        let is_on_disk = |number: usize| plan.externals[SOURCE].files[number].path.exists();
        let Some(shards) = Shards::new(plan, budget_bytes, is_on_disk) else {
            return Ok(None);
        };
        let stage = plan.fetcher().ok_or_else(|| {
            let message = "found no stage with per = \"shard\", expected one: the source's shards are fetched on demand";
            failure(ExitCode::BadPipeline, message)
        })?;
        check_budget(plan)?;
        Ok(Some(Self {
            shards,
            retries: 0,
            stage: stage.name.clone(),
            budget: budget_bytes,
            needs: shard_needs(plan),
            order: Scheduler::sequential_order(plan, work, budget),
        }))
    }

    /// What the remaining jobs will download.
    pub fn traffic(&self) -> Traffic {
        let jobs = self.order.iter().filter_map(|id| self.needs.get(id));
        self.shards.forecast(jobs.map(Vec::as_slice))
    }

    /// Downloads and disk use of the run, for the user; `other_bytes` is the peak of everything but the shards.
    pub fn summary(&self, plan: &Plan, other_bytes: Option<u64>) -> String {
        let shards: Vec<usize> = plan.shards().map(|(number, _)| number).collect();
        let (total, traffic) = (self.shards.bytes(&shards), self.traffic());
        let peak = self.budget.min(total);
        let mut readers: Vec<&str> = Vec::new();
        for id in self.order.iter().filter(|id| self.needs.contains_key(id)) {
            if !readers.contains(&id.stage.as_str()) {
                readers.push(&id.stage);
            }
        }
        let readers = match readers.as_slice() {
            [] => "no stage".into(),
            readers => readers.join(", "),
        };
        let disk = match other_bytes {
            Some(other) => format!(
                "about {} of disk in total, of which {} for the pack and intermediate files",
                BinaryBytes(peak.saturating_add(other)),
                BinaryBytes(other)
            ),
            None => "pack and intermediate files not included".into(),
        };
        format!(
            "source: {} in {} shards, to be read by {readers}; about {} fetches, {} to download, at most {} of shards on \
             disk; {disk}",
            BinaryBytes(total),
            shards.len(),
            traffic.fetches,
            BinaryBytes(traffic.bytes),
            BinaryBytes(peak),
        )
    }

    /// The stage that fetches.
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// The job that fetches a shard.
    pub fn fetch_job(&self, shard: usize) -> JobId {
        JobId {
            stage: self.stage.clone(),
            unit: Unit::Shard(u32::try_from(shard).expect("at most as many shards as tensors")),
        }
    }

    /// The shard that a job fetches; none for any other job.
    pub fn fetched_by(&self, id: &JobId) -> Option<usize> {
        id.unit.shard().map(|shard| shard as usize)
    }

    /// Whether all shards that a job reads are present.
    pub fn is_present_for(&self, id: &JobId) -> bool {
        let needs = self.needs.get(id);
        needs.is_none_or(|shards| self.shards.are_present(shards))
    }

    /// The upcoming reads in order: of running jobs, of jobs that could start, then of the remaining jobs.
    pub fn upcoming_reads<'a>(
        &self,
        scheduler: &Scheduler<'_>,
        running: impl Iterator<Item = &'a JobId>,
    ) -> Vec<usize> {
        let mut reads = Vec::new();
        let mut add = |id: &JobId| reads.extend(self.needs.get(id).into_iter().flatten());
        running.for_each(&mut add);
        scheduler.runnable().iter().for_each(&mut add);
        let is_pending = |id: &&JobId| {
            scheduler
                .status(id)
                .is_some_and(|status| !matches!(status, Status::Done | Status::Held))
        };
        self.order.iter().filter(is_pending).for_each(add);
        reads
    }
}

/// Bytes that the shards of a plan may take up.
fn source_budget(plan: &Plan) -> u64 {
    let retention = &plan.settings.retention;
    match retention.source {
        SourceRetention::Evict => retention.budget.0,
        SourceRetention::Keep => u64::MAX,
    }
}

/// The shards that each job reads; jobs that read none are left out.
fn shard_needs(plan: &Plan) -> BTreeMap<JobId, Vec<usize>> {
    let mut needs = BTreeMap::new();
    for spec in &plan.stages {
        for unit in spec.units(plan.model.layers) {
            let shards = plan.shards_of(spec, unit);
            let id = JobId {
                stage: spec.name.clone(),
                unit,
            };
            if !shards.is_empty() {
                needs.insert(id, shards);
            }
        }
    }
    needs
}

/// Checks that the budget holds what any single job reads.
///
/// # Errors
/// If it does not: names the budget, the job that reads most, and its bytes.
pub fn check_budget(plan: &Plan) -> anyhow::Result<()> {
    let files = plan
        .externals
        .get(SOURCE)
        .map_or(&[][..], |source| &source.files);
    let total_size = |shards: &[usize]| shards.iter().map(|shard| files[*shard].size).sum::<u64>();
    let needs = shard_needs(plan);
    let needs = needs
        .iter()
        .map(|(id, shards)| (total_size(shards), id, shards.len()));
    let budget = source_budget(plan);
    match needs.max_by_key(|(bytes, ..)| *bytes) {
        Some((bytes, id, count)) if bytes > budget => {
            let message = format!(
                "retention.budget: found {} ({budget} bytes), expected at least {} ({bytes} bytes) for the {count} \
                 shards that {id} reads",
                BinaryBytes(budget),
                BinaryBytes(bytes),
            );
            Err(failure(ExitCode::BadPipeline, message))
        }
        _ => Ok(()),
    }
}
