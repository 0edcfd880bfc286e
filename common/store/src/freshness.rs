//! What is done, what is stale and why, and what therefore has to run.
//!
//! The walk is that of a build system: a job is fresh when its receipt's key equals the key computed now and its
//! outputs have the recorded hashes. Outputs that the retention rule deleted count as retired, not as missing, until
//! a job that has to run needs them; then their producer is redone, and so on upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::atomic;
use crate::error::StoreError;
use crate::plan::{ArtifactId, JobId, Plan};
use crate::receipt::{Key, Receipt, job_key};
use crate::run::RunDir;
use crate::sha::{Sha256Digest, verify_file};

/// Why a job has to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It never completed.
    NoReceipt,
    /// Its receipt cannot be used.
    BadReceipt(String),
    /// A field of the key has another value than when it ran.
    Changed {
        /// The field.
        field: String,
        /// Then; empty when the field is new.
        old: String,
        /// Now; empty when the field is gone.
        new: String,
    },
    /// An output is not what was recorded.
    BadOutput(String),
    /// An output that must be kept is gone.
    MissingOutput(ArtifactId),
    /// An output was deleted by the retention rule and is needed again.
    Needed {
        /// The output.
        artifact: ArtifactId,
        /// The job that needs it.
        by: JobId,
    },
    /// An input is about to be made again; whether this job is stale shows when its hash is known.
    Waits(ArtifactId),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReceipt => f.write_str("not done yet"),
            Self::BadReceipt(error) => write!(f, "its receipt cannot be used: {error}"),
            Self::Changed { field, old, new } if old.is_empty() => {
                write!(f, "`{field}` is new: {}", short(new))
            }
            Self::Changed { field, old, new } if new.is_empty() => {
                write!(f, "`{field}` is gone, was {}", short(old))
            }
            Self::Changed { field, old, new } => {
                write!(f, "`{field}` changed {} -> {}", short(old), short(new))
            }
            Self::BadOutput(error) => f.write_str(error),
            Self::MissingOutput(artifact) => write!(f, "output {artifact} is missing"),
            Self::Needed { artifact, by } => {
                write!(f, "output {artifact} was retired and {by} needs it again")
            }
            Self::Waits(artifact) => write!(f, "waits for {artifact}"),
        }
    }
}

/// Hashes are shown by their first digits.
fn short(value: &str) -> &str {
    let is_hash = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash { &value[..12] } else { value }
}

/// State of one job's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Receipt and outputs are good.
    Fresh,
    /// The receipt is good, some outputs were deleted by the retention rule.
    Retired,
    /// The job has to run, for these reasons.
    Stale(Vec<Reason>),
}

/// Result of the walk over a run.
#[derive(Debug, Clone, Default)]
pub struct PendingWork {
    /// State of every job that was asked about.
    pub states: BTreeMap<JobId, Freshness>,
    /// Digest of every artifact instance that is known.
    pub digests: BTreeMap<ArtifactId, Sha256Digest>,
}

impl PendingWork {
    /// The jobs that have to run, in an order in which inputs come first.
    pub fn to_run(&self, plan: &Plan) -> Vec<JobId> {
        plan.jobs()
            .into_iter()
            .filter(|job| matches!(self.states.get(job), Some(Freshness::Stale(_))))
            .collect()
    }
}

/// Differences of two keys.
pub fn key_differences(old: &Key, new: &Key) -> Vec<Reason> {
    let fields: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let value = |key: &Key, field: &String| key.get(field).cloned().unwrap_or_default();
    fields
        .into_iter()
        .filter(|field| old.get(*field) != new.get(*field))
        .map(|field| Reason::Changed {
            field: field.clone(),
            old: value(old, field),
            new: value(new, field),
        })
        .collect()
}

/// Walks every stage that is not optional.
///
/// Reads and hashes all outputs that exist, once.
pub fn plan_work(plan: &Plan, run: &RunDir) -> Result<PendingWork, StoreError> {
    let jobs: Vec<JobId> = plan
        .jobs()
        .into_iter()
        .filter(|job| plan.stage(&job.stage).is_some_and(|stage| !stage.optional))
        .collect();
    let mut work = PendingWork::default();
    for job in topological(plan, &jobs) {
        let state = state_of(plan, run, &job, &mut work)?;
        work.states.insert(job, state);
    }
    demand_retired(plan, run, &mut work)?;
    Ok(work)
}

/// State of one job, given what is known of the jobs before it; records the digests of its outputs.
///
/// A job whose inputs' digests are not all known is stale with [`Reason::Waits`].
pub fn state_of(
    plan: &Plan,
    run: &RunDir,
    job: &JobId,
    work: &mut PendingWork,
) -> Result<Freshness, StoreError> {
    let key = match job_key(plan, job, |id| work.digests.get(id).copied())? {
        Ok(key) => key,
        Err(waits_for) => return Ok(Freshness::Stale(vec![Reason::Waits(waits_for)])),
    };
    let receipt = match Receipt::read(run, job) {
        Ok(Some(receipt)) => receipt,
        Ok(None) => return Ok(Freshness::Stale(vec![Reason::NoReceipt])),
        Err(error @ StoreError::Io { .. }) => return Err(error),
        Err(error) => {
            return Ok(Freshness::Stale(vec![Reason::BadReceipt(
                error.to_string(),
            )]));
        }
    };
    let differences = key_differences(&receipt.key, &key);
    if !differences.is_empty() {
        return Ok(Freshness::Stale(differences));
    }
    let stage = plan.stage(&job.stage).expect("job_key checked it");
    let mut reasons = Vec::new();
    let mut retired = false;
    for id in plan.outputs(stage, job.unit) {
        let Some(record) = receipt.output(&id) else {
            reasons.push(Reason::MissingOutput(id));
            continue;
        };
        let path = run.artifact_path(plan, &id)?;
        if path.exists() {
            if let Err(error) = verify_file(&path, record.size, &Sha256Digest(record.sha256)) {
                match error {
                    error @ StoreError::Io { .. } => return Err(error),
                    error => reasons.push(Reason::BadOutput(error.to_string())),
                }
            }
        } else if !plan.artifacts[&id.name].temporary {
            reasons.push(Reason::MissingOutput(id.clone()));
        } else {
            retired = true;
        }
        // Stages are deterministic: a damaged output that is made again gets the recorded hash again.
        work.digests.insert(id, Sha256Digest(record.sha256));
    }
    Ok(match (reasons.is_empty(), retired) {
        (false, _) => Freshness::Stale(reasons),
        (true, true) => Freshness::Retired,
        (true, false) => Freshness::Fresh,
    })
}

/// Marks producers of retired artifacts that a job to be run needs, upstream until nothing is missing.
pub fn demand_retired(plan: &Plan, run: &RunDir, work: &mut PendingWork) -> Result<(), StoreError> {
    let mut stale: Vec<JobId> = work.to_run(plan);
    while let Some(job) = stale.pop() {
        let stage = plan.stage(&job.stage).expect("from the plan");
        for artifact in plan.inputs(stage, job.unit) {
            if plan.external(&artifact).is_some() || run.artifact_path(plan, &artifact)?.exists() {
                continue;
            }
            let Some(producer) = plan.producer(&artifact) else {
                continue;
            };
            if matches!(work.states.get(&producer), Some(Freshness::Retired)) {
                let reason = Reason::Needed {
                    artifact,
                    by: job.clone(),
                };
                work.states
                    .insert(producer.clone(), Freshness::Stale(vec![reason]));
                stale.push(producer);
            }
        }
    }
    Ok(())
}

/// The jobs so ordered that each comes after the producers of what it reads.
pub fn topological(plan: &Plan, jobs: &[JobId]) -> Vec<JobId> {
    fn visit(
        plan: &Plan,
        job: &JobId,
        wanted: &BTreeSet<&JobId>,
        done: &mut BTreeSet<JobId>,
        order: &mut Vec<JobId>,
    ) {
        // Depth is bounded by layers: walk the chain with a stack of (job, inputs still to visit).
        let mut stack = vec![(job.clone(), producers(plan, job))];
        while let Some((current, pending)) = stack.last_mut() {
            if done.contains(current) {
                stack.pop();
                continue;
            }
            match pending.pop() {
                Some(next) if wanted.contains(&next) && !done.contains(&next) => {
                    let inputs = producers(plan, &next);
                    stack.push((next, inputs));
                }
                Some(_) => {}
                None => {
                    done.insert(current.clone());
                    order.push(current.clone());
                    stack.pop();
                }
            }
        }
    }
    let wanted: BTreeSet<&JobId> = jobs.iter().collect();
    let (mut done, mut order) = (BTreeSet::new(), Vec::new());
    for job in jobs {
        if !done.contains(job) {
            visit(plan, job, &wanted, &mut done, &mut order);
        }
    }
    order
}

fn producers(plan: &Plan, job: &JobId) -> Vec<JobId> {
    let stage = plan.stage(&job.stage).expect("from the plan");
    let mut all: Vec<JobId> = plan
        .inputs(stage, job.unit)
        .iter()
        .filter(|id| plan.external(id).is_none())
        .filter_map(|id| plan.producer(id))
        .collect();
    all.dedup();
    all
}

/// Deletes an artifact by the retention rule; its receipt stays.
pub fn retire(plan: &Plan, run: &RunDir, id: &ArtifactId) -> Result<(), StoreError> {
    atomic::remove_file(&run.artifact_path(plan, id)?)
}

#[cfg(test)]
mod tests;
