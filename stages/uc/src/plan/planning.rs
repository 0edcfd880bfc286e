//! From a command line to a planned, locked run directory; shared by the verbs that begin runs.

use camino::{Utf8Path, Utf8PathBuf};
use uc_settings::Settings;
use uc_store::plan::{External, Plan, SOURCE, StagePlan};
use uc_store::run::RunDir;
use uc_store::sha::hash_bytes;
use uc_store::source;
use uc_store::{ExitCode, StoreError, atomic};

use crate::cli::UploadOptions;
use crate::plan::pipeline::Request;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::session::Session;

/// Where runs are unless `--run` says otherwise.
const RUNS: &str = "runs";
/// What an upload is for: the artifact that says that a repository holds the pack.
pub const UPLOADED: &str = "remote-pack";
/// What an upload may free.
pub const LAYER: &str = "pack-layer";

/// Applies `section.key=value` settings in their order.
pub fn apply(settings: &mut Settings, assignments: &[String]) -> anyhow::Result<()> {
    for assignment in assignments {
        let (key, value) = assignment.split_once('=').ok_or_else(|| {
            let message = format!("--set {assignment}: expected SECTION.KEY=VALUE");
            failure(ExitCode::Usage, message)
        })?;
        settings.set(key.trim(), value.trim())?;
    }
    Ok(())
}

/// Has a run send its pack.
pub fn upload(plan: &mut Plan, repository: &str, options: &UploadOptions) -> anyhow::Result<()> {
    if !plan.ask_for(UPLOADED) {
        let message = format!(
            "no stage of this run writes `{UPLOADED}`, which an upload is for; a run of an earlier version gets such \
             stages by `uc compress` with the same --run"
        );
        return Err(failure(ExitCode::BadPipeline, message));
    }
    let mut settings = plan.settings.clone();
    settings.upload.repository = repository.to_owned();
    settings.upload.private |= options.private;
    if let Some(attempts) = options.attempts {
        settings.upload.attempts = attempts;
    }
    settings.validate()?;
    plan.settings = settings;
    if options.delete_uploaded
        && let Some(layer) = plan.artifacts.get_mut(LAYER)
    {
        layer.temporary = true;
    }
    Ok(())
}

/// Forgets what an upload did, as far as it can be done again: what was sent once says nothing of what the repository
/// holds now.
pub fn forget_upload(plan: &Plan, run: &RunDir) -> anyhow::Result<()> {
    let writes = |stage: &&StagePlan| stage.writes.iter().any(|write| write.name == UPLOADED);
    let program = plan.stages.iter().find(writes).map(|stage| &stage.argv[0]);
    for job in plan.jobs() {
        let stage = plan.stage(&job.stage).expect("a job of the plan");
        if Some(&stage.argv[0]) != program {
            continue;
        }
        let inputs = plan.inputs(stage, job.unit).into_iter();
        let mut paths = inputs.filter_map(|id| plan.path(run.root(), &id));
        if paths.all(|path| path.exists()) {
            atomic::remove_file(&run.receipt_path(&job))?;
        }
    }
    Ok(())
}

/// Every outside file that earlier default runs of a model know, so that it is not hashed again.
pub fn remembered(prefix: &str, run: Option<&Utf8Path>) -> External {
    let mut plans: Vec<Utf8PathBuf> = run.map(Utf8Path::to_owned).into_iter().collect();
    let entries = Utf8Path::new(RUNS).read_dir_utf8().into_iter().flatten();
    let similar = entries
        .flatten()
        .filter(|entry| entry.file_name().starts_with(prefix));
    plans.extend(similar.map(|entry| entry.path().to_owned()));
    let files = plans
        .iter()
        // A plan that cannot be read is only no help here.
        .filter_map(|root| RunDir::open(root).ok())
        .flat_map(|(_, plan)| plan.externals.into_values())
        .flat_map(|external| external.files)
        .collect();
    source::external(files)
}

/// The start of default run names for a model.
pub fn prefix(kind: &str, model: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = model.chars().map(plain).collect();
    format!("{kind}{}-", name.trim_start_matches('.'))
}

/// The default run directory: the same for the same outside bytes and settings.
pub fn default_run(prefix: &str, identity: &[&External], settings: &Settings) -> Utf8PathBuf {
    let digests: Vec<String> = identity.iter().map(|e| e.digest.to_string()).collect();
    let settings = serde_json::to_string(&settings.determining()).expect("settings are plain data");
    let digest = hash_bytes(format!("{} {settings}", digests.join(" ")).as_bytes());
    Utf8Path::new(RUNS).join(format!("{prefix}{}", &digest.to_string()[..8]))
}

/// Moves a source whose shards come and go into the run directory: there they may be deleted. Gives the files that have
/// to be copied once the run is locked: all but the shards, and the shards' headers.
pub fn take_in(
    root: &Utf8Path,
    request: &mut Request<'_>,
) -> anyhow::Result<Vec<(Utf8PathBuf, Utf8PathBuf)>> {
    let folder = camino::absolute_utf8(root)?.join(SOURCE);
    let mut copies = Vec::new();
    let source = request.externals.get_mut(SOURCE);
    for file in source.into_iter().flat_map(|source| &mut source.files) {
        let name = file.path.file_name().unwrap_or_default();
        let to = folder.join(name);
        let from = std::mem::replace(&mut file.path, to.clone());
        copies.push(match file.shard {
            // As `shard-loader` names them.
            Some(_) => (
                format!("{from}.header").into(),
                format!("{to}.header").into(),
            ),
            None => {
                file.mtime_ns = 0; // the copy's is another
                (from, to)
            }
        });
    }
    request.model.path = folder;
    Ok(copies)
}

/// Makes the run directory, or continues the one that is there if it is the same model's.
pub fn enter(root: &Utf8Path, plan: Plan, display: &Display) -> anyhow::Result<Session> {
    // The lock comes first: of two that begin at once, one alone writes the plan.
    let _lock = RunDir::at(root).lock()?;
    if !root.join("run.json").exists() {
        let run = RunDir::create(root, &plan)?;
        return Ok(Session { run, plan, _lock });
    }
    let old = match RunDir::open(root) {
        Ok((_, old)) => old,
        // The receipts say by themselves what they are good for; the plan is at hand.
        Err(error @ (StoreError::Malformed { .. } | StoreError::Hash { .. })) => {
            display.warn(&format!("{error}; it is written anew"));
            let run = RunDir::create(root, &plan)?;
            return Ok(Session { run, plan, _lock });
        }
        Err(error) => return Err(error.into()),
    };
    let digest = |plan: &Plan| plan.externals.get("source").map(|source| source.digest);
    if digest(&old) != digest(&plan) {
        let message = format!(
            "{root} is a run of {} ({}), which is not the same source as {}; expected another --run",
            old.model.name, old.model.path, plan.model.path
        );
        return Err(failure(ExitCode::Usage, message));
    }
    display.say(&format!("continuing {root}"));
    let run = RunDir::create(root, &plan)?;
    Ok(Session { run, plan, _lock })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_applied_and_bad_ones_refused() {
        let mut settings = Settings::default();
        apply(
            &mut settings,
            &["quantize.bpw=4".into(), "overlay.rank = 8".into()],
        )
        .expect("set");
        assert_eq!(settings.quantize.bpw, 4.0);
        assert!(apply(&mut settings, &["quantize.bpw".into()]).is_err());
        assert!(apply(&mut settings, &["quantize.bwp=4".into()]).is_err());
    }

    #[test]
    fn the_default_run_depends_on_source_and_settings_alone() {
        let source = |bytes: &[u8]| External {
            files: Vec::new(),
            digest: hash_bytes(bytes),
        };
        let settings = Settings::default();
        let mut other = settings.clone();
        other.quantize.bpw = 4.0;
        let prefix = prefix("", "org/my model");
        let run = default_run(&prefix, &[&source(b"a")], &settings);
        assert!(run.as_str().starts_with("runs/org-my-model-"), "{run}");
        assert_eq!(run, default_run(&prefix, &[&source(b"a")], &settings));
        assert_ne!(run, default_run(&prefix, &[&source(b"b")], &settings));
        assert_ne!(run, default_run(&prefix, &[&source(b"a")], &other));
        let mut sent = settings.clone();
        sent.upload.repository = "owner/name".into();
        assert_eq!(run, default_run(&prefix, &[&source(b"a")], &sent));
        let mut evicting = settings.clone();
        evicting.set("retention.source", "evict").expect("set");
        assert_eq!(run, default_run(&prefix, &[&source(b"a")], &evicting));
    }
}
