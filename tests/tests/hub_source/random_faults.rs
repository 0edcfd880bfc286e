//! Whole runs from one repository to another with random faults. Neither the source nor the pack is ever complete on disk.

use std::collections::BTreeMap;

use uc_fake_hub::Options;
use uc_fake_hub::faults::Schedule;
use uc_tests::{compress, contents, files_below, output_text, succeed};

use crate::fixture::{
    NETWORK, assert_no_token, compress_with_budget, fake_hub, many_layers, set_hub, shard_bytes,
};

const PACK_REPO: &str = "tester/pack";

#[test]
#[ignore = "minutes; part of `make test-full`"]
fn whole_runs_with_random_faults_complete_or_fail_with_a_network_error_and_complete_on_a_rerun() {
    let folder = tempfile::tempdir().expect("folder");
    let model = many_layers(folder.path());
    let local = folder.path().join("local");
    let mut command = compress(&model, &local);
    set_hub(&mut command, &fake_hub(&model), &local);
    succeed(&mut command);
    let layers = |mut files: BTreeMap<String, Vec<u8>>| {
        files.retain(|name, _| name.ends_with(".uc"));
        files
    };
    let expected = layers(contents(&local.join("pack")));
    let budget = contents(&model)
        .iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(_, bytes)| 2 * bytes.len() as u64)
        .max()
        .expect("shards");

    let (mut failures, mut runs) = (0, 0);
    for seed in 1..=20 {
        let fake_hub = fake_hub(&model);
        let percent = 10 + seed as u32 % 25;
        fake_hub.set_faults(Schedule::random_without_stalls(seed, percent, 150));
        let run = folder.path().join(format!("run-{seed}"));
        for attempt in 0.. {
            let mut command = compress_with_budget(&fake_hub, &run, budget);
            command.args([
                "--upload",
                PACK_REPO,
                "--delete-uploaded",
                "--set",
                "upload.longest_wait=0",
            ]);
            let output = command.output().expect("uc");
            let message = output_text(&output);
            assert!(!message.contains(&Options::default().token), "{message}");
            if output.status.success() {
                break;
            }
            let code = output.status.code();
            assert_eq!(code, Some(NETWORK), "seed {seed}: {message}");
            assert!(attempt < 8, "seed {seed}: {message}");
            failures += 1;
        }
        let remote = fake_hub.files(PACK_REPO, "main");
        assert!(layers(remote) == expected, "seed {seed}");
        assert_eq!(shard_bytes(&run), 0, "seed {seed}");
        let files = files_below(&run.join("pack"));
        let layers = files
            .iter()
            .filter(|path| path.to_string_lossy().contains("layer_"));
        assert_eq!(layers.count(), 0, "seed {seed}");
        assert_no_token(&run);
        std::fs::remove_dir_all(&run).expect("removed");
        runs += 1;
    }
    println!("{runs} runs, {failures} network failures before they completed");
}
