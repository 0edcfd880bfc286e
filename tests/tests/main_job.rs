//! The main job on the embedded model: the pack keeps its budget, passes verification, predicts like its teacher, and has
//! the same bytes every time.
#![allow(clippy::disallowed_methods)]

use uc_tests::{compress, contents, json, succeed, tiny_model, uc};

#[test]
fn the_embedded_model_becomes_a_verified_pack_of_at_most_five_bits_that_predicts_like_its_teacher()
{
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(&mut compress(&tiny_model(), &run));
    let pack = run.join("pack");

    let report = json(&succeed(uc().arg("verify").arg(&pack).arg("--json")));
    assert!(
        report.to_string().to_lowercase().contains("pass"),
        "{report}"
    );

    let manifest: serde_json::Value =
        serde_json::from_slice(&contents(&pack)["manifest.json"]).expect("manifest");
    let sizes: u64 = contents(&pack)
        .iter()
        .filter(|(name, _)| name.starts_with("layer_"))
        .map(|(_, bytes)| bytes.len() as u64)
        .sum();
    let totals = &manifest["totals"];
    assert_eq!(totals["linear_bits"], 8 * sizes);
    let weights = totals["linear_parameters"].as_u64().expect("number");
    let bpw = 8.0 * sizes as f64 / weights as f64;
    assert!((4.98..=5.0).contains(&bpw), "{bpw}");

    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.join("eval/metrics.json")).expect("metrics"))
            .expect("JSON");
    let metric = |name: &str| metrics[name]["value"].as_f64().expect(name);
    // Token frequencies alone give a perplexity of 214.
    assert!(metric("teacher_ppl") < 10.0, "{metrics}");
    assert!(
        metric("ppl_ratio") < 1.1 && metric("mean_kl") < 0.1,
        "{metrics}"
    );
    assert!(metric("top1_agreement") > 0.85, "{metrics}");

    // `uc eval` of the finished pack gives the same metrics as the run did.
    let other = folder.path().join("eval");
    let mut eval = uc();
    eval.arg("eval")
        .arg(&pack)
        .arg("--model")
        .arg(tiny_model())
        .arg("--run")
        .arg(&other);
    eval.args([
        "--set",
        "evaluation.windows=3",
        "--set",
        "evaluation.length=128",
    ]);
    succeed(&mut eval);
    let again: serde_json::Value =
        serde_json::from_slice(&std::fs::read(other.join("eval/metrics.json")).expect("metrics"))
            .expect("JSON");
    assert_eq!(again["mean_kl"], metrics["mean_kl"]);
    assert_eq!(again["pack_ppl"], metrics["pack_ppl"]);
}

#[test]
fn one_thread_and_two_threads_give_the_same_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    let pack_of = |threads: &str| {
        let run = folder.path().join(threads);
        succeed(compress(&tiny_model(), &run).args(["--threads", threads, "--no-eval"]));
        contents(&run.join("pack"))
    };
    let (one, two) = (pack_of("1"), pack_of("2"));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        two.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &one {
        assert!(two[name] == *bytes, "{name} differs");
    }
}

#[test]
fn bits_allocated_by_sensitivity_give_less_kl_than_equal_bits_and_keep_the_budget() {
    let folder = tempfile::tempdir().expect("folder");
    let divergence_with = |mode: &str| {
        let run = folder.path().join(mode);
        let setting = format!("allocation.mode={mode}");
        // With fewer windows, such small divergences could not be distinguished, nor the gain within a layer found.
        let windows = [
            "--set",
            "evaluation.windows=40",
            "--set",
            "calibration.windows=48",
        ];
        succeed(
            compress(&tiny_model(), &run)
                .args(["--set", &setting])
                .args(windows),
        );
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(run.join(name)).expect(name)).expect("JSON")
        };
        let totals = &read("pack/manifest.json")["totals"];
        let bits = totals["linear_bits"].as_f64().expect("bits");
        let bpw = bits / totals["linear_parameters"].as_f64().expect("weights");
        assert!((4.98..=5.0).contains(&bpw), "{mode}: {bpw}");
        assert_eq!(run.join("sensitivity").exists(), mode != "per-tensor");
        read("eval/metrics.json")["mean_kl"]["value"]
            .as_f64()
            .expect("divergence")
    };
    let equal = divergence_with("per-tensor");
    let (layer, global) = (divergence_with("per-layer"), divergence_with("global"));
    assert!(
        global < 0.9 * equal && layer < equal,
        "{global}, {layer}, {equal}"
    );
}

#[test]
fn other_rates_and_a_forced_overlay_keep_the_budget() {
    let folder = tempfile::tempdir().expect("folder");
    // The second run splits the second moments of its inputs (128 and 384 wide) into diagonal blocks.
    for (index, arguments) in [
        [
            "--bpw",
            "3.5",
            "--rank",
            "auto",
            "--set",
            "calibration.windows=8",
        ],
        [
            "--bpw",
            "6.25",
            "--rank",
            "4",
            "--set",
            "calibration.max_input_block=80",
        ],
    ]
    .iter()
    .enumerate()
    {
        let run = folder.path().join(index.to_string());
        succeed(
            compress(&tiny_model(), &run)
                .args(arguments)
                .arg("--no-eval"),
        );
        let manifest: serde_json::Value =
            serde_json::from_slice(&contents(&run.join("pack"))["manifest.json"])
                .expect("manifest");
        let bpw: f64 = manifest["totals"]["bits_per_weight_linears"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("bits per weight");
        let budget: f64 = arguments[1].parse().expect("number");
        assert!(bpw <= budget && bpw > budget - 0.02, "{bpw} of {budget}");
        let rank = manifest["layers"][0]["linears"][0]["rank"]
            .as_u64()
            .expect("rank");
        assert_eq!(rank, if index == 1 { 4 } else { 0 });
        succeed(uc().arg("verify").arg(run.join("pack")));
    }
}
