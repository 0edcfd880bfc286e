use super::*;
use crate::atomic;
use crate::plan::Unit;
use crate::plan::tests_support::{folder, small_plan};
use crate::receipt::OutputRecord;
use crate::sha::hash_bytes;
use camino::Utf8PathBuf;

fn job(stage: &str, unit: Unit) -> JobId {
    JobId {
        stage: stage.into(),
        unit,
    }
}

/// Runs all stale jobs of the plan, with outputs that depend on the key alone. Returns them in order.
fn complete(plan: &Plan, run: &RunDir) -> Vec<JobId> {
    let mut ran = Vec::new();
    loop {
        let work = plan_work(plan, run).expect("walk");
        let ready =
            topological(plan, &plan.jobs())
                .into_iter()
                .find(|job| match &work.states[job] {
                    Freshness::Stale(reasons) => !matches!(reasons[0], Reason::Waits(_)),
                    _ => false,
                });
        let Some(id) = ready else { return ran };
        let key = job_key(plan, &id, |a| work.digests.get(a).copied())
            .expect("key")
            .expect("inputs");
        let stage = plan.stage(&id.stage).expect("stage");
        let mut outputs = Vec::new();
        for artifact in plan.outputs(stage, id.unit) {
            let content = format!(
                "{artifact} {}",
                key.iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect::<String>()
            );
            let path = run.artifact_path(plan, &artifact).expect("path");
            let written = atomic::write_bytes(&path, content.as_bytes()).expect("written");
            outputs.push(OutputRecord {
                artifact,
                size: written.size,
                sha256: written.sha256.0,
            });
        }
        Receipt {
            stage: id.stage.clone(),
            unit: id.unit,
            key,
            outputs,
        }
        .write(run)
        .expect("receipt");
        ran.push(id);
    }
}

fn completed() -> (tempfile::TempDir, Utf8PathBuf, Plan, RunDir) {
    let (keep, folder) = folder();
    let plan = small_plan();
    let run = RunDir::create(&folder, &plan).expect("run");
    assert_eq!(complete(&plan, &run).len(), plan.jobs().len());
    (keep, folder, plan, run)
}

fn reasons(plan: &Plan, run: &RunDir, id: &JobId) -> String {
    match &plan_work(plan, run).expect("walk").states[id] {
        Freshness::Stale(reasons) => reasons
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_finished_run_has_nothing_to_do() {
    let (_keep, _folder, plan, run) = completed();
    let work = plan_work(&plan, &run).expect("walk");
    assert_eq!(work.to_run(&plan), []);
    assert!(work.states.values().all(|state| *state == Freshness::Fresh));
}

#[test]
fn a_changed_setting_makes_dependent_jobs_stale_with_a_reason() {
    let (_keep, _folder, mut plan, run) = completed();
    plan.settings.set("quantize.bpw", "4.5").expect("set");
    let quantize = job("quantize", Unit::Layer(1));
    assert_eq!(
        reasons(&plan, &run, &quantize),
        "`setting.quantize.bpw` changed 5.0 -> 4.5"
    );
    assert_eq!(
        reasons(&plan, &run, &job("teacher", Unit::Layer(1))),
        "Fresh"
    );
    assert_eq!(
        reasons(&plan, &run, &job("finish", Unit::Run)),
        "waits for codes@000"
    );
}

#[test]
fn a_changed_source_and_a_changed_version_are_named() {
    let (_keep, _folder, mut plan, run) = completed();
    plan.externals.get_mut("source").expect("source").digest = hash_bytes(b"other");
    plan.stages[1].version = 2;
    let text = reasons(&plan, &run, &job("load", Unit::Layer(0)));
    assert!(
        text.contains("`input.source` changed 41cf6794ba42 -> "),
        "{text}"
    );
    assert!(text.contains("`stage.version` changed 1 -> 2"), "{text}");
}

#[test]
fn damage_to_outputs_and_receipts_is_detected() {
    let (_keep, folder, plan, run) = completed();
    let path = folder.join("pack/layer_001.uc");
    let mut bytes = std::fs::read(&path).expect("codes");
    bytes[0] ^= 1;
    atomic::write_bytes(&path, &bytes).expect("written");
    let quantize = job("quantize", Unit::Layer(1));
    assert!(reasons(&plan, &run, &quantize).contains("is damaged: SHA-256 found"));
    atomic::write_bytes(&path, b"short").expect("written");
    assert!(reasons(&plan, &run, &quantize).contains("is damaged: size found 5 bytes"));
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(
        reasons(&plan, &run, &quantize),
        "output codes@001 is missing"
    );
    let receipt = run.receipt_path(&job("load", Unit::Layer(0)));
    atomic::write_bytes(&receipt, b"rubbish").expect("written");
    assert!(
        reasons(&plan, &run, &job("load", Unit::Layer(0))).contains("its receipt cannot be used")
    );
    std::fs::remove_file(&receipt).expect("removed");
    assert_eq!(
        reasons(&plan, &run, &job("load", Unit::Layer(0))),
        "not done yet"
    );
    // Outputs that are made again have the same bytes, so no later job runs.
    assert_eq!(
        complete(&plan, &run),
        [job("load", Unit::Layer(0)), quantize]
    );
}

#[test]
fn retired_outputs_are_made_again_only_if_a_job_needs_them() {
    let (_keep, _folder, mut plan, run) = completed();
    for layer in 0..2 {
        retire(&plan, &run, &ArtifactId::at("weights", layer)).expect("retired");
        retire(&plan, &run, &ArtifactId::at("hidden", layer)).expect("retired");
    }
    let work = plan_work(&plan, &run).expect("walk");
    assert_eq!(work.to_run(&plan), []);
    assert_eq!(
        work.states[&job("load", Unit::Layer(1))],
        Freshness::Retired
    );
    assert_eq!(
        work.states[&job("teacher", Unit::Layer(1))],
        Freshness::Fresh
    );

    // Layer 1 is lost. It needs its weights and hidden states; these need those of layer 0 and the embedding.
    run.remove_receipt(&job("quantize", Unit::Layer(1)))
        .expect("removed");
    assert_eq!(
        reasons(&plan, &run, &job("load", Unit::Layer(1))),
        "output weights@001 was retired and quantize of layer 1 needs it again"
    );
    let ran = complete(&plan, &run);
    let expected = [
        job("embed", Unit::Run),
        job("load", Unit::Layer(0)),
        job("load", Unit::Layer(1)),
        job("quantize", Unit::Layer(1)),
        job("teacher", Unit::Layer(0)),
    ];
    assert_eq!(
        ran.iter().collect::<BTreeSet<_>>(),
        expected.iter().collect::<BTreeSet<_>>()
    );

    // Optional stages are not examined.
    plan.stages[4].optional = true;
    assert!(
        !plan_work(&plan, &run)
            .expect("walk")
            .states
            .contains_key(&job("finish", Unit::Run))
    );
}
