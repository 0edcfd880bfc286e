//! Second moments at the inputs of a layer's linears, accumulated while the layer runs.
//!
//! Moments of inputs that every token reaches are accumulated in memory. Rows that are routed to an expert are spilled
//! to disk until all tokens have been processed, because the moments of all experts together would not fit in memory.
//! If an expert received fewer tokens than its input has dimensions, its moments are rank-deficient, and tokens with
//! the mean moment over all experts are added.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::Context;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use uc_model::forward::ActivationObserver;
use uc_model::moments::Moments;
use uc_model::{InputSpec, LayerPlan, ModelError, rows};
use uc_store::StoreError;
use uc_store::framed::Snapshot;
use uc_store::spill::Spill;
use uc_store::stream::Sums;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFileWriter, f32_bytes, to_f32};

use crate::kept::pass_moments;
use crate::states::activation_values;

/// Accumulates the second moments of the inputs of one layer.
pub struct InputMoments<'a> {
    plan: &'a LayerPlan,
    /// Inputs wider than this have block-diagonal moments.
    max_input_block: usize,
    /// Moments of the inputs that every token reaches.
    dense: BTreeMap<&'a str, Moments>,
    /// Rows of the inputs of experts; none in a layer without experts.
    spill: Option<Spill>,
    /// By input: the factor that scales the vector of each token of the pass.
    sqrt_weights: &'a BTreeMap<String, Vec<f32>>,
    /// Index of the batch's first token.
    first_token: usize,
    /// The first error of the batch; the callback of the layer cannot return it.
    outcome: anyhow::Result<()>,
}

/// Tokens that reached the inputs of experts.
#[derive(Debug, Default, PartialEq)]
pub struct ExpertTokens {
    /// By input.
    pub counts: BTreeMap<String, u64>,
    /// The inputs whose moments were completed with the mean over all experts.
    pub filled_up: Vec<String>,
}

impl<'a> InputMoments<'a> {
    /// Empty moments; rows of experts are spilled to `spill`, which a layer without experts does not need.
    pub fn new(
        plan: &'a LayerPlan,
        max_input_block: usize,
        sqrt_weights: &'a BTreeMap<String, Vec<f32>>,
        spill: Option<Spill>,
    ) -> Self {
        let dense = plan.inputs.iter().filter(|input| !input.routed);
        let dense = dense.map(|input| {
            let moments = Moments::new(input.width, input.width.min(max_input_block));
            (input.name.as_str(), moments)
        });
        InputMoments {
            plan,
            max_input_block,
            dense: dense.collect(),
            spill,
            sqrt_weights,
            first_token: 0,
            outcome: Ok(()),
        }
    }

    /// Sets the index of the first token of the batch that follows.
    pub fn begin_batch(&mut self, first_token: usize) {
        self.first_token = first_token;
    }

    /// The first error since the last call, if any.
    pub fn check_batch(&mut self) -> anyhow::Result<()> {
        std::mem::replace(&mut self.outcome, Ok(()))
    }

    /// Adds the rows `x: [tokens, width]` of the batch to an input; `tokens` are their indices within the batch if `x`
    /// does not contain all of its tokens.
    fn add<B: Backend>(
        &mut self,
        name: &str,
        x: Tensor<B, 2>,
        tokens: Option<&[usize]>,
    ) -> anyhow::Result<()> {
        let count = x.dims()[0];
        let x = match self.sqrt_weights.get(name) {
            None => x,
            Some(factors) => {
                let batch = &factors[self.first_token..];
                let factors = match tokens {
                    None => batch[..count].to_vec(),
                    Some(tokens) => tokens.iter().map(|&token| batch[token]).collect(),
                };
                rows::scaled(x, factors)
            }
        };
        match (self.dense.get_mut(name), &mut self.spill) {
            (Some(moments), _) => Ok(moments.add(x).map_err(ModelError::from)?),
            (None, Some(spill)) => Ok(spill.append(name, &f32_bytes(&activation_values(x)?))?),
            (None, None) => anyhow::bail!("the layer has an input {name} that its plan lacks"),
        }
    }

    /// The tensors that [`InputMoments::write`] writes: `<input>.second_moment` [n, block] for every input.
    pub fn decls(&self) -> Vec<TensorDecl> {
        let inputs = self.plan.inputs.iter();
        inputs
            .map(|input| {
                let name = format!("{}.second_moment", input.name);
                let block = input.width.min(self.max_input_block);
                TensorDecl::new(name, TensorDtype::F32, &[input.width, block])
            })
            .collect()
    }

    /// Appends the moments of every input to a file; returns the tokens of experts, if there are any.
    pub fn write<B: Backend>(
        mut self,
        file: &mut TensorFileWriter,
        device: &B::Device,
    ) -> anyhow::Result<Option<ExpertTokens>> {
        let mut pools = BTreeMap::new();
        let mut experts = ExpertTokens::default();
        for input in &self.plan.inputs {
            let mut moments = match self.dense.remove(input.name.as_str()) {
                Some(moments) => moments,
                None => self.spilled_moments::<B>(&[input], device)?,
            };
            if input.routed {
                experts.counts.insert(input.name.clone(), moments.count);
                let missing = (input.width as u64).saturating_sub(moments.count);
                if missing > 0 {
                    let pool = self.pooled_moments::<B>(input, &mut pools, device)?;
                    moments
                        .add_pseudo_tokens(missing, pool)
                        .map_err(ModelError::from)?;
                    experts.filled_up.push(input.name.clone());
                }
            }
            file.append_f32(&moments.finish().map_err(ModelError::from)?)?;
        }
        Ok(self.plan.has_experts().then_some(experts))
    }

    /// The moments pooled over the inputs that correspond to `input` in all experts, computed on first use.
    fn pooled_moments<'p, B: Backend>(
        &self,
        input: &'a InputSpec,
        pools: &'p mut BTreeMap<(&'a str, usize), Moments>,
        device: &B::Device,
    ) -> anyhow::Result<&'p Moments> {
        let key = (input.role(), input.width);
        match pools.entry(key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let corresponding: Vec<_> = (self.plan.inputs.iter())
                    .filter(|other| other.routed && (other.role(), other.width) == key)
                    .collect();
                Ok(entry.insert(self.spilled_moments::<B>(&corresponding, device)?))
            }
        }
    }

    /// The moments over the spilled rows of these inputs together.
    fn spilled_moments<B: Backend>(
        &self,
        inputs: &[&InputSpec],
        device: &B::Device,
    ) -> anyhow::Result<Moments> {
        let width = inputs[0].width;
        let mut moments = Moments::new(width, width.min(self.max_input_block));
        let spill = self.spill.as_ref().context("no input is routed")?;
        for input in inputs {
            for piece in spill.pieces(&input.name) {
                let values = to_f32(TensorDtype::F32, &piece?).expect("f32 is a float type");
                let rows = values.len() / width;
                let x = Tensor::<B, 2>::from_data(TensorData::new(values, [rows, width]), device);
                moments.add(x).map_err(ModelError::from)?;
            }
        }
        Ok(moments)
    }
}

impl Sums for InputMoments<'_> {
    fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        for moments in self.dense.values_mut() {
            pass_moments(moments, snapshot)?;
        }
        match &mut self.spill {
            Some(spill) => spill.pass_through(snapshot),
            None => Ok(()),
        }
    }
}

impl<B: Backend> ActivationObserver<B> for InputMoments<'_> {
    fn observe_input(&mut self, name: &str, x: &Tensor<B, 2>, tokens: Option<&[usize]>) {
        if self.outcome.is_ok() {
            self.outcome = self.add(name, x.clone(), tokens);
        }
    }
}
