//! The factors that error feedback needs, computed from statistics on disk.
//!
//! Second moments are shrunk, damped and factored here. The mathematics is in `uc_codec::factor`; which factors stay in
//! memory is decided by `uc_codec::factor_cache`.

use anyhow::Context;
use uc_codec::factor::{self, Factor};
use uc_model::{InputSpec, LinearSpec};
use uc_settings::QuantizeSettings;
use uc_store::tensors::TensorFile;

/// Bytes of input factors that stay in memory for the next pass over a layer.
pub(crate) const FACTOR_CACHE_BYTES: usize = 4 << 30;

/// Shrinkage of the gradient moments between outputs of different blocks of `uc_codec::factor::SHRINKAGE_BLOCK` outputs. It is
/// applied in addition to the shrinkage of all off-diagonal moments.
const FAR_OUTPUT_SHRINKAGE: f32 = 0.3;

/// Second moments of an input, [width, block].
pub(crate) fn second_moments(statistics: &TensorFile, input: &str) -> anyhow::Result<Vec<f32>> {
    Ok(statistics.read_f32(&format!("{input}.second_moment"))?)
}

/// Second moments of an input as they are factored, and the damping with which they are.
pub struct InputMoments {
    /// [width, block], shrunk but not damped.
    pub moments: Vec<f32>,
    /// Relative to the mean of the diagonal.
    pub damping: f64,
}

impl InputMoments {
    /// Reads and shrinks the moments.
    ///
    /// # Errors
    /// If they cannot be read or have another size.
    pub fn read(
        statistics: &TensorFile,
        input: &InputSpec,
        settings: &QuantizeSettings,
    ) -> anyhow::Result<Self> {
        let mut moments = second_moments(statistics, &input.name)?;
        let shrinkage = settings.shrinkage as f32;
        factor::shrink_off_diagonal(&mut moments, input.width, shrinkage, shrinkage)?;
        let damping = factor::damping_at_rate(settings.damping, settings.bpw);
        Ok(InputMoments { moments, damping })
    }
}

/// The factor of an input's second moments.
///
/// # Errors
/// If the moments cannot be read or factored.
pub fn input_factor(
    statistics: &TensorFile,
    input: &InputSpec,
    settings: &QuantizeSettings,
) -> anyhow::Result<Factor> {
    let InputMoments { moments, damping } = InputMoments::read(statistics, input, settings)?;
    factor::factorize_in_place(moments, input.width, damping)
        .with_context(|| format!("second moments of input {}", input.name))
}

/// The factor of the second moments of the gradients at a linear's outputs.
///
/// # Errors
/// If the moments cannot be read or factored.
pub fn output_factor(
    sensitivity: &TensorFile,
    linear: &LinearSpec,
    settings: &QuantizeSettings,
) -> anyhow::Result<Factor> {
    let mut moments = sensitivity.read_f32(&format!("{}.output_moment", linear.name))?;
    let near = settings.output_shrinkage as f32;
    let far = 1.0 - (1.0 - near) * (1.0 - FAR_OUTPUT_SHRINKAGE);
    factor::shrink_off_diagonal(&mut moments, linear.rows, near, far)?;
    let damping = factor::damping_at_rate(settings.output_damping, settings.bpw);
    factor::factorize_in_place(moments, linear.rows, damping)
        .with_context(|| format!("gradient moments at the outputs of {}", linear.name))
}
