//! Task `layer`: quantizes the linears of a layer within its byte budget.

use uc_layer_quantizer::LayerInputs;
use uc_store::stage::Job;

/// Writes `codes`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let inputs = LayerInputs::open(job)?;
    let (linears, bits) = inputs.quantize(job, |_, _, _| Ok(()))?;
    inputs.report_diagnostics(job);
    job.metric("bpw", bits as f64 / inputs.plan.linear_parameters() as f64);
    let mut file = job.output("codes")?;
    linears.write(&mut file)?;
    job.commit("codes", file)?;
    Ok(())
}
