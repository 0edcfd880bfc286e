//! The six tensors of a scan: its inputs, or the gradients with respect to them.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::device::tensor;

/// The six inputs of a scan, or the gradients with respect to them.
#[derive(Debug, Clone)]
pub(super) struct ScanTensors<B: Backend> {
    /// `[windows, length, inner]`
    pub u: Tensor<B, 3>,
    /// `[windows, length, inner]`
    pub delta: Tensor<B, 3>,
    /// `[inner, state]`
    pub a: Tensor<B, 2>,
    /// `[windows, length, state]`
    pub b: Tensor<B, 3>,
    /// `[windows, length, state]`
    pub c: Tensor<B, 3>,
    /// `[inner]`
    pub d: Tensor<B, 1>,
}

impl<B: Backend> ScanTensors<B> {
    /// Checks the shapes.
    ///
    /// # Panics
    /// If the shapes do not match, or one is empty.
    pub fn check(&self) {
        let [windows, length, inner] = self.u.dims();
        let state = self.a.dims()[1];
        assert!(windows * length * inner * state > 0, "an empty scan");
        assert_eq!(self.delta.dims(), [windows, length, inner], "delta");
        assert_eq!(self.a.dims(), [inner, state], "a");
        assert_eq!(self.b.dims(), [windows, length, state], "b");
        assert_eq!(self.c.dims(), [windows, length, state], "c");
        assert_eq!(self.d.dims(), [inner], "d");
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.u.dims()[0]
    }

    /// Tokens per window.
    pub fn length(&self) -> usize {
        self.u.dims()[1]
    }

    /// `[windows, 1, inner, state]`, the states before the first token.
    pub fn zero_states(&self) -> Tensor<B, 4> {
        let [inner, state] = self.a.dims();
        Tensor::zeros([self.count(), 1, inner, state], &self.u.device())
    }

    /// The scan of a range of windows.
    pub fn windows(&self, range: Range<usize>) -> Self {
        let part = |t: &Tensor<B, 3>| t.clone().slice([range.clone()]);
        ScanTensors {
            u: part(&self.u),
            delta: part(&self.delta),
            b: part(&self.b),
            c: part(&self.c),
            ..self.clone()
        }
    }

    /// The primitives, in the order of the fields.
    pub fn into_primitives(self) -> [FloatTensor<B>; 6] {
        [
            self.u.into_primitive().tensor(),
            self.delta.into_primitive().tensor(),
            self.a.into_primitive().tensor(),
            self.b.into_primitive().tensor(),
            self.c.into_primitive().tensor(),
            self.d.into_primitive().tensor(),
        ]
    }

    /// From primitives in the order of the fields.
    pub fn from_primitives(primitives: [FloatTensor<B>; 6]) -> Self {
        let [u, delta, a, b, c, d] = primitives;
        ScanTensors {
            u: tensor(u),
            delta: tensor(delta),
            a: tensor(a),
            b: tensor(b),
            c: tensor(c),
            d: tensor(d),
        }
    }
}
