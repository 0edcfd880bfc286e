//! How fast this machine reads its memory: the measure beside which the speed of a runtime is given.
//!
//! A sum over a buffer that no cache holds, with as many threads as the current pool has. It computes less than any use of
//! weights does.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch, prefetch_l2};

use crate::huge_pages;
use crate::packed::AHEAD;

/// Words that are added at the same time.
const WIDTH: usize = 64;
/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// Words of a line of the caches.
const LINE: usize = 64 / WORD;

/// How memory is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As ordinary loops do.
    Plain,
    /// As the kernels of the runtime do: from huge pages, where the system has them, and with prefetching. A kernel that is bound by memory
    /// comes close to it, and none exceeds it by much.
    Prefetched,
}

/// A buffer in memory, written by the threads of the pool.
#[derive(Debug)]
pub struct Reader {
    words: Vec<u64>,
    /// Words that a thread reads.
    part: usize,
    reading: Reading,
}

impl Reader {
    /// A buffer of about so many bytes, for the threads of the current pool.
    pub fn new(bytes: usize, reading: Reading) -> Self {
        let threads = rayon::current_num_threads();
        let part = (bytes / WORD / threads).next_multiple_of(WIDTH).max(WIDTH);
        let mut words = match reading {
            Reading::Plain => Vec::new(),
            Reading::Prefetched => huge_pages::with_capacity(part * threads),
        };
        // Written by the threads: pages that were never written are all the same one.
        words.par_extend(rayon::iter::repeat_n(1, part * threads));
        Reader {
            words,
            part,
            reading,
        }
    }

    /// Bytes that are read.
    pub fn bytes(&self) -> usize {
        self.words.len() * WORD
    }

    /// Reads the buffer once; bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        let start = Instant::now();
        let parts = self.words.par_chunks(self.part);
        let sums = parts.map(|words| dispatch(Sum(words, self.reading)));
        let sum = sums.sum::<u64>();
        black_box(sum);
        self.bytes() as f64 / start.elapsed().as_secs_f64().max(1e-9)
    }
}

/// The sum of words, modulo 2⁶⁴.
struct Sum<'a>(&'a [u64], Reading);

impl Kernel for Sum<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let mut sums = [0_u64; WIDTH];
        for words in black_box(self.0).chunks_exact(WIDTH) {
            if self.1 == Reading::Prefetched {
                for line in (0..WIDTH).step_by(LINE) {
                    prefetch_l2(words, AHEAD / WORD + line);
                }
            }
            let pairs = sums.iter_mut().zip(words);
            pairs.for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_by_any_number_of_threads() {
        for (threads, reading) in [(1, Reading::Plain), (3, Reading::Prefetched)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| {
                let reader = Reader::new(100_000, reading);
                assert!(reader.bytes().abs_diff(100_000) <= threads * WIDTH * WORD);
                let parts = reader.words.chunks(reader.part);
                assert_eq!(parts.len(), threads);
                let sum: u64 = reader.words.iter().sum();
                let found = reader.words.par_chunks(reader.part);
                let found: u64 = found.map(|words| dispatch(Sum(words, reading))).sum();
                assert_eq!(found, sum);
                assert!(reader.bytes_per_second() > 0.0);
            });
        }
    }
}
