//! The names, row orders and shapes of a model's tensors in a GGUF file, from the description of the model.
//!
//! Every tensor of the pack has one or more *homes*: a whole tensor of the file, the matrix of an expert in a tensor with all
//! experts, or a part of the rows in each of two tensors. Reads no file and knows no family.

use std::collections::BTreeMap;
use std::ops::Range;

use uc_model::ModelConfig;
use uc_model::spec::{
    AttentionSpec, ExpertsSpec, LayerSpec, MambaSpec, Mixer, MlpInput, MlpSpec, NormKind, NormSpec,
    Projection, QkvSpec,
};

use crate::encoding::Adjustment;
use crate::layout::RowOrder;

/// Where some rows of a tensor of the pack are in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Home {
    /// Name of the tensor in the file.
    pub tensor: String,
    /// The rows of the pack's tensor; `None` for all.
    pub rows: Option<Range<u64>>,
    /// Index of the matrix and number of matrices, in a tensor with all experts.
    pub expert: Option<(u64, u64)>,
    /// The order of the rows.
    pub order: RowOrder,
    /// What is done to the values.
    pub adjustment: Adjustment,
}

impl Home {
    fn whole(tensor: String) -> Self {
        Self {
            tensor,
            rows: None,
            expert: None,
            order: RowOrder::Kept,
            adjustment: Adjustment::None,
        }
    }
}

/// The homes of the tensors of a part of the model, by their names in the pack: within the layer, or the full name outside.
pub type Homes = BTreeMap<String, Vec<Home>>;

/// The homes of the tensors outside the layers.
pub fn non_layer(config: &ModelConfig) -> Homes {
    let mut homes = Homes::new();
    let mut add = |name: &str, tensor: &str| {
        homes.insert(name.to_owned(), vec![Home::whole(tensor.to_owned())]);
    };
    add(&config.embedding.weight, "token_embd.weight");
    if let Some(positions) = &config.embedding.positions {
        add(positions, "position_embd.weight");
    }
    if !config.head.tied {
        add(&config.head.weight, "output.weight");
    }
    if let Some(bias) = &config.head.bias {
        add(bias, "output.bias");
    }
    add_norm(&mut homes, &config.head.norm, "output_norm");
    homes
}

/// The homes of the tensors of a layer. `pairs`: queries and keys are rotated in neighbouring pairs.
pub fn layer(layer: &LayerSpec, index: usize, pairs: bool) -> Homes {
    let mut names = LayerNames {
        homes: Homes::new(),
        index,
        pairs,
    };
    for block in &layer.blocks {
        let (pre, post) = match &block.mixer {
            Mixer::Mlp(_) | Mixer::Experts(_) => ("ffn_norm", "post_ffw_norm"),
            _ => ("attn_norm", "post_attention_norm"),
        };
        for (norm, name) in [(&block.pre_norm, pre), (&block.post_norm, post)] {
            if let Some(norm) = norm {
                let name = names.of(name);
                add_norm(&mut names.homes, norm, &name);
            }
        }
        match &block.mixer {
            Mixer::Attention(attention) => names.attention(attention),
            Mixer::Mlp(mlp) => names.mlp(mlp),
            Mixer::Experts(experts) => names.experts(experts),
            Mixer::Mamba(mamba) => names.mamba(mamba),
            // No family in the table has them; without homes their tensors are refused by name.
            Mixer::LatentAttention(_) | Mixer::Mamba2(_) => {}
        }
    }
    names.homes
}

/// Adds weight and bias of a norm.
fn add_norm(homes: &mut Homes, norm: &NormSpec, name: &str) {
    let mut weight = Home::whole(format!("{name}.weight"));
    if norm.kind == NormKind::RmsOnePlus {
        weight.adjustment = Adjustment::PlusOne;
    }
    homes.insert(format!("{}.weight", norm.name), vec![weight]);
    if norm.kind == NormKind::Layer {
        let bias = Home::whole(format!("{name}.bias"));
        homes.insert(format!("{}.bias", norm.name), vec![bias]);
    }
}

/// The homes of a layer, as they are collected.
struct LayerNames {
    homes: Homes,
    index: usize,
    pairs: bool,
}

impl LayerNames {
    fn of(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.index)
    }

    /// Adds weight and bias of a projection, with the same order of rows.
    fn add(&mut self, projection: &Projection, name: &str, order: RowOrder) {
        for part in ["weight", "bias"] {
            let home = Home {
                order,
                ..Home::whole(self.of(&format!("{name}.{part}")))
            };
            if part == "weight" || projection.bias {
                let name = format!("{}.{part}", projection.name);
                self.homes.insert(name, vec![home]);
            }
        }
    }

    fn attention(&mut self, attention: &AttentionSpec) {
        let rotary = match &attention.rope {
            Some(rope) if self.pairs => RowOrder::RotaryPairs {
                head_dim: attention.head_dim as u64,
                rotated: rope.width as u64,
            },
            _ => RowOrder::Kept,
        };
        match &attention.qkv {
            QkvSpec::Separate { q, k, v } => {
                self.add(q, "attn_q", rotary);
                self.add(k, "attn_k", rotary);
                self.add(v, "attn_v", RowOrder::Kept);
            }
            QkvSpec::Fused(qkv) => self.add(qkv, "attn_qkv", RowOrder::Kept),
            QkvSpec::FusedPerHead(qkv) => {
                let order = RowOrder::HeadsToParts {
                    heads: attention.heads as u64,
                    head_dim: attention.head_dim as u64,
                };
                self.add(qkv, "attn_qkv", order);
            }
        }
        self.add(&attention.output, "attn_output", RowOrder::Kept);
        if let Some(norms) = &attention.qk_norm {
            for (norm, name) in [(&norms.q, "attn_q_norm"), (&norms.k, "attn_k_norm")] {
                let name = self.of(name);
                add_norm(&mut self.homes, norm, &name);
            }
        }
    }

    fn mlp(&mut self, mlp: &MlpSpec) {
        match &mlp.input {
            MlpInput::Gated { gate, up } => {
                self.add(gate, "ffn_gate", RowOrder::Kept);
                self.add(up, "ffn_up", RowOrder::Kept);
            }
            MlpInput::FusedGated(up) | MlpInput::Ungated(up) => {
                self.add(up, "ffn_up", RowOrder::Kept);
            }
        }
        self.add(&mlp.down, "ffn_down", RowOrder::Kept);
    }

    fn experts(&mut self, experts: &ExpertsSpec) {
        self.add(&experts.router, "ffn_gate_inp", RowOrder::Kept);
        let count = experts.experts.len() as u64;
        for (index, expert) in (0..).zip(&experts.experts) {
            let home = |names: &Self, name: &str, rows| Home {
                rows,
                expert: Some((index, count)),
                ..Home::whole(names.of(&format!("{name}.weight")))
            };
            let ffn = expert.ffn as u64;
            let homes = match &expert.input {
                MlpInput::Gated { gate, up } => vec![
                    (gate, vec![home(self, "ffn_gate_exps", None)]),
                    (up, vec![home(self, "ffn_up_exps", None)]),
                ],
                MlpInput::FusedGated(both) => {
                    let halves = vec![
                        home(self, "ffn_gate_exps", Some(0..ffn)),
                        home(self, "ffn_up_exps", Some(ffn..2 * ffn)),
                    ];
                    vec![(both, halves)]
                }
                MlpInput::Ungated(up) => vec![(up, vec![home(self, "ffn_up_exps", None)])],
            };
            let down = (&expert.down, vec![home(self, "ffn_down_exps", None)]);
            for (projection, homes) in homes.into_iter().chain([down]) {
                self.homes
                    .insert(format!("{}.weight", projection.name), homes);
            }
        }
    }

    fn mamba(&mut self, mamba: &MambaSpec) {
        self.add(&mamba.in_proj, "ssm_in", RowOrder::Kept);
        self.add(&mamba.x_proj, "ssm_x", RowOrder::Kept);
        self.add(&mamba.dt_proj, "ssm_dt", RowOrder::Kept);
        self.add(&mamba.out_proj, "ssm_out", RowOrder::Kept);
        let conv = &mamba.conv.name;
        let decay = Home {
            adjustment: Adjustment::MinusExp,
            ..Home::whole(self.of("ssm_a"))
        };
        let others = [
            (
                format!("{conv}.weight"),
                Home::whole(self.of("ssm_conv1d.weight")),
            ),
            (
                format!("{conv}.bias"),
                Home::whole(self.of("ssm_conv1d.bias")),
            ),
            ("mixer.A_log".to_owned(), decay),
            ("mixer.D".to_owned(), Home::whole(self.of("ssm_d"))),
        ];
        for (name, home) in others {
            self.homes.insert(name, vec![home]);
        }
    }
}
