//! A tensor of a pack by its full name.
//!
//! Owns the translation of a name into a place in the manifest, and the suggestion of similar names. Opens no file.

use std::cell::OnceCell;

use crate::digest::Digest;
use crate::error::PackError;
use crate::manifest::{ExactEntry, LayerEntry, LinearEntry, Manifest};
use crate::pack::Pack;
use crate::{MANIFEST_FILE, NON_LAYER_FILE};

/// Suffix that a requested name may lack.
const WEIGHT: &str = ".weight";
/// Most names that an error suggests.
const MAX_SUGGESTIONS: usize = 3;

/// What the manifest records about a tensor.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A coded matrix of a layer.
    Linear(&'a LinearEntry),
    /// A tensor that is stored unchanged, of a layer or outside the layers.
    Exact(&'a ExactEntry),
}

/// A tensor of a pack.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// The layer that it belongs to, if any.
    pub layer: Option<&'a LayerEntry>,
    /// Its position in the list of linears or exact tensors that it belongs to.
    pub index: usize,
    /// What the manifest records.
    pub entry: Entry<'a>,
}

impl<'a> TensorRef<'a> {
    /// The full name.
    pub fn name(&self) -> String {
        let name = match self.entry {
            Entry::Linear(entry) => &entry.name,
            Entry::Exact(entry) => &entry.name,
        };
        format!("{}{name}", self.layer.map_or("", |layer| &layer.prefix))
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &'a [u64] {
        match self.entry {
            Entry::Linear(entry) => &entry.shape,
            Entry::Exact(entry) => &entry.shape,
        }
    }

    /// Number of elements.
    pub fn parameters(&self) -> u64 {
        self.shape().iter().fold(1, |n, dim| n.saturating_mul(*dim))
    }

    /// Digest of the values as a reader of the pack gets them.
    pub fn sha256(&self) -> Digest {
        match self.entry {
            Entry::Linear(entry) => entry.reconstructed_sha256,
            Entry::Exact(entry) => entry.sha256,
        }
    }

    /// Name of the file of the pack that holds it.
    pub fn file(&self) -> &'a str {
        self.layer.map_or(NON_LAYER_FILE, |layer| &layer.file)
    }
}

impl Manifest {
    /// All tensors: those of every layer, linears first, then those outside the layers.
    pub fn tensors(&self) -> impl Iterator<Item = TensorRef<'_>> {
        let in_layers = self.layers.iter().flat_map(|layer| {
            let linears = layer.linears.iter().map(Entry::Linear).enumerate();
            let exact = layer.exact.iter().map(Entry::Exact).enumerate();
            linears.chain(exact).map(move |(index, entry)| TensorRef {
                layer: Some(layer),
                index,
                entry,
            })
        });
        let outside = self.non_layer.tensors.iter().enumerate();
        in_layers.chain(outside.map(|(index, entry)| TensorRef {
            layer: None,
            index,
            entry: Entry::Exact(entry),
        }))
    }

    /// Tells whether the full name of a tensor contains a text: checkpoints of one family name or arrange some tensors
    /// differently. A configuration is read with one such question for each layer, so the names are collected once.
    pub fn name_search(&self) -> impl Fn(&str) -> bool + '_ {
        let names = OnceCell::new();
        move |part| {
            let collect = || self.tensors().map(|tensor| tensor.name()).collect();
            let names: &Vec<String> = names.get_or_init(collect);
            names.iter().any(|name| name.contains(part))
        }
    }

    /// The tensor with a full name, for example `model.layers.0.self_attn.q_proj.weight`; `.weight` may be left out.
    pub fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        let named = |name: &str| self.tensors().find(|tensor| tensor.name() == name);
        named(name).or_else(|| named(&format!("{name}{WEIGHT}")))
    }
}

impl Pack {
    /// The tensor with a full name; `.weight` may be left out.
    ///
    /// # Errors
    /// `UnknownTensor` with the most similar names.
    pub fn tensor(&self, name: &str) -> Result<TensorRef<'_>, PackError> {
        self.manifest()
            .tensor(name)
            .ok_or_else(|| PackError::UnknownTensor {
                origin: self.path(MANIFEST_FILE).display().to_string(),
                tensor: name.to_owned(),
                nearest: nearest(name, self.manifest().tensors().map(|tensor| tensor.name())),
            })
    }
}

/// The names that contain a word, or else those that a few typing errors turn into it.
fn nearest(word: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let most = (word.len() / 3).max(2);
    let scored = names.filter_map(|name| {
        let distance = match !word.is_empty() && name.contains(word) {
            true => 0,
            false => strsim::damerau_levenshtein(
                word.trim_end_matches(WEIGHT),
                name.trim_end_matches(WEIGHT),
            ),
        };
        (distance <= most).then_some((distance, name))
    });
    let mut scored: Vec<_> = scored.collect();
    // Stable: names that are equally similar stay in the order of the pack.
    scored.sort_by_key(|(distance, _)| *distance);
    let names = scored.into_iter().take(MAX_SUGGESTIONS);
    names.map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_and_parts_of_names_are_recognized_and_other_words_are_not() {
        let names = [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.1.self_attn.q_proj.weight",
            "model.embed_tokens.weight",
        ];
        let cases: [(&str, &[usize]); 5] = [
            ("model.layers.0.self_attn.qproj", &[0, 1, 2]),
            ("q_proj", &[0, 2]),
            ("model.embed_token.weight", &[3]),
            ("lm_head", &[]),
            ("", &[]),
        ];
        for (word, expected) in cases {
            let found = nearest(word, names.iter().map(|name| (*name).to_owned()));
            let expected: Vec<_> = expected.iter().map(|&i| names[i].to_owned()).collect();
            assert_eq!(found, expected, "{word}");
        }
    }
}
