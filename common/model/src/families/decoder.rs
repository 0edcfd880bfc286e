//! What most families share: dimensions, attention, and the usual tensor names of a decoder.

use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::rope::RopeSpec;
use crate::spec::{
    AttentionSpec, BlockSpec, EmbeddingSpec, HeadSpec, LayerSpec, Mixer, NormKind, NormSpec,
    Projection, QkvSpec,
};

/// Whether a family ties its head to the embedding if the file does not say (`tie_word_embeddings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TieDefault {
    /// The head is tied.
    Tied,
    /// The head has a matrix of its own.
    Untied,
}

impl TieDefault {
    /// Whether the head is tied to the embedding.
    pub(super) fn read(self, keys: &Keys<'_>) -> Result<bool, ConfigError> {
        let tied = keys.optional_flag("tie_word_embeddings")?;
        Ok(tied.unwrap_or(self == TieDefault::Tied))
    }
}

/// Dimensions under the keys that most families use.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecoderDims {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Intermediate dimension of the MLP.
    pub(super) ffn: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
    /// Epsilon of the RMS norms.
    pub(super) eps: f64,
}

impl DecoderDims {
    /// Reads the dimensions; `head_dim` defaults to `hidden_size / num_attention_heads`.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self, ConfigError> {
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let head_dim = match keys.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads, {heads}");
                return Err(keys.invalid("hidden_size", hidden, expected));
            }
        };
        DecoderDims::with_head_dim(keys, head_dim)
    }

    /// Reads the dimensions of a family that gives `head_dim` under another key.
    pub(super) fn with_head_dim(keys: &Keys<'_>, head_dim: usize) -> Result<Self, ConfigError> {
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let kv_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(keys.invalid("num_key_value_heads", kv_heads, expected));
        }
        keys.product("num_attention_heads · head_dim", [heads, head_dim])?;
        Ok(DecoderDims {
            hidden,
            layers: keys.layers("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            ffn: keys.size("intermediate_size")?,
            vocab: keys.size("vocab_size")?,
            context: keys
                .optional_size("max_position_embeddings")?
                .unwrap_or(2048),
            eps: keys
                .optional_number_above("rms_norm_eps", 0.0)?
                .unwrap_or(1e-6),
        })
    }

    /// An RMS norm over the residual stream.
    pub(super) fn rms(&self, name: &str) -> NormSpec {
        norm(name, NormKind::Rms, self.hidden, self.eps)
    }

    /// Attention with `self_attn.{q,k,v,o}_proj`. `biases` specifies whether q, k and v have a bias,
    /// and whether o has one.
    pub(super) fn attention(&self, biases: [bool; 2], rope: RopeSpec) -> AttentionSpec {
        let q_width = self.heads * self.head_dim;
        let kv_width = self.kv_heads * self.head_dim;
        let qkv_bias = biases[0];
        let projection = |part: &str, rows| {
            let name = format!("self_attn.{part}_proj");
            Projection::new(name, rows, self.hidden, qkv_bias)
        };
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            qkv: QkvSpec::Separate {
                q: projection("q", q_width),
                k: projection("k", kv_width),
                v: projection("v", kv_width),
            },
            output: Projection::new("self_attn.o_proj", self.hidden, q_width, biases[1]),
            qk_norm: None,
            rope: Some(rope),
            window: None,
            scale: (self.head_dim as f64).sqrt().recip(),
            softcap: None,
        }
    }

    /// The usual two blocks, behind the norms `input_layernorm` and `post_attention_layernorm`.
    pub(super) fn blocks(&self, attention: Mixer, mlp: Mixer) -> Vec<BlockSpec> {
        vec![
            BlockSpec::new(self.rms("input_layernorm"), attention),
            BlockSpec::new(self.rms("post_attention_layernorm"), mlp),
        ]
    }

    /// The model with embedding `model.embed_tokens`, layers `model.layers.N.`, final norm `model.norm`
    /// and head `lm_head`. `blocks` gives the blocks of a layer by its index.
    pub(super) fn model(
        &self,
        keys: &Keys<'_>,
        tied: TieDefault,
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
            family: keys
                .optional_string("model_type")?
                .unwrap_or_default()
                .to_owned(),
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
            ignored_prefixes: Vec::new(),
        })
    }

    /// The sliding window of every layer: `sliding_window` for the layers that `layer_types` or, without
    /// it, `is_sliding` selects; `None` for the others.
    pub(super) fn windows(
        &self,
        keys: &Keys<'_>,
        is_sliding: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>, ConfigError> {
        let window = keys.optional_size("sliding_window")?;
        let types = keys.optional_strings("layer_types")?;
        let is_sliding = |layer: usize| match &types {
            None => Ok(is_sliding(layer)),
            Some(types) => match types.get(layer).copied() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                other => {
                    let expected = "sliding_attention or full_attention for every layer";
                    Err(keys.invalid("layer_types", format!("{other:?}"), expected))
                }
            },
        };
        (0..self.layers)
            .map(|layer| Ok(if is_sliding(layer)? { window } else { None }))
            .collect()
    }
}

/// A norm of any kind.
pub(super) fn norm(name: &str, kind: NormKind, width: usize, eps: f64) -> NormSpec {
    NormSpec {
        name: name.into(),
        kind,
        width,
        eps,
    }
}
