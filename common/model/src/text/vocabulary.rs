//! The bytes that each token of a vocabulary stands for, as the tokenizer's decoder makes them.
//!
//! Knows the two kinds of decoders of published models: byte-level, where each character of a token is a byte, and
//! SentencePiece, where `▁` is a space and `<0x0A>` a byte. Bytes before they are joined to characters: a token may hold
//! part of one.

use std::collections::HashMap;

use serde_json::Value;

/// A token of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBytes {
    /// What it stands for. Of a special token, its name.
    pub bytes: Vec<u8>,
    /// Whether it marks a place in a text, such as its end, and is no part of it.
    pub special: bool,
}

/// How the texts of tokens stand for bytes.
#[derive(Debug, Clone)]
pub(super) enum Alphabet {
    /// Each character is a byte.
    ByteLevel(HashMap<char, u8>),
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
    /// Characters are themselves.
    Plain,
}

impl Alphabet {
    /// That of a decoder of `tokenizer.json`; the name of a decoder that does something else.
    pub(super) fn of(decoder: &Value) -> Result<Self, String> {
        let mut parts = Vec::new();
        flatten(decoder, &mut parts);
        let has = |name: &str| parts.iter().any(|part| part["type"] == name);
        let known = [
            "ByteLevel",
            "ByteFallback",
            "Fuse",
            "Metaspace",
            "Replace",
            "Strip",
        ];
        let unknown = parts
            .iter()
            .filter_map(|part| part["type"].as_str())
            .find(|kind| !known.contains(kind));
        if let Some(kind) = unknown {
            return Err(kind.to_owned());
        }
        Ok(if has("ByteLevel") {
            Alphabet::ByteLevel(byte_characters())
        } else if has("ByteFallback") || has("Metaspace") || has("Replace") {
            Alphabet::SentencePiece
        } else {
            Alphabet::Plain
        })
    }

    /// The bytes of a token with this text.
    pub(super) fn bytes(&self, text: &str) -> Vec<u8> {
        match self {
            Alphabet::ByteLevel(bytes) => {
                let known: Option<Vec<u8>> = text.chars().map(|c| bytes.get(&c).copied()).collect();
                known.unwrap_or_else(|| text.as_bytes().to_vec())
            }
            Alphabet::SentencePiece => match byte_name(text) {
                Some(byte) => vec![byte],
                None => text.replace('\u{2581}', " ").into_bytes(),
            },
            Alphabet::Plain => text.as_bytes().to_vec(),
        }
    }
}

/// The decoder's parts, in their order.
fn flatten<'a>(decoder: &'a Value, parts: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(decoders) => decoders.iter().for_each(|part| flatten(part, parts)),
        None if decoder.is_null() => {}
        None => parts.push(decoder),
    }
}

/// The byte of a token that is called `<0x0A>`.
fn byte_name(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2;
    is_byte.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The characters that stand for bytes in byte-level vocabularies: printable bytes for themselves, the others, in their order,
/// from U+0100 on (Radford et al. 2019, the code of GPT-2).
fn byte_characters() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let character = |byte: u8| {
        let code = match is_printable(byte) {
            true => u32::from(byte),
            false => {
                next += 1;
                next - 1
            }
        };
        (char::from_u32(code).unwrap_or_default(), byte)
    };
    (0..=u8::MAX).map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_byte_has_its_character() {
        let characters = byte_characters();
        assert_eq!(characters.len(), 256);
        for (character, byte) in [
            ('!', b'!'),
            ('\u{120}', b' '),
            ('\u{10a}', b'\n'),
            ('\u{e9}', 0xe9),
            ('\u{143}', 0xad),
        ] {
            assert_eq!(characters[&character], byte, "{character}");
        }
    }

    #[test]
    fn the_decoder_says_what_the_text_of_a_token_stands_for() {
        let byte_level = json!({"type": "ByteLevel"});
        let sentence_piece = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        for (decoder, text, expected) in [
            (&byte_level, "\u{120}a\u{10a}", &b" a\n"[..]),
            (&sentence_piece, "\u{2581}a", b" a"),
            (&sentence_piece, "<0xE2>", b"\xe2"),
            (&sentence_piece, "<0xE2", b"<0xE2"),
            (&Value::Null, "a", b"a"),
        ] {
            let alphabet = Alphabet::of(decoder).expect("known");
            assert_eq!(alphabet.bytes(text), expected, "{text}");
        }
        let error = Alphabet::of(&json!({"type": "WordPiece"})).expect_err("unknown");
        assert_eq!(error, "WordPiece");
    }
}
