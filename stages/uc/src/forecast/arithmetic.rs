//! What a run takes, as formulas: operations, sizes of artifacts, bytes. Nothing here knows seconds or a machine.
//!
//! Operations are floating-point operations; a multiplication with an addition counts as two. Left out as small beside the
//! rest: norms, rotations, softmax, routers, the scan of a state space (about 1 % of Mamba's), factors of output gradients.

use uc_settings::{Rank, Settings};

use super::facts::{Facts, Kind, LinearGroup};

/// Outputs of experts whose gradients' moments are taken together.
const NEAR_OUTPUTS: usize = 128;
/// What the trellis takes per weight, in operations of the error feedback beside it. When the run behind `throughput.json` was
/// measured, `docs/benchmarks/codec-speed.json` had 195 ns a weight at 576 inputs and outputs and 233 ns at 4096 and 512, which is
/// 183 ns and 0.0109 ns per input and output. The search takes less since (147 and 194 ns): both are to be measured together.
const TRELLIS: f64 = 16800.0;
/// Operations per weight and rank of the search for leading singular triples.
const TRIPLES: f64 = 24.0;
/// Bytes of the manifest for one tensor of a layer (104 kB for 270 tensors of SmolLM2-135M).
const MANIFEST_TEXT: f64 = 385.0;
/// The same of a layer's record.
const RECORD_TEXT: f64 = 325.0;
/// Bytes of a token id in a list of windows.
const TOKEN_TEXT: f64 = 6.0;
/// Bytes of a linear in the JSON documents of the survey.
const RATE_TEXT: f64 = 110.0;
/// Bytes of an f32.
const F32: f64 = 4.0;

/// What bounds a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum JobCost {
    /// Operations of matrix products of the forward and backward passes.
    Product(f64),
    /// Operations of the codec, on the processor.
    Codec(f64),
    /// Bytes to move.
    Bytes(f64),
}

impl JobCost {
    /// The number, whatever it counts.
    pub fn amount(self) -> f64 {
        match self {
            JobCost::Product(amount) | JobCost::Codec(amount) | JobCost::Bytes(amount) => amount,
        }
    }

    /// What it counts.
    pub fn bound(self) -> &'static str {
        match self {
            JobCost::Product(_) => "products",
            JobCost::Codec(_) => "codec",
            JobCost::Bytes(_) => "bytes",
        }
    }
}

/// A model under settings.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic<'a> {
    /// The model.
    pub facts: &'a Facts,
    /// The run's settings.
    pub settings: &'a Settings,
    /// Bytes of one weight in the source's files.
    pub source_width: f64,
}

impl LinearGroup {
    /// Outputs of a linear that feed back into one another.
    fn block(&self, max_output_block: usize) -> usize {
        self.rows.min(if self.routed {
            NEAR_OUTPUTS
        } else {
            max_output_block
        })
    }

    /// Entries of the second moments of the gradients at the outputs of all its linears.
    fn output_moment_entries(&self, max_output_block: usize) -> f64 {
        (self.count * self.rows * self.block(max_output_block)) as f64
    }
}

impl Kind {
    /// Weights of the linears of one layer.
    pub fn linear_parameters(&self) -> f64 {
        let linears = self.linears.iter();
        linears
            .map(|group| (group.count * group.rows * group.cols) as f64)
            .sum()
    }

    /// Share of the tokens that pass a linear or an input.
    fn share(&self, routed: bool) -> f64 {
        match routed && self.experts > 0 {
            true => self.chosen as f64 / self.experts as f64,
            false => 1.0,
        }
    }

    /// Weights that a token meets.
    pub fn active_parameters(&self) -> f64 {
        let linears = self.linears.iter();
        linears
            .map(|group| self.share(group.routed) * (group.count * group.rows * group.cols) as f64)
            .sum()
    }

    /// Operations of a token in the forward pass, in windows of `length`: two per weight, and the scores and mixtures of
    /// causal attention.
    pub fn forward(&self, length: f64) -> f64 {
        2.0 * self.active_parameters() + 2.0 * length * self.attention_width as f64
    }

    /// Operations of a token in a recorded forward pass and its gradients by the inputs, and in the second moments of the
    /// gradients at the outputs, of which one triangle is computed.
    pub fn backward(&self, length: f64, max_output_block: usize) -> f64 {
        let outputs = self.linears.iter();
        let outputs: f64 = outputs
            .map(|group| self.share(group.routed) * group.output_moment_entries(max_output_block))
            .sum();
        4.0 * self.active_parameters() + 6.0 * length * self.attention_width as f64 + outputs
    }

    /// Operations of a token in the second moments of the inputs, of which one triangle is computed.
    pub fn moments(&self, max_input_block: usize) -> f64 {
        let inputs = self.inputs.iter();
        inputs
            .map(|input| {
                let entries = (input.count * input.width * input.width.min(max_input_block)) as f64;
                self.share(input.routed) * entries
            })
            .sum()
    }

    /// Entries of the second moments of all inputs.
    pub fn moment_entries(&self, max_input_block: usize) -> f64 {
        let inputs = self.inputs.iter();
        inputs
            .map(|input| (input.count * input.width * input.width.min(max_input_block)) as f64)
            .sum()
    }

    /// Operations of the Cholesky factors of the second moments.
    pub fn factors(&self, max_input_block: usize) -> f64 {
        let inputs = self.inputs.iter();
        inputs
            .map(|input| {
                let block = input.width.min(max_input_block) as f64;
                (input.count * input.width) as f64 * block * block / 3.0
            })
            .sum()
    }

    /// Operations of trellis and error feedback, along the columns alone, on at most `rows` rows of every linear.
    pub fn probe(&self, max_input_block: usize, rows: usize) -> f64 {
        let linears = self.linears.iter();
        linears
            .map(|group| {
                let weights = (group.count * group.rows.min(rows) * group.cols) as f64;
                weights * (group.cols.min(max_input_block) as f64 + TRELLIS)
            })
            .sum()
    }

    /// Operations of trellis and error feedback, along columns and rows.
    pub fn feedback(&self, max_input_block: usize, max_output_block: usize) -> f64 {
        let linears = self.linears.iter();
        let along_rows: f64 = linears
            .map(|group| group.output_moment_entries(max_output_block) * group.cols as f64)
            .sum();
        self.probe(max_input_block, usize::MAX) + along_rows
    }

    /// Operations of the search for an overlay.
    pub fn overlay(&self, max_input_block: usize, rank: u32) -> f64 {
        let linears = self.linears.iter();
        linears
            .map(|group| {
                let weights = (group.count * group.rows * group.cols) as f64;
                weights * (group.cols.min(max_input_block) as f64 + TRIPLES * f64::from(rank))
            })
            .sum()
    }
}

impl Arithmetic<'_> {
    /// Tokens of the calibration windows.
    pub fn calibration_tokens(&self) -> f64 {
        f64::from(self.settings.calibration.windows) * self.length()
    }

    /// Tokens of the survey's windows.
    pub fn survey_tokens(&self) -> f64 {
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
        f64::from(self.settings.calibration.length).min(self.facts.context as f64)
    }

    fn evaluation_length(&self) -> f64 {
        f64::from(self.settings.evaluation.length).min(self.facts.context as f64)
    }

    fn max_output_block(&self) -> usize {
        self.settings.calibration.max_output_block as usize
    }

    fn max_input_block(&self) -> usize {
        self.settings.calibration.max_input_block as usize
    }

    /// The largest rank that is looked at; 0 for none.
    fn rank(&self) -> u32 {
        match self.settings.overlay.rank {
            Rank::Auto => self.settings.overlay.max_rank,
            Rank::Fixed(rank) => rank,
        }
    }

    fn states(&self, tokens: f64) -> f64 {
        tokens * self.facts.hidden as f64 * F32
    }

    /// Bytes of a layer's tensors in the source.
    pub fn layer_bytes(&self, kind: &Kind) -> f64 {
        (kind.linear_parameters() + kind.extra_parameters as f64) * self.source_width
    }

    /// Bytes of a layer's file in the pack: the budget, from which everything in it is paid.
    pub fn pack_layer_bytes(&self, kind: &Kind) -> f64 {
        kind.linear_parameters() * self.settings.quantize.bpw / 8.0
    }

    /// Bytes of the exact tensors outside the layers.
    pub fn non_layer_bytes(&self) -> f64 {
        self.facts.non_layer_parameters as f64 * self.source_width
    }

    /// Bytes of the manifest.
    pub fn manifest_bytes(&self) -> f64 {
        (self.facts.linears + self.facts.exact) as f64 * MANIFEST_TEXT
    }

    /// JobCost of a job; `kind` is that of its layer. Unknown for programs that this module does not know.
    pub fn work(&self, argv: &[String], kind: Option<&Kind>) -> Option<JobCost> {
        let (length, max_input_block, max_output_block) = (
            self.length(),
            self.max_input_block(),
            self.max_output_block(),
        );
        let head = 2.0 * self.facts.hidden as f64 * self.facts.vocab as f64;
        let all = |of: &dyn Fn(&Kind) -> f64| -> f64 {
            let kinds = self.facts.kinds.iter();
            kinds.map(|kind| kind.layers.len() as f64 * of(kind)).sum()
        };
        let work = match (argv.join(" ").as_str(), kind) {
            ("shard-loader non-layer", _) => JobCost::Bytes(self.non_layer_bytes()),
            ("teacher-cache windows", _) => JobCost::Bytes(self.states(self.calibration_tokens())),
            ("teacher-cache sensitivity-windows", _) => {
                JobCost::Bytes(self.states(self.survey_tokens()))
            }
            ("teacher-cache sensitivity-forward", Some(kind)) => JobCost::Product(
                self.survey_tokens() * (kind.forward(length) + kind.moments(max_input_block)),
            ),
            ("quantize rates", Some(kind)) => {
                let rows = self.settings.quantize.probe_rows as usize;
                JobCost::Codec(kind.factors(max_input_block) + kind.probe(max_input_block, rows))
            }
            ("teacher-cache sensitivity-loss", _) => {
                JobCost::Product(2.0 * head * self.survey_tokens())
            }
            // A token takes part in the metrics of the inputs or is weighed by them: as many operations.
            ("teacher-cache sensitivity-backward", Some(kind)) => JobCost::Product(
                self.survey_tokens()
                    * (kind.backward(length, max_output_block) + kind.moments(max_input_block)),
            ),
            ("quantize allocate", _) => JobCost::Bytes(all(&|kind| self.sensitivity(kind))),
            ("shard-loader layer", Some(kind)) => JobCost::Bytes(self.layer_bytes(kind)),
            ("teacher-cache layer", Some(kind)) => JobCost::Product(
                self.calibration_tokens() * (kind.forward(length) + kind.moments(max_input_block)),
            ),
            ("quantize layer", Some(kind)) => JobCost::Codec(
                kind.factors(max_input_block) + kind.feedback(max_input_block, max_output_block),
            ),
            ("overlay-fit", Some(_)) if self.rank() == 0 => JobCost::Codec(0.0),
            ("overlay-fit", Some(kind)) => JobCost::Codec(
                kind.factors(max_input_block) + kind.overlay(max_input_block, self.rank()),
            ),
            ("pack-writer layer", Some(kind)) => {
                JobCost::Bytes(self.layer_bytes(kind) + self.pack_layer_bytes(kind))
            }
            ("pack-writer manifest", _) => {
                let layers = all(&|kind| self.pack_layer_bytes(kind));
                JobCost::Bytes(self.non_layer_bytes() + layers)
            }
            ("evaluator windows", _) => JobCost::Bytes(2.0 * self.states(self.evaluation_tokens())),
            ("evaluator layer", Some(kind)) => {
                let forward = kind.forward(self.evaluation_length());
                JobCost::Product(2.0 * self.evaluation_tokens() * forward)
            }
            ("evaluator report", _) => JobCost::Product(2.0 * head * self.evaluation_tokens()),
            _ => return None,
        };
        Some(work)
    }

    /// Bytes of one instance of an artifact of the built-in pipeline; `kind` is that of its layer.
    pub fn artifact(&self, name: &str, kind: Option<&Kind>) -> Option<f64> {
        let linears = |kind: &Kind| kind.linears.iter().map(|group| group.count).sum::<usize>();
        let bytes = match (name, kind) {
            ("non-layer" | "pack-non-layer", _) => self.non_layer_bytes(),
            ("weights", Some(kind)) => self.layer_bytes(kind),
            // Below the last layer there is one more instance of the states.
            ("sensitivity-hidden" | "gradient", _) => self.states(self.survey_tokens()),
            ("hidden", _) => self.states(self.calibration_tokens()),
            ("eval-hidden", _) => 2.0 * self.states(self.evaluation_tokens()),
            ("sensitivity-statistics" | "statistics", Some(kind)) => {
                F32 * kind.moment_entries(self.max_input_block())
            }
            ("sensitivity", Some(kind)) => self.sensitivity(kind),
            ("rates", Some(kind)) => linears(kind) as f64 * RATE_TEXT,
            ("allocation", _) => self.facts.linears as f64 * RATE_TEXT,
            ("calibration-windows", _) => self.calibration_tokens() * TOKEN_TEXT,
            ("evaluation-windows", _) => self.evaluation_tokens() * TOKEN_TEXT,
            // Indices as they are coded, so about what the layer's file takes.
            ("codes" | "pack-layer", Some(kind)) => self.pack_layer_bytes(kind),
            ("overlay", Some(kind)) => match self.settings.overlay.rank {
                Rank::Fixed(1..) => self.pack_layer_bytes(kind),
                // None is worth its bits at the widths measured; then the file is empty.
                Rank::Auto | Rank::Fixed(0) => 0.0,
            },
            ("layer-record", Some(kind)) => (linears(kind) + kind.exact) as f64 * RECORD_TEXT,
            ("manifest", _) => self.manifest_bytes(),
            ("manifest-digest" | "pack-config" | "pack-generation-config" | "metrics", _) => 1e3,
            _ => return None,
        };
        Some(bytes)
    }

    fn sensitivity(&self, kind: &Kind) -> f64 {
        let outputs = kind.linears.iter();
        let outputs: f64 = outputs
            .map(|group| group.output_moment_entries(self.max_output_block()))
            .sum();
        let inputs: usize = kind.inputs.iter().map(|input| input.count).sum();
        F32 * (outputs + inputs as f64 * self.survey_tokens())
    }

    /// Bytes that a job needs on disk beside its files: rows that wait for the sums of their expert, or the linears of the
    /// pass under way and of the best one.
    pub fn scratch(&self, argv: &[String], kind: Option<&Kind>) -> f64 {
        let Some(kind) = kind else { return 0.0 };
        let tokens = match argv.join(" ").as_str() {
            "teacher-cache sensitivity-forward" => self.survey_tokens(),
            "teacher-cache layer" => self.calibration_tokens(),
            "quantize layer" => return 2.0 * self.pack_layer_bytes(kind),
            "overlay-fit" if matches!(self.settings.overlay.rank, Rank::Fixed(1..)) => {
                return 2.0 * self.pack_layer_bytes(kind);
            }
            _ => return 0.0,
        };
        let routed = kind.inputs.iter().filter(|input| input.routed);
        let width: f64 = routed
            .map(|input| kind.share(true) * (input.count * input.width) as f64)
            .sum();
        tokens * width * F32
    }

    /// Bytes of the source's weights that a job reads.
    pub fn source_read(&self, argv: &[String], kind: Option<&Kind>) -> f64 {
        match (argv.join(" ").as_str(), kind) {
            ("shard-loader non-layer", _) => self.non_layer_bytes(),
            (
                "teacher-cache sensitivity-forward"
                | "teacher-cache sensitivity-backward"
                | "quantize rates",
                Some(kind),
            )
            | ("shard-loader layer", Some(kind)) => self.layer_bytes(kind),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests;
