//! Maps the rows of one file to those of another in batches: one thread reads, the caller computes, one thread writes.
//!
//! Each channel holds one batch, so memory is bounded by about four batches, whatever the size of the file.

mod kept;
mod kept_sums;

use std::time::Duration;

use crossbeam_channel::bounded;

use crate::error::StoreError;
use crate::tensors::{TensorFile, TensorFileWriter};

pub use kept::KeptRows;
pub use kept_sums::{KeptSums, Sums};

/// Where rows of f32 values are read from.
pub trait RowSource: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// The values of `count` rows, beginning with row `first`.
    ///
    /// # Errors
    /// Any reason why they cannot be read.
    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError>;
}

/// Where rows of f32 values are written to, one after another.
pub trait RowSink: Send {
    /// Appends whole rows.
    ///
    /// # Errors
    /// Any reason why they cannot be written.
    fn append_rows(&mut self, values: &[f32]) -> Result<(), StoreError>;
}

/// A tensor of a file as rows.
#[derive(Debug, Clone, Copy)]
pub struct TensorRows<'a> {
    file: &'a TensorFile,
    name: &'a str,
    rows: usize,
}

impl<'a> TensorRows<'a> {
    /// The rows of the tensor `name`: `[rows, …]` in a floating-point type.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if the file has no such tensor.
    pub fn new(file: &'a TensorFile, name: &'a str) -> Result<Self, StoreError> {
        let rows = file.tensor(name)?.shape.first().copied().unwrap_or(1);
        Ok(Self { file, name, rows })
    }
}

impl RowSource for TensorRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
        self.file.read_rows_f32(self.name, first, count)
    }
}

impl RowSink for TensorFileWriter {
    fn append_rows(&mut self, values: &[f32]) -> Result<(), StoreError> {
        self.append_f32(values)
    }
}

/// A job that takes longer than this keeps what it has computed. Snapshots of its sums are at least as far apart.
pub const LONG_JOB: Duration = Duration::from_secs(120);

/// Capacity of a channel, in batches.
const CHANNEL_CAPACITY: usize = 1;

/// Passes the rows of `input` through `compute` in batches of `batch` rows, and appends the results to `output`.
///
/// `compute` gets the values of the batch, the number of its rows and the index of its first row, and returns the values
/// to append. It runs on the calling thread, one batch after another in order.
///
/// # Errors
/// The first error in reading, computing or writing; nothing is appended after it.
pub fn map_rows<E: From<StoreError>>(
    input: &dyn RowSource,
    batch: usize,
    output: &mut dyn RowSink,
    mut compute: impl FnMut(Vec<f32>, usize, usize) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let rows = input.rows();
    let (read_sender, read_receiver) =
        bounded::<Result<(usize, usize, Vec<f32>), StoreError>>(CHANNEL_CAPACITY);
    let (write_sender, write_receiver) = bounded::<Vec<f32>>(CHANNEL_CAPACITY);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for first in (0..rows).step_by(batch.max(1)) {
                let count = batch.max(1).min(rows - first);
                let values = input.read(first, count);
                // A closed channel means that the computation failed; its error is returned.
                if read_sender
                    .send(values.map(|values| (first, count, values)))
                    .is_err()
                {
                    return;
                }
            }
        });
        let writer = scope.spawn(move || -> Result<(), StoreError> {
            write_receiver
                .iter()
                .try_for_each(|values| output.append_rows(&values))
        });
        let mut computed: Result<(), E> = Ok(());
        for batch in &read_receiver {
            let values = batch
                .map_err(E::from)
                .and_then(|(first, count, values)| compute(values, count, first));
            match values {
                Ok(values) => {
                    if write_sender.send(values).is_err() {
                        break; // the writer failed; its error is returned below
                    }
                }
                Err(error) => {
                    computed = Err(error);
                    break;
                }
            }
        }
        drop(write_sender);
        drop(read_receiver);
        let written = writer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        computed?;
        Ok(written?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::folder;
    use crate::tensors::{TensorDecl, TensorDtype};

    #[test]
    fn batches_are_mapped_in_order_and_an_error_stops_them() {
        let (_keep, folder) = folder();
        let decl = TensorDecl::new("x", TensorDtype::F32, &[5, 2]);
        let mut file =
            TensorFileWriter::create(&folder.join("in"), std::slice::from_ref(&decl)).expect("in");
        file.append_f32(&(0..10).map(|i| i as f32).collect::<Vec<_>>())
            .expect("data");
        file.commit().expect("in");
        let file = TensorFile::open(&folder.join("in")).expect("in");
        let input = TensorRows::new(&file, "x").expect("x");
        let mut output = TensorFileWriter::create(&folder.join("out"), std::slice::from_ref(&decl))
            .expect("out");
        let mut seen = Vec::new();
        map_rows::<StoreError>(&input, 2, &mut output, |values, count, first| {
            seen.push((first, count));
            Ok(values.iter().map(|x| x * 2.0).collect())
        })
        .expect("mapped");
        output.commit().expect("published");
        assert_eq!(seen, [(0, 2), (2, 2), (4, 1)]);
        let mapped = TensorFile::open(&folder.join("out"))
            .expect("out")
            .read_f32("x")
            .expect("x");
        assert_eq!(mapped, (0..10).map(|i| 2.0 * i as f32).collect::<Vec<_>>());

        let mut output = TensorFileWriter::create(&folder.join("bad"), &[decl]).expect("out");
        let error = map_rows::<StoreError>(&input, 1, &mut output, |_, _, first| match first {
            1 => Err(StoreError::malformed(file.path(), "test", "a", "b")),
            _ => Ok(vec![0.0; 2]),
        });
        assert!(matches!(error, Err(StoreError::Malformed { .. })));
    }
}
