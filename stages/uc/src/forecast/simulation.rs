//! A simulated run: the scheduler's rules of order, budget and retention on jobs of known duration and files of known size.

use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::{Freshness, PendingWork, Reason};
use uc_store::plan::{ArtifactId, JobId, Plan};

use crate::schedule::scheduler::{Budget, Scheduler, Status};

/// Durations of jobs and sizes of files.
pub trait Sizes {
    /// Seconds of a job.
    fn seconds(&self, job: &JobId) -> f64;
    /// Bytes of a file.
    fn bytes(&self, artifact: &ArtifactId) -> f64;
    /// Bytes that a job needs on disk while it runs, besides its inputs and outputs.
    fn scratch(&self, job: &JobId) -> f64;
}

/// Peak disk use of one artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Peak {
    /// Number of files.
    pub files: usize,
    /// Bytes.
    pub bytes: f64,
    /// Bytes at the time of the overall peak.
    pub share: f64,
}

/// A run in which one stage is a thousand times slower, so that its inputs accumulate as far as the scheduler permits.
pub struct Slowed<'a, S> {
    /// Durations and sizes otherwise.
    pub sizes: &'a S,
    /// The slow stage.
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

/// The result of a simulation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Seconds from the start of the first job to the end of the last one.
    pub seconds: f64,
    /// Peak bytes on disk.
    pub disk: f64,
    /// Peaks by artifact, and by [`scratch_name`] of a stage.
    pub peaks: BTreeMap<String, Peak>,
    /// Peak of the memory declared by running jobs, bytes.
    pub memory: u64,
}

/// The files that exist.
#[derive(Default)]
struct Disk {
    files: BTreeSet<ArtifactId>,
    /// Number and bytes of files, by artifact.
    usage: BTreeMap<String, (usize, f64)>,
    /// Bytes of all files.
    total: f64,
}

impl Disk {
    fn add(&mut self, name: &str, bytes: f64, outcome: &mut Outcome) {
        let (files, sum) = self.usage.entry(name.to_owned()).or_default();
        *files += 1;
        *sum += bytes;
        self.total += bytes;
        let peak = outcome.peaks.entry(name.to_owned()).or_default();
        peak.files = peak.files.max(*files);
        peak.bytes = peak.bytes.max(*sum);
        if self.total > outcome.disk {
            outcome.disk = self.total;
            for (name, peak) in &mut outcome.peaks {
                peak.share = self.usage.get(name).map_or(0.0, |(_, bytes)| *bytes);
            }
        }
    }

    fn remove(&mut self, name: &str, bytes: f64) {
        let (files, sum) = self.usage.entry(name.to_owned()).or_default();
        *files -= 1;
        *sum -= bytes;
        self.total -= bytes;
    }
}

/// The name under which the scratch space of a stage is listed.
fn scratch_name(stage: &str) -> String {
    format!("{stage} (scratch)")
}

/// Simulates the plan from its first job to its last.
pub fn run(plan: &Plan, budget: Budget, sizes: &impl Sizes) -> Outcome {
    let stale = || Freshness::Stale(vec![Reason::NoReceipt]);
    let states = plan.jobs().into_iter().map(|id| (id, stale()));
    let work = PendingWork {
        states: states.collect(),
        ..PendingWork::default()
    };
    let mut scheduler = Scheduler::new(plan, &work, budget);
    let (mut outcome, mut disk) = (Outcome::default(), Disk::default());
    let mut running: Vec<(f64, JobId)> = Vec::new();
    let mut memory = 0;
    let mut now = 0.0;
    loop {
        while let Some(id) = scheduler.next() {
            scheduler.set(&id, Status::Running);
            let stage = plan.stage(&id.stage).expect("a stage of the plan");
            memory += stage.memory;
            outcome.memory = outcome.memory.max(memory);
            disk.add(&scratch_name(&id.stage), sizes.scratch(&id), &mut outcome);
            // Outputs grow while the job runs; they count in full from its start.
            for output in plan.outputs(stage, id.unit) {
                disk.add(&output.name, sizes.bytes(&output), &mut outcome);
                disk.files.insert(output);
            }
            running.push((now + sizes.seconds(&id), id));
        }
        let ends = running.iter().enumerate();
        let first = ends.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0));
        let Some((index, _)) = first else { break };
        let (end, id) = running.remove(index);
        now = end;
        scheduler.set(&id, Status::Done);
        memory -= plan.stage(&id.stage).map_or(0, |stage| stage.memory);
        disk.remove(&scratch_name(&id.stage), sizes.scratch(&id));
        for artifact in scheduler.retirable(Some(&id)) {
            if disk.files.remove(&artifact) {
                disk.remove(&artifact.name, sizes.bytes(&artifact));
            }
        }
    }
    outcome.seconds = now;
    outcome
}
