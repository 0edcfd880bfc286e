//! A model that is ready to compute, and its forward pass over chunks of several sequences.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use uc_model::ModelConfig;
use uc_model::rope::RopeSpec;

use crate::arithmetic::{Arithmetic, MemoryForm};
use crate::attention::Span;
use crate::awake::awake;
use crate::cache::Precision;
use crate::error::InferError;
use crate::freed;
use crate::head::Head;
use crate::layer::{Layer, rope_of};
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::norm::Norm;
use crate::reads::Reads;
use crate::rotary::Tables;
use crate::sequence::{Sequence, State};
use crate::source::Source;

/// A model with its weights. It is immutable: any number of sequences and threads may use it at the same time.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    id: u64,
    /// The rotary embeddings, each once.
    ropes: Vec<RopeSpec>,
    embedding: Matrix,
    positions: Option<Matrix>,
    layers: Vec<Layer>,
    norm: Norm,
    head: Head,
}

/// Which logits of a chunk are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None: the chunk is not the end of a prompt.
    None,
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
}

/// The next tokens of a sequence.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
    /// Which logits are computed.
    pub wanted: Wanted,
}

/// Number of the next model.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Model {
    /// Builds a model that computes its head in this arithmetic and keeps it in this form. `non_layer` is the source of the tensors
    /// outside the layers, `layer` that of a layer's. Layers are built in parallel.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn new<S: Source>(
        config: ModelConfig,
        arithmetic: Arithmetic,
        memory: MemoryForm,
        non_layer: &dyn Source,
        layer: impl Fn(usize) -> Result<S, InferError> + Sync,
    ) -> Result<Self, InferError> {
        let mut ropes: Vec<RopeSpec> = Vec::new();
        for block in config.layers.iter().flat_map(|layer| &layer.blocks) {
            if let Some(rope) = rope_of(&block.mixer)
                && !ropes.contains(rope)
            {
                ropes.push(rope.clone());
            }
        }
        let vocab = [config.vocab, config.hidden];
        let positions = config.embedding.positions.as_ref();
        let positions =
            positions.map(|name| non_layer.matrix(name, [config.context, config.hidden]));
        let embedding = non_layer.matrix(&config.embedding.weight, vocab)?;
        // Before the layers, so that an exact head that is freed does not add to the peak.
        let head = Head::new(&config, arithmetic, memory, &embedding, non_layer)?;
        let layers = config.layers.par_iter().enumerate();
        let layers = layers
            .map(|(index, spec)| Layer::new(spec, &ropes, &layer(index)?))
            .collect::<Result<Vec<_>, _>>()?;
        freed::keep();
        Ok(Model {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            ropes,
            positions: positions.transpose()?,
            layers,
            norm: Norm::new(&config.head.norm, non_layer)?,
            head,
            embedding,
            config,
        })
    }

    /// The description of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the model takes in memory.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        let outside = [
            Some(&self.embedding),
            self.positions.as_ref(),
            self.head.own_matrix(),
        ];
        outside.into_iter().flatten().for_each(|m| memory.add(m));
        memory.exact_bytes += self.head.integer_bytes() as u64;
        for block in self.layers.iter().flat_map(|layer| &layer.blocks) {
            for linear in block.linears() {
                memory.add(&linear.matrix);
            }
        }
        memory
    }

    /// What is read of the weights for a token.
    pub fn reads(&self) -> Reads {
        let blocks = self.layers.iter().flat_map(|layer| &layer.blocks);
        Reads::new(blocks, self.head.bytes_read(&self.embedding))
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn ropes(&self) -> &[RopeSpec] {
        &self.ropes
    }

    pub(crate) fn empty_states(&self, precision: Precision) -> Vec<Vec<State>> {
        let of_layer = |layer: &Layer| {
            let blocks = layer.blocks.iter();
            blocks.map(|block| block.empty_state(precision)).collect()
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// Computes the next tokens of some sequences together. Returns the wanted logits `[positions, vocab]` of every chunk. The
    /// bits of a sequence's logits depend on its own tokens alone.
    ///
    /// # Errors
    /// [`InferError::Empty`], [`InferError::Context`], [`InferError::Token`], [`InferError::OtherModel`]: then no sequence has
    /// changed. [`InferError::Overflow`]: then the sequences are of no use any more.
    pub fn forward(&self, chunks: &mut [Chunk<'_>]) -> Result<Vec<Vec<f32>>, InferError> {
        self.check(chunks)?;
        self.compute(chunks).into_iter().collect()
    }

    /// [`Model::forward`] of chunks that are known to be right. A sequence whose logits are no numbers does not concern the others.
    pub(crate) fn compute(&self, chunks: &mut [Chunk<'_>]) -> Vec<Result<Vec<f32>, InferError>> {
        awake(|| self.compute_layers(chunks))
    }

    fn compute_layers(&self, chunks: &mut [Chunk<'_>]) -> Vec<Result<Vec<f32>, InferError>> {
        let mut hidden = self.embed(chunks);
        let tables: Vec<Vec<Tables>> = chunks.iter().map(tables).collect();
        let places: Vec<[usize; 3]> = places(chunks);
        for (index, layer) in self.layers.iter().enumerate() {
            let mut spans: Vec<Vec<Span<'_>>> = layer.blocks.iter().map(|_| Vec::new()).collect();
            let parts = chunks.iter_mut().zip(&tables).zip(&places);
            for ((chunk, tables), &[first, count, position]) in parts {
                let states = chunk.sequence.states[index].iter_mut();
                for (spans, state) in spans.iter_mut().zip(states) {
                    spans.push(Span {
                        first,
                        count,
                        position,
                        tables,
                        state,
                    });
                }
            }
            layer.forward(&mut hidden, &mut spans);
        }
        for chunk in &mut *chunks {
            chunk.sequence.tokens.extend_from_slice(chunk.tokens);
        }
        self.logits(hidden, chunks, &places)
    }

    /// Checks everything that can be wrong with the input.
    fn check(&self, chunks: &[Chunk<'_>]) -> Result<(), InferError> {
        for chunk in chunks {
            let sequence = &*chunk.sequence;
            if sequence.model != self.id {
                return Err(InferError::OtherModel);
            }
            if chunk.tokens.is_empty() {
                return Err(InferError::Empty);
            }
            let found = sequence.tokens.len() + chunk.tokens.len();
            if found > sequence.context {
                let expected = sequence.context;
                return Err(InferError::Context { found, expected });
            }
            let expected = self.config.vocab;
            let outside = |id: &&u32| **id as usize >= expected;
            if let Some(&found) = chunk.tokens.iter().find(outside) {
                return Err(InferError::Token { found, expected });
            }
        }
        Ok(())
    }

    /// The embedded tokens of all chunks, `[tokens, hidden]`.
    fn embed(&self, chunks: &[Chunk<'_>]) -> Vec<f32> {
        let width = self.config.hidden;
        let scale = self.config.embedding.scale as f32;
        let mut hidden = Vec::new();
        let mut row = vec![0.0; width];
        for chunk in chunks {
            for (index, &id) in chunk.tokens.iter().enumerate() {
                self.embedding.rows_into(id as usize, &mut row);
                let start = hidden.len();
                hidden.extend(row.iter().map(|x| x * scale));
                if let Some(positions) = &self.positions {
                    positions.rows_into(chunk.sequence.tokens.len() + index, &mut row);
                    let sums = hidden[start..].iter_mut().zip(&row);
                    sums.for_each(|(x, position)| *x += position);
                }
            }
        }
        hidden
    }

    /// The wanted logits of every chunk.
    fn logits(
        &self,
        hidden: Vec<f32>,
        chunks: &[Chunk<'_>],
        places: &[[usize; 3]],
    ) -> Vec<Result<Vec<f32>, InferError>> {
        let (width, vocab) = (self.config.hidden, self.config.vocab);
        let mut states = Vec::new();
        let mut counts = Vec::new();
        for (chunk, &[first, count, _]) in chunks.iter().zip(places) {
            let wanted = match chunk.wanted {
                Wanted::None => 0,
                Wanted::Last => 1,
                Wanted::All => count,
            };
            states.extend_from_slice(&hidden[(first + count - wanted) * width..][..wanted * width]);
            counts.push(wanted);
        }
        self.norm.apply(&mut states);
        let logits = self.head.logits(&self.embedding, &states);
        let mut rest = logits.as_slice();
        let mut own_logits = Vec::with_capacity(chunks.len());
        for (chunk, count) in chunks.iter().zip(counts) {
            let (own, others) = rest.split_at(count * vocab);
            rest = others;
            own_logits.push((own, chunk.sequence.tokens.len() - count));
        }
        // For a large batch and vocabulary as long as a small layer, so it is shared among the threads.
        let checked = own_logits.into_par_iter().map(|(own, position)| {
            match own.iter().position(|logit| !logit.is_finite()) {
                Some(index) => Err(InferError::Overflow {
                    position: position + index / vocab,
                    found: own[index],
                }),
                None => Ok(own.to_vec()),
            }
        });
        checked.collect()
    }
}

/// The cosines and sines of a chunk's positions, for each rotary embedding.
fn tables(chunk: &Chunk<'_>) -> Vec<Tables> {
    let (first, count) = (chunk.sequence.tokens.len(), chunk.tokens.len());
    let frequencies = chunk.sequence.frequencies.iter();
    frequencies.map(|f| f.tables(first, count)).collect()
}

/// For every chunk: the index of its first token in the batch, the number of its tokens, its position in the sequence.
fn places(chunks: &[Chunk<'_>]) -> Vec<[usize; 3]> {
    let mut next = 0;
    let place = |chunk: &Chunk<'_>| {
        let first = next;
        next += chunk.tokens.len();
        [first, chunk.tokens.len(), chunk.sequence.tokens.len()]
    };
    chunks.iter().map(place).collect()
}
