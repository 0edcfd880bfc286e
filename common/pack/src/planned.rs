//! Comparison of a manifest with the tensors that the model's own configuration requires.
//!
//! A manifest can be consistent in itself and still not be that of the model: layers, linears or norms may be missing, have
//! another shape or another name. The plan of the tensors comes from the caller, because this crate knows no model family.

use crate::check::check_equal;
use crate::error::{PackError, invalid};
use crate::manifest::{ExactEntry, LayerEntry, Manifest};

/// Derives the plan of a model from the text of its config.json, or says why it cannot. The second argument tells whether the
/// pack has a tensor whose name contains a text: checkpoints of one family name or arrange some tensors differently.
pub type Planner =
    dyn Fn(&[u8], &dyn Fn(&str) -> bool) -> Result<Box<dyn ModelPlan>, String> + Sync;

/// The tensors of a model.
pub trait ModelPlan {
    /// Number of layers.
    fn layers(&self) -> usize;

    /// The tensors of a layer.
    fn layer(&self, index: usize) -> PlannedLayer;

    /// Full names and shapes of the tensors outside the layers.
    fn non_layer(&self) -> Vec<(String, Vec<u64>)>;
}

/// The tensors of a layer, in the order of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLayer {
    /// Prefix of the full names.
    pub prefix: String,
    /// Names and shapes [rows, columns] of the linears.
    pub linears: Vec<(String, [u64; 2])>,
    /// Names and shapes of the exact tensors.
    pub exact: Vec<(String, Vec<u64>)>,
}

/// Every difference between a manifest and the plan of its model. `origin` names the manifest.
pub fn compare(manifest: &Manifest, plan: &dyn ModelPlan, origin: &str) -> Vec<PackError> {
    let count = check_equal(
        origin,
        "layers, compared with config.json",
        manifest.layers.len(),
        plan.layers(),
    );
    let mut errors: Vec<PackError> = count.err().into_iter().collect();
    for (index, found) in manifest.layers.iter().enumerate().take(plan.layers()) {
        errors.extend(compare_layer(found, &plan.layer(index), origin));
    }
    let found = shapes(&manifest.non_layer.tensors);
    let what = "tensor outside the layers";
    errors.extend(compare_tensors(found, &plan.non_layer(), what, origin));
    errors
}

fn compare_layer(found: &LayerEntry, planned: &PlannedLayer, origin: &str) -> Vec<PackError> {
    let what = format!("prefix of layer {}, compared with config.json", found.index);
    let prefix = check_equal(origin, &what, &found.prefix, &planned.prefix);
    let mut errors: Vec<PackError> = prefix.err().into_iter().collect();
    let linears = found.linears.iter();
    let linears = linears
        .map(|linear| (linear.name.clone(), linear.shape))
        .collect();
    let what = format!("linear of layer {}", found.index);
    errors.extend(compare_tensors(linears, &planned.linears, &what, origin));
    let what = format!("exact tensor of layer {}", found.index);
    let exact = shapes(&found.exact);
    errors.extend(compare_tensors(exact, &planned.exact, &what, origin));
    errors
}

fn shapes(tensors: &[ExactEntry]) -> Vec<(String, Vec<u64>)> {
    let shape = |tensor: &ExactEntry| (tensor.name.clone(), tensor.shape.clone());
    tensors.iter().map(shape).collect()
}

/// The differences between two lists of names and shapes; their order does not matter.
fn compare_tensors<S: Clone + Ord + std::fmt::Debug>(
    mut found: Vec<(String, S)>,
    planned: &[(String, S)],
    what: &str,
    origin: &str,
) -> Vec<PackError> {
    let mut planned = planned.to_vec();
    found.sort_unstable();
    planned.sort_unstable();
    let (mut found, mut planned) = (found.into_iter().peekable(), planned.into_iter().peekable());
    let mut errors = Vec::new();
    let describe = |tensor: Option<&S>| match tensor {
        Some(shape) => format!("shape {shape:?}"),
        None => "none".to_owned(),
    };
    let mut differ = |name: &str, found: Option<&S>, planned: Option<&S>| {
        let what = format!("{what} {name:?}, compared with config.json");
        errors.push(invalid(origin, what, describe(found), describe(planned)));
    };
    loop {
        match (found.peek(), planned.peek()) {
            (None, None) => return errors,
            (Some((a, _)), Some((b, _))) if a == b => {
                let pair = found.next().zip(planned.next());
                if let Some(((name, a), (_, b))) = pair
                    && a != b
                {
                    differ(&name, Some(&a), Some(&b));
                }
            }
            (Some((a, shape)), b) if b.is_none_or(|(b, _)| a < b) => {
                differ(a, Some(shape), None);
                found.next();
            }
            (_, _) => {
                if let Some((name, shape)) = planned.next() {
                    differ(&name, None, Some(&shape));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(found: &[(&str, u64)], planned: &[(&str, u64)]) -> Vec<String> {
        let owned = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
            list.iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect()
        };
        let errors = compare_tensors(owned(found), &owned(planned), "linear", "m");
        errors.iter().map(PackError::text).collect()
    }

    #[test]
    fn missing_unexpected_and_reshaped_tensors_are_named_and_order_does_not_matter() {
        assert!(differences(&[("b", 1), ("a", 2)], &[("a", 2), ("b", 1)]).is_empty());
        let found = [("b", 1), ("c", 3), ("x", 9)];
        let planned = [("a", 2), ("b", 1), ("c", 4), ("d", 5)];
        let message = |name: &str, found: &str, expected: &str| {
            format!(
                "m: linear \"{name}\", compared with config.json: found {found}, expected {expected}"
            )
        };
        let expected = [
            message("a", "none", "shape 2"),
            message("c", "shape 3", "shape 4"),
            message("d", "none", "shape 5"),
            message("x", "shape 9", "none"),
        ];
        assert_eq!(differences(&found, &planned), expected);
    }
}
