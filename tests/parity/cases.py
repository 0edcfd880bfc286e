"""The models that forward passes are checked on: a tiny one for every option of every family.

A case is the config.json of a real checkpoint of its family, with smaller dimensions. Weights are stored in its `torch_dtype`
(`dtype` in transformers 5; float32 if a family's files have neither).
"""
import dataclasses

BOTH, OLD, NEW = (4, 5), (4,), (5,)


@dataclasses.dataclass(frozen=True)
class Case:
    variant: str
    config: dict
    # Tokens of the window: longer than the sliding windows and most of the original contexts.
    length: int = 70
    # The major versions of transformers that compute the model as its authors intended; the newest gives the expected values.
    versions: tuple = BOTH
    # Names and grouping of the tensors in the file: a key of reference.LAYOUTS.
    layout: str = "published"
    # The variant whose weights and tokens this case stores in another layout.
    twin: str | None = None

    @property
    def name(self):
        return f"{self.config['model_type']}-{self.variant}"

    @property
    def seed(self):
        return f"{self.config['model_type']}-{self.twin or self.variant}"


def common(model_type, architecture, **settings):
    """The settings that most families share; the head dimension is 8 unless a case changes it."""
    return dict(
        architectures=[architecture], model_type=model_type, vocab_size=40, hidden_size=32, intermediate_size=40,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_act="silu", rms_norm_eps=1e-5,
        max_position_embeddings=256, rope_theta=10000.0, attention_dropout=0.0, initializer_range=0.02,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True,
    ) | settings


def without(settings, *keys):
    return {key: value for key, value in settings.items() if key not in keys}


def llama():
    base = common("llama", "LlamaForCausalLM", attention_bias=False, mlp_bias=False, pretraining_tp=1)
    small = without(base, "rope_theta", "torch_dtype") | dict(
        hidden_size=24, intermediate_size=32, num_attention_heads=6, rms_norm_eps=1e-6, dtype="float32",
        rope_parameters=dict(rope_theta=10000.0, rope_type="default"),
    )
    llama3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    new_llama3 = llama3 | dict(rope_type="llama3", rope_theta=10000.0)
    new_linear = dict(rope_type="linear", factor=4.0, rope_theta=10000.0)
    yield Case("plain", small, versions=NEW)
    yield Case("tied-head", small | dict(tie_word_embeddings=True), versions=NEW)
    yield Case("biases", small | dict(attention_bias=True, mlp_bias=True), versions=NEW)
    yield Case("wide-heads", small | dict(head_dim=8), versions=NEW)
    yield Case("rope-llama3", small | dict(rope_parameters=new_llama3), versions=NEW)
    yield Case("rope-linear", small | dict(rope_parameters=new_linear), versions=NEW)
    yield Case("all-heads", small | dict(num_key_value_heads=6), versions=NEW)
    yield Case("published-llama3", base | dict(rope_scaling=llama3 | dict(rope_type="llama3")))
    yield Case("published-linear", base | dict(rope_scaling=dict(type="linear", factor=4.0)))
    wide = base | dict(hidden_size=24, head_dim=16)
    # The ramp covers frequencies 1 to 5 of the 8.
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=2.0, beta_slow=0.25)
    yield Case("yarn", wide | dict(rope_theta=1000.0, rope_scaling=yarn))
    # Published files also use the key `type`, and mostly leave the betas at their defaults, which give a ramp from 3 to 7.
    explicit = dict(type="yarn", factor=4.0, original_max_position_embeddings=8192, attention_factor=0.7)
    yield Case("yarn-attention-factor", wide | dict(max_position_embeddings=32768, rope_scaling=explicit))


def mistral():
    base = common("mistral", "MistralForCausalLM", rope_theta=1000000.0, sliding_window=None)
    yield Case("plain", base)
    yield Case("sliding-window", base | dict(sliding_window=16))
    yield Case("head-dim", base | dict(hidden_size=24, head_dim=8))


def qwen2():
    base = common("qwen2", "Qwen2ForCausalLM", rope_theta=1000000.0, max_window_layers=2, sliding_window=256,
                  use_sliding_window=False)
    yield Case("plain", base)
    yield Case("tied", base | dict(tie_word_embeddings=True))
    yield Case("sliding-window", base | dict(use_sliding_window=True, sliding_window=16, max_window_layers=1))


def qwen3():
    base = common("qwen3", "Qwen3ForCausalLM", hidden_size=24, head_dim=8, rope_theta=1000000, attention_bias=False,
                  max_window_layers=2, rope_scaling=None, sliding_window=None, use_sliding_window=False)
    yield Case("plain", base)
    yield Case("tied", base | dict(tie_word_embeddings=True))
    yield Case("attention-bias", base | dict(attention_bias=True))


def qwen3_moe():
    base = common(
        "qwen3_moe", "Qwen3MoeForCausalLM", hidden_size=24, head_dim=8, moe_intermediate_size=12, num_experts=8,
        num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False,
        max_window_layers=2, rope_scaling=None, rope_theta=1000000.0, sliding_window=None, use_sliding_window=False,
        output_router_logits=False, router_aux_loss_coef=0.001,
    )
    yield Case("plain", base)
    yield Case("unnormed-experts", base | dict(norm_topk_prob=False))
    yield Case("dense-layer", base | dict(mlp_only_layers=[0]))
    yield Case("sparse-step", base | dict(decoder_sparse_step=2, num_hidden_layers=3, intermediate_size=24))
    yield Case("fused", base, versions=NEW, layout="stacked", twin="plain")


def mixtral():
    base = common("mixtral", "MixtralForCausalLM", intermediate_size=16, num_local_experts=4, num_experts_per_tok=2,
                  rope_theta=1000000.0, sliding_window=None, output_router_logits=False, router_aux_loss_coef=0.02)
    yield Case("plain", base)
    yield Case("sliding-window", base | dict(sliding_window=16))
    yield Case("fused", base, versions=NEW, layout="stacked", twin="plain")


def phi3():
    base = common("phi3", "Phi3ForCausalLM", embd_pdrop=0.0, resid_pdrop=0.0, attention_bias=False, pad_token_id=0,
                  original_max_position_embeddings=32, rope_scaling=None, sliding_window=262144)
    factors = dict(short_factor=[1.05, 1.1, 1.3, 1.6], long_factor=[1.2, 2.1, 5.5, 19.0], type="longrope")
    yield Case("plain", base | dict(sliding_window=None, original_max_position_embeddings=256))
    yield Case("longrope-long", base | dict(rope_scaling=factors))
    yield Case("longrope-short", base | dict(rope_scaling=factors, original_max_position_embeddings=96))
    # transformers 5 rejects this older name of the same type.
    yield Case("longrope-su", base | dict(rope_scaling=factors | dict(type="su")), versions=OLD)
    # As in Phi-4-mini: grouped-query attention, partial rotary embedding, tied head.
    partial = dict(short_factor=[1.0, 1.4], long_factor=[1.1, 9.0], type="longrope")
    yield Case("partial-rotary", base | dict(
        partial_rotary_factor=0.5, rope_scaling=partial, tie_word_embeddings=True, num_key_value_heads=1))
    yield Case("sliding-window", base | dict(sliding_window=16, original_max_position_embeddings=256))


def phimoe():
    base = common(
        "phimoe", "PhimoeForCausalLM", intermediate_size=16, num_local_experts=4, num_experts_per_tok=2,
        attention_bias=True, lm_head_bias=True, hidden_dropout=0.0, input_jitter_noise=0.01, router_jitter_noise=0.01,
        output_router_logits=False, router_aux_loss_coef=0.0, sliding_window=256, original_max_position_embeddings=32,
    )
    longrope = dict(short_factor=[1.05, 1.1, 1.3, 1.6], long_factor=[1.2, 2.1, 5.5, 19.0], type="longrope",
                    short_mscale=1.1, long_mscale=1.3, original_max_position_embeddings=32)
    short = dict(original_max_position_embeddings=96)
    # transformers 5 uses the short factors here, whatever the length.
    yield Case("longrope-long", base | dict(rope_scaling=longrope), versions=OLD)
    yield Case("longrope-short", base | short | dict(rope_scaling=longrope | short))
    yield Case("plain", without(base, "original_max_position_embeddings") | dict(
        attention_bias=False, lm_head_bias=False, rope_scaling=None))


def olmo2():
    base = common("olmo2", "Olmo2ForCausalLM", hidden_size=24, num_attention_heads=3, num_key_value_heads=3,
                  attention_bias=False, rope_scaling=None, rope_theta=500000.0, torch_dtype="float32")
    yield Case("plain", base)
    yield Case("shared-heads", base | dict(num_attention_heads=6, num_key_value_heads=2))


def granite():
    # The embedding multiplier is large, so only a large epsilon makes a difference.
    multipliers = dict(rms_norm_eps=1e-3, attention_multiplier=0.25, embedding_multiplier=12.0, logits_scaling=0.5,
                       residual_multiplier=0.22, attention_bias=False, rope_scaling=None)
    dense = common("granite", "GraniteForCausalLM", mlp_bias=False, **multipliers)
    yield Case("plain", dense | dict(tie_word_embeddings=True))
    yield Case("biases", dense | dict(attention_bias=True, mlp_bias=True))
    experts = common("granitemoe", "GraniteMoeForCausalLM", intermediate_size=12, num_local_experts=6,
                     num_experts_per_tok=3, output_router_logits=False, router_aux_loss_coef=0.0, **multipliers)
    yield Case("plain", experts | dict(tie_word_embeddings=True))


def gemma():
    # Published files omit tie_word_embeddings; the head is tied by default.
    base = without(common(
        "gemma2", "Gemma2ForCausalLM", hidden_size=24, head_dim=8, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", attention_bias=False, attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0, query_pre_attn_scalar=12, sliding_window=16, cache_implementation="hybrid",
        pad_token_id=0,
    ), "tie_word_embeddings")
    yield Case("plain", base)
    gemma3 = without(base, "hidden_act") | dict(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", attn_logit_softcapping=None,
        final_logit_softcapping=None, num_hidden_layers=3, rope_theta=1000000.0, rope_local_base_freq=10000.0,
        rope_scaling=None, sliding_window_pattern=3,
    )
    yield Case("plain", gemma3)
    yield Case("linear", gemma3 | dict(rope_scaling=dict(factor=8.0, rope_type="linear")))
    kinds = dict(layer_types=["full_attention", "sliding_attention"], num_hidden_layers=2, dtype="bfloat16",
                 rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=1000000.0),
                                      sliding_attention=dict(rope_type="default", rope_theta=10000.0)))
    old = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern", "torch_dtype")
    yield Case("layer-types", without(gemma3, *old) | kinds, versions=NEW)


def deepseek_v3():
    base = common(
        "deepseek_v3", "DeepseekV3ForCausalLM", hidden_size=24, num_key_value_heads=4, q_lora_rank=12, kv_lora_rank=10,
        qk_nope_head_dim=6, qk_rope_head_dim=8, v_head_dim=5, n_routed_experts=8, n_shared_experts=1, n_group=4,
        topk_group=2, num_experts_per_tok=3, moe_intermediate_size=8, first_k_dense_replace=1, moe_layer_freq=1,
        norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc", ep_size=1,
        num_nextn_predict_layers=0, attention_bias=False, aux_loss_alpha=0.001, seq_aux=True, rope_theta=100.0,
        rope_scaling=dict(beta_fast=2, beta_slow=0.5, factor=4, mscale=1.0, mscale_all_dim=0.7,
                          original_max_position_embeddings=64, type="yarn"),
    )
    yield Case("plain", base)
    # transformers 4 can select an expert outside the selected groups if all scores inside them are negative.
    yield Case("no-query-rank", base | dict(
        q_lora_rank=None, rope_scaling=None, norm_topk_prob=False, n_shared_experts=2), versions=NEW)


def gpt():
    gpt2 = dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=0,
        embd_pdrop=0.1, eos_token_id=0, initializer_range=0.02, layer_norm_epsilon=1e-5, model_type="gpt2", n_ctx=80,
        n_embd=16, n_head=2, n_layer=2, n_positions=80, resid_pdrop=0.1, vocab_size=40,
    )
    yield Case("plain", gpt2)
    neox = dict(
        architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", hidden_act="gelu", hidden_size=32,
        intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, rotary_pct=0.25, rotary_emb_base=10000,
        max_position_embeddings=256, layer_norm_eps=1e-5, use_parallel_residual=True, vocab_size=40,
        tie_word_embeddings=False, torch_dtype="float16", bos_token_id=0, eos_token_id=0,
    )
    yield Case("parallel", neox)
    yield Case("sequential", neox | dict(use_parallel_residual=False))


def mamba():
    # In mamba the head is tied by default, also if the file does not say so.
    base = dict(
        architectures=["MambaForCausalLM"], model_type="mamba", conv_kernel=4, expand=2, hidden_act="silu",
        hidden_size=24, intermediate_size=48, layer_norm_epsilon=1e-5, num_hidden_layers=2, n_layer=2, state_size=8,
        time_step_rank=3, use_bias=False, use_conv_bias=True, vocab_size=40, rms_norm=True, residual_in_fp32=True,
        pad_vocab_size_multiple=8, bos_token_id=0, eos_token_id=0, torch_dtype="float32",
    )
    yield Case("plain", base)
    yield Case("embedding", base | dict(tie_word_embeddings=True), layout="embedding", twin="plain")
    yield Case("biases", base | dict(use_bias=True))
    yield Case("no-conv-bias", base | dict(use_conv_bias=False, time_step_rank="auto"))
    second = without(base, "intermediate_size", "time_step_rank", "n_layer", "pad_vocab_size_multiple") | dict(
        architectures=["Mamba2ForCausalLM"], model_type="mamba2", num_heads=6, head_dim=8, n_groups=1, chunk_size=16,
        time_step_limit=[0.0, 10.0], norm_before_gate=True, tie_word_embeddings=False,
    )
    yield Case("plain", second)
    # transformers 4 computes the norm after the scan over all groups together.
    yield Case("groups", second | dict(n_groups=2, time_step_limit=[0.05, 0.3]), versions=NEW)


FAMILIES = (llama, mistral, qwen2, qwen3, qwen3_moe, mixtral, phi3, phimoe, olmo2, granite, gemma, deepseek_v3, gpt, mamba)


def cases():
    return [case for family in FAMILIES for case in family()]
