//! A finished pack is replaced by another one only on request.
//!
//! Repairing a pack, or making its deleted layers again, is no replacement: the same plan gives the same bytes. Another plan
//! (a setting, a text, another version of a stage) gives another pack, and so does another run that has the same `--out`.

use uc_pack::Pack;
use uc_store::plan::{ArtifactId, Plan};
use uc_store::receipt::Receipt;
use uc_store::run::RunDir;
use uc_store::sha::hash_file;
use uc_store::{ExitCode, atomic};

use crate::artifacts::MANIFEST;
use crate::report::completion::completed_jobs;
use crate::report::failure::failure;

/// Most differences between two plans that a message lists.
const MAX_DIFFERENCES: usize = 20;

/// Refuses to replace a finished pack, unless `force` is set. Then its manifest is deleted first: files of two packs
/// together never look like a finished one. `before` is the plan of the run so far.
///
/// # Errors
/// If the pack would be replaced without `force`.
pub fn check(
    run: &RunDir,
    before: Option<&Plan>,
    plan: &Plan,
    force: bool,
    other_ways: &str,
) -> anyhow::Result<()> {
    let Some(message) = replaced_pack(run, before, plan)? else {
        return Ok(());
    };
    if !force {
        let message = format!("{message}. --force replaces it; {other_ways}");
        return Err(failure(ExitCode::Usage, message));
    }
    let folder = run.root().join(&plan.pack_dir);
    atomic::remove_file_below(&folder, &folder.join(uc_pack::DIGEST_FILE))?;
    atomic::remove_file_below(&folder, &folder.join(uc_pack::MANIFEST_FILE))?;
    Ok(())
}

/// What a run would do to a finished pack, in words; none if there is no finished pack or if the run makes the same one.
///
/// # Errors
/// If a file of the run cannot be read.
pub fn replaced_pack(
    run: &RunDir,
    before: Option<&Plan>,
    plan: &Plan,
) -> anyhow::Result<Option<String>> {
    let manifest = ArtifactId {
        name: MANIFEST.into(),
        layer: None,
    };
    let folder = run.root().join(&plan.pack_dir);
    let path = folder.join(uc_pack::MANIFEST_FILE);
    let Some(writer) = plan.producer(&manifest).filter(|_| path.exists()) else {
        return Ok(None);
    };
    // An unreadable receipt counts as absent, as in the freshness check.
    let receipt = Receipt::read(run, &writer).ok().flatten();
    let recorded = receipt
        .as_ref()
        .and_then(|receipt| receipt.output(&manifest));
    let pack = Pack::open(&folder);
    let is_own = folder.starts_with(run.root())
        || match (&pack, recorded) {
            (_, None) => false,
            (Ok(_), Some(recorded)) => {
                hash_file(&path).is_ok_and(|(found, _)| found.0 == recorded.sha256)
            }
            // Damaged since this run wrote it.
            (Err(_), Some(_)) => true,
        };
    let differences = before.map_or_else(Vec::new, |before| differences(before, plan));
    let is_same_plan = before.is_some() && differences.is_empty();
    if is_own && (is_same_plan || completed_jobs(run, plan)?.contains(&writer)) {
        return Ok(None);
    }
    let why = match (is_own, differences.is_empty()) {
        (false, _) => "another run made it".to_owned(),
        (true, false) => differences.join(", "),
        (true, true) => "it was made with another plan".to_owned(),
    };
    let what = pack.map_or_else(
        |_| "a pack that cannot be read".into(),
        |pack| in_words(&pack),
    );
    Ok(Some(format!(
        "{folder} holds {what}, which this run would replace: {why}"
    )))
}

/// Origin, rate and fingerprint of a pack.
fn in_words(pack: &Pack) -> String {
    let manifest = pack.manifest();
    format!(
        "a finished pack of {} ({} bits per weight of the linears, fingerprint {:.16}…)",
        uc_input::printable(&manifest.source.name),
        uc_input::printable(&manifest.totals.bits_per_weight_linears),
        pack.fingerprint().to_string()
    )
}

/// What determines the pack and differs between two plans, as `name old -> new`.
fn differences(before: &Plan, plan: &Plan) -> Vec<String> {
    let mut differences = Vec::new();
    if before.pack_dir != plan.pack_dir {
        differences.push(format!("folder {} -> {}", before.pack_dir, plan.pack_dir));
    }
    let (old, new) = (before.settings.determining(), plan.settings.determining());
    for section in uc_settings::Settings::SECTIONS {
        let former = old.fields(section);
        for (name, value) in new.fields(section) {
            let former = former.get(&name).map_or("", String::as_str);
            if former != value {
                differences.push(format!("{section}.{name} {former} -> {value}"));
            }
        }
    }
    for (name, external) in &plan.externals {
        let former = before.externals.get(name);
        if former.is_none_or(|former| former.digest != external.digest) {
            differences.push(format!("{name} changed"));
        }
    }
    for stage in &plan.stages {
        match before.stage(&stage.name) {
            Some(former) if former.version != stage.version => differences.push(format!(
                "version of {} {} -> {}",
                stage.name, former.version, stage.version
            )),
            Some(former) if former.argv != stage.argv || former.reads != stage.reads => {
                differences.push(format!("stage {} changed", stage.name));
            }
            Some(_) => {}
            None => differences.push(format!("stage {} is new", stage.name)),
        }
    }
    if differences.len() > MAX_DIFFERENCES {
        let more = differences.len() - MAX_DIFFERENCES;
        differences.truncate(MAX_DIFFERENCES);
        differences.push(format!("{more} more"));
    }
    differences
}
