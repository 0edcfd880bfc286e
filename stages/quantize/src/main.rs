//! quantize: a layer's weights and the second moments of its inputs → codes that fit the byte budget.
//!
//! `rates` measures rate and error of each linear at several steps. `allocate` divides the model's bits among the linears by
//! these measurements and by the linears' sensitivities. `layer` quantizes. The budget is `quantize.bpw` bits for
//! every weight of the linears, and pays for every byte of the layer files. The mathematics is in `uc_codec`, the file
//! format in `uc_pack`, the quantizer of a layer in `uc_layer_quantizer`.

mod allocate;
mod layer;
mod rates;

use uc_layer_quantizer::QUANTIZER_VERSION;
use uc_store::stage::{self, Program, Task};

const PROGRAM: Program = Program {
    name: "quantize",
    about: "Quantizes the linears of a layer to a byte budget",
    version: QUANTIZER_VERSION,
    classify: uc_layer_quantizer::classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new("layer", "Quantize the linears of a layer", layer::run),
            Task::new(
                "rates",
                "Measure rate and error of each linear of a layer at several steps",
                rates::run,
            ),
            Task::new(
                "allocate",
                "Divide the bits of the model among its linears",
                allocate::run,
            ),
        ],
    )
}
