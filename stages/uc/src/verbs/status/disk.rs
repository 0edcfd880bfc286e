//! What a run takes on disk, by artifact.

use camino::Utf8Path;
use serde::Serialize;
use std::collections::BTreeMap;

use uc_store::plan::{ArtifactId, Plan};
use uc_store::run::RunDir;

/// Bytes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes of the artifacts that are there, by name.
    pub artifacts: BTreeMap<String, u64>,
    /// Everything else in the run directory: receipts, logs, files that are being written.
    pub other: u64,
    /// What is free for the run directory; `None` where the system does not say.
    pub free: Option<u64>,
}

impl Disk {
    /// Artifacts and the rest.
    pub fn total(&self) -> u64 {
        self.artifacts.values().sum::<u64>() + self.other
    }
}

/// Measures a run; what vanishes while it is looked at counts nothing.
pub fn measure(run: &RunDir, plan: &Plan) -> Disk {
    let mut disk = Disk {
        free: rustix::fs::statvfs(run.root().as_std_path())
            .ok()
            .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)),
        ..Disk::default()
    };
    let mut inside = 0;
    for stage in &plan.stages {
        for unit in stage.units(plan.model.layers) {
            for id in plan.outputs(stage, unit) {
                let bytes = size_of(run, plan, &id);
                if bytes > 0 {
                    *disk.artifacts.entry(id.name.clone()).or_default() += bytes;
                }
                let path = plan.path(run.root(), &id);
                if path.is_some_and(|path| path.starts_with(run.root())) {
                    inside += bytes;
                }
            }
        }
    }
    disk.other = below(run.root()).saturating_sub(inside);
    disk
}

fn size_of(run: &RunDir, plan: &Plan, id: &ArtifactId) -> u64 {
    let path = plan.path(run.root(), id);
    path.and_then(|path| std::fs::metadata(path).ok())
        .map_or(0, |found| found.len())
}

/// Bytes of all files below a folder.
fn below(folder: &Utf8Path) -> u64 {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => below(entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}
