//! One layer: its blocks, in sequence or in parallel, each added to the residual stream.

use std::sync::Arc;

use uc_model::rope::RopeSpec;
use uc_model::spec::{BlockSpec, LayerSpec, Mixer};

use crate::attention::{Attention, Span};
use crate::cache::{KvCache, Precision};
use crate::error::InferError;
use crate::experts::Experts;
use crate::latent::LatentAttention;
use crate::linear::Linear;
use crate::mamba::{Mamba, Mamba2};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::sequence::State;
use crate::source::Source;
use crate::tasks::for_parts;

/// A layer with its weights.
#[derive(Debug)]
pub(crate) struct Layer {
    parallel: bool,
    pub(crate) blocks: Vec<Block>,
}

/// A block with its weights.
#[derive(Debug)]
pub(crate) struct Block {
    pre_norm: Option<Norm>,
    mixer: MixerWeights,
    post_norm: Option<Norm>,
    scale: f32,
}

/// The weights of a block's mixer.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has a few hundred blocks"
)]
enum MixerWeights {
    Attention(Attention),
    LatentAttention(LatentAttention),
    Mlp(Mlp),
    Experts(Experts),
    Mamba(Mamba),
    Mamba2(Mamba2),
}

/// The rotary embedding of a mixer, if it has one.
pub(crate) fn rope_of(mixer: &Mixer) -> Option<&RopeSpec> {
    match mixer {
        Mixer::Attention(spec) => spec.rope.as_ref(),
        Mixer::LatentAttention(spec) => Some(&spec.rope),
        _ => None,
    }
}

impl Layer {
    /// `ropes` are the rotary embeddings of the model, each once.
    pub(crate) fn new(
        spec: &LayerSpec,
        ropes: &[RopeSpec],
        source: &dyn Source,
    ) -> Result<Self, InferError> {
        let blocks = spec.blocks.iter();
        Ok(Layer {
            parallel: spec.parallel,
            blocks: blocks
                .map(|block| Block::new(block, ropes, source))
                .collect::<Result<_, _>>()?,
        })
    }

    /// `hidden: [tokens, hidden]` to the same shape; `spans` gives, for every block, the parts of the sequences.
    pub(crate) fn forward(&self, hidden: &mut Vec<f32>, spans: &mut [Vec<Span<'_>>]) {
        let input = match self.parallel {
            true => Some(hidden.clone()),
            false => None,
        };
        for (block, spans) in self.blocks.iter().zip(spans) {
            let output = block.forward(input.as_ref().unwrap_or(hidden), spans);
            for_parts(hidden, 1, |first, hidden| {
                let sums = hidden.iter_mut().zip(&output[first..]);
                sums.for_each(|(hidden, output)| *hidden += output * block.scale);
            });
        }
    }
}

impl Block {
    fn new(spec: &BlockSpec, ropes: &[RopeSpec], source: &dyn Source) -> Result<Self, InferError> {
        let norm = |norm: &Option<_>| norm.as_ref().map(|norm| Norm::new(norm, source));
        let rope = rope_of(&spec.mixer);
        let rope = rope.and_then(|rope| ropes.iter().position(|known| known == rope));
        let pre_norm = norm(&spec.pre_norm).transpose()?;
        let mixer = match &spec.mixer {
            Mixer::Attention(spec) => MixerWeights::Attention(Attention::new(spec, rope, source)?),
            Mixer::LatentAttention(spec) => MixerWeights::LatentAttention(LatentAttention::new(
                spec,
                rope.expect("the model lists every rotary embedding"),
                source,
            )?),
            Mixer::Mlp(spec) => MixerWeights::Mlp(Mlp::new(spec, source)?),
            Mixer::Experts(spec) => MixerWeights::Experts(Experts::new(spec, source)?),
            Mixer::Mamba(spec) => MixerWeights::Mamba(Mamba::new(spec, source)?),
            Mixer::Mamba2(spec) => MixerWeights::Mamba2(Mamba2::new(spec, source)?),
        };
        Ok(Block {
            pre_norm,
            mixer,
            post_norm: norm(&spec.post_norm).transpose()?,
            scale: spec.scale as f32,
        })
    }

    fn forward(&self, x: &[f32], spans: &mut [Span<'_>]) -> Vec<f32> {
        let normed = self.pre_norm.as_ref().map(|norm| {
            let mut normed = x.to_vec();
            norm.apply(&mut normed);
            normed
        });
        let x = normed.as_deref().unwrap_or(x);
        let mut y = match &self.mixer {
            MixerWeights::Attention(mixer) => mixer.forward(x, spans),
            MixerWeights::LatentAttention(mixer) => mixer.forward(x, spans),
            MixerWeights::Mlp(mixer) => mixer.forward(x),
            MixerWeights::Experts(mixer) => mixer.forward(x),
            MixerWeights::Mamba(mixer) => mixer.forward(x, spans),
            MixerWeights::Mamba2(mixer) => mixer.forward(x, spans),
        };
        if let Some(norm) = &self.post_norm {
            norm.apply(&mut y);
        }
        y
    }

    /// The state of the block before the first token.
    pub(crate) fn empty_state(&self, precision: Precision) -> State {
        let heads = match &self.mixer {
            MixerWeights::Attention(mixer) => mixer.heads,
            MixerWeights::LatentAttention(mixer) => mixer.heads,
            MixerWeights::Mamba(mixer) => return State::Scan(Arc::new(mixer.empty_state())),
            MixerWeights::Mamba2(mixer) => return State::Scan(Arc::new(mixer.empty_state())),
            MixerWeights::Mlp(_) | MixerWeights::Experts(_) => return State::None,
        };
        State::Cache(KvCache::new(precision, heads.layout, heads.window))
    }

    /// The mixture of experts, if the block is one.
    pub(crate) fn experts(&self) -> Option<&Experts> {
        match &self.mixer {
            MixerWeights::Experts(mixer) => Some(mixer),
            _ => None,
        }
    }

    /// All linears of the block.
    pub(crate) fn linears(&self) -> Vec<&Linear> {
        let mut linears = Vec::new();
        match &self.mixer {
            MixerWeights::Attention(mixer) => {
                linears.extend(&mixer.qkv);
                linears.push(&mixer.output);
            }
            MixerWeights::LatentAttention(mixer) => {
                linears.extend(mixer.q_a.as_ref().map(|latent| &latent.down));
                linears.extend([&mixer.q_b, &mixer.kv_a.down, &mixer.kv_b, &mixer.output]);
            }
            MixerWeights::Mlp(mlp) => linears.extend(mlp.linears()),
            MixerWeights::Experts(mixer) => {
                linears.push(&mixer.router);
                linears.extend(mixer.expert_linears());
                linears.extend(mixer.shared_linears());
            }
            MixerWeights::Mamba(mixer) => {
                linears.extend([
                    &mixer.in_proj,
                    &mixer.x_proj,
                    &mixer.dt_proj,
                    &mixer.out_proj,
                ]);
            }
            MixerWeights::Mamba2(mixer) => linears.extend([&mixer.in_proj, &mixer.out_proj]),
        }
        linears
    }
}
