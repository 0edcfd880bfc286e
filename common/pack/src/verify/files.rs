//! Verification of the files that a manifest names, and of the folder's listing.
//!
//! Layers are verified in parallel. Together, the layers in progress take at most [`MEMORY_LIMIT`] bytes; a layer that
//! needs more is verified alone. Each layer file is read twice, once for its digest and once for its tensors.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::{FindingLog, Progress, Severity, SpotCheck, VerifyReport};
use crate::check::{check_digest, check_equal};
use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::layer::LayerFile;
use crate::manifest::{FileEntry, LayerEntry, Manifest, check_file_name, read_bounded};
use crate::non_layer::NonLayerFile;
use crate::pack::{compare_layer, compare_non_layer};
use crate::{CONFIG_FILE, REMOTE_FILE};

/// Bytes that the layers verified at the same time may need together.
const MEMORY_LIMIT: u64 = 2 << 30;

/// State of one verification, shared by its threads.
pub(super) struct FileVerifier<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    pool: rayon::ThreadPool,
    progress: &'a (dyn Fn(Progress) + Sync),
    /// Bytes hashed so far.
    done: AtomicU64,
}

/// Findings about one layer, and what the report says about layer 0.
struct LayerResult {
    log: FindingLog,
    spot_check: Option<SpotCheck>,
    linears: usize,
    exact: usize,
}

/// The queue of layers, guarded by a mutex.
#[derive(Default)]
struct LayerQueue {
    /// Index of the next layer to verify.
    next: usize,
    /// Bytes that the layers in progress may need.
    memory: u64,
    /// Index and result of each finished layer.
    results: Vec<(usize, LayerResult)>,
}

impl<'a> FileVerifier<'a> {
    pub(super) fn new(
        dir: &'a Path,
        manifest: &'a Manifest,
        pool: rayon::ThreadPool,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        Self {
            dir,
            manifest,
            pool,
            progress,
            done: AtomicU64::new(0),
        }
    }

    /// Verifies every file and adds the results to `report`.
    pub(super) fn run(&self, report: &mut VerifyReport) {
        let mut logs = Vec::new();
        for (i, result) in self.verify_layers().into_iter().enumerate() {
            if i == 0 {
                report.spot_check = result.spot_check;
                report.layer0_linears = result.linears;
                report.layer0_exact = result.exact;
            }
            logs.push(result.log);
        }
        report.non_layer_present = self.dir.join(&self.manifest.non_layer.file).is_file();
        logs.push(self.pool.install(|| self.verify_non_layer()));
        for file in &self.manifest.files {
            logs.push(self.pool.install(|| self.verify_other_file(file)));
        }
        logs.push(self.verify_listing());
        for log in logs {
            report.tensors_checked += log.tensors;
            report.findings.extend(log.findings);
        }
        report.bytes_checked += self.done.load(Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress {
            done,
            total: self.manifest.totals.total_bytes,
        });
    }

    /// Verifies the layers with one worker per compute thread. A worker takes the next layer as soon as the memory limit
    /// allows it. Workers decode and hash inside the pool but wait for memory outside it, so that waiting never blocks a
    /// compute thread.
    fn verify_layers(&self) -> Vec<LayerResult> {
        let layers = &self.manifest.layers;
        let queue = Mutex::new(LayerQueue::default());
        let memory_freed = Condvar::new();
        let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = || {
            loop {
                let mut guard = lock();
                let (i, need) = loop {
                    let Some(layer) = layers.get(guard.next) else {
                        return;
                    };
                    let need = memory_need(layer);
                    if guard.memory == 0 || guard.memory.saturating_add(need) <= MEMORY_LIMIT {
                        break (guard.next, need);
                    }
                    guard = memory_freed
                        .wait(guard)
                        .unwrap_or_else(PoisonError::into_inner);
                };
                guard.next += 1;
                guard.memory += need;
                drop(guard);
                let result = self.pool.install(|| self.verify_layer(&layers[i]));
                let mut guard = lock();
                guard.memory -= need;
                guard.results.push((i, result));
                memory_freed.notify_all();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.pool.current_num_threads().min(layers.len()) {
                scope.spawn(worker);
            }
        });
        let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut results = queue.results;
        results.sort_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn verify_layer(&self, entry: &LayerEntry) -> LayerResult {
        let mut result = LayerResult {
            log: FindingLog::new(&entry.file),
            spot_check: None,
            linears: 0,
            exact: 0,
        };
        let log = &mut result.log;
        let Some(file) = self.open_layer(entry, log) else {
            return result;
        };
        result.linears = file.linears().len();
        result.exact = file.exact().len();
        let differences = compare_layer(&file, entry);
        for error in &differences {
            log.add_error(None, error);
        }
        // Tensors are matched by position, which means nothing if the lists differ.
        if differences.is_empty() {
            result.spot_check = verify_linears(&file, entry, log);
            verify_exact(&file, entry, log);
        }
        result
    }

    /// Checks size, SHA-256 and structure of a layer file. A file of the wrong size is not read at all.
    fn open_layer(&self, entry: &LayerEntry, log: &mut FindingLog) -> Option<LayerFile> {
        let path = self.dir.join(&entry.file);
        let origin = path.display().to_string();
        if !path.exists()
            && let Some(repository) = self.remote_repository()
        {
            let message =
                format!("not in this folder; according to {REMOTE_FILE}, {repository} holds it");
            log.add(Severity::Error, None, message);
            return None;
        }
        log.record(None, check_size(&path, &entry.file, entry.size))?;
        let (size, found) = log.record(None, Digest::hash_file(&path))?;
        self.advance(size);
        log.record(None, check_digest(&origin, "the file", found, entry.sha256));
        log.record(None, LayerFile::open(&path))
    }

    /// The repository that the pack was uploaded to, according to the note next to it.
    fn remote_repository(&self) -> Option<String> {
        let text = read_bounded(&self.dir.join(REMOTE_FILE)).ok()?;
        let note: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(note.get("repository")?.as_str()?.to_owned())
    }

    fn verify_non_layer(&self) -> FindingLog {
        let entry = &self.manifest.non_layer;
        let mut log = FindingLog::new(&entry.file);
        let as_file = FileEntry {
            name: entry.file.clone(),
            size: entry.size,
            sha256: entry.sha256,
        };
        if !self.verify_file(&as_file, &mut log) {
            return log;
        }
        let path = self.dir.join(&entry.file);
        let origin = path.display().to_string();
        let Some(file) = log.record(None, NonLayerFile::open(&path)) else {
            return log;
        };
        for error in compare_non_layer(&file, entry, &origin) {
            log.add_error(None, &error);
        }
        for tensor in &entry.tensors {
            let name = tensor.name.as_str();
            let found = file
                .reader(name)
                .and_then(|reader| Digest::hash_reader(reader).map_err(error::io(&origin)));
            let Some((_, found)) = log.record(Some(name), found) else {
                continue;
            };
            log.record(
                Some(name),
                check_digest(&origin, name, found, tensor.sha256),
            );
            log.tensors += 1;
        }
        log
    }

    /// Verifies a file that holds no tensors.
    fn verify_other_file(&self, entry: &FileEntry) -> FindingLog {
        let mut log = FindingLog::new(&entry.name);
        if self.verify_file(entry, &mut log) && entry.name == CONFIG_FILE {
            log.record(None, self.check_layer_count());
        }
        log
    }

    /// Checks size and SHA-256 of a file. Returns false if the file cannot be read or has the wrong size.
    fn verify_file(&self, entry: &FileEntry, log: &mut FindingLog) -> bool {
        let path = self.dir.join(&entry.name);
        if log
            .record(None, check_size(&path, &entry.name, entry.size))
            .is_none()
        {
            return false;
        }
        let Some((size, found)) = log.record(None, Digest::hash_file(&path)) else {
            return false;
        };
        self.advance(size);
        let origin = path.display().to_string();
        log.record(None, check_digest(&origin, "the file", found, entry.sha256));
        true
    }

    /// Compares the number of layers with config.json: a manifest without the last layers would be consistent in itself.
    fn check_layer_count(&self) -> Result<(), PackError> {
        let path = self.dir.join(CONFIG_FILE);
        let origin = path.display().to_string();
        let json = |source| PackError::Json {
            origin: origin.clone(),
            source,
        };
        let config: serde_json::Value =
            serde_json::from_slice(&read_bounded(&path)?).map_err(json)?;
        match config
            .get("num_hidden_layers")
            .and_then(serde_json::Value::as_u64)
        {
            Some(expected) => {
                let found = self.manifest.layers.len() as u64;
                check_equal(
                    &origin,
                    "layers of the manifest, compared with num_hidden_layers",
                    found,
                    expected,
                )
            }
            None => Ok(()),
        }
    }

    /// Lists the files that the manifest does not name. An unnamed `.uc` file is an error, since it could be mistaken
    /// for a part of the pack.
    fn verify_listing(&self) -> FindingLog {
        let mut log = FindingLog::new(".");
        let listed: HashSet<&str> = self.manifest.file_names().collect();
        let origin = self.dir.display().to_string();
        let entries = std::fs::read_dir(self.dir)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(error::io(&origin));
        let Some(entries) = log.record(None, entries) else {
            return log;
        };
        let mut unlisted: Vec<String> = entries
            .iter()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        unlisted.retain(|name| !listed.contains(name.as_str()) && name != REMOTE_FILE);
        unlisted.sort();
        for name in unlisted {
            let severity = if name.ends_with(".uc") {
                Severity::Error
            } else {
                Severity::Warning
            };
            log.file = name;
            log.add(
                severity,
                None,
                "the manifest does not name this file".to_owned(),
            );
        }
        log
    }
}

/// Reconstructs every linear and checks its digest. Returns the spot check if this is layer 0.
fn verify_linears(file: &LayerFile, entry: &LayerEntry, log: &mut FindingLog) -> Option<SpotCheck> {
    let mut spot_check = None;
    for (i, linear) in entry.linears.iter().enumerate() {
        let tensor = format!("{}{}", entry.prefix, linear.name);
        let found = file
            .reconstruct(i)
            .map(|weights| Digest::hash_words(&weights));
        let Some(found) = log.record(Some(&tensor), found) else {
            continue;
        };
        let expected = linear.reconstructed_sha256;
        log.record(
            Some(&tensor),
            check_digest(file.origin(), &tensor, found, expected),
        );
        log.tensors += 1;
        if i == 0 && entry.index == 0 {
            let matches = found == expected;
            spot_check = Some(SpotCheck {
                tensor,
                sha256: found,
                matches,
            });
        }
    }
    spot_check
}

/// Checks the digest of every exact tensor of a layer.
fn verify_exact(file: &LayerFile, entry: &LayerEntry, log: &mut FindingLog) {
    for (i, exact) in entry.exact.iter().enumerate() {
        let tensor = format!("{}{}", entry.prefix, exact.name);
        let found = Digest::hash_bytes(file.exact_bytes(i));
        log.record(
            Some(&tensor),
            check_digest(file.origin(), &tensor, found, exact.sha256),
        );
        log.tensors += 1;
    }
}

/// Checks, before a file is opened, that its name stays within the folder and that its size is the recorded one.
fn check_size(path: &Path, name: &str, expected: u64) -> Result<(), PackError> {
    let origin = path.display().to_string();
    check_file_name(&origin, name)?;
    let metadata = std::fs::metadata(path).map_err(error::io(&origin))?;
    if !metadata.is_file() {
        return Err(invalid(
            &origin,
            "kind of file",
            "something else",
            "a regular file",
        ));
    }
    check_equal(&origin, "file length", metadata.len(), expected)
}

/// Bytes that verifying a layer may need. Its largest linear decides: the payload, the decoded indices with their
/// intermediate copies, and the reconstruction take up to 7 bytes per weight.
fn memory_need(layer: &LayerEntry) -> u64 {
    let weights = layer
        .linears
        .iter()
        .map(|l| l.shape[0].saturating_mul(l.shape[1]));
    weights.max().unwrap_or(0).saturating_mul(7).max(1)
}
