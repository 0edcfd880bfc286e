//! One layer: its blocks, in sequence or in parallel, each added to the residual stream.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::experts::Experts;
use super::latent_attention::LatentAttention;
use super::linear::ActivationObserver;
use super::mamba::Mamba;
use super::mamba2::Mamba2;
use super::mlp::Mlp;
use super::norm::Norm;
use super::self_attention::SelfAttention;
use super::weights::Weights;
use crate::spec::{BlockSpec, LayerSpec, Mixer};

/// A layer with its weights, for windows of one length.
pub struct Layer<'a, B: Backend, W: Weights<B>> {
    pub(super) spec: &'a LayerSpec,
    pub(super) weights: &'a W,
    pub(super) length: usize,
    device: B::Device,
    pub(super) blocks: Vec<Block<B>>,
}

/// A block with its weights.
pub(super) struct Block<B: Backend> {
    pub(super) pre_norm: Option<Norm<B>>,
    pub(super) mixer: MixerWeights<B>,
    pub(super) post_norm: Option<Norm<B>>,
}

/// The weights of a block's mixer.
pub(super) enum MixerWeights<B: Backend> {
    Attention(SelfAttention<B>),
    LatentAttention(LatentAttention<B>),
    Mlp(Mlp<B>),
    Experts(Experts<B>),
    Mamba(Mamba<B>),
    Mamba2(Mamba2<B>),
}

impl<'a, B: Backend, W: Weights<B>> Layer<'a, B, W> {
    /// Builds a layer for windows of `length` tokens. Tensors are requested from `weights` by their names
    /// within the layer; those of routed experts only later, by [`Layer::forward`].
    ///
    /// # Errors
    /// What `weights` returns.
    pub fn new(
        spec: &'a LayerSpec,
        length: usize,
        weights: &'a W,
        device: &B::Device,
    ) -> Result<Self, W::Error> {
        let block = |spec: &BlockSpec| -> Result<Block<B>, W::Error> {
            let norm = |norm: &Option<_>| norm.as_ref().map(|norm| Norm::new(norm, weights));
            let pre_norm = norm(&spec.pre_norm).transpose()?;
            let mixer = match &spec.mixer {
                Mixer::Attention(spec) => {
                    MixerWeights::Attention(SelfAttention::new(spec, length, weights, device)?)
                }
                Mixer::LatentAttention(spec) => MixerWeights::LatentAttention(
                    LatentAttention::new(spec, length, weights, device)?,
                ),
                Mixer::Mlp(spec) => MixerWeights::Mlp(Mlp::new(spec, weights)?),
                Mixer::Experts(spec) => MixerWeights::Experts(Experts::new(spec, weights)?),
                Mixer::Mamba(spec) => MixerWeights::Mamba(Mamba::new(spec, weights)?),
                Mixer::Mamba2(spec) => MixerWeights::Mamba2(Mamba2::new(spec, weights)?),
            };
            Ok(Block {
                pre_norm,
                mixer,
                post_norm: norm(&spec.post_norm).transpose()?,
            })
        };
        Ok(Layer {
            spec,
            weights,
            length,
            device: device.clone(),
            blocks: spec.blocks.iter().map(block).collect::<Result<_, _>>()?,
        })
    }

    /// The device that the layer computes on.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Applies the layer to `hidden: [windows, length, hidden]`; the result has the same shape. `observer`
    /// sees the input and the output of every linear.
    ///
    /// # Errors
    /// What the weights return for an expert.
    ///
    /// # Panics
    /// If `hidden` has another length or width than the layer.
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        observer: &mut dyn ActivationObserver<B>,
    ) -> Result<Tensor<B, 3>, W::Error> {
        let [windows, length, width] = hidden.dims();
        assert_eq!(length, self.length, "tokens of a window");
        let input: Tensor<B, 2> = hidden.reshape([windows * length, width]);
        let mut residual = input.clone();
        for (spec, block) in self.spec.blocks.iter().zip(&self.blocks) {
            let x = match self.spec.parallel {
                true => input.clone(),
                false => residual.clone(),
            };
            let output = block.forward(spec, x, [windows, length], self.weights, observer)?;
            residual = spec.add(output, residual);
        }
        Ok(residual.reshape([windows, length, width]))
    }
}

impl BlockSpec {
    /// The block's output times the scale with which it is added to the residual stream.
    pub(super) fn scaled<B: Backend>(&self, output: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.scale {
            1.0 => output,
            scale => output * scale,
        }
    }

    /// The residual stream plus the scaled output of the block.
    pub(super) fn add<B: Backend>(
        &self,
        output: Tensor<B, 2>,
        residual: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        self.scaled(output) + residual
    }
}

impl<B: Backend> Block<B> {
    pub(super) fn forward<W: Weights<B>>(
        &self,
        spec: &BlockSpec,
        x: Tensor<B, 2>,
        dims: [usize; 2],
        weights: &W,
        observer: &mut dyn ActivationObserver<B>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let x = Norm::apply_optional(&self.pre_norm, x);
        let y = match (&self.mixer, &spec.mixer) {
            (MixerWeights::Attention(mixer), Mixer::Attention(spec)) => {
                mixer.forward(spec, x, dims, observer)
            }
            (MixerWeights::LatentAttention(mixer), Mixer::LatentAttention(spec)) => {
                mixer.forward(spec, x, dims, observer)
            }
            (MixerWeights::Mlp(mixer), Mixer::Mlp(spec)) => mixer.forward(spec, x, None, observer),
            (MixerWeights::Experts(mixer), Mixer::Experts(spec)) => {
                mixer.forward(spec, x, weights, observer)?
            }
            (MixerWeights::Mamba(mixer), Mixer::Mamba(spec)) => {
                mixer.forward(spec, x, dims, observer)
            }
            (MixerWeights::Mamba2(mixer), Mixer::Mamba2(spec)) => {
                mixer.forward(spec, x, dims, observer)
            }
            _ => unreachable!("a block is built from its own spec"),
        };
        Ok(Norm::apply_optional(&self.post_norm, y))
    }
}
