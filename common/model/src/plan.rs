//! The plan of a model's tensors: names, shapes and which linears read the same input.
//!
//! Derived from a [`ModelConfig`] alone, so that a stage can be planned before any weight is read.
//! The plan owns no data and opens no file.

use crate::config::ModelConfig;

/// A matrix that is compressed: `y = W x` with `W: [rows, cols]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Name within the layer, e.g. `self_attn.q_proj.weight`.
    pub name: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Name of the input that it reads; one of [`LayerPlan::inputs`].
    pub input: String,
}

/// A tensor that is kept exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactSpec {
    /// Name within the layer for a layer's tensor, full name for the scaffold.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// An input shared by one or more linears of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// `attn_in`, `o_in`, `mlp_in` or `down_in`.
    pub name: String,
    /// Width of one token's vector.
    pub width: usize,
}

/// Everything that one layer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// Layer number from 0.
    pub index: usize,
    /// What stands before every name of this layer in the source, e.g. `model.layers.17.`.
    pub prefix: String,
    /// Matrices to compress, in the order in which the layer uses them.
    pub linears: Vec<LinearSpec>,
    /// Norms and biases, kept exactly.
    pub extras: Vec<ExactSpec>,
    /// Distinct inputs in the order in which the forward pass observes them.
    pub inputs: Vec<InputSpec>,
}

impl LayerPlan {
    /// Weights of the linears of this layer.
    pub fn linear_parameters(&self) -> u64 {
        self.linears
            .iter()
            .map(|l| l.rows as u64 * l.cols as u64)
            .sum()
    }

    /// All parameters of this layer.
    pub fn parameters(&self) -> u64 {
        self.linear_parameters() + self.extras.iter().map(ExactSpec::parameters).sum::<u64>()
    }

    /// Names (within the layer) and shapes of all tensors of this layer.
    pub fn tensors(&self) -> impl Iterator<Item = ExactSpec> + '_ {
        self.linears
            .iter()
            .map(|l| ExactSpec {
                name: l.name.clone(),
                shape: vec![l.rows, l.cols],
            })
            .chain(self.extras.iter().cloned())
    }
}

impl ExactSpec {
    /// Number of elements.
    pub fn parameters(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

impl ModelConfig {
    /// Plan of layer `index`.
    ///
    /// # Panics
    /// If `index` is not below [`ModelConfig::layers`].
    pub fn layer_plan(&self, index: usize) -> LayerPlan {
        assert!(
            index < self.layers,
            "layer {index} of a model of {} layers",
            self.layers
        );
        let (d, q, kv, f) = (self.hidden, self.query_width(), self.kv_width(), self.ffn);
        let linear = |name: &str, rows, cols, input: &str| LinearSpec {
            name: format!("{name}.weight"),
            rows,
            cols,
            input: input.to_owned(),
        };
        let linears = vec![
            linear("self_attn.q_proj", q, d, "attn_in"),
            linear("self_attn.k_proj", kv, d, "attn_in"),
            linear("self_attn.v_proj", kv, d, "attn_in"),
            linear("self_attn.o_proj", d, q, "o_in"),
            linear("mlp.gate_proj", f, d, "mlp_in"),
            linear("mlp.up_proj", f, d, "mlp_in"),
            linear("mlp.down_proj", d, f, "down_in"),
        ];
        let mut extras = vec![
            exact("input_layernorm.weight", &[d]),
            exact("post_attention_layernorm.weight", &[d]),
        ];
        if self.attention_bias {
            extras.extend(
                [("q", q), ("k", kv), ("v", kv), ("o", d)]
                    .map(|(part, width)| exact(&format!("self_attn.{part}_proj.bias"), &[width])),
            );
        }
        if self.mlp_bias {
            extras.extend(
                [("gate", f), ("up", f), ("down", d)]
                    .map(|(part, width)| exact(&format!("mlp.{part}_proj.bias"), &[width])),
            );
        }
        let inputs = [("attn_in", d), ("o_in", q), ("mlp_in", d), ("down_in", f)]
            .map(|(name, width)| InputSpec {
                name: name.to_owned(),
                width,
            })
            .to_vec();
        LayerPlan {
            index,
            prefix: format!("model.layers.{index}."),
            linears,
            extras,
            inputs,
        }
    }

    /// Full names and shapes of the tensors outside the layers: embedding, final norm and, unless
    /// the head is tied to the embedding, `lm_head.weight`.
    pub fn scaffold_plan(&self) -> Vec<ExactSpec> {
        let mut scaffold = vec![
            exact("model.embed_tokens.weight", &[self.vocab, self.hidden]),
            exact("model.norm.weight", &[self.hidden]),
        ];
        if !self.tied_head {
            scaffold.push(exact("lm_head.weight", &[self.vocab, self.hidden]));
        }
        scaffold
    }

    /// Name of the tensor that is the output matrix.
    pub fn head_tensor(&self) -> &'static str {
        if self.tied_head {
            "model.embed_tokens.weight"
        } else {
            "lm_head.weight"
        }
    }

    /// Weights of all linears of all layers.
    pub fn linear_parameters(&self) -> u64 {
        self.layers as u64 * self.layer_plan(0).linear_parameters()
    }

    /// All parameters; a tied head counts once.
    pub fn total_parameters(&self) -> u64 {
        self.layers as u64 * self.layer_plan(0).parameters()
            + self
                .scaffold_plan()
                .iter()
                .map(ExactSpec::parameters)
                .sum::<u64>()
    }
}

fn exact(name: &str, shape: &[usize]) -> ExactSpec {
    ExactSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
    }
}
