//! What is known of a layer before it is quantized, and the quantization of all of it within its budget.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Context;
use uc_codec::allocate::Allocation;
use uc_codec::factor::{self, Factor};
use uc_codec::factor_cache::FactorCache;
use uc_codec::layer::{self, CodedLinear, LayerIo, LinearShape};
use uc_codec::{CodecError, TensorCode};
use uc_model::{InputSpec, LayerPlan, LinearSpec, ModelConfig};
use uc_pack::{ExactDecl, ExactDtype, ExactTensor, LayerCoder};
use uc_settings::{AllocationMode, QuantizeSettings};
use uc_store::ExitCode;
use uc_store::stage::Job;
use uc_store::tensors::{self, TensorDecl, TensorFile};

use crate::codes::SpilledCodes;

/// Bytes of input factors that are kept for the next pass over a layer.
pub const KEPT_FACTORS: usize = 4 << 30;

/// How much smaller the second moments of gradients are taken between the blocks of the trellis, beside the shrinkage of all.
const OFF_BLOCKS: f32 = 0.3;

/// Damping and number of dead values of an input, as far as its factor was asked for.
type FactorDiagnostics = BTreeMap<String, (f64, usize)>;

/// A layer before quantization: its plan, its weights and second moments on disk, and the bits that its linears are due.
pub struct LayerInputs {
    /// The layer's tensors.
    pub plan: Rc<LayerPlan>,
    /// The linears in the order of the plan, with the bits that they are due.
    pub shapes: Vec<LinearShape>,
    /// Factors of inputs and outputs, made when they are asked for.
    pub factors: FactorCache<'static, anyhow::Error>,
    weights: TensorFile,
    statistics: Rc<TensorFile>,
    diagnostics: Rc<RefCell<FactorDiagnostics>>,
}

impl LayerInputs {
    /// Opens the inputs `weights`, `statistics`, and with an allocation `sensitivity` and `allocation` of a job.
    ///
    /// # Errors
    /// Where one of them is missing or is not of the layer.
    pub fn open(job: &Job<'_>) -> anyhow::Result<Self> {
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let plan = Rc::new(config.layer_plan(job.layer()? as usize));
        let quantize = &job.settings().quantize;
        let statistics = Rc::new(TensorFile::open(&job.input("statistics")?)?);
        let sensitivity = match job.settings().allocation.mode {
            AllocationMode::PerTensor => None,
            _ => Some(TensorFile::open(&job.input("sensitivity")?)?),
        };
        let diagnostics = Rc::new(RefCell::new(FactorDiagnostics::new()));
        let of_input = {
            let (plan, statistics) = (Rc::clone(&plan), Rc::clone(&statistics));
            let (quantize, diagnostics) = (quantize.clone(), Rc::clone(&diagnostics));
            move |name: &str| {
                let input = plan
                    .input(name)
                    .with_context(|| format!("no input {name} in the plan"))?;
                let found = input_factor(&statistics, input, &quantize)?;
                let note = (found.damping, found.dead_inputs);
                diagnostics.borrow_mut().insert(name.to_owned(), note);
                Ok(found)
            }
        };
        let of_outputs = {
            let (plan, quantize) = (Rc::clone(&plan), quantize.clone());
            move |name: &str| {
                let linear = plan
                    .linear(name)
                    .with_context(|| format!("no linear {name} in the plan"))?;
                let of_file = |file| output_factor(file, linear, &quantize);
                sensitivity.as_ref().map(of_file).transpose()
            }
        };
        Ok(Self {
            shapes: shapes(job, &plan)?,
            factors: FactorCache::new(of_input, of_outputs, KEPT_FACTORS),
            weights: TensorFile::open(&job.input("weights")?)?,
            plan,
            statistics,
            diagnostics,
        })
    }

    /// Weights of a linear, [rows, cols].
    ///
    /// # Errors
    /// Those of [`TensorFile::read_f32`].
    pub fn weights(&self, linear: &str) -> anyhow::Result<Vec<f32>> {
        Ok(self.weights.read_f32(linear)?)
    }

    /// Second moments of an input, [width, block].
    ///
    /// # Errors
    /// Those of [`TensorFile::read_f32`].
    pub fn moments(&self, input: &str) -> anyhow::Result<Vec<f32>> {
        moments(&self.statistics, input)
    }

    /// Quantizes the layer so that its file takes the bits that its linears are due and no more; `finish` may add a
    /// correction to the linear at a place, given its weights. Returns the linears and the bits of their file.
    ///
    /// # Errors
    /// Those of [`layer::quantize`] and of `finish`.
    pub fn quantize<F>(&self, job: &mut Job<'_>, finish: F) -> anyhow::Result<(SpilledCodes, u64)>
    where
        F: Fn(usize, &[f32], &mut TensorCode) -> anyhow::Result<()>,
    {
        let probe_rows = job.settings().quantize.probe_rows as usize;
        let mut passes = Passes {
            exact: exact_tensors(&self.weights, &self.plan)?,
            inputs: self,
            job,
            finish,
            current: None,
            kept: None,
            bits: 0,
        };
        layer::quantize(&self.shapes, &self.factors, probe_rows, &mut passes)?;
        passes.kept.context("no pass was kept")
    }

    /// Tells of inputs whose damping had to be raised above the setting, and of dead ones.
    pub fn report(&self, job: &mut Job<'_>) {
        let quantize = &job.settings().quantize;
        let set = factor::damping_at_rate(quantize.damping, quantize.bpw);
        for (name, (damping, dead)) in self.diagnostics.borrow().iter() {
            if *damping > set {
                job.metric(&format!("damping of {name}"), *damping);
            }
            if *dead > 0 {
                job.metric(&format!("dead inputs of {name}"), *dead);
            }
        }
    }
}

/// The linears of the pass under way and those of the best one.
struct Passes<'a, 'j, F> {
    inputs: &'a LayerInputs,
    job: &'a mut Job<'j>,
    exact: Vec<ExactTensor>,
    finish: F,
    current: Option<SpilledCodes>,
    kept: Option<(SpilledCodes, u64)>,
    /// Bits of the pass that was measured last.
    bits: u64,
}

impl<F> LayerIo for Passes<'_, '_, F>
where
    F: Fn(usize, &[f32], &mut TensorCode) -> anyhow::Result<()>,
{
    type Error = anyhow::Error;

    fn weights(&self, index: usize) -> anyhow::Result<Vec<f32>> {
        self.inputs.weights(&self.inputs.shapes[index].name)
    }

    fn store(&mut self, index: usize, w: &[f32], mut linear: CodedLinear) -> anyhow::Result<()> {
        (self.finish)(index, w, &mut linear.code)?;
        if index == 0 {
            self.current = Some(SpilledCodes::new(&self.job.work_dir()?)?);
        }
        let spilled = self.current.as_mut().context("a pass begins with 0")?;
        spilled.put(&linear)?;
        let total = self.inputs.shapes.len() as u64;
        self.job.progress(index as u64 + 1, total, "linears");
        Ok(())
    }

    fn measure(&mut self) -> anyhow::Result<u64> {
        let linears = self.current.as_ref().context("nothing to measure")?;
        let coder = LayerCoder::new(self.inputs.plan.index as u32, linears, &self.exact)?;
        self.bits = 8 * coder.length();
        Ok(self.bits)
    }

    fn keep_pass(&mut self) {
        self.kept = self.current.take().map(|spilled| (spilled, self.bits));
    }
}

/// The class of an error for which the model or the settings are to blame.
pub fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        matches!(
            cause.downcast_ref(),
            Some(
                CodecError::NotFinite { .. }
                    | CodecError::NotPositiveDefinite { .. }
                    | CodecError::Budget { .. }
            )
        )
    };
    (error.chain().any(refused) || uc_model::error::is_model_error(error.chain()))
        .then_some(ExitCode::BadInput)
}

fn moments(statistics: &TensorFile, input: &str) -> anyhow::Result<Vec<f32>> {
    Ok(statistics.read_f32(&format!("{input}.second_moment"))?)
}

/// The factor of an input's second moments.
///
/// # Errors
/// Where they cannot be read or factored.
pub fn input_factor(
    statistics: &TensorFile,
    input: &InputSpec,
    settings: &QuantizeSettings,
) -> anyhow::Result<Factor> {
    let mut h = moments(statistics, &input.name)?;
    let share = settings.shrinkage as f32;
    factor::shrink_off_diagonal(&mut h, input.width, share, share)?;
    factor::factorize(
        &h,
        input.width,
        factor::damping_at_rate(settings.damping, settings.bpw),
    )
    .with_context(|| format!("second moments of input {}", input.name))
}

/// The factor of the second moments of the gradients at a linear's outputs.
///
/// # Errors
/// Where they cannot be read or factored.
pub fn output_factor(
    sensitivity: &TensorFile,
    linear: &LinearSpec,
    settings: &QuantizeSettings,
) -> anyhow::Result<Factor> {
    let mut moments = sensitivity.read_f32(&format!("{}.output_moment", linear.name))?;
    let near = settings.output_shrinkage as f32;
    let far = 1.0 - (1.0 - near) * (1.0 - OFF_BLOCKS);
    factor::shrink_off_diagonal(&mut moments, linear.rows, near, far)?;
    let damping = factor::damping_at_rate(settings.output_damping, settings.bpw);
    factor::factorize(&moments, linear.rows, damping).with_context(|| linear.name.clone())
}

/// The linears with the bits that they are due.
fn shapes(job: &Job<'_>, plan: &LayerPlan) -> anyhow::Result<Vec<LinearShape>> {
    let allocations = match job.settings().allocation.mode {
        AllocationMode::PerTensor => vec![job.settings().quantize.bpw; plan.linears.len()],
        AllocationMode::PerLayer | AllocationMode::Global => {
            let names = plan.linears.iter().map(|linear| linear.name.as_str());
            Allocation::from_json(&std::fs::read(job.input("allocation")?)?)?
                .layer_bits(plan.index, names)?
        }
    };
    let shape = |(linear, bits): (&LinearSpec, f64)| LinearShape {
        name: linear.name.clone(),
        input: linear.input.clone(),
        rows: linear.rows,
        cols: linear.cols,
        bits,
    };
    Ok(plan.linears.iter().zip(allocations).map(shape).collect())
}

/// The layer's exact tensors as they stand in the source.
///
/// # Errors
/// Where one cannot be read or is no float tensor.
pub fn exact_tensors(weights: &TensorFile, plan: &LayerPlan) -> anyhow::Result<Vec<ExactTensor>> {
    let mut exact = Vec::with_capacity(plan.exact.len());
    for spec in &plan.exact {
        let ExactDecl { name, dtype, shape } = exact_decl(weights.tensor(&spec.name)?)?;
        exact.push(ExactTensor {
            name,
            dtype,
            shape,
            bytes: weights.read(&spec.name)?,
        });
    }
    Ok(exact)
}

/// A tensor of a checkpoint as the pack describes it.
///
/// # Errors
/// For one that is no float tensor.
pub fn exact_decl(tensor: &TensorDecl) -> anyhow::Result<ExactDecl> {
    let dtype = match tensor.dtype {
        tensors::TensorDtype::F32 => ExactDtype::F32,
        tensors::TensorDtype::F16 => ExactDtype::F16,
        tensors::TensorDtype::BF16 => ExactDtype::BF16,
        other => anyhow::bail!("{} is {other:?}, expected F32, F16 or BF16", tensor.name),
    };
    Ok(ExactDecl {
        name: tensor.name.clone(),
        dtype,
        shape: tensor.shape.iter().map(|&side| side as u64).collect(),
    })
}
