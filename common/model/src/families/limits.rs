//! The largest accepted value of every number of a `config.json`, and of the products of these numbers.
//!
//! A few hundred bytes of JSON can ask for any number of tensors. Each kind of number has a limit of its own, several
//! times what published models have, and products are checked where they are formed. No later code can overflow, and
//! the plan of the largest accepted model takes a few hundred megabytes.

/// Largest width: of the residual stream, of an MLP, of all heads together, of a state. It is the pack format's limit for
/// the columns of a linear.
pub(crate) const MAX_WIDTH: u64 = 1 << 18;
/// Largest number of layers. File names have three digits for the layer number.
pub(crate) const MAX_LAYERS: u64 = 1000;
/// Largest vocabulary.
const MAX_VOCAB: u64 = 1 << 23;
/// Longest context or sliding window, in tokens.
const MAX_CONTEXT: u64 = 1 << 26;
/// Largest number of heads, of any kind, or of groups of them.
const MAX_HEADS: u64 = 1 << 12;
/// Largest dimension of one head.
const MAX_HEAD_DIM: u64 = 1 << 14;
/// Largest number of experts of a layer.
const MAX_EXPERTS: u64 = 1 << 12;
/// Largest number of shared experts of a layer.
const MAX_SHARED_EXPERTS: u64 = 1 << 6;
/// Longest kernel of a convolution.
const MAX_KERNEL: u64 = 1 << 8;
/// Largest number of experts of all layers together; a model of 384 experts in each of 60 layers has 23 040.
pub(super) const MAX_ALL_EXPERTS: u64 = 1 << 17;

/// The largest accepted value of a key.
pub(super) fn limit(key: &str) -> u64 {
    match key {
        "vocab_size" => MAX_VOCAB,
        "max_position_embeddings"
        | "n_positions"
        | "original_max_position_embeddings"
        | "sliding_window" => MAX_CONTEXT,
        "num_hidden_layers"
        | "n_layer"
        | "num_nextn_predict_layers"
        | "first_k_dense_replace"
        | "sliding_window_pattern"
        | "_sliding_window_pattern"
        | "decoder_sparse_step" => MAX_LAYERS,
        "num_attention_heads" | "num_key_value_heads" | "n_head" | "num_heads" | "n_groups" => {
            MAX_HEADS
        }
        "head_dim" | "qk_head_dim" | "qk_nope_head_dim" | "qk_rope_head_dim" | "v_head_dim" => {
            MAX_HEAD_DIM
        }
        "num_experts"
        | "num_local_experts"
        | "n_routed_experts"
        | "n_group"
        | "topk_group"
        | "num_experts_per_tok" => MAX_EXPERTS,
        "n_shared_experts" => MAX_SHARED_EXPERTS,
        "conv_kernel" => MAX_KERNEL,
        _ => MAX_WIDTH,
    }
}
