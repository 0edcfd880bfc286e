//! quantize: a layer's weights and the second moments of its inputs → codes that fit the byte budget.
//!
//! `rates` finds at which steps the linears of a layer take the wanted bits, `allocate` deals out the model's bits by
//! these and by the linears' sensitivities, `layer` quantizes. The budget is `bpw` bits for every weight of the linears, from
//! which everything in the layer files is paid. The mathematics is `uc_codec`'s, the size is that of the file as `uc_pack`
//! writes it, and a layer on its way to that file is `uc_layer_quantizer`'s.

mod survey;

use uc_layer_quantizer::LayerInputs;
use uc_store::stage::{self, Job, Program, Task};

const PROGRAM: Program = Program {
    name: "quantize",
    about: "Quantizes the linears of a layer to a byte budget",
    version: 9,
    classify: uc_layer_quantizer::classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new("layer", "Quantize the linears of a layer", layer),
            Task::new(
                "rates",
                "Find the step of every linear of a layer at the wanted bits per weight",
                survey::rates,
            ),
            Task::new(
                "allocate",
                "Allocate the bits of the model to its linears",
                survey::allocate_bits,
            ),
        ],
    )
}

/// Writes `codes`.
fn layer(job: &mut Job<'_>) -> anyhow::Result<()> {
    let inputs = LayerInputs::open(job)?;
    let (linears, bits) = inputs.quantize(job, |_, _, _| Ok(()))?;
    inputs.report(job);
    job.metric("bpw", bits as f64 / inputs.plan.linear_parameters() as f64);
    let mut file = job.output("codes")?;
    linears.write(&mut file)?;
    job.commit("codes", file)?;
    Ok(())
}
