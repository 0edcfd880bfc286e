//! Batches of a tensor file through a computation: one thread reads, the caller computes, one thread writes.
//!
//! The channels hold one batch each, so that memory is bounded by about four batches whatever the file's size.

use crossbeam_channel::bounded;

use crate::error::StoreError;
use crate::tensors::{TensorFile, TensorFileWriter, f32_bytes};

/// Batches that wait in a channel.
const WAITING: usize = 1;

/// Sends the f32 tensor `name` (`[rows, …]`) through `compute` in batches of `batch` rows and appends what comes back.
///
/// `compute` sees the batch's values, the number of its rows and the index of its first row; it gives the values to
/// append. It runs on the calling thread, batch after batch in order.
///
/// # Errors
/// The first error of reading, computing or writing; nothing is appended after it.
pub fn map_rows<E: From<StoreError>>(
    input: &TensorFile,
    name: &str,
    batch: usize,
    output: &mut TensorFileWriter,
    mut compute: impl FnMut(Vec<f32>, usize, usize) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let decl = input.tensor(name)?;
    let rows = decl.shape.first().copied().unwrap_or(1);
    let (read_in, read_out) = bounded::<Result<(usize, usize, Vec<f32>), StoreError>>(WAITING);
    let (write_in, write_out) = bounded::<Vec<f32>>(WAITING);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for first in (0..rows).step_by(batch.max(1)) {
                let count = batch.max(1).min(rows - first);
                let values = input.read_rows_f32(name, first, count);
                // A closed channel means that the computation failed; its error is the one that counts.
                if read_in
                    .send(values.map(|values| (first, count, values)))
                    .is_err()
                {
                    return;
                }
            }
        });
        let writer = scope.spawn(move || -> Result<(), StoreError> {
            write_out
                .iter()
                .try_for_each(|values| output.append(&f32_bytes(&values)))
        });
        let mut computed: Result<(), E> = Ok(());
        for batch in &read_out {
            let values = batch
                .map_err(E::from)
                .and_then(|(first, count, values)| compute(values, count, first));
            match values {
                Ok(values) => {
                    if write_in.send(values).is_err() {
                        break; // the writer stopped and has the reason
                    }
                }
                Err(error) => {
                    computed = Err(error);
                    break;
                }
            }
        }
        drop(write_in);
        drop(read_out);
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
    fn batches_pass_in_order_and_errors_stop_them() {
        let (_keep, folder) = folder();
        let decl = TensorDecl::new("x", TensorDtype::F32, &[5, 2]);
        let mut file =
            TensorFileWriter::create(&folder.join("in"), std::slice::from_ref(&decl)).expect("in");
        file.append(&f32_bytes(&(0..10).map(|i| i as f32).collect::<Vec<_>>()))
            .expect("data");
        file.commit().expect("in");
        let input = TensorFile::open(&folder.join("in")).expect("in");
        let mut output = TensorFileWriter::create(&folder.join("out"), std::slice::from_ref(&decl))
            .expect("out");
        let mut seen = Vec::new();
        map_rows::<StoreError>(&input, "x", 2, &mut output, |values, count, first| {
            seen.push((first, count));
            Ok(values.iter().map(|x| x * 2.0).collect())
        })
        .expect("mapped");
        output.commit().expect("published");
        assert_eq!(seen, [(0, 2), (2, 2), (4, 1)]);
        let found = TensorFile::open(&folder.join("out"))
            .expect("out")
            .read_f32("x")
            .expect("x");
        assert_eq!(found, (0..10).map(|i| 2.0 * i as f32).collect::<Vec<_>>());

        let mut output = TensorFileWriter::create(&folder.join("bad"), &[decl]).expect("out");
        let error =
            map_rows::<StoreError>(&input, "x", 1, &mut output, |_, _, first| match first {
                1 => Err(StoreError::malformed(input.path(), "test", "a", "b")),
                _ => Ok(vec![0.0; 2]),
            });
        assert!(matches!(error, Err(StoreError::Malformed { .. })));
    }
}
