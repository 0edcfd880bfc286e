//! Compares what the runtime computes with what the evaluator measured, on the evaluator's own windows; prints JSON.
//!
//! ```text
//! cargo run --release -p uc-examples --example runtime_accuracy -- PACK EVALUATION [fast] [f16] [bf16]
//! ```
//! PACK is the pack, EVALUATION the folder `eval` of the run that evaluated it: `windows.json` and `metrics.json`. The program
//! computes the logits of every token in the arithmetic `exact` and prints the perplexity beside that of the evaluator. Every
//! further way to compute them that is named is compared with `exact`: `fast` is the arithmetic of that name, `f16` and `bf16` round
//! cached keys and values in `exact`. For each, it prints the perplexity, the mean KL divergence from `exact`, its share of the divergence of the pack from its teacher, the top-1
//! agreement and the largest difference of two logits.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use uc_infer::{
    Arithmetic, Checks, Chunk, LoadOptions, MemoryForm, Model, Precision, Sequence, Wanted, load,
};
use uc_model::metrics::{MetricsAccumulator, compare_logits};
use uc_model::text::WindowSet;
use uc_pack::Pack;

/// Tokens that are computed together.
const CHUNK: usize = 64;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pack, evaluation, names @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: runtime_accuracy PACK EVALUATION [fast] [f16] [bf16]");
    };
    let ways = names.iter().map(|name| Way::new(name));
    let ways = ways.collect::<anyhow::Result<Vec<_>>>()?;
    let pack = Pack::open(pack)?;
    let read = |name: &str| -> anyhow::Result<Vec<u8>> {
        let path = Path::new(evaluation).join(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let windows: WindowSet = serde_json::from_slice(&read("windows.json")?)?;
    let measured: Value = serde_json::from_slice(&read("metrics.json")?)?;
    let fingerprint = pack.fingerprint().to_string();
    ensure!(
        measured["pack_fingerprint"] == fingerprint.as_str(),
        "found an evaluation of {}, expected one of {fingerprint}",
        measured["pack_fingerprint"]
    );
    let with = |arithmetic| {
        load(
            &pack,
            LoadOptions {
                checks: Checks::Digests,
                arithmetic,
                memory: MemoryForm::Resident,
            },
        )
    };
    let model = with(Arithmetic::Exact)?;
    let is_fast = |way: &Way| way.arithmetic == Arithmetic::Fast;
    let fast = match ways.iter().any(is_fast) {
        true => Some(with(Arithmetic::Fast)?),
        false => None,
    };
    let model_of = |way: &Way| match is_fast(way) {
        true => fast.as_ref().unwrap_or(&model),
        false => &model,
    };
    let models: Vec<&Model> = ways.iter().map(model_of).collect();
    let mut found: Vec<Found> = ways.iter().map(|_| Found::default()).collect();
    let mut exact = Found::default();
    for (index, window) in windows.windows.iter().enumerate() {
        eprintln!("window {} of {}", index + 1, windows.windows.len());
        compare_window(&model, &window.ids, &models, &ways, &mut exact, &mut found)?;
    }
    let evaluator = &measured["pack_ppl"]["value"];
    let evaluator = evaluator.as_f64().context("no pack_ppl")?;
    let pack_kl = measured["mean_kl"]["value"].as_f64();
    let pack_kl = pack_kl.context("no mean_kl")?;
    let exact = exact.report(pack_kl)?;
    let ppl = exact["ppl"].as_f64().context("no perplexity")?;
    let compared = ways.iter().zip(found);
    let compared = compared.map(|(way, found)| Ok((way.name.clone(), found.report(pack_kl)?)));
    let report = json!({
        "model": measured["model"],
        "fingerprint": fingerprint,
        "windows": windows.windows.len(),
        "window_length": windows.length,
        "windows_sha256": windows.sha256,
        "evaluator": { "ppl": evaluator, "mean_kl": pack_kl },
        "exact": { "ppl": ppl, "relative_difference_from_evaluator": ppl / evaluator - 1.0 },
        "against_exact": compared.collect::<anyhow::Result<serde_json::Map<_, _>>>()?,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

/// A way to compute the logits.
struct Way {
    name: String,
    arithmetic: Arithmetic,
    cache: Precision,
}

impl Way {
    fn new(name: &str) -> anyhow::Result<Self> {
        let (arithmetic, cache, name) = match name {
            "fast" => (Arithmetic::Fast, Precision::F32, "fast"),
            "f16" => (Arithmetic::Exact, Precision::F16, "exact, cache f16"),
            "bf16" => (Arithmetic::Exact, Precision::Bf16, "exact, cache bf16"),
            _ => anyhow::bail!("found {name}, expected fast, f16 or bf16"),
        };
        Ok(Way {
            name: name.to_owned(),
            arithmetic,
            cache,
        })
    }
}

/// The comparison with `exact` so far.
#[derive(Default)]
struct Found {
    metrics: MetricsAccumulator,
    largest_difference: f32,
    largest_logit: f32,
}

impl Found {
    fn report(self, pack_kl: f64) -> anyhow::Result<Value> {
        let metrics = self.metrics.finish().context("no tokens")?;
        Ok(json!({
            "ppl": metrics.pack_ppl.value,
            "mean_kl": metrics.mean_kl.value,
            "share_of_pack_kl": metrics.mean_kl.value / pack_kl,
            "top1_agreement": metrics.top1_agreement.value,
            "largest_difference_of_logits": self.largest_difference,
            "largest_logit": self.largest_logit,
        }))
    }
}

/// Adds a window: its tokens in chunks, each in every way.
fn compare_window(
    model: &Model,
    tokens: &[u32],
    models: &[&Model],
    ways: &[Way],
    exact: &mut Found,
    found: &mut [Found],
) -> anyhow::Result<()> {
    let mut reference = Sequence::new(model, tokens.len(), Precision::F32)?;
    let mut others = models
        .iter()
        .zip(ways)
        .map(|(model, way)| Sequence::new(model, tokens.len(), way.cache))
        .collect::<Result<Vec<_>, _>>()?;
    let vocab = model.config().vocab;
    let mut own = Vec::new();
    let mut compared: Vec<Vec<_>> = ways.iter().map(|_| Vec::new()).collect();
    // The last token has no next one to predict.
    let predicting = &tokens[..tokens.len() - 1];
    for (index, chunk) in predicting.chunks(CHUNK).enumerate() {
        let targets = &tokens[index * CHUNK + 1..];
        let expected = logits(model, &mut reference, chunk)?;
        let rows = expected.chunks_exact(vocab).zip(targets);
        own.extend(rows.map(|(row, &target)| compare_logits(row, row, target as usize)));
        let parts = models.iter().zip(&mut others).zip(&mut *found);
        for (((model, sequence), found), compared) in parts.zip(&mut compared) {
            let logits = logits(model, sequence, chunk)?;
            let rows = expected.chunks_exact(vocab).zip(logits.chunks_exact(vocab));
            for ((expected, row), &target) in rows.zip(targets) {
                compared.push(compare_logits(expected, row, target as usize));
                for (a, b) in expected.iter().zip(row) {
                    found.largest_difference = found.largest_difference.max((a - b).abs());
                    found.largest_logit = found.largest_logit.max(a.abs());
                }
            }
        }
    }
    exact.metrics.add_window(&own);
    for (found, compared) in found.iter_mut().zip(compared) {
        found.metrics.add_window(&compared);
    }
    Ok(())
}

/// The logits after every token of a chunk, `[tokens, vocab]`.
fn logits(model: &Model, sequence: &mut Sequence, tokens: &[u32]) -> anyhow::Result<Vec<f32>> {
    let chunk = Chunk {
        sequence,
        tokens,
        wanted: Wanted::All,
    };
    Ok(model.forward(&mut [chunk])?.remove(0))
}
