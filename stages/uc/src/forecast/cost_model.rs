//! What the jobs and artifacts of the built-in pipeline cost: operations, bytes to move, sizes of files.
//!
//! Formulas on shapes and settings only. Nothing here knows seconds or a machine.

use uc_settings::{Rank, SensitivityStates, Settings};
use uc_store::model_summary::{LayerGroup, ModelSummary};

use super::layer_costs::LayerCosts;
use super::probe::{Resource, Work};

/// Bytes of the manifest per tensor of a layer (104 kB for 270 tensors of SmolLM2-135M).
const MANIFEST_TEXT: f64 = 385.0;
/// Bytes of a layer record per tensor.
const RECORD_TEXT: f64 = 325.0;
/// Bytes of a token id in a list of windows.
const TOKEN_TEXT: f64 = 6.0;
/// Bytes per linear in the document of rates, with four points, and in the allocation.
const RATES_TEXT: f64 = 620.0;
const ALLOCATION_TEXT: f64 = 175.0;
/// Bytes per weight of a source without an index.
pub const BF16: f64 = 2.0;
/// Bits of a hidden state in bfloat16 with its exponent compressed: 10.6 to 10.9 in SmolLM2-135M.
const PACKED_STATE_BITS: f64 = 11.0;
/// Bytes of an f32.
const F32: f64 = 4.0;
/// How often elementwise operations of a pass read or write a value of a linear's input or output.
const ELEMENTWISE: f64 = 8.0;
/// Operations of a job above which it is assumed to be a long one, which keeps what it has computed: they take about two minutes on
/// two cores.
const KEPT_OPERATIONS: f64 = 2.4e13;
/// Bytes of a small text file.
const SMALL_FILE: f64 = 1e3;

/// The cost of a job besides what it reads from disk and writes to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum JobCost {
    /// What it computes.
    Work(Work),
    /// It sends or receives. The speed of the network is unknown, so no time is estimated.
    Network,
}

/// The formulas for a model under given settings.
#[derive(Debug, Clone, Copy)]
pub struct CostModel<'a> {
    /// The model.
    pub model: &'a ModelSummary,
    /// The run's settings.
    pub settings: &'a Settings,
    /// Bytes per weight in the source's files.
    pub source_width: f64,
}

impl<'a> CostModel<'a> {
    /// The formulas for a model under given settings.
    pub fn new(model: &'a ModelSummary, settings: &'a Settings) -> Self {
        let size = model.index.as_ref().and_then(|index| index.total_size);
        let source_width = size.map_or(BF16, |size| {
            size as f64 / model.total_parameters.max(1) as f64
        });
        Self {
            model,
            settings,
            source_width,
        }
    }

    /// Tokens of the calibration windows.
    pub fn calibration_tokens(&self) -> f64 {
        f64::from(self.settings.calibration.windows) * self.length()
    }

    /// Tokens of the windows of the sensitivity stages.
    pub fn sensitivity_tokens(&self) -> f64 {
        let all = self.settings.calibration.windows;
        let windows = match self.settings.allocation.windows {
            0 => all,
            windows => windows.min(all),
        };
        f64::from(windows) * self.length()
    }

    /// Tokens of the evaluation windows.
    pub fn evaluation_tokens(&self) -> f64 {
        f64::from(self.settings.evaluation.windows) * self.evaluation_length()
    }

    fn length(&self) -> f64 {
        f64::from(self.settings.calibration.length).min(self.model.context as f64)
    }

    fn evaluation_length(&self) -> f64 {
        f64::from(self.settings.evaluation.length).min(self.model.context as f64)
    }

    fn max_output_block(&self) -> usize {
        self.settings.calibration.max_output_block as usize
    }

    fn max_input_block(&self) -> usize {
        self.settings.calibration.max_input_block as usize
    }

    /// Bytes of the hidden states of some tokens.
    fn states(&self, tokens: f64) -> f64 {
        tokens * self.model.hidden as f64 * F32
    }

    /// Bytes of a layer's tensors in the source.
    pub fn layer_bytes(&self, layer: LayerCosts<'_>) -> f64 {
        let exact = layer.group.exact_parameters as f64;
        (layer.linear_parameters() + exact) * self.source_width
    }

    /// Bytes of a layer's file in the pack: `bpw` covers everything in it.
    pub fn pack_layer_bytes(&self, layer: LayerCosts<'_>) -> f64 {
        layer.linear_parameters() * self.settings.quantize.bpw / 8.0
    }

    /// Bytes of the exact tensors outside the layers.
    pub fn non_layer_bytes(&self) -> f64 {
        self.model.non_layer_parameters as f64 * self.source_width
    }

    /// Bytes of the manifest.
    pub fn manifest_bytes(&self) -> f64 {
        (self.model.linears + self.model.exact) as f64 * MANIFEST_TEXT
    }

    /// Sum of a formula over all layers.
    fn all_layers(&self, formula: impl Fn(LayerCosts<'_>) -> f64) -> f64 {
        let groups = self.model.layer_groups.iter();
        groups
            .map(|group| group.layers.len() as f64 * formula(LayerCosts { group }))
            .sum()
    }

    /// Cost of a job by the command of its stage; `group` is that of its layer. None for unknown commands.
    pub fn job_cost(&self, argv: &[String], group: Option<&LayerGroup>) -> Option<JobCost> {
        let layer = group.map(|group| LayerCosts { group });
        let command = argv.join(" ");
        match layer {
            Some(layer) => self.layer_job_cost(&command, layer),
            None => self.run_job_cost(&command),
        }
    }

    /// Cost of the job of one layer.
    fn layer_job_cost(&self, command: &str, layer: LayerCosts<'_>) -> Option<JobCost> {
        let (length, inputs, outputs) = (
            self.length(),
            self.max_input_block(),
            self.max_output_block(),
        );
        let weights = layer.linear_parameters();
        let work = match command {
            "teacher-cache sensitivity-forward" => {
                let operations = layer.forward() + layer.moments(inputs);
                let attention = layer.attention(length, FORWARD_ATTENTION);
                pass(layer, self.sensitivity_tokens(), attention).and(
                    Resource::RoundedProducts,
                    self.sensitivity_tokens() * operations,
                )
            }
            "quantize rates" => {
                let rows = self.settings.quantize.probe_rows as usize;
                Work::default()
                    .and(Resource::Factors, layer.factors(inputs))
                    .and(Resource::Search, layer.probed_weights(rows))
                    .and(
                        Resource::Feedback,
                        layer.feedback_along_columns(inputs, rows),
                    )
            }
            // A token is either in the moments of the metrics or solved for with their factors: the same number of operations.
            "teacher-cache sensitivity-backward" => {
                let operations = layer.backward(outputs) + layer.moments(inputs);
                let attention = layer.attention(length, BACKWARD_ATTENTION);
                pass(layer, self.sensitivity_tokens(), attention)
                    .and(
                        Resource::RoundedProducts,
                        self.sensitivity_tokens() * operations,
                    )
                    .and(Resource::Factors, layer.shared_factors(inputs))
            }
            "shard-loader layer" => Work::default().and(Resource::Memory, self.layer_bytes(layer)),
            "teacher-cache layer" => {
                let operations = layer.forward() + layer.moments(inputs);
                let attention = layer.attention(length, FORWARD_ATTENTION);
                pass(layer, self.calibration_tokens(), attention).and(
                    Resource::RoundedProducts,
                    self.calibration_tokens() * operations,
                )
            }
            "quantize layer" => Work::default()
                .and(Resource::Factors, layer.factors(inputs))
                .and(Resource::Search, weights)
                .and(Resource::Feedback, layer.feedback(inputs, outputs)),
            "overlay-fit" => match self.settings.overlay.rank {
                Rank::Auto if self.settings.overlay.max_rank == 0 => Work::default(),
                // At the widths measured, the bound excludes every overlay.
                Rank::Auto => Work::default()
                    .and(Resource::Products, layer.overlay_bound(inputs))
                    .and(Resource::Decode, weights),
                Rank::Fixed(0) => Work::default(),
                Rank::Fixed(rank) => Work::default()
                    .and(Resource::Factors, layer.factors(inputs))
                    .and(Resource::Search, weights)
                    .and(Resource::Feedback, layer.feedback(inputs, outputs))
                    .and(Resource::Products, layer.overlay(inputs, rank)),
            },
            "pack-writer layer" => Work::default()
                .and(Resource::Encode, weights)
                .and(Resource::Decode, 2.0 * weights),
            "evaluator layer" => {
                let tokens = 2.0 * self.evaluation_tokens();
                let attention = layer.attention(self.evaluation_length(), FORWARD_ATTENTION);
                pass(layer, tokens, attention)
                    .and(Resource::WeightProducts, tokens * layer.forward())
                    .and(Resource::Decode, weights)
            }
            "hub-upload layer" => return Some(JobCost::Network),
            _ => return None,
        };
        Some(JobCost::Work(work))
    }

    /// Cost of a job that is not per layer.
    fn run_job_cost(&self, command: &str) -> Option<JobCost> {
        let (hidden, vocab) = (self.model.hidden as f64, self.model.vocab as f64);
        // The logits of a token are computed, exponentiated and summed.
        let head = |resource: Resource, tokens: f64, products: f64| {
            Work::default()
                .and(resource, tokens * products * 2.0 * hidden * vocab)
                .and(
                    Resource::Memory,
                    tokens * products * ELEMENTWISE * F32 * vocab,
                )
        };
        let states = |tokens: f64| Work::default().and(Resource::Memory, self.states(tokens));
        let work = match command {
            "shard-loader shard"
            | "hub-upload repository"
            | "hub-upload card"
            | "hub-upload pack" => {
                return Some(JobCost::Network);
            }
            "shard-loader non-layer" => {
                Work::default().and(Resource::Memory, self.non_layer_bytes())
            }
            "teacher-cache windows" => states(self.calibration_tokens()),
            "teacher-cache sensitivity-windows" => states(self.sensitivity_tokens()),
            "teacher-cache sensitivity-loss" => {
                head(Resource::RoundedProducts, self.sensitivity_tokens(), 2.0)
            }
            "quantize allocate" => Work::default().and(
                Resource::Factors,
                self.all_layers(|layer| layer.output_factors(self.max_output_block())),
            ),
            "pack-writer manifest" => Work::default().and(Resource::Memory, self.non_layer_bytes()),
            "evaluator windows" => states(2.0 * self.evaluation_tokens()),
            "evaluator report" => head(Resource::WeightProducts, self.evaluation_tokens(), 2.0),
            _ => return None,
        };
        Some(JobCost::Work(work))
    }

    /// Bytes of one file of an artifact of the built-in pipeline; `group` is that of its layer. None for unknown artifacts.
    pub fn artifact_bytes(&self, name: &str, group: Option<&LayerGroup>) -> Option<f64> {
        let layer = group.map(|group| LayerCosts { group });
        let bytes = match (name, layer) {
            ("non-layer" | "pack-non-layer", _) => self.non_layer_bytes(),
            ("weights", Some(layer)) => self.layer_bytes(layer),
            // One file more than there are layers: the states after the last layer too.
            ("sensitivity-hidden", _) => {
                let states = self.states(self.sensitivity_tokens());
                match self.settings.allocation.states {
                    SensitivityStates::Bfloat16 => states * PACKED_STATE_BITS / 32.0,
                    SensitivityStates::Float32 => states,
                }
            }
            ("gradient", _) => self.states(self.sensitivity_tokens()),
            ("hidden", _) => self.states(self.calibration_tokens()),
            ("eval-hidden", _) => 2.0 * self.states(self.evaluation_tokens()),
            ("sensitivity-statistics" | "statistics", Some(layer)) => {
                F32 * layer.moment_entries(self.max_input_block())
            }
            ("sensitivity", Some(layer)) => self.sensitivity_bytes(layer),
            ("rates", Some(layer)) => layer.linear_count() as f64 * RATES_TEXT,
            ("allocation", _) => self.model.linears as f64 * ALLOCATION_TEXT,
            ("calibration-windows", _) => self.calibration_tokens() * TOKEN_TEXT,
            ("evaluation-windows", _) => self.evaluation_tokens() * TOKEN_TEXT,
            // Codes are stored entropy coded, so they take about as much as the layer's file.
            ("codes" | "pack-layer", Some(layer)) => self.pack_layer_bytes(layer),
            ("overlay", Some(layer)) => match self.settings.overlay.rank {
                Rank::Fixed(1..) => self.pack_layer_bytes(layer),
                // At the widths measured, no overlay is worth its bits; the file is then empty.
                Rank::Auto | Rank::Fixed(0) => 0.0,
            },
            ("layer-record", Some(layer)) => layer.tensor_count() as f64 * RECORD_TEXT,
            ("manifest", _) => self.manifest_bytes(),
            ("manifest-digest" | "pack-config" | "pack-generation-config" | "metrics", _) => {
                SMALL_FILE
            }
            // Copies of files that a configuration does not describe; they are not counted.
            ("pack-tokenizer" | "pack-tokenizer-config" | "pack-special-tokens", _) => 0.0,
            (name, _) if name.starts_with("pack-description") => 0.0,
            ("hub-repository" | "remote-layer" | "model-card" | "remote-pack", _) => SMALL_FILE,
            _ => return None,
        };
        Some(bytes)
    }

    /// Bytes of a layer's sensitivity: the second moments of its output gradients and the token weights of its inputs.
    fn sensitivity_bytes(&self, layer: LayerCosts<'_>) -> f64 {
        let outputs = layer.output_moment_entries(self.max_output_block());
        F32 * (outputs + layer.input_count() as f64 * self.sensitivity_tokens())
    }

    /// Bytes that a job writes to its scratch folder and reads again: rows of the routed inputs, and the linears of the current and the
    /// best quantization pass.
    pub fn spilled_bytes(&self, argv: &[String], group: Option<&LayerGroup>) -> f64 {
        let Some(layer) = group.map(|group| LayerCosts { group }) else {
            return 0.0;
        };
        let tokens = match argv.join(" ").as_str() {
            "teacher-cache sensitivity-forward" => self.sensitivity_tokens(),
            "teacher-cache layer" => self.calibration_tokens(),
            "quantize layer" => return 2.0 * self.pack_layer_bytes(layer),
            "overlay-fit" if matches!(self.settings.overlay.rank, Rank::Fixed(1..)) => {
                return 2.0 * self.pack_layer_bytes(layer);
            }
            _ => return 0.0,
        };
        tokens * layer.routed_width() * F32
    }

    /// Bytes that a long job keeps for the case of an interruption: the rows of its output, and two snapshots of its sums while one
    /// replaces the other. Of second moments the triangle is saved.
    pub fn kept_bytes(&self, argv: &[String], group: Option<&LayerGroup>) -> f64 {
        match self.job_cost(argv, group) {
            Some(JobCost::Work(work)) if work.products() >= KEPT_OPERATIONS => {}
            _ => return 0.0,
        }
        let layer = group.map(|group| LayerCosts { group });
        let (inputs, outputs) = (self.max_input_block(), self.max_output_block());
        let (tokens, sums) = match (argv.join(" ").as_str(), layer) {
            ("teacher-cache sensitivity-forward", Some(layer)) => (
                self.sensitivity_tokens(),
                layer.shared_moment_entries(inputs) / 2.0,
            ),
            ("teacher-cache layer", Some(layer)) => (
                self.calibration_tokens(),
                layer.shared_moment_entries(inputs) / 2.0,
            ),
            ("teacher-cache sensitivity-backward", Some(layer)) => {
                let tokens = self.sensitivity_tokens();
                let moments = layer.metric_entries(inputs) + layer.output_moment_entries(outputs);
                let by_token = 2.0 * layer.input_count() as f64 * tokens;
                (tokens, moments / 2.0 + by_token)
            }
            ("teacher-cache sensitivity-loss", _) => (self.sensitivity_tokens(), 0.0),
            ("evaluator layer", _) => (2.0 * self.evaluation_tokens(), 0.0),
            _ => return 0.0,
        };
        self.states(tokens) + 2.0 * sums * F32
    }

    /// Bytes of the source's weights that a job reads.
    pub fn source_bytes_read(&self, argv: &[String], group: Option<&LayerGroup>) -> f64 {
        let layer = group.map(|group| LayerCosts { group });
        match (argv.join(" ").as_str(), layer) {
            ("shard-loader non-layer", _) => self.non_layer_bytes(),
            (
                "teacher-cache sensitivity-forward"
                | "teacher-cache sensitivity-backward"
                | "quantize rates"
                | "shard-loader layer",
                Some(layer),
            ) => self.layer_bytes(layer),
            _ => 0.0,
        }
    }
}

/// Operations of causal attention for each token before a token and each unit of width, in a forward pass, and in a recorded one with its
/// gradients.
const FORWARD_ATTENTION: f64 = 2.0;
const BACKWARD_ATTENTION: f64 = 7.0;

/// A pass over the tokens of a layer without the products with its weights: so many operations of attention per token, and the elementwise
/// ones.
fn pass(layer: LayerCosts<'_>, tokens: f64, attention: f64) -> Work {
    Work::default()
        .and(Resource::Products, tokens * attention)
        .and(
            Resource::Memory,
            tokens * layer.active_values() * ELEMENTWISE * F32,
        )
}

#[cfg(test)]
mod tests;
