use super::*;
use crate::forecast::facts::{InputGroup, LinearGroup};

/// A layer of an attention of 2 heads of 4 with one linear [16, 8], and 4 experts of one linear [8, 32] of which a token
/// takes one.
fn kind() -> Kind {
    let linear = |name: &str, rows, cols, count, routed| LinearGroup {
        name: name.into(),
        rows,
        cols,
        count,
        routed,
    };
    let input = |width, count, routed| InputGroup {
        width,
        count,
        routed,
    };
    Kind {
        layers: vec![0, 1],
        experts: 4,
        chosen: 1,
        linears: vec![linear("a", 16, 8, 1, false), linear("b.*", 8, 32, 4, true)],
        exact: 3,
        extra_parameters: 40,
        inputs: vec![input(8, 1, false), input(32, 4, true)],
        attention_width: 8,
    }
}

fn facts() -> Facts {
    Facts {
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
        extra_parameters: 80,
        non_layer_parameters: 808,
        total_parameters: 2 * 1152 + 80 + 808,
        kinds: vec![kind()],
        index: None,
    }
}

/// 4 windows of 32 tokens, 2 of them surveyed, 3 of 64 to evaluate.
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
fn a_token_costs_two_operations_per_weight_it_meets_and_its_share_of_causal_attention() {
    let kind = kind();
    assert_eq!(kind.linear_parameters(), 128.0 + 4.0 * 256.0);
    assert_eq!(kind.active_parameters(), 128.0 + 256.0);
    assert_eq!(kind.forward(32.0), 2.0 * 384.0 + 2.0 * 32.0 * 8.0);
    // The moments of 16 outputs for every token, those of 8 for each of 4 experts' linears and a quarter of the tokens.
    let attention = 4.0 * 384.0 + 6.0 * 32.0 * 8.0;
    assert_eq!(kind.backward(32.0, 1024), attention + 256.0 + 64.0);
    assert_eq!(kind.backward(32.0, 4), attention + 64.0 + 64.0);
}

#[test]
fn moments_are_whole_up_to_the_widest_and_blocks_beyond() {
    let kind = kind();
    assert_eq!(kind.moment_entries(32), 64.0 + 4.0 * 1024.0);
    assert_eq!(kind.moment_entries(16), 64.0 + 4.0 * 512.0);
    assert_eq!(kind.moments(16), 64.0 + 512.0);
    let third = (8.0 * 64.0 + 4.0 * 32.0 * 256.0) / 3.0;
    assert!((kind.factors(16) - third).abs() < 1e-9);
}

#[test]
fn the_codec_costs_the_trellis_per_weight_and_the_feedback_per_weight_and_input() {
    let kind = kind();
    let both = 128.0 * 16808.0 + 1024.0 * 16816.0;
    assert_eq!(kind.probe(16, usize::MAX), both);
    assert_eq!(kind.probe(16, 4), 32.0 * 16808.0 + 512.0 * 16816.0);
    let rows = 128.0 * 16.0 + 1024.0 * 8.0;
    assert_eq!(kind.feedback(16, 1024), both + rows);
    assert_eq!(kind.overlay(16, 2), 128.0 * 56.0 + 1024.0 * 64.0);
}

#[test]
fn artifacts_have_the_sizes_of_their_tensors() {
    let (facts, settings) = (facts(), settings());
    let arithmetic = Arithmetic {
        facts: &facts,
        settings: &settings,
        source_width: 2.0,
    };
    assert_eq!(arithmetic.calibration_tokens(), 128.0);
    assert_eq!(arithmetic.survey_tokens(), 64.0);
    assert_eq!(arithmetic.evaluation_tokens(), 192.0, "cut to the context");
    let kind = facts.kind(1);
    for (name, expected) in [
        ("non-layer", 2.0 * 808.0),
        ("weights", 2.0 * (1152.0 + 40.0)),
        ("pack-layer", 1152.0 / 2.0),
        ("hidden", 128.0 * 8.0 * 4.0),
        ("sensitivity-hidden", 64.0 * 8.0 * 4.0),
        ("eval-hidden", 2.0 * 192.0 * 8.0 * 4.0),
        ("statistics", 4.0 * (64.0 + 4.0 * 512.0)),
        ("sensitivity", 4.0 * (256.0 + 256.0 + 5.0 * 64.0)),
        ("overlay", 0.0),
    ] {
        assert_eq!(arithmetic.artifact(name, kind), Some(expected), "{name}");
    }
    assert_eq!(arithmetic.artifact("something-else", kind), None);
    // A quarter of the tokens to each of four experts.
    let argv = ["teacher-cache".to_owned(), "layer".to_owned()];
    assert_eq!(arithmetic.scratch(&argv, kind), 128.0 * 32.0 * 4.0);
}

#[test]
fn jobs_have_the_work_of_their_program() {
    let (facts, settings) = (facts(), settings());
    let arithmetic = Arithmetic {
        facts: &facts,
        settings: &settings,
        source_width: 2.0,
    };
    let work = |command: &str| {
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        arithmetic.work(&argv, facts.kind(0))
    };
    let forward = 2.0 * 384.0 + 2.0 * 32.0 * 8.0;
    assert_eq!(
        work("teacher-cache layer"),
        Some(JobCost::Product(128.0 * (forward + 576.0)))
    );
    assert_eq!(
        work("teacher-cache sensitivity-loss"),
        Some(JobCost::Product(64.0 * 2.0 * 2.0 * 800.0))
    );
    assert_eq!(
        work("evaluator layer"),
        Some(JobCost::Product(2.0 * 192.0 * (768.0 + 2.0 * 64.0 * 8.0)))
    );
    assert_eq!(work("shard-loader layer"), Some(JobCost::Bytes(2384.0)));
    assert_eq!(work("another program"), None);
}
