//! What the file of a layer holds besides indices, from the layer's plan.

use uc_model::LayerPlan;
use uc_pack::overhead::{self, LinearExtent};

/// Bits of a layer's file besides indices, as [`overhead::overhead_bits`] bounds them. `width(name)` is the number of bytes of an
/// element of an exact tensor.
///
/// # Errors
/// Those of `width`.
pub fn overhead_bits<E>(
    plan: &LayerPlan,
    width: impl Fn(&str) -> Result<u64, E>,
) -> Result<u64, E> {
    let mut exact = Vec::with_capacity(plan.exact.len());
    for tensor in &plan.exact {
        let elements: usize = tensor.shape.iter().product();
        let bytes = width(&tensor.name)? * elements as u64;
        exact.push((tensor.name.len(), tensor.shape.len(), bytes));
    }
    let linears = plan.linears.iter().map(|linear| LinearExtent {
        name: &linear.name,
        input: &linear.input,
        rows: linear.rows,
        cols: linear.cols,
    });
    Ok(overhead::overhead_bits(linears, exact.into_iter()))
}
