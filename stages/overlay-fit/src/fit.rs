//! The task: fits overlays to the linears of a layer and keeps them if they reduce the output error.

use uc_layer_quantizer::{CodesCheckpoint, LayerInputs, SpilledCodes};
use uc_pack::Linears;
use uc_settings::Rank;
use uc_store::stage::Job;

use crate::correction::{best_rank, correction, output_error};

/// Writes `overlay`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
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

/// The linears that replace those of the codes checkpoint, or `None` if the codes without overlays are better.
fn fit(job: &mut Job<'_>) -> anyhow::Result<Option<SpilledCodes>> {
    let overlay = job.settings().overlay.clone();
    let (rank, max_rank) = (overlay.rank, overlay.max_rank as usize);
    if rank == Rank::Fixed(0) || (rank == Rank::Auto && max_rank == 0) {
        return Ok(None);
    }
    let inputs = LayerInputs::open(job)?;
    let codes = CodesCheckpoint::open(&job.input("codes")?)?;
    let mut ranks = Vec::with_capacity(codes.count());
    let mut error_without = 0.0;
    for index in 0..codes.count() {
        let linear = codes.linear(index)?;
        if !inputs.can_change_loss(index) {
            ranks.push(match rank {
                Rank::Fixed(rank) => rank as usize,
                Rank::Auto => 0,
            });
            continue;
        }
        let w = inputs.weights(&linear.name)?;
        error_without += output_error(&w, &linear.code, &inputs.second_moments(&linear.input)?)?;
        ranks.push(match rank {
            Rank::Fixed(rank) => rank as usize,
            Rank::Auto => {
                let factor = inputs.factors.input(&linear.input)?;
                best_rank(&w, &linear.code, &factor, max_rank)?
            }
        });
        job.progress(index as u64 + 1, codes.count() as u64, "linears");
    }
    job.metric("relative error without overlay", error_without);
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
    let (error_with, overlay_bits) = measure(&inputs, &linears)?;
    job.metric("relative error with overlay", error_with);
    job.metric(
        "overlay bpw",
        overlay_bits / inputs.plan.linear_parameters() as f64,
    );
    let accepted = error_with < error_without || matches!(rank, Rank::Fixed(_));
    Ok(accepted.then_some(linears))
}

/// Sum of the relative output errors of the linears that can change the loss, and bits of all overlays.
fn measure(inputs: &LayerInputs, linears: &SpilledCodes) -> anyhow::Result<(f64, f64)> {
    let (mut error, mut factor_elements) = (0.0, 0);
    for index in 0..linears.count() {
        let linear = linears.linear(index)?;
        if inputs.can_change_loss(index) {
            let w = inputs.weights(&linear.name)?;
            error += output_error(&w, &linear.code, &inputs.second_moments(&linear.input)?)?;
        }
        let overlay = linear.code.overlay.as_ref();
        factor_elements += overlay.map_or(0, |overlay| overlay.u.len() + overlay.v.len());
    }
    Ok((error, 16.0 * factor_elements as f64))
}
