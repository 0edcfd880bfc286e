//! Turns command-line options into the plan of a run; shared by the verbs that start runs.

use camino::{Utf8Path, Utf8PathBuf};
use uc_settings::Settings;
use uc_store::ExitCode;
use uc_store::plan::{External, Plan, SOURCE, StagePlan};
use uc_store::run::RunDir;
use uc_store::sha::hash_bytes;
use uc_store::source;

use crate::artifacts::{PACK_LAYER, REMOTE_PACK};
use crate::cli::UploadOptions;
use crate::plan::pipeline::Request;
use crate::process::programs::Programs;
use crate::report::failure::failure;
use crate::report::suggestion::closest_setting;

/// The folder of runs unless `--run` names another.
const RUNS: &str = "runs";

/// Applies `section.key=value` settings in order.
pub fn apply_settings(settings: &mut Settings, assignments: &[String]) -> anyhow::Result<()> {
    for assignment in assignments {
        let (key, value) = assignment.split_once('=').ok_or_else(|| {
            let message = format!("--set {assignment}: expected SECTION.KEY=VALUE");
            failure(ExitCode::Usage, message)
        })?;
        let (key, value) = (key.trim(), value.trim());
        let known = Settings::keys();
        if !known.iter().any(|known| known == key) {
            let hint = match closest_setting(key, &known) {
                Some(setting) => format!("did you mean {setting}?"),
                None => format!("the settings are {}", known.join(", ")),
            };
            let message = format!("--set {assignment}: there is no setting `{key}`; {hint}");
            return Err(failure(ExitCode::BadPipeline, message));
        }
        settings.set(key, value)?;
    }
    Ok(())
}

/// Checks that the user knows of a folder outside the run directory into which a run writes. A run directory may come from a
/// stranger, so its plan alone does not decide what is written elsewhere.
///
/// # Errors
/// If the run writes its pack to a folder outside, and the user did not name it.
pub fn check_pack_folder(
    plan: &Plan,
    root: &Utf8Path,
    confirmed: Option<&Utf8Path>,
) -> anyhow::Result<()> {
    let confirmed = confirmed.map(camino::absolute_utf8).transpose()?;
    let Some(folder) = plan.pack_outside() else {
        return match confirmed {
            Some(out) if out != camino::absolute_utf8(root)?.join(&plan.pack_dir) => {
                let message = format!(
                    "--out {out}: the pack of this run is in {}; leave out --out",
                    root.join(&plan.pack_dir)
                );
                Err(failure(ExitCode::Usage, message))
            }
            _ => Ok(()),
        };
    };
    if confirmed.as_deref() == Some(folder) {
        return Ok(());
    }
    let message = format!(
        "{root} writes its pack to {folder}, outside the run directory; if that is what you want, add --out {folder}",
        folder = uc_input::printable(folder.as_str()),
    );
    Err(failure(ExitCode::Usage, message))
}

/// The command that continues a run, with the options that the run needs.
pub fn resume_command(plan: &Plan, root: &Utf8Path, programs: &Programs) -> String {
    let mut command = format!("uc resume {root}");
    if let Some(folder) = plan.pack_outside() {
        command += &format!(" --out {folder}");
    }
    for name in programs.further() {
        command += &format!(" --allow-program {name}");
    }
    command
}

/// Adds the upload of the pack to a plan.
pub fn add_upload(
    plan: &mut Plan,
    repository: &str,
    options: &UploadOptions,
) -> anyhow::Result<()> {
    if !plan.ask_for(REMOTE_PACK) {
        let message = format!(
            "no stage of this run writes `{REMOTE_PACK}`, the goal of an upload; `uc compress` with the same --run adds \
             such stages to a run of an earlier version"
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
    if options.delete_uploaded && plan.pack_dir.is_absolute() {
        let message = format!(
            "--delete-uploaded: the pack is in {}, and only files inside the run directory are deleted; expected no --out",
            plan.pack_dir
        );
        return Err(failure(ExitCode::Usage, message));
    }
    if options.delete_uploaded
        && let Some(layer) = plan.artifacts.get_mut(PACK_LAYER)
    {
        layer.temporary = true;
    }
    Ok(())
}

/// The repository to which the jobs of a plan upload the pack; none without an upload.
pub fn upload_target(plan: &Plan) -> Option<&str> {
    let uploads = |stage: &StagePlan| {
        !stage.optional && stage.writes.iter().any(|write| write.name == REMOTE_PACK)
    };
    let repository = plan.settings.upload.repository.as_str();
    plan.stages.iter().any(uploads).then_some(repository)
}

/// Deletes the receipts of upload jobs whose inputs are still on disk: a past upload does not prove what the
/// repository holds now.
pub fn reset_upload(plan: &Plan, run: &RunDir) -> anyhow::Result<()> {
    let writes = |stage: &&StagePlan| stage.writes.iter().any(|write| write.name == REMOTE_PACK);
    let program = plan.stages.iter().find(writes).map(|stage| &stage.argv[0]);
    for job in plan.jobs() {
        let stage = plan.stage(&job.stage).expect("a job of the plan");
        if Some(&stage.argv[0]) != program {
            continue;
        }
        let inputs = plan.inputs(stage, job.unit).into_iter();
        let mut paths = inputs.filter_map(|id| plan.path(run.root(), &id));
        if paths.all(|path| path.exists()) {
            run.remove_receipt(&job)?;
        }
    }
    Ok(())
}

/// Every external file recorded by earlier default runs of a model, so that it is not hashed again.
pub fn known_files(prefix: &str, run: Option<&Utf8Path>) -> External {
    let mut plans: Vec<Utf8PathBuf> = run.map(Utf8Path::to_owned).into_iter().collect();
    let entries = Utf8Path::new(RUNS).read_dir_utf8().into_iter().flatten();
    let similar = entries
        .flatten()
        .filter(|entry| entry.file_name().starts_with(prefix));
    plans.extend(similar.map(|entry| entry.path().to_owned()));
    let files = plans
        .iter()
        // An unreadable plan only means that its files are hashed again.
        .filter_map(|root| RunDir::open(root).ok())
        .flat_map(|(_, plan)| plan.externals.into_values())
        .flat_map(|external| external.files)
        .collect();
    source::external(files)
}

/// The prefix of default run names for a model.
pub fn run_prefix(kind: &str, model: &str) -> String {
    let sanitize = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = model.chars().map(sanitize).collect();
    format!("{kind}{}-", name.trim_start_matches('.'))
}

/// The default run directory: the same for the same external bytes and settings.
pub fn default_run(prefix: &str, identity: &[&External], settings: &Settings) -> Utf8PathBuf {
    let digests: Vec<String> = identity.iter().map(|e| e.digest.to_string()).collect();
    let settings = serde_json::to_string(&settings.determining()).expect("settings are plain data");
    let digest = hash_bytes(format!("{} {settings}", digests.join(" ")).as_bytes());
    Utf8Path::new(RUNS).join(format!("{prefix}{}", &digest.to_string()[..8]))
}

/// Places a source whose shards are fetched on demand in the run directory, where they may be deleted. Returns the files
/// to copy once the run is locked, as (from, to): everything but the shards, and the shards' headers.
pub fn relocate_source(
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
            // The names that `shard-loader` gives them.
            Some(_) => (
                format!("{from}.header").into(),
                format!("{to}.header").into(),
            ),
            None => {
                file.mtime_ns = 0; // the copy has its own time
                (from, to)
            }
        });
    }
    request.model.path = folder;
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_applied_and_bad_ones_rejected() {
        let mut settings = Settings::default();
        apply_settings(
            &mut settings,
            &["quantize.bpw=4".into(), "overlay.rank = 8".into()],
        )
        .expect("set");
        assert_eq!(settings.quantize.bpw, 4.0);
        assert!(apply_settings(&mut settings, &["quantize.bpw".into()]).is_err());
        assert!(apply_settings(&mut settings, &["quantize.bwp=4".into()]).is_err());
    }

    #[test]
    fn the_default_run_depends_only_on_source_and_settings() {
        let source = |bytes: &[u8]| External {
            files: Vec::new(),
            digest: hash_bytes(bytes),
        };
        let settings = Settings::default();
        let mut other = settings.clone();
        other.quantize.bpw = 4.0;
        let prefix = run_prefix("", "org/my model");
        let run = default_run(&prefix, &[&source(b"a")], &settings);
        assert!(run.as_str().starts_with("runs/org-my-model-"), "{run}");
        assert_eq!(run, default_run(&prefix, &[&source(b"a")], &settings));
        assert_ne!(run, default_run(&prefix, &[&source(b"b")], &settings));
        assert_ne!(run, default_run(&prefix, &[&source(b"a")], &other));
        let mut uploading = settings.clone();
        uploading.upload.repository = "owner/name".into();
        assert_eq!(run, default_run(&prefix, &[&source(b"a")], &uploading));
        let mut evicting = settings.clone();
        evicting.set("retention.source", "evict").expect("set");
        assert_eq!(run, default_run(&prefix, &[&source(b"a")], &evicting));
    }
}
