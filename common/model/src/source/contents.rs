//! What a folder holds that is not a model in the expected form, told in one sentence with the way on.
//!
//! Looks at names, and at the few small files that say what an adapter or an original checkpoint is. Reads no weights and
//! decides nothing: it is asked when `config.json`, weights or tokenizer are missing.

use std::path::Path;

use serde::Deserialize;
use uc_input::printable;

use super::folder::{INDEX, SINGLE};

/// Largest `adapter_config.json` that is read, in bytes.
const MAX_ADAPTER_CONFIG: u64 = 1 << 20;
/// Entries of a folder that are looked at, at most.
const MAX_ENTRIES: usize = 10_000;

/// The file names of a folder, sorted.
#[derive(Debug)]
pub struct Contents {
    names: Vec<String>,
}

/// The fields of an `adapter_config.json` that a message names.
#[derive(Debug, Default, Deserialize)]
struct Adapter {
    #[serde(default)]
    peft_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
}

impl Contents {
    /// The names in the folder `dir`; none if it cannot be read.
    pub fn of(dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.take(MAX_ENTRIES);
        let mut names: Vec<String> = names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Contents { names }
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether there is an entry of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
    }

    /// The names with one of these endings, at most five, and their number.
    fn with_endings(&self, endings: &[&str]) -> Option<String> {
        let is_such = |name: &&String| endings.iter().any(|ending| name.ends_with(ending));
        let found: Vec<&String> = self.names.iter().filter(is_such).collect();
        match found.as_slice() {
            [] => None,
            [name] => Some(printable(name).into_owned()),
            [first, ..] => Some(format!("{} and {} more", printable(first), found.len() - 1)),
        }
    }

    /// The description of an adapter in the folder: its kind and the model that it belongs to.
    pub fn adapter(&self, dir: &Path) -> Option<String> {
        if !self.has("adapter_config.json") {
            return self.with_endings(&["adapter_model.safetensors", "adapter_model.bin"]);
        }
        let path = dir.join("adapter_config.json");
        let adapter: Adapter = uc_input::read_json(path, MAX_ADAPTER_CONFIG).unwrap_or_default();
        let kind = adapter.peft_type.unwrap_or_else(|| "unknown".into());
        let base = adapter.base_model_name_or_path;
        let base = base.map_or_else(String::new, |base| format!(" of {}", printable(&base)));
        Some(format!("adapter_config.json ({}{base})", printable(&kind)))
    }
}

/// What a folder without weights in the expected form holds, what was expected and what to do.
pub(super) fn weights(dir: &Path) -> String {
    weights_of(&Contents::of(dir), dir)
}

fn weights_of(contents: &Contents, dir: &Path) -> String {
    const EXPECTED: &str =
        "expected model.safetensors, or model.safetensors.index.json with its shards";
    if let Some(adapter) = contents.adapter(dir) {
        return format!(
            "only an adapter, {adapter}, {EXPECTED}; merge it into its model (peft: merge_and_unload), save the result and \
             give that folder"
        );
    }
    if let Some(found) = contents.with_endings(&[".safetensors"]) {
        return format!(
            "{found} without an index, {EXPECTED}; get the index of these shards, or save the model again with \
             save_pretrained"
        );
    }
    for (endings, name) in [
        (
            &[".bin", ".pt", ".pth", ".ckpt"][..],
            "weights in PyTorch's format",
        ),
        (
            &[".h5", ".msgpack", ".onnx", ".npz"],
            "weights of another framework",
        ),
        (&[".gguf", ".ggml"], "a quantized file of llama.cpp"),
    ] {
        if let Some(found) = contents.with_endings(endings) {
            return format!(
                "only {name}, {found}, {EXPECTED}; load the original model with transformers and save it with \
                 save_pretrained(FOLDER, safe_serialization=True)"
            );
        }
    }
    format!("no weights, {EXPECTED}")
}

/// What a folder without `config.json` holds, what was expected and what to do.
pub(crate) fn config(dir: &Path) -> String {
    config_of(&Contents::of(dir), dir)
}

fn config_of(contents: &Contents, dir: &Path) -> String {
    const EXPECTED: &str = "expected config.json of a Hugging Face model folder";
    if dir.is_file() {
        return format!("a file, {EXPECTED}; give the folder that holds it");
    }
    if contents.has("manifest.sha256") || contents.has("scaffold.uc") {
        return format!("a pack, {EXPECTED}; give the model that it was made from");
    }
    if contents.has("run.json") {
        return format!("a run directory, {EXPECTED}; uc resume continues a run");
    }
    if contents.has("snapshots") {
        return format!(
            "a folder of the Hub's cache, {EXPECTED}; give the folder of a commit in its folder snapshots"
        );
    }
    if let Some(adapter) = contents.adapter(dir) {
        return format!(
            "only an adapter, {adapter}, {EXPECTED}; merge it into its model (peft: merge_and_unload), save the result and \
             give that folder"
        );
    }
    if let Some(found) = contents.with_endings(&[".gguf", ".ggml"]) {
        return format!(
            "only a quantized file of llama.cpp, {found}, {EXPECTED}; take the original model"
        );
    }
    if contents.has("params.json") {
        return format!(
            "an original checkpoint with params.json, {EXPECTED}; convert it with the script of its family in transformers"
        );
    }
    match contents.names.as_slice() {
        [] => format!("an empty folder, {EXPECTED}"),
        names => {
            let shown: Vec<_> = names.iter().take(5).map(|name| printable(name)).collect();
            let more = names.len().saturating_sub(5);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!(
                "{}{more}, {EXPECTED}; give the folder that holds it",
                shown.join(", ")
            )
        }
    }
}

/// What a folder without `tokenizer.json` holds, what was expected and what to do.
pub fn tokenizer(dir: &Path) -> String {
    tokenizer_of(&Contents::of(dir))
}

fn tokenizer_of(contents: &Contents) -> String {
    let files = [
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "vocab.txt",
        "tekken.json",
    ];
    let found: Vec<&str> = files
        .into_iter()
        .filter(|name| contents.has(name))
        .collect();
    let found = match found.as_slice() {
        [] => "no tokenizer".to_owned(),
        found => format!("only {}", found.join(", ")),
    };
    format!(
        "{found}, expected tokenizer.json; write it with transformers: \
         AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
    )
}

/// A warning if a folder has both a single weight file and an index.
pub fn two_sources(dir: &Path) -> Option<String> {
    let both = dir.join(SINGLE).exists() && dir.join(INDEX).exists();
    both.then(|| {
        format!(
            "{}: found {SINGLE} and {INDEX}; the weights are read from {SINGLE}",
            dir.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_folder_without_a_model_is_named_with_the_way_on() {
        let (weights, config) = (weights_of, config_of);
        let tokenizer = |contents: &Contents, _: &Path| tokenizer_of(contents);
        type Said = fn(&Contents, &Path) -> String;
        let cases: [(&[&str], Said, [&str; 2]); 10] = [
            (
                &["adapter_config.json", "adapter_model.safetensors"],
                weights,
                ["adapter", "merge"],
            ),
            (
                &["pytorch_model.bin"],
                weights,
                ["PyTorch", "safe_serialization"],
            ),
            (
                &["model-00001-of-00002.safetensors"],
                weights,
                ["without an index", "save_pretrained"],
            ),
            (&["model.gguf"], weights, ["llama.cpp", "original"]),
            (
                &["config.json"],
                weights,
                ["no weights", "model.safetensors"],
            ),
            (&["adapter_config.json"], config, ["adapter", "merge"]),
            (&["snapshots"], config, ["cache", "commit"]),
            (&["scaffold.uc"], config, ["a pack", "made from"]),
            (
                &["tokenizer.model"],
                tokenizer,
                ["only tokenizer.model", "use_fast"],
            ),
            (&["config.json"], tokenizer, ["no tokenizer", "use_fast"]),
        ];
        for (files, said, words) in cases {
            let names = files.iter().map(|name| (*name).to_owned()).collect();
            let said = said(&Contents { names }, Path::new("absent"));
            for word in words {
                assert!(said.contains(word), "{files:?}: {said}");
            }
            assert!(said.contains("expected"), "{said}");
        }
    }
}
