//! Files in a pack's folder that its manifest does not name.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::Severity;
use super::findings::FindingLog;
use crate::REMOTE_FILE;
use crate::error;
use crate::manifest::Manifest;

/// Endings of files that programs load from a model's folder without being told to.
const LOADED_ENDINGS: [&str; 8] = [
    ".uc",
    ".json",
    ".jinja",
    ".model",
    ".safetensors",
    ".py",
    "merges.txt",
    "vocab.txt",
];

/// Reports the files that the manifest does not name. One that a program would load is an error, since it could be
/// mistaken for a part of the pack, and so is one whose name differs from that of a part only in case.
pub(super) fn verify(dir: &Path, manifest: &Manifest, log: &mut FindingLog) {
    let listed: HashSet<&str> = manifest.file_names().collect();
    let lower_case: HashMap<String, &str> = manifest
        .file_names()
        .map(|name| (name.to_lowercase(), name))
        .collect();
    let origin = dir.display().to_string();
    let entries = std::fs::read_dir(dir).map_err(error::io(&origin));
    for entry in log.record(None, entries).into_iter().flatten() {
        let Some(entry) = log.record(None, entry.map_err(error::io(&origin))) else {
            break;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if listed.contains(name.as_str()) || name == REMOTE_FILE {
            continue;
        }
        let lower = name.to_lowercase();
        let (severity, message) = if let Some(listed) = lower_case.get(&lower) {
            let message = format!("its name differs from {listed} only in case");
            (Severity::Error, message)
        } else {
            let is_loaded = LOADED_ENDINGS.iter().any(|ending| lower.ends_with(ending));
            let severity = match is_loaded {
                true => Severity::Error,
                false => Severity::Warning,
            };
            (severity, "the manifest does not name this file".to_owned())
        };
        log.file = name;
        log.add(severity, None, &message);
    }
    log.sort_by_file();
}
