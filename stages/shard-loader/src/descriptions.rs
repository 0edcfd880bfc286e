//! Which files of a model folder describe the model, apart from `config.json` and weights, and are therefore carried into the
//! pack: tokenizer files, chat templates, configurations, licences.
//!
//! A rule on names and sizes, not a list: what tomorrow's models add is carried too. Never carries code, which nobody could
//! check, nor weights in another format, nor a file whose name the pack needs itself.

use std::collections::BTreeSet;
use std::path::Path;

use uc_pack::licence::LEGAL_TEXTS;

/// Files that a run reads itself.
pub const METADATA_FILES: [&str; 6] = [
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];
/// Largest description file, in bytes. The largest known is a vocabulary of 17 MB.
const MAX_FILE: u64 = 32 << 20;
/// Largest size of all description files together, in bytes.
const MAX_TOTAL: u64 = 128 << 20;
/// Names that the pack uses itself, or that only concern the source.
const RESERVED: [&str; 5] = [
    "manifest.json",
    "manifest.sha256",
    "scaffold.uc",
    "readme.md",
    "trainer_state.json",
];
/// Endings of the files that only concern the source: indexes of weights, results of the training, adapters.
const RESERVED_ENDINGS: [&str; 3] = [".index.json", "results.json", "adapter_config.json"];
/// Endings of description files.
const ENDINGS: [&str; 4] = [".json", ".jinja", ".model", ".tiktoken"];
/// Description files with another ending.
const TOKENIZER_TEXTS: [&str; 2] = ["vocab.txt", "merges.txt"];
/// Endings that a legal text may have.
const LEGAL_ENDINGS: [&str; 4] = ["", ".txt", ".md", ".pdf"];
/// Endings of code.
const CODE: [&str; 3] = [".py", ".ipynb", ".sh"];

/// The description files of a folder, and those that were left out although someone might miss them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Descriptions {
    /// Names of the files that are carried, sorted.
    pub carried: Vec<String>,
    /// What was left out, with the reason.
    pub left_out: Vec<String>,
}

/// Whether a file of this name describes the model.
fn is_description(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let is_legal = LEGAL_TEXTS.iter().any(|start| {
        let rest = lower.strip_prefix(start);
        let ending = |rest: &str| {
            rest.rfind('.')
                .map_or(String::new(), |dot| rest[dot..].into())
        };
        // `LICENSE-2.0` has no ending.
        let is_text = |rest: &str| {
            LEGAL_ENDINGS.contains(&ending(rest).as_str())
                || rest.ends_with(|c: char| c.is_ascii_digit())
        };
        rest.is_some_and(is_text)
    });
    let is_reserved = RESERVED.contains(&lower.as_str())
        || RESERVED_ENDINGS
            .iter()
            .any(|ending| lower.ends_with(ending))
        || lower.starts_with("layer_");
    let has_ending = ENDINGS.iter().any(|ending| lower.ends_with(ending));
    !is_reserved && (is_legal || has_ending || TOKENIZER_TEXTS.contains(&lower.as_str()))
}

/// Whether a pack can have a file of this name.
fn is_portable(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.starts_with('.')
        && !name.contains("..")
        && name.len() <= 100
        && name.chars().all(is_allowed)
}

/// Selects from `files`, names and sizes in bytes, those that are carried besides [`METADATA_FILES`].
pub fn select(files: impl IntoIterator<Item = (String, u64)>) -> Descriptions {
    let mut files: Vec<(String, u64)> = files.into_iter().collect();
    files.sort();
    let mut selected = Descriptions::default();
    let mut taken: BTreeSet<String> = METADATA_FILES.iter().map(|name| (*name).into()).collect();
    let mut total = 0;
    for (name, size) in files {
        if METADATA_FILES.contains(&name.as_str()) {
            continue;
        }
        let shown = uc_input::printable(&name).into_owned();
        if CODE.iter().any(|ending| name.ends_with(ending)) {
            selected.left_out.push(format!("{shown} (code)"));
        } else if !is_description(&name) {
            continue;
        } else if !is_portable(&name) {
            selected.left_out.push(format!("{shown} (its name)"));
        } else if size > MAX_FILE || total + size > MAX_TOTAL {
            selected
                .left_out
                .push(format!("{shown} ({} MiB)", size >> 20));
        } else if !taken.insert(name.to_ascii_lowercase()) {
            selected
                .left_out
                .push(format!("{shown} (another name in other letters)"));
        } else {
            total += size;
            selected.carried.push(name);
        }
    }
    selected
}

/// The description files of the model folder `dir`.
pub fn of_folder(dir: &Path) -> Descriptions {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Follows links, as in the folders of the Hub's cache.
        let metadata = std::fs::metadata(entry.path()).ok()?;
        metadata.is_file().then_some((name, metadata.len()))
    });
    let mut selected = select(files);
    let templates = dir.join("chat_templates");
    if templates.is_dir() {
        selected.left_out.push("chat_templates (a folder)".into());
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_files_are_carried_by_rule() {
        let carried = [
            "LICENSE",
            "LICENSE-2.0",
            "LICENSE.txt",
            "License.md",
            "NOTICE",
            "USE_POLICY.md",
            "added_tokens.json",
            "chat_template.jinja",
            "chat_template.json",
            "merges.txt",
            "preprocessor_config.json",
            "qwen.tiktoken",
            "sentencepiece.bpe.model",
            "tokenizer.model",
            "vocab.json",
            "vocab.txt",
        ];
        let others = [
            ".gitattributes",
            "README.md",
            "adapter_config.json",
            "all_results.json",
            "calibration.txt",
            "config.json",
            "manifest.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "trainer_state.json",
            "training_args.bin",
        ];
        let files = carried
            .iter()
            .chain(&others)
            .map(|name| ((*name).to_owned(), 1));
        let selected = select(files);
        assert_eq!(selected.carried, carried);
        assert_eq!(selected.left_out, [""; 0]);
    }

    #[test]
    fn what_is_left_out_is_named() {
        let file = |name: &str, size| (name.to_owned(), size);
        let selected = select([
            file("modeling_x.py", 1),
            file("vocab.json", MAX_FILE + 1),
            file("LICENSE", 1),
            file("license", 1),
            file("LICENSE (1).txt", 1),
            file("a\u{1b}[2J.json", 1),
        ]);
        assert_eq!(selected.carried, ["LICENSE"]);
        let left_out = selected.left_out.join(", ");
        for part in [
            "modeling_x.py (code)",
            "vocab.json (32 MiB)",
            "license (another",
            "(1).txt (its name)",
            "\\u{1b}[2J",
        ] {
            assert!(left_out.contains(part), "{part} is missing in {left_out}");
        }
        let many = (0..10).map(|number| file(&format!("{number}.json"), MAX_FILE / 2));
        assert_eq!(select(many).carried.len(), 8);
    }
}
