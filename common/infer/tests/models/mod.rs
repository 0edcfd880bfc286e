//! The small models of `tests/golden`, one or more of every family.

use std::path::{Path, PathBuf};

use uc_codec::TensorCode;
use uc_infer::{Arithmetic, Coded, Dense, InferError, Matrix, MemoryForm, Model, Source};
use uc_model::{LayerPlan, ModelConfig, SourceFolder};

pub fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = std::fs::read_dir(root).unwrap();
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// Whether the linears of a model are compressed.
#[derive(Clone, Copy, PartialEq)]
pub enum Linears {
    Exact,
    /// Compressed, and run from the resident form with the weights of the contract.
    Coded,
    /// Compressed, and run in integers.
    Fast,
    /// Compressed, reconstructed, and run as exact matrices.
    Reconstructed,
}

/// The tensors of a golden model.
pub struct Golden<'a> {
    source: &'a SourceFolder,
    /// The layer, if it is one.
    plan: Option<LayerPlan>,
    linears: Linears,
}

impl<'a> Golden<'a> {
    /// Those of a layer, or outside the layers.
    pub fn new(source: &'a SourceFolder, plan: Option<LayerPlan>, linears: Linears) -> Self {
        Golden {
            source,
            plan,
            linears,
        }
    }

    fn read(&self, name: &str, count: usize) -> Vec<f32> {
        let values = match &self.plan {
            Some(plan) => self.source.read_planned_f32(plan, name),
            None => self.source.read_f32(name),
        };
        let values = values.unwrap();
        assert_eq!(values.len(), count, "{name}");
        values
    }
}

impl Source for Golden<'_> {
    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, InferError> {
        let values = self.read(name, rows * cols);
        let is_linear = self
            .plan
            .as_ref()
            .is_some_and(|plan| plan.linear(name).is_some());
        if !is_linear || self.linears == Linears::Exact {
            let values = Dense::F32(values);
            return Ok(Matrix::Dense { values, cols });
        }
        let code = rounded(&values, rows, cols);
        let arithmetic = match self.linears {
            Linears::Coded => Some(Arithmetic::Exact),
            Linears::Fast => Some(Arithmetic::Fast),
            _ => None,
        };
        if let Some(arithmetic) = arithmetic {
            return Ok(Matrix::Coded(Coded::new(&code, arithmetic)));
        }
        let weights = uc_codec::reconstruct::reconstruct(&code).unwrap();
        let values = weights.into_iter().map(half::bf16::from_bits).collect();
        let values = Dense::Bf16(values);
        Ok(Matrix::Dense { values, cols })
    }

    fn exact(&self, name: &str, shape: &[usize]) -> Result<Dense, InferError> {
        Ok(Dense::F32(self.read(name, shape.iter().product())))
    }
}

/// A code of a matrix by plain rounding.
fn rounded(values: &[f32], rows: usize, cols: usize) -> TensorCode {
    let largest = values.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    let step = largest / 150.0;
    let q = values.iter().map(|x| (x / (2.0 * step)).round() as i16);
    TensorCode {
        rows,
        cols,
        step,
        column_log2_eighths: vec![0; cols],
        row_log2_eighths: vec![64; rows],
        row_step_log2_eighths: vec![0; rows],
        q: q.collect(),
        overlay: None,
    }
}

pub fn model(folder: &Path, linears: Linears) -> Model {
    let config = ModelConfig::load(folder).unwrap();
    let source = SourceFolder::open(folder).unwrap();
    let golden = |plan| Golden::new(&source, plan, linears);
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let arithmetic = match linears {
        Linears::Fast => Arithmetic::Fast,
        _ => Arithmetic::Exact,
    };
    Model::new(
        config,
        arithmetic,
        MemoryForm::Resident,
        &golden(None),
        |index| Ok(golden(Some(plans[index].clone()))),
    )
    .unwrap()
}
