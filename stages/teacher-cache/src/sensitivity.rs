//! Sensitivities of a layer's linears, accumulated during the backward pass.
//!
//! For every linear: the second moment of the gradients at its outputs, whole or in diagonal blocks, with tokens weighted by
//! the leverage of their input ([`crate::leverage`]). For every input: the Fisher weight of each token
//! ([`crate::token_weights`]).

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, ensure};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use uc_codec::factor::SHRINKAGE_BLOCK;
use uc_model::forward::PartTrace;
use uc_model::moments::Moments;
use uc_model::{LayerPlan, LinearSpec, ModelError, rows};
use uc_settings::Settings;
use uc_store::StoreError;
use uc_store::framed::Snapshot;
use uc_store::stream::Sums;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFileWriter};

use crate::kept::pass_moments;
use crate::leverage::LeverageScores;
use crate::token_weights::{fisher_weights, mixed_weights};

/// Sums of one layer over the tokens of the sensitivity pass.
pub struct LayerSensitivity {
    /// Share of the Fisher weight in the weight of a token.
    fisher_share: f64,
    /// Number of tokens.
    tokens: usize,
    /// Number of reference tokens. They come first, set the metrics of `leverage`, and are not in the moments.
    reference_tokens: usize,
    leverage: LeverageScores,
    /// By linear: moments of the gradients at its outputs, tokens weighted by the leverage of the input.
    output_moments: BTreeMap<String, Moments>,
    /// By input, `[tokens]`: squared gradient at the outputs of its linears; 0 for a token that does not reach the input.
    squares: BTreeMap<String, Vec<f32>>,
    /// By input, `[tokens]`: squared norm of the input; 0 for a token that does not reach it.
    energies: BTreeMap<String, Vec<f32>>,
}

impl LayerSensitivity {
    /// Empty sums for `tokens` tokens; the first `reference_tokens` of them set the metrics of the leverage scores.
    pub fn new(
        plan: &LayerPlan,
        tokens: usize,
        reference_tokens: usize,
        settings: &Settings,
    ) -> Self {
        let max_output_block = settings.calibration.max_output_block as usize;
        let moments = plan.linears.iter().map(|linear| {
            let moments = Moments::new(linear.rows, output_block(plan, linear, max_output_block));
            (linear.name.clone(), moments)
        });
        let zeros = plan
            .inputs
            .iter()
            .map(|input| (input.name.clone(), vec![0.0; tokens]));
        let zeros: BTreeMap<_, _> = zeros.collect();
        LayerSensitivity {
            fisher_share: settings.calibration.fisher_token_weight,
            tokens,
            reference_tokens,
            leverage: LeverageScores::new(
                &plan.inputs,
                settings.calibration.max_input_block as usize,
            ),
            output_moments: moments.collect(),
            squares: zeros.clone(),
            energies: zeros,
        }
    }

    /// Adds a part of the layer (a block or an expert) for a batch of `count` tokens that starts at token `first`.
    pub fn add<B: Backend>(
        &mut self,
        plan: &LayerPlan,
        part: PartTrace<B>,
        first: usize,
        count: usize,
    ) -> anyhow::Result<()> {
        let batch = first..first + count;
        let is_reference = first < self.reference_tokens;
        let mut squares: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for (name, gradient) in &part.output_gradients {
            let rows = row_energies(gradient)?;
            let sums = squares.entry(&planned_linear(plan, name)?.input);
            let sums = sums.or_insert_with(|| vec![0.0; rows.len()]);
            add_rows(sums, &rows, None);
        }
        let mut scores = BTreeMap::new();
        for (name, (x, tokens)) in part.inputs {
            let input = plan
                .input(&name)
                .with_context(|| format!("the layer has an input {name} that its plan lacks"))?;
            let energies = row_energies(&x)?;
            let tokens = tokens.as_deref();
            let sums = self.energies.get_mut(&name).expect("an input of the plan");
            add_rows(&mut sums[batch.clone()], &energies, tokens);
            let Some(squares) = squares.get(name.as_str()) else {
                continue; // no linear of this part reads it
            };
            let sums = self.squares.get_mut(&name).expect("an input of the plan");
            add_rows(&mut sums[batch.clone()], squares, tokens);

            let weights = mixed_weights(self.fisher_share, squares, &energies);
            if is_reference {
                self.leverage
                    .add_reference(input, scale_by_sqrt(x, &weights))?;
            } else {
                // The squared norms are finite, so the values are.
                let x = x.into_data().into_vec();
                let x: Vec<f32> = x.map_err(|error| anyhow!("{error:?}"))?;
                scores.insert(name, self.leverage.score(input, &x, &weights)?);
            }
        }
        if is_reference {
            return Ok(());
        }
        for (name, gradient) in part.output_gradients {
            let scores = scores.get(&planned_linear(plan, &name)?.input);
            let scores =
                scores.with_context(|| format!("the linear {name} has gradients but no input"))?;
            let gradient = match scores {
                Some(scores) => scale_by_sqrt(gradient, scores),
                None => gradient,
            };
            let moments = self.output_moments.get_mut(&name);
            let moments = moments.expect("a linear of the plan");
            moments.add(gradient).map_err(ModelError::from)?;
        }
        Ok(())
    }

    /// Adds one pseudo-token to each linear that no token reached: the mean moment of the corresponding linears of all
    /// experts.
    fn fill_unreached(&mut self, plan: &LayerPlan) -> anyhow::Result<()> {
        let role = |linear: &LinearSpec| (linear.role().to_owned(), linear.rows);
        for linear in &plan.linears {
            let moments = &self.output_moments[&linear.name];
            if moments.count > 0 {
                continue;
            }
            let mut pool = Moments::new(moments.n, moments.block);
            let corresponding = plan
                .linears
                .iter()
                .filter(|other| role(other) == role(linear))
                .map(|other| &self.output_moments[&other.name])
                .filter(|other| other.block == moments.block);
            for other in corresponding {
                pool.merge(other).map_err(ModelError::from)?;
            }
            let moments = self.output_moments.get_mut(&linear.name);
            let moments = moments.expect("one per linear");
            moments
                .add_pseudo_tokens(1, &pool)
                .map_err(ModelError::from)?;
        }
        Ok(())
    }

    /// The tensors that [`LayerSensitivity::write`] writes: `<linear>.output_moment` [rows, block] and `<input>.token_weight`
    /// [windows, length].
    pub fn decls(&self, plan: &LayerPlan, [windows, length]: [usize; 2]) -> Vec<TensorDecl> {
        let moments = plan.linears.iter().map(|linear| {
            let name = format!("{}.output_moment", linear.name);
            let block = self.output_moments[&linear.name].block;
            TensorDecl::new(name, TensorDtype::F32, &[linear.rows, block])
        });
        let weights = plan.inputs.iter().map(|input| {
            let name = format!("{}.token_weight", input.name);
            TensorDecl::new(name, TensorDtype::F32, &[windows, length])
        });
        moments.chain(weights).collect()
    }

    /// Appends the means of the output moments over all tokens but the reference tokens, and the weights of all tokens.
    pub fn write(mut self, file: &mut TensorFileWriter, plan: &LayerPlan) -> anyhow::Result<()> {
        self.fill_unreached(plan)?;
        let scored = (self.tokens - self.reference_tokens) as u64;
        for linear in &plan.linears {
            let moments = self.output_moments.remove(&linear.name);
            let moments = moments.expect("one per linear");
            let means = moments.finish_with_count(scored);
            let mut means = means.map_err(ModelError::from)?;
            let input = plan.input(&linear.input).context("an input of the plan")?;
            let scale = self.leverage.normalization(input);
            means.iter_mut().for_each(|mean| *mean *= scale);
            file.append_f32(&means)?;
        }
        for input in &plan.inputs {
            let (squares, energies) = (&self.squares[&input.name], &self.energies[&input.name]);
            file.append_f32(&fisher_weights(squares, energies))?;
        }
        Ok(())
    }
}

impl Sums for LayerSensitivity {
    fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        self.leverage.pass_through(snapshot)?;
        for moments in self.output_moments.values_mut() {
            pass_moments(moments, snapshot)?;
        }
        for values in self.squares.values_mut().chain(self.energies.values_mut()) {
            snapshot.sums(values)?;
        }
        Ok(())
    }
}

/// Width of the diagonal blocks of a linear's output moments. Experts see too few tokens to estimate more than the moments
/// between neighbouring outputs.
fn output_block(plan: &LayerPlan, linear: &LinearSpec, max_output_block: usize) -> usize {
    let routed = plan.input(&linear.input).is_some_and(|input| input.routed);
    linear.rows.min(if routed {
        SHRINKAGE_BLOCK
    } else {
        max_output_block
    })
}

fn planned_linear<'a>(plan: &'a LayerPlan, name: &str) -> anyhow::Result<&'a LinearSpec> {
    plan.linear(name)
        .with_context(|| format!("the layer has a linear {name} that its plan lacks"))
}

/// The rows of `x`, multiplied by the square roots of their weights.
fn scale_by_sqrt<B: Backend>(x: Tensor<B, 2>, weights: &[f32]) -> Tensor<B, 2> {
    rows::scaled(x, weights.iter().map(|weight| weight.sqrt()).collect())
}

/// Sum of squares of every row of an input or gradient, which must be finite.
fn row_energies<B: Backend>(x: &Tensor<B, 2>) -> anyhow::Result<Vec<f32>> {
    let energies = rows::squared_norms(x);
    let wrong = energies.iter().position(|energy| !energy.is_finite());
    ensure!(
        wrong.is_none(),
        "the squared norm of row {} of an input or gradient is {}, expected a finite number",
        wrong.unwrap_or_default(),
        energies[wrong.unwrap_or_default()]
    );
    Ok(energies)
}

/// Adds one value per row to the sums of the rows' tokens; `tokens` are the rows' indices if not all tokens are present.
fn add_rows(sums: &mut [f32], rows: &[f32], tokens: Option<&[usize]>) {
    match tokens {
        None => sums.iter_mut().zip(rows).for_each(|(sum, x)| *sum += x),
        Some(tokens) => tokens
            .iter()
            .zip(rows)
            .for_each(|(&token, x)| sums[token] += x),
    }
}
