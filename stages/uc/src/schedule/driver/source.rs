//! The source of a run as the driver sees it when shards come and go: who reads which, what that takes, and the moving.

use std::collections::BTreeMap;

use indicatif::BinaryBytes;
use uc_settings::SourceRetention;
use uc_store::ExitCode;
use uc_store::atomic;
use uc_store::events::{Event, EventKind};
use uc_store::freshness::PendingWork;
use uc_store::plan::{JobId, Plan, SOURCE, Unit};

use crate::report::failure::failure;
use crate::schedule::driver::Driver;
use crate::schedule::scheduler::{Board, Budget, Status};
use crate::schedule::shards::{Place, Shards, Step, Traffic};

/// The source of a run whose shards come and go.
#[derive(Debug)]
pub struct Source {
    /// What is where.
    pub shards: Shards,
    /// Times in a row that a fetch was started again.
    pub retries: u32,
    /// The stage that fetches.
    stage: String,
    budget: u64,
    /// The shards of every job that reads some.
    needs: BTreeMap<JobId, Vec<usize>>,
    /// The jobs that are left, in the order in which they are expected.
    order: Vec<JobId>,
}

impl Source {
    /// The source of a plan; none if all of it stays on disk.
    ///
    /// # Errors
    /// For a plan that cannot fetch what it needs: no stage for it, or a budget smaller than what one job reads.
    pub fn of(plan: &Plan, work: &PendingWork, budget: Budget) -> anyhow::Result<Option<Self>> {
        let bytes = budget_of(plan);
        let there = |number: usize| plan.externals[SOURCE].files[number].path.exists();
        let Some(shards) = Shards::of(plan, bytes, there) else {
            return Ok(None);
        };
        let stage = plan.fetcher().ok_or_else(|| {
            let message = "found no stage with per = \"shard\", expected one: the source's shards come and go";
            failure(ExitCode::BadPipeline, message)
        })?;
        check(plan)?;
        Ok(Some(Self {
            shards,
            retries: 0,
            stage: stage.name.clone(),
            budget: bytes,
            needs: needs(plan),
            order: Board::order(plan, work, budget),
        }))
    }

    /// What the jobs that are left will download.
    pub fn traffic(&self) -> Traffic {
        let jobs = self.order.iter().filter_map(|id| self.needs.get(id));
        self.shards.forecast(jobs.map(Vec::as_slice))
    }

    /// What the run will move and hold, for people; `others` are the bytes of everything else on disk at most.
    pub fn statement(&self, plan: &Plan, others: Option<u64>) -> String {
        let shards: Vec<usize> = plan.shards().map(|(number, _)| number).collect();
        let (all, traffic) = (self.shards.bytes(&shards), self.traffic());
        let most = self.budget.min(all);
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
        let disk = match others {
            Some(others) => format!(
                "about {} of disk at most, {} of them pack and intermediate files",
                BinaryBytes(most.saturating_add(others)),
                BinaryBytes(others)
            ),
            None => "pack and intermediate files on top".into(),
        };
        format!(
            "source: {} in {} shards, still to be read by {readers}; about {} fetches, {} to download, {} of shards on disk \
             at most; {disk}",
            BinaryBytes(all),
            shards.len(),
            traffic.fetches,
            BinaryBytes(traffic.bytes),
            BinaryBytes(most),
        )
    }

    /// The stage that fetches.
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// The job that fetches a shard.
    pub fn job(&self, shard: usize) -> JobId {
        JobId {
            stage: self.stage.clone(),
            unit: Unit::Shard(u32::try_from(shard).expect("at most as many shards as tensors")),
        }
    }

    /// The shard that a job fetches; none for any other job.
    pub fn fetched_by(&self, id: &JobId) -> Option<usize> {
        id.unit.shard().map(|shard| shard as usize)
    }

    /// Whether all that a job reads is there.
    pub fn is_there(&self, id: &JobId) -> bool {
        let needs = self.needs.get(id);
        needs.is_none_or(|shards| self.shards.are_here(shards))
    }

    /// The shards in the order in which they will be read: by what runs, by what could start, by what is expected.
    pub fn uses<'a>(
        &self,
        board: &Board<'_>,
        running: impl Iterator<Item = &'a JobId>,
    ) -> Vec<usize> {
        let mut uses = Vec::new();
        let mut add = |id: &JobId| uses.extend(self.needs.get(id).into_iter().flatten());
        running.for_each(&mut add);
        board.wanted().iter().for_each(&mut add);
        let is_left = |id: &&JobId| {
            board
                .status(id)
                .is_some_and(|status| status != Status::Done)
        };
        self.order.iter().filter(is_left).for_each(add);
        uses
    }
}

impl Driver<'_> {
    /// Brings the shards that jobs will read, and removes those that are in the way or done with.
    pub(super) fn move_shards(&mut self) -> anyhow::Result<()> {
        while let Some(source) = &mut self.source
            && self.unsettled
        {
            let running = self.jobs.values().map(|job| &job.id);
            let step = source.shards.step(source.uses(&self.board, running));
            match step {
                None => self.unsettled = false,
                Some(Step::Fetch(shard)) => {
                    source.shards.set(shard, Place::Coming);
                    let id = source.job(shard);
                    self.hand_over(id)?;
                }
                Some(Step::Evict(shard)) => {
                    let path = &self.plan.externals[SOURCE].files[shard].path;
                    atomic::remove_file(path)?;
                    source.shards.set(shard, Place::Absent);
                    let JobId { stage, unit } = source.job(shard);
                    let artifact = path.file_name().unwrap_or_default().to_owned();
                    let kind = EventKind::Retired { artifact };
                    self.journal.event(&Event { stage, unit, kind });
                }
            }
        }
        Ok(())
    }

    /// Counts another try of a job; `false` when its stage allows no more.
    pub(super) fn retry(&mut self, id: &JobId, class: ExitCode) -> bool {
        let fetched = self.source.as_mut().and_then(|source| {
            let shard = source.fetched_by(id)?;
            let is_whole = self.plan.externals[SOURCE].files[shard].path.exists();
            let place = if is_whole { Place::Left } else { Place::Absent };
            source.shards.set(shard, place);
            source.retries += 1;
            Some(source.retries)
        });
        match fetched {
            // Where the network failed, the stage has tried again and again.
            Some(retries) => {
                let allowed = self.plan.stage(&id.stage).map_or(0, |stage| stage.retries);
                class != ExitCode::Network && retries <= allowed
            }
            None => self.board.retry(id),
        }
    }
}

/// Bytes that the shards of a plan may take.
fn budget_of(plan: &Plan) -> u64 {
    let retention = &plan.settings.retention;
    match retention.source {
        SourceRetention::Evict => retention.budget.0,
        SourceRetention::Keep => u64::MAX,
    }
}

/// The shards of every job that reads some.
fn needs(plan: &Plan) -> BTreeMap<JobId, Vec<usize>> {
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

/// Whether the budget holds what any one job reads.
///
/// # Errors
/// With the budget, the job that reads most, and its bytes.
pub fn check(plan: &Plan) -> anyhow::Result<()> {
    let files = plan
        .externals
        .get(SOURCE)
        .map_or(&[][..], |source| &source.files);
    let bytes_of = |shards: &[usize]| shards.iter().map(|shard| files[*shard].size).sum::<u64>();
    let needs = needs(plan);
    let needs = needs
        .iter()
        .map(|(id, shards)| (bytes_of(shards), id, shards.len()));
    let budget = budget_of(plan);
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
