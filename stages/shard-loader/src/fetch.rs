//! Downloads a model of the Hub into a folder before a run, whole or with only the headers of its shards.
//!
//! Owns which files of a repository make up the model: its metadata and the safetensors files with its weights, never a second
//! copy of the weights in another format. Every file is verified against the Hub's digest before it appears.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use uc_hub::{CommitId, FileId, Hub, RemoteFile, RepoName, RepoRef, Retrier, Snapshot};
use uc_model::SourceFolder;
use uc_model::source;
use uc_store::atomic;
use uc_store::logging::{self, LogFormat};
use uc_store::output;
use uc_store::resources;
use uc_store::stage;

use crate::descriptions::{self, METADATA_FILES};
use crate::error::FetchError;
use crate::model_store::ModelStore;
use crate::remote::{PROGRESS_INTERVAL, RetryArgs, connect, header_path};

/// Name of the only weight file of a model that is not sharded.
const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of a sharded model.
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Number of bytes that the first request for a shard's header fetches; most headers are smaller.
const HEADER_GUESS: u64 = 256 << 10;
/// Interval between lines of progress for people.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Arguments of `shard-loader fetch`.
#[derive(Debug, Clone, clap::Args)]
pub struct FetchArgs {
    /// The model, `owner/name[@revision]`
    model: RepoRef,
    /// Folder of downloaded models; this one goes to OWNER--NAME/COMMIT in it
    #[arg(long, value_name = "FOLDER", default_value = "models")]
    to: Utf8PathBuf,
    /// Download only the headers of the weight files
    #[arg(long)]
    headers: bool,
    /// Report progress as JSON lines on standard output, and exit when the parent process does
    #[arg(long)]
    progress: bool,
    #[command(flatten)]
    retry: RetryArgs,
    /// More log output; repeat for even more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Format of the log lines
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Downloads a model and returns its folder, commit and shards.
pub fn fetch(args: &FetchArgs) -> anyhow::Result<serde_json::Value> {
    logging::init(args.verbose, false, args.log_format);
    if args.progress {
        stage::end_with_parent()?;
    }
    let (hub, mut retrier) = (connect()?, args.retry.first_retrier()?);
    let RepoRef { repo, revision } = &args.model;
    let store = ModelStore::new(&args.to, repo);
    if hub.endpoint().is_offline() {
        let commit = store.downloaded(repo, revision)?;
        let folder = store.folder(&commit);
        return description(&args.model, &folder, &commit, BTreeMap::new());
    }
    let what = format!("listing of {repo}");
    let snapshot = retrier.run(&what, |_| hub.info(repo, revision))?;
    let folder = store.folder(&snapshot.commit);
    let mut download = Download {
        hub: &hub,
        repo,
        snapshot: &snapshot,
        folder: &folder,
        retrier: &mut retrier,
        progress: Progress::new(args.progress),
    };
    let weights = download.metadata()?;
    download.check_names(&weights)?;
    if !args.headers {
        download.ensure_space(&weights)?;
    }
    let mut shards = BTreeMap::new();
    for file in weights.iter().copied() {
        match (&file.id, args.headers) {
            (FileId::Sha256(sha256), true) => {
                download.header(file)?;
                let digest = json!({"size": file.size, "sha256": sha256.to_string()});
                shards.insert(file.path.clone(), digest);
            }
            // The Hub has no SHA-256 of small files. A model that small is downloaded whole.
            _ => download.file(file)?,
        }
    }
    if args.headers {
        download.check_sizes(&weights)?;
    } else {
        store.record(revision, &snapshot.commit)?;
    }
    description(&args.model, &folder, &snapshot.commit, shards)
}

/// Where a downloaded model is, as JSON; `shards` are those that are still on the Hub.
fn description(
    model: &RepoRef,
    folder: &Utf8Path,
    commit: &CommitId,
    shards: BTreeMap<String, serde_json::Value>,
) -> anyhow::Result<serde_json::Value> {
    let folder = folder.canonicalize_utf8();
    Ok(json!({
        "folder": folder.with_context(|| format!("cannot open the folder of {}", model.repo))?,
        "name": model.repo.name(),
        "repository": model.repo.to_string(),
        "revision": model.revision,
        "commit": commit.to_string(),
        "shards": shards,
    }))
}

/// Bytes of some files, by the sizes that the Hub states.
fn total_size(files: &[&RemoteFile]) -> u64 {
    let sizes = files.iter().map(|file| file.size);
    sizes.fold(0, u64::saturating_add)
}

/// The download of a model into a folder.
struct Download<'a> {
    hub: &'a Hub,
    repo: &'a RepoName,
    snapshot: &'a Snapshot,
    folder: &'a Utf8Path,
    retrier: &'a mut Retrier<'static>,
    progress: Progress,
}

impl<'a> Download<'a> {
    fn find(&self, name: &str) -> Option<&'a RemoteFile> {
        self.snapshot.files.iter().find(|file| file.path == name)
    }

    fn unusable(&self, found: String, expected: &'static str) -> anyhow::Error {
        FetchError::UnusableRepository {
            repository: self.repo.clone(),
            commit: self.snapshot.commit,
            found,
            expected,
        }
        .into()
    }

    /// Downloads all files but the weights; returns the weight files.
    fn metadata(&mut self) -> anyhow::Result<Vec<&'a RemoteFile>> {
        let names = METADATA_FILES.iter().map(|name| (*name).to_owned());
        let top_level = self
            .snapshot
            .files
            .iter()
            .filter(|file| !file.path.contains('/'));
        let described = descriptions::select(top_level.map(|file| (file.path.clone(), file.size)));
        let names = names.chain(described.carried);
        let metadata: Vec<_> = names.filter_map(|name| self.find(&name)).collect();
        if !metadata.iter().any(|file| file.path == "config.json") {
            return Err(self.unusable("no config.json".into(), "a model"));
        }
        if self.find("adapter_config.json").is_some() {
            let found = "adapter_config.json beside the weights".into();
            return Err(self.unusable(found, "a model without an adapter; merge it first"));
        }
        self.progress.total = total_size(&metadata);
        for file in metadata {
            self.file(file)?;
        }
        let weights = self.weight_files()?;
        let total = self.progress.total;
        self.progress.total = total.saturating_add(total_size(&weights));
        Ok(weights)
    }

    /// The files that hold the weights, selected by the same rule as when the folder is opened.
    fn weight_files(&self) -> anyhow::Result<Vec<&'a RemoteFile>> {
        if let Some(single) = self.find(SINGLE_FILE) {
            return Ok(vec![single]);
        }
        if self.find(INDEX_FILE).is_none() {
            let holds_weights = |file: &&RemoteFile| {
                [".bin", ".pth", ".gguf", ".onnx", ".safetensors"]
                    .iter()
                    .any(|ending| file.path.ends_with(ending))
            };
            let files = self.snapshot.files.iter().filter(holds_weights);
            let names: Vec<_> = files.map(|file| file.path.as_str()).take(5).collect();
            let found = match names.as_slice() {
                [] => "no weights".into(),
                names => names.join(", "),
            };
            return Err(self.unusable(found, "model.safetensors or an index of shards"));
        }
        let index = source::read_index(self.folder.join(INDEX_FILE).as_std_path())?;
        let shards = index.file_names().into_iter().map(|name| {
            let missing = || format!("no {name}, which its index names");
            self.find(name)
                .ok_or_else(|| self.unusable(missing(), "every shard of the index"))
        });
        shards.collect()
    }

    /// Checks that no two files of the model differ only in case: on a file system that ignores case, one would replace the
    /// other.
    fn check_names(&self, weights: &[&RemoteFile]) -> anyhow::Result<()> {
        let metadata = METADATA_FILES.iter().filter_map(|name| self.find(name));
        let mut names = BTreeMap::new();
        for file in metadata.chain(weights.iter().copied()) {
            let other = names.insert(file.path.to_lowercase(), &file.path);
            if let Some(other) = other.filter(|other| **other != file.path) {
                let found = format!("{other} and {}", file.path);
                return Err(self.unusable(found, "names that differ in more than case"));
            }
        }
        Ok(())
    }

    /// Checks that the disk has room for the weights that are not there yet, by the sizes that the Hub states.
    fn ensure_space(&self, weights: &[&RemoteFile]) -> anyhow::Result<()> {
        let is_missing = |file: &&&RemoteFile| {
            let metadata = std::fs::metadata(self.folder.join(&file.path));
            metadata.map_or(true, |found| found.len() != file.size)
        };
        let sizes = weights.iter().filter(is_missing).map(|file| file.size);
        let needed = sizes.fold(0, u64::saturating_add);
        resources::ensure_free(&self.folder.join(SINGLE_FILE), needed)?;
        Ok(())
    }

    /// Downloads a file whole.
    fn file(&mut self, file: &RemoteFile) -> anyhow::Result<()> {
        let target = self.folder.join(&file.path);
        let progress = &mut self.progress;
        let before = progress.done;
        self.hub.download(
            self.repo,
            &self.snapshot.commit,
            file,
            &target,
            self.retrier,
            |now| progress.report(before + now.done),
        )?;
        progress.report(before + file.size);
        Ok(())
    }

    /// Downloads the header of a shard to a file next to where the shard would be. The Hub has no digest of a header, so it is
    /// downloaded again for every plan, and the shard is compared with it later.
    fn header(&mut self, file: &RemoteFile) -> anyhow::Result<()> {
        let path = self.folder.join(&file.path);
        self.progress.total -= file.size;
        let what = format!("header of {}", file.path);
        let mut download = |bytes| {
            let (hub, repo, commit) = (self.hub, self.repo, &self.snapshot.commit);
            let prefix = self
                .retrier
                .run(&what, |_| hub.read_prefix(repo, commit, file, bytes));
            Ok::<_, anyhow::Error>(prefix?)
        };
        let mut bytes = download(HEADER_GUESS)?;
        let prefix: Option<[u8; 8]> = bytes.first_chunk().copied();
        let length = match prefix {
            Some(prefix) => source::header_length(prefix, path.as_std_path())?,
            None => 8,
        };
        if length > file.size {
            let found = format!("{} bytes in {}", file.size, file.path);
            return Err(self.unusable(found, "at least the header of a safetensors file"));
        }
        if length > bytes.len() as u64 {
            bytes = download(length)?;
        }
        bytes.truncate(length as usize);
        atomic::write_bytes(&header_path(&path), &bytes)?;
        Ok(())
    }

    /// Checks that the size of every shard is that of its header and the tensors it lists. Otherwise the downloaded folder would
    /// be refused.
    fn check_sizes(&self, weights: &[&RemoteFile]) -> anyhow::Result<()> {
        let source = SourceFolder::open(self.folder.as_std_path())?;
        let mut data: BTreeMap<&Path, u64> = BTreeMap::new();
        for info in source.tensors() {
            *data.entry(source.file_of(info).0).or_default() += info.bytes;
        }
        for file in weights {
            let path = self.folder.join(&file.path);
            let Ok(header) = std::fs::metadata(header_path(&path)) else {
                continue; // downloaded whole
            };
            let data = data.get(path.as_std_path()).unwrap_or(&0);
            if header.len() + data != file.size {
                let (name, size) = (&file.path, header.len() + data);
                let found = format!("{} bytes in {name}, but {size} by its header", file.size);
                return Err(self.unusable(found, "as many bytes as the header lists"));
            }
        }
        Ok(())
    }
}

/// Progress over all files, reported at intervals.
struct Progress {
    /// Report JSON lines for the driver rather than text for people.
    as_json: bool,
    /// Bytes downloaded so far.
    done: u64,
    /// Bytes to download.
    total: u64,
    reported: Instant,
}

impl Progress {
    fn new(as_json: bool) -> Self {
        Self {
            as_json,
            done: 0,
            total: 0,
            reported: Instant::now(),
        }
    }

    /// Sets the bytes downloaded, and reports them if the last report is old enough.
    fn report(&mut self, done: u64) {
        self.done = done;
        let interval = if self.as_json {
            PROGRESS_INTERVAL
        } else {
            LINE_INTERVAL
        };
        if self.reported.elapsed() < interval {
            return;
        }
        self.reported = Instant::now();
        if self.as_json {
            output::print_line(json!({"done": done, "total": self.total}));
        } else {
            output::print_message(format_args!("{} of {} MiB", done >> 20, self.total >> 20));
        }
    }
}
