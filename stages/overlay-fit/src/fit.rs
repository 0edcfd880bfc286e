//! The task: fits overlays to the linears of a layer and keeps them if they reduce the output error.

use uc_codec::layer::{CodedLinear, LinearShape};
use uc_layer_quantizer::{CodesCheckpoint, InputMoments, LayerInputs, PassCodes};
use uc_pack::Linears;
use uc_settings::{OverlaySettings, QuantizeSettings, Rank};
use uc_store::stage::Job;

use crate::correction::{fit, is_excluded, output_error};

/// Writes `overlay`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let fitted = fit_layer(job)?;
    let mut rank = 0;
    let mut file = job.output("overlay")?;
    if let Some(linears) = fitted {
        for index in 0..linears.count() {
            let overlay = &linears.parameters(index)?.code.overlay;
            rank = rank.max(overlay.as_ref().map_or(0, |overlay| overlay.rank));
        }
        linears.write(&mut file)?;
    }
    job.metric("rank", rank);
    job.commit("overlay", file)?;
    Ok(())
}

/// The linears that replace those of the codes checkpoint, or `None` if the codes without overlays are better.
fn fit_layer(job: &mut Job<'_>) -> anyhow::Result<Option<PassCodes>> {
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
            let rank = ranks[index];
            code.overlay = fit(code.residual(w)?, code, &factor, rank)?.low_rank(rank);
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
    let mut done = 0;
    for index in 0..count {
        ranks.push(match inputs.can_change_loss(index) {
            true => chooser.choose(&inputs.shapes[index], codes.linear(index)?)?,
            false => 0,
        });
        let shape = &inputs.shapes[index];
        done += (shape.rows * shape.cols) as u64;
        job.progress_often(done, inputs.plan.linear_parameters(), "weights");
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
    fn choose(&mut self, shape: &LinearShape, linear: CodedLinear) -> anyhow::Result<usize> {
        let CodedLinear {
            input, mut code, ..
        } = linear;
        let residual = code.residual(&self.inputs.weights(shape)?)?;
        code.q = Vec::new();
        let moments = match self.moments.take().filter(|(name, _)| *name == input) {
            Some((_, moments)) => moments,
            None => self.inputs.factored_moments(&input, &self.settings)?,
        };
        if is_excluded(&residual, &code, &moments, self.max_rank)? {
            self.excluded += 1;
            self.moments = Some((input, moments));
            return Ok(0);
        }
        drop(moments);
        let factor = self.inputs.factors.input(&input)?;
        Ok(fit(residual, &code, &factor, self.max_rank)?.best_rank())
    }
}

/// Sum of the relative output errors of the linears that can change the loss, and bits of all overlays.
fn measure<L>(inputs: &LayerInputs, linears: &L) -> anyhow::Result<(f64, f64)>
where
    L: Linears<Error = anyhow::Error>,
{
    let (mut error, mut factor_elements) = (0.0, 0);
    for index in 0..linears.count() {
        let linear = linears.parameters(index)?;
        if inputs.can_change_loss(index) {
            let w = inputs.weights(&inputs.shapes[index])?;
            let moments = inputs.second_moments(&linear.input)?;
            error += output_error(&w, linears, index, &moments)?;
        }
        let overlay = linear.code.overlay.as_ref();
        factor_elements += overlay.map_or(0, |overlay| overlay.u.len() + overlay.v.len());
    }
    Ok((error, 16.0 * factor_elements as f64))
}
