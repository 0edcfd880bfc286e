//! The decoding of a comparison: values of both packs side by side, in pieces, in parallel over tensors.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use uc_codec::bf16;

use super::Progress;
use crate::check::check_digest;
use crate::digest::Hasher;
use crate::error::{self, PackError};
use crate::layer::{Contents, LayerFile, PieceBuffers};
use crate::lookup::{Entry, TensorRef};
use crate::manifest::ExactEntry;
use crate::pack::Pack;
use crate::statistics::{ErrorSums, values};

/// Files of each pack that are open at once. Their linears are enough work for many threads, and their headers little memory.
const FILES_AT_ONCE: usize = 4;
/// Elements of an exact tensor that are compared at once.
const PIECE_ELEMENTS: u64 = 1 << 15;
/// Bytes of a reconstructed weight in both packs.
const BYTES_PER_WEIGHT: u64 = 4;

/// A pair of tensors of one name and shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// Position in the list of results.
    pub(super) position: usize,
    pub(super) a: TensorRef<'a>,
    pub(super) b: TensorRef<'a>,
    /// Whether the values differ and are compared.
    pub(super) is_compared: bool,
}

/// Pairs of one file of each pack.
#[derive(Debug, Default)]
pub(super) struct Job<'a> {
    pub(super) pairs: Vec<Pair<'a>>,
}

/// What was found out about a pair.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) position: usize,
    /// Tensor steps of two linears.
    pub(super) steps: Option<[f32; 2]>,
    pub(super) sums: Option<ErrorSums>,
}

/// The work of a comparison.
pub(super) struct Work<'a> {
    a: &'a Pack,
    b: &'a Pack,
    done: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Work<'a> {
    pub(super) fn new(
        a: &'a Pack,
        b: &'a Pack,
        jobs: &[Job<'a>],
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        let pairs = jobs.iter().flat_map(|job| &job.pairs);
        let compared = pairs.filter(|pair| pair.is_compared);
        let weights = compared.fold(0u64, |n, pair| n.saturating_add(pair.a.parameters()));
        Work {
            a,
            b,
            done: AtomicU64::new(0),
            total: weights.saturating_mul(BYTES_PER_WEIGHT),
            progress,
        }
    }

    /// Does all jobs with `threads` threads, 0 for one per processor. Stops at the first error.
    pub(super) fn run(&self, jobs: &[Job<'a>], threads: usize) -> Result<Vec<Measured>, PackError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|source| error::io("threads")(std::io::Error::other(source)))?;
        pool.install(|| {
            let mut all = Vec::new();
            for jobs in jobs.chunks(FILES_AT_ONCE) {
                let measured = jobs.par_iter().map(|job| self.job(job));
                let measured: Vec<_> = measured.collect::<Result<_, _>>()?;
                all.extend(measured.into_iter().flatten());
            }
            Ok(all)
        })
    }

    fn job(&self, job: &Job<'a>) -> Result<Vec<Measured>, PackError> {
        let layers = job
            .pairs
            .first()
            .and_then(|pair| Some((pair.a.layer?, pair.b.layer?)));
        let Some((a, b)) = layers else {
            let pairs = job.pairs.par_iter().filter(|pair| pair.is_compared);
            return pairs.map(|pair| self.non_layer(pair)).collect();
        };
        let (a, b) = rayon::join(|| self.a.layer(a.index), || self.b.layer(b.index));
        let (a, b) = (a?, b?);
        let measure = |buffers: &mut (PieceBuffers, PieceBuffers), pair: &Pair<'a>| match (
            pair.a.entry,
            pair.b.entry,
        ) {
            (Entry::Exact(left), Entry::Exact(right)) => {
                let left = Exact::new(a.origin(), pair.a, left, a.exact_reader(pair.a.index));
                let right = Exact::new(b.origin(), pair.b, right, b.exact_reader(pair.b.index));
                self.exact(pair, left, right)
            }
            _ => self.linear(pair, &a, &b, buffers),
        };
        let pairs = job.pairs.par_iter();
        pairs.map_init(Default::default, measure).collect()
    }

    /// Compares two linears.
    fn linear(
        &self,
        pair: &Pair<'a>,
        a: &LayerFile,
        b: &LayerFile,
        (left, right): &mut (PieceBuffers, PieceBuffers),
    ) -> Result<Measured, PackError> {
        let steps = [
            a.linears()[pair.a.index].step,
            b.linears()[pair.b.index].step,
        ];
        let measured = Measured {
            position: pair.position,
            steps: Some(steps),
            sums: None,
        };
        if !pair.is_compared {
            return Ok(measured);
        }
        let mut sums = ErrorSums::default();
        let mut left = a.pieces(pair.a.index, Contents::Weights, left)?;
        let mut right = b.pieces(pair.b.index, Contents::Weights, right)?;
        // Linears of one shape have the same pieces.
        while let (Some(left), Some(right)) = (left.next_piece()?, right.next_piece()?) {
            let value = |&bits: &u16| f64::from(bf16::to_f32(bits));
            sums.add(
                left.weights
                    .iter()
                    .map(value)
                    .zip(right.weights.iter().map(value)),
            );
            self.advance(left.weights.len() as u64);
        }
        let sums = Some(sums);
        Ok(Measured { sums, ..measured })
    }

    /// Compares two tensors outside the layers.
    fn non_layer(&self, pair: &Pair<'a>) -> Result<Measured, PackError> {
        let (a, b) = (self.a.non_layer()?, self.b.non_layer()?);
        let (Entry::Exact(left), Entry::Exact(right)) = (pair.a.entry, pair.b.entry) else {
            unreachable!("tensors outside the layers are exact");
        };
        let [path_a, path_b] = [(self.a, pair.a), (self.b, pair.b)]
            .map(|(pack, tensor)| pack.path(tensor.file()).display().to_string());
        let left = Exact::new(&path_a, pair.a, left, a.reader(pair.a.index)?);
        let right = Exact::new(&path_b, pair.b, right, b.reader(pair.b.index)?);
        self.exact(pair, left, right)
    }

    /// Compares two exact tensors and their digests with those of the manifests.
    fn exact(
        &self,
        pair: &Pair<'a>,
        mut a: Exact<'_, impl Read>,
        mut b: Exact<'_, impl Read>,
    ) -> Result<Measured, PackError> {
        let mut measured = Measured {
            position: pair.position,
            ..Measured::default()
        };
        if !pair.is_compared {
            return Ok(measured);
        }
        let mut sums = ErrorSums::default();
        let mut left = pair.a.parameters();
        while left > 0 {
            let count = left.min(PIECE_ELEMENTS);
            a.read(count)?;
            b.read(count)?;
            sums.add(values(a.entry.dtype, &a.bytes).zip(values(b.entry.dtype, &b.bytes)));
            self.advance(count);
            left -= count;
        }
        a.finish()?;
        b.finish()?;
        measured.sums = Some(sums);
        Ok(measured)
    }

    /// Reports that `weights` more weights have been compared.
    fn advance(&self, weights: u64) {
        let bytes = weights * BYTES_PER_WEIGHT;
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total;
        (self.progress)(Progress { done, total });
    }
}

/// An exact tensor that is read piece by piece.
struct Exact<'a, R> {
    origin: &'a str,
    tensor: TensorRef<'a>,
    entry: &'a ExactEntry,
    reader: R,
    bytes: Vec<u8>,
    hasher: Hasher,
}

impl<'a, R: Read> Exact<'a, R> {
    fn new(origin: &'a str, tensor: TensorRef<'a>, entry: &'a ExactEntry, reader: R) -> Self {
        Exact {
            origin,
            tensor,
            entry,
            reader,
            bytes: Vec::new(),
            hasher: Hasher::default(),
        }
    }

    fn read(&mut self, elements: u64) -> Result<(), PackError> {
        let width = self.entry.dtype.width();
        self.bytes.resize((elements * width) as usize, 0);
        let read = self.reader.read_exact(&mut self.bytes);
        read.map_err(error::io(self.origin))?;
        self.hasher.bytes(&self.bytes);
        Ok(())
    }

    fn finish(self) -> Result<(), PackError> {
        let found = self.hasher.finish();
        check_digest(self.origin, &self.tensor.name(), found, self.entry.sha256)
    }
}
