//! Verification of the files that a manifest names.
//!
//! Sizes are compared before anything is read. Then files are opened one after another; their digests and tensors are
//! computed by all threads at the same time, one file or tensor each. A file with tensors is read twice, once for its digest
//! and once for its tensors.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::findings::{FindingLog, Findings, Position};
use super::tensors::{verify_layer_exact, verify_linear, verify_non_layer_tensor};
use super::{Progress, Request, Severity, SpotCheck, VerifyReport, listing, model, tasks};
use crate::check::{check_digest, check_equal};
use crate::digest::Digest;
use crate::error::{self, PackError, invalid};
use crate::layer::{LayerFile, PieceBuffers};
use crate::limits::check_weights;
use crate::manifest::{FileEntry, LayerEntry, Manifest, NonLayerEntry, check_file_name};
use crate::non_layer::NonLayerFile;
use crate::pack::{compare_layer, compare_non_layer, remote_repository};
use crate::{MANIFEST_FILE, REMOTE_FILE};

/// Files of at least this length must not consist of holes.
const CHECKED_FOR_HOLES: u64 = 16 << 20;
/// The least part of such a file that must be stored, as a divisor of its length.
const STORED_PART: u64 = 64;
/// Most threads: more would wait for the disk, and each takes some MB.
const MAX_THREADS: usize = 64;
/// State of one verification, shared by its threads.
pub(super) struct FileVerifier<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    request: Request<'a>,
    progress: &'a (dyn Fn(Progress) + Sync),
    /// Bytes hashed so far.
    done: AtomicU64,
    /// Tensors whose digest was recomputed.
    tensors: AtomicU64,
    findings: Mutex<Findings>,
    layer_0: Mutex<FirstLayer>,
}

/// What the report says about layer 0.
#[derive(Default)]
struct FirstLayer {
    spot_check: Option<SpotCheck>,
    linears: usize,
    exact: usize,
}

/// A piece of work. Files are numbered in the order of the manifest.
enum Task<'a> {
    Layer(usize, &'a LayerEntry),
    NonLayer(usize, &'a NonLayerEntry),
    /// The digest of a file without tensors.
    Other(usize, &'a FileEntry),
    /// The digest of a file with tensors.
    FileDigest(usize, FileEntry),
    Linear(Arc<OpenLayer<'a>>, usize),
    Exact(Arc<OpenLayer<'a>>, usize),
    NonLayerTensor(Arc<OpenNonLayer<'a>>, usize),
}

/// A layer file whose header agrees with the manifest.
struct OpenLayer<'a> {
    number: usize,
    file: LayerFile,
    entry: &'a LayerEntry,
}

/// A file of non-layer tensors whose header agrees with the manifest.
struct OpenNonLayer<'a> {
    number: usize,
    file: NonLayerFile,
    origin: String,
    entry: &'a NonLayerEntry,
}

impl<'a> FileVerifier<'a> {
    pub(super) fn new(
        dir: &'a Path,
        manifest: &'a Manifest,
        request: Request<'a>,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        Self {
            dir,
            manifest,
            request,
            progress,
            done: AtomicU64::new(0),
            tensors: AtomicU64::new(0),
            findings: Mutex::default(),
            layer_0: Mutex::default(),
        }
    }

    /// Verifies every file and adds the results to `report` and `findings`.
    pub(super) fn run(self, report: &mut VerifyReport, findings: &mut Findings) {
        let mut log = FindingLog::new(".");
        listing::verify(self.dir, self.manifest, &mut log);
        self.add(Position::FOLDER, log);
        let files = self.files_of_the_right_size();
        if self.check_bounds(&files) {
            let threads = match self.request.threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                threads => threads,
            };
            let threads = threads.min(MAX_THREADS);
            let work = |task, buffers: &mut PieceBuffers| self.work(task, buffers);
            tasks::run(threads, files, &work);
        }
        let into_inner = PoisonError::into_inner;
        let first = self.layer_0.into_inner().unwrap_or_else(into_inner);
        report.spot_check = first.spot_check;
        report.layer0_linears = first.linears;
        report.layer0_exact = first.exact;
        report.tensors_checked = self.tensors.into_inner();
        report.bytes_checked += self.done.into_inner();
        let found = self.findings.into_inner();
        findings.merge(found.unwrap_or_else(PoisonError::into_inner));
    }

    fn add(&self, position: Position, log: FindingLog) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.add(position, log);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress {
            done,
            total: self.manifest.totals.total_bytes,
        });
    }

    /// The first tasks: those of the files that exist and have the recorded size.
    fn files_of_the_right_size(&self) -> Vec<Task<'a>> {
        let manifest = self.manifest;
        let layers = manifest.layers.iter().enumerate();
        let mut files: Vec<Task<'a>> = layers
            .map(|(number, entry)| Task::Layer(number + 1, entry))
            .collect();
        files.push(Task::NonLayer(files.len() + 1, &manifest.non_layer));
        for entry in &manifest.files {
            files.push(Task::Other(files.len() + 1, entry));
        }
        files.retain(|task| {
            let (number, entry) = match task {
                Task::Layer(number, entry) => (*number, file_entry(*entry)),
                Task::NonLayer(number, entry) => (*number, file_entry(*entry)),
                Task::Other(number, entry) => (*number, (*entry).clone()),
                _ => return true,
            };
            let mut log = FindingLog::new(&entry.name);
            let checked = match self.missing_remote_layer(task, &entry.name) {
                Some(message) => {
                    log.add(Severity::Error, None, &message);
                    None
                }
                None => log.record(None, self.check_size(&entry)),
            };
            self.add(Position(number, 0), log);
            checked.is_some()
        });
        files
    }

    /// The message about a layer that was deleted here after its upload.
    fn missing_remote_layer(&self, task: &Task<'_>, name: &str) -> Option<String> {
        let is_absent = || self.dir.join(name).symlink_metadata().is_err();
        if !matches!(task, Task::Layer(..)) || !is_absent() {
            return None;
        }
        let repository = remote_repository(self.dir)?;
        let message =
            format!("not in this folder; according to {REMOTE_FILE}, {repository} holds it");
        Some(message)
    }

    /// Opens a file of the pack, which must not be a link.
    fn open(&self, name: &str) -> Result<(File, String), PackError> {
        let path = self.dir.join(name);
        let origin = path.display().to_string();
        check_file_name(&origin, name)?;
        let file = uc_input::open_without_link(&path).map_err(error::io(&origin))?;
        Ok((file, origin))
    }

    /// Checks that a file has the recorded size and does not consist of holes.
    fn check_size(&self, entry: &FileEntry) -> Result<(), PackError> {
        let (file, origin) = self.open(&entry.name)?;
        let length = file.metadata().map_err(error::io(&origin))?.len();
        check_equal(&origin, "file length", length, entry.size)?;
        if length < CHECKED_FOR_HOLES {
            return Ok(());
        }
        let least = length / STORED_PART;
        let stored = uc_input::stored_bytes(&file, least).map_err(error::io(&origin))?;
        if stored >= least {
            return Ok(());
        }
        let found = format!("{stored} of {length}, the rest are holes");
        let expected = format!("at least {least}; copy the file without holes to verify it");
        Err(invalid(&origin, "stored bytes", found, expected))
    }

    /// Checks that the files can hold the weights of the layers that are present, and that the manifest is that of the model.
    /// Returns false if the tensors must not be decoded.
    fn check_bounds(&self, files: &[Task<'a>]) -> bool {
        let path = self.dir.join(MANIFEST_FILE);
        let origin = path.display().to_string();
        let mut log = FindingLog::new(MANIFEST_FILE);
        let (mut weights, mut bytes) = (0u64, 0u64);
        for task in files {
            bytes = bytes.saturating_add(match task {
                Task::Layer(_, entry) => {
                    weights = weights.saturating_add(entry.weights());
                    entry.size
                }
                Task::NonLayer(_, entry) => entry.size,
                Task::Other(_, entry) => entry.size,
                _ => 0,
            });
        }
        let bounded = log.record(None, check_weights(&origin, weights, bytes));
        model::compare(self.dir, self.manifest, self.request.plan, &mut log);
        self.add(Position::MANIFEST, log);
        bounded.is_some()
    }

    /// Does a task; returns those that follow from it.
    fn work(&self, task: Task<'a>, buffers: &mut PieceBuffers) -> Vec<Task<'a>> {
        if self.request.is_cancelled() {
            return Vec::new();
        }
        let mut log;
        let (position, following) = match task {
            Task::Layer(number, entry) => {
                log = FindingLog::new(&entry.file);
                (
                    Position(number, 1),
                    self.open_layer(number, entry, &mut log),
                )
            }
            Task::NonLayer(number, entry) => {
                log = FindingLog::new(&entry.file);
                let following = self.open_non_layer(number, entry, &mut log);
                (Position(number, 1), following)
            }
            Task::Other(number, entry) => {
                log = FindingLog::new(&entry.name);
                self.verify_digest(entry, &mut log);
                (Position(number, 1), Vec::new())
            }
            Task::FileDigest(number, entry) => {
                log = FindingLog::new(&entry.name);
                self.verify_digest(&entry, &mut log);
                (Position(number, 1), Vec::new())
            }
            Task::Linear(layer, index) => {
                log = FindingLog::new(&layer.entry.file);
                let spot = verify_linear(&layer.file, layer.entry, index, buffers, &mut log);
                self.count_tensor(spot);
                (Position(layer.number, 2 + index), Vec::new())
            }
            Task::Exact(layer, index) => {
                log = FindingLog::new(&layer.entry.file);
                verify_layer_exact(&layer.file, layer.entry, index, &mut log);
                self.count_tensor(None);
                let position = 2 + layer.entry.linears.len() + index;
                (Position(layer.number, position), Vec::new())
            }
            Task::NonLayerTensor(open, index) => {
                log = FindingLog::new(&open.entry.file);
                let entry = &open.entry.tensors[index];
                verify_non_layer_tensor(&open.file, entry, index, &open.origin, &mut log);
                self.count_tensor(None);
                (Position(open.number, 2 + index), Vec::new())
            }
        };
        self.add(position, log);
        following
    }

    fn count_tensor(&self, spot_check: Option<SpotCheck>) {
        self.tensors.fetch_add(1, Ordering::Relaxed);
        if spot_check.is_some() {
            self.lock_layer_0().spot_check = spot_check;
        }
    }

    fn lock_layer_0(&self) -> std::sync::MutexGuard<'_, FirstLayer> {
        self.layer_0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a layer file and compares its header with the manifest, before the file is read as a whole.
    fn open_layer(
        &self,
        number: usize,
        entry: &'a LayerEntry,
        log: &mut FindingLog,
    ) -> Vec<Task<'a>> {
        let digest = Task::FileDigest(number, file_entry(entry));
        let opened = self.open(&entry.file);
        let opened = opened.and_then(|(file, origin)| LayerFile::from_file(file, &origin));
        let Some(file) = log.record(None, opened) else {
            return vec![digest];
        };
        if entry.index == 0 {
            let mut layer_0 = self.lock_layer_0();
            layer_0.linears = file.linears().len();
            layer_0.exact = file.exact().len();
        }
        let differences = compare_layer(&file, entry);
        for error in &differences {
            log.add_error(None, error);
        }
        // Tensors are matched by position, which means nothing if the lists differ.
        if !differences.is_empty() {
            return vec![digest];
        }
        let layer = Arc::new(OpenLayer {
            number,
            file,
            entry,
        });
        let linears = (0..entry.linears.len()).map(|i| Task::Linear(Arc::clone(&layer), i));
        let exact = (0..entry.exact.len()).map(|i| Task::Exact(Arc::clone(&layer), i));
        linears.chain(exact).chain([digest]).collect()
    }

    /// Opens the file of non-layer tensors and compares its header with the manifest.
    fn open_non_layer(
        &self,
        number: usize,
        entry: &'a NonLayerEntry,
        log: &mut FindingLog,
    ) -> Vec<Task<'a>> {
        let digest = Task::FileDigest(number, file_entry(entry));
        let opened = self.open(&entry.file).and_then(|(file, origin)| {
            let file = NonLayerFile::from_file(file, &origin)?;
            Ok((file, origin))
        });
        let Some((file, origin)) = log.record(None, opened) else {
            return vec![digest];
        };
        let differences = compare_non_layer(&file, entry, &origin);
        for error in &differences {
            log.add_error(None, error);
        }
        if !differences.is_empty() {
            return vec![digest];
        }
        let open = Arc::new(OpenNonLayer {
            number,
            file,
            origin,
            entry,
        });
        let tensors = (0..entry.tensors.len()).map(|i| Task::NonLayerTensor(Arc::clone(&open), i));
        tensors.chain([digest]).collect()
    }

    /// Checks the SHA-256 of a file. No more than the recorded size is read, even if the file grows.
    fn verify_digest(&self, entry: &FileEntry, log: &mut FindingLog) {
        let hashed = self.open(&entry.name).and_then(|(file, origin)| {
            let reader = std::io::Read::take(file, entry.size);
            let (size, found) = Digest::hash_reader(reader).map_err(error::io(&origin))?;
            self.advance(size);
            check_digest(&origin, "the file", found, entry.sha256)
        });
        log.record(None, hashed);
    }
}

/// Name, size and digest of a file with tensors.
fn file_entry<'a>(entry: impl Into<FileParts<'a>>) -> FileEntry {
    let FileParts(name, size, sha256) = entry.into();
    FileEntry {
        name: name.to_owned(),
        size,
        sha256,
    }
}

/// The parts that the entries of both kinds of files share.
struct FileParts<'a>(&'a str, u64, Digest);

impl<'a> From<&'a LayerEntry> for FileParts<'a> {
    fn from(entry: &'a LayerEntry) -> Self {
        Self(&entry.file, entry.size, entry.sha256)
    }
}

impl<'a> From<&'a NonLayerEntry> for FileParts<'a> {
    fn from(entry: &'a NonLayerEntry) -> Self {
        Self(&entry.file, entry.size, entry.sha256)
    }
}
