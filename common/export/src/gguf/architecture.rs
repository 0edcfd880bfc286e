//! The architectures of llama.cpp that compute what a family computes, and their metadata.
//!
//! One row of [`ARCHITECTURES`] for each family, and the checks that llama.cpp's implementation computes exactly what the
//! description of the model says. Whatever it has no field for is refused by name. Reads no file.

mod positions;

use uc_model::ModelConfig;
use uc_model::spec::{
    Activation, AttentionSpec, ExpertsSpec, MambaSpec, Mixer, MlpInput, MlpSpec, NormKind, QkvSpec,
    Routing,
};

use super::values::Value;
use crate::error::{ExportError, unsupported};

/// How llama.cpp computes a family.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `model_type`.
    family: &'static str,
    /// Name of the architecture in llama.cpp.
    pub name: &'static str,
    /// Queries and keys are rotated in neighbouring pairs.
    pub pairs: bool,
    /// The biases that it reads: of query, key and value; of the attention's output; of the MLP.
    biases: [bool; 3],
    /// What it assumes beyond its metadata.
    assumptions: &'static [Assumption],
}

/// Something that an architecture of llama.cpp assumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Assumption {
    /// `heads · head_dim` is the width of the model.
    HeadsFillWidth,
    /// The head has a matrix of its own.
    OwnHead,
    /// The head is tied to the embedding.
    TiedHead,
    /// Every layer has experts.
    OnlyExperts,
    /// It reads the divisors of the rotary frequencies from a tensor.
    RotaryDivisors,
    /// It reads factors of embedding, scores, residuals and logits.
    Factors,
    /// It is Gemma: embeddings are multiplied by the root of the width.
    Gemma,
    /// It caps scores and logits.
    Caps,
    /// It reads the two sets of divisors of LongRoPE.
    LongRope,
}

use Assumption::{
    Caps, Factors, Gemma, HeadsFillWidth, LongRope, OnlyExperts, OwnHead, RotaryDivisors, TiedHead,
};

const fn row(
    family: &'static str,
    name: &'static str,
    pairs: bool,
    biases: [bool; 3],
    assumptions: &'static [Assumption],
) -> Architecture {
    Architecture {
        family,
        name,
        pairs,
        biases,
        assumptions,
    }
}

/// The families that are exported.
const ARCHITECTURES: [Architecture; 15] = [
    row(
        "gemma2",
        "gemma2",
        false,
        [false; 3],
        &[TiedHead, Gemma, Caps],
    ),
    row("gemma3_text", "gemma3", false, [false; 3], &[Gemma]),
    row("gpt2", "gpt2", false, [true; 3], &[HeadsFillWidth]),
    row(
        "gpt_neox",
        "gptneox",
        false,
        [true; 3],
        &[HeadsFillWidth, OwnHead],
    ),
    row(
        "granite",
        "granite",
        true,
        [false; 3],
        &[Factors, RotaryDivisors],
    ),
    row(
        "granitemoe",
        "granitemoe",
        true,
        [false; 3],
        &[Factors, RotaryDivisors, OnlyExperts],
    ),
    row("llama", "llama", true, [true; 3], &[RotaryDivisors]),
    row("mamba", "mamba", false, [false; 3], &[]),
    row("mistral", "llama", true, [false; 3], &[RotaryDivisors]),
    row(
        "mixtral",
        "llama",
        true,
        [false; 3],
        &[RotaryDivisors, OnlyExperts],
    ),
    row(
        "olmo2",
        "olmo2",
        false,
        [false; 3],
        &[HeadsFillWidth, OwnHead],
    ),
    row(
        "phi3",
        "phi3",
        false,
        [false; 3],
        &[HeadsFillWidth, LongRope],
    ),
    row(
        "qwen2",
        "qwen2",
        false,
        [true, false, false],
        &[HeadsFillWidth],
    ),
    row("qwen3", "qwen3", false, [false; 3], &[]),
    row("qwen3_moe", "qwen3moe", false, [false; 3], &[OnlyExperts]),
];

/// What a GGUF file says of a model besides its tensors and its tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Metadata without the prefix `ARCHITECTURE.`.
    pub metadata: Vec<(&'static str, Value)>,
    /// Tensors that the pack does not have: name and float32 values.
    pub tensors: Vec<(&'static str, Vec<f32>)>,
    /// What differs from the model.
    pub notes: Vec<String>,
}

/// The architecture of a family.
///
/// # Errors
/// `Unsupported` with the families that are exported.
pub fn find(config: &ModelConfig) -> Result<&'static Architecture, ExportError> {
    let found = ARCHITECTURES.iter().find(|row| row.family == config.family);
    found.ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().map(|row| row.family).collect();
        let expected = format!(
            "one of the families that can be exported as GGUF: {}; --to safetensors exports every family",
            known.join(", ")
        );
        unsupported("model_type", &config.family, expected)
    })
}

impl Architecture {
    /// The metadata of a model, after the checks that llama.cpp computes the same.
    ///
    /// # Errors
    /// `Unsupported`, with what llama.cpp has no field for.
    pub fn describe(&self, config: &ModelConfig) -> Result<Description, ExportError> {
        let mut description = Description {
            metadata: vec![
                ("block_count", (config.layers.len() as u32).into()),
                ("embedding_length", (config.hidden as u32).into()),
                ("vocab_size", (config.vocab as u32).into()),
            ],
            tensors: Vec::new(),
            notes: Vec::new(),
        };
        self.check_head(config)?;
        self.norms(config, &mut description)?;
        let mut context = config.context;
        let first = config.layers.first().and_then(|layer| layer.blocks.first());
        match first.map(|block| &block.mixer) {
            Some(Mixer::Mamba(mamba)) => self.mamba(config, mamba, &mut description)?,
            _ => context = self.transformer(config, &mut description)?,
        }
        let context = u32::try_from(context).unwrap_or(u32::MAX);
        description
            .metadata
            .push(("context_length", context.into()));
        Ok(description)
    }

    fn assumes(&self, assumption: Assumption) -> bool {
        self.assumptions.contains(&assumption)
    }

    fn refuse<T>(
        &self,
        what: &str,
        found: impl ToString,
        expected: &str,
    ) -> Result<T, ExportError> {
        let what = format!("{} ({})", what, self.family);
        let expected = format!(
            "{expected}: llama.cpp computes nothing else; --to safetensors exports this model"
        );
        Err(unsupported(what, found, expected))
    }

    fn check_head(&self, config: &ModelConfig) -> Result<(), ExportError> {
        let head = &config.head;
        if head.tied && self.assumes(OwnHead) {
            return self.refuse("head", "tied to the embedding", "a matrix of its own");
        }
        if !head.tied && self.assumes(TiedHead) {
            return self.refuse("head", "a matrix of its own", "tied to the embedding");
        }
        if head.bias.is_some() {
            return self.refuse("head", "a bias", "none");
        }
        let scale = match self.assumes(Gemma) {
            true => (config.hidden as f64).sqrt(),
            false => 1.0,
        };
        if !self.assumes(Factors) && (config.embedding.scale != scale || head.scale != 1.0) {
            let found = format!("{} and {}", config.embedding.scale, head.scale);
            return self.refuse("factors of embedding and logits", found, "none");
        }
        Ok(())
    }

    /// Epsilon of the norms, which is one for all.
    fn norms(&self, config: &ModelConfig, to: &mut Description) -> Result<(), ExportError> {
        let eps = config.head.norm.eps;
        let blocks = config.layers.iter().flat_map(|layer| &layer.blocks);
        let norms = blocks.flat_map(|block| {
            let qk = match &block.mixer {
                Mixer::Attention(attention) => attention.qk_norm.as_ref(),
                _ => None,
            };
            let qk = qk.into_iter().flat_map(|norms| [&norms.q, &norms.k]);
            block.pre_norm.iter().chain(&block.post_norm).chain(qk)
        });
        if let Some(other) = norms.map(|norm| norm.eps).find(|other| *other != eps) {
            return self.refuse("epsilon of a norm", other, &format!("{eps} as elsewhere"));
        }
        let key = match config.head.norm.kind {
            NormKind::Layer => "attention.layer_norm_epsilon",
            NormKind::Rms | NormKind::RmsOnePlus => "attention.layer_norm_rms_epsilon",
        };
        to.metadata.push((key, (eps as f32).into()));
        Ok(())
    }

    fn mamba(
        &self,
        config: &ModelConfig,
        mamba: &MambaSpec,
        to: &mut Description,
    ) -> Result<(), ExportError> {
        let is_usual = mamba.inner == 2 * config.hidden
            && mamba.conv.bias
            && !mamba.in_proj.bias
            && !mamba.out_proj.bias
            && mamba.activation == Activation::Silu;
        if !is_usual {
            let expected = "twice the width inside, a bias of the convolution only, SiLU";
            return self.refuse("state space block", "another form", expected);
        }
        let count = |value: usize| Value::from(value as u32);
        to.metadata.extend([
            ("feed_forward_length", count(0)),
            ("attention.head_count", count(0)),
            ("ssm.conv_kernel", count(mamba.conv.kernel)),
            ("ssm.inner_size", count(mamba.inner)),
            ("ssm.state_size", count(mamba.state)),
            ("ssm.time_step_rank", count(mamba.dt_rank)),
            ("ssm.dt_b_c_rms", false.into()),
        ]);
        Ok(())
    }

    /// Attention and MLP of every layer. Returns the longest context for which llama.cpp computes what the model computes.
    fn transformer(
        &self,
        config: &ModelConfig,
        to: &mut Description,
    ) -> Result<usize, ExportError> {
        let (mut attentions, mut experts, mut mlps) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &config.layers {
            for block in &layer.blocks {
                match &block.mixer {
                    Mixer::Attention(attention) => attentions.push(attention),
                    Mixer::Experts(mixture) => experts.push(mixture),
                    Mixer::Mlp(mlp) => mlps.push(mlp),
                    _ => return self.refuse("layer", "another kind of block", "attention and MLP"),
                }
            }
        }
        if attentions.len() != config.layers.len() {
            return self.refuse("layers", "some without attention", "attention in each");
        }
        match (experts.as_slice(), mlps.as_slice()) {
            ([], mlps) => self.dense(mlps, to)?,
            (experts, []) if self.assumes(OnlyExperts) => self.mixture(experts, to)?,
            _ => return self.refuse("layers", "dense ones and ones with experts", "one kind"),
        }
        if self.name == "gptneox" {
            let parallel = config.layers.iter().all(|layer| layer.parallel);
            to.metadata.push(("use_parallel_residual", parallel.into()));
        }
        self.factors(config, &attentions, to)?;
        self.attention(config, &attentions, to)?;
        let context = self.windows(config, &attentions, to)?;
        self.rope(config, &attentions, to)?;
        Ok(context)
    }

    fn dense(&self, mlps: &[&MlpSpec], to: &mut Description) -> Result<(), ExportError> {
        let Some(first) = mlps.first() else {
            return self.refuse("layers", "none with an MLP", "an MLP in each");
        };
        if mlps.iter().any(|mlp| mlp != first) {
            return self.refuse("MLPs", "different ones", "one kind for all layers");
        }
        let (matrices, is_gated): (Vec<_>, _) = match &first.input {
            MlpInput::Gated { gate, up } => (vec![gate, up], true),
            MlpInput::FusedGated(both) => (vec![both], true),
            MlpInput::Ungated(up) => (vec![up], false),
        };
        let has_bias = matrices.iter().any(|matrix| matrix.bias) || first.down.bias;
        if has_bias && !self.biases[2] {
            return self.refuse("MLP", "biases", "none");
        }
        let usual = match (is_gated, self.assumes(Gemma)) {
            (true, false) => first.activation == Activation::Silu,
            (true, true) => first.activation == Activation::GeluTanh,
            (false, _) => matches!(first.activation, Activation::GeluTanh | Activation::Gelu),
        };
        if !usual {
            let found = format!("{:?}", first.activation);
            return self.refuse("activation", found, "the usual one of this family");
        }
        if first.activation == Activation::Gelu {
            let note = "llama.cpp computes the exact GELU of this model in its tanh approximation";
            to.notes.push(note.into());
        }
        to.metadata
            .push(("feed_forward_length", (first.ffn as u32).into()));
        Ok(())
    }

    fn mixture(&self, experts: &[&ExpertsSpec], to: &mut Description) -> Result<(), ExportError> {
        let first = experts[0];
        if experts.iter().any(|mixture| *mixture != first) {
            return self.refuse("experts", "different ones", "one kind for all layers");
        }
        let is_usual = first.routing == Routing::Softmax { renormalize: true }
            && first.shared.is_none()
            && !first.router.bias
            && first
                .experts
                .iter()
                .all(|expert| expert.activation == Activation::Silu);
        if !is_usual {
            let expected = "softmax over all experts, renormalized over the chosen ones, SiLU, no shared experts";
            return self.refuse("experts", "another selection", expected);
        }
        let ffn = first.experts.first().map_or(0, |expert| expert.ffn);
        let count = |value: usize| Value::from(value as u32);
        to.metadata.extend([
            ("feed_forward_length", count(ffn)),
            ("expert_count", count(first.experts.len())),
            ("expert_used_count", count(first.top_k)),
        ]);
        if self.name == "qwen3moe" {
            to.metadata.push(("expert_feed_forward_length", count(ffn)));
        }
        Ok(())
    }

    /// The factors of scores, residuals, embedding and logits.
    fn factors(
        &self,
        config: &ModelConfig,
        attentions: &[&AttentionSpec],
        to: &mut Description,
    ) -> Result<(), ExportError> {
        let first = attentions[0];
        let blocks = config.layers.iter().flat_map(|layer| &layer.blocks);
        let residual = config.layers[0]
            .blocks
            .first()
            .map_or(1.0, |block| block.scale);
        if blocks
            .map(|block| block.scale)
            .any(|scale| scale != residual)
        {
            return self.refuse(
                "factors of the residual stream",
                "different ones",
                "one for all",
            );
        }
        if self.assumes(Factors) {
            to.metadata.extend([
                ("attention.scale", Value::from(first.scale as f32)),
                ("embedding_scale", (config.embedding.scale as f32).into()),
                ("residual_scale", (residual as f32).into()),
                ("logit_scale", ((1.0 / config.head.scale) as f32).into()),
            ]);
            return Ok(());
        }
        // The 27B models of Gemma have a rule of their own, by which llama.cpp knows them from their number of layers.
        let layers = config.layers.len();
        let is_27b = (self.name, layers) == ("gemma2", 46) || (self.name, layers) == ("gemma3", 62);
        let width = if is_27b {
            config.hidden / first.heads
        } else {
            first.head_dim
        };
        let expected = (width as f64).sqrt().recip();
        if residual != 1.0 || (first.scale - expected).abs() > 1e-9 {
            let found = format!("{} and {residual}", first.scale);
            let expected = format!("{expected} and 1");
            return self.refuse("factors of scores and residual stream", found, &expected);
        }
        Ok(())
    }

    fn attention(
        &self,
        config: &ModelConfig,
        attentions: &[&AttentionSpec],
        to: &mut Description,
    ) -> Result<(), ExportError> {
        let first = attentions[0];
        let same = |other: &&AttentionSpec| {
            let all_but_positions = AttentionSpec {
                window: first.window,
                rope: first.rope.clone(),
                ..(*other).clone()
            };
            all_but_positions == *first
        };
        if !attentions.iter().all(same) {
            return self.refuse("attention", "different kinds", "one kind for all layers");
        }
        let qkv_bias = match &first.qkv {
            QkvSpec::Separate { q, k, v } => q.bias || k.bias || v.bias,
            QkvSpec::Fused(qkv) | QkvSpec::FusedPerHead(qkv) => qkv.bias,
        };
        if qkv_bias && !self.biases[0] || first.output.bias && !self.biases[1] {
            return self.refuse("attention", "biases", "none");
        }
        if self.assumes(HeadsFillWidth) && first.heads * first.head_dim != config.hidden {
            let found = first.heads * first.head_dim;
            return self.refuse("width of all heads", found, &config.hidden.to_string());
        }
        match (self.assumes(Caps), first.softcap, config.head.softcap) {
            (true, Some(scores), Some(logits)) => to.metadata.extend([
                ("attn_logit_softcapping", Value::from(scores as f32)),
                ("final_logit_softcapping", (logits as f32).into()),
            ]),
            (false, None, None) => {}
            (false, None, Some(logits)) if self.name == "gemma3" => {
                to.metadata
                    .push(("final_logit_softcapping", (logits as f32).into()));
            }
            (_, scores, logits) => {
                let found = format!("{scores:?} and {logits:?}");
                return self.refuse("caps of scores and logits", found, "the usual ones");
            }
        }
        let count = |value: usize| Value::from(value as u32);
        to.metadata.extend([
            ("attention.head_count", count(first.heads)),
            ("attention.head_count_kv", count(first.kv_heads)),
            ("attention.key_length", count(first.head_dim)),
            ("attention.value_length", count(first.head_dim)),
        ]);
        Ok(())
    }
}
