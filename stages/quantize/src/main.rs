//! quantize: a layer's weights and the second moments of its inputs → codes that fit the byte budget.
//!
//! `rates` finds at which steps the linears of a layer take the wanted bits, `allocate` deals out the model's bits by
//! these and by the linears' sensitivities, `layer` quantizes. Owns the budget: `bpw` bits for every weight of the
//! linears, from which everything in the layer files is paid. The mathematics is `uc_codec`'s, the size is that of the
//! file as `uc_pack` writes it.

mod survey;

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::Context;
use clap::{Parser, Subcommand};
use uc_codec::allocate::Allocation;
use uc_codec::factor::{self, Factor};
use uc_codec::factors::Factors;
use uc_codec::layer::{self, CodedLinear, LayerWork, LinearShape};
use uc_codec::{CodecError, TensorCode};
use uc_model::{InputSpec, LayerPlan, LinearSpec, ModelConfig};
use uc_pack::{Dtype, ExactTensor, LayerDraft, encode_draft};
use uc_store::ExitCode;
use uc_store::framed::CODES;
use uc_store::settings::AllocationMode;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};
use uc_store::tensors::TensorFile;

/// Raised whenever the same input gives other output.
const VERSION: u32 = 5;
/// Bytes of input factors that are kept for the next pass over a layer.
const KEPT_FACTORS: usize = 4 << 30;

#[derive(Parser)]
#[command(
    name = "quantize",
    version,
    about = "Quantizes the linears of a layer to a byte budget"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Quantize the linears of a layer
    Layer(StageArgs),
    /// The steps at which the linears of a layer take the wanted bits
    Rates(StageArgs),
    /// Deal out the model's bits among its linears
    Allocate(StageArgs),
}

fn main() -> std::process::ExitCode {
    let program = |task| Program {
        name: "quantize",
        task,
        version: VERSION,
    };
    match Cli::parse().task {
        Task::Layer(args) => stage::main(program("layer"), &args, Quantize).into(),
        Task::Rates(args) => stage::main(program("rates"), &args, survey::Rates).into(),
        Task::Allocate(args) => stage::main(program("allocate"), &args, survey::Allocate).into(),
    }
}

struct Quantize;

impl StageProgram for Quantize {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let plan = config.layer_plan(job.layer()? as usize);
        let settings = job.settings().quantize.clone();
        let weights = TensorFile::open(&job.input("weights")?)?;
        let statistics = TensorFile::open(&job.input("statistics")?)?;

        let sensitivity = match job.settings().allocation.mode {
            AllocationMode::PerTensor => None,
            _ => Some(TensorFile::open(&job.input("sensitivity")?)?),
        };
        let noted = RefCell::new(BTreeMap::new());
        let of_input = |name: &str| {
            let input = plan
                .input(name)
                .with_context(|| format!("no input {name} in the plan"))?;
            let found = input_factor(&statistics, input, settings.damping)?;
            let notes = (found.damping, found.dead);
            noted.borrow_mut().insert(name.to_owned(), notes);
            Ok(found)
        };
        let of_outputs = |name: &str| {
            let linear = plan
                .linear(name)
                .with_context(|| format!("no linear {name} in the plan"))?;
            let damping = settings.output_damping;
            let of_file = |file| output_factor(file, linear, damping);
            sensitivity.as_ref().map(of_file).transpose()
        };
        let factors = Factors::new(of_input, of_outputs, KEPT_FACTORS);
        let extras = extras(&weights, &plan)?;
        let shapes = shapes(job, &plan)?;
        let mut work = Work {
            job,
            weights: &weights,
            shapes: &shapes,
            layer: plan.index as u32,
            extras,
        };
        let linears = layer::quantize(&shapes, &factors, settings.probe_rows as usize, &mut work)?;
        let Work { extras, .. } = work;
        for (name, (damping, dead)) in noted.take() {
            if damping > settings.damping {
                tracing::warn!(input = name, damping, "damping was raised");
                job.figure(&format!("damping of {name}"), damping);
            }
            if dead > 0 {
                job.figure(&format!("dead inputs of {name}"), dead);
            }
        }
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
        classify(error)
    }
}

fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    let chain = || error.chain();
    if chain().any(|cause| cause.downcast_ref::<CodecError>().is_some_and(is_input)) {
        return Some(ExitCode::BadInput);
    }
    uc_model::error::is_model_error(chain()).then_some(ExitCode::BadInput)
}

/// The factor of an input's second moments.
fn input_factor(
    statistics: &TensorFile,
    input: &InputSpec,
    damping: f64,
) -> anyhow::Result<Factor> {
    let h = statistics.read_f32(&format!("{}.second_moment", input.name))?;
    factor::factorize(&h, input.width, damping)
        .with_context(|| format!("second moments of input {}", input.name))
}

/// The factor of the gradients at a linear's outputs.
fn output_factor(
    sensitivity: &TensorFile,
    linear: &LinearSpec,
    damping: f64,
) -> anyhow::Result<Factor> {
    let moments = sensitivity.read_f32(&format!("{}.output_moment", linear.name))?;
    factor::factorize(&moments, linear.rows, damping).with_context(|| linear.name.clone())
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

/// The linears with the bits that they are due.
fn shapes(job: &Job<'_>, plan: &LayerPlan) -> anyhow::Result<Vec<LinearShape>> {
    let dues = match job.settings().allocation.mode {
        AllocationMode::PerTensor => vec![job.settings().quantize.bpw; plan.linears.len()],
        AllocationMode::PerLayer | AllocationMode::Global => {
            let names = plan.linears.iter().map(|linear| linear.name.as_str());
            Allocation::read(&std::fs::read(job.input("allocation")?)?)?.of(plan.index, names)?
        }
    };
    let shape = |(linear, bits): (&LinearSpec, f64)| LinearShape {
        name: linear.name.clone(),
        input: linear.input.clone(),
        rows: linear.rows,
        cols: linear.cols,
        bits,
    };
    Ok(plan.linears.iter().zip(dues).map(shape).collect())
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
        Ok(encode_draft(self.layer, linears, &self.extras)?.len() as u64 * 8)
    }

    fn progress(&mut self, done: usize, total: usize) {
        self.job.progress(done as u64, total as u64, "linears");
    }
}
