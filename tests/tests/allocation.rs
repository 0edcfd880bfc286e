//! The default allocation on models with weights that are unlike those of training: it is at least as good as the simpler ones.
//!
//! Each model is a variant of the embedded one. Few windows make the metrics rough, so that a tenth of difference counts as equal;
//! the faults of the kind changed them by factors.
#![allow(clippy::disallowed_methods)] // tests write their own files

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use uc_tests::{compress, copy_model, json, succeed};

/// Largest ratio of the mean KL of the default to the least one of the other modes that counts as equal.
const EQUAL: f64 = 1.1;
/// Below this mean KL, nats, what differs is the rounding to bfloat16: weights of few values reach it with bits to spare. The
/// embedded model itself has 1e-5.
const NEGLIGIBLE: f64 = 3e-5;
/// Settings of a run that takes some seconds.
const SETTINGS: [&str; 5] = [
    "calibration.windows=24",
    "calibration.length=256",
    "allocation.windows=12",
    "evaluation.windows=12",
    "evaluation.length=256",
];

/// Writes a variant of the embedded model: `change(name, cols, values)` is applied to each of its linears, row-major.
fn write_variant(to: &Path, change: impl Fn(&str, usize, &mut [f32])) {
    copy_model(to);
    let path = to.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("length")) as usize;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&bytes[8..8 + length]).expect("header");
    for (name, tensor) in header
        .iter()
        .filter(|(name, _)| name.ends_with("_proj.weight"))
    {
        assert_eq!(tensor["dtype"], "BF16");
        let number = |value: &Value| value.as_u64().expect("number") as usize;
        let range = [0, 1].map(|end| 8 + length + number(&tensor["data_offsets"][end]));
        let data = &mut bytes[range[0]..range[1]];
        let bits = |pair: &[u8]| u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16;
        let mut values: Vec<f32> = data
            .chunks(2)
            .map(|pair| f32::from_bits(bits(pair)))
            .collect();
        change(name, number(&tensor["shape"][1]), &mut values);
        for (pair, value) in data.chunks_mut(2).zip(values) {
            let rounded = (value.to_bits() + 0x8000) >> 16;
            pair.copy_from_slice(&(rounded as u16).to_le_bytes());
        }
    }
    std::fs::write(path, bytes).expect("written");
}

/// Mean KL of a run with an allocation mode, and the bits that the allocation gave to each linear, by full name.
fn run(model: &Path, run: &Path, mode: &str) -> (f64, BTreeMap<String, f64>) {
    let mut command = compress(model, run);
    for setting in SETTINGS {
        command.args(["--set", setting]);
    }
    command.args(["--set", &format!("allocation.mode={mode}"), "--json"]);
    let summary = json(&succeed(&mut command));
    let used = summary["pack"]["totals"]["linear_bits"]
        .as_f64()
        .expect("bits")
        / summary["pack"]["totals"]["linear_parameters"]
            .as_f64()
            .expect("parameters");
    assert!(used <= 5.0, "{used} bits per weight");
    let kl = summary["metrics"]["mean_kl"]["value"].as_f64();
    let kl = kl.unwrap_or_else(|| panic!("no mean KL in {}", summary["metrics"]));
    let mut bits = BTreeMap::new();
    if let Ok(text) = std::fs::read(run.join("sensitivity/allocation.json")) {
        let allocation: Value = serde_json::from_slice(&text).expect("allocation");
        let layers = allocation["layers"].as_array().expect("layers");
        for (layer, entry) in layers.iter().enumerate() {
            for linear in entry["linears"].as_array().expect("linears") {
                let name = linear["name"].as_str().expect("name");
                bits.insert(
                    format!("model.layers.{layer}.{name}"),
                    linear["bits"].as_f64().expect("bits"),
                );
            }
        }
    }
    (kl, bits)
}

/// Compares the modes on a variant and returns the bits of the default.
fn compare(change: impl Fn(&str, usize, &mut [f32])) -> BTreeMap<String, f64> {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    write_variant(&model, change);
    let kl = |mode: &str| run(&model, &folder.path().join(mode), mode);
    let (per_tensor, per_layer) = (kl("per-tensor").0, kl("per-layer").0);
    let (global, bits) = kl("global");
    let least = per_tensor.min(per_layer);
    assert!(
        global <= EQUAL * least || global <= NEGLIGIBLE,
        "mean KL {global} by default, {per_layer} per layer, {per_tensor} per tensor"
    );
    bits
}

/// Asserts that the linears whose names contain one of `parts` get next to no bits, and all others bits.
fn assert_no_bits(bits: &BTreeMap<String, f64>, parts: &[&str]) {
    for (name, &bits) in bits {
        let is_dead = parts.iter().any(|part| name.contains(part));
        assert_eq!(bits < 0.1, is_dead, "{name}: {bits} bits");
    }
}

#[test]
fn linears_of_a_dead_block_get_next_to_no_bits_and_the_others_theirs() {
    let outputs = ["layers.2.self_attn.o_proj", "layers.2.mlp.down_proj"];
    let bits = compare(|name, _, values| {
        if outputs.iter().any(|output| name.contains(output)) {
            values.fill(0.0);
        }
    });
    assert_no_bits(&bits, &["layers.2."]);
}

#[test]
#[ignore = "slow: three runs"]
fn a_layer_of_zeros_is_quantized_and_pays_for_nothing() {
    let bits = compare(|name, _, values| {
        if name.contains("layers.1.") {
            values.fill(0.0);
        }
    });
    assert_no_bits(&bits, &["layers.1."]);
}

#[test]
#[ignore = "slow: three runs"]
fn an_mlp_whose_gate_is_zero_gets_next_to_no_bits() {
    let bits = compare(|name, _, values| {
        if name.contains("layers.0.mlp.gate_proj") {
            values.fill(0.0);
        }
    });
    // The gate passes gradients on only where `up_proj` does not vanish, so the gate itself could still change the loss.
    assert!(
        bits["model.layers.0.mlp.down_proj.weight"] < 0.1,
        "{bits:?}"
    );
    assert!(bits["model.layers.0.mlp.up_proj.weight"] < 0.1, "{bits:?}");
}

#[test]
#[ignore = "slow: three runs"]
fn dead_heads() {
    compare(|name, cols, values| {
        if name.contains("o_proj") {
            let rows = values.chunks_mut(cols);
            rows.for_each(|row| row[..cols / 2].fill(0.0));
        }
    });
}

#[test]
#[ignore = "slow: three runs"]
fn weights_of_which_two_of_four_are_zero() {
    compare(|_, _, values| {
        for group in values.chunks_mut(4) {
            let mut order = [0, 1, 2, 3];
            order.sort_by(|&a: &usize, &b| group[a].abs().total_cmp(&group[b].abs()));
            group[order[0]] = 0.0;
            group[order[1]] = 0.0;
        }
    });
}

/// Mean magnitude.
fn mean_magnitude(values: &[f32]) -> f32 {
    values.iter().map(|x| x.abs()).sum::<f32>() / values.len() as f32
}

#[test]
fn ternary_weights() {
    compare(|_, _, values| {
        let scale = mean_magnitude(values);
        for x in values {
            *x = (*x / scale).round().clamp(-1.0, 1.0) * scale;
        }
    });
}

#[test]
#[ignore = "slow: three runs"]
fn binary_weights() {
    compare(|_, _, values| {
        let scale = mean_magnitude(values);
        values.iter_mut().for_each(|x| *x = scale.copysign(*x));
    });
}

#[test]
#[ignore = "slow: three runs"]
fn weights_of_fifteen_values() {
    compare(|_, _, values| {
        let scale = values.iter().fold(0.0f32, |peak, x| peak.max(x.abs())) / 7.0;
        values
            .iter_mut()
            .for_each(|x| *x = (*x / scale).round() * scale);
    });
}

#[test]
#[ignore = "slow: three runs"]
fn a_constant_matrix_among_ordinary_ones() {
    compare(|name, _, values| {
        if name.contains("layers.1.mlp.gate_proj") || name.contains("layers.2.self_attn.k_proj") {
            values.fill(0.01);
        }
    });
}
