//! The states of one sequence: what its tokens leave behind in every block.

use std::sync::Arc;

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
    Scan(Arc<ScanState>),
}

impl State {
    /// Whether what follows the first `tokens` of all `held` tokens can be computed again.
    fn can_be_cut(&self, tokens: usize, held: usize) -> bool {
        match self {
            State::None => true,
            State::Cache(cache) => cache.can_be_cut(tokens),
            State::Scan(_) => tokens == held,
        }
    }

    /// The address and the bytes of every part that clones share.
    fn parts(&self) -> Vec<(usize, u64)> {
        match self {
            State::None => Vec::new(),
            State::Cache(cache) => cache.parts(),
            State::Scan(scan) => vec![(Arc::as_ptr(scan).addr(), scan.bytes())],
        }
    }
}

/// A sequence of tokens in the course of being computed. A clone goes on from the same tokens, and shares
/// the memory of what both have in common.
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

    /// Bytes of its states, shared or not.
    pub fn bytes(&self) -> u64 {
        self.parts().map(|(_, bytes)| bytes).sum()
    }

    /// Whether it can be [`Sequence::cut`] to its first `tokens` tokens: always as they are, to fewer if no state of a scan and
    /// no sliding window has forgotten what they leave.
    pub(crate) fn can_be_cut(&self, tokens: usize) -> bool {
        let held = self.tokens.len();
        let mut states = self.states.iter().flatten();
        tokens <= held && states.all(|state| state.can_be_cut(tokens, held))
    }

    /// Leaves its first `tokens` tokens, which [`Sequence::can_be_cut`] allows.
    pub(crate) fn cut(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        for state in self.states.iter_mut().flatten() {
            if let State::Cache(cache) = state {
                cache.cut(tokens);
            }
        }
    }

    /// After how many tokens of a prompt of `prompt` tokens, whose first `parting` tokens are known from elsewhere, a copy is
    /// worth keeping for others that begin alike: none if every prefix can be cut from what comes later.
    ///
    /// Prompts that part from another one at some token are likely to be followed by others that part there; and a prompt may
    /// come again, when only its last token has to be computed.
    pub(crate) fn points(&self, parting: usize, prompt: usize) -> Vec<usize> {
        let states = || self.states.iter().flatten();
        let has_scan = states().any(|state| matches!(state, State::Scan(_)));
        let has_window =
            states().any(|state| matches!(state, State::Cache(cache) if cache.has_window()));
        let mut points = match (has_scan, has_window) {
            (true, _) => vec![parting, prompt - 1],
            (false, true) => vec![parting, prompt],
            (false, false) => Vec::new(),
        };
        points.retain(|&point| point > self.tokens.len());
        points
    }

    /// The address and the bytes of every part of its states that clones share.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (usize, u64)> {
        self.states.iter().flatten().flat_map(State::parts)
    }
}
