//! Sequences that are kept because others may begin with the same tokens.
//!
//! A sequence of attention alone can be cut after any of its tokens, so one sequence serves every prefix of its tokens. States
//! of scans and sliding windows can only be taken as they were: see [`Sequence::points`].

use std::collections::BTreeMap;

use crate::sequence::Sequence;

/// The kept sequences.
#[derive(Debug)]
pub(crate) struct Prefixes {
    /// The least recently used first.
    kept: Vec<Sequence>,
    parts: Parts,
    /// Most bytes.
    limit: u64,
}

/// The parts of states that some sequences share, each counted once.
#[derive(Debug, Default)]
struct Parts {
    /// How many sequences have the part at an address.
    counts: BTreeMap<usize, usize>,
    bytes: u64,
}

impl Parts {
    fn add(&mut self, sequence: &Sequence) {
        for (address, bytes) in sequence.parts() {
            let count = self.counts.entry(address).or_default();
            *count += 1;
            if *count == 1 {
                self.bytes += bytes;
            }
        }
    }

    fn remove(&mut self, sequence: &Sequence) {
        for (address, bytes) in sequence.parts() {
            let Some(count) = self.counts.get_mut(&address) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&address);
                self.bytes -= bytes;
            }
        }
    }
}

/// Bytes of the states of some sequences, of which shared parts count once.
pub(crate) fn bytes_of<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> u64 {
    let mut parts = Parts::default();
    sequences.for_each(|sequence| parts.add(sequence));
    parts.bytes
}

/// How many tokens a new sequence can take from `sequence`, if it has to compute the last one of `tokens`.
pub(crate) fn reusable(sequence: &Sequence, tokens: &[u32]) -> usize {
    let most = tokens.len().saturating_sub(1);
    let common = common(sequence.tokens(), tokens).min(most);
    match sequence.can_be_cut(common) {
        true => common,
        false => 0,
    }
}

/// Number of first tokens that are equal.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Prefixes {
    /// Nothing is kept yet, and never more than `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Prefixes {
            kept: Vec::new(),
            parts: Parts::default(),
            limit,
        }
    }

    /// Bytes of what is kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.bytes
    }

    /// Keeps a sequence, and drops those that it replaces and then the least recently used ones until the limit holds.
    pub(crate) fn keep(&mut self, sequence: Sequence) {
        if self.limit == 0 || sequence.tokens().is_empty() {
            return;
        }
        let replaced = |kept: &Sequence| {
            let count = kept.tokens().len();
            sequence.tokens().starts_with(kept.tokens()) && sequence.can_be_cut(count)
        };
        for kept in self.kept.extract_if(.., |kept| replaced(kept)) {
            self.parts.remove(&kept);
        }
        let is_known = self.kept.iter().any(|kept| {
            let count = sequence.tokens().len();
            kept.tokens().starts_with(sequence.tokens()) && kept.can_be_cut(count)
        });
        if is_known {
            return;
        }
        self.parts.add(&sequence);
        self.kept.push(sequence);
        while self.parts.bytes > self.limit {
            self.parts.remove(&self.kept.remove(0));
        }
    }

    /// Number of first tokens that are those of a kept sequence, whether they can be taken from it or not.
    pub(crate) fn common(&self, tokens: &[u32]) -> usize {
        let kept = self.kept.iter();
        let common = kept.map(|sequence| common(sequence.tokens(), tokens));
        common.max().unwrap_or(0)
    }

    /// The kept sequence from which most tokens can be taken, and how many.
    pub(crate) fn longest(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        let kept = self.kept.iter().enumerate();
        let reusable = kept.map(|(index, sequence)| (reusable(sequence, tokens), index));
        let (count, index) = reusable.max()?;
        (count > 0).then_some((index, count))
    }

    /// A copy of the first `tokens` tokens of a kept sequence, which is then the most recently used one.
    pub(crate) fn take(&mut self, index: usize, tokens: usize) -> Sequence {
        let used = self.kept.remove(index);
        let mut copy = used.clone();
        self.kept.push(used);
        copy.cut(tokens);
        copy
    }
}
