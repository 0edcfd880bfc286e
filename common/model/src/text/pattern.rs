//! Splitting by a tokenizer's pattern, where a limit of the pattern engine is an error.
//!
//! `tokenizers` ends its search in silence when the engine gives up, so that everything after a long run of spaces stays one
//! piece. [`Pattern`] finds the same matches and reports the limit. Patterns that end in the alternatives `\s+(?!\S)|\s+`, as
//! those of nearly all byte-level tokenizers do, need no backtracking here: there is no limit to the length of a run. Owns no
//! tokenizer, and never changes what a pattern matches.

use tokenizers::pattern::Pattern as Finds;
use tokenizers::{Offsets, Result};

/// The alternatives in which most patterns of byte-level tokenizers end: whitespace up to the last one before a word.
const SPACES_TAIL: &str = r"|\s+(?!\S)|\s+";

/// A pattern that cuts a text.
#[derive(Debug)]
pub struct Pattern(Engine);

#[derive(Debug)]
enum Engine {
    /// `HEAD|\s+(?!\S)|\s+` as a regular language: `HEAD|\s+`, whose last alternative gives up its last character before a
    /// word.
    SpacesTail {
        whole: regex::Regex,
        head: regex::Regex,
    },
    /// Any other pattern.
    Backtracking(fancy_regex::Regex),
}

impl Pattern {
    /// A pattern that matches `text` itself.
    pub fn literal(text: &str) -> Result<Self> {
        Self::new(&regex::escape(text))
    }

    /// A regular expression as tokenizers write it, with lookarounds.
    pub fn new(pattern: &str) -> Result<Self> {
        if let Some(engine) = spaces_tail(pattern) {
            return Ok(Self(engine));
        }
        Ok(Self(Engine::Backtracking(fancy_regex::Regex::new(
            pattern,
        )?)))
    }

    /// The matches from left to right.
    fn ranges(&self, text: &str) -> Result<Vec<Offsets>> {
        match &self.0 {
            Engine::SpacesTail { whole, head } => Ok(spaces_tail_ranges(whole, head, text)),
            Engine::Backtracking(regex) => {
                let mut ranges = Vec::new();
                for found in regex.find_iter(text) {
                    let end = ranges.last().map_or(0, |&(_, end)| end);
                    let found = found.map_err(|error| limit(&error, text, end))?;
                    ranges.push((found.start(), found.end()));
                }
                Ok(ranges)
            }
        }
    }
}

/// The error of an engine that gave up after byte `end`.
fn limit(error: &fancy_regex::Error, text: &str, end: usize) -> String {
    let beginning: String = text[end..].chars().take(24).collect();
    format!(
        "its pattern cannot split the text from {beginning:?} on ({error}); shorten runs of the same character in the text"
    )
}

/// The engine without lookaround, if the pattern has the known tail and its head is a regular expression without extensions
/// that the two engines read in different ways.
fn spaces_tail(pattern: &str) -> Option<Engine> {
    let head = pattern.strip_suffix(SPACES_TAIL)?;
    let extensions = ["?+", "*+", "++", "(?x", "(?-", "(?>", "&&"];
    // A counted repetition with a plus; a character class as in `\p{L}+` has a letter before the brace.
    let counted = head.as_bytes().windows(3);
    let is_possessive = counted
        .into_iter()
        .any(|w| &w[1..] == b"}+" && (w[0].is_ascii_digit() || w[0] == b','));
    if is_possessive || extensions.iter().any(|syntax| head.contains(syntax)) {
        return None;
    }
    let whole = regex::Regex::new(&format!(r"{head}|\s+")).ok()?;
    let head = regex::Regex::new(head).ok()?;
    // An empty match would need the rules of the other engine on where to go on.
    (!head.is_match("")).then_some(Engine::SpacesTail { whole, head })
}

fn spaces_tail_ranges(whole: &regex::Regex, head: &regex::Regex, text: &str) -> Vec<Offsets> {
    let mut ranges = Vec::with_capacity(text.len() / 4);
    let mut at = 0;
    while let Some(found) = whole.find_at(text, at) {
        let (start, mut end) = (found.start(), found.end());
        if end < text.len() && is_spaces(found.as_str()) {
            let is_head = head
                .find_at(text, start)
                .is_some_and(|head| head.start() == start);
            let last = found.as_str().chars().next_back().map_or(0, char::len_utf8);
            if !is_head && start + last < end {
                end -= last;
            }
        }
        ranges.push((start, end));
        at = end;
    }
    ranges
}

fn is_spaces(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

/// `matches` with the stretches between them, in the form that `tokenizers` expects: all of the text, in order.
fn cover(text: &str, matches: Vec<Offsets>) -> Vec<(Offsets, bool)> {
    if text.is_empty() {
        return vec![((0, 0), false)];
    }
    let mut splits = Vec::with_capacity(matches.len());
    let mut previous = 0;
    for (start, end) in matches {
        if previous != start {
            splits.push(((previous, start), false));
        }
        splits.push(((start, end), true));
        previous = end;
    }
    if previous != text.len() {
        splits.push(((previous, text.len()), false));
    }
    splits
}

impl Finds for &Pattern {
    fn find_matches(&self, inside: &str) -> Result<Vec<(Offsets, bool)>> {
        Ok(cover(inside, self.ranges(inside)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns of published tokenizers.
    const PATTERNS: [&str; 4] = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ];

    #[test]
    fn matches_equal_those_of_the_backtracking_engine() {
        let texts = [
            "",
            "   ",
            "a",
            " a  b   c \n\n  d\r\n\te  ",
            "I'll say: 12345 6 7,8;\u{3000}\u{3000}x \u{85}y\u{a0}",
            "\n\n\n x\n \n y \t\t z",
            "漢字かな交じり文。12ä́ß ﷺ 🙂🙂  🙂\u{200b}",
            "  \n  \n a",
        ];
        for pattern in PATTERNS {
            let reference = fancy_regex::Regex::new(pattern).expect("pattern");
            let is_regular = !pattern.contains("?+");
            let pattern = Pattern::new(pattern).expect("pattern");
            assert_eq!(matches!(pattern.0, Engine::SpacesTail { .. }), is_regular);
            for text in texts {
                let expected: Vec<_> = reference
                    .find_iter(text)
                    .map(|found| found.expect("match"))
                    .map(|found| (found.start(), found.end()))
                    .collect();
                assert_eq!(pattern.ranges(text).expect("matches"), expected, "{text:?}");
            }
        }
    }

    #[test]
    fn a_run_of_any_length_is_one_match_or_an_error_but_never_the_end() {
        let text = format!("a{}b c", " ".repeat(1_200_000));
        for pattern in &PATTERNS[..3] {
            let ranges = Pattern::new(pattern)
                .expect("pattern")
                .ranges(&text)
                .expect("matches");
            assert_eq!(ranges.len(), 4, "{ranges:?}");
            assert_eq!(ranges[1], (1, 1_200_000));
        }
        // This one backtracks, and its engine gives up.
        let error = Pattern::new(PATTERNS[3])
            .expect("pattern")
            .ranges(&text)
            .expect_err("limit");
        assert!(
            error.to_string().contains("cannot split the text"),
            "{error}"
        );
    }
}
