//! Positions in llama.cpp's terms: sliding windows and rotary embeddings.

use uc_model::ModelConfig;
use uc_model::rope::{RopeScaling, RopeSpec};
use uc_model::spec::AttentionSpec;

use super::Assumption::{Gemma, LongRope, RotaryDivisors};
use super::{Architecture, Description};
use crate::error::ExportError;
use crate::gguf::values::Value;

impl Architecture {
    /// Sliding windows. Where llama.cpp has none, the context ends where the window would begin to matter.
    pub(super) fn windows(
        &self,
        config: &ModelConfig,
        attentions: &[&AttentionSpec],
        to: &mut Description,
    ) -> Result<usize, ExportError> {
        let mut windows = attentions.iter().filter_map(|attention| attention.window);
        let Some(window) = windows.next() else {
            return match self.name {
                "gemma2" => self.refuse("sliding window", "none", "one in every other layer"),
                _ => Ok(config.context),
            };
        };
        if windows.any(|other| other != window) {
            return self.refuse("sliding windows", "different ones", "one width");
        }
        if self.assumes(Gemma) {
            let pattern = attentions
                .iter()
                .map(|attention| attention.window.is_some());
            to.metadata.extend([
                ("attention.sliding_window", Value::from(window as u32)),
                (
                    "attention.sliding_window_pattern",
                    Value::Bools(pattern.collect()),
                ),
            ]);
            return Ok(config.context);
        }
        if window < config.context {
            to.notes.push(format!(
                "llama.cpp has no sliding window for this architecture: the context is limited to the window, {window} tokens"
            ));
        }
        Ok(config.context.min(window))
    }

    pub(super) fn rope(
        &self,
        config: &ModelConfig,
        attentions: &[&AttentionSpec],
        to: &mut Description,
    ) -> Result<(), ExportError> {
        // Gemma 3 has a base of its own in layers with a window.
        let full = attentions
            .iter()
            .find(|attention| attention.window.is_none());
        let rope = |attention: &AttentionSpec| attention.rope.clone();
        let global = rope(full.unwrap_or(&attentions[0]));
        let local = attentions
            .iter()
            .filter(|attention| attention.window.is_some());
        let local = local
            .map(|attention| rope(attention))
            .next()
            .unwrap_or(global.clone());
        let expected = |attention: &&AttentionSpec| match attention.window {
            Some(_) => attention.rope == local,
            None => attention.rope == global,
        };
        if !attentions.iter().all(expected) {
            return self.refuse("rotary positions", "different ones", "one kind");
        }
        let Some(spec) = &global else {
            return Ok(());
        };
        if local != global {
            let plain = local
                .as_ref()
                .filter(|local| local.scaling == RopeScaling::Default);
            match plain {
                Some(plain) if self.name == "gemma3" && plain.width == spec.width => {
                    to.metadata
                        .push(("rope.freq_base_swa", (plain.theta as f32).into()));
                }
                _ => return self.refuse("rotary positions", "different ones", "one kind"),
            }
        } else if self.name == "gemma3" {
            to.metadata
                .push(("rope.freq_base_swa", (spec.theta as f32).into()));
        }
        to.metadata.extend([
            ("rope.dimension_count", Value::from(spec.width as u32)),
            ("rope.freq_base", (spec.theta as f32).into()),
        ]);
        self.scaling(config, spec, to)
    }

    fn scaling(
        &self,
        config: &ModelConfig,
        spec: &RopeSpec,
        to: &mut Description,
    ) -> Result<(), ExportError> {
        match &spec.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => {
                to.metadata.extend([
                    ("rope.scaling.type", Value::from("linear")),
                    ("rope.scaling.factor", (*factor as f32).into()),
                ]);
                Ok(())
            }
            RopeScaling::Llama3 { .. } if self.assumes(RotaryDivisors) => {
                to.tensors.push(("rope_freqs.weight", divisors(spec)));
                Ok(())
            }
            RopeScaling::LongRope {
                short,
                long,
                original_context,
                attention_factors: [factor, other],
            } if self.assumes(LongRope) && factor == other => {
                let floats = |list: &[f64]| list.iter().map(|value| *value as f32).collect();
                to.tensors.extend([
                    ("rope_factors_long.weight", floats(long)),
                    ("rope_factors_short.weight", floats(short)),
                ]);
                to.metadata.extend([
                    (
                        "rope.scaling.original_context_length",
                        Value::from(*original_context as u32),
                    ),
                    ("rope.scaling.attn_factor", (*factor as f32).into()),
                ]);
                if config.context > *original_context {
                    to.notes.push(format!(
                        "LongRoPE: llama.cpp chooses the divisors by the context that it is started with, over or up to \
                         {original_context} tokens; transformers by the length of the text"
                    ));
                }
                Ok(())
            }
            other => {
                let found = format!("{other:?}");
                let found: String = found.chars().take_while(|c| c.is_alphanumeric()).collect();
                self.refuse(
                    "rotary scaling",
                    found,
                    "none, linear, or that of this family",
                )
            }
        }
    }
}

/// The divisors of the rotary frequencies: what the frequencies without scaling are divided by.
fn divisors(spec: &RopeSpec) -> Vec<f32> {
    let plain = RopeSpec {
        scaling: RopeScaling::Default,
        ..spec.clone()
    };
    let (plain, _) = plain.frequencies(1);
    let (scaled, _) = spec.frequencies(1);
    let pairs = plain.iter().zip(&scaled);
    pairs.map(|(plain, scaled)| plain / scaled).collect()
}
