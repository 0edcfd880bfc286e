//! The bytes of weights that are read for a token.

use serde::Serialize;

use crate::layer::Block;
use crate::linear::Linear;
use crate::matrix::Matrix;
use crate::memory::Memory;

/// Bytes of weights that are read from memory to compute a token and its logits, in their resident form. Not counted are the
/// token's row of the embedding, norms, biases, and the states of the sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// The compressed linears. Of a mixture of experts only as many as a token is sent to, each with the mean size of the experts
    /// of its layer.
    pub linear_bytes: u64,
    /// Routers, and linears that are stored exactly.
    pub exact_bytes: u64,
    /// The output matrix.
    pub head_bytes: u64,
    /// Whether the tokens of a batch may read different experts. If not, a batch reads what a token reads.
    pub depends_on_routing: bool,
}

impl Reads {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.linear_bytes + self.exact_bytes + self.head_bytes
    }

    pub(crate) fn new<'a>(blocks: impl Iterator<Item = &'a Block>, head: usize) -> Self {
        let mut reads = Reads {
            head_bytes: head as u64,
            ..Reads::default()
        };
        for block in blocks {
            let Some(mixture) = block.experts() else {
                reads.add(block.linears(), 1, 1);
                continue;
            };
            reads.depends_on_routing = true;
            reads.add(vec![&mixture.router], 1, 1);
            reads.add(mixture.shared_linears(), 1, 1);
            reads.add(
                mixture.expert_linears(),
                mixture.top_k,
                mixture.experts.len(),
            );
        }
        reads
    }

    /// Adds `used` of `count` equal parts of these linears.
    fn add(&mut self, linears: Vec<&Linear>, used: usize, count: usize) {
        let memory = memory(linears.into_iter().map(|linear| &linear.matrix));
        let part = |bytes: u64| (bytes as u128 * used as u128 / count.max(1) as u128) as u64;
        self.linear_bytes += part(memory.linear_bytes);
        self.exact_bytes += part(memory.exact_bytes);
    }
}

/// What these matrices take.
fn memory<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> Memory {
    let mut memory = Memory::default();
    matrices.into_iter().for_each(|matrix| memory.add(matrix));
    memory
}
