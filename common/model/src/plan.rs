//! The plan of a model's tensors: names, shapes, and which linears share an input.
//!
//! It is derived from a [`ModelConfig`] alone, so a stage can be planned before any weight is read. The plan
//! holds no data and opens no file.

use crate::config::ModelConfig;
use crate::spec::{
    AttentionSpec, ConvSpec, ExpertsSpec, LatentAttentionSpec, LayerSpec, Mamba2Spec, MambaSpec,
    Mixer, MlpInput, MlpSpec, NormKind, NormSpec, Projection, QkvSpec, Routing, Stored,
};

/// A weight matrix to compress: `y = W x` with `W: [rows, cols]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Name within the layer, e.g. `self_attn.q_proj.weight`.
    pub name: String,
    /// Output dimension.
    pub rows: usize,
    /// Input dimension.
    pub cols: usize,
    /// Name of its input; one of [`LayerPlan::inputs`].
    pub input: String,
    /// How the checkpoint stores it.
    pub stored: Stored,
}

/// A tensor that is stored exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactSpec {
    /// Name within the layer; the full name for a non-layer tensor.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// An activation that one or more linears of a layer read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// Name within the layer, e.g. `attn_in` or `experts.7.down_in`.
    pub name: String,
    /// Dimension of one token's vector.
    pub width: usize,
    /// Whether only some tokens are in it: those that the router sends to this expert.
    pub routed: bool,
}

/// All tensors and inputs of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// Layer index, from 0.
    pub index: usize,
    /// Prefix of the full name of every tensor of this layer in the checkpoint, e.g. `model.layers.17.`.
    pub prefix: String,
    /// Matrices to compress, in the order in which the layer applies them.
    pub linears: Vec<LinearSpec>,
    /// Norms, biases, routers and other tensors that are stored exactly.
    pub exact: Vec<ExactSpec>,
    /// Inputs, each once, in the order in which the forward pass observes them.
    pub inputs: Vec<InputSpec>,
}

impl LayerPlan {
    /// Whether a router sends tokens to some of the layer's linears only. Batches are then larger, because the weights of experts are
    /// read once per batch.
    pub fn has_experts(&self) -> bool {
        self.inputs.iter().any(|input| input.routed)
    }

    fn new(layer: &LayerSpec, index: usize) -> Self {
        let mut plan = LayerPlan {
            index,
            prefix: layer.prefix.clone(),
            linears: Vec::new(),
            exact: Vec::new(),
            inputs: Vec::new(),
        };
        for block in &layer.blocks {
            plan.add_norm(block.pre_norm.as_ref());
            match &block.mixer {
                Mixer::Attention(attention) => plan.add_attention(attention),
                Mixer::LatentAttention(attention) => plan.add_latent_attention(attention),
                Mixer::Mlp(mlp) => plan.add_mlp(mlp, false),
                Mixer::Experts(experts) => plan.add_experts(experts),
                Mixer::Mamba(mamba) => plan.add_mamba(mamba),
                Mixer::Mamba2(mamba) => plan.add_mamba2(mamba),
            }
            plan.add_norm(block.post_norm.as_ref());
        }
        plan
    }

    fn add_norm(&mut self, norm: Option<&NormSpec>) {
        self.exact
            .extend(norm.into_iter().flat_map(NormSpec::tensors));
    }

    fn add_input(&mut self, name: &str, width: usize, routed: bool) {
        self.inputs.push(InputSpec {
            name: name.to_owned(),
            width,
            routed,
        });
    }

    fn add_linear(&mut self, projection: &Projection, input: &str) {
        self.linears.push(LinearSpec {
            name: format!("{}.weight", projection.name),
            rows: projection.rows,
            cols: projection.cols,
            input: input.to_owned(),
            stored: projection.stored.clone(),
        });
        self.add_bias(projection);
    }

    fn add_bias(&mut self, projection: &Projection) {
        if projection.bias {
            let name = format!("{}.bias", projection.name);
            self.exact.push(exact(&name, &[projection.rows]));
        }
    }

    fn add_attention(&mut self, attention: &AttentionSpec) {
        self.add_input("attn_in", attention.qkv.hidden(), false);
        for projection in attention.qkv.projections() {
            self.add_linear(projection, "attn_in");
        }
        if let Some(norms) = &attention.qk_norm {
            self.add_norm(Some(&norms.q));
            self.add_norm(Some(&norms.k));
        }
        self.add_input("o_in", attention.output.cols, false);
        self.add_linear(&attention.output, "o_in");
    }

    fn add_latent_attention(&mut self, attention: &LatentAttentionSpec) {
        self.add_input("attn_in", attention.kv_a.down.cols, false);
        let latents = [attention.q_a.as_ref(), Some(&attention.kv_a)];
        if attention.q_a.is_none() {
            self.add_linear(&attention.q_b, "attn_in");
        }
        for latent in latents.into_iter().flatten() {
            self.add_linear(&latent.down, "attn_in");
            self.add_norm(Some(&latent.norm));
        }
        if attention.q_a.is_some() {
            self.add_input("q_b_in", attention.q_b.cols, false);
            self.add_linear(&attention.q_b, "q_b_in");
        }
        self.add_input("kv_b_in", attention.kv_b.cols, false);
        self.add_linear(&attention.kv_b, "kv_b_in");
        self.add_input("o_in", attention.output.cols, false);
        self.add_linear(&attention.output, "o_in");
    }

    fn add_mlp(&mut self, mlp: &MlpSpec, routed: bool) {
        self.add_input(&mlp.input_name, mlp.down.rows, routed);
        for projection in mlp.input.projections() {
            self.add_linear(projection, &mlp.input_name);
        }
        self.add_input(&mlp.down_input_name, mlp.ffn, routed);
        self.add_linear(&mlp.down, &mlp.down_input_name);
    }

    fn add_experts(&mut self, experts: &ExpertsSpec) {
        let Projection {
            name, rows, cols, ..
        } = &experts.router;
        self.exact
            .push(exact(&format!("{name}.weight"), &[*rows, *cols]));
        self.add_bias(&experts.router);
        if let Routing::Sigmoid {
            correction_bias, ..
        } = &experts.routing
        {
            self.exact.push(exact(correction_bias, &[*rows]));
        }
        if let Some(shared) = &experts.shared {
            self.add_mlp(shared, false);
        }
        for expert in &experts.experts {
            self.add_mlp(expert, true);
        }
    }

    fn add_mamba(&mut self, mamba: &MambaSpec) {
        let &MambaSpec { inner, state, .. } = mamba;
        self.add_input("in_in", mamba.in_proj.cols, false);
        self.add_linear(&mamba.in_proj, "in_in");
        self.add_conv(&mamba.conv);
        self.add_input("x_in", inner, false);
        self.add_linear(&mamba.x_proj, "x_in");
        self.add_input("dt_in", mamba.dt_rank, false);
        self.add_linear(&mamba.dt_proj, "dt_in");
        self.exact.push(exact("mixer.A_log", &[inner, state]));
        self.exact.push(exact("mixer.D", &[inner]));
        self.add_input("out_in", inner, false);
        self.add_linear(&mamba.out_proj, "out_in");
    }

    fn add_mamba2(&mut self, mamba: &Mamba2Spec) {
        self.add_input("in_in", mamba.in_proj.cols, false);
        self.add_linear(&mamba.in_proj, "in_in");
        self.add_conv(&mamba.conv);
        for name in ["mixer.dt_bias", "mixer.A_log", "mixer.D"] {
            self.exact.push(exact(name, &[mamba.heads]));
        }
        self.add_norm(Some(&mamba.norm));
        self.add_input("out_in", mamba.out_proj.cols, false);
        self.add_linear(&mamba.out_proj, "out_in");
    }

    fn add_conv(&mut self, conv: &ConvSpec) {
        let &ConvSpec {
            channels, kernel, ..
        } = conv;
        let tensor = |part: &str| format!("{}.{part}", conv.name);
        self.exact
            .push(exact(&tensor("weight"), &[channels, 1, kernel]));
        if conv.bias {
            self.exact.push(exact(&tensor("bias"), &[channels]));
        }
    }

    /// The linear of this name.
    pub fn linear(&self, name: &str) -> Option<&LinearSpec> {
        self.linears.iter().find(|linear| linear.name == name)
    }

    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&InputSpec> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// Number of weights of the linears of this layer.
    pub fn linear_parameters(&self) -> u64 {
        self.linears
            .iter()
            .map(|l| l.rows as u64 * l.cols as u64)
            .sum()
    }

    /// Number of parameters of this layer.
    pub fn parameters(&self) -> u64 {
        self.linear_parameters() + self.exact.iter().map(ExactSpec::parameters).sum::<u64>()
    }

    /// Names within the layer and shapes of all tensors of this layer, as the pipeline's files store them.
    pub fn tensors(&self) -> impl Iterator<Item = ExactSpec> + '_ {
        self.linears
            .iter()
            .map(|l| ExactSpec {
                name: l.name.clone(),
                shape: vec![l.rows, l.cols],
            })
            .chain(self.exact.iter().cloned())
    }

    /// Full names and shapes of all tensors of this layer, as the checkpoint stores them. A tensor that holds
    /// several linears is repeated for each of them.
    pub fn source_tensors(&self) -> impl Iterator<Item = ExactSpec> + '_ {
        let linears = self.linears.iter().map(|linear| {
            let (name, shape) = linear.source_tensor();
            exact(&format!("{}{name}", self.prefix), &shape)
        });
        let exact = self
            .exact
            .iter()
            .map(|spec| exact(&format!("{}{}", self.prefix, spec.name), &spec.shape));
        linears.chain(exact)
    }
}

impl LinearSpec {
    /// Name within the layer and shape of the tensor that holds this linear in the checkpoint.
    pub fn source_tensor(&self) -> (&str, Vec<usize>) {
        match &self.stored {
            Stored::Whole => (&self.name, vec![self.rows, self.cols]),
            Stored::Transposed => (&self.name, vec![self.cols, self.rows]),
            Stored::Slice { tensor, count, .. } => (tensor, vec![*count, self.rows, self.cols]),
        }
    }

    /// The name without its expert's index: linears with the same function in different experts have the same
    /// role.
    pub fn role(&self) -> &str {
        role(&self.name)
    }
}

impl InputSpec {
    /// As [`LinearSpec::role`].
    pub fn role(&self) -> &str {
        role(&self.name)
    }
}

/// The part of a name after its last numeric component.
fn role(name: &str) -> &str {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mut role = name;
    let mut rest = name;
    while let Some((part, after)) = rest.split_once('.') {
        if is_number(part) {
            role = after;
        }
        rest = after;
    }
    role
}

impl ExactSpec {
    /// Number of elements.
    pub fn parameters(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

impl NormSpec {
    /// Names and shapes of the norm's tensors.
    pub fn tensors(&self) -> Vec<ExactSpec> {
        let tensor = |part: &str| exact(&format!("{}.{part}", self.name), &[self.width]);
        match self.kind {
            NormKind::Rms | NormKind::RmsOnePlus => vec![tensor("weight")],
            NormKind::Layer => vec![tensor("weight"), tensor("bias")],
        }
    }
}

impl QkvSpec {
    /// The matrices in the order in which the layer applies them.
    pub fn projections(&self) -> Vec<&Projection> {
        match self {
            QkvSpec::Separate { q, k, v } => vec![q, k, v],
            QkvSpec::Fused(matrix) | QkvSpec::FusedPerHead(matrix) => vec![matrix],
        }
    }

    /// Input dimension.
    pub fn hidden(&self) -> usize {
        match self {
            QkvSpec::Separate { q, .. } => q.cols,
            QkvSpec::Fused(matrix) | QkvSpec::FusedPerHead(matrix) => matrix.cols,
        }
    }
}

impl MlpInput {
    /// The matrices in the order in which the layer applies them.
    pub fn projections(&self) -> Vec<&Projection> {
        match self {
            MlpInput::Gated { gate, up } => vec![gate, up],
            MlpInput::FusedGated(matrix) | MlpInput::Ungated(matrix) => vec![matrix],
        }
    }
}

impl ModelConfig {
    /// The plan of layer `index`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer_plan(&self, index: usize) -> LayerPlan {
        LayerPlan::new(&self.layers[index], index)
    }

    /// Full names and shapes of the non-layer tensors: embedding, learned positions, final norm and, unless the
    /// head is tied to the embedding, the output matrix.
    pub fn non_layer_plan(&self) -> Vec<ExactSpec> {
        let matrix = |name: &str, rows| exact(name, &[rows, self.hidden]);
        let mut non_layer = vec![matrix(&self.embedding.weight, self.vocab)];
        if let Some(positions) = &self.embedding.positions {
            non_layer.push(matrix(positions, self.context));
        }
        non_layer.extend(self.head.norm.tensors());
        if !self.head.tied {
            non_layer.push(matrix(&self.head.weight, self.vocab));
        }
        if let Some(bias) = &self.head.bias {
            non_layer.push(exact(bias, &[self.vocab]));
        }
        non_layer
    }

    /// Number of weights of all linears of all layers.
    pub fn linear_parameters(&self) -> u64 {
        self.layer_plans()
            .map(|plan| plan.linear_parameters())
            .sum()
    }

    /// Number of parameters of the model; a tied head counts once.
    pub fn total_parameters(&self) -> u64 {
        let non_layer = self.non_layer_plan();
        self.layer_plans()
            .map(|plan| plan.parameters())
            .sum::<u64>()
            + non_layer.iter().map(ExactSpec::parameters).sum::<u64>()
    }

    /// The plans of all layers, in order.
    pub fn layer_plans(&self) -> impl Iterator<Item = LayerPlan> + '_ {
        self.layers
            .iter()
            .enumerate()
            .map(|(index, layer)| LayerPlan::new(layer, index))
    }
}

fn exact(name: &str, shape: &[usize]) -> ExactSpec {
    ExactSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
    }
}
