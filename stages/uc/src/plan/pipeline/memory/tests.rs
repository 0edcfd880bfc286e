use super::*;
use crate::forecast::tests_support::{group_with_experts, measured_model, plan_of};

/// A model of one layer with a shared linear [16, 8] and 4 experts with a linear [8, 32] each.
fn model() -> ModelSummary {
    let mut model = measured_model();
    (model.hidden, model.vocab, model.context) = (8, 100, 64);
    model.layer_groups = vec![LayerGroup {
        layers: vec![0],
        exact: 0,
        exact_parameters: 0,
        ..group_with_experts()
    }];
    model
}

/// 4 windows of 32 tokens, 2 of them for sensitivities, 3 of 64 to evaluate; blocks of 16 inputs.
fn bytes(text: &str) -> u64 {
    let mut settings = Settings::default();
    for (key, value) in [
        ("calibration.windows", "4"),
        ("calibration.length", "32"),
        ("calibration.max_input_block", "16"),
        ("allocation.windows", "2"),
        ("evaluation.windows", "3"),
    ] {
        settings.set(key, value).expect(key);
    }
    let shapes = Shapes {
        model: &model(),
        settings: &settings,
        source_width: 2.5,
        threads: 3,
    };
    Memory::parse(text).expect(text).bytes(&shapes)
}

#[test]
fn a_term_is_what_its_tensors_take() {
    let (shared, all) = (128, 128 + 4 * 256);
    for (text, expected) in [
        ("2 MiB", 2 << 20),
        ("0.5 GiB", 1 << 29),
        ("3 layers", 3 * 4 * all),
        ("1 layer in bf16", 2 * all),
        ("2 layers as stored", 5 * all),
        ("1 shared linears in bf16", 2 * shared),
        ("1 largest linear", 4 * 256),
        ("2 heads in bf16", 2 * 2 * 800),
        ("5 input rows", 5 * 4 * 32),
        ("2 input rows per thread", 3 * 2 * 4 * 32),
        ("1 moment block", 4 * 16 * 16),
        ("1 largest moments", 4 * 32 * 16),
        ("1 shared moments", 4 * 64),
        ("1 all moments", 4 * (64 + 4 * 512)),
        ("1 largest output moments", 4 * 256),
        ("1 all output moments", 4 * (256 + 4 * 64)),
        // At least one window of 64 tokens, the longest that the context permits.
        ("1 activations of 10 tokens", 4 * 64 * 16),
        ("1 routed activations of 100 tokens", 4 * 100 * 32),
        ("2 logits of 10 tokens", 2 * 4 * 1000),
        ("1 calibration states", 4 * 128 * 8),
        ("1 sensitivity states", 4 * 64 * 8),
        ("1 evaluation states", 4 * 192 * 8),
    ] {
        assert_eq!(bytes(text), expected as u64, "{text}");
    }
}

#[test]
fn terms_add_up_and_a_limit_bounds_its_own_term() {
    let sum = "1 layer in bf16 + 1 all moments up to 0.001 MiB + 1 MiB";
    assert_eq!(bytes(sum), 2 * 1152 + 1048 + (1 << 20));
    assert_eq!(bytes("1 all moments up to 4 GiB"), 4 * (64 + 4 * 512));
    assert_eq!(bytes("1 GiB + 1 MiB"), (1 << 30) + (1 << 20));
    assert_eq!(bytes("1 MiB per thread up to 2 MiB"), 2 << 20);
}

#[test]
fn a_term_that_is_none_is_named() {
    for (text, term) in [
        ("1 GiB + 2 GB", "2 GB"),
        ("1 GiB +", ""),
        ("layers", "layers"),
        ("nan GiB", "nan GiB"),
        ("1 moment block in f32", "1 moment block in f32"),
        (
            "1 activations of many tokens",
            "1 activations of many tokens",
        ),
        ("1 layers up to 2 layers", "1 layers up to 2 layers"),
    ] {
        assert_eq!(Memory::parse(text), Err(term), "{text}");
    }
}

#[test]
fn a_changed_setting_changes_the_memory_of_a_plan() {
    let model = measured_model();
    let mut plan = plan_of(&model, &[]);
    let before = plan.clone();
    refresh(&mut plan, &model, 2);
    assert_eq!(plan, before);
    plan.settings
        .set("calibration.max_input_block", "256")
        .expect("set");
    refresh(&mut plan, &model, 2);
    let of = |plan: &Plan| plan.stage("quantize").expect("stage").memory;
    assert!(of(&plan) < of(&before));
}

#[test]
fn weights_take_what_the_files_of_the_source_say() {
    let mut model = measured_model();
    assert_eq!(source_width(&model, None), 2.0);
    let file = |name: &str, size| uc_store::plan::ExternalFile {
        path: name.into(),
        size,
        sha256: Default::default(),
        mtime_ns: 0,
        shard: None,
    };
    let files = vec![
        file("/m/model.safetensors", 4 * model.total_parameters),
        file("/m/tokenizer.json", 1 << 40),
    ];
    let source = uc_store::source::external(files);
    assert_eq!(source_width(&model, Some(&source)), 4.0);
    model.index = None;
    assert_eq!(source_width(&model, Some(&source)), 4.0);
}
