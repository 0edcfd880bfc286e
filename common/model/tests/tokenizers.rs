//! Tests with tokenizers of real models: which of them prepend a special token to a text, and that texts survive a
//! round trip.
//!
//! They are read from the folder that `UC_MODELS` names, or from `../shared/models` next to the repository. If neither
//! exists, nothing is tested.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

use uc_model::Tokenizer;

fn folder() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    let named = std::env::var_os("UC_MODELS").map(PathBuf::from);
    let folder = named.unwrap_or(default).join("tokenizers");
    folder.is_dir().then_some(folder)
}

#[test]
fn tokenizers_prepend_their_special_token_and_round_trip_texts() {
    let Some(folder) = folder() else {
        eprintln!("skipped: no tokenizers of real models (set UC_MODELS)");
        return;
    };
    let expected = [
        ("gpt_neox", None),
        ("llama2_spm", Some(1)),
        ("llama3_1", Some(128_000)),
        ("mistral_v0.3", Some(1)),
        ("olmo2_dolma2", None),
        ("phi3", None),
        ("qwen3", None),
        ("smollm2", None),
        ("yi1.5", None),
    ];
    let text = "The pack's 405 layers\n\tweigh 5.000 bits – naïve, isn't it?  Zwölf Boxkämpfer.";
    for (name, bos) in expected {
        let tokenizer =
            Tokenizer::load(&folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tokenizer.bos(), bos, "{name}");
        let ids = tokenizer.encode(text).unwrap();
        assert!(bos.is_none_or(|bos| !ids.contains(&bos)), "{name}");
        // Yi's decoder adds spaces between words.
        let decoded = tokenizer.decode(&ids).unwrap();
        assert!(
            decoded.split_whitespace().eq(text.split_whitespace()),
            "{name}: {decoded}"
        );
        let words = tokenizer.encode(&"word ".repeat(600)).unwrap();
        let windows = tokenizer.windows(&words, 64, 2, 42).unwrap();
        for window in windows {
            assert_eq!(window.ids.len(), 64, "{name}");
            assert_eq!(
                window.ids.first().copied().filter(|id| Some(*id) == bos),
                bos,
                "{name}"
            );
        }
    }
}
