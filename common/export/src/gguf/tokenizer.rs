//! The tokenizer of a pack in the terms of llama.cpp: its two kinds of BPE, token types, special tokens, chat template.
//!
//! llama.cpp implements pre-tokenizers by name. The name is found from what `tokenizer.json` does, never from the model's name;
//! a tokenizer that llama.cpp would not imitate exactly is refused by name. Reads the tokenizer's files of a pack.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Json;
use uc_pack::Pack;
use uc_store::StoreError;

use super::values::Value;
use crate::error::{ExportError, unsupported};

/// Token types of llama.cpp.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The character that stands for a space.
const SPACE: &str = "\u{2581}";
/// The pattern of the tokenizers of Llama 3 and of GPT-4.
const PATTERN_THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of the tokenizers of Qwen 2 and 3.
const PATTERN_ONE_DIGIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Metadata of a tokenizer, and what differs from it in llama.cpp.
pub type Description = (Vec<(String, Value)>, Vec<String>);

/// The metadata of the tokenizer of a pack for a model with `vocab` embeddings.
///
/// # Errors
/// `Store`, and `Unsupported` for a tokenizer that llama.cpp does not imitate.
pub fn describe(pack: &Pack, vocab: usize) -> Result<Description, ExportError> {
    let files = Files { pack };
    let tokenizer = files.json("tokenizer.json")?.ok_or_else(|| {
        unsupported(
            "tokenizer",
            "no tokenizer.json in the pack",
            "one: llama.cpp needs a vocabulary",
        )
    })?;
    let model = &tokenizer["model"];
    let found = model["type"].as_str().unwrap_or("none");
    if found != "BPE" {
        let expected =
            "BPE, which llama.cpp imitates exactly; --to safetensors exports every tokenizer";
        return Err(unsupported("tokenizer.json: model.type", found, expected));
    }
    let mut metadata = Vec::new();
    let mut notes = Vec::new();
    let vocabulary = Vocabulary::read(&tokenizer, vocab)?;
    let merges = merges(model)?;
    let mut add = |key: &str, value: Value| metadata.push((format!("tokenizer.{key}"), value));
    if model["byte_fallback"].as_bool() == Some(true) {
        let prefix = space_prefix(&tokenizer, &mut notes)?;
        add("ggml.model", "llama".into());
        add("ggml.pre", "default".into());
        add("ggml.add_space_prefix", prefix.into());
        add("ggml.scores", Value::F32s(vocabulary.scores(&merges)?));
    } else {
        let pre = pre_tokenizer(&tokenizer)?;
        if tokenizer["normalizer"]["type"] == "NFC" {
            let note = "llama.cpp does not compose characters (NFC): text that is not in this form gives other tokens";
            notes.push(note.into());
        }
        add("ggml.model", "gpt2".into());
        add("ggml.pre", pre.into());
        let merges = merges.iter().map(|(a, b)| format!("{a} {b}"));
        add("ggml.merges", Value::Texts(merges.collect()));
    }
    let specials = Specials::find(&files, &tokenizer, &vocabulary)?;
    add("ggml.token_type", Value::I32s(vocabulary.kinds));
    add("ggml.tokens", Value::Texts(vocabulary.tokens));
    for (name, id) in &specials.ids {
        add(&format!("ggml.{name}_token_id"), (*id).into());
    }
    add("ggml.add_bos_token", specials.adds_bos.into());
    add("ggml.add_eos_token", specials.adds_eos.into());
    if !specials.ids.contains_key("eos") {
        notes.push(
            "the tokenizer names no end of text; llama.cpp takes a token of its own choice for it"
                .into(),
        );
    }
    if let Some(template) = chat_template(&files)? {
        add("chat_template", template.as_str().into());
    }
    Ok((metadata, notes))
}

/// The description files of a pack.
struct Files<'a> {
    pack: &'a Pack,
}

impl Files<'_> {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ExportError> {
        let mut files = self.pack.manifest().files.iter();
        if files.all(|file| file.name != name) {
            return Ok(None);
        }
        let path = self.pack.path(name);
        let bytes = uc_input::read(&path, uc_input::LARGE_JSON).map_err(|source| {
            let path = path.display().to_string().into();
            StoreError::Io {
                action: "read",
                path,
                source,
            }
        })?;
        Ok(Some(bytes))
    }

    fn json(&self, name: &str) -> Result<Option<Json>, ExportError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let json = serde_json::from_slice(&bytes);
        json.map(Some)
            .map_err(|error| unsupported(name, error, "a JSON document"))
    }
}

/// The tokens by their ids, and their types.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn read(tokenizer: &Json, size: usize) -> Result<Self, ExportError> {
        let mut this = Self {
            tokens: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![kind::UNUSED; size],
            ids: HashMap::new(),
        };
        let unknown = tokenizer["model"]["unk_token"].as_str();
        let has_bytes = tokenizer["model"]["byte_fallback"].as_bool() == Some(true);
        for (token, id) in tokenizer["model"]["vocab"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let kind = match token {
                token if Some(token.as_str()) == unknown => kind::UNKNOWN,
                token if has_bytes && is_byte(token) => kind::BYTE,
                _ => kind::NORMAL,
            };
            this.put(token, id, kind)?;
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let token = added["content"].as_str().unwrap_or_default();
            let kind = match added["special"].as_bool() {
                _ if Some(token) == unknown => kind::UNKNOWN,
                Some(true) => kind::CONTROL,
                _ => kind::USER_DEFINED,
            };
            this.put(token, &added["id"], kind)?;
            if kind == kind::USER_DEFINED
                && let Some(id) = this.ids.get(token)
            {
                // llama.cpp looks for the text before spaces are replaced.
                this.tokens[*id as usize] = token.replace(SPACE, " ");
            }
        }
        Ok(this)
    }

    fn put(&mut self, token: &str, id: &Json, kind: i32) -> Result<(), ExportError> {
        let size = self.tokens.len();
        let id = id.as_u64().filter(|id| *id < size as u64).ok_or_else(|| {
            let expected = format!("below {size}, the number of embeddings");
            unsupported(format!("id of the token {token:?}"), id, expected)
        })?;
        self.tokens[id as usize] = token.to_owned();
        self.kinds[id as usize] = kind;
        self.ids.insert(token.to_owned(), id as u32);
        Ok(())
    }

    /// The score of every token, by which llama.cpp chooses the next merge: the higher, the earlier its pairs are merged.
    ///
    /// It merges any two neighbours whose joined text is a token, in the order of the joined tokens' scores. That equals the list
    /// of merges if the merges to one token stand together, and if none is left out. Runs of one character are an exception: their
    /// merges may alternate, if longer runs grow before shorter ones begin.
    fn scores(&self, merges: &[(String, String)]) -> Result<Vec<f32>, ExportError> {
        let mut scores = vec![0.0; self.tokens.len()];
        let mut ranks = HashMap::new();
        let (mut last, mut seen) = (String::new(), HashSet::new());
        // The characters of runs whose merges alternate.
        let mut alternating = HashSet::new();
        for (rank, (a, b)) in (1u32..).zip(merges) {
            let token = format!("{a}{b}");
            ranks.insert((a.as_str(), b.as_str()), rank);
            if token == last {
                continue;
            }
            if !seen.insert(token.clone()) {
                if !is_run(&token) {
                    return refuse_merges("merges to one token that do not stand together", &token);
                }
                alternating.extend(token.chars().next());
                continue;
            }
            let Some(&id) = self.ids.get(&token) else {
                return refuse_merges("a merge to something that is no token", &token);
            };
            scores[id as usize] = -(rank as f32);
            last = token;
        }
        for (token, &id) in &self.ids {
            if self.kinds[id as usize] == kind::NORMAL {
                let alternates = token
                    .chars()
                    .next()
                    .is_some_and(|c| alternating.contains(&c));
                self.check_merges(token, &ranks, alternates)?;
            }
        }
        Ok(scores)
    }

    /// Checks that every merge to a token is in the list, and that a run grows before a shorter one begins.
    fn check_merges(
        &self,
        token: &str,
        ranks: &HashMap<(&str, &str), u32>,
        alternates: bool,
    ) -> Result<(), ExportError> {
        let is_piece = |part: &str| {
            let kind = self.ids.get(part).map(|id| self.kinds[*id as usize]);
            kind == Some(kind::NORMAL)
        };
        for (at, _) in token.char_indices().skip(1) {
            let pair = token.split_at(at);
            if is_piece(pair.0) && is_piece(pair.1) && !ranks.contains_key(&pair) {
                return refuse_merges("a merge that is left out, to the token", token);
            }
        }
        if let Some((first, _)) = token.char_indices().nth(1)
            && alternates
            && is_run(token)
        {
            // From (run, character) to the run that is longer by one.
            let growth = |run: &str| ranks.get(&run.split_at(run.len() - first)).copied();
            let (own, shorter) = (growth(token), growth(&token[first..]));
            if own.zip(shorter).is_some_and(|(own, shorter)| own > shorter) {
                return refuse_merges("a run that begins before a longer one grows", token);
            }
        }
        Ok(())
    }
}

/// Whether a text is one character several times.
fn is_run(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next();
    characters.all(|c| Some(c) == first)
}

/// The error for a list of merges that llama.cpp's scores cannot express.
fn refuse_merges<T>(what: &str, token: &str) -> Result<T, ExportError> {
    let expected = "a list that follows from scores of tokens, as SentencePiece's does";
    Err(unsupported(
        format!("tokenizer.json: {what}"),
        format!("{token:?}"),
        expected,
    ))
}

/// Whether a token stands for a byte: `<0x00>` to `<0xFF>`.
fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// The merges, in either spelling.
fn merges(model: &Json) -> Result<Vec<(String, String)>, ExportError> {
    let list = model["merges"].as_array().into_iter().flatten();
    list.map(|merge| {
        let pair = match merge {
            Json::String(text) => text.split_once(' '),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(a), Json::String(b)] => Some((a.as_str(), b.as_str())),
                _ => None,
            },
            _ => None,
        };
        let pair = pair.map(|(a, b)| (a.to_owned(), b.to_owned()));
        pair.ok_or_else(|| unsupported("tokenizer.json: a merge", merge, "two tokens"))
    })
    .collect()
}

/// Whether a space is put before a text, for a tokenizer that replaces spaces by a visible character.
fn space_prefix(tokenizer: &Json, notes: &mut Vec<String>) -> Result<bool, ExportError> {
    let steps = steps(&tokenizer["normalizer"], "normalizers");
    let replaces = |step: &Json| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    let prepends = |step: &Json| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let pre = &tokenizer["pre_tokenizer"];
    // After the replacement there is no space left at which this one could split.
    let splits_nothing = pre["type"] == "Split" && pre["pattern"]["String"] == " ";
    let metaspace =
        pre["type"] == "Metaspace" && pre["replacement"] == SPACE && pre["split"] == false;
    match (steps.as_slice(), pre["prepend_scheme"].as_str()) {
        ([first, second], _) if prepends(first) && replaces(second) && pre.is_null() => Ok(true),
        ([only], _) if replaces(only) && (pre.is_null() || splits_nothing) => Ok(false),
        ([], Some("always")) if metaspace => Ok(true),
        ([], Some("never")) if metaspace => Ok(false),
        ([], Some("first")) if metaspace => {
            notes.push("after a special token within a text, llama.cpp adds a space that transformers does not add".into());
            Ok(true)
        }
        _ => {
            let found = format!("{} and {pre}", tokenizer["normalizer"]);
            let expected = "the replacement of spaces by ▁, with or without one before the text";
            Err(unsupported(
                "tokenizer.json: normalizer and pre_tokenizer",
                found,
                expected,
            ))
        }
    }
}

/// The steps of a sequence, or the only one.
fn steps(value: &Json, list: &str) -> Vec<Json> {
    match (value, value["type"].as_str()) {
        (Json::Null, _) => Vec::new(),
        (_, Some("Sequence")) => value[list].as_array().cloned().unwrap_or_default(),
        _ => vec![value.clone()],
    }
}

/// The name of llama.cpp for a pre-tokenizer on bytes.
fn pre_tokenizer(tokenizer: &Json) -> Result<&'static str, ExportError> {
    let model = &tokenizer["model"];
    let has_text = |key: &str| model[key].as_str().is_some_and(|text| !text.is_empty());
    let normalizer = &tokenizer["normalizer"];
    if has_text("continuing_subword_prefix")
        || has_text("end_of_word_suffix")
        || !(normalizer.is_null() || normalizer["type"] == "NFC")
    {
        let expected = "no parts of words that are marked, and no normalizer but NFC";
        return Err(unsupported(
            "tokenizer.json: normalizer",
            normalizer,
            expected,
        ));
    }
    let ignores_merges = model["ignore_merges"].as_bool().unwrap_or(false);
    let steps = steps(&tokenizer["pre_tokenizer"], "pretokenizers");
    // On bytes, with or without the pattern of GPT-2.
    let is_bytes = |step: &Json, with_pattern: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"].as_bool().unwrap_or(true) == with_pattern
    };
    let is_digits = |step: &Json| step["type"] == "Digits" && step["individual_digits"] == true;
    let splits_by = |step: &Json, pattern: &str| {
        let way = (step["behavior"].as_str(), step["invert"].as_bool());
        step["type"] == "Split"
            && step["pattern"]["Regex"] == pattern
            && matches!(
                way,
                (Some("Isolated"), Some(false)) | (Some("Removed"), Some(true))
            )
    };
    let name = match steps.as_slice() {
        [bytes] if is_bytes(bytes, true) => Some(("gpt-2", false)),
        [digits, bytes] if is_digits(digits) && is_bytes(bytes, true) => Some(("smollm", false)),
        [split, bytes] if splits_by(split, PATTERN_THREE_DIGITS) && is_bytes(bytes, false) => {
            match ignores_merges {
                true => Some(("llama-bpe", true)),
                false => Some(("dbrx", false)),
            }
        }
        [split, bytes] if splits_by(split, PATTERN_ONE_DIGIT) && is_bytes(bytes, false) => {
            Some(("qwen2", false))
        }
        _ => None,
    };
    let name = name.filter(|(_, ignores)| *ignores == ignores_merges);
    name.map(|(name, _)| name).ok_or_else(|| {
        let found = format!("{} (ignore_merges: {ignores_merges})", tokenizer["pre_tokenizer"]);
        let expected = "that of GPT-2, SmolLM, Llama 3, Qwen 2 or OLMo 2; --to safetensors exports every tokenizer";
        unsupported("tokenizer.json: pre_tokenizer", found, expected)
    })
}

/// The special tokens.
struct Specials {
    /// By llama.cpp's name.
    ids: BTreeMap<&'static str, u32>,
    adds_bos: bool,
    adds_eos: bool,
}

impl Specials {
    fn find(
        files: &Files<'_>,
        tokenizer: &Json,
        vocabulary: &Vocabulary,
    ) -> Result<Self, ExportError> {
        let [settings, map, config] = [
            "tokenizer_config.json",
            "special_tokens_map.json",
            "config.json",
        ]
        .map(|name| files.json(name));
        let [settings, map, config] = [settings?, map?, config?].map(Option::unwrap_or_default);
        let mut ids = BTreeMap::new();
        let names = [
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        ];
        for (name, theirs) in names {
            let token = |json: &Json| {
                let token = &json[format!("{name}_token")];
                let text = token.as_str().or(token["content"].as_str())?;
                vocabulary.ids.get(text).copied()
            };
            let by_id = || {
                let id = &config[format!("{name}_token_id")];
                let id = id.as_u64().or_else(|| id.as_array()?.first()?.as_u64())?;
                u32::try_from(id)
                    .ok()
                    .filter(|id| (*id as usize) < vocabulary.tokens.len())
            };
            if let Some(id) = token(&settings).or_else(|| token(&map)).or_else(by_id) {
                ids.insert(theirs, id);
            }
        }
        let mut specials = Self {
            ids,
            adds_bos: false,
            adds_eos: false,
        };
        specials.read_template(tokenizer, vocabulary)?;
        Ok(specials)
    }

    /// What the tokenizer puts around a text.
    fn read_template(
        &mut self,
        tokenizer: &Json,
        vocabulary: &Vocabulary,
    ) -> Result<(), ExportError> {
        let steps = steps(&tokenizer["post_processor"], "processors");
        let mut templates = steps
            .iter()
            .filter(|step| step["type"] == "TemplateProcessing");
        let single = templates.next().map(|template| &template["single"]);
        let pieces = single
            .and_then(Json::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let special = |piece: &Json| {
            let token = piece["SpecialToken"]["id"].as_str()?;
            vocabulary.ids.get(token).copied()
        };
        let is_text = |piece: &Json| piece["Sequence"].is_object();
        let known = steps.iter().all(|step| {
            matches!(
                step["type"].as_str(),
                Some("TemplateProcessing" | "ByteLevel")
            )
        });
        let around = match pieces {
            [] => Some((None, None)),
            [text] if is_text(text) => Some((None, None)),
            [bos, text] if is_text(text) => special(bos).map(|bos| (Some(bos), None)),
            [text, eos] if is_text(text) => special(eos).map(|eos| (None, Some(eos))),
            [bos, text, eos] if is_text(text) => special(bos)
                .zip(special(eos))
                .map(|(bos, eos)| (Some(bos), Some(eos))),
            _ => None,
        };
        let Some((bos, eos)) = around.filter(|_| known) else {
            let expected = "at most one special token before and one after the text";
            return Err(unsupported(
                "tokenizer.json: post_processor",
                &tokenizer["post_processor"],
                expected,
            ));
        };
        (self.adds_bos, self.adds_eos) = (bos.is_some(), eos.is_some());
        for (name, id) in [("bos", bos), ("eos", eos)] {
            self.ids.extend(id.map(|id| (name, id)));
        }
        Ok(())
    }
}

/// The chat template, from the tokenizer's settings or from a file of its own.
fn chat_template(files: &Files<'_>) -> Result<Option<String>, ExportError> {
    if let Some(bytes) = files.read("chat_template.jinja")? {
        return Ok(String::from_utf8(bytes).ok());
    }
    let settings = files.json("tokenizer_config.json")?.unwrap_or_default();
    let template = &settings["chat_template"];
    let named = || {
        let mut list = template.as_array()?.iter();
        let default = list.find(|entry| entry["name"] == "default")?;
        default["template"].as_str()
    };
    Ok(template.as_str().or_else(named).map(str::to_owned))
}
