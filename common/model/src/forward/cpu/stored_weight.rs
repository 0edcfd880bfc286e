//! Weight matrices that stay in 16 bits, as their file stores them, and their products.
//!
//! Half the memory of f32, and nothing to convert when a layer is read. A product takes a block of the weights at a time, in the form
//! that its kernel reads: in f32, or, if the product is to round its other operand too, as panels of bfloat16
//! ([`uc_simd::Left`]). The sums of an element have a fixed order, so the bits of a result do not depend on the number of
//! threads.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use uc_simd::{
    Left, MatrixView, PANEL, Pairs, has_amx, has_bf16_products, left_vectors, multiply_uninit,
    pack_columns, pack_rows, panel_len,
};

use super::linear::ConstantMatrix;
use super::{ELEMENTS, Values, matrix, rounded_to_bf16};
use crate::device::Cpu;
use crate::matmul::{product, rows_per_piece, uninitialized};
use crate::source::HalfType;
use crate::work::{self, Amount, Kind};

/// Outputs of a block: few enough for the expanded block to be small beside the matrix, enough for the product to run at full speed.
const BLOCK: usize = 16 * PANEL;
/// The arithmetic of a product with a stored weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// The other operand is in f32.
    F32,
    /// The other operand is rounded to bfloat16 first, as in a model that runs in bfloat16; sums are in f32.
    Bf16,
}

/// A weight matrix `[rows, cols]` in 16 bits.
#[derive(Debug, Clone)]
pub(in crate::forward) struct StoredWeight {
    half: HalfType,
    values: Arc<Vec<u16>>,
    rows: usize,
    cols: usize,
    arithmetic: Arithmetic,
}

impl ConstantMatrix for StoredWeight {
    fn product(&self, kind: Kind, x: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        self.multiplied(kind, x, Direction::Forward)
    }

    fn gradient(&self, kind: Kind, g: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        self.multiplied(kind, g, Direction::Backward)
    }
}

/// Which way a product goes through the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// `x Wᵀ`: an output for every row of W.
    Forward,
    /// `g W`: an output for every column of W.
    Backward,
}

impl StoredWeight {
    /// The matrix with these values, row by row. Products with f16 are in f32 whatever `arithmetic` says.
    ///
    /// # Panics
    /// If there are more or fewer than `rows · cols`.
    pub(in crate::forward) fn new(
        half: HalfType,
        values: Vec<u16>,
        [rows, cols]: [usize; 2],
        arithmetic: Arithmetic,
    ) -> Self {
        assert_eq!(
            values.len(),
            rows * cols,
            "values of a [{rows}, {cols}] matrix"
        );
        StoredWeight {
            half,
            values: Arc::new(values),
            rows,
            cols,
            arithmetic: match half {
                HalfType::Bf16 => arithmetic,
                HalfType::F16 => Arithmetic::F32,
            },
        }
    }

    fn multiplied(&self, kind: Kind, x: Tensor<Cpu, 2>, direction: Direction) -> Tensor<Cpu, 2> {
        let [tokens, inner] = x.dims();
        let (expected, outputs) = match direction {
            Direction::Forward => (self.cols, self.rows),
            Direction::Backward => (self.rows, self.cols),
        };
        assert_eq!(inner, expected, "width of the operand");
        let mut values = Values::new(&x);
        let amount = Amount::product(tokens, inner, outputs);
        if self.multiplies_panels() {
            let product = || self.panel_product(&values, [tokens, inner, outputs], direction);
            return matrix(work::counted(kind, amount, product), [tokens, outputs]);
        }
        if self.arithmetic == Arithmetic::Bf16 {
            values = Values::new(&matrix(rounded_to_bf16(&values), [tokens, inner]));
        }
        let Some(piece) = rows_per_piece(tokens) else {
            let x = matrix(values.to_vec(), [tokens, inner]);
            let weight = self.tensor();
            return product(
                kind,
                x,
                match direction {
                    Direction::Forward => weight.transpose(),
                    Direction::Backward => weight,
                },
            );
        };
        let x = MatrixView::new(&values, tokens, inner, inner);
        let product = || self.expanded_product(x, outputs, piece, direction);
        matrix(work::counted(kind, amount, product), [tokens, outputs])
    }

    /// Whether products are those of panels. Tiles multiply the three parts of an operand in f32 faster than vectors multiply f32.
    fn multiplies_panels(&self) -> bool {
        match (self.half, self.arithmetic) {
            (HalfType::Bf16, Arithmetic::Bf16) => has_bf16_products(),
            (HalfType::Bf16, Arithmetic::F32) => has_amx(),
            (HalfType::F16, _) => false,
        }
    }

    /// The matrix in f32.
    fn tensor(&self) -> Tensor<Cpu, 2> {
        let mut values = vec![0.0; self.values.len()];
        let pieces = values
            .par_chunks_mut(ELEMENTS)
            .zip(self.values.par_chunks(ELEMENTS));
        pieces.for_each(|(out, values)| self.half.expand(values, out));
        let shape = [self.rows, self.cols];
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    /// The product in f32, in pieces of so many rows of `x`.
    fn expanded_product(
        &self,
        x: MatrixView<'_>,
        outputs: usize,
        piece: usize,
        direction: Direction,
    ) -> Vec<f32> {
        let mut buffer = vec![0.0; x.cols() * BLOCK.min(outputs)];
        uninitialized::filled(x.rows() * outputs, |out| {
            for first in (0..outputs).step_by(BLOCK) {
                let block = first..outputs.min(first + BLOCK);
                let weights = self.expand(block.clone(), &mut buffer, direction);
                let pieces = out.par_chunks_mut((piece * outputs).max(1)).enumerate();
                pieces.for_each(|(index, out)| {
                    let x = x.row_range(index * piece, out.len() / outputs);
                    multiply_uninit(&mut out[block.start..], outputs, x, weights);
                });
            }
        })
    }

    /// The weights of a block of outputs in f32, as a matrix with a column for each.
    fn expand<'b>(
        &self,
        block: Range<usize>,
        buffer: &'b mut [f32],
        direction: Direction,
    ) -> MatrixView<'b> {
        let count = block.len();
        let (lines, length) = match direction {
            Direction::Forward => (count, self.cols),
            Direction::Backward => (self.rows, count),
        };
        let line = |index: usize| match direction {
            Direction::Forward => self.row(block.start + index),
            Direction::Backward => &self.row(index)[block.clone()],
        };
        let buffer = &mut buffer[..lines * length];
        let expanded = buffer.par_chunks_mut(length.max(1)).enumerate();
        expanded.for_each(|(index, out)| self.half.expand(line(index), out));
        let matrix = MatrixView::new(buffer, lines, length, length);
        match direction {
            Direction::Forward => matrix.transposed(),
            Direction::Backward => matrix,
        }
    }

    /// The product of operands in bfloat16, or in several parts in bfloat16.
    fn panel_product(
        &self,
        x: &[f32],
        [tokens, inner, outputs]: [usize; 3],
        direction: Direction,
    ) -> Vec<f32> {
        let operand = |x| match self.arithmetic {
            Arithmetic::Bf16 => Left::from_rows(x, inner),
            Arithmetic::F32 => Left::from_exact_rows(x, inner),
        };
        let band = left_vectors();
        let bands = x.par_chunks((band * inner).max(1));
        let left: Vec<Left<'_>> = bands.map(operand).collect();
        let length = panel_len(inner).max(1);
        let mut right = vec![Pairs::ZERO; BLOCK.min(outputs).div_ceil(PANEL) * length];
        uninitialized::filled(tokens * outputs, |out| {
            for first in (0..outputs).step_by(BLOCK) {
                let count = BLOCK.min(outputs - first);
                let right = &mut right[..count.div_ceil(PANEL) * length];
                let panels = right.par_chunks_mut(length).enumerate();
                panels.for_each(|(panel, out)| self.pack(first + panel * PANEL, out, direction));
                let bands = out.par_chunks_mut((band * outputs).max(1));
                bands.zip(&left).for_each(|(out, left)| {
                    let size = [out.len() / outputs, count];
                    left.products_uninit(&mut out[first..], outputs, size, right);
                });
            }
        })
    }

    /// Packs the weights of the outputs from `first` on into a panel.
    fn pack(&self, first: usize, out: &mut [Pairs], direction: Direction) {
        match direction {
            Direction::Forward => {
                let end = self.rows.min(first + PANEL);
                let rows = &self.values[first * self.cols..end * self.cols];
                pack_rows(rows, self.cols, out);
            }
            Direction::Backward => pack_columns(&self.values, self.rows, self.cols, first, out),
        }
    }

    fn row(&self, index: usize) -> &[u16] {
        &self.values[index * self.cols..][..self.cols]
    }
}

#[cfg(test)]
mod tests {
    use uc_simd::bf16_bits;

    use super::*;

    /// Numbers between -1 and 1 that bfloat16 has.
    fn numbers(count: usize, factor: usize) -> Vec<f32> {
        let number = |i: usize| ((i * factor) % 255) as f32 / 128.0 - 1.0;
        (0..count).map(number).collect()
    }

    fn values(tensor: Tensor<Cpu, 2>) -> Vec<f32> {
        tensor.into_data().into_vec().unwrap()
    }

    fn weight(shape: [usize; 2], arithmetic: Arithmetic) -> StoredWeight {
        let values = numbers(shape[0] * shape[1], 7919);
        let bits = values.iter().map(|&value| bf16_bits(value)).collect();
        StoredWeight::new(HalfType::Bf16, bits, shape, arithmetic)
    }

    #[test]
    fn products_and_gradients_are_those_of_the_matrix_in_f32_whatever_the_number_of_threads() {
        for (tokens, [rows, cols]) in [(1100, [800, 50]), (70, [100, 801]), (1030, [97, 1031])] {
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
                let weight = weight([rows, cols], arithmetic);
                // Rounding changes none of these operands.
                let x = matrix(numbers(tokens * cols, 6421), [tokens, cols]);
                let g = matrix(numbers(tokens * rows, 6421), [tokens, rows]);
                let expected = [
                    values(x.clone().matmul(weight.tensor().transpose())),
                    values(g.clone().matmul(weight.tensor())),
                ];
                let found = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| {
                        [
                            values(weight.product(Kind::Linears, x.clone())),
                            values(weight.gradient(Kind::Linears, g.clone())),
                        ]
                    })
                };
                let [one, three] = [1, 3].map(found);
                for (found, expected) in one.iter().zip(&expected) {
                    for (found, expected) in found.iter().zip(expected) {
                        assert!((found - expected).abs() < 2e-3, "{found}, {expected}");
                    }
                }
                if tokens > 1000 || arithmetic == Arithmetic::Bf16 {
                    assert_eq!(one, three, "{arithmetic:?}");
                }
            }
        }
    }

    #[test]
    fn the_other_operand_is_rounded_if_asked() {
        let weight = |arithmetic| weight([1, 3], arithmetic);
        let x = || matrix(vec![1.0 + 1.0 / 512.0, 0.0, 0.0], [1, 3]);
        let exact = values(weight(Arithmetic::F32).product(Kind::Linears, x()));
        let rounded = values(weight(Arithmetic::Bf16).product(Kind::Linears, x()));
        assert_eq!(exact, [-1.0 - 1.0 / 512.0]);
        assert_eq!(rounded, [-1.0]);
    }
}
