//! Searches for the convolutional codes with the lowest mean square error for the trellis: uniformly distributed values modulo
//! the four residues, in blocks that begin in state 0. Prints JSON.
//!
//! Usage: cargo run --release -p uc-examples --example trellis_codes > docs/benchmarks/trellis-codes.json

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Number of values in the first round, which compares all codes, and in the second round.
const ROUND_VALUES: [usize; 2] = [1 << 16, 1 << 21];
/// Number of codes in the second round.
const SECOND_ROUND_CODES: usize = 60;
/// Rows of a block in the search, equal to those of a block of the trellis.
const ROWS: usize = uc_codec::trellis::BLOCK_ROWS;

/// A code whose state consists of the last input bits. `level` is the mask of the state bits whose parity is the lowest
/// bit of the level; `input` is the mask of those whose parity is added to the lowest bit of the index to give the next input
/// bit.
#[derive(Clone, Copy)]
struct Code {
    states: usize,
    level: usize,
    input: usize,
}

/// The codes of Ungerboeck (1982) for amplitude modulation, which have the largest free distance: states, level, input.
const FREE_DISTANCE_CODES: [(usize, usize, usize); 6] = [
    (8, 0o2, 0o5),
    (16, 0o2, 0o11),
    (32, 0o4, 0o22),
    (64, 0o12, 0o41),
    (128, 0o53, 0o116),
    (256, 0o171, 0o246),
];

impl Code {
    /// Mean square error of `values` in units of half an index's step, in blocks of `rows`.
    fn error(self, values: &[f32], rows: usize) -> f64 {
        let half = self.states / 2;
        let parity = |bits: usize| bits.count_ones() as usize & 1;
        // Residues that lead to newest bit 0. The other residue with the same lowest bit leads to newest bit 1.
        let residues: Vec<usize> = (0..half)
            .map(|state| 2 * parity(state & self.input) + parity(state & self.level))
            .collect();
        let (mut same, mut other) = (vec![0.0f32; half], vec![0.0f32; half]);
        let (mut path_costs, mut next) = (vec![0.0f32; self.states], vec![0.0f32; self.states]);
        let mut total = 0.0f64;
        for values in values.chunks_exact(rows) {
            path_costs.fill(1e30);
            path_costs[0] = 0.0;
            for value in values {
                let cost = [0.0, 1.0, 2.0, 3.0].map(|residue| {
                    let offset = value - residue;
                    (offset - 4.0 * (0.25 * offset).round_ties_even()).powi(2)
                });
                for (state, &residue) in residues.iter().enumerate() {
                    (same[state], other[state]) = (cost[residue], cost[residue ^ 2]);
                }
                let (low, high) = path_costs.split_at(half);
                for (i, next) in next.chunks_exact_mut(2).enumerate() {
                    next[0] = (low[i] + same[i]).min(high[i] + other[i]);
                    next[1] = (low[i] + other[i]).min(high[i] + same[i]);
                }
                std::mem::swap(&mut path_costs, &mut next);
            }
            total += f64::from(path_costs.iter().copied().fold(f32::INFINITY, f32::min));
        }
        total / (values.len() / rows * rows) as f64
    }

    /// The code and its errors for `values`, as JSON.
    fn describe(self, values: &[f32]) -> Value {
        let bits = |mask: usize| -> Vec<u32> {
            (0..usize::BITS)
                .filter(|bit| mask >> bit & 1 == 1)
                .collect()
        };
        let errors =
            BTreeMap::from([64, 128, ROWS, 512, 1024].map(|rows| (rows, self.error(values, rows))));
        // Rounding to even levels has the mean square error 1/3.
        let gain = |error: f64| (-10.0 * (3.0 * error).log10() * 1e4).round() / 1e4;
        let gains: serde_json::Map<String, Value> = errors
            .iter()
            .map(|(rows, &error)| (rows.to_string(), json!(gain(error))))
            .collect();
        json!({
            "level": bits(self.level),
            "turn": bits(self.input),
            "mean_square_error": (errors[&ROWS] * 1e5).round() / 1e5,
            "decibels_over_rounding_by_rows_of_a_block": gains,
        })
    }
}

/// The code with the given number of states that has the least error for `values`.
fn best(states: usize, values: &[f32]) -> Code {
    let half = states / 2;
    let codes = (1..half).flat_map(|level| {
        (half..states).map(move |input| Code {
            states,
            level,
            input,
        })
    });
    let mut codes: Vec<Code> = codes.collect();
    for count in ROUND_VALUES {
        let mut ranked: Vec<(f64, Code)> = codes
            .iter()
            .map(|code| (code.error(&values[..count], ROWS), *code))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        codes = ranked
            .into_iter()
            .take(SECOND_ROUND_CODES)
            .map(|(_, code)| code)
            .collect();
    }
    codes[0]
}

fn main() {
    let mut state = 1u64;
    let values: Vec<f32> = (0..ROUND_VALUES[1])
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 22) as f32
        })
        .collect();
    let codes = FREE_DISTANCE_CODES.map(|(states, level, input)| {
        let known = Code {
            states,
            level,
            input,
        };
        let mut entry = json!({ "states": states, "for_distance": known.describe(&values) });
        if states <= 128 {
            entry["for_error"] = best(states, &values).describe(&values);
        }
        entry
    });
    let receipt = json!({
        "command": "cargo run --release -p uc-examples --example trellis_codes",
        "rows_for_which_codes_are_chosen": ROWS,
        "codes": codes,
    });
    println!(
        "{}",
        serde_json::to_string_pretty(&receipt).expect("plain values")
    );
}
