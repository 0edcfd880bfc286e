//! A finished pack is replaced only on request, a dry run writes nothing, and one stage of a finished run can be run again.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use uc_tests::{
    QUICK, compress, contents, fail_with, files_below, json, output_text, succeed, tiny_model, uc,
};

/// The bits per weight in the manifest of a pack.
fn bits_per_weight(pack: &Path) -> f64 {
    let output = succeed(uc().arg("inspect").arg(pack).arg("--json"));
    let bits = &json(&output)["totals"]["bits_per_weight_linears"];
    bits.as_str()
        .and_then(|bits| bits.parse().ok())
        .expect("bits per weight")
}

fn resume(run: &Path) -> Command {
    let mut command = uc();
    command.arg("resume").arg(run);
    command
}

#[test]
fn another_pack_does_not_replace_a_finished_one_without_force() {
    let folder = tempfile::tempdir().expect("folder");
    let (run, other) = (folder.path().join("run"), folder.path().join("other"));
    succeed(&mut compress(&tiny_model(), &run));
    let pack = run.join("pack");
    let (before, plan) = (
        contents(&pack),
        std::fs::read(run.join("run.json")).expect("plan"),
    );

    let mut refusals = [
        compress(&tiny_model(), &run),
        resume(&run),
        compress(&tiny_model(), &other),
    ];
    refusals[0].args(["--bpw", "4"]);
    refusals[1].args(["--set", "quantize.bpw=4"]);
    refusals[2].arg("--out").arg(&pack);
    let reasons = [
        "quantize.bpw 5.0 -> 4.0",
        "quantize.bpw 5.0 -> 4.0",
        "another run made it",
    ];
    for (command, reason) in refusals.iter_mut().zip(reasons) {
        let text = fail_with(command, 2);
        for part in [
            reason,
            "a finished pack of tiny-stories",
            "fingerprint",
            "--force",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(contents(&pack), before);
        assert_eq!(std::fs::read(run.join("run.json")).expect("plan"), plan);
    }

    // What leaves the pack as it is, and what restores it, needs no force.
    succeed(compress(&tiny_model(), &run).args(["--set", "evaluation.windows=4"]));
    succeed(&mut resume(&run));
    let layer = pack.join("layer_001.uc");
    std::fs::write(&layer, "damaged").expect("written");
    succeed(&mut resume(&run));
    std::fs::write(pack.join("manifest.json"), "damaged").expect("written");
    succeed(&mut compress(&tiny_model(), &run));
    assert_eq!(contents(&pack), before);

    succeed(compress(&tiny_model(), &run).args(["--bpw", "4", "--force"]));
    assert!(bits_per_weight(&pack) < 4.0 + 1e-6);
    succeed(
        compress(&tiny_model(), &other)
            .arg("--force")
            .arg("--out")
            .arg(&pack),
    );
    assert!(bits_per_weight(&pack) > 4.5);
    // The first run no longer owns what is in its folder, but it is its folder: it says what it would do.
    let text = output_text(&succeed(uc().arg("plan").arg(&run)));
    assert!(text.contains("jobs to do"), "{text}");
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let dry_run = |more: &[&str]| {
        let mut command = uc();
        command.current_dir(folder.path());
        command.arg("compress").arg(tiny_model()).args(QUICK);
        succeed(command.arg("--dry-run").args(more))
    };
    let text = output_text(&dry_run(&[]));
    for part in [
        "runs/tiny-stories-",
        "(new)",
        "to do",
        "peak disk",
        "estimated time",
        "nothing was written",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(files_below(folder.path()).is_empty());

    let run = folder.path().join("run");
    succeed(&mut compress(&tiny_model(), &run));
    let modified = |path: &std::path::PathBuf| {
        let metadata = std::fs::metadata(path).expect("metadata");
        (
            path.clone(),
            metadata.len(),
            metadata.modified().expect("time"),
        )
    };
    let state = || -> Vec<_> { files_below(folder.path()).iter().map(modified).collect() };
    let before = state();
    let output = dry_run(&["--run", "run", "--bpw", "4", "--json"]);
    let report = json(&output);
    assert_eq!(report["exists"], true);
    assert!(report["to_do"].as_u64() > Some(0));
    let replaces = report["replaces"].as_str().expect("a finished pack");
    assert!(replaces.contains("quantize.bpw 5.0 -> 4.0"), "{replaces}");
    assert!(report["forecast"]["pack"]["total_bytes"].as_u64() > Some(0));
    let output = dry_run(&["--run", "run"]);
    assert!(
        output_text(&output).contains("0 of "),
        "{}",
        output_text(&output)
    );
    assert_eq!(state(), before);
}

#[test]
fn a_stage_of_a_finished_run_gets_its_inputs_on_request() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(&mut compress(&tiny_model(), &run));
    let before = contents(&run.join("pack"));
    let stage = || {
        let mut command = uc();
        command
            .args(["stage", "quantize", "--layer", "2", "--run"])
            .arg(&run);
        command
    };
    let text = fail_with(&mut stage(), 10);
    assert!(text.contains("--layer 2 --with-inputs"), "{text}");
    succeed(stage().arg("--with-inputs"));
    succeed(&mut resume(&run));
    assert_eq!(contents(&run.join("pack")), before);
    let text = fail_with(uc().args(["stage", "quantize", "--run"]).arg(&run), 2);
    assert!(text.contains("stage quantize needs --layer 0.."), "{text}");
    let text = fail_with(uc().args(["stage", "quantise", "--run"]).arg(&run), 2);
    assert!(text.contains("did you mean quantize?"), "{text}");
}

#[test]
fn mistakes_are_answered_with_what_was_meant() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    for (setting, expected) in [
        ("bpw=4", "did you mean quantize.bpw?"),
        ("quantise.bpw=4", "did you mean quantize.bpw?"),
        ("evaluation.window=4", "did you mean evaluation.windows?"),
        ("sky=blue", "the settings are model.device"),
    ] {
        let text = fail_with(compress(&tiny_model(), &run).args(["--set", setting]), 3);
        assert!(text.contains(expected), "{text}");
    }
    let text = fail_with(uc().arg("compres").arg(tiny_model()), 2);
    assert!(text.contains("compress"), "{text}");
    let mistyped = tiny_model().with_file_name("tiny-storys");
    let text = fail_with(uc().arg("compress").arg(mistyped), 4);
    assert!(text.contains("tiny-stories?"), "{text}");
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
}
