//! overlay-fit: codes and second moments → the low-rank correction that is worth its bits, if any.
//!
//! The budget is one: what an overlay takes is taken from the indices. So this stage compares the layer as quantized
//! with the layer quantized again at fewer bits plus an overlay, both at the same size, and keeps the one with the
//! smaller output error. A forced rank is kept whatever it brings; the figures say what that was.

mod correction;

use anyhow::Context;
use clap::Parser;
use uc_codec::allocate::Allocation;
use uc_codec::factors::Factors;
use uc_codec::layer::{self, CodedLinear, LinearShape};
use uc_codec::{CodecError, factor};
use uc_model::ModelConfig;
use uc_pack::LayerDraft;
use uc_store::ExitCode;
use uc_store::framed::{CODES, OVERLAY};
use uc_store::settings::{AllocationMode, Rank};
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};
use uc_store::tensors::TensorFile;

use correction::{Refit, output_error, worthwhile_rank};

/// Raised whenever the same input gives other output.
const VERSION: u32 = 5;
/// Bytes of input factors that are kept for the next pass over a layer.
const KEPT_FACTORS: usize = 4 << 30;

#[derive(Parser)]
#[command(
    name = "overlay-fit",
    version,
    about = "Fits the correction that quantization left room for"
)]
struct Cli {
    #[command(flatten)]
    args: StageArgs,
}

fn main() -> std::process::ExitCode {
    let program = Program {
        name: "overlay-fit",
        task: "",
        version: VERSION,
    };
    stage::main(program, &Cli::parse().args, OverlayFit).into()
}

struct OverlayFit;

impl StageProgram for OverlayFit {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let draft: LayerDraft = CODES.read(&job.input("codes")?)?;
        let linears = fit(job, &draft)?;
        job.figure(
            "rank",
            linears
                .iter()
                .filter_map(|l| l.code.overlay.as_ref())
                .map(|o| o.rank)
                .max()
                .unwrap_or(0),
        );
        let mut file = job.output("overlay")?;
        OVERLAY.write(&mut file, &linears)?;
        job.commit("overlay", file)?;
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        let refused = |cause: &(dyn std::error::Error + 'static)| {
            matches!(
                cause.downcast_ref(),
                Some(CodecError::Budget { .. } | CodecError::NotFinite { .. })
            )
        };
        (error.chain().any(refused) || uc_model::error::is_model_error(error.chain()))
            .then_some(ExitCode::BadInput)
    }
}

/// The linears that replace those of the codes checkpoint; none where quantization alone is better.
fn fit(job: &mut Job<'_>, draft: &LayerDraft) -> anyhow::Result<Vec<CodedLinear>> {
    let (rank, max_rank) = (
        job.settings().overlay.rank,
        job.settings().overlay.max_rank as usize,
    );
    if rank == Rank::Fixed(0) || (rank == Rank::Auto && max_rank == 0) {
        return Ok(Vec::new());
    }
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let plan = config.layer_plan(job.layer()? as usize);
    let quantize = job.settings().quantize.clone();
    let weights = TensorFile::open(&job.input("weights")?)?;
    let statistics = TensorFile::open(&job.input("statistics")?)?;
    let sensitivity = match job.settings().allocation.mode {
        AllocationMode::PerTensor => None,
        _ => Some(TensorFile::open(&job.input("sensitivity")?)?),
    };
    let moments = |input: &str| statistics.read_f32(&format!("{input}.second_moment"));
    let of_input = |name: &str| {
        let input = plan
            .input(name)
            .with_context(|| format!("no input {name} in the plan"))?;
        Ok(factor::factorize(
            &moments(name)?,
            input.width,
            quantize.damping,
        )?)
    };
    let of_outputs = |name: &str| {
        let Some(file) = &sensitivity else {
            return Ok(None);
        };
        let linear = plan
            .linear(name)
            .with_context(|| format!("no linear {name} in the plan"))?;
        let moments = file.read_f32(&format!("{name}.output_moment"))?;
        Ok(Some(factor::factorize(
            &moments,
            linear.rows,
            quantize.output_damping,
        )?))
    };
    let factors = Factors::new(of_input, of_outputs, KEPT_FACTORS);
    let mut ranks = Vec::with_capacity(draft.linears.len());
    let mut before = 0.0;
    for (index, linear) in draft.linears.iter().enumerate() {
        let w = weights.read_f32(&linear.name)?;
        before += output_error(&w, &linear.code, &moments(&linear.input)?)?;
        ranks.push(match rank {
            Rank::Fixed(rank) => rank as usize,
            Rank::Auto => {
                worthwhile_rank(&w, &linear.code, &*factors.input(&linear.input)?, max_rank)?
            }
        });
        job.progress(index as u64 + 1, draft.linears.len() as u64, "linears");
    }
    job.figure("relative error without overlay", before);
    if ranks.iter().all(|&rank| rank == 0) {
        return Ok(Vec::new());
    }
    let dues = match job.settings().allocation.mode {
        AllocationMode::PerTensor => vec![quantize.bpw; draft.linears.len()],
        AllocationMode::PerLayer | AllocationMode::Global => {
            let names = draft.linears.iter().map(|linear| linear.name.as_str());
            Allocation::read(&std::fs::read(job.input("allocation")?)?)?.of(plan.index, names)?
        }
    };
    let shapes: Vec<LinearShape> = draft
        .linears
        .iter()
        .zip(dues)
        .map(|(linear, bits)| LinearShape {
            name: linear.name.clone(),
            input: linear.input.clone(),
            rows: linear.code.rows,
            cols: linear.code.cols,
            bits,
        })
        .collect();
    let mut refit = Refit {
        job: &mut *job,
        weights: &weights,
        shapes: &shapes,
        factors: &factors,
        ranks: &ranks,
        draft,
    };
    let linears = layer::quantize(&shapes, &factors, quantize.probe_rows as usize, &mut refit)?;
    let mut after = 0.0;
    for linear in &linears {
        after += output_error(
            &weights.read_f32(&linear.name)?,
            &linear.code,
            &moments(&linear.input)?,
        )?;
    }
    job.figure("relative error with overlay", after);
    job.figure(
        "overlay bpw",
        correction::overlay_bits(&linears) / plan.linear_parameters() as f64,
    );
    let keep = after < before || matches!(rank, Rank::Fixed(_));
    Ok(if keep { linears } else { Vec::new() })
}
