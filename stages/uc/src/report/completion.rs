//! Which jobs of a run are complete, by their receipts alone. Hashes no outputs; only the freshness check does.

use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::topological;
use uc_store::plan::{ArtifactId, JobId, Plan};
use uc_store::receipt::{Receipt, job_key};
use uc_store::run::RunDir;
use uc_store::sha::Sha256Digest;

/// The jobs whose receipts match the plan as it is now.
pub fn completed_jobs(run: &RunDir, plan: &Plan) -> anyhow::Result<BTreeSet<JobId>> {
    let mut completed = BTreeSet::new();
    let mut digests: BTreeMap<ArtifactId, Sha256Digest> = BTreeMap::new();
    for id in topological(plan, &plan.jobs()) {
        let Ok(key) = job_key(plan, &id, |input| digests.get(input).copied())? else {
            continue;
        };
        // An unreadable receipt counts as absent; `uc plan` reports what is wrong with it.
        let receipt = Receipt::read(run, &id).ok().flatten();
        if let Some(receipt) = receipt.filter(|receipt| receipt.key == key) {
            completed.insert(id);
            let outputs = receipt.outputs.into_iter();
            digests.extend(outputs.map(|output| (output.artifact, Sha256Digest(output.sha256))));
        }
    }
    Ok(completed)
}
