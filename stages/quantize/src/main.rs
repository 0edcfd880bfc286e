//! quantize: a layer's weights and the second moments of its inputs → codes that fit the byte budget.
//!
//! Owns the budget of a layer: `bpw` bits for every weight of its linears, from which everything in the layer's file is
//! paid. The mathematics is `uc_codec`'s, the size is that of the file as `uc_pack` writes it.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::Parser;
use uc_codec::layer::{self, Budget, CodedLinear, LayerWork, LinearShape};
use uc_codec::{CodecError, TensorCode, factor};
use uc_model::{LayerPlan, ModelConfig};
use uc_pack::{Dtype, ExactTensor, LayerDraft};
use uc_store::ExitCode;
use uc_store::framed::CODES;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};
use uc_store::tensors::TensorFile;

/// Raised whenever the same input gives other output.
const VERSION: u32 = 1;

#[derive(Parser)]
#[command(
    name = "quantize",
    version,
    about = "Quantizes the linears of a layer to a byte budget"
)]
struct Cli {
    #[command(flatten)]
    args: StageArgs,
}

fn main() -> std::process::ExitCode {
    let program = Program {
        name: "quantize",
        task: "",
        version: VERSION,
    };
    stage::main(program, &Cli::parse().args, Quantize).into()
}

struct Quantize;

impl StageProgram for Quantize {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let plan = config.layer_plan(job.layer()? as usize);
        let settings = job.settings().quantize.clone();
        let weights = TensorFile::open(&job.input("weights")?)?;
        let statistics = TensorFile::open(&job.input("statistics")?)?;

        let mut factors = BTreeMap::new();
        for input in &plan.inputs {
            let h = statistics.read_f32(&format!("{}.second_moment", input.name))?;
            let found = factor::factorize(&h, input.width, settings.damping)
                .with_context(|| format!("second moments of input {}", input.name))?;
            if found.damping > settings.damping {
                tracing::warn!(
                    input = input.name,
                    damping = found.damping,
                    "damping was raised"
                );
                job.figure(&format!("damping of {}", input.name), found.damping);
            }
            if found.dead > 0 {
                job.figure(&format!("dead inputs of {}", input.name), found.dead);
            }
            factors.insert(input.name.clone(), found);
        }
        let extras = extras(&weights, &plan)?;
        let shapes = shapes(&plan);
        let budget = Budget {
            bits: (settings.bpw * plan.linear_parameters() as f64).floor() as u64,
            probe_rows: settings.probe_rows as usize,
        };
        let mut work = Work {
            job,
            weights: &weights,
            shapes: &shapes,
            layer: plan.index as u32,
            extras,
        };
        let linears = layer::quantize(&shapes, &factors, budget, &mut work)?;
        let Work { extras, .. } = work;
        let draft = LayerDraft {
            layer: plan.index as u32,
            linears,
            extras,
        };
        let bits = draft.encode()?.len() as f64 * 8.0;
        job.figure("bpw", bits / plan.linear_parameters() as f64);

        let mut file = job.output("codes")?;
        CODES.write(&mut file, &draft)?;
        job.commit("codes", file)?;
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        let chain = || error.chain();
        if chain().any(|cause| cause.downcast_ref::<CodecError>().is_some_and(is_input)) {
            return Some(ExitCode::BadInput);
        }
        uc_model::error::is_model_error(chain()).then_some(ExitCode::BadInput)
    }
}

/// Whether the codec refused what it was given rather than failed.
fn is_input(error: &CodecError) -> bool {
    matches!(
        error,
        CodecError::NotFinite { .. }
            | CodecError::NotPositiveDefinite { .. }
            | CodecError::Budget { .. }
    )
}

fn shapes(plan: &LayerPlan) -> Vec<LinearShape> {
    let shape = |linear: &uc_model::LinearSpec| LinearShape {
        name: linear.name.clone(),
        input: linear.input.clone(),
        rows: linear.rows,
        cols: linear.cols,
    };
    plan.linears.iter().map(shape).collect()
}

/// The layer's exact tensors as they stand in the source.
fn extras(weights: &TensorFile, plan: &LayerPlan) -> anyhow::Result<Vec<ExactTensor>> {
    let mut extras = Vec::with_capacity(plan.extras.len());
    for spec in &plan.extras {
        let decl = weights.tensor(&spec.name)?;
        let dtype = match decl.dtype {
            uc_store::tensors::Dtype::F32 => Dtype::F32,
            uc_store::tensors::Dtype::F16 => Dtype::F16,
            uc_store::tensors::Dtype::BF16 => Dtype::BF16,
            other => anyhow::bail!("{} is {other:?}, expected F32, F16 or BF16", spec.name),
        };
        let shape = decl.shape.iter().map(|&side| side as u64).collect();
        extras.push(ExactTensor {
            name: spec.name.clone(),
            dtype,
            shape,
            bytes: weights.read(&spec.name)?,
        });
    }
    Ok(extras)
}

/// What the codec asks for while it works on a layer.
struct Work<'a, 'j> {
    job: &'a mut Job<'j>,
    weights: &'a TensorFile,
    shapes: &'a [LinearShape],
    layer: u32,
    extras: Vec<ExactTensor>,
}

impl LayerWork for Work<'_, '_> {
    type Error = anyhow::Error;

    fn weights(&self, index: usize) -> anyhow::Result<Vec<f32>> {
        Ok(self.weights.read_f32(&self.shapes[index].name)?)
    }

    fn finish(&self, _: usize, _: &[f32], _: &mut TensorCode) -> anyhow::Result<()> {
        Ok(())
    }

    fn measure(&self, linears: &[CodedLinear]) -> anyhow::Result<u64> {
        let draft = LayerDraft {
            layer: self.layer,
            linears: linears.to_vec(),
            extras: self.extras.clone(),
        };
        Ok(draft.encode()?.len() as u64 * 8)
    }

    fn progress(&mut self, done: usize, total: usize) {
        self.job.progress(done as u64, total as u64, "linears");
    }
}
