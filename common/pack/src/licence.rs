//! The licence of the source, for model cards, as far as the files of the pack tell it.
//!
//! A pack carries the licence file of its source. Its first lines name the usual licences; any other is referred to by file. No
//! licence is guessed: without a file, the card names none.

use std::path::Path;

use crate::manifest::Manifest;

/// Bytes at the start of a licence file in which its title is looked for.
const TITLE_BYTES: usize = 2_000;
/// Largest licence file that is read, bytes.
const MAX_LICENCE: u64 = 1 << 20;

/// Beginnings of the names of legal texts, in lower case: they accompany the weights.
pub const LEGAL_TEXTS: [&str; 6] = [
    "license",
    "licence",
    "notice",
    "copying",
    "copyright",
    "use_policy",
];

/// A licence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Licence {
    /// Its identifier on the Hub.
    Known(&'static str),
    /// Another one, by the name of its file.
    Other(String),
}

/// The licence file among the files of a pack.
pub fn find(pack: &Path, manifest: &Manifest) -> Option<Licence> {
    let is_licence = |name: &str| {
        let name = name.to_ascii_uppercase();
        name.starts_with("LICENSE") || name.starts_with("LICENCE") || name == "COPYING"
    };
    let file = manifest.files.iter().find(|file| is_licence(&file.name))?;
    let text = uc_input::read(pack.join(&file.name), MAX_LICENCE).ok()?;
    let text = String::from_utf8_lossy(&text[..text.len().min(TITLE_BYTES)]).into_owned();
    Some(identify(&text).map_or_else(|| Licence::Other(file.name.clone()), Licence::Known))
}

/// The identifier of a licence by its title.
fn identify(text: &str) -> Option<&'static str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").to_ascii_lowercase();
    let has = |part: &str| text.contains(part);
    if has("apache license") && has("version 2.0") {
        Some("apache-2.0")
    } else if has("mit license") || text.starts_with("permission is hereby granted, free of charge")
    {
        Some("mit")
    } else if has("bsd 3-clause") {
        Some("bsd-3-clause")
    } else if has("bsd 2-clause") {
        Some("bsd-2-clause")
    } else if text.starts_with("gnu general public license version 3") {
        Some("gpl-3.0")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_licences_are_named_by_their_title_and_others_are_not_guessed() {
        for (text, expected) in [
            (
                "   Apache License\n  Version 2.0, January 2004",
                Some("apache-2.0"),
            ),
            ("MIT License\n\nCopyright (c) 2024", Some("mit")),
            ("BSD 3-Clause License", Some("bsd-3-clause")),
            ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", None),
            ("", None),
        ] {
            assert_eq!(identify(text), expected, "{text}");
        }
    }
}
