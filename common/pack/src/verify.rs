//! Verification: recomputes everything that the manifest says and lists every disagreement.
//!
//! Owns: `verify` and its report. It never stops at the first finding, never returns an error (what
//! cannot be read is a finding), never draws, and holds at most `MEMORY` bytes of linears at a time, or
//! one linear where a single one is larger. The digest of a layer's file and those of its tensors are taken in two
//! readings of the same file.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::layer::LayerFile;
use crate::manifest::{
    FileEntry, LayerEntry, Manifest, check_digest_line, check_file_name, equal, read_bounded,
};
use crate::non_layer::NonLayerFile;
use crate::pack::{check_digest, compare_layer, compare_non_layer};
use crate::{CONFIG_FILE, MANIFEST_FILE, REMOTE_FILE};

/// Linears in flight may need this many bytes together; a larger single one is checked alone.
const MEMORY: u64 = 2 << 30;

/// How far verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the pack's files that were checked.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pack is not what its manifest says.
    Error,
    /// Nothing that the manifest names is wrong, but somebody should look.
    Warning,
}

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File of the pack.
    pub file: String,
    /// Tensor, where one is concerned.
    pub tensor: Option<String>,
    /// What was found and what was expected.
    pub message: String,
}

/// Whether the pack can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// No finding of severity error.
    Pass,
    /// At least one.
    Fail,
}

/// The first linear of layer 0, for comparison by eye with another machine's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpotCheck {
    /// Full name of the tensor.
    pub tensor: String,
    /// SHA-256 of its reconstruction as computed now.
    pub sha256: Digest,
    /// Whether the manifest records the same.
    pub matches: bool,
}

/// What verification found. Fields that come from an unreadable manifest are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Format version of the pack.
    pub pack_version: Option<u32>,
    /// Name of the codec.
    pub codec_name: Option<String>,
    /// "open" where the encoder's source code is public.
    pub codec_source: Option<String>,
    /// Number of layers.
    pub n_layers: usize,
    /// Bits of all layer files over the weights of the linears.
    pub bits_per_weight_linears: Option<String>,
    /// Bits of the whole pack over all parameters.
    pub bits_per_weight_all: Option<String>,
    /// SHA-256 spot check.
    pub spot_check: Option<SpotCheck>,
    /// Linears of layer 0, as counted in its file.
    pub layer0_linears: usize,
    /// Extras of layer 0, as counted in its file.
    pub layer0_exact: usize,
    /// Whether the scaffold file is there.
    pub non_layer_present: bool,
    /// Tensors whose SHA-256 was recomputed.
    pub tensors_checked: u64,
    /// Bytes of files whose SHA-256 was recomputed, manifest included.
    pub bytes_checked: u64,
    /// Every disagreement, in the order of the manifest.
    pub findings: Vec<Finding>,
    /// Pass if no finding is an error.
    pub verdict: Verdict,
    /// SHA-256 of manifest.json.
    pub fingerprint: Option<Digest>,
}

/// Collects findings about one file.
struct Notes {
    file: String,
    findings: Vec<Finding>,
    tensors: u64,
}

impl Notes {
    fn of(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            findings: Vec::new(),
            tensors: 0,
        }
    }

    fn add(&mut self, severity: Severity, tensor: Option<&str>, message: String) {
        let tensor = tensor.map(str::to_owned);
        self.findings.push(Finding {
            severity,
            file: self.file.clone(),
            tensor,
            message,
        });
    }

    /// Keeps the error as a finding, if there is one, and passes on the value.
    fn keep<T>(&mut self, tensor: Option<&str>, result: Result<T, PackError>) -> Option<T> {
        result
            .map_err(|e| self.add(Severity::Error, tensor, e.to_string()))
            .ok()
    }
}

/// Checks everything in `dir` with at most `threads` threads computing (0: one per processor).
pub fn verify(
    dir: impl AsRef<Path>,
    threads: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> VerifyReport {
    let dir = dir.as_ref();
    let mut report = VerifyReport {
        pack_version: None,
        codec_name: None,
        codec_source: None,
        n_layers: 0,
        bits_per_weight_linears: None,
        bits_per_weight_all: None,
        spot_check: None,
        layer0_linears: 0,
        layer0_exact: 0,
        non_layer_present: false,
        tensors_checked: 0,
        bytes_checked: 0,
        findings: Vec::new(),
        verdict: Verdict::Fail,
        fingerprint: None,
    };
    if let Some(manifest) = check_manifest(dir, &mut report) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| error::io("threads")(std::io::Error::other(e)));
        let mut notes = Notes::of(".");
        if let Some(pool) = notes.keep(None, pool) {
            let check = Check {
                dir,
                manifest: &manifest,
                pool,
                progress,
                done: AtomicU64::new(0),
            };
            check.run(&mut report);
        }
        report.findings.extend(notes.findings);
    }
    let failed = report
        .findings
        .iter()
        .any(|f| f.severity == Severity::Error);
    report.verdict = if failed { Verdict::Fail } else { Verdict::Pass };
    report
}

/// Everything about the manifest itself. `None` where the rest cannot be understood.
fn check_manifest(dir: &Path, report: &mut VerifyReport) -> Option<Manifest> {
    let path = dir.join(MANIFEST_FILE);
    let origin = path.display().to_string();
    let mut notes = Notes::of(MANIFEST_FILE);
    let manifest = notes.keep(None, read_bounded(&path)).and_then(|bytes| {
        report.fingerprint = Some(Digest::of(&bytes));
        report.bytes_checked += bytes.len() as u64;
        notes.keep(None, check_digest_line(dir, &bytes));
        let manifest = notes.keep(None, Manifest::parse(&bytes, &origin))?;
        notes.keep(None, manifest.check_canonical(&bytes, &origin));
        for problem in manifest.problems(&origin) {
            notes.keep(None, Err::<(), _>(problem));
        }
        Some(manifest)
    });
    report.findings.extend(notes.findings);
    let manifest = manifest?;
    report.pack_version = Some(manifest.pack_version);
    report.codec_name = Some(manifest.codec.name.clone());
    report.codec_source = Some(manifest.codec.source.clone());
    report.n_layers = manifest.layers.len();
    report.bits_per_weight_linears = Some(manifest.totals.bits_per_weight_linears.clone());
    report.bits_per_weight_all = Some(manifest.totals.bits_per_weight_all.clone());
    Some(manifest)
}

/// What all checks of one run share.
struct Check<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    pool: rayon::ThreadPool,
    progress: &'a (dyn Fn(Progress) + Sync),
    done: AtomicU64,
}

/// Findings of one layer, and what the report says about layer 0.
struct LayerResult {
    notes: Notes,
    spot_check: Option<SpotCheck>,
    linears: usize,
    exact: usize,
}

impl Check<'_> {
    fn run(&self, report: &mut VerifyReport) {
        let mut all = Vec::new();
        for (i, result) in self.check_layers().into_iter().enumerate() {
            if i == 0 {
                report.spot_check = result.spot_check;
                report.layer0_linears = result.linears;
                report.layer0_exact = result.exact;
            }
            all.push(result.notes);
        }
        report.non_layer_present = self.dir.join(&self.manifest.non_layer.file).is_file();
        all.push(self.pool.install(|| self.check_scaffold()));
        for file in &self.manifest.files {
            all.push(self.pool.install(|| self.check_plain(file)));
        }
        all.push(self.check_listing());
        for notes in all {
            report.tensors_checked += notes.tensors;
            report.findings.extend(notes.findings);
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

    /// One worker per computing thread; a worker takes the next layer once memory allows. Decoding and
    /// hashing run inside the pool; waiting for memory does not, so that the pool never stalls.
    fn check_layers(&self) -> Vec<LayerResult> {
        let layers = &self.manifest.layers;
        let state = Mutex::new((0usize, 0u64, Vec::new()));
        let freed = Condvar::new();
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = || {
            loop {
                let mut guard = lock();
                let (i, need) = loop {
                    let Some(layer) = layers.get(guard.0) else {
                        return;
                    };
                    let need = memory_of(layer);
                    if guard.1 == 0 || guard.1.saturating_add(need) <= MEMORY {
                        break (guard.0, need);
                    }
                    guard = freed.wait(guard).unwrap_or_else(PoisonError::into_inner);
                };
                guard.0 += 1;
                guard.1 += need;
                drop(guard);
                let result = self.pool.install(|| self.check_layer(&layers[i]));
                let mut guard = lock();
                guard.1 -= need;
                guard.2.push((i, result));
                freed.notify_all();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.pool.current_num_threads().min(layers.len()) {
                scope.spawn(worker);
            }
        });
        let mut results = state.into_inner().unwrap_or_else(PoisonError::into_inner).2;
        results.sort_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn check_layer(&self, entry: &LayerEntry) -> LayerResult {
        let mut result = LayerResult {
            notes: Notes::of(&entry.file),
            spot_check: None,
            linears: 0,
            exact: 0,
        };
        let notes = &mut result.notes;
        let Some(file) = self.open_layer(entry, notes) else {
            return result;
        };
        result.linears = file.linears().len();
        result.exact = file.exact().len();
        let differing = compare_layer(&file, entry);
        let agree = differing.is_empty();
        for problem in differing {
            notes.keep(None, Err::<(), _>(problem));
        }
        if !agree {
            return result;
        }
        for (i, linear) in entry.linears.iter().enumerate() {
            let tensor = format!("{}{}", entry.prefix, linear.name);
            let found = file.reconstruct(i).map(|words| Digest::of_words(&words));
            let Some(found) = notes.keep(Some(&tensor), found) else {
                continue;
            };
            let expected = linear.reconstructed_sha256;
            notes.keep(
                Some(&tensor),
                check_digest(file.origin(), &tensor, found, expected),
            );
            notes.tensors += 1;
            if i == 0 && entry.index == 0 {
                let matches = found == expected;
                result.spot_check = Some(SpotCheck {
                    tensor,
                    sha256: found,
                    matches,
                });
            }
        }
        for (i, extra) in entry.exact.iter().enumerate() {
            let tensor = format!("{}{}", entry.prefix, extra.name);
            let found = Digest::of(file.exact_bytes(i));
            notes.keep(
                Some(&tensor),
                check_digest(file.origin(), &tensor, found, extra.sha256),
            );
            notes.tensors += 1;
        }
        result
    }

    /// Size, SHA-256 and structure. A file of another size is not read at all.
    fn open_layer(&self, entry: &LayerEntry, notes: &mut Notes) -> Option<LayerFile> {
        let path = self.dir.join(&entry.file);
        let origin = path.display().to_string();
        if !path.exists()
            && let Some(repository) = self.elsewhere()
        {
            let message = format!("not here; {REMOTE_FILE} says that {repository} holds it");
            notes.add(Severity::Error, None, message);
            return None;
        }
        notes.keep(None, check_size(&path, &entry.file, entry.size))?;
        let (size, found) = notes.keep(None, Digest::of_file(&path))?;
        self.advance(size);
        notes.keep(None, check_digest(&origin, "the file", found, entry.sha256));
        notes.keep(None, LayerFile::open(&path))
    }

    /// The repository that the pack was sent to, as the note beside it says.
    fn elsewhere(&self) -> Option<String> {
        let text = read_bounded(&self.dir.join(REMOTE_FILE)).ok()?;
        let note: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(note.get("repository")?.as_str()?.to_owned())
    }

    fn check_scaffold(&self) -> Notes {
        let entry = &self.manifest.non_layer;
        let mut notes = Notes::of(&entry.file);
        let as_file = FileEntry {
            name: entry.file.clone(),
            size: entry.size,
            sha256: entry.sha256,
        };
        if !self.check_file(&as_file, &mut notes) {
            return notes;
        }
        let path = self.dir.join(&entry.file);
        let origin = path.display().to_string();
        let Some(file) = notes.keep(None, NonLayerFile::open(&path)) else {
            return notes;
        };
        for problem in compare_non_layer(&file, entry, &origin) {
            notes.keep(None, Err::<(), _>(problem));
        }
        for tensor in &entry.tensors {
            let name = tensor.name.as_str();
            let found = file
                .reader(name)
                .and_then(|reader| Digest::of_reader(reader).map_err(error::io(&origin)));
            let Some((_, found)) = notes.keep(Some(name), found) else {
                continue;
            };
            notes.keep(
                Some(name),
                check_digest(&origin, name, found, tensor.sha256),
            );
            notes.tensors += 1;
        }
        notes
    }

    fn check_plain(&self, entry: &FileEntry) -> Notes {
        let mut notes = Notes::of(&entry.name);
        if self.check_file(entry, &mut notes) && entry.name == CONFIG_FILE {
            let checked = self.check_layer_count();
            notes.keep(None, checked);
        }
        notes
    }

    /// Size and SHA-256. False where the file cannot be read or is not of the recorded size.
    fn check_file(&self, entry: &FileEntry, notes: &mut Notes) -> bool {
        let path = self.dir.join(&entry.name);
        if notes
            .keep(None, check_size(&path, &entry.name, entry.size))
            .is_none()
        {
            return false;
        }
        let Some((size, found)) = notes.keep(None, Digest::of_file(&path)) else {
            return false;
        };
        self.advance(size);
        let origin = path.display().to_string();
        notes.keep(None, check_digest(&origin, "the file", found, entry.sha256));
        true
    }

    /// A manifest whose last layers were cut off is consistent in itself; config.json knows better.
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
            Some(count) => {
                let found = self.manifest.layers.len() as u64;
                equal(
                    &origin,
                    "layers in the manifest against num_hidden_layers",
                    found,
                    count,
                )
            }
            None => Ok(()),
        }
    }

    /// Files that nobody vouches for. An unnamed .uc file could be taken for a part of the pack: error.
    fn check_listing(&self) -> Notes {
        let mut notes = Notes::of(".");
        let named: HashSet<&str> = self.manifest.file_names().collect();
        let origin = self.dir.display().to_string();
        let entries = std::fs::read_dir(self.dir)
            .and_then(|all| all.collect::<Result<Vec<_>, _>>())
            .map_err(error::io(&origin));
        let Some(entries) = notes.keep(None, entries) else {
            return notes;
        };
        let mut extra: Vec<String> = entries
            .iter()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        extra.retain(|name| !named.contains(name.as_str()) && name != REMOTE_FILE);
        extra.sort();
        for name in extra {
            let severity = if name.ends_with(".uc") {
                Severity::Error
            } else {
                Severity::Warning
            };
            notes.file = name;
            notes.add(
                severity,
                None,
                "the manifest does not name this file".to_owned(),
            );
        }
        notes
    }
}

/// Before anything is opened: the name stays inside the folder and the size is the recorded one.
fn check_size(path: &Path, name: &str, expected: u64) -> Result<(), PackError> {
    let origin = path.display().to_string();
    check_file_name(&origin, name)?;
    let metadata = std::fs::metadata(path).map_err(error::io(&origin))?;
    if !metadata.is_file() {
        return Err(invalid(
            &origin,
            "kind of file",
            "no regular file",
            "a regular file",
        ));
    }
    equal(&origin, "file length", metadata.len(), expected)
}

/// Bytes that checking a layer may need: for its largest linear the payload, indices, entropy-decoded copies and
/// reconstruction.
fn memory_of(layer: &LayerEntry) -> u64 {
    let weights = layer
        .linears
        .iter()
        .map(|l| l.shape[0].saturating_mul(l.shape[1]));
    weights.max().unwrap_or(0).saturating_mul(7).max(1)
}
