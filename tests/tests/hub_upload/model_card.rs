//! The model card: it states sizes and metrics, or that nothing was measured.

use std::collections::BTreeMap;

use serde_json::Value;
use uc_fake_hub::FakeHub;
use uc_tests::{compress, contents, files_below, json, output_text, succeed, tiny_model};

use crate::fixture::{
    REPO, compress_and_upload, expected_files, fake_hub, read_json, remote_files, upload,
};

fn uploaded_card(fake_hub: &FakeHub) -> String {
    String::from_utf8(remote_files(fake_hub)["README.md"].clone()).expect("text")
}

#[test]
fn the_model_card_states_sizes_and_metrics_or_that_nothing_was_measured() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let measured = fake_hub();
    succeed(&mut compress_and_upload(&measured, &tiny_model(), &run));
    let card = uploaded_card(&measured);
    assert!(
        card.starts_with("---\nlibrary_name: ultracompress\n"),
        "{card}"
    );
    // The name of a local folder is not the name of a base model on the Hub.
    assert!(!card.contains("base_model"), "{card}");
    let metrics = read_json(&run.join("eval/metrics.json"));
    assert_states_metrics(&card, &metrics);
    let manifest = read_json(&run.join("pack/manifest.json"));
    assert_states_sizes(&card, &manifest["totals"]);
    let fingerprint = metrics["pack_fingerprint"].as_str().expect("text");
    let download =
        format!("hf download {REPO} --local-dir PACK\nuc verify PACK --expect {fingerprint}");
    assert!(card.contains(&download), "{download} in {card}");
    assert!(
        card.contains("tags:\n- ultracompress\n- quantized\n- 5-bit\n"),
        "{card}"
    );

    let run = folder.path().join("unmeasured");
    let unmeasured = fake_hub();
    let mut command = compress_and_upload(&unmeasured, &tiny_model(), &run);
    succeed(command.args(["--no-eval"]));
    assert!(remote_files(&unmeasured) == expected_files(&run));
    let card = uploaded_card(&unmeasured);
    assert!(card.contains("Nothing was measured"), "{card}");
    assert!(!card.contains("perplexity"), "{card}");
    let fingerprint = &metrics["pack_fingerprint"];
    assert!(card.contains(fingerprint.as_str().expect("text")), "{card}");
}

#[test]
fn a_readme_of_the_repository_is_kept_and_the_card_joined_to_it_or_put_beside_it() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let hub = fake_hub();
    let theirs = "---\nlicense: mit\ntags: [chat]\n---\n\n# Mine\n\nMy text.\n";
    hub.commit_file(REPO, "README.md", theirs.as_bytes());
    let mut command = compress_and_upload(&hub, &tiny_model(), &run);
    let output = output_text(&succeed(command.arg("--no-eval")));
    assert!(
        output.contains("README.md of tester/pack is kept"),
        "{output}"
    );
    let card = uploaded_card(&hub);
    for part in [
        "license: mit\ntags: [chat, ultracompress, quantized, 5-bit]\n",
        "library_name: ultracompress\n",
        "# Mine\n\nMy text.\n",
        "uc verify PACK --expect",
    ] {
        assert!(card.contains(part), "{part} in {card}");
    }
    // A second upload changes nothing.
    let commits = hub.commit_count(REPO, "main");
    succeed(&mut upload(&hub, &run));
    assert_eq!(hub.commit_count(REPO, "main"), commits);

    let unclosed = b"---\nlicense: mit\n\n# Mine\n";
    hub.commit_file(REPO, "README.md", unclosed);
    let output = output_text(&succeed(&mut upload(&hub, &run)));
    assert!(
        output.contains("the model card is ULTRACOMPRESS.md"),
        "{output}"
    );
    let files = remote_files(&hub);
    assert_eq!(files["README.md"], unclosed);
    assert!(files["ULTRACOMPRESS.md"] == std::fs::read(run.join("hub/README.md")).expect("card"));
}

#[test]
fn a_dry_run_lists_files_and_bytes_and_neither_sends_nor_writes() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    let hub = fake_hub();
    succeed(compress(&tiny_model(), &run).arg("--no-eval"));
    let before = files_below(&run).len();
    let output = succeed(upload(&hub, &run).arg("--dry-run"));
    let text = output_text(&output);
    assert!(
        text.contains("would upload to tester/pack (branch main)"),
        "{text}"
    );
    assert!(text.contains("Nothing was sent"), "{text}");
    let list = json(&succeed(upload(&hub, &run).args(["--dry-run", "--json"])));
    let listed = list["files"].as_array().expect("files").iter();
    let listed = listed.filter(|file| file["name"] != "README.md");
    let sizes = listed.map(|file| {
        let name = file["name"].as_str().expect("name").to_owned();
        (name, file["bytes"].as_u64().expect("bytes"))
    });
    let sizes: BTreeMap<String, u64> = sizes.collect();
    let pack = contents(&run.join("pack")).into_iter();
    let expected = pack.map(|(name, bytes)| (name, bytes.len() as u64));
    assert_eq!(sizes, expected.collect());
    assert_eq!(list["bytes"].as_u64(), Some(sizes.values().sum()));
    assert!(hub.requests().is_empty());
    assert_eq!(files_below(&run).len(), before);
}

/// Checks that a card states each metric with its interval, and what was measured.
fn assert_states_metrics(card: &str, metrics: &Value) {
    for name in [
        "teacher_ppl",
        "pack_ppl",
        "ppl_ratio",
        "mean_kl",
        "median_kl",
        "p99_kl",
        "top1_agreement",
    ] {
        let part = |part: &str| metrics[name][part].as_f64().expect(name);
        let row = format!(
            "| {:.6} | {:.6} to {:.6} |",
            part("value"),
            part("low"),
            part("high")
        );
        assert!(card.contains(&row), "{name}: {row} in {card}");
    }
    let windows = format!(
        "over {} windows of {} tokens ({} tokens compared)",
        metrics["windows"], metrics["window_length"], metrics["tokens"]
    );
    let text_digest = metrics["texts"][0]["sha256"].as_str().expect("text");
    let fingerprint = metrics["pack_fingerprint"].as_str().expect("text");
    for text in [windows.as_str(), text_digest, fingerprint] {
        assert!(card.contains(text), "{text} in {card}");
    }
}

/// Checks that a card states the sizes of the manifest and the counts behind them.
fn assert_states_sizes(card: &str, totals: &Value) {
    for key in [
        "bits_per_weight_linears",
        "bits_per_weight_all",
        "compression_ratio",
    ] {
        let row = format!("| {} |", totals[key].as_str().expect(key));
        assert!(card.contains(&row), "{row} in {card}");
    }
    for key in [
        "linear_parameters",
        "linear_bits",
        "total_parameters",
        "total_bytes",
        "source_bytes",
    ] {
        let count = format!(" {} ", totals[key]);
        assert!(card.contains(&count), "{key}: {count} in {card}");
    }
}
