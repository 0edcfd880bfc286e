//! The inputs to the quantization of a layer: its plan, weights, second moments, factors and allocated bits.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use uc_codec::allocate::{self, Allocation, BitAllocation, FEWEST_BITS};
use uc_codec::factor;
use uc_codec::factor_cache::FactorCache;
use uc_codec::layer::LinearShape;
use uc_codec::weights::Weights;
use uc_model::{InputSpec, LayerPlan, LinearSpec, ModelConfig};
use uc_settings::{AllocationMode, QuantizeSettings};
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

use crate::exact::exact_decl;
use crate::factors::{
    FACTOR_CACHE_BYTES, InputMoments, input_factor, output_factor, second_moments,
};
use crate::overhead::overhead_bits;

/// Diagnostics of an input's factor.
#[derive(Clone, Copy)]
struct FactorDiagnostics {
    /// Damping that was used, as a fraction of the mean diagonal.
    damping: f64,
    /// Number of input features that are always zero.
    dead: usize,
}

/// Diagnostics by input, for the factors made so far.
type DiagnosticsByInput = Rc<RefCell<BTreeMap<String, FactorDiagnostics>>>;

/// A layer before quantization: its plan, its weights and second moments on disk, and the bits allocated to its linears.
pub struct LayerInputs {
    /// The layer's tensors.
    pub plan: Rc<LayerPlan>,
    /// The linears in the order of the plan, with the bits per weight allocated to them.
    pub shapes: Vec<LinearShape>,
    /// Bits of the layer's file, every byte included.
    pub file_bits: u64,
    /// Factors of the inputs and outputs, made on demand.
    pub factors: FactorCache<'static, anyhow::Error>,
    pub(crate) weights: Arc<TensorFile>,
    statistics: Rc<TensorFile>,
    diagnostics: DiagnosticsByInput,
}

impl LayerInputs {
    /// Opens the job's inputs `weights` and `statistics` and, unless every linear gets the same bits, `sensitivity` and
    /// `allocation`.
    ///
    /// # Errors
    /// If an input is missing or does not belong to the layer.
    pub fn open(job: &Job<'_>) -> anyhow::Result<Self> {
        let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
        let plan = Rc::new(config.layer_plan(job.layer()? as usize));
        let quantize = &job.settings().quantize;
        let statistics = Rc::new(TensorFile::open(&job.input("statistics")?)?);
        let sensitivity = match job.settings().allocation.mode {
            AllocationMode::PerTensor => None,
            _ => Some(TensorFile::open(&job.input("sensitivity")?)?),
        };
        let diagnostics = DiagnosticsByInput::default();
        let make_input_factor = {
            let (plan, statistics) = (Rc::clone(&plan), Rc::clone(&statistics));
            let (quantize, diagnostics) = (quantize.clone(), Rc::clone(&diagnostics));
            move |name: &str| {
                let factor = input_factor(&statistics, planned(&plan, name)?, &quantize)?;
                let (damping, dead) = (factor.damping, factor.dead_inputs);
                diagnostics
                    .borrow_mut()
                    .insert(name.to_owned(), FactorDiagnostics { damping, dead });
                Ok(factor)
            }
        };
        let make_output_factor = {
            let (plan, quantize) = (Rc::clone(&plan), quantize.clone());
            move |name: &str| {
                let linear = plan
                    .linear(name)
                    .with_context(|| format!("the plan has no linear {name}"))?;
                let factor_from = |file| output_factor(file, linear, &quantize);
                sensitivity.as_ref().map(factor_from).transpose()
            }
        };
        let weights = Arc::new(TensorFile::open(&job.input("weights")?)?);
        let (file_bits, shapes) = allocated_shapes(job, &plan, &weights)?;
        Ok(Self {
            shapes,
            file_bits,
            factors: FactorCache::new(make_input_factor, make_output_factor, FACTOR_CACHE_BYTES),
            weights,
            plan,
            statistics,
            diagnostics,
        })
    }

    /// Whether linear `index` of the plan can change the loss: a linear that cannot has the fewest bits, and its error does not
    /// count.
    pub fn can_change_loss(&self, index: usize) -> bool {
        self.shapes[index].bits > FEWEST_BITS
    }

    /// Weights of a linear, [rows, cols], which are read when they are needed.
    ///
    /// # Errors
    /// If the layer has no such linear of this shape.
    pub fn weights(&self, linear: &LinearShape) -> anyhow::Result<StoredWeights> {
        let found = &self.weights.tensor(&linear.name)?.shape;
        let (name, rows, cols) = (linear.name.clone(), linear.rows, linear.cols);
        anyhow::ensure!(
            found[..] == [rows, cols],
            "{}: {name}: found shape {found:?}, expected [{rows}, {cols}]; make the weights again",
            self.weights.path()
        );
        Ok(StoredWeights {
            file: Arc::clone(&self.weights),
            name,
            rows,
            cols,
        })
    }

    /// Second moments of an input, [width, block].
    ///
    /// # Errors
    /// Those of [`TensorFile::read_f32`].
    pub fn second_moments(&self, input: &str) -> anyhow::Result<Vec<f32>> {
        second_moments(&self.statistics, input)
    }

    /// Second moments of an input as they are factored.
    ///
    /// # Errors
    /// Those of [`InputMoments::read`].
    pub fn factored_moments(
        &self,
        input: &str,
        settings: &QuantizeSettings,
    ) -> anyhow::Result<InputMoments> {
        InputMoments::read(&self.statistics, planned(&self.plan, input)?, settings)
    }

    /// Reports inputs whose damping had to be raised above the setting, and inputs with dead features.
    pub fn report_diagnostics(&self, job: &mut Job<'_>) {
        let quantize = &job.settings().quantize;
        let setting = factor::damping_at_rate(quantize.damping, quantize.bpw);
        for (name, FactorDiagnostics { damping, dead }) in self.diagnostics.borrow().iter() {
            if *damping > setting {
                job.metric(&format!("damping of {name}"), *damping);
            }
            if *dead > 0 {
                job.metric(&format!("dead inputs of {name}"), *dead);
            }
        }
    }
}

/// The weights of a linear in the weights checkpoint.
#[derive(Debug, Clone)]
pub struct StoredWeights {
    file: Arc<TensorFile>,
    name: String,
    rows: usize,
    cols: usize,
}

impl Weights for StoredWeights {
    type Error = anyhow::Error;

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn rows(&self, rows: Range<usize>) -> anyhow::Result<Cow<'_, [f32]>> {
        let values = self
            .file
            .read_rows_f32(&self.name, rows.start, rows.len())?;
        Ok(Cow::Owned(values))
    }
}

/// An input of the plan by its name.
fn planned<'a>(plan: &'a LayerPlan, input: &str) -> anyhow::Result<&'a InputSpec> {
    plan.input(input)
        .with_context(|| format!("the plan has no input {input}"))
}

/// Bits of the layer's file, and the linears with the bits per weight allocated to their indices.
fn allocated_shapes(
    job: &Job<'_>,
    plan: &LayerPlan,
    weights: &TensorFile,
) -> anyhow::Result<(u64, Vec<LinearShape>)> {
    let (file_bits, allocated) = match job.settings().allocation.mode {
        AllocationMode::PerTensor => {
            let width = |name: &str| anyhow::Ok(exact_decl(weights.tensor(name)?)?.dtype.width());
            equal_bits(
                plan,
                overhead_bits(plan, width)?,
                job.settings().quantize.bpw,
            )?
        }
        AllocationMode::PerLayer | AllocationMode::Global => {
            let names = plan.linears.iter().map(|linear| linear.name.as_str());
            let path = job.input("allocation")?;
            Allocation::from_json(&uc_input::read(path, uc_input::LARGE_JSON)?)?
                .layer(plan.index, names)?
        }
    };
    let shape = |(linear, allocated): (&LinearSpec, BitAllocation)| LinearShape {
        name: linear.name.clone(),
        input: linear.input.clone(),
        rows: linear.rows,
        cols: linear.cols,
        bits: allocated.bits,
        lambda: allocated.lambda,
        regular: allocated.regular,
    };
    Ok((
        file_bits,
        plan.linears.iter().zip(allocated).map(shape).collect(),
    ))
}

/// The same bits per weight for every linear of a layer.
fn equal_bits(
    plan: &LayerPlan,
    overhead: u64,
    bpw: f64,
) -> anyhow::Result<(u64, Vec<BitAllocation>)> {
    let weights = plan.linear_parameters() as f64;
    let bits = allocate::index_bits_per_weight(weights, overhead as f64, bpw)?;
    let allocation = |linear: &LinearSpec| BitAllocation {
        name: linear.name.clone(),
        bits,
        lambda: None,
        regular: true,
    };
    let linears = plan.linears.iter().map(allocation).collect();
    Ok(((bpw * weights) as u64, linears))
}
