//! A run without work: the driver's own rules of order, budget and retention on jobs of known length and files of known size.

use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::{Freshness, PendingWork, Reason};
use uc_store::plan::{ArtifactId, JobId, Plan};

use crate::schedule::scheduler::{Board, Budget, Status};

/// What is known of the run's jobs and files.
pub trait Sizes {
    /// Seconds of a job.
    fn seconds(&self, job: &JobId) -> f64;
    /// Bytes of a file.
    fn bytes(&self, artifact: &ArtifactId) -> f64;
    /// Bytes that a job needs on disk while it runs, beside its files.
    fn scratch(&self, job: &JobId) -> f64;
}

/// Most that was there at once of one artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Peak {
    /// Number of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: f64,
    /// Bytes when the whole disk was fullest.
    pub share: f64,
}

/// A run in which one stage takes a thousand times as long, so that all that it reads piles up as far as it may.
pub struct Slowed<'a, S> {
    /// What is known of the run otherwise.
    pub sizes: &'a S,
    /// The stage.
    pub stage: &'a str,
}

impl<S: Sizes> Sizes for Slowed<'_, S> {
    fn seconds(&self, id: &JobId) -> f64 {
        let factor = if id.stage == self.stage { 1e3 } else { 1.0 };
        factor * self.sizes.seconds(id)
    }

    fn bytes(&self, id: &ArtifactId) -> f64 {
        self.sizes.bytes(id)
    }

    fn scratch(&self, id: &JobId) -> f64 {
        self.sizes.scratch(id)
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// From the first job's start to the last one's end.
    pub seconds: f64,
    /// Most bytes on disk at once.
    pub disk: f64,
    /// By artifact, and by [`scratch_of`] a stage.
    pub peaks: BTreeMap<String, Peak>,
    /// Most memory that running jobs had declared.
    pub memory: u64,
}

/// The files that are there.
#[derive(Default)]
struct Disk {
    there: BTreeSet<ArtifactId>,
    now: BTreeMap<String, (usize, f64)>,
    total: f64,
}

impl Disk {
    fn add(&mut self, name: &str, bytes: f64, outcome: &mut Outcome) {
        let (files, sum) = self.now.entry(name.to_owned()).or_default();
        *files += 1;
        *sum += bytes;
        self.total += bytes;
        let peak = outcome.peaks.entry(name.to_owned()).or_default();
        peak.files = peak.files.max(*files);
        peak.bytes = peak.bytes.max(*sum);
        if self.total > outcome.disk {
            outcome.disk = self.total;
            for (name, peak) in &mut outcome.peaks {
                peak.share = self.now.get(name).map_or(0.0, |(_, bytes)| *bytes);
            }
        }
    }

    fn remove(&mut self, name: &str, bytes: f64) {
        let (files, sum) = self.now.entry(name.to_owned()).or_default();
        *files -= 1;
        *sum -= bytes;
        self.total -= bytes;
    }
}

/// The name under which stands what a stage's job needs while it runs.
fn scratch_of(stage: &str) -> String {
    format!("{stage} (scratch)")
}

/// Runs the plan from nothing to its end.
pub fn run(plan: &Plan, budget: Budget, sizes: &impl Sizes) -> Outcome {
    let stale = || Freshness::Stale(vec![Reason::NoReceipt]);
    let states = plan.jobs().into_iter().map(|id| (id, stale()));
    let work = PendingWork {
        states: states.collect(),
        ..PendingWork::default()
    };
    let mut board = Board::new(plan, &work, budget);
    let (mut outcome, mut disk) = (Outcome::default(), Disk::default());
    let mut running: Vec<(f64, JobId)> = Vec::new();
    let mut memory = 0;
    let mut now = 0.0;
    loop {
        while let Some(id) = board.next() {
            board.set(&id, Status::Running);
            let stage = plan.stage(&id.stage).expect("a stage of the plan");
            memory += stage.memory;
            outcome.memory = outcome.memory.max(memory);
            disk.add(&scratch_of(&id.stage), sizes.scratch(&id), &mut outcome);
            // Space is taken from the first byte on; counted as if all of it were.
            for output in plan.outputs(stage, id.unit) {
                disk.add(&output.name, sizes.bytes(&output), &mut outcome);
                disk.there.insert(output);
            }
            running.push((now + sizes.seconds(&id), id));
        }
        let first = running.iter().enumerate();
        let first = first.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0));
        let Some((place, _)) = first else { break };
        let (end, id) = running.remove(place);
        now = end;
        board.set(&id, Status::Done);
        memory -= plan.stage(&id.stage).map_or(0, |stage| stage.memory);
        disk.remove(&scratch_of(&id.stage), sizes.scratch(&id));
        for artifact in board.retirable(Some(&id)) {
            if disk.there.remove(&artifact) {
                disk.remove(&artifact.name, sizes.bytes(&artifact));
            }
        }
    }
    outcome.seconds = now;
    outcome
}
