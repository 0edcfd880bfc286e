//! overlay-fit: codes and second moments → the low-rank correction that is worth its bits, if any.
//!
//! The budget is one: what an overlay takes is taken from the indices. So this stage compares the layer as quantized
//! with the layer quantized again at fewer bits plus an overlay, both at the same size, and keeps the one with the
//! smaller output error. A forced rank is kept whatever it brings; the figures say what that was.

mod correction;

use uc_layer_quantizer::{Codes, LayerInputs, SpilledCodes};
use uc_pack::Linears;
use uc_settings::Rank;
use uc_store::stage::{self, Job, Program, Task};

use correction::{correction, output_error, worthwhile_rank};

const PROGRAM: Program = Program {
    name: "overlay-fit",
    about: "Fits the low-rank correction of a layer",
    version: 9,
    classify: uc_layer_quantizer::classify,
};

fn main() -> std::process::ExitCode {
    // The only task has no name.
    stage::run(PROGRAM, [Task::new("", "", overlay)])
}

/// Writes `overlay`.
fn overlay(job: &mut Job<'_>) -> anyhow::Result<()> {
    let fitted = fit(job)?;
    let mut rank = 0;
    let mut file = job.output("overlay")?;
    if let Some(linears) = fitted {
        for index in 0..linears.count() {
            let overlay = linears.linear(index)?.into_owned().code.overlay;
            rank = rank.max(overlay.map_or(0, |overlay| overlay.rank));
        }
        linears.write(&mut file)?;
    }
    job.metric("rank", rank);
    job.commit("overlay", file)?;
    Ok(())
}

/// The linears that replace those of the codes checkpoint; none where quantization alone is better.
fn fit(job: &mut Job<'_>) -> anyhow::Result<Option<SpilledCodes>> {
    let overlay = job.settings().overlay.clone();
    let (rank, max_rank) = (overlay.rank, overlay.max_rank as usize);
    if rank == Rank::Fixed(0) || (rank == Rank::Auto && max_rank == 0) {
        return Ok(None);
    }
    let inputs = LayerInputs::open(job)?;
    let codes = Codes::open(&job.input("codes")?)?;
    let mut ranks = Vec::with_capacity(codes.count());
    let mut before = 0.0;
    for index in 0..codes.count() {
        let linear = codes.linear(index)?;
        let w = inputs.weights(&linear.name)?;
        before += output_error(&w, &linear.code, &inputs.moments(&linear.input)?)?;
        ranks.push(match rank {
            Rank::Fixed(rank) => rank as usize,
            Rank::Auto => {
                let factor = inputs.factors.input(&linear.input)?;
                worthwhile_rank(&w, &linear.code, &factor, max_rank)?
            }
        });
        job.progress(index as u64 + 1, codes.count() as u64, "linears");
    }
    job.metric("relative error without overlay", before);
    if ranks.iter().all(|&rank| rank == 0) {
        return Ok(None);
    }
    let (linears, _) = inputs.quantize(job, |index, w, code| {
        if ranks[index] > 0 {
            let factor = inputs.factors.input(&inputs.shapes[index].input)?;
            code.overlay = correction(w, code, &factor, ranks[index])?;
        }
        Ok(())
    })?;
    let (mut after, mut words) = (0.0, 0);
    for index in 0..linears.count() {
        let linear = linears.linear(index)?;
        let w = inputs.weights(&linear.name)?;
        after += output_error(&w, &linear.code, &inputs.moments(&linear.input)?)?;
        let overlay = linear.code.overlay.as_ref();
        words += overlay.map_or(0, |overlay| overlay.u.len() + overlay.v.len());
    }
    job.metric("relative error with overlay", after);
    let bits = 16.0 * words as f64;
    job.metric("overlay bpw", bits / inputs.plan.linear_parameters() as f64);
    let keep = after < before || matches!(rank, Rank::Fixed(_));
    Ok(keep.then_some(linears))
}
