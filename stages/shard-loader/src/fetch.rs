//! Models of the Hub: all of one into a folder before a run, or one shard of a run while it goes on.
//!
//! Owns which files of a repository are the model: its description and the safetensors that hold its weights; never
//! a second copy of them in another format. Every file is checked against the Hub's digest before it appears.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use uc_hub::{
    CommitId, Endpoint, FileId, Hub, HubError, Limits, RemoteFile, RepoName, RepoRef, Retrier,
    RetryPolicy, Snapshot,
};
use uc_model::SourceFolder;
use uc_model::source;
use uc_store::ExitCode;
use uc_store::atomic;
use uc_store::logging::{self, LogFormat};
use uc_store::sha::verify_file;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

use crate::DESCRIPTION;

/// Raised whenever the same request gives other files.
const VERSION: u32 = 1;
/// Name of the single weight file.
const SINGLE: &str = "model.safetensors";
/// Name of the index of a sharded model.
const INDEX: &str = "model.safetensors.index.json";
/// What the first request for a shard's header asks for; most headers are smaller.
const HEADER_GUESS: u64 = 256 << 10;
/// How often progress is told to the driver.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often it is told to people.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// How patient downloads are.
#[derive(Debug, Clone, clap::Args)]
pub struct Patience {
    /// Attempts in a row without progress before it gives up
    #[arg(long, default_value_t = RetryPolicy::default().max_attempts, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,
    /// Longest wait between two attempts, in seconds
    #[arg(long, default_value_t = 300)]
    longest_wait: u64,
}

impl Patience {
    fn retrier<'a>(&self) -> Retrier<'a> {
        let longest_wait = Duration::from_secs(self.longest_wait);
        Retrier::new(RetryPolicy::new(self.attempts, longest_wait))
    }
}

/// Arguments of `shard-loader fetch`.
#[derive(Debug, Clone, clap::Args)]
pub struct FetchArgs {
    /// The model, `owner/name[@revision]`
    model: RepoRef,
    /// Where models lie; this one goes to OWNER--NAME/COMMIT in it
    #[arg(long, value_name = "FOLDER", default_value = "models")]
    to: Utf8PathBuf,
    /// Of the weights only the headers
    #[arg(long)]
    headers: bool,
    /// Tell progress as JSON lines on standard output, and end with the process that started this one
    #[arg(long)]
    progress: bool,
    #[command(flatten)]
    patience: Patience,
    /// More log output; twice for more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Form of the log lines
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Arguments of `shard-loader shard`.
#[derive(Debug, Clone, clap::Args)]
pub struct ShardArgs {
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    patience: Patience,
}

/// A repository that is no model that can be read here.
#[derive(Debug, thiserror::Error)]
#[error("{repository} at {commit}: found {found}, expected {expected}")]
struct NoModel {
    repository: RepoName,
    commit: CommitId,
    found: String,
    expected: &'static str,
}

/// A shard whose beginning is not the header that the run was planned with.
#[derive(Debug, thiserror::Error)]
#[error(
    "{shard}: found another header than in {header}, expected the same bytes; plan the run anew with uc compress"
)]
struct OtherHeader {
    shard: Utf8PathBuf,
    header: Utf8PathBuf,
}

/// The class of an error of this module or of the Hub.
pub fn class(error: &anyhow::Error) -> Option<ExitCode> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return error.exit_code();
        }
        let bad = cause.is::<NoModel>() || cause.is::<OtherHeader>();
        bad.then_some(ExitCode::BadInput)
    })
}

fn hub() -> Result<Hub, HubError> {
    Hub::new(Endpoint::from_env()?, Limits::default())
}

/// Downloads a model; says where it is and of which commit.
pub fn fetch(args: &FetchArgs) -> anyhow::Result<serde_json::Value> {
    logging::init(args.verbose, false, args.log_format);
    if args.progress {
        stage::end_with_parent()?;
    }
    let (hub, mut retrier) = (hub()?, args.patience.retrier());
    let RepoRef { repo, revision } = &args.model;
    let what = format!("listing of {repo}");
    let snapshot = retrier.run(&what, |_| hub.info(repo, revision))?;
    let name = format!("{}--{}", repo.org(), repo.name());
    let folder = args.to.join(name).join(snapshot.commit.to_string());
    let mut download = Download {
        hub: &hub,
        repo,
        snapshot: &snapshot,
        folder: &folder,
        retrier: &mut retrier,
        progress: Progress::new(args.progress),
    };
    let weights = download.description()?;
    let mut shards = BTreeMap::new();
    for file in weights.iter().copied() {
        match (&file.id, args.headers) {
            (FileId::Sha256(sha256), true) => {
                download.header(file)?;
                let facts = json!({"size": file.size, "sha256": sha256.to_string()});
                shards.insert(file.path.clone(), facts);
            }
            // The Hub keeps no SHA-256 of small files; a model so small needs no headers.
            _ => download.file(file)?,
        }
    }
    if args.headers {
        download.sizes(&weights)?;
    }
    Ok(json!({
        "folder": folder.canonicalize_utf8().with_context(|| format!("cannot open {folder}"))?,
        "name": repo.name(),
        "repository": repo.to_string(),
        "revision": revision,
        "commit": snapshot.commit.to_string(),
        "shards": shards,
    }))
}

/// A model on its way into a folder.
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

    fn refuse(&self, found: String, expected: &'static str) -> anyhow::Error {
        let (repository, commit) = (self.repo.clone(), self.snapshot.commit);
        NoModel {
            repository,
            commit,
            found,
            expected,
        }
        .into()
    }

    /// Downloads everything but the weights; gives the files of those.
    fn description(&mut self) -> anyhow::Result<Vec<&'a RemoteFile>> {
        let described: Vec<_> = DESCRIPTION
            .iter()
            .filter_map(|name| self.find(name))
            .collect();
        if !described.iter().any(|file| file.path == "config.json") {
            return Err(self.refuse("no config.json".into(), "a model"));
        }
        self.progress.total = described.iter().map(|file| file.size).sum();
        for file in described {
            self.file(file)?;
        }
        let weights = self.weights()?;
        self.progress.total += weights.iter().map(|file| file.size).sum::<u64>();
        Ok(weights)
    }

    /// The files that hold the weights, as whoever reads the folder will choose them.
    fn weights(&self) -> anyhow::Result<Vec<&'a RemoteFile>> {
        if let Some(single) = self.find(SINGLE) {
            return Ok(vec![single]);
        }
        if self.find(INDEX).is_none() {
            let of_weights = |file: &&RemoteFile| {
                [".bin", ".pth", ".gguf", ".onnx", ".safetensors"]
                    .iter()
                    .any(|ending| file.path.ends_with(ending))
            };
            let files = self.snapshot.files.iter().filter(of_weights);
            let names: Vec<_> = files.map(|file| file.path.as_str()).take(5).collect();
            let found = match names.as_slice() {
                [] => "no weights".into(),
                names => names.join(", "),
            };
            return Err(self.refuse(found, "model.safetensors or an index of shards"));
        }
        let index = source::read_index(self.folder.join(INDEX).as_std_path())?;
        let shards = index.file_names().into_iter().map(|name| {
            let missing = || format!("no {name}, which its index names");
            self.find(name)
                .ok_or_else(|| self.refuse(missing(), "every shard of the index"))
        });
        shards.collect()
    }

    fn file(&mut self, file: &RemoteFile) -> anyhow::Result<()> {
        let into = self.folder.join(&file.path);
        let progress = &mut self.progress;
        let before = progress.done;
        self.hub.download(
            self.repo,
            &self.snapshot.commit,
            file,
            &into,
            self.retrier,
            |now| progress.tell(before + now.done),
        )?;
        progress.tell(before + file.size);
        Ok(())
    }

    /// The header of a shard, to a file beside where the shard would be. It has no digest of its own: it comes anew each
    /// time that a run is planned, and the shard is compared with it.
    fn header(&mut self, file: &RemoteFile) -> anyhow::Result<()> {
        let path = self.folder.join(&file.path);
        let into = header_path(&path);
        self.progress.total -= file.size;
        let what = format!("header of {}", file.path);
        let mut ask = |bytes| {
            let (hub, repo, commit) = (self.hub, self.repo, &self.snapshot.commit);
            let got = self
                .retrier
                .run(&what, |_| hub.read_prefix(repo, commit, file, bytes));
            Ok::<_, anyhow::Error>(got?)
        };
        let mut bytes = ask(HEADER_GUESS)?;
        let first: Option<[u8; 8]> = bytes.first_chunk().copied();
        let length = match first {
            Some(first) => source::header_length(first, path.as_std_path())?,
            None => 8,
        };
        if length > file.size {
            let found = format!("{} bytes in {}", file.size, file.path);
            return Err(self.refuse(found, "at least the header of a safetensors file"));
        }
        if length > bytes.len() as u64 {
            bytes = ask(length)?;
        }
        bytes.truncate(length as usize);
        atomic::write_bytes(&into, &bytes)?;
        Ok(())
    }

    /// Whether every shard is as large as its header and the tensors that it names: a folder with all of it would be
    /// refused otherwise.
    fn sizes(&self, weights: &[&RemoteFile]) -> anyhow::Result<()> {
        let source = SourceFolder::open(self.folder.as_std_path())?;
        let mut data: BTreeMap<&Path, u64> = BTreeMap::new();
        for info in source.tensors() {
            *data.entry(source.file_of(info).0).or_default() += info.bytes;
        }
        for file in weights {
            let path = self.folder.join(&file.path);
            let Ok(header) = std::fs::metadata(header_path(&path)) else {
                continue; // it came whole
            };
            let data = data.get(path.as_std_path()).unwrap_or(&0);
            if header.len() + data != file.size {
                let (name, size) = (&file.path, header.len() + data);
                let found = format!("{} bytes in {name}, {size} by its header", file.size);
                return Err(self.refuse(found, "as many as the header says"));
            }
        }
        Ok(())
    }
}

fn header_path(shard: &Utf8Path) -> Utf8PathBuf {
    let path = source::header_path(shard.as_std_path());
    Utf8PathBuf::from_path_buf(path).expect("text added to text")
}

/// How far all files are together, told now and then.
struct Progress {
    tells: bool,
    done: u64,
    total: u64,
    told: Instant,
}

impl Progress {
    fn new(tells: bool) -> Self {
        Self {
            tells,
            done: 0,
            total: 0,
            told: Instant::now(),
        }
    }

    fn tell(&mut self, done: u64) {
        self.done = done;
        let interval = if self.tells { INTERVAL } else { LINE_INTERVAL };
        if self.told.elapsed() < interval {
            return;
        }
        self.told = Instant::now();
        if self.tells {
            println!("{}", json!({"done": done, "total": self.total}));
        } else {
            eprintln!("{} of {} MiB", done >> 20, self.total >> 20);
        }
    }
}

/// Downloads shards of a run, one per job.
pub fn shard(args: &ShardArgs) -> ExitCode {
    let program = Program {
        name: "shard-loader",
        task: "shard",
        version: VERSION,
    };
    let fetcher = Fetcher {
        hub: None,
        patience: args.patience.clone(),
    };
    stage::main(program, &args.stage, fetcher)
}

struct Fetcher {
    hub: Option<Hub>,
    patience: Patience,
}

impl StageProgram for Fetcher {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let file = job.shard()?;
        let origin = job.plan().model.hub.as_ref();
        let origin = origin.context("the plan names no repository")?;
        // One that is there and not whole would lie beside its successor, for which there is no room.
        if file.path.exists() && verify_file(&file.path, file.size, &file.sha256).is_err() {
            atomic::remove_file(&file.path)?;
        }
        let hub = match self.hub.take() {
            Some(hub) => hub,
            None => hub()?,
        };
        let name = file.path.file_name().context("a shard without a name")?;
        let remote = RemoteFile {
            path: name.into(),
            size: file.size,
            id: FileId::Sha256(file.sha256),
        };
        // The beginning of another shard, left by a process that was killed, has no place in the budget.
        atomic::sweep_growing(&file.path)?;
        let (repo, commit) = (origin.repository.parse()?, origin.commit.parse()?);
        let mut told = Instant::now();
        // Two speak for the job: the download and its retrier.
        let job = Mutex::new(job);
        let speaker = || job.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retrier = self.patience.retrier().with_observer(|state| {
            if let Some((attempt, wait, error)) = state.pending_retry() {
                speaker().retrying(attempt, state.attempts, wait, error);
            }
        });
        let downloaded =
            hub.download(&repo, &commit, &remote, &file.path, &mut retrier, |now| {
                if told.elapsed() >= INTERVAL {
                    told = Instant::now();
                    speaker().progress(now.done, now.total, "bytes");
                }
            })?;
        same_header(&file.path)?;
        speaker().metric("bytes received", downloaded.received);
        drop(retrier);
        self.hub = Some(hub);
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        class(error)
    }
}

/// The run was planned by the header alone: the shard must begin with it.
fn same_header(shard: &Utf8Path) -> anyhow::Result<()> {
    let path = header_path(shard);
    let header = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let file = std::fs::File::open(shard).with_context(|| format!("cannot open {shard}"))?;
    let mut found = Vec::new();
    let read = file.take(header.len() as u64).read_to_end(&mut found);
    read.with_context(|| format!("cannot read {shard}"))?;
    if found == header {
        return Ok(());
    }
    Err(OtherHeader {
        shard: shard.to_owned(),
        header: path,
    }
    .into())
}
