//! Which jobs are done, which are stale and why, and which have to run.
//!
//! This works like a build system: a job is fresh if the key of its receipt equals the key computed now, and if its outputs
//! have the recorded hashes. Temporary outputs that were deleted count as retired, not as missing, until a job that has to
//! run needs them. Then the job that made them runs again, and so on upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::error::StoreError;
use crate::plan::{ArtifactId, JobId, Plan};
use crate::receipt::{Key, Receipt, job_key};
use crate::run::RunDir;
use crate::sha::{Sha256Digest, verify_file};

/// Why a job has to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It has never finished.
    NoReceipt,
    /// Its receipt cannot be used.
    BadReceipt(String),
    /// A field of the key has changed since it ran.
    Changed {
        /// The field.
        field: String,
        /// The old value; empty if the field is new.
        old: String,
        /// The new value; empty if the field is gone.
        new: String,
    },
    /// An output differs from its record.
    BadOutput(String),
    /// An output that is not temporary is missing.
    MissingOutput(ArtifactId),
    /// A temporary output was deleted and is needed again.
    Needed {
        /// The output.
        artifact: ArtifactId,
        /// The job that needs it.
        by: JobId,
    },
    /// An input is about to be made again. Whether this job is stale is known once the hash of that input is.
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

/// The first digits of a hash; other values in full.
fn short(value: &str) -> &str {
    let is_hash = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash { &value[..12] } else { value }
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Receipt and outputs are valid.
    Fresh,
    /// The receipt is valid, and some temporary outputs were deleted.
    Retired,
    /// The job has to run for these reasons.
    Stale(Vec<Reason>),
}

/// The states of the jobs of a run.
#[derive(Debug, Clone, Default)]
pub struct PendingWork {
    /// The state of every job that was examined.
    pub states: BTreeMap<JobId, Freshness>,
    /// The known digests of artifacts.
    pub digests: BTreeMap<ArtifactId, Sha256Digest>,
}

impl PendingWork {
    /// The jobs that have to run, in the order of the plan.
    pub fn to_run(&self, plan: &Plan) -> Vec<JobId> {
        plan.jobs()
            .into_iter()
            .filter(|job| matches!(self.states.get(job), Some(Freshness::Stale(_))))
            .collect()
    }
}

/// The differences between two keys.
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

/// Examines the jobs of all stages that are not optional.
///
/// All existing outputs are read and hashed once.
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

/// The state of one job, given the digests of its inputs in `work`; adds the digests of its outputs.
///
/// A job with an input whose digest is unknown is stale with [`Reason::Waits`].
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
        // Stages are deterministic: when a damaged output is made again, it gets the recorded hash.
        work.digests.insert(id, Sha256Digest(record.sha256));
    }
    Ok(match (reasons.is_empty(), retired) {
        (false, _) => Freshness::Stale(reasons),
        (true, true) => Freshness::Retired,
        (true, false) => Freshness::Fresh,
    })
}

/// Marks the producers of retired artifacts as stale if a job that has to run needs them, and so on upstream.
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

/// The jobs in topological order: each comes after the producers of its inputs.
pub fn topological(plan: &Plan, jobs: &[JobId]) -> Vec<JobId> {
    fn visit(
        plan: &Plan,
        job: &JobId,
        wanted: &BTreeSet<&JobId>,
        done: &mut BTreeSet<JobId>,
        order: &mut Vec<JobId>,
    ) {
        // A chain is as deep as the model has layers, so this uses a stack of (job, producers still to visit).
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

/// Deletes a temporary artifact; its receipt stays.
pub fn retire(plan: &Plan, run: &RunDir, id: &ArtifactId) -> Result<(), StoreError> {
    run.remove_artifact(plan, id)
}

#[cfg(test)]
mod tests;
