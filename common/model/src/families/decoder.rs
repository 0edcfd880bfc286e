//! What most families share: widths, rotary settings, and the usual names of a decoder's tensors.

use super::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, EmbeddingSpec, HeadSpec, LayerSpec, Mixer, MlpSpec,
    NormKind, NormSpec, Projection, QkvSpec, Stored, Widening,
};

/// `rope_theta` where the file gives none.
const DEFAULT_THETA: f64 = 10_000.0;
/// The usual names of an MLP's gate, up and down.
const USUAL: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Whether the head is the embedding where the file does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tied {
    /// It is.
    Usually,
    /// It is not.
    Rarely,
}

impl Tied {
    /// Whether the head is the embedding.
    pub(super) fn read(self, keys: &Keys<'_>) -> Result<bool, ConfigError> {
        let said = keys.flag_if_any("tie_word_embeddings")?;
        Ok(said.unwrap_or(self == Tied::Usually))
    }
}

/// Widths under the names that most families give them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) ffn: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
    /// Added inside the norms.
    pub(super) eps: f64,
}

impl Widths {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self, ConfigError> {
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let head_dim = match keys.size_if_any("head_dim")? {
            Some(given) => given,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads, {heads}");
                return Err(keys.refuse("hidden_size", hidden, expected));
            }
        };
        Widths::with_head_dim(keys, head_dim)
    }

    /// Widths of a family that gives the width of its heads elsewhere.
    pub(super) fn with_head_dim(keys: &Keys<'_>, head_dim: usize) -> Result<Self, ConfigError> {
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let kv_heads = keys.size_if_any("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(keys.refuse("num_key_value_heads", kv_heads, expected));
        }
        Ok(Widths {
            hidden,
            layers: keys.layers("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            ffn: keys.size("intermediate_size")?,
            vocab: keys.size("vocab_size")?,
            context: keys.size_if_any("max_position_embeddings")?.unwrap_or(2048),
            eps: keys.number_if_any("rms_norm_eps", 0.0)?.unwrap_or(1e-6),
        })
    }

    /// A root-mean-square norm over the residual stream.
    pub(super) fn rms(&self, name: &str) -> NormSpec {
        norm(name, NormKind::Rms, self.hidden, self.eps)
    }

    /// `self_attn.{q,k,v,o}_proj`; `biases` are those of q, k, v and of o.
    pub(super) fn attention(&self, biases: [bool; 2], rope: RopeSpec) -> AttentionSpec {
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let into = |part: &str, rows| {
            Projection::new(
                format!("self_attn.{part}_proj"),
                rows,
                self.hidden,
                biases[0],
            )
        };
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            qkv: QkvSpec::Separate {
                q: into("q", query),
                k: into("k", key),
                v: into("v", key),
            },
            output: Projection::new("self_attn.o_proj", self.hidden, query, biases[1]),
            qk_norm: None,
            rope: Some(rope),
            window: None,
            scale: (self.head_dim as f64).sqrt().recip(),
            softcap: None,
        }
    }

    /// `mlp.{gate,up,down}_proj`.
    pub(super) fn gated_mlp(&self, activation: Activation, bias: bool) -> MlpSpec {
        MlpSpec {
            input: "mlp_in".into(),
            inner: "down_in".into(),
            ..gated("mlp", USUAL, [self.hidden, self.ffn], activation, bias)
        }
    }

    /// `mlp.shared_experts.{gate,up,down}_proj`, of inner width `ffn`, which every token passes beside its
    /// experts.
    pub(super) fn shared_experts(&self, ffn: usize, activation: Activation) -> MlpSpec {
        MlpSpec {
            input: "shared.in".into(),
            inner: "shared.down_in".into(),
            ..gated(
                "mlp.shared_experts",
                USUAL,
                [self.hidden, ffn],
                activation,
                false,
            )
        }
    }

    /// `mlp.experts.N.{gate,up,down}_proj`, `count` of them of inner width `ffn`, or where the checkpoint has them
    /// `mlp.experts.{gate_up,down}_proj` with all in one.
    pub(super) fn experts(
        &self,
        keys: &Keys<'_>,
        [count, ffn]: [usize; 2],
        activation: Activation,
    ) -> Vec<MlpSpec> {
        let sides = [self.hidden, ffn];
        let fused = keys.tensors_contain("mlp.experts.gate_up_proj");
        let of_expert = |index| match fused {
            true => {
                let tensors = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];
                fused_expert(tensors, [index, count], sides, activation)
            }
            false => expert("mlp.experts", index, USUAL, sides, activation),
        };
        (0..count).map(of_expert).collect()
    }

    /// Two blocks, each behind a norm: `input_layernorm` and `post_attention_layernorm`.
    pub(super) fn blocks(&self, first: Mixer, second: Mixer) -> Vec<BlockSpec> {
        vec![
            BlockSpec::new(self.rms("input_layernorm"), first),
            BlockSpec::new(self.rms("post_attention_layernorm"), second),
        ]
    }

    /// The model whose layers are `model.layers.N.` and whose ends are `model.embed_tokens`, `model.norm`
    /// and `lm_head`.
    pub(super) fn model(
        &self,
        keys: &Keys<'_>,
        tied: Tied,
        mut blocks: impl FnMut(usize) -> Vec<BlockSpec>,
    ) -> Result<ModelConfig, ConfigError> {
        const EMBEDDING: &str = "model.embed_tokens.weight";
        let tied = tied.read(keys)?;
        let layers = (0..self.layers).map(|index| LayerSpec {
            prefix: format!("model.layers.{index}."),
            blocks: blocks(index),
            parallel: false,
        });
        Ok(ModelConfig {
            family: keys.text("model_type")?.unwrap_or_default().to_owned(),
            hidden: self.hidden,
            vocab: self.vocab,
            context: self.context,
            embedding: EmbeddingSpec {
                weight: EMBEDDING.into(),
                scale: 1.0,
                positions: None,
            },
            layers: layers.collect(),
            head: HeadSpec {
                norm: self.rms("model.norm"),
                weight: if tied { EMBEDDING } else { "lm_head.weight" }.into(),
                tied,
                bias: None,
                scale: 1.0,
                softcap: None,
            },
            beside: Vec::new(),
        })
    }

    /// The window of every layer: that of `sliding_window` where `layer_types` or else `slides` says so.
    pub(super) fn windows(
        &self,
        keys: &Keys<'_>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>, ConfigError> {
        let window = keys.size_if_any("sliding_window")?;
        let kinds = keys.texts_if_any("layer_types")?;
        let kind = |layer: usize| match &kinds {
            None => Ok(slides(layer)),
            Some(kinds) => match kinds.get(layer).copied() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                other => {
                    let expected = "sliding_attention or full_attention for every layer";
                    Err(keys.refuse("layer_types", format!("{other:?}"), expected))
                }
            },
        };
        (0..self.layers)
            .map(|layer| Ok(if kind(layer)? { window } else { None }))
            .collect()
    }

    /// Base and scaling of the rotary frequencies from either spelling: `rope_theta` with `rope_scaling`,
    /// or `rope_parameters` (transformers 5).
    pub(super) fn rope(&self, keys: &Keys<'_>) -> Result<RopeSpec, ConfigError> {
        keys.only("rope_interleaved", false)?;
        let settings = match (
            keys.object_if_any("rope_scaling")?,
            keys.object_if_any("rope_parameters")?,
        ) {
            (Some(_), Some(_)) => {
                let expected = "only one of rope_scaling and rope_parameters";
                return Err(keys.refuse("rope_scaling", "both", expected));
            }
            (one, other) => one.or(other),
        };
        let theta = keys.number_if_any("rope_theta", 1.0)?;
        self.rope_of(keys, settings, theta)
    }

    /// Rotary positions by an object of settings, with the base where the object gives none.
    pub(super) fn rope_of(
        &self,
        keys: &Keys<'_>,
        settings: Option<Keys<'_>>,
        theta: Option<f64>,
    ) -> Result<RopeSpec, ConfigError> {
        let outer = keys.number_if_any("partial_rotary_factor", 0.0)?;
        let (mut own_theta, mut own_share) = (None, None);
        if let Some(settings) = &settings {
            own_theta = settings.number_if_any("rope_theta", 1.0)?;
            own_share = settings.number_if_any("partial_rotary_factor", 0.0)?;
        }
        let share = own_share.or(outer).unwrap_or(1.0);
        let width = (self.head_dim as f64 * share) as usize;
        if width == 0 || width > self.head_dim || !width.is_multiple_of(2) {
            let expected = "an even part of the head";
            return Err(keys.refuse("head_dim · partial_rotary_factor", width, expected));
        }
        let scaling = match settings {
            Some(settings) => {
                let scaling = self.scaling(keys, &settings, width)?;
                settings.refuse_others()?;
                scaling
            }
            None => RopeScaling::Default,
        };
        Ok(RopeSpec {
            width,
            theta: own_theta.or(theta).unwrap_or(DEFAULT_THETA),
            scaling,
        })
    }

    fn scaling(
        &self,
        keys: &Keys<'_>,
        settings: &Keys<'_>,
        width: usize,
    ) -> Result<RopeScaling, ConfigError> {
        let kind = settings.text("rope_type")?;
        let kind = kind.or(settings.text("type")?).unwrap_or("default");
        match kind {
            "default" | "mrope" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear {
                factor: settings.number("factor", 0.0)?,
            }),
            "llama3" => {
                let low = settings.number("low_freq_factor", 0.0)?;
                Ok(RopeScaling::Llama3 {
                    factor: settings.number("factor", 0.0)?,
                    low_freq_factor: low,
                    high_freq_factor: settings.number("high_freq_factor", low)?,
                    original_context: settings.number("original_max_position_embeddings", 0.0)?,
                })
            }
            "yarn" => self.yarn(settings),
            "longrope" | "su" => self.long(keys, settings, width),
            other => {
                let expected = "default, linear, llama3, yarn, longrope or su";
                Err(settings.refuse("rope_type", format!("{other:?}"), expected))
            }
        }
    }

    fn yarn(&self, settings: &Keys<'_>) -> Result<RopeScaling, ConfigError> {
        let factor = settings.number("factor", 0.0)?;
        let shares = [yarn_share(settings, "mscale")?, all_dim_share(settings)?];
        let lengthening = match (settings.number_if_any("attention_factor", 0.0)?, shares) {
            (Some(given), _) => given,
            (None, [Some(one), Some(all)]) => yarn_length(factor, one) / yarn_length(factor, all),
            (None, _) => yarn_length(factor, 1.0),
        };
        let original = settings.number_if_any("original_max_position_embeddings", 0.0)?;
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: settings.number_if_any("beta_fast", 0.0)?.unwrap_or(32.0),
            beta_slow: settings.number_if_any("beta_slow", 0.0)?.unwrap_or(1.0),
            original_context: original.unwrap_or(self.context as f64),
            whole: settings.flag_if_any("truncate")?.unwrap_or(true),
            lengthening,
        })
    }

    fn long(
        &self,
        keys: &Keys<'_>,
        settings: &Keys<'_>,
        width: usize,
    ) -> Result<RopeScaling, ConfigError> {
        let divisors = |key: &str| match settings.numbers_if_any(key)? {
            Some(found) if found.len() == width / 2 => Ok(found),
            other => {
                let found = format!("{} numbers", other.map_or(0, |found| found.len()));
                Err(settings.refuse(key, found, format!("{} numbers", width / 2)))
            }
        };
        let outer = keys.size_if_any("original_max_position_embeddings")?;
        let inner = settings.size_if_any("original_max_position_embeddings")?;
        let original = outer.or(inner).unwrap_or(self.context);
        let factor = match (outer, settings.number_if_any("factor", 0.0)?) {
            (None, Some(given)) => given,
            _ => self.context as f64 / original as f64,
        };
        let usual = if factor > 1.0 {
            (1.0 + factor.ln() / (original as f64).ln()).sqrt()
        } else {
            1.0
        };
        let usual = settings
            .number_if_any("attention_factor", 0.0)?
            .unwrap_or(usual);
        let lengthening = [
            settings
                .number_if_any("short_mscale", 0.0)?
                .unwrap_or(usual),
            settings.number_if_any("long_mscale", 0.0)?.unwrap_or(usual),
        ];
        Ok(RopeScaling::Long {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original_context: original,
            lengthening,
        })
    }
}

/// How much longer vectors get where YaRN stretches by `factor`, weighed by `share`.
pub(super) fn yarn_length(factor: f64, share: f64) -> f64 {
    if factor > 1.0 {
        0.1 * share * factor.ln() + 1.0
    } else {
        1.0
    }
}

/// The share by which YaRN lengthens all elements of queries and keys; 0 means none.
pub(super) fn all_dim_share(settings: &Keys<'_>) -> Result<Option<f64>, ConfigError> {
    yarn_share(settings, "mscale_all_dim")
}

fn yarn_share(settings: &Keys<'_>, key: &str) -> Result<Option<f64>, ConfigError> {
    Ok(settings
        .number_from(key, 0.0)?
        .filter(|share| *share != 0.0))
}

/// The MLP within `prefix` whose gate, up and down have these names.
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
        widening: Widening::Gated {
            gate: matrix(gate, ffn, hidden),
            up: matrix(up, ffn, hidden),
        },
        down: matrix(down, hidden, ffn),
        ffn,
        activation,
        input: format!("{prefix}.in"),
        inner: format!("{prefix}.down_in"),
    }
}

/// Expert `index` of those within `prefix`, whose gate, up and down have these names.
pub(super) fn expert(
    prefix: &str,
    index: usize,
    names: [&str; 3],
    sides: [usize; 2],
    activation: Activation,
) -> MlpSpec {
    MlpSpec {
        input: format!("experts.{index}.in"),
        inner: format!("experts.{index}.down_in"),
        ..gated(
            &format!("{prefix}.{index}"),
            names,
            sides,
            activation,
            false,
        )
    }
}

/// Expert `index` of `count` whose matrices lie in one tensor each for all experts: `tensors` names that of gate
/// and up, `[count, 2 · ffn, hidden]`, and that of down, `[count, hidden, ffn]`.
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
        widening: Widening::GatedStacked(slice(tensors[0], 2 * ffn, hidden)),
        down: slice(tensors[1], hidden, ffn),
        ffn,
        activation,
        input: format!("experts.{index}.in"),
        inner: format!("experts.{index}.down_in"),
    }
}

pub(super) fn norm(name: &str, kind: NormKind, width: usize, eps: f64) -> NormSpec {
    NormSpec {
        name: name.into(),
        kind,
        width,
        eps,
    }
}
