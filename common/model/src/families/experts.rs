//! MLPs under their various names: dense, one expert with matrices of its own, one expert of a fused tensor.

use super::decoder::DecoderDims;
use super::keys::Keys;
use crate::spec::{Activation, MlpInput, MlpSpec, Projection, Stored};

/// The names that most families use for gate, up and down projection.
const GATE_UP_DOWN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

impl DecoderDims {
    /// The dense MLP `mlp.{gate,up,down}_proj`.
    pub(super) fn gated_mlp(&self, activation: Activation, bias: bool) -> MlpSpec {
        MlpSpec {
            input_name: "mlp_in".into(),
            down_input_name: "down_in".into(),
            ..gated(
                "mlp",
                GATE_UP_DOWN,
                [self.hidden, self.ffn],
                activation,
                bias,
            )
        }
    }

    /// The shared experts `mlp.shared_experts.{gate,up,down}_proj`, with intermediate dimension `ffn`.
    pub(super) fn shared_experts(&self, ffn: usize, activation: Activation) -> MlpSpec {
        MlpSpec {
            input_name: "shared.in".into(),
            down_input_name: "shared.down_in".into(),
            ..gated(
                "mlp.shared_experts",
                GATE_UP_DOWN,
                [self.hidden, ffn],
                activation,
                false,
            )
        }
    }

    /// `count` routed experts with intermediate dimension `ffn`: `mlp.experts.N.{gate,up,down}_proj`, or,
    /// if the checkpoint has fused experts, slices of `mlp.experts.{gate_up,down}_proj`.
    pub(super) fn experts(
        &self,
        keys: &Keys<'_>,
        [count, ffn]: [usize; 2],
        activation: Activation,
    ) -> Vec<MlpSpec> {
        let hidden_ffn = [self.hidden, ffn];
        let fused = keys.has_tensor_containing("mlp.experts.gate_up_proj");
        let expert_spec = |index| match fused {
            true => {
                let tensors = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];
                fused_expert(tensors, [index, count], hidden_ffn, activation)
            }
            false => expert("mlp.experts", index, GATE_UP_DOWN, hidden_ffn, activation),
        };
        (0..count).map(expert_spec).collect()
    }
}

/// A gated MLP under `prefix`; `names` are those of gate, up and down projection.
fn gated(
    prefix: &str,
    names: [&str; 3],
    [hidden, ffn]: [usize; 2],
    activation: Activation,
    bias: bool,
) -> MlpSpec {
    let matrix = |name, rows, cols| Projection::new(format!("{prefix}.{name}"), rows, cols, bias);
    let [gate, up, down] = names;
    MlpSpec {
        input: MlpInput::Gated {
            gate: matrix(gate, ffn, hidden),
            up: matrix(up, ffn, hidden),
        },
        down: matrix(down, hidden, ffn),
        ffn,
        activation,
        input_name: format!("{prefix}.in"),
        down_input_name: format!("{prefix}.down_in"),
    }
}

/// Expert `index` under `prefix` with matrices of its own; `names` are those of gate, up and down
/// projection.
pub(super) fn expert(
    prefix: &str,
    index: usize,
    names: [&str; 3],
    hidden_ffn: [usize; 2],
    activation: Activation,
) -> MlpSpec {
    MlpSpec {
        input_name: format!("experts.{index}.in"),
        down_input_name: format!("experts.{index}.down_in"),
        ..gated(
            &format!("{prefix}.{index}"),
            names,
            hidden_ffn,
            activation,
            false,
        )
    }
}

/// Expert `index` of `count` fused experts. `tensors` names the two tensors that hold the matrices of all
/// experts: gate and up, `[count, 2 · ffn, hidden]`, and down, `[count, hidden, ffn]`.
pub(super) fn fused_expert(
    tensors: [&str; 2],
    [index, count]: [usize; 2],
    [hidden, ffn]: [usize; 2],
    activation: Activation,
) -> MlpSpec {
    let slice = |tensor: &str, rows, cols| Projection {
        stored: Stored::Slice {
            tensor: tensor.into(),
            index,
            count,
        },
        ..Projection::new(
            format!("{}.{index}", tensor.trim_end_matches(".weight")),
            rows,
            cols,
            false,
        )
    };
    MlpSpec {
        input: MlpInput::FusedGated(slice(tensors[0], 2 * ffn, hidden)),
        down: slice(tensors[1], hidden, ffn),
        ffn,
        activation,
        input_name: format!("experts.{index}.in"),
        down_input_name: format!("experts.{index}.down_in"),
    }
}
