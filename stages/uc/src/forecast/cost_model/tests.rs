use uc_store::model_summary::{InputGroup, LinearGroup};

use super::*;
use crate::forecast::tests_support::group_with_experts;

fn summary() -> ModelSummary {
    ModelSummary {
        family: "f".into(),
        layers: 2,
        context: 64,
        hidden: 8,
        vocab: 100,
        tied_head: true,
        linears: 10,
        exact: 6,
        non_layer_tensors: 2,
        source_tensors: 18,
        linear_parameters: 2 * 1152,
        exact_parameters: 80,
        non_layer_parameters: 808,
        total_parameters: 2 * 1152 + 80 + 808,
        layer_groups: vec![group_with_experts()],
        index: None,
        tensors: None,
    }
}

/// 4 windows of 32 tokens, 2 of them for sensitivities, 3 of 64 to evaluate.
fn settings() -> Settings {
    let mut settings = Settings::default();
    for (key, value) in [
        ("calibration.windows", "4"),
        ("calibration.length", "32"),
        ("calibration.max_input_block", "16"),
        ("allocation.windows", "2"),
        ("evaluation.windows", "3"),
        ("evaluation.length", "1024"),
        ("quantize.bpw", "4"),
        ("quantize.probe_rows", "16"),
    ] {
        settings.set(key, value).expect(key);
    }
    settings
}

#[test]
fn a_token_costs_two_operations_per_active_weight_and_its_share_of_causal_attention() {
    let group = group_with_experts();
    let layer = LayerCosts { group: &group };
    assert_eq!(layer.linear_parameters(), 128.0 + 4.0 * 256.0);
    assert_eq!(layer.active_parameters(), 128.0 + 256.0);
    assert_eq!(layer.forward(), 2.0 * 384.0);
    assert_eq!(layer.attention(32.0, 7.0), 7.0 * 32.0 * 8.0);
    // The moments of 16 outputs for every token, and of 8 outputs of each of 4 experts for a quarter of the tokens.
    assert_eq!(layer.backward(1024), 4.0 * 384.0 + 256.0 + 64.0);
    assert_eq!(layer.backward(4), 4.0 * 384.0 + 64.0 + 64.0);
}

#[test]
fn moments_are_full_up_to_the_maximum_block_and_blocks_beyond() {
    let group = group_with_experts();
    let layer = LayerCosts { group: &group };
    assert_eq!(layer.moment_entries(32), 64.0 + 4.0 * 1024.0);
    assert_eq!(layer.moment_entries(16), 64.0 + 4.0 * 512.0);
    assert_eq!(layer.moments(16), 64.0 + 512.0);
    let third = (8.0 * 64.0 + 4.0 * 32.0 * 256.0) / 3.0;
    assert!((layer.factors(16) - third).abs() < 1e-9);
    let third = (8.0 * 64.0 + 32.0 * 256.0) / 3.0;
    assert!((layer.shared_factors(16) - third).abs() < 1e-9);
}

#[test]
fn the_codec_searches_every_weight_and_feeds_errors_back_along_columns_and_rows() {
    let group = group_with_experts();
    let layer = LayerCosts { group: &group };
    let both = 128.0 * 8.0 + 1024.0 * 16.0;
    assert_eq!(layer.feedback_along_columns(16, usize::MAX), both);
    assert_eq!(
        layer.feedback_along_columns(16, 4),
        32.0 * 8.0 + 512.0 * 16.0
    );
    assert_eq!(layer.probed_weights(4), 32.0 + 512.0);
    let rows = 128.0 * 16.0 + 1024.0 * 8.0;
    assert_eq!(layer.feedback(16, 1024), both + rows);
    assert_eq!(layer.overlay(16, 2), 128.0 * 56.0 + 1024.0 * 64.0);
    // 9 products of the residual with 16 vectors, and 4 of the second moments.
    let bound = 32.0 * (9.0 * (128.0 + 1024.0) + 4.0 * (8.0 * 8.0 + 4.0 * 32.0 * 16.0));
    assert_eq!(layer.overlay_bound(16), bound);
    let third = (16.0 * 256.0 + 4.0 * 8.0 * 64.0) / 3.0;
    assert!((layer.output_factors(1024) - third).abs() < 1e-9);
    // One of four experts sees a token.
    assert_eq!(layer.active_values(), 24.0 + 40.0);
}

#[test]
fn artifacts_have_the_sizes_of_their_tensors() {
    let (model, settings) = (summary(), settings());
    let costs = CostModel {
        model: &model,
        settings: &settings,
        source_width: 2.0,
    };
    assert_eq!(costs.calibration_tokens(), 128.0);
    assert_eq!(costs.sensitivity_tokens(), 64.0);
    assert_eq!(costs.evaluation_tokens(), 192.0, "truncated to the context");
    let group = model.layer_group(1);
    for (name, expected) in [
        ("non-layer", 2.0 * 808.0),
        ("weights", 2.0 * (1152.0 + 40.0)),
        ("pack-layer", 1152.0 / 2.0),
        ("hidden", 128.0 * 8.0 * 4.0),
        ("sensitivity-hidden", 64.0 * 8.0 * 11.0 / 8.0),
        ("eval-hidden", 2.0 * 192.0 * 8.0 * 4.0),
        ("statistics", 4.0 * (64.0 + 4.0 * 512.0)),
        ("sensitivity", 4.0 * (256.0 + 256.0 + 5.0 * 64.0)),
        ("overlay", 0.0),
    ] {
        assert_eq!(costs.artifact_bytes(name, group), Some(expected), "{name}");
    }
    assert_eq!(costs.artifact_bytes("something-else", group), None);
    // A quarter of the tokens reaches each of four experts.
    let argv = ["teacher-cache".to_owned(), "layer".to_owned()];
    assert_eq!(costs.spilled_bytes(&argv, group), 128.0 * 32.0 * 4.0);
}

#[test]
fn a_long_job_keeps_its_rows_and_two_snapshots_of_its_sums() {
    let (model, mut settings) = (summary(), settings());
    let mut group = group_with_experts();
    (group.experts, group.linears, group.inputs) = (
        0,
        vec![LinearGroup {
            name: "a".into(),
            rows: 16384,
            cols: 16384,
            count: 1,
            routed: false,
        }],
        vec![InputGroup {
            width: 16384,
            count: 1,
            routed: false,
        }],
    );
    let (rows, moments) = (64e3 * 8.0 * 4.0, 4.0 * 16384.0 * 16.0);
    let outputs = 4.0 * 16384.0 * 1024.0;
    for (windows, command, expected) in [
        ("2", "teacher-cache layer", 0.0),
        ("2000", "teacher-cache layer", rows + moments),
        ("2000", "teacher-cache sensitivity-forward", rows + moments),
        (
            "2000",
            "teacher-cache sensitivity-backward",
            rows + moments + outputs + 2.0 * 2.0 * 64e3 * 4.0,
        ),
    ] {
        for key in ["calibration.windows", "allocation.windows"] {
            settings.set(key, windows).expect(key);
        }
        let costs = CostModel {
            model: &model,
            settings: &settings,
            source_width: 2.0,
        };
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let found = costs.kept_bytes(&argv, Some(&group));
        assert_eq!(found, expected, "{command} of {windows} windows");
    }
}

#[test]
fn jobs_have_the_cost_of_their_command() {
    let (model, settings) = (summary(), settings());
    let costs = CostModel {
        model: &model,
        settings: &settings,
        source_width: 2.0,
    };
    let cost = |command: &str| {
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let group = command.ends_with("layer").then(|| model.layer_group(0));
        costs.job_cost(&argv, group.flatten())
    };
    let amount = |command: &str, resource| match cost(command) {
        Some(JobCost::Work(work)) => work.amount(resource),
        other => panic!("{command}: {other:?}"),
    };
    for (command, resource, expected) in [
        (
            "teacher-cache layer",
            Resource::RoundedProducts,
            128.0 * (2.0 * 384.0 + 576.0),
        ),
        (
            "teacher-cache layer",
            Resource::Products,
            128.0 * 2.0 * 32.0 * 8.0,
        ),
        ("teacher-cache layer", Resource::Memory, 128.0 * 64.0 * 32.0),
        (
            "teacher-cache sensitivity-loss",
            Resource::RoundedProducts,
            64.0 * 2.0 * 2.0 * 800.0,
        ),
        (
            "evaluator layer",
            Resource::Products,
            2.0 * 192.0 * 2.0 * 64.0 * 8.0,
        ),
        (
            "evaluator layer",
            Resource::WeightProducts,
            2.0 * 192.0 * 768.0,
        ),
        ("evaluator layer", Resource::Decode, 1152.0),
        ("quantize layer", Resource::Search, 1152.0),
        ("pack-writer layer", Resource::Encode, 1152.0),
        ("shard-loader layer", Resource::Memory, 2384.0),
    ] {
        assert_eq!(amount(command, resource), expected, "{command}");
    }
    assert_eq!(cost("hub-upload layer"), Some(JobCost::Network));
    assert_eq!(cost("another program"), None);
}
