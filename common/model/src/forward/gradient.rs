//! The backward pass of a layer, block by block and expert by expert.
//!
//! The graph of a whole layer would hold the weights of every expert to which a token of the batch came. So the inputs
//! of the blocks are computed first, without a graph; then, from the last block to the first, each is computed once
//! more with its graph recorded and left (Chen et al. 2016, "Training deep nets with sublinear memory cost"), and in a
//! mixture of experts each expert for itself.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{IndexingUpdateOp, Tensor};

use super::experts::Experts;
use super::layer::{Block, Layer, Mixing};
use super::linear::{NoTap, Tap};
use super::mlp::Mlp;
use super::norm::Norm;
use super::routing::indices;
use super::weights::Weights;
use crate::spec::{BlockSpec, ExpertsSpec, Mixer};

/// What passed in a part of a layer (a block without its experts, or an expert) and the gradients there.
#[derive(Debug)]
pub struct Traced<B: Backend> {
    /// The inputs of its linears by name.
    pub inputs: BTreeMap<String, Passed<B>>,
    /// By weight: the gradient by the outputs of the linear, `[tokens, rows]`.
    pub outputs: BTreeMap<String, Tensor<B, 2>>,
}

/// An input `[tokens, width]`, and which tokens these are where not all of them pass.
pub type Passed<B> = (Tensor<B, 2>, Option<Vec<usize>>);

/// Told of every part of a layer.
pub type OnTraced<'a, B, E> = &'a mut dyn FnMut(Traced<B>) -> Result<(), E>;

impl<B: Backend, W: Weights<Autodiff<B>>> Layer<'_, Autodiff<B>, W> {
    /// The gradient of `sum(layer(hidden) · above)` by `hidden`, all `[windows, length, hidden]`. What passes in the
    /// layer's parts is shown to `traced` as soon as it is known, from the last block to the first.
    ///
    /// # Errors
    /// What the weights return for an expert, and what `traced` returns.
    ///
    /// # Panics
    /// If `hidden` has another length or width than the layer, or `above` another shape than `hidden`.
    pub fn gradient(
        &self,
        hidden: Tensor<B, 3>,
        above: Tensor<B, 3>,
        traced: OnTraced<'_, B, W::Error>,
    ) -> Result<Tensor<B, 3>, W::Error> {
        let [windows, length, width] = hidden.dims();
        assert_eq!(length, self.length, "tokens of a window");
        let sides = [windows, length];
        let rows = |x: Tensor<B, 3>| x.reshape([windows * length, width]);
        let (input, above) = (rows(hidden), rows(above));
        let blocks = self.spec.blocks.iter().zip(&self.blocks);

        let mut inputs = vec![input];
        if !self.spec.parallel {
            for (spec, block) in blocks.clone().take(self.blocks.len().saturating_sub(1)) {
                let x = inputs[inputs.len() - 1].clone();
                let plain = Tensor::from_inner(x.clone());
                let added = block.forward(spec, plain, sides, self.weights, &mut NoTap)?;
                inputs.push(spec.add(added.inner(), x));
            }
        }
        let mut sum = above.clone();
        for (place, (spec, block)) in blocks.enumerate().rev() {
            let (x, above) = match self.spec.parallel {
                true => (&inputs[0], &above),
                false => (&inputs[place], &sum),
            };
            let scaled = spec.scaled(above.clone());
            let own = block.gradient(spec, x.clone(), scaled, sides, self.weights, traced)?;
            sum = sum + own;
        }
        Ok(sum.reshape([windows, length, width]))
    }
}

impl<B: Backend> Block<Autodiff<B>> {
    /// The gradient of `sum(block(x) · above)` by `x`, all `[tokens, hidden]`.
    fn gradient<W: Weights<Autodiff<B>>>(
        &self,
        spec: &BlockSpec,
        x: Tensor<B, 2>,
        above: Tensor<B, 2>,
        sides: [usize; 2],
        weights: &W,
        traced: OnTraced<'_, B, W::Error>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let x = Tensor::from_inner(x).require_grad();
        let mut taps = Taps::default();
        let part = match (&self.mixing, &spec.mixer) {
            (Mixing::Experts(own), Mixer::Experts(spec)) => {
                let normed = Norm::or_not(&self.before, x.clone());
                let above = match &self.after {
                    None => above,
                    Some(norm) => {
                        let plain = Tensor::from_inner(normed.clone().inner());
                        let y = own.forward(spec, plain, weights, &mut NoTap)?;
                        let y = Tensor::from_inner(y.inner()).require_grad();
                        let gradients = dot(norm.forward(y.clone()), above).backward();
                        gradient_of(&y, &gradients)
                    }
                };
                own.trace(spec, normed, above, weights, &mut taps, traced)?
            }
            _ => dot(
                self.forward(spec, x.clone(), sides, weights, &mut taps)?,
                above,
            ),
        };
        let gradients = part.backward();
        traced(taps.traced(&gradients))?;
        Ok(gradient_of(&x, &gradients))
    }
}

impl<B: Backend> Experts<Autodiff<B>> {
    /// A number whose gradient by what `x` depends on is that of `sum(experts(x) · above)`, `x: [tokens, hidden]`.
    /// Every expert is computed here, traced and left.
    fn trace<W: Weights<Autodiff<B>>>(
        &self,
        spec: &ExpertsSpec,
        x: Tensor<Autodiff<B>, 2>,
        above: Tensor<B, 2>,
        weights: &W,
        taps: &mut Taps<Autodiff<B>>,
        traced: OnTraced<'_, B, W::Error>,
    ) -> Result<Tensor<Autodiff<B>, 1>, W::Error> {
        let plain = x.clone().inner();
        let device = plain.device();
        let (places, factors) = self.route(spec, x.clone());
        let known = factors.clone().inner();
        let mut by_x = plain.zeros_like();
        let mut by_factors = known.zeros_like();
        for (expert, places) in spec.experts.iter().zip(places) {
            if places.is_empty() {
                continue;
            }
            let own: Vec<usize> = places.iter().map(|place| place / spec.chosen).collect();
            let rows = indices::<B>(&own, &device);
            let places = indices::<B>(&places, &device);
            let mlp = Mlp::new(expert, weights)?;
            let input = Tensor::from_inner(plain.clone().select(0, rows.clone())).require_grad();
            let above = above.clone().select(0, rows.clone());
            let factor = known.clone().select(0, places.clone());
            let mut taps = Taps::default();
            let out = mlp.forward(expert, input.clone(), Some(&own), &mut taps);
            let of_factor = (out.clone().inner() * above.clone()).sum_dim(1);
            let gradients = dot(out, above * factor).backward();
            traced(taps.traced(&gradients))?;
            let found = gradient_of(&input, &gradients);
            by_x = by_x.select_assign(0, rows, found, IndexingUpdateOp::Add);
            by_factors = by_factors.select_assign(0, places, of_factor, IndexingUpdateOp::Add);
        }
        let mut sum = dot(factors, by_factors) + dot(x.clone(), by_x);
        if let (Some(own), Some(spec)) = (&self.shared, &spec.shared) {
            sum = sum + dot(own.forward(spec, x, None, taps), above);
        }
        Ok(sum)
    }
}

/// Keeps every input with the tokens that it has, and adds to every output a zero whose gradient is asked for
/// afterwards.
struct Taps<B: AutodiffBackend> {
    inputs: BTreeMap<String, Passed<B::InnerBackend>>,
    outputs: BTreeMap<String, Tensor<B, 2>>,
}

impl<B: AutodiffBackend> Default for Taps<B> {
    fn default() -> Self {
        Taps {
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
        }
    }
}

impl<B: AutodiffBackend> Tap<B> for Taps<B> {
    fn input(&mut self, name: &str, x: &Tensor<B, 2>, tokens: Option<&[usize]>) {
        let tokens = tokens.map(<[usize]>::to_vec);
        self.inputs
            .insert(name.to_owned(), (x.clone().inner(), tokens));
    }

    fn output(&mut self, weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let zero = Tensor::zeros(y.dims(), &y.device()).require_grad();
        self.outputs.insert(weight.to_owned(), zero.clone());
        y + zero
    }
}

impl<B: AutodiffBackend> Taps<B> {
    fn traced(self, gradients: &B::Gradients) -> Traced<B::InnerBackend> {
        let outputs = self.outputs.into_iter();
        Traced {
            inputs: self.inputs,
            outputs: outputs
                .map(|(name, zero)| (name, gradient_of(&zero, gradients)))
                .collect(),
        }
    }
}

/// `sum(y · above)`.
fn dot<B: Backend>(y: Tensor<Autodiff<B>, 2>, above: Tensor<B, 2>) -> Tensor<Autodiff<B>, 1> {
    (y * Tensor::from_inner(above)).sum()
}

/// The gradient by a tensor; zero where nothing depends on it.
fn gradient_of<B: AutodiffBackend>(
    tensor: &Tensor<B, 2>,
    gradients: &B::Gradients,
) -> Tensor<B::InnerBackend, 2> {
    let found = tensor.grad(gradients);
    found.unwrap_or_else(|| tensor.clone().inner().zeros_like())
}
