//! Disk use of a run, by artifact.

use camino::Utf8Path;
use serde::Serialize;
use std::collections::BTreeMap;

use uc_store::plan::{ArtifactId, Plan};
use uc_store::run::RunDir;

/// Bytes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes of the existing artifacts, by name.
    pub artifacts: BTreeMap<String, u64>,
    /// Bytes of everything else in the run directory: receipts, logs, files being written.
    pub other: u64,
    /// Free bytes in the file system of the run directory; `None` if the system does not report it.
    pub free: Option<u64>,
}

impl Disk {
    /// Bytes of the artifacts and everything else.
    pub fn total(&self) -> u64 {
        self.artifacts.values().sum::<u64>() + self.other
    }
}

/// Measures a run; files that disappear meanwhile count as 0.
pub fn measure(run: &RunDir, plan: &Plan) -> Disk {
    let mut disk = Disk {
        free: rustix::fs::statvfs(run.root().as_std_path())
            .ok()
            .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)),
        ..Disk::default()
    };
    let mut artifact_bytes = 0; // below the run directory
    for stage in &plan.stages {
        for unit in stage.units(plan.model.layers) {
            for id in plan.outputs(stage, unit) {
                let bytes = size_of(run, plan, &id);
                if bytes > 0 {
                    *disk.artifacts.entry(id.name.clone()).or_default() += bytes;
                }
                let path = plan.path(run.root(), &id);
                if path.is_some_and(|path| path.starts_with(run.root())) {
                    artifact_bytes += bytes;
                }
            }
        }
    }
    disk.other = total_size(run.root()).saturating_sub(artifact_bytes);
    disk
}

fn size_of(run: &RunDir, plan: &Plan, id: &ArtifactId) -> u64 {
    let path = plan.path(run.root(), id);
    path.and_then(|path| std::fs::metadata(path).ok())
        .map_or(0, |metadata| metadata.len())
}

/// Bytes of all files below a folder.
fn total_size(folder: &Utf8Path) -> u64 {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => total_size(entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
