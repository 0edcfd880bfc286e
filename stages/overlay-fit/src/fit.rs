//! The task: fits overlays to the linears of a layer and keeps them if they reduce the output error.

use uc_codec::layer::CodedLinear;
use uc_layer_quantizer::{CodesCheckpoint, InputMoments, LayerInputs, SpilledCodes};
use uc_pack::Linears;
use uc_settings::{OverlaySettings, QuantizeSettings, Rank};
use uc_store::stage::Job;

use crate::correction::{best_rank, correction, is_excluded, output_error};

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
    if overlay.rank == Rank::Fixed(0) || (overlay.rank == Rank::Auto && overlay.max_rank == 0) {
        return Ok(None);
    }
    let inputs = LayerInputs::open(job)?;
    let codes = CodesCheckpoint::open(&job.input("codes")?)?;
    let ranks = choose_ranks(job, &inputs, &codes, &overlay)?;
    if ranks.iter().all(|&rank| rank == 0) {
        return Ok(None);
    }
    let (error_without, _) = measure(&inputs, &codes)?;
    job.metric("relative error without overlay", error_without);
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
    let accepted = error_with < error_without || matches!(overlay.rank, Rank::Fixed(_));
    Ok(accepted.then_some(linears))
}

/// The rank of the overlay of every linear of the plan.
fn choose_ranks(
    job: &mut Job<'_>,
    inputs: &LayerInputs,
    codes: &CodesCheckpoint,
    overlay: &OverlaySettings,
) -> anyhow::Result<Vec<usize>> {
    let count = codes.count();
    if let Rank::Fixed(rank) = overlay.rank {
        return Ok(vec![rank as usize; count]);
    }
    let mut chooser = RankChooser {
        inputs,
        settings: job.settings().quantize.clone(),
        max_rank: overlay.max_rank as usize,
        moments: None,
        excluded: 0,
    };
    let mut ranks = Vec::with_capacity(count);
    for index in 0..count {
        ranks.push(match inputs.can_change_loss(index) {
            true => chooser.choose(codes.linear(index)?.into_owned())?,
            false => 0,
        });
        job.progress(index as u64 + 1, count as u64, "linears");
    }
    job.metric("linears excluded by the bound", chooser.excluded);
    Ok(ranks)
}

/// Chooses the ranks of linears, one after another.
struct RankChooser<'a> {
    inputs: &'a LayerInputs,
    settings: QuantizeSettings,
    max_rank: usize,
    /// The input of the last linear, and its moments: several linears have the same.
    moments: Option<(String, InputMoments)>,
    /// Linears for which the bound was enough.
    excluded: usize,
}

impl RankChooser<'_> {
    /// The rank with the least predicted error. Factors are only made if a bound on what an overlay could capture leaves it open.
    fn choose(&mut self, linear: CodedLinear) -> anyhow::Result<usize> {
        let CodedLinear { name, input, code } = linear;
        let moments = match self.moments.take().filter(|(name, _)| *name == input) {
            Some((_, moments)) => moments,
            None => self.inputs.factored_moments(&input, &self.settings)?,
        };
        let w = self.inputs.weights(&name)?;
        if is_excluded(&w, &code, &moments, self.max_rank)? {
            self.excluded += 1;
            self.moments = Some((input, moments));
            return Ok(0);
        }
        drop(moments);
        let factor = self.inputs.factors.input(&input)?;
        Ok(best_rank(&w, &code, &factor, self.max_rank)?)
    }
}

/// Sum of the relative output errors of the linears that can change the loss, and bits of all overlays.
fn measure<L>(inputs: &LayerInputs, linears: &L) -> anyhow::Result<(f64, f64)>
where
    L: Linears<Error = anyhow::Error>,
{
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
