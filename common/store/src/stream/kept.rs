//! Rows that are kept while they are computed, so that an interrupted job continues after them.

use std::time::{Duration, Instant};

use camino::Utf8Path;

use super::{RowSink, RowSource, map_rows};
use crate::error::StoreError;
use crate::framed::{Frame, Journal};

/// The rows of a batch.
const FRAME: Frame = Frame {
    magic: *b"UCROWS\0\0",
    version: 1,
    what: "kept rows",
    max_body: 8 << 30,
    zstd_level: None,
};

/// The rows that a job has computed so far, batch by batch, in its scratch folder.
#[derive(Debug)]
pub struct KeptRows {
    journal: Journal,
    least: Duration,
}

impl KeptRows {
    /// Opens a file below `base` with the batches that an interrupted job left in it, or creates an empty one. Batches are kept if all
    /// together take at least `least` to compute, judging by the first of them: a short job begins again in less time.
    ///
    /// # Errors
    /// Those of [`Journal::open`].
    pub fn open(base: &Utf8Path, path: &Utf8Path, least: Duration) -> Result<Self, StoreError> {
        let journal = Journal::open(FRAME, base, path)?;
        Ok(Self { journal, least })
    }

    /// Number of batches that are kept.
    pub fn batches(&self) -> usize {
        self.journal.frames().len()
    }

    /// Discards all but the first `batches` batches.
    pub(super) fn truncate(&mut self, batches: usize) -> Result<(), StoreError> {
        self.journal.truncate(batches)
    }

    /// As [`map_rows`]; what is kept is not computed again. The batches must be those of the interrupted job.
    ///
    /// # Errors
    /// Those of [`map_rows`], and those of reading and writing what is kept.
    pub fn map_rows<E: From<StoreError>>(
        &mut self,
        input: &dyn RowSource,
        batch: usize,
        output: &mut dyn RowSink,
        mut compute: impl FnMut(Vec<f32>, usize, usize) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        self.map_batches(input, batch, output, |_, values, count, first| {
            compute(values, count, first)
        })
    }

    /// As [`KeptRows::map_rows`]; `compute` also gets what is kept so far: all batches before its own, or none.
    pub(super) fn map_batches<E: From<StoreError>>(
        &mut self,
        input: &dyn RowSource,
        batch: usize,
        output: &mut dyn RowSink,
        mut compute: impl FnMut(&Journal, Vec<f32>, usize, usize) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        let kept = self.batches();
        for index in 0..kept {
            let values: Vec<f32> = self.journal.frames().get(index)?;
            output.append_rows(&values)?;
        }
        let first = input.rows().min(kept * batch.max(1));
        let batches = input.rows().div_ceil(batch.max(1)) as u32;
        let mut is_kept = kept > 0;
        let rest = Rest { input, first };
        map_rows(&rest, batch, output, |values, count, row| {
            let begun = Instant::now();
            let values = compute(&self.journal, values, count, first + row)?;
            is_kept |= first + row == 0 && begun.elapsed().saturating_mul(batches) >= self.least;
            if is_kept {
                self.journal.append(&values)?;
            }
            Ok(values)
        })
    }
}

/// The rows from `first` on.
struct Rest<'a> {
    input: &'a dyn RowSource,
    first: usize,
}

impl RowSource for Rest<'_> {
    fn rows(&self) -> usize {
        self.input.rows() - self.first
    }

    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
        self.input.read(self.first + first, count)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::plan::tests_support::folder;

    /// Rows with their own numbers.
    pub struct Numbers(pub usize);

    impl RowSource for Numbers {
        fn rows(&self) -> usize {
            self.0
        }

        fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
            Ok((first..first + count).map(|row| row as f32).collect())
        }
    }

    #[derive(Default)]
    pub struct Rows(pub Vec<f32>);

    impl RowSink for Rows {
        fn append_rows(&mut self, values: &[f32]) -> Result<(), StoreError> {
            self.0.extend_from_slice(values);
            Ok(())
        }
    }

    /// Doubles seven rows, two at a time, and fails at row `end`; the rows that were computed, and the outcome.
    fn double(kept: &mut KeptRows, end: usize) -> (Vec<usize>, Result<Vec<f32>, StoreError>) {
        let (mut seen, mut rows) = (Vec::new(), Rows::default());
        let done = kept.map_rows(&Numbers(7), 2, &mut rows, |values, count, first| {
            if first >= end {
                return Err(StoreError::malformed("x".into(), "test", "a", "b"));
            }
            seen.extend(first..first + count);
            Ok(values.into_iter().map(|value| 2.0 * value).collect())
        });
        (seen, done.map(|()| rows.0))
    }

    #[test]
    fn a_job_continues_after_the_batches_that_are_kept() {
        let (_keep, base) = folder();
        let open = |name: &str, least| {
            KeptRows::open(&base, &base.join("work").join(name), least).expect("opened")
        };
        let expected: Vec<f32> = (0..7).map(|row| 2.0 * row as f32).collect();
        let (seen, outcome) = double(&mut open("rows", Duration::ZERO), 4);
        assert_eq!(seen, [0, 1, 2, 3]);
        assert!(outcome.is_err());
        let mut kept = open("rows", Duration::MAX);
        assert_eq!(kept.batches(), 2);
        let (seen, outcome) = double(&mut kept, 7);
        assert_eq!(seen, [4, 5, 6]);
        assert_eq!(outcome.expect("rows"), expected);
        // All of them, the last batch with fewer rows.
        let mut kept = open("rows", Duration::ZERO);
        assert_eq!(kept.batches(), 4);
        let (seen, outcome) = double(&mut kept, 0);
        assert!(seen.is_empty());
        assert_eq!(outcome.expect("rows"), expected);
    }

    #[test]
    fn the_batches_of_a_short_job_are_not_kept() {
        let (_keep, base) = folder();
        let path = base.join("rows");
        let open = || KeptRows::open(&base, &path, Duration::from_secs(3600)).expect("opened");
        assert!(double(&mut open(), 4).1.is_err());
        let mut kept = open();
        assert_eq!(kept.batches(), 0);
        assert_eq!(double(&mut kept, 7).0.len(), 7);
    }
}
