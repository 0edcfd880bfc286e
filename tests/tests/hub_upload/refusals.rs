//! Uploads that are refused: without write permission, or because a layer is damaged.

use uc_tests::{compress, contents, copy_model, fail_with, succeed, uc};

use crate::fixture::{
    DAMAGED, IO, PERMISSION, compress_and_upload, fake_hub, remote_files, remote_pack, upload,
    with_hub,
};

#[test]
fn an_upload_without_write_permission_is_refused_before_anything_is_computed() {
    let folder = tempfile::tempdir().expect("folder");
    let (model, run) = (folder.path().join("model"), folder.path().join("run"));
    copy_model(&model);
    let fake_hub = fake_hub();
    let mut without_token = compress_and_upload(&fake_hub, &model, &run);
    without_token
        .env_remove("HF_TOKEN")
        .env("HF_TOKEN_PATH", "/nonexistent");
    assert!(fail_with(&mut without_token, PERMISSION).contains("HF_TOKEN"));
    let mut wrong_token = compress_and_upload(&fake_hub, &model, &run);
    let message = fail_with(wrong_token.env("HF_TOKEN", "hf_wrong"), PERMISSION);
    assert!(
        message.contains("401") && !message.contains("hf_wrong"),
        "{message}"
    );
    assert!(!run.join("pack").exists());
    fail_with(compress(&model, &run).args(["--upload", "no-owner"]), 3);
    fail_with(compress(&model, &run).args(["--delete-uploaded"]), 2);
}

#[test]
fn a_damaged_layer_is_not_uploaded() {
    let folder = tempfile::tempdir().expect("folder");
    let (model, run) = (folder.path().join("model"), folder.path().join("run"));
    copy_model(&model);
    let fake_hub = fake_hub();
    succeed(&mut compress(&model, &run));
    let pack = contents(&run.join("pack"));
    let layer = run.join("pack/layer_001.uc");
    let mut bytes = pack["layer_001.uc"].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damage_layer = || std::fs::write(&layer, &bytes).expect("damaged");
    damage_layer();
    let moved_model = folder.path().join("elsewhere");
    std::fs::rename(&model, &moved_model).expect("moved");
    let message = fail_with(&mut upload(&fake_hub, &run), IO);
    assert!(message.contains("layer_001.uc is damaged"), "{message}");
    assert!(message.contains("model/config.json"), "{message}");
    let is_uploaded = || remote_files(&fake_hub).contains_key("layer_001.uc");
    assert!(!is_uploaded());
    let stage = |arguments: &[&str]| {
        let mut stage = with_hub(uc(), &fake_hub);
        stage.arg("stage").args(arguments).arg("--run").arg(&run);
        stage
    };
    succeed(&mut stage(&["hub-repository"]));
    let message = fail_with(&mut stage(&["upload-layer", "--layer", "1"]), DAMAGED);
    assert!(message.contains("layer_001.uc"), "{message}");
    assert!(!is_uploaded());

    // With its model available, the run repairs the layer before the upload.
    std::fs::rename(&moved_model, &model).expect("moved back");
    damage_layer();
    succeed(&mut upload(&fake_hub, &run));
    assert!(remote_pack(&fake_hub) == pack);
}
