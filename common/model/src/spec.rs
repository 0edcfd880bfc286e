//! What a model is, as data: its two ends and, for every layer, the blocks that it is made of.
//!
//! A family's file (see `families`) fills these types from its `config.json`; the plan of
//! tensors ([`crate::plan`]) and the forward pass ([`crate::forward`]) are both derived from them, so
//! that a family is described once and nothing else knows its name. No weight is read here.

use crate::rope::RopeSpec;

/// A matrix of the model, `y = x Wᵀ + b` with `W: [rows, cols]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Name within the layer, without `.weight`.
    pub name: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Whether a tensor `<name>.bias` `[rows]` is added.
    pub bias: bool,
    /// How the source's files hold it.
    pub stored: Stored,
}

/// How a matrix lies in the source's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// As the tensor `<name>.weight` `[rows, cols]`.
    Whole,
    /// As the tensor `<name>.weight` `[cols, rows]`.
    Transposed,
    /// As one of the `count` matrices of a tensor `[count, rows, cols]`.
    Slice {
        /// Name of the tensor within the layer.
        tensor: String,
        /// Which of them.
        index: usize,
        /// How many there are.
        count: usize,
    },
}

impl Projection {
    /// A matrix that is a tensor of its own.
    pub fn new(name: impl Into<String>, rows: usize, cols: usize, bias: bool) -> Self {
        Projection {
            name: name.into(),
            rows,
            cols,
            bias,
            stored: Stored::Whole,
        }
    }
}

/// Which mean a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root of the mean square; a gain (Zhang and Sennrich 2019, arXiv 1910.07467).
    Rms,
    /// As `Rms`, with a gain of one plus the tensor.
    RmsOnePlus,
    /// Standard deviation after subtracting the mean; a gain and a bias (Ba et al. 2016, arXiv 1607.06450).
    Layer,
}

/// A norm: tensors `<name>.weight` and, of [`NormKind::Layer`], `<name>.bias`, `[width]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Name within the layer (of the final norm: within the model).
    pub name: String,
    /// Kind of norm.
    pub kind: NormKind,
    /// Number of values that are normalised together.
    pub width: usize,
    /// Added to the mean square or variance.
    pub eps: f64,
}

/// Elementwise function of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the exact normal distribution function.
    Gelu,
    /// GELU by the approximation with tanh.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Where queries, keys and values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QkvSpec {
    /// A matrix each.
    Separate {
        /// `[heads · head_dim, hidden]`
        q: Projection,
        /// `[kv_heads · head_dim, hidden]`
        k: Projection,
        /// `[kv_heads · head_dim, hidden]`
        v: Projection,
    },
    /// One matrix: all queries, then all keys, then all values.
    Stacked(Projection),
    /// One matrix: for each head its query, its key and its value.
    PerHead(Projection),
}

/// Norms of queries and keys before they are turned.
#[derive(Debug, Clone, PartialEq)]
pub struct QkNorm {
    /// Norm of the queries.
    pub q: NormSpec,
    /// Norm of the keys.
    pub k: NormSpec,
}

/// Causal attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Queries, keys and values.
    pub qkv: QkvSpec,
    /// Output matrix, `[hidden, heads · head_dim]`.
    pub output: Projection,
    /// Norms of queries and keys; of width `head_dim` each head has its own mean.
    pub qk_norm: Option<QkNorm>,
    /// Rotary positions, if any.
    pub rope: Option<RopeSpec>,
    /// A token sees so many tokens, itself included; all earlier ones if none.
    pub window: Option<usize>,
    /// Factor of the scores `q·k`.
    pub scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
}

/// A narrow copy of a vector, from which a wider one is made again.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentSpec {
    /// Into the narrow width.
    pub down: Projection,
    /// Norm of what is made wider again: of the first `norm.width` values that `down` gives.
    pub norm: NormSpec,
}

/// Causal attention whose keys and values are made from one narrow vector per token (multi-head latent
/// attention, DeepSeek-AI 2024, arXiv 2405.04434). A head's queries and keys have a part without positions,
/// made from the narrow vector, and a part that is turned; the turned part of the keys is the same for all heads.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentAttentionSpec {
    /// Heads of queries, keys and values.
    pub heads: usize,
    /// Width of a head's queries and keys that is not turned.
    pub plain: usize,
    /// Width of a head's values.
    pub value: usize,
    /// Rotary positions of the other part; its width is that part's.
    pub rope: RopeSpec,
    /// The pairs that turn together are neighbours, not halves apart.
    pub neighbours: bool,
    /// Narrow vector of the queries, if they have one; `down: [rank, hidden]`.
    pub query_latent: Option<LatentSpec>,
    /// `[heads · (plain + turned), rank or hidden]`, for each head its plain part, then the turned one.
    pub query: Projection,
    /// Narrow vector of keys and values; `down: [rank + turned, hidden]`, behind the narrow vector the turned
    /// part of the keys.
    pub latent: LatentSpec,
    /// `[heads · (plain + value), rank]`, for each head the plain part of its key, then its value.
    pub key_value: Projection,
    /// Output matrix, `[hidden, heads · value]`.
    pub output: Projection,
    /// Factor of the scores `q·k`.
    pub scale: f64,
}

/// The first half of an MLP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Widening {
    /// `f(gate x) · (up x)`.
    Gated {
        /// `[ffn, hidden]`
        gate: Projection,
        /// `[ffn, hidden]`
        up: Projection,
    },
    /// The same with one matrix `[2 · ffn, hidden]`: gate, then up.
    GatedStacked(Projection),
    /// `f(up x)`.
    Plain(Projection),
}

/// A multilayer perceptron of one hidden layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlpSpec {
    /// Into the inner width.
    pub widening: Widening,
    /// Back, `[hidden, ffn]`.
    pub down: Projection,
    /// Inner width.
    pub ffn: usize,
    /// Elementwise function.
    pub activation: Activation,
    /// Name of the input of the first matrices.
    pub input: String,
    /// Name of the input of `down`.
    pub inner: String,
}

/// How a token's experts and their weights follow from the router's scores.
#[derive(Debug, Clone, PartialEq)]
pub enum Routing {
    /// Softmax over all experts; the largest `k`, if `renormalised` divided by their sum.
    Softmax {
        /// Whether the chosen weights are made to sum to one.
        renormalised: bool,
    },
    /// Two experts, one after the other, each weighed against the experts whose score comes within the
    /// relative distance `2 · jitter` of it (SparseMixer, Liu et al. 2023, arXiv 2310.00811).
    SparseMixer {
        /// Half of the relative distance.
        jitter: f64,
    },
    /// A sigmoid of every score. Experts are chosen by its sum with a correction that keeps their loads even:
    /// first the `kept` groups whose two best experts have the largest sum, then the largest `k` in them. They are
    /// weighed without the correction (DeepSeek-AI 2024, arXiv 2412.19437; Wang et al. 2024, arXiv 2408.15664).
    Sigmoid {
        /// Name of the correction `[experts]` within the layer, kept exactly.
        correction: String,
        /// Equal groups of experts, in order.
        groups: usize,
        /// Groups from which a token may choose.
        kept: usize,
        /// Whether the chosen weights are made to sum to one.
        renormalised: bool,
        /// Factor of the weights.
        scale: f64,
    },
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    /// The router, `[experts, hidden]`, kept exactly.
    pub router: Projection,
    /// Experts for one token.
    pub chosen: usize,
    /// From scores to weights.
    pub routing: Routing,
    /// The experts.
    pub experts: Vec<MlpSpec>,
    /// An MLP that every token passes, added to what its experts give.
    pub shared: Option<MlpSpec>,
}

/// A short causal convolution of every channel on its own: tensors `<name>.weight` `[channels, 1, kernel]` and
/// `<name>.bias` `[channels]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvSpec {
    /// Name within the layer.
    pub name: String,
    /// Number of channels.
    pub channels: usize,
    /// Taps: the token and those just before it.
    pub kernel: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

/// A selective state space block (Mamba: Gu and Dao 2023, arXiv 2312.00752).
#[derive(Debug, Clone, PartialEq)]
pub struct MambaSpec {
    /// Inner width.
    pub inner: usize,
    /// Values of state per channel.
    pub state: usize,
    /// Width of the step's low-rank input.
    pub rank: usize,
    /// Convolution of the inner width.
    pub conv: ConvSpec,
    /// `[2 · inner, hidden]`: what is convolved, then the gate.
    pub input: Projection,
    /// `[rank + 2 · state, inner]`: step, B, C.
    pub selection: Projection,
    /// `[inner, rank]` with bias.
    pub step: Projection,
    /// `[hidden, inner]`
    pub output: Projection,
    /// Function after the convolution and of the gate.
    pub activation: Activation,
}

/// A selective state space block with one decay and one step per head (Mamba-2: Dao and Gu 2024,
/// arXiv 2405.21060). The exact tensors `mixer.A_log`, `mixer.D` and `mixer.dt_bias` are `[heads]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mamba2Spec {
    /// Heads, a multiple of `groups`.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C, and over each of which `norm` takes its mean.
    pub groups: usize,
    /// Values of state per channel.
    pub state: usize,
    /// Convolution of channels, B and C, `heads · head_dim + 2 · groups · state`.
    pub conv: ConvSpec,
    /// `[2 · heads · head_dim + 2 · groups · state + heads, hidden]`: the gate, what is convolved, then the steps.
    pub input: Projection,
    /// Steps are held between these, the upper of which may be infinite.
    pub step_limits: [f64; 2],
    /// Norm of the gated channels.
    pub norm: NormSpec,
    /// `[hidden, heads · head_dim]`
    pub output: Projection,
    /// Function after the convolution and of the gate.
    pub activation: Activation,
}

impl Mamba2Spec {
    /// Channels of all heads.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// What a block computes from its input.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "a model has a few hundred blocks"
)]
pub enum Mixer {
    /// Attention over the tokens.
    Attention(AttentionSpec),
    /// Attention with narrow keys and values.
    LatentAttention(LatentAttentionSpec),
    /// An MLP for every token.
    Mlp(MlpSpec),
    /// An MLP that is chosen for every token.
    Experts(ExpertsSpec),
    /// A selective state space.
    Mamba(MambaSpec),
    /// A selective state space of heads.
    Mamba2(Mamba2Spec),
}

/// One block: `after(mixer(before(x))) · scale`, added to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Norm before the mixer.
    pub before: Option<NormSpec>,
    /// The computation.
    pub mixer: Mixer,
    /// Norm after the mixer.
    pub after: Option<NormSpec>,
    /// Factor of what is added.
    pub scale: f64,
}

impl BlockSpec {
    /// A block with a norm before its mixer and nothing else.
    pub fn new(before: NormSpec, mixer: Mixer) -> Self {
        BlockSpec {
            before: Some(before),
            mixer,
            after: None,
            scale: 1.0,
        }
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// What stands before every tensor name of this layer, e.g. `model.layers.17.`.
    pub prefix: String,
    /// The blocks in order.
    pub blocks: Vec<BlockSpec>,
    /// Every block reads the layer's input, rather than what the block before it left.
    pub parallel: bool,
}

/// From token ids to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSpec {
    /// Name of the matrix `[vocab, hidden]`.
    pub weight: String,
    /// Factor of the embedded token.
    pub scale: f64,
    /// Name of a matrix `[context, hidden]` that is added by position.
    pub positions: Option<String>,
}

/// From the residual stream to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// The final norm.
    pub norm: NormSpec,
    /// Name of the output matrix `[vocab, hidden]`; of a tied head that of the embedding.
    pub weight: String,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// Name of a bias `[vocab]`.
    pub bias: Option<String>,
    /// Factor of the logits.
    pub scale: f64,
    /// Logits become `cap · tanh(logit / cap)`.
    pub softcap: Option<f64>,
}
