//! The states of one sequence: what its tokens leave behind in every block.

use crate::cache::{KvCache, Precision};
use crate::error::InferError;
use crate::mamba::ScanState;
use crate::model::Model;
use crate::rotary::Frequencies;

/// What a block keeps of the tokens so far.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Nothing: an MLP.
    None,
    /// Keys and values.
    Cache(KvCache),
    /// The states of a convolution and a scan.
    Scan(ScanState),
}

/// A sequence of tokens in the course of being computed. A clone goes on from the same tokens: the way to share a prefix.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// For every layer and block.
    pub(crate) states: Vec<Vec<State>>,
    /// For every rotary embedding of the model.
    pub(crate) frequencies: Vec<Frequencies>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) context: usize,
    /// The model that it belongs to.
    pub(crate) model: u64,
}

impl Sequence {
    /// An empty sequence of at most `context` tokens. The rotary scalings that depend on the length of the text are those for
    /// a text of `context` tokens, from the first token on.
    ///
    /// # Errors
    /// [`InferError::ContextRange`] for a context that the model does not have.
    pub fn new(model: &Model, context: usize, precision: Precision) -> Result<Self, InferError> {
        let expected = model.config().context;
        if context == 0 || context > expected {
            let found = context;
            return Err(InferError::ContextRange { found, expected });
        }
        let ropes = model.ropes().iter();
        Ok(Sequence {
            states: model.empty_states(precision),
            frequencies: ropes.map(|rope| Frequencies::new(rope, context)).collect(),
            tokens: Vec::new(),
            context,
            model: model.id(),
        })
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Most tokens that it can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of its states.
    pub fn bytes(&self) -> u64 {
        let bytes = |state: &State| match state {
            State::None => 0,
            State::Cache(cache) => cache.bytes(),
            State::Scan(scan) => scan.bytes(),
        };
        let bytes: usize = self.states.iter().flatten().map(bytes).sum();
        bytes as u64
    }
}
