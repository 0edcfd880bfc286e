//! Tests with tokenizers of real models: which of them prepend a special token to a text, that texts survive a round trip, and
//! that a text in pieces has the tokens of the whole.
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

/// A text of every kind that tokenizers treat in a way of its own, of about `4 * size` bytes.
fn mixed_text(folder: &Path, size: usize) -> String {
    let texts = folder.parent().expect("parent").join("text");
    let mut mixed = String::new();
    for (name, share) in [("c4.utf8", 1), ("code.utf8", 1), ("wiki.utf8", 2)] {
        let text = std::fs::read_to_string(texts.join(name)).expect("text");
        mixed.push_str(&text[..text.floor_char_boundary(size / share)]);
    }
    let part = size / 20;
    for repeated in [
        " ",
        "\n",
        "\n ",
        "\t\n\n  ",
        "0123456789",
        "x",
        "漢字かな交じり文。",
        "🙂",
        "a\u{301}",
        "aGVsbG8gd29ybGQ",
        "</s>",
        "\r\n",
        "Zwölf Boxkämpfer, ",
        "'s'll",
    ] {
        mixed.push_str("a word");
        mixed.push_str(&repeated.repeat(part / repeated.len() + 1));
    }
    mixed.push_str("the end");
    mixed
}

/// Compares the ids of texts in pieces with those of the tokenizers library for the whole text.
fn check_pieces(size: usize, names: &[&str]) {
    let Some(folder) = folder() else {
        eprintln!("skipped: no tokenizers of real models (set UC_MODELS)");
        return;
    };
    let text = mixed_text(&folder, size);
    for name in names {
        let model = folder.join(name);
        let library = tokenizers::Tokenizer::from_file(model.join("tokenizer.json")).unwrap();
        let whole = library.encode_fast(text.as_str(), false).unwrap();
        let ids = Tokenizer::load(&model).unwrap().encode(&text).unwrap();
        let differing = ids.iter().zip(whole.get_ids()).position(|(a, b)| a != b);
        assert_eq!(differing, None, "{name}");
        assert_eq!(ids.len(), whole.get_ids().len(), "{name}");
    }
}

#[test]
fn a_text_in_pieces_has_the_tokens_of_the_whole() {
    check_pieces(90_000, &["smollm2", "../stories260K"]);
}

#[test]
#[ignore = "slow: a minute"]
fn a_long_text_in_pieces_has_the_tokens_of_the_whole() {
    let names = [
        "gpt_neox",
        "llama2_spm",
        "llama3_1",
        "mistral_v0.3",
        "olmo2_dolma2",
        "phi3",
        "qwen3",
        "smollm2",
        "yi1.5",
        "../stories260K",
    ];
    check_pieces(1_200_000, &names);
}
