//! One layer: norm, attention, norm, gated MLP, each added to the residual stream.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::attention::{Heads, attention};
use super::math::{rms_norm, silu_gate};
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::rope::Rope;

/// Sees the inputs of the linears, as `(name, [tokens, width])`, in the order `attn_in`, `o_in`,
/// `mlp_in`, `down_in`.
pub type Observer<'a, B> = &'a mut dyn FnMut(&str, Tensor<B, 2>);

/// Sees what passes through a layer, and may replace the outputs of its linears.
pub trait Tap<B: Backend> {
    /// The input of one or several linears, by the names that [`Observer`] sees.
    fn input(&mut self, name: &str, x: &Tensor<B, 2>);

    /// The output `[tokens, out]` of the linear whose weight has this name within the layer.
    fn output(&mut self, weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2>;
}

/// A tap that only observes inputs.
struct Inputs<'a, B: Backend>(Option<Observer<'a, B>>);

impl<B: Backend> Tap<B> for Inputs<'_, B> {
    fn input(&mut self, name: &str, x: &Tensor<B, 2>) {
        if let Some(observe) = self.0.as_mut() {
            observe(name, x.clone());
        }
    }

    fn output(&mut self, _: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        y
    }
}

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear<B: Backend> {
    /// `[rows, cols]` = `[out, in]`, as on disk.
    pub weight: Tensor<B, 2>,
    /// `[out]`
    pub bias: Option<Tensor<B, 1>>,
}

/// The weights of a layer and the few numbers that its computation needs.
#[derive(Debug, Clone)]
pub struct LlamaLayer<B: Backend> {
    /// Gain of the norm before attention, `[hidden]`.
    pub attn_norm: Tensor<B, 1>,
    /// Queries, `[heads * head_dim, hidden]`.
    pub q: Linear<B>,
    /// Keys, `[kv_heads * head_dim, hidden]`.
    pub k: Linear<B>,
    /// Values, `[kv_heads * head_dim, hidden]`.
    pub v: Linear<B>,
    /// Attention output, `[hidden, heads * head_dim]`.
    pub o: Linear<B>,
    /// Gain of the norm before the MLP, `[hidden]`.
    pub mlp_norm: Tensor<B, 1>,
    /// MLP gate, `[ffn, hidden]`.
    pub gate: Linear<B>,
    /// MLP input, `[ffn, hidden]`.
    pub up: Linear<B>,
    /// MLP output, `[hidden, ffn]`.
    pub down: Linear<B>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square inside the norms.
    pub eps: f64,
}

impl<B: Backend> Linear<B> {
    /// Applies the matrix to `x: [tokens, in]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = x.matmul(self.weight.clone().transpose());
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}

impl<B: Backend> LlamaLayer<B> {
    /// Builds a layer from its weights. `weights` is asked for every tensor of
    /// [`ModelConfig::layer_plan`] by its name within the layer (`self_attn.q_proj.weight`) and
    /// gives the values row by row.
    ///
    /// # Errors
    /// What `weights` returns, or [`ModelError::WeightLength`].
    pub fn new<E: From<ModelError>>(
        config: &ModelConfig,
        weights: &dyn Fn(&str) -> Result<Vec<f32>, E>,
        device: &B::Device,
    ) -> Result<Self, E> {
        let (d, q, kv, ffn) = (
            config.hidden,
            config.query_width(),
            config.kv_width(),
            config.ffn,
        );
        let linear = |name: &str, rows: usize, cols: usize, bias: bool| -> Result<_, E> {
            let weight = tensor(&format!("{name}.weight"), [rows, cols], weights, device)?;
            let bias = match bias {
                true => Some(tensor(&format!("{name}.bias"), [rows], weights, device)?),
                false => None,
            };
            Ok(Linear { weight, bias })
        };
        let (ab, mb) = (config.attention_bias, config.mlp_bias);
        Ok(LlamaLayer {
            attn_norm: tensor("input_layernorm.weight", [d], weights, device)?,
            q: linear("self_attn.q_proj", q, d, ab)?,
            k: linear("self_attn.k_proj", kv, d, ab)?,
            v: linear("self_attn.v_proj", kv, d, ab)?,
            o: linear("self_attn.o_proj", d, q, ab)?,
            mlp_norm: tensor("post_attention_layernorm.weight", [d], weights, device)?,
            gate: linear("mlp.gate_proj", ffn, d, mb)?,
            up: linear("mlp.up_proj", ffn, d, mb)?,
            down: linear("mlp.down_proj", d, ffn, mb)?,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            eps: config.rms_eps,
        })
    }

    /// The layer applied to `hidden: [windows, length, hidden]`; same shape.
    /// `observe` sees every input of a linear, all windows as rows one after another.
    ///
    /// # Panics
    /// If `length` exceeds [`Rope::positions`] or the hidden width is not the layer's.
    pub fn forward(
        &self,
        hidden: Tensor<B, 3>,
        rope: &Rope<B>,
        observe: Option<Observer<'_, B>>,
    ) -> Tensor<B, 3> {
        self.forward_tapped(hidden, rope, &mut Inputs(observe))
    }

    /// As [`LlamaLayer::forward`], with every input and output of a linear passing through `tap`.
    ///
    /// # Panics
    /// As [`LlamaLayer::forward`].
    pub fn forward_tapped(
        &self,
        hidden: Tensor<B, 3>,
        rope: &Rope<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let [windows, length, width] = hidden.dims();
        let positions = rope.positions();
        assert!(
            length <= positions,
            "{length} tokens, but {positions} rotary positions"
        );
        let hidden: Tensor<B, 2> = hidden.reshape([windows * length, width]);

        let x = rms_norm(hidden.clone(), self.attn_norm.clone(), self.eps);
        tap.input("attn_in", &x);
        let q = tap.output("self_attn.q_proj.weight", self.q.forward(x.clone()));
        let k = tap.output("self_attn.k_proj.weight", self.k.forward(x.clone()));
        let v = tap.output("self_attn.v_proj.weight", self.v.forward(x));
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        let mixed = attention(q, k, v, windows, length, heads, rope);
        tap.input("o_in", &mixed);
        let hidden = tap.output("self_attn.o_proj.weight", self.o.forward(mixed)) + hidden;

        let x = rms_norm(hidden.clone(), self.mlp_norm.clone(), self.eps);
        tap.input("mlp_in", &x);
        let gate = tap.output("mlp.gate_proj.weight", self.gate.forward(x.clone()));
        let up = tap.output("mlp.up_proj.weight", self.up.forward(x));
        let gated = silu_gate(gate, up);
        tap.input("down_in", &gated);
        let hidden = tap.output("mlp.down_proj.weight", self.down.forward(gated)) + hidden;
        hidden.reshape([windows, length, width])
    }
}

/// Asks `weights` for `name` and checks the number of elements.
pub(super) fn tensor<B: Backend, const D: usize, E: From<ModelError>>(
    name: &str,
    shape: [usize; D],
    weights: &dyn Fn(&str) -> Result<Vec<f32>, E>,
    device: &B::Device,
) -> Result<Tensor<B, D>, E> {
    let values = weights(name)?;
    let expected = shape.iter().product();
    if values.len() != expected {
        let found = values.len();
        return Err(ModelError::WeightLength {
            name: name.to_owned(),
            found,
            expected,
        }
        .into());
    }
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}
