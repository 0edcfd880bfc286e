//! Encoding a document of any size in pieces, with the tokens of the whole.
//!
//! Pieces overlap. Two neighbours are joined where both have the same tokens on both sides of a change of character class (a
//! line or a word begins), and only there:
//!
//! - A pattern is matched from left to right and looks ahead a few characters at most, so that what follows the beginning of a
//!   match depends on the text after it alone.
//! - Byte-pair encoding gives a piece of text the same tokens as its two parts exactly if the last token of the first and the
//!   first of the second are never merged across the cut, which those two decide alone. They stand side by side in both
//!   neighbours, so they are not.
//!
//! Where neighbours do not agree, as in a long run of one character, the piece is made longer. Owns no files and no choice of
//! windows, and never returns tokens that it is not sure of: a piece that would have to become longer than [`LONGEST`] is an
//! error.

use rayon::prelude::*;

use super::error::TextError;
use super::tokenizer::{Token, Tokenizer};

/// Bytes of a piece without its overlap, unless it has to be longer.
const PIECE: usize = 128 << 10;
/// Bytes by which a piece reaches beyond each of its ends.
const OVERLAP: usize = 4 << 10;
/// Pieces that are encoded at the same time.
const ROUND: usize = 16;
/// The longest piece.
const LONGEST: usize = 4 << 20;
/// Tokens on each side of a joint that have to be the same.
const AGREEMENT: usize = 8;

/// Encodes one document that arrives bit by bit.
pub(super) struct DocumentEncoder<'a> {
    tokenizer: &'a Tokenizer,
    /// What is left of the document, from `offset` on.
    text: String,
    /// Bytes of the document before `text`.
    offset: u64,
    /// Bytes of `text` whose tokens were returned.
    done: usize,
    /// Bytes of the first piece; longer than the others if it could not be joined with the second.
    first: usize,
}

/// A stretch of the text and its tokens, whose places count from the beginning of the text.
struct Piece {
    start: usize,
    tokens: Vec<Token>,
}

impl<'a> DocumentEncoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            text: String::new(),
            offset: 0,
            done: 0,
            first: PIECE,
        }
    }

    /// Continues the document. Appends to `ids` the ids that are certain.
    ///
    /// # Errors
    /// [`TextError::Encode`], [`TextError::Unsplittable`].
    pub fn push(&mut self, mut text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        while !text.is_empty() {
            let others = if self.first == PIECE { ROUND - 1 } else { 1 };
            let wanted = self.done + self.first + others * PIECE + 2 * OVERLAP;
            let missing = wanted.saturating_sub(self.text.len()).max(1);
            let cut = text.ceil_char_boundary(missing.min(text.len()));
            self.text.push_str(&text[..cut]);
            text = &text[cut..];
            if self.text.len() >= wanted {
                self.encode(false, ids)?;
            }
        }
        Ok(())
    }

    /// Ends the document: appends the remaining ids.
    ///
    /// # Errors
    /// As [`DocumentEncoder::push`].
    pub fn finish(mut self, ids: &mut Vec<u32>) -> Result<(), TextError> {
        while !self.text.is_empty() {
            self.encode(true, ids)?;
        }
        Ok(())
    }

    /// Encodes what is there, joins its pieces, and keeps the text from the last piece on unless the document ends.
    fn encode(&mut self, is_end: bool, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let cuts = self.cuts();
        let pieces: Vec<Piece> = (0..cuts.len() - 1)
            .into_par_iter()
            .map(|index| self.encode_piece(&cuts, index))
            .collect::<Result<_, _>>()?;
        for (index, pair) in pieces.windows(2).enumerate() {
            match joint(
                &self.text,
                &pair[0].tokens,
                &pair[1].tokens,
                cuts[index + 1],
            ) {
                Some(place) => {
                    self.take(&pair[0], place, ids)?;
                    self.first = PIECE;
                }
                None => {
                    self.first *= 2;
                    if self.first > LONGEST {
                        return Err(TextError::Unsplittable {
                            offset: self.offset + self.done as u64,
                            limit: LONGEST,
                        });
                    }
                    self.drop_before(pair[0].start);
                    return Ok(());
                }
            }
        }
        let last = &pieces[pieces.len() - 1];
        if is_end {
            self.take(last, self.text.len(), ids)?;
            self.drop_before(self.text.len());
        } else {
            self.drop_before(last.start);
        }
        Ok(())
    }

    /// The places where pieces meet, with both ends. What would be less than a piece belongs to the last.
    fn cuts(&self) -> Vec<usize> {
        let mut cuts = vec![self.done];
        let mut next = self.done + self.first;
        while next + 2 * OVERLAP <= self.text.len() {
            next = self.text.floor_char_boundary(next);
            cuts.push(next);
            next += PIECE;
        }
        cuts.push(self.text.len());
        cuts
    }

    fn encode_piece(&self, cuts: &[usize], index: usize) -> Result<Piece, TextError> {
        // The first piece begins where the kept text does, so that its tokens are those that were joined before.
        let start = match index {
            0 => 0,
            _ => self.text.floor_char_boundary(cuts[index] - OVERLAP),
        };
        let end = cuts[index + 1] + OVERLAP;
        let end = self.text.floor_char_boundary(end.min(self.text.len()));
        let mut tokens = self.tokenizer.encode_whole(&self.text[start..end])?;
        for token in &mut tokens {
            token.start += start;
            token.end += start;
        }
        Ok(Piece { start, tokens })
    }

    /// Appends the ids of a piece up to `end`.
    fn take(&mut self, piece: &Piece, end: usize, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let first = piece
            .tokens
            .partition_point(|token| token.start < self.done);
        if first > 0 && piece.tokens[first - 1].end > self.done {
            let reason = "it gives other tokens when more text follows".into();
            return Err(TextError::Encode { reason });
        }
        let tokens = piece.tokens[first..].iter();
        ids.extend(tokens.take_while(|token| token.start < end).map(|t| t.id));
        self.done = end;
        Ok(())
    }

    fn drop_before(&mut self, start: usize) {
        self.text.drain(..start);
        self.offset += start as u64;
        self.done -= start;
    }
}

/// The best place near `cut` where two overlapping pieces can be joined.
fn joint(text: &str, left: &[Token], right: &[Token], cut: usize) -> Option<usize> {
    let from = left.partition_point(|token| token.start + OVERLAP / 2 < cut);
    let to = left.partition_point(|token| token.start < cut + OVERLAP / 2);
    let places = (from..to).filter_map(|index| {
        let place = left[index].start;
        let rank = rank(text, place)?;
        let other = right.partition_point(|token| token.start < place);
        agree(left, index, right, other, place).then_some((rank, place.abs_diff(cut), place))
    });
    places.min().map(|(_, _, place)| place)
}

/// Whether a token begins at `place` in both, and the tokens around it are the same.
fn agree(left: &[Token], i: usize, right: &[Token], j: usize, place: usize) -> bool {
    let around = |tokens: &[Token], index: usize| -> Option<Vec<Token>> {
        let first = index.checked_sub(AGREEMENT)?;
        let around = tokens.get(first..index + AGREEMENT)?;
        (tokens[index - 1].end == place && tokens[index].start == place).then(|| around.to_vec())
    };
    let left = around(left, i);
    left.is_some() && left == around(right, j)
}

/// Classes of characters that patterns tell apart.
#[derive(PartialEq)]
enum Class {
    Newline,
    Space,
    Letter,
    Digit,
    Other,
}

fn class(c: char) -> Class {
    match c {
        '\n' | '\r' => Class::Newline,
        c if c.is_whitespace() => Class::Space,
        c if c.is_alphabetic() => Class::Letter,
        c if c.is_numeric() => Class::Digit,
        _ => Class::Other,
    }
}

/// How certain a new token begins at `place`: 0 for a line, 1 for the space before a word, 2 for another change of class;
/// none where the class does not change.
fn rank(text: &str, place: usize) -> Option<u8> {
    let before = class(text[..place].chars().next_back()?);
    let after = class(text[place..].chars().next()?);
    if before == after {
        return None;
    }
    let is_blank = |class: &Class| matches!(class, Class::Newline | Class::Space);
    Some(match (is_blank(&before), is_blank(&after)) {
        (true, false) if before == Class::Newline => 0,
        (false, true) => 1,
        _ => 2,
    })
}
