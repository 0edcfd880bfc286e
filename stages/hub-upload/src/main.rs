//! hub-upload: a verified pack → a Hub repository.
//!
//! `package` verifies the pack, plans the upload (which files, in which commits, with which digests) and writes the
//! model card. It is a dry run: nothing leaves the machine. `upload` sends by the same plan. Both refuse a pack that
//! does not verify.

mod card;
mod upload;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Parser, Subcommand};
use serde::Serialize;
use uc_pack::{Manifest, verify};
use uc_store::ExitCode;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

/// Raised whenever the same input gives other output.
const VERSION: u32 = 1;
/// Layers in one commit: a failed commit of a large pack then costs little.
const LAYERS_PER_COMMIT: usize = 8;

#[derive(Parser)]
#[command(
    name = "hub-upload",
    version,
    about = "Prepares a verified pack for a Hub repository and sends it"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Verify, plan the commits, write the model card; sends nothing
    Package(StageArgs),
    /// Send the verified pack of a run: what the repository lacks, a few layers per commit; a rerun goes on
    Upload(upload::UploadArgs),
}

fn main() -> std::process::ExitCode {
    let args = match Cli::parse().task {
        Task::Package(args) => args,
        Task::Upload(args) => return upload::main(&args).into(),
    };
    let program = Program {
        name: "hub-upload",
        task: "package",
        version: VERSION,
    };
    stage::main(program, &args, Package).into()
}

/// The commits of an upload, in order; the manifest comes last, so that a cut upload never looks whole.
#[derive(Debug, Serialize)]
struct UploadPlan {
    plan_version: u32,
    pack_fingerprint: String,
    commits: Vec<Commit>,
}

#[derive(Debug, Serialize)]
struct Commit {
    message: String,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    size: u64,
    sha256: String,
}

struct Package;

impl StageProgram for Package {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let manifest_path = job.input("manifest")?;
        let folder = manifest_path
            .parent()
            .context("the manifest has no folder")?
            .to_owned();
        let (manifest, plan) = verified_plan(&folder)?;
        job.figure("commits", plan.commits.len());

        let mut file = job.output("hub-plan")?;
        file.append(&serde_json::to_vec_pretty(&plan)?)?;
        job.commit("hub-plan", file)?;

        let metrics: serde_json::Value =
            serde_json::from_slice(&std::fs::read(job.input("metrics")?)?)?;
        let mut card = job.output("model-card")?;
        card.append(card::write(&manifest, &plan.pack_fingerprint, &metrics)?.as_bytes())?;
        job.commit("model-card", card)?;
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        error
            .chain()
            .any(|cause| cause.is::<uc_pack::PackError>() || cause.is::<DoesNotVerify>())
            .then_some(ExitCode::Damaged)
    }
}

/// A pack that must not leave the machine.
#[derive(Debug, thiserror::Error)]
#[error("the pack does not verify ({findings} findings); `uc verify {pack}` lists them")]
struct DoesNotVerify {
    pack: Utf8PathBuf,
    findings: usize,
}

/// Manifest and commits of a pack, if it verifies.
fn verified_plan(folder: &Utf8Path) -> anyhow::Result<(Manifest, UploadPlan)> {
    let threads = uc_store::resources::available_cpus() as usize;
    let report = verify::verify(folder, threads, &|_| {});
    if report.verdict != verify::Verdict::Pass {
        return Err(DoesNotVerify {
            pack: folder.to_owned(),
            findings: report.findings.len(),
        }
        .into());
    }
    let (manifest, fingerprint) = Manifest::read(folder)?;
    let plan = plan(&manifest, folder, fingerprint.to_string())?;
    Ok((manifest, plan))
}

fn plan(manifest: &Manifest, folder: &Utf8Path, fingerprint: String) -> anyhow::Result<UploadPlan> {
    let mut commits = Vec::new();
    let described = manifest.files.iter().map(|f| (&f.name, f.size, f.sha256));
    let scaffold = std::iter::once((
        &manifest.scaffold.file,
        manifest.scaffold.size,
        manifest.scaffold.sha256,
    ));
    let file = |(name, size, sha256): (&String, u64, uc_pack::Digest)| File {
        name: name.clone(),
        size,
        sha256: sha256.to_string(),
    };
    commits.push(Commit {
        message: "Scaffold and description".into(),
        files: described.chain(scaffold).map(file).collect(),
    });
    for group in manifest.layers.chunks(LAYERS_PER_COMMIT) {
        let (first, last) = (group[0].index, group[group.len() - 1].index);
        let files = group
            .iter()
            .map(|layer| file((&layer.file, layer.size, layer.sha256)))
            .collect();
        commits.push(Commit {
            message: format!("Layers {first} to {last}"),
            files,
        });
    }
    let mut last = Vec::new();
    for name in ["manifest.json", "manifest.sha256"] {
        let (sha256, size) = uc_store::sha::hash_file(&folder.join(name))?;
        last.push(File {
            name: name.into(),
            size,
            sha256: sha256.to_string(),
        });
    }
    commits.push(Commit {
        message: "Manifest".into(),
        files: last,
    });
    Ok(UploadPlan {
        plan_version: 1,
        pack_fingerprint: fingerprint,
        commits,
    })
}
