//! The verified pack of a run to a Hub repository.
//!
//! Refuses a pack that does not verify. Sends a few layers per commit, only what the remote lacks, the manifest last,
//! so that a cut upload never looks whole; a rerun goes on from what the remote holds. It is done when the remote tree
//! equals the manifest, not before. What the watchdog does stands in `RUN/hub/watchdog.json`, the outcome in
//! `RUN/hub/upload.json`.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use uc_hub::{
    Endpoint, Hub, HubError, Limits, LocalFile, Policy, RepoRef, Visibility, Watchdog, differences,
};
use uc_store::ExitCode;
use uc_store::atomic;
use uc_store::logging::{self, LogFormat};
use uc_store::plan::ArtifactId;
use uc_store::run::RunDir;

use crate::{File, UploadPlan};

/// Arguments of an upload.
#[derive(Debug, Clone, clap::Args)]
pub struct UploadArgs {
    /// The run directory
    #[arg(long)]
    run: Utf8PathBuf,
    /// The repository, `owner/name[@branch]`; made if it is missing
    #[arg(long)]
    repo: RepoRef,
    /// A repository that has to be made is private
    #[arg(long)]
    private: bool,
    /// Attempts in a row without progress before it gives up
    #[arg(long, default_value_t = Policy::default().attempts, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,
    /// Longest wait between two attempts, in seconds
    #[arg(long, default_value_t = 300)]
    longest_wait: u64,
    /// More log output; twice for more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Form of the log lines
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// The outcome, published when the remote holds everything.
#[derive(Debug, Serialize)]
struct Outcome {
    outcome_version: u32,
    endpoint: String,
    repository: String,
    branch: String,
    commit: String,
    pack_fingerprint: String,
    files: usize,
    bytes: u64,
}

/// Runs the upload to its end.
pub fn main(args: &UploadArgs) -> ExitCode {
    logging::init(args.verbose, false, args.log_format);
    match upload(args) {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            eprintln!("error: {error:#}");
            class(&error)
        }
    }
}

fn upload(args: &UploadArgs) -> anyhow::Result<()> {
    let (run, plan) = RunDir::open(&args.run)?;
    let _lock = run.stage_lock("hub-upload")?;
    let artifact = |name: &str| {
        let id = ArtifactId {
            name: name.into(),
            layer: None,
        };
        run.artifact_path(&plan, &id)
    };
    let manifest = artifact("manifest")?;
    let pack = manifest.parent().context("the manifest has no folder")?;
    let endpoint = Endpoint::from_env()?;
    if !endpoint.has_token() {
        return Err(NoToken.into());
    }
    let (_, upload_plan) = crate::verified_plan(pack)?;
    let mut commits = local_files(&upload_plan, pack)?;
    let card = artifact("model-card")?;
    if card.exists() {
        commits[0].1.push(LocalFile::read("README.md", &card)?);
    }
    let hub = Hub::new(endpoint, Limits::default())?;
    let state = args.run.join("hub/watchdog.json");
    let policy = Policy {
        attempts: args.attempts,
        longest_wait: std::time::Duration::from_secs(args.longest_wait),
        seed: std::process::id().into(),
        ..Policy::default()
    };
    let mut watchdog = Watchdog::new(policy).observed(|now| {
        if let Err(error) = atomic::write_json(&state, now) {
            tracing::warn!(%error, "the state of the watchdog is not written");
        }
    });
    let commit = send(args, &hub, &mut watchdog, &commits)?;
    let files: Vec<_> = commits.iter().flat_map(|(_, files)| files).collect();
    let outcome = Outcome {
        outcome_version: 1,
        endpoint: hub.endpoint().url().to_owned(),
        repository: args.repo.repo.to_string(),
        branch: args.repo.revision.clone(),
        commit,
        pack_fingerprint: upload_plan.pack_fingerprint,
        files: files.len(),
        bytes: files.iter().map(|file| file.size).sum(),
    };
    atomic::write_json(&args.run.join("hub/upload.json"), &outcome)?;
    println!(
        "done: {} holds {} files, {} bytes, at commit {}",
        outcome.repository, outcome.files, outcome.bytes, outcome.commit
    );
    Ok(())
}

/// The files of each commit with its message; sizes and digests are those that the verification has just confirmed.
fn local_files(
    plan: &UploadPlan,
    pack: &Utf8Path,
) -> anyhow::Result<Vec<(String, Vec<LocalFile>)>> {
    let local = |file: &File| -> anyhow::Result<LocalFile> {
        let (source, sha256) = (pack.join(&file.name), file.sha256.parse()?);
        Ok(LocalFile::known(&file.name, &source, file.size, sha256)?)
    };
    let commits = plan.commits.iter().map(|commit| {
        let files = commit.files.iter().map(local).collect::<Result<_, _>>()?;
        Ok((commit.message.clone(), files))
    });
    commits.collect()
}

/// Repository, commits, and the comparison that ends it; returns the commit that holds everything.
fn send(
    args: &UploadArgs,
    hub: &Hub,
    watchdog: &mut Watchdog<'_>,
    commits: &[(String, Vec<LocalFile>)],
) -> anyhow::Result<String> {
    let RepoRef { repo, revision } = &args.repo;
    let visibility = if args.private {
        Visibility::Private
    } else {
        Visibility::Public
    };
    watchdog.run("repository", |_| hub.create_repo(repo, visibility))?;
    for (message, files) in commits {
        let pushed = hub.push(repo, revision, message, files, watchdog, |file, now| {
            tracing::debug!(file, done = now.done, total = now.total, "sending");
        })?;
        println!(
            "{message}: {} files committed, {} were there",
            pushed.committed, pushed.present
        );
    }
    let (head, tree) = watchdog.run("comparison", |_| {
        let head = hub.head(repo, revision)?;
        Ok((head, hub.tree(repo, &head.to_string())?))
    })?;
    let files: Vec<_> = commits
        .iter()
        .flat_map(|(_, files)| files.clone())
        .collect();
    let missing = differences(&tree, &files)?;
    if !missing.is_empty() {
        let paths: Vec<_> = missing.into_iter().map(|gap| gap.path).collect();
        let repository = repo.to_string();
        return Err(NotTheSame { repository, paths }.into());
    }
    let ours = |path: &String| files.iter().any(|file| file.path == *path);
    let others = tree.iter().map(|file| &file.path);
    for path in others.filter(|path| !ours(path) && *path != ".gitattributes") {
        println!("note: {repo} also holds {path}, which is not of this pack");
    }
    Ok(head.to_string())
}

/// There is no token.
#[derive(Debug, thiserror::Error)]
#[error("an upload needs a token: set HF_TOKEN, or HF_TOKEN_PATH to a file that holds one")]
struct NoToken;

/// The remote does not hold what was sent.
#[derive(Debug, thiserror::Error)]
#[error("{repository} differs from the manifest after the upload: {}", paths.join(", "))]
struct NotTheSame {
    repository: String,
    paths: Vec<String>,
}

fn class(error: &anyhow::Error) -> ExitCode {
    let by_store = ExitCode::of_error(error).filter(|code| *code != ExitCode::Internal);
    let of = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return error.exit_code();
        }
        if cause.is::<NoToken>() {
            return Some(ExitCode::Permission);
        }
        let damaged = cause.is::<crate::DoesNotVerify>() || cause.is::<uc_pack::PackError>();
        if damaged {
            return Some(ExitCode::Damaged);
        }
        cause.is::<NotTheSame>().then_some(ExitCode::Network)
    };
    by_store
        .or_else(|| error.chain().find_map(of))
        .unwrap_or(ExitCode::Internal)
}
