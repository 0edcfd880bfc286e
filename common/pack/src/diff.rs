//! How two packs differ: what they were made from, their sizes, and every tensor.
//!
//! The digests of the manifests decide what is the same, so only tensors whose values differ are decoded, in parallel and in
//! pieces with bounded memory. The result is the same for any number of threads. The first pack is the reference of every
//! error. This module displays nothing and verifies no pack: [`crate::verify`] does.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::PackError;
use crate::exact::ExactDtype;
use crate::lookup::{Entry, TensorRef};
use crate::pack::Pack;
use crate::statistics::{ErrorStatistics, ErrorSums};
use crate::totals::Totals;
use crate::{MANIFEST_FILE, Manifest};

mod provenance;
#[cfg(test)]
mod tests;
mod work;

pub use provenance::FieldDiff;
use work::{Job, Measured, Pair, Work};

/// What a comparison is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffOptions {
    /// Only the tensors of this layer.
    pub layer: Option<u32>,
    /// Whether tensors whose values differ are decoded, to measure by how much. Otherwise only the manifests are read.
    pub decode: bool,
    /// Compute threads, 0 for one per processor.
    pub threads: usize,
}

impl Default for DiffOptions {
    fn default() -> Self {
        DiffOptions {
            layer: None,
            decode: true,
            threads: 0,
        }
    }
}

/// Progress of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the weights of both packs, in bfloat16, that have been compared.
    pub done: u64,
    /// Bytes of those that are to be compared.
    pub total: u64,
}

/// How two packs differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackDiff {
    /// The first pack, the reference of every error.
    pub a: PackSide,
    /// The second pack.
    pub b: PackSide,
    /// Whether what was compared is the same, byte for byte: the fingerprints, or the records of the layer that was asked for.
    pub identical: bool,
    /// The fields of the manifests that differ, besides tensors and totals.
    pub provenance: Vec<FieldDiff>,
    /// Numbers of tensors, and the error of all that differ.
    pub summary: Summary,
    /// The tensors in the order of the first pack, then those that only the second one has.
    pub tensors: Vec<TensorDiff>,
}

/// What identifies a pack, and its sizes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackSide {
    /// SHA-256 of its manifest.
    pub fingerprint: Digest,
    /// Name of the model that was compressed.
    pub source: String,
    /// Number of layers.
    pub layers: usize,
    /// Sizes and bits per weight.
    pub totals: Totals,
}

/// Numbers of tensors by outcome, and the error of those that differ.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Summary {
    /// Tensors with the same values.
    pub identical: u64,
    /// Tensors of one shape with other values.
    pub differing: u64,
    /// Tensors with another shape or stored in another way.
    pub incomparable: u64,
    /// Tensors that only the first pack has.
    pub only_in_a: u64,
    /// Tensors that only the second pack has.
    pub only_in_b: u64,
    /// Error of all linears whose values differ, together. None if none was measured.
    pub linears: Option<ErrorStatistics>,
    /// Error of all exact tensors whose values differ, together.
    pub exact: Option<ErrorStatistics>,
}

/// How a tensor differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Both packs reconstruct the same values, bit for bit.
    Identical,
    /// The values differ.
    Differs,
    /// The shapes differ, or one pack stores it exactly and the other one does not.
    Incomparable,
    /// The second pack does not have it.
    OnlyInA,
    /// The first pack does not have it.
    OnlyInB,
}

/// A tensor of one or both packs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Full name.
    pub name: String,
    /// Index of its layer; none for a tensor outside the layers.
    pub layer: Option<u32>,
    /// How it differs.
    pub outcome: Outcome,
    /// The tensor in the first pack.
    pub a: Option<TensorSide>,
    /// The tensor in the second pack.
    pub b: Option<TensorSide>,
    /// Error of the second pack's values against the first pack's, if they differ and were decoded.
    pub error: Option<ErrorStatistics>,
}

/// A tensor in one pack.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorSide {
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Element type of a tensor that is stored exactly; none for a linear.
    pub dtype: Option<ExactDtype>,
    /// Bits of its values in the pack; of a linear, those that belong to it alone.
    pub bits: u64,
    /// `bits` for each element.
    pub bits_per_weight: f64,
    /// Rank of a linear's overlay.
    pub rank: Option<u32>,
    /// Step of a linear; read only where the files of its layer differ.
    pub step: Option<f32>,
    /// Digest of the values.
    pub sha256: Digest,
}

impl TensorSide {
    fn new(tensor: &TensorRef<'_>) -> Self {
        let parameters = tensor.parameters();
        let (dtype, bits, rank) = match tensor.entry {
            Entry::Linear(entry) => (None, entry.bits, Some(entry.rank)),
            Entry::Exact(entry) => {
                let bits = parameters.saturating_mul(8 * entry.dtype.width());
                (Some(entry.dtype), bits, None)
            }
        };
        TensorSide {
            shape: tensor.shape().to_vec(),
            dtype,
            bits,
            bits_per_weight: bits as f64 / parameters.max(1) as f64,
            rank,
            step: None,
            sha256: tensor.sha256(),
        }
    }
}

impl PackDiff {
    /// Whether all tensors of both packs have the same values, whatever else differs.
    pub fn same_values(&self) -> bool {
        let others = |tensor: &TensorDiff| tensor.outcome != Outcome::Identical;
        !self.tensors.iter().any(others)
    }
}

/// Compares two packs.
///
/// # Errors
/// `NothingInCommon` for packs of different models; `NoLayer`; those of [`Pack::layer`] and [`Pack::non_layer`]; `Codec`;
/// `Digest` if exact values are not those that a manifest records.
pub fn diff(
    a: &Pack,
    b: &Pack,
    options: &DiffOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<PackDiff, PackError> {
    let pairs = pairs(a, b, options.layer)?;
    let mut tensors: Vec<TensorDiff> = pairs.iter().map(|(a, b)| compared(a, b)).collect();
    let jobs = match options.decode {
        true => jobs(&pairs, &tensors),
        false => Vec::new(),
    };
    let measured = Work::new(a, b, &jobs, progress).run(&jobs, options.threads)?;
    let [mut linears, mut exact] = [None::<ErrorSums>, None];
    for Measured {
        position,
        steps,
        sums,
    } in measured
    {
        let tensor = &mut tensors[position];
        if let (Some([a, b]), Some(left), Some(right)) = (steps, &mut tensor.a, &mut tensor.b) {
            (left.step, right.step) = (Some(a), Some(b));
        }
        let Some(sums) = sums else { continue };
        tensor.error = Some(sums.finish());
        let total = if steps.is_some() {
            &mut linears
        } else {
            &mut exact
        };
        total.get_or_insert_default().merge(&sums);
    }
    let count = |outcome| tensors.iter().filter(|t| t.outcome == outcome).count() as u64;
    Ok(PackDiff {
        a: side(a),
        b: side(b),
        identical: match options.layer.map(|layer| layer as usize) {
            Some(layer) => a.manifest().layers.get(layer) == b.manifest().layers.get(layer),
            None => a.fingerprint() == b.fingerprint(),
        },
        provenance: provenance::differences(a.manifest(), b.manifest()),
        summary: Summary {
            identical: count(Outcome::Identical),
            differing: count(Outcome::Differs),
            incomparable: count(Outcome::Incomparable),
            only_in_a: count(Outcome::OnlyInA),
            only_in_b: count(Outcome::OnlyInB),
            linears: linears.map(|sums| sums.finish()),
            exact: exact.map(|sums| sums.finish()),
        },
        tensors,
    })
}

fn side(pack: &Pack) -> PackSide {
    let manifest = pack.manifest();
    PackSide {
        fingerprint: pack.fingerprint(),
        source: manifest.source.name.clone(),
        layers: manifest.layers.len(),
        totals: manifest.totals.clone(),
    }
}

/// A tensor of the first pack and that of the same name of the second pack; there is at least one of them.
type TensorPair<'a> = (Option<TensorRef<'a>>, Option<TensorRef<'a>>);

/// The tensors of both packs by name, in the order of the first pack.
fn pairs<'a>(
    a: &'a Pack,
    b: &'a Pack,
    layer: Option<u32>,
) -> Result<Vec<TensorPair<'a>>, PackError> {
    check_layer(a, b, layer)?;
    check_common_linear(a, b)?;
    let is_asked_for =
        |tensor: &TensorRef<'_>| layer.is_none() || tensor.layer.map(|layer| layer.index) == layer;
    let of = |manifest: &'a Manifest| manifest.tensors().filter(is_asked_for);
    let named = |tensor: TensorRef<'a>| (tensor.name(), tensor);
    let mut right: HashMap<String, TensorRef<'a>> = of(b.manifest()).map(named).collect();
    let left = of(a.manifest()).map(|tensor| (Some(tensor), right.remove(&tensor.name())));
    let mut pairs: Vec<TensorPair<'a>> = left.collect();
    let only_right = of(b.manifest()).filter(|tensor| right.contains_key(&tensor.name()));
    pairs.extend(only_right.map(|tensor| (None, Some(tensor))));
    Ok(pairs)
}

/// Checks that the packs have a linear of the same name and shape.
fn check_common_linear(a: &Pack, b: &Pack) -> Result<(), PackError> {
    fn linears(pack: &Pack) -> impl Iterator<Item = (String, [u64; 2])> + '_ {
        let layers = pack.manifest().layers.iter();
        layers.flat_map(|layer| {
            let linears = layer.linears.iter();
            linears.map(|linear| (format!("{}{}", layer.prefix, linear.name), linear.shape))
        })
    }
    let of_a: HashSet<_> = linears(a).collect();
    if linears(b).any(|linear| of_a.contains(&linear)) {
        return Ok(());
    }
    let described = |pack: &Pack| {
        let manifest = pack.manifest();
        let path = pack.path("").display().to_string();
        let path = path.trim_end_matches('/');
        let (source, layers) = (&manifest.source.name, manifest.layers.len());
        let weights = manifest.totals.linear_parameters;
        format!("{path} (of {source}: {layers} layers, {weights} weights in linears)")
    };
    Err(PackError::NothingInCommon {
        a: described(a),
        b: described(b),
    })
}

/// Checks that one of the packs has the layer.
fn check_layer(a: &Pack, b: &Pack, layer: Option<u32>) -> Result<(), PackError> {
    let layers = a.manifest().layers.len().max(b.manifest().layers.len()) as u32;
    match layer {
        Some(layer) if layer >= layers => Err(PackError::NoLayer {
            origin: a.path(MANIFEST_FILE).display().to_string(),
            layer,
            layers,
        }),
        _ => Ok(()),
    }
}

/// Whether the values of two tensors can be compared one by one.
fn is_comparable(a: &TensorRef<'_>, b: &TensorRef<'_>) -> bool {
    let same_storage = match (a.entry, b.entry) {
        (Entry::Linear(_), Entry::Linear(_)) => true,
        (Entry::Exact(_), Entry::Exact(_)) => a.layer.is_some() == b.layer.is_some(),
        _ => false,
    };
    same_storage && a.shape() == b.shape()
}

/// What the manifests say about a pair.
fn compared(a: &Option<TensorRef<'_>>, b: &Option<TensorRef<'_>>) -> TensorDiff {
    let any = a.as_ref().or(b.as_ref()).expect("there is one of them");
    let (left, right) = (
        a.as_ref().map(TensorSide::new),
        b.as_ref().map(TensorSide::new),
    );
    let outcome = match (a, b) {
        (Some(a), Some(b)) if !is_comparable(a, b) => Outcome::Incomparable,
        (Some(_), Some(_)) => {
            let key = |side: &Option<TensorSide>| side.as_ref().map(|s| (s.dtype, s.sha256));
            match key(&left) == key(&right) {
                true => Outcome::Identical,
                false => Outcome::Differs,
            }
        }
        (Some(_), None) => Outcome::OnlyInA,
        (None, _) => Outcome::OnlyInB,
    };
    TensorDiff {
        name: any.name(),
        layer: any.layer.map(|layer| layer.index),
        outcome,
        a: left,
        b: right,
        error: None,
    }
}

/// The files that have to be read: those of layers that differ, and that of the non-layer tensors if one of them differs.
fn jobs<'a>(pairs: &[TensorPair<'a>], tensors: &[TensorDiff]) -> Vec<Job<'a>> {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    let mut by_layers: HashMap<Option<[u32; 2]>, usize> = HashMap::new();
    for (position, (pair, tensor)) in pairs.iter().zip(tensors).enumerate() {
        let (Some(a), Some(b)) = *pair else { continue };
        let is_compared = tensor.outcome == Outcome::Differs;
        let layers = a.layer.zip(b.layer);
        let files_differ = layers.is_some_and(|(a, b)| a.sha256 != b.sha256);
        let may_have_other_step = files_differ && tensor.outcome == Outcome::Identical;
        if !is_compared && !may_have_other_step {
            continue;
        }
        let key = layers.map(|(a, b)| [a.index, b.index]);
        let job = *by_layers.entry(key).or_insert_with(|| {
            jobs.push(Job::default());
            jobs.len() - 1
        });
        jobs[job].pairs.push(Pair {
            position,
            a,
            b,
            is_compared,
        });
    }
    jobs
}
