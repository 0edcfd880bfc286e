//! The resident form of a compressed linear: one byte for each level, rare larger levels apart, steps, overlay.
//!
//! The trellis is resolved when the pack is loaded, because its states depend on all rows above; what stays is enough to make
//! any row again: `bf16(fma-accumulated level · step + overlay)`, bit for bit the reconstruction of `uc_codec::reconstruct`.

use uc_codec::bf16;
use uc_codec::steps::{column_step, factor};
use uc_codec::trellis::LevelReader;
use uc_codec::{LowRank, TensorCode};
use uc_simd::{Kernel, dispatch};

/// Bytes of a level that is held apart.
const OUTLIER_BYTES: usize = size_of::<Outlier>();

/// The levels of a linear, [rows, cols] row-major.
#[derive(Debug)]
enum Levels {
    Narrow(Vec<i8>),
    Wide(Vec<i16>),
}

/// A level that does not fit into the type of the others; there it is 0.
#[derive(Debug, Clone, Copy)]
struct Outlier {
    row: u32,
    column: u32,
    level: i32,
}

/// A compressed linear in memory.
#[derive(Debug)]
pub struct Coded {
    rows: usize,
    cols: usize,
    levels: Levels,
    /// In the order of rows and columns.
    outliers: Vec<Outlier>,
    /// `[cols]`
    column_steps: Vec<f32>,
    /// `[rows]` factor of the steps of a row; 0 for a row whose levels are all 0 by definition.
    row_factors: Vec<f32>,
    overlay: Option<LowRank>,
}

/// Builds a [`Coded`] from pieces of whole rows, from the first to the last.
pub(crate) struct CodedBuilder {
    rows: usize,
    cols: usize,
    reader: LevelReader,
    levels: Vec<i8>,
    outliers: Vec<Outlier>,
    column_steps: Vec<f32>,
    row_factors: Vec<f32>,
    overlay: Option<LowRank>,
}

impl CodedBuilder {
    pub(crate) fn new(
        [rows, cols]: [usize; 2],
        step: f32,
        column_log2_eighths: &[u8],
        overlay: Option<LowRank>,
    ) -> Self {
        let columns = column_log2_eighths.iter();
        CodedBuilder {
            rows,
            cols,
            reader: LevelReader::new(cols),
            levels: Vec::with_capacity(rows * cols),
            outliers: Vec::new(),
            column_steps: columns.map(|&log| column_step(step, log)).collect(),
            row_factors: Vec::with_capacity(rows),
            overlay,
        }
    }

    /// Adds rows, as many as there are logarithms; `q` are their indices `[rows, cols]`.
    pub(crate) fn rows(&mut self, q: &[i16], row_logs: &[u8], row_steps: &[u8]) {
        let (levels, outliers, cols) = (&mut self.levels, &mut self.outliers, self.cols);
        self.reader.rows(q, row_logs, &mut |level| {
            let narrow = i8::try_from(level).unwrap_or_else(|_| {
                outliers.push(Outlier {
                    row: (levels.len() / cols) as u32,
                    column: (levels.len() % cols) as u32,
                    level,
                });
                0
            });
            levels.push(narrow);
        });
        let rows = row_logs.iter().zip(row_steps);
        let row_factor = |(&log, &step): (&u8, &u8)| if log == 0 { 0.0 } else { factor(step) };
        self.row_factors.extend(rows.map(row_factor));
    }

    pub(crate) fn finish(self) -> Coded {
        assert_eq!(self.row_factors.len(), self.rows, "all rows");
        let mut outliers = self.outliers;
        let mut levels = Levels::Narrow(self.levels);
        if let Levels::Narrow(narrow) = &levels
            && outliers.len() * OUTLIER_BYTES > narrow.len()
        {
            let mut wide: Vec<i16> = narrow.iter().map(|&level| level.into()).collect();
            outliers.retain(|outlier| match i16::try_from(outlier.level) {
                Ok(level) => {
                    wide[outlier.row as usize * self.cols + outlier.column as usize] = level;
                    false
                }
                Err(_) => true,
            });
            levels = Levels::Wide(wide);
        }
        outliers.shrink_to_fit();
        Coded {
            rows: self.rows,
            cols: self.cols,
            levels,
            outliers,
            column_steps: self.column_steps,
            row_factors: self.row_factors,
            overlay: self.overlay,
        }
    }
}

impl Coded {
    /// The resident form of a code.
    ///
    /// # Panics
    /// If the parts of the code do not fit together, see [`TensorCode::validate`].
    pub fn new(code: &TensorCode) -> Self {
        let shape = [code.rows, code.cols];
        let columns = &code.column_log2_eighths;
        let mut builder = CodedBuilder::new(shape, code.step, columns, code.overlay.clone());
        builder.rows(&code.q, &code.row_log2_eighths, &code.row_step_log2_eighths);
        builder.finish()
    }

    /// `[rows, cols]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes that it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let levels = match &self.levels {
            Levels::Narrow(levels) => levels.len(),
            Levels::Wide(levels) => 2 * levels.len(),
        };
        let overlay = self.overlay.as_ref();
        levels
            + self.outliers.len() * OUTLIER_BYTES
            + 4 * (self.column_steps.len() + self.row_factors.len())
            + overlay.map_or(0, |overlay| 2 * (overlay.u.len() + overlay.v.len()))
    }

    /// Number of levels that are held apart.
    pub(crate) fn outliers(&self) -> usize {
        self.outliers.len()
    }

    /// Whether a level takes two bytes.
    pub(crate) fn is_wide(&self) -> bool {
        matches!(self.levels, Levels::Wide(_))
    }

    /// The weights of the rows from `first` on into `out: [rows, cols]`: bfloat16 values as f32.
    pub(crate) fn rows_into(&self, first: usize, out: &mut [f32]) {
        for (index, out) in out.chunks_exact_mut(self.cols).enumerate() {
            let row = first + index;
            let range = row * self.cols..(row + 1) * self.cols;
            let begin = self
                .outliers
                .partition_point(|outlier| (outlier.row as usize) < row);
            let outliers = self.outliers[begin..]
                .iter()
                .take_while(|outlier| outlier.row as usize == row);
            let task = Row {
                column_steps: &self.column_steps,
                row_factor: self.row_factors[row],
                row,
                outliers,
                overlay: self.overlay.as_ref(),
            };
            match &self.levels {
                Levels::Narrow(levels) => dispatch(RowKernel {
                    levels: &levels[range],
                    task,
                    out,
                }),
                Levels::Wide(levels) => dispatch(RowKernel {
                    levels: &levels[range],
                    task,
                    out,
                }),
            }
        }
    }
}

/// What a row is made from, besides its levels.
struct Row<'a, O> {
    column_steps: &'a [f32],
    row_factor: f32,
    row: usize,
    outliers: O,
    overlay: Option<&'a LowRank>,
}

struct RowKernel<'a, L, O> {
    levels: &'a [L],
    task: Row<'a, O>,
    out: &'a mut [f32],
}

impl<'a, L: Copy + Into<i32>, O: Iterator<Item = &'a Outlier>> Kernel for RowKernel<'a, L, O> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let RowKernel { levels, task, out } = self;
        let row_factor = task.row_factor;
        let product = |level: i32, step: f32| level as f32 * (step * row_factor);
        let columns = out.iter_mut().zip(levels).zip(task.column_steps);
        let Some(overlay) = task.overlay else {
            for ((out, &level), &step) in columns {
                *out = rounded(product(level.into(), step));
            }
            for outlier in task.outliers {
                let column = outlier.column as usize;
                out[column] = rounded(product(outlier.level, task.column_steps[column]));
            }
            return;
        };
        for ((out, &level), &step) in columns {
            *out = product(level.into(), step);
        }
        for outlier in task.outliers {
            let column = outlier.column as usize;
            out[column] = product(outlier.level, task.column_steps[column]);
        }
        let (rank, cols) = (overlay.rank, out.len());
        for r in 0..rank {
            let u = bf16::to_f32(overlay.u[task.row * rank + r]);
            for (out, &v) in out.iter_mut().zip(&overlay.v[r * cols..(r + 1) * cols]) {
                *out = u.mul_add(bf16::to_f32(v), *out);
            }
        }
        for out in out {
            *out = rounded(*out);
        }
    }
}

/// The nearest bfloat16 value.
#[inline(always)]
fn rounded(value: f32) -> f32 {
    bf16::to_f32(bf16::round_nearest_even(value))
}

#[cfg(test)]
mod tests {
    use uc_codec::reconstruct::reconstruct;

    use super::*;

    /// A code with rows of zeros, large levels and, for a rank above 0, an overlay.
    fn code(rows: usize, cols: usize, rank: usize, spread: i64) -> TensorCode {
        let number = |i: usize| ((i as i64 * 7919 + 13) * 104_729) % 65_521;
        let q = (0..rows * cols).map(|i| match i % 97 {
            0 => (number(i) % 32_000) as i16,
            _ => (number(i) % spread - spread / 2) as i16,
        });
        let words = |count: usize| {
            let value = move |i| bf16::round_nearest_even(number(i) as f32 / 65_521.0 - 0.5);
            (0..count).map(value).collect()
        };
        TensorCode {
            rows,
            cols,
            step: 0.001,
            column_log2_eighths: (0..cols).map(|j| (number(j) % 60) as u8).collect(),
            row_log2_eighths: (0..rows)
                .map(|i| if i % 5 == 3 { 0 } else { 70 + (i % 9) as u8 })
                .collect(),
            row_step_log2_eighths: (0..rows).map(|i| (number(i) % 40) as u8).collect(),
            q: q.collect(),
            overlay: (rank > 0).then(|| LowRank {
                rank,
                u: words(rows * rank),
                v: words(rank * cols),
            }),
        }
    }

    #[test]
    fn rows_have_the_bits_of_the_reconstruction_in_both_widths_and_on_every_path() {
        for (rows, cols, rank, spread) in [
            (300, 70, 0, 90),
            (260, 33, 3, 90),
            (40, 130, 2, 4000),
            (7, 5, 0, 20_000),
        ] {
            let mut code = code(rows, cols, rank, spread);
            // Indices of a row of zeros do not exist in a pack.
            for (i, q) in code.q.chunks_mut(cols).enumerate() {
                if code.row_log2_eighths[i] == 0 {
                    q.fill(0);
                }
            }
            let coded = Coded::new(&code);
            assert_eq!(coded.is_wide(), spread >= 4000, "{rows} {cols}");
            let expected = reconstruct(&code).expect("valid");
            let mut found = vec![0.0; rows * cols];
            coded.rows_into(0, &mut found);
            let bits: Vec<u16> = found.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            assert!(bits == expected, "{rows} {cols} {rank}");
            assert!(found.iter().all(|x| x.to_bits() & 0xffff == 0));
            // A part of the rows, and the portable path.
            let mut part = vec![0.0; 2 * cols];
            coded.rows_into(4, &mut part);
            assert_eq!(part, found[4 * cols..6 * cols]);
        }
    }
}
