//! One layer: its blocks one after another (or side by side), each added to the residual stream.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::experts::Experts;
use super::latent_attention::LatentAttention;
use super::linear::Tap;
use super::mamba2::Mamba2;
use super::mlp::Mlp;
use super::norm::Norm;
use super::self_attention::SelfAttention;
use super::state_space::StateSpace;
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
    pub(super) before: Option<Norm<B>>,
    pub(super) mixing: Mixing<B>,
    pub(super) after: Option<Norm<B>>,
}

/// The weights of a block's computation.
pub(super) enum Mixing<B: Backend> {
    Attention(SelfAttention<B>),
    LatentAttention(LatentAttention<B>),
    Mlp(Mlp<B>),
    Experts(Experts<B>),
    StateSpace(StateSpace<B>),
    Mamba2(Mamba2<B>),
}

impl<'a, B: Backend, W: Weights<B>> Layer<'a, B, W> {
    /// Builds a layer from its weights, for windows of `length` tokens. `weights` is asked for the tensors of
    /// the layer's plan by their names within the layer; for those of experts later, by
    /// [`Layer::forward`].
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
            let before = norm(&spec.before).transpose()?;
            let mixing = match &spec.mixer {
                Mixer::Attention(spec) => {
                    Mixing::Attention(SelfAttention::new(spec, length, weights, device)?)
                }
                Mixer::LatentAttention(spec) => {
                    Mixing::LatentAttention(LatentAttention::new(spec, length, weights, device)?)
                }
                Mixer::Mlp(spec) => Mixing::Mlp(Mlp::new(spec, weights)?),
                Mixer::Experts(spec) => Mixing::Experts(Experts::new(spec, weights)?),
                Mixer::Mamba(spec) => Mixing::StateSpace(StateSpace::new(spec, weights)?),
                Mixer::Mamba2(spec) => Mixing::Mamba2(Mamba2::new(spec, weights)?),
            };
            Ok(Block {
                before,
                mixing,
                after: norm(&spec.after).transpose()?,
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

    /// Where the layer computes.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// The layer applied to `hidden: [windows, length, hidden]`; same shape. Every input and output of a
    /// linear passes through `tap`.
    ///
    /// # Errors
    /// What the weights return for an expert.
    ///
    /// # Panics
    /// If `hidden` has another length or width than the layer.
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        tap: &mut dyn Tap<B>,
    ) -> Result<Tensor<B, 3>, W::Error> {
        let [windows, length, width] = hidden.dims();
        assert_eq!(length, self.length, "tokens of a window");
        let input: Tensor<B, 2> = hidden.reshape([windows * length, width]);
        let mut sum = input.clone();
        for (spec, block) in self.spec.blocks.iter().zip(&self.blocks) {
            let x = match self.spec.parallel {
                true => input.clone(),
                false => sum.clone(),
            };
            let added = block.forward(spec, x, [windows, length], self.weights, tap)?;
            sum = spec.add(added, sum);
        }
        Ok(sum.reshape([windows, length, width]))
    }
}

impl BlockSpec {
    /// What the block makes, as it counts in the residual stream.
    pub(super) fn scaled<B: Backend>(&self, made: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.scale {
            1.0 => made,
            scale => made * scale,
        }
    }

    /// The residual stream with what the block made.
    pub(super) fn add<B: Backend>(&self, made: Tensor<B, 2>, stream: Tensor<B, 2>) -> Tensor<B, 2> {
        self.scaled(made) + stream
    }
}

impl<B: Backend> Block<B> {
    pub(super) fn forward<W: Weights<B>>(
        &self,
        spec: &BlockSpec,
        x: Tensor<B, 2>,
        sides: [usize; 2],
        weights: &W,
        tap: &mut dyn Tap<B>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let x = Norm::or_not(&self.before, x);
        let y = match (&self.mixing, &spec.mixer) {
            (Mixing::Attention(own), Mixer::Attention(spec)) => own.forward(spec, x, sides, tap),
            (Mixing::LatentAttention(own), Mixer::LatentAttention(spec)) => {
                own.forward(spec, x, sides, tap)
            }
            (Mixing::Mlp(own), Mixer::Mlp(spec)) => own.forward(spec, x, None, tap),
            (Mixing::Experts(own), Mixer::Experts(spec)) => own.forward(spec, x, weights, tap)?,
            (Mixing::StateSpace(own), Mixer::Mamba(spec)) => own.forward(spec, x, sides, tap),
            (Mixing::Mamba2(own), Mixer::Mamba2(spec)) => own.forward(spec, x, sides, tap),
            _ => unreachable!("a block was built from its own description"),
        };
        Ok(Norm::or_not(&self.after, y))
    }
}
