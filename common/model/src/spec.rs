//! What a model is, as data: its embedding, its head and, for every layer, the blocks it consists of.
//!
//! A family's file (see `families`) fills these types from its `config.json`. The plan of tensors
//! ([`crate::plan`]) and the forward pass ([`crate::forward`]) are both derived from them: a family is
//! described once, and no other code knows its name. No weight is read here.
//!
//! Conventions: shapes are written outermost dimension first, a weight matrix is `[out, in]`, and names
//! of tensors are relative to their layer (without [`LayerSpec::prefix`]) unless said otherwise.

use crate::rope::RopeSpec;

/// A weight matrix, `y = x Wᵀ + b` with `W: [rows, cols]`. All projections but routers are compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Name within the layer, without `.weight`.
    pub name: String,
    /// Output dimension.
    pub rows: usize,
    /// Input dimension.
    pub cols: usize,
    /// Whether there is a tensor `<name>.bias` `[rows]`.
    pub bias: bool,
    /// How the checkpoint stores the matrix.
    pub stored: Stored,
}

/// How a checkpoint stores a weight matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// As a tensor `<name>.weight` `[rows, cols]`.
    Whole,
    /// As a tensor `<name>.weight` `[cols, rows]`, as GPT-2's `Conv1D` does.
    Transposed,
    /// As one of `count` matrices in a tensor `[count, rows, cols]`, as fused experts are.
    Slice {
        /// Name of the tensor within the layer.
        tensor: String,
        /// Index of the matrix in the tensor.
        index: usize,
        /// Number of matrices in the tensor.
        count: usize,
    },
}

impl Projection {
    /// A matrix stored as a tensor of its own.
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

/// Kind of a normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm: divides by the root mean square, multiplies by the weight (Zhang and Sennrich 2019,
    /// arXiv 1910.07467).
    Rms,
    /// RMSNorm that multiplies by one plus the weight, as Gemma's does.
    RmsOnePlus,
    /// LayerNorm: subtracts the mean and divides by the standard deviation; weight and bias (Ba et al.
    /// 2016, arXiv 1607.06450).
    Layer,
}

/// A normalization with tensors `<name>.weight` and, for [`NormKind::Layer`], `<name>.bias`, each `[width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Name within the layer; for the final norm, the full name.
    pub name: String,
    /// Kind of normalization.
    pub kind: NormKind,
    /// Number of values that are normalized together.
    pub width: usize,
    /// Added to the mean square or to the variance.
    pub eps: f64,
}

/// Activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the exact normal distribution function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// The projections that give queries, keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QkvSpec {
    /// One matrix each.
    Separate {
        /// `[heads · head_dim, hidden]`
        q: Projection,
        /// `[kv_heads · head_dim, hidden]`
        k: Projection,
        /// `[kv_heads · head_dim, hidden]`
        v: Projection,
    },
    /// One matrix: the rows of all queries, then of all keys, then of all values.
    Fused(Projection),
    /// One matrix: for each head, the rows of its query, its key and its value.
    FusedPerHead(Projection),
}

/// Normalization of queries and keys, before the rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct QkNorm {
    /// Norm of the queries.
    pub q: NormSpec,
    /// Norm of the keys.
    pub k: NormSpec,
}

/// Causal grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Number of query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Dimension of one head.
    pub head_dim: usize,
    /// Query, key and value projections.
    pub qkv: QkvSpec,
    /// Output projection, `[hidden, heads · head_dim]`.
    pub output: Projection,
    /// Norms of queries and keys. A norm of width `head_dim` applies to each head separately.
    pub qk_norm: Option<QkNorm>,
    /// Rotary position embedding, if any.
    pub rope: Option<RopeSpec>,
    /// Sliding window: number of tokens that a token attends to, itself included. `None` attends to all
    /// earlier tokens.
    pub window: Option<usize>,
    /// Factor of the attention scores `q·k`.
    pub scale: f64,
    /// Soft cap: scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
}

/// A low-rank bottleneck of latent attention: a down projection and the norm of its result.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentSpec {
    /// Down projection to the latent vector.
    pub down: Projection,
    /// Norm of the latent vector, which is the first `norm.width` outputs of `down`.
    pub norm: NormSpec,
}

/// Multi-head latent attention: keys and values are projected up from one low-rank latent vector per
/// token (DeepSeek-AI 2024, arXiv 2405.04434).
///
/// Queries and keys of a head have a part without positions ("nope"), computed from the latent vector,
/// and a rotary part ("rope"). All heads share the rotary part of the key. In the shapes below
/// `rope_dim` is `rope.width`, `q_rank` is `q_lora_rank` and `kv_rank` is `kv_lora_rank`.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentAttentionSpec {
    /// Number of heads of queries, keys and values.
    pub heads: usize,
    /// Dimension of the part of a query or key head that has no positions (`qk_nope_head_dim`).
    pub nope_dim: usize,
    /// Dimension of a value head.
    pub v_head_dim: usize,
    /// Rotary embedding of the other part; its width is the dimension of that part
    /// (`qk_rope_head_dim`).
    pub rope: RopeSpec,
    /// Rotation pairs are adjacent elements `(2i, 2i + 1)` instead of `(i, i + rope_dim/2)`.
    pub interleaved: bool,
    /// Down projection of the queries (`q_a_proj`, `[q_rank, hidden]`) with its norm, if there is one.
    pub q_a: Option<LatentSpec>,
    /// `[heads · (nope_dim + rope_dim), q_rank or hidden]` (`q_b_proj`, or `q_proj` without `q_a`); for
    /// each head its nope part, then its rope part.
    pub q_b: Projection,
    /// Down projection of keys and values (`kv_a_proj_with_mqa`, `[kv_rank + rope_dim, hidden]`) with its
    /// norm. Its last `rope_dim` outputs are the rotary part of the key.
    pub kv_a: LatentSpec,
    /// `[heads · (nope_dim + v_head_dim), kv_rank]` (`kv_b_proj`); for each head the nope part of its
    /// key, then its value.
    pub kv_b: Projection,
    /// Output projection, `[hidden, heads · v_head_dim]`.
    pub output: Projection,
    /// Factor of the attention scores `q·k`.
    pub scale: f64,
}

/// The input projections of an MLP, with how they combine. `f` is the activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MlpInput {
    /// `f(gate x) · (up x)`.
    Gated {
        /// `[ffn, hidden]`
        gate: Projection,
        /// `[ffn, hidden]`
        up: Projection,
    },
    /// The same with one matrix `[2 · ffn, hidden]`: the rows of gate, then those of up.
    FusedGated(Projection),
    /// `f(up x)`.
    Ungated(Projection),
}

/// A multilayer perceptron with one hidden layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlpSpec {
    /// Projections to the intermediate dimension.
    pub input: MlpInput,
    /// Projection back, `[hidden, ffn]`.
    pub down: Projection,
    /// Intermediate dimension.
    pub ffn: usize,
    /// Activation function.
    pub activation: Activation,
    /// Name, in the plan, of the activations that the input projections read.
    pub input_name: String,
    /// Name, in the plan, of the activations that `down` reads.
    pub down_input_name: String,
}

/// How the router's logits select experts and weight their outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Routing {
    /// Softmax over all experts, then top-k.
    Softmax {
        /// Whether the selected weights are divided by their sum (`norm_topk_prob`).
        renormalize: bool,
    },
    /// Two experts, selected one after the other. The weight of each comes from a softmax over the
    /// experts whose score is within the relative distance `2 · jitter` of its own (SparseMixer, Liu et
    /// al. 2023, arXiv 2310.00811).
    SparseMixer {
        /// Half of the relative distance (`router_jitter_noise`).
        jitter: f64,
    },
    /// Sigmoid of every logit, then group-limited top-k. Experts are selected by score plus a
    /// load-balancing bias: first the `topk_group` groups whose two best experts have the largest sum,
    /// then the top k of their experts. The weights are the scores without the bias (DeepSeek-AI 2024,
    /// arXiv 2412.19437; Wang et al. 2024, arXiv 2408.15664).
    Sigmoid {
        /// Name of the bias tensor `[experts]` within the layer; it is stored exactly.
        correction_bias: String,
        /// Number of groups; experts are split into groups of equal size, in order.
        groups: usize,
        /// Number of groups from which the experts of a token are selected.
        topk_group: usize,
        /// Whether the selected weights are divided by their sum (`norm_topk_prob`).
        renormalize: bool,
        /// Factor of the weights (`routed_scaling_factor`).
        scale: f64,
    },
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    /// The router, `[experts, hidden]`; it is stored exactly.
    pub router: Projection,
    /// Number of experts per token.
    pub top_k: usize,
    /// From router logits to selected experts and their weights.
    pub routing: Routing,
    /// The experts.
    pub experts: Vec<MlpSpec>,
    /// Shared experts: an MLP applied to every token, whose output is added to that of the routed experts.
    pub shared: Option<MlpSpec>,
}

/// A short causal depthwise convolution: tensors `<name>.weight` `[channels, 1, kernel]` and
/// `<name>.bias` `[channels]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvSpec {
    /// Name within the layer.
    pub name: String,
    /// Number of channels.
    pub channels: usize,
    /// Kernel size: the current token and the `kernel - 1` tokens before it.
    pub kernel: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

/// A selective state space block (Mamba: Gu and Dao 2023, arXiv 2312.00752). The tensors `mixer.A_log`
/// `[inner, state]` and `mixer.D` `[inner]` are stored exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct MambaSpec {
    /// Number of channels (`d_inner`).
    pub inner: usize,
    /// State size per channel (`d_state`).
    pub state: usize,
    /// Rank of the time step projection (`dt_rank`).
    pub dt_rank: usize,
    /// Convolution over the channels.
    pub conv: ConvSpec,
    /// `[2 · inner, hidden]`: the input of the convolution, then the gate.
    pub in_proj: Projection,
    /// `[dt_rank + 2 · state, inner]`: dt, B, C.
    pub x_proj: Projection,
    /// `[inner, dt_rank]`, with bias.
    pub dt_proj: Projection,
    /// `[hidden, inner]`
    pub out_proj: Projection,
    /// Activation of the convolution's output and of the gate.
    pub activation: Activation,
}

/// A selective state space block with one decay and one time step per head (Mamba-2: Dao and Gu 2024,
/// arXiv 2405.21060). The tensors `mixer.A_log`, `mixer.D` and `mixer.dt_bias`, each `[heads]`, are
/// stored exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Mamba2Spec {
    /// Number of heads, a multiple of `groups`.
    pub heads: usize,
    /// Number of channels per head.
    pub head_dim: usize,
    /// Number of groups. The heads of a group share B and C, and `norm` applies to each group separately.
    pub groups: usize,
    /// State size per channel.
    pub state: usize,
    /// Convolution over x, B and C: `heads · head_dim + 2 · groups · state` channels.
    pub conv: ConvSpec,
    /// `[2 · heads · head_dim + 2 · groups · state + heads, hidden]`: the gate, the input of the
    /// convolution (x, B, C), then dt.
    pub in_proj: Projection,
    /// Limits between which time steps are clamped (`time_step_limit`); the upper one may be infinite.
    pub dt_limits: [f64; 2],
    /// Norm of the gated output.
    pub norm: NormSpec,
    /// `[hidden, heads · head_dim]`
    pub out_proj: Projection,
    /// Activation of the convolution's output and of the gate.
    pub activation: Activation,
}

impl Mamba2Spec {
    /// Number of channels of all heads.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// What a block computes between its norms.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "a model has a few hundred blocks"
)]
pub enum Mixer {
    /// Grouped-query attention.
    Attention(AttentionSpec),
    /// Multi-head latent attention.
    LatentAttention(LatentAttentionSpec),
    /// A dense MLP.
    Mlp(MlpSpec),
    /// A mixture of experts.
    Experts(ExpertsSpec),
    /// A Mamba block.
    Mamba(MambaSpec),
    /// A Mamba-2 block.
    Mamba2(Mamba2Spec),
}

/// One residual block: `x + scale · post_norm(mixer(pre_norm(x)))`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Norm before the mixer.
    pub pre_norm: Option<NormSpec>,
    /// The computation.
    pub mixer: Mixer,
    /// Norm after the mixer.
    pub post_norm: Option<NormSpec>,
    /// Factor of what is added to the residual stream.
    pub scale: f64,
}

impl BlockSpec {
    /// A block with a norm before its mixer, no norm after it and a scale of 1.
    pub fn new(pre_norm: NormSpec, mixer: Mixer) -> Self {
        BlockSpec {
            pre_norm: Some(pre_norm),
            mixer,
            post_norm: None,
            scale: 1.0,
        }
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Prefix of the full name of every tensor of this layer, e.g. `model.layers.17.`.
    pub prefix: String,
    /// The blocks in order.
    pub blocks: Vec<BlockSpec>,
    /// Every block reads the layer's input instead of the residual stream after the previous block.
    pub parallel: bool,
}

/// From token ids to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSpec {
    /// Full name of the embedding matrix `[vocab, hidden]`.
    pub weight: String,
    /// Factor of the embedded tokens.
    pub scale: f64,
    /// Full name of a matrix `[context, hidden]` of learned positions, if any.
    pub positions: Option<String>,
}

/// From the residual stream to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// The final norm.
    pub norm: NormSpec,
    /// Full name of the output matrix `[vocab, hidden]`; for a tied head, the embedding's.
    pub weight: String,
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
    /// Full name of a bias `[vocab]`, if any.
    pub bias: Option<String>,
    /// Factor of the logits.
    pub scale: f64,
    /// Soft cap: logits become `cap · tanh(logit / cap)`.
    pub softcap: Option<f64>,
}
