//! The memory that a stage declares in `pipeline.toml`: a sum of terms such as "1 layers as stored + 2 moment blocks + 256 MiB".
//!
//! A term is a number and what it counts. What the tensors of a layer take follows from their shapes and the settings, so that
//! one declaration holds for every model. Nothing here knows what a stage does.

use uc_settings::Settings;
use uc_store::model_summary::{LayerGroup, LinearGroup, ModelSummary};
use uc_store::plan::{External, Plan, SOURCE};

use crate::forecast::layer_costs::{self, LayerCosts};

/// Bytes of an f32.
const F32: f64 = 4.0;
/// Bytes of a bf16, in which most models are stored.
const BF16: f64 = 2.0;
/// Largest number of a term; a larger one is refused as a mistake.
const MAX_COUNT: f64 = 1e9;
/// What the forms of a term are, for the message about a mistake.
pub(super) const FORMS: &str = "a sum such as \"1 layers as stored + 2 largest linears in f32 + 256 MiB\" of MiB, GiB, layers, \
     shared linears, largest linears or heads (each in f32, in bf16 or as stored), input rows, moment blocks, largest moments, shared moments, \
     all moments, largest output moments, all output moments, activations of N tokens, routed activations of N tokens, logits of N tokens, calibration \
     states, sensitivity states or evaluation states, each perhaps per thread and up to a size";

/// The memory that a stage claims.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory(Vec<Term>);

/// A number of quantities, perhaps for each thread, at most `limit` bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Term {
    count: f64,
    quantity: Quantity,
    per_thread: bool,
    limit: Option<f64>,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Width {
    F32,
    Bf16,
    /// As in the source's files.
    Stored,
}

/// Windows of text.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Windows {
    Calibration,
    Sensitivity,
    Evaluation,
}

/// What a term counts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Quantity {
    /// A number of bytes.
    Bytes(f64),
    /// The linears of a layer, those that every token reaches, the largest one, the matrix of the head.
    Layers(Width),
    SharedLinears(Width),
    LargestLinears(Width),
    Head(Width),
    /// A value for each input of the widest linear.
    InputRows,
    /// The second moments of the inputs: the largest diagonal block, those of the widest input, those of the inputs that every
    /// token reaches, those of all inputs.
    MomentBlocks,
    LargestMoments,
    SharedMoments,
    AllMoments,
    /// The second moments of the output gradients: those of the linear with the most, those of all linears.
    LargestOutputMoments,
    AllOutputMoments,
    /// The widest vector of a layer for each of a number of tokens, at least one window: of the inputs and outputs that every
    /// token has, or of those of experts, which share the tokens.
    Activations(f64),
    RoutedActivations(f64),
    /// A value per entry of the vocabulary for each of a number of tokens.
    Logits(f64),
    /// The hidden states of all windows before a layer.
    States(Windows),
}

/// What the terms are computed from.
#[derive(Debug, Clone, Copy)]
pub struct Shapes<'a> {
    /// The model.
    pub model: &'a ModelSummary,
    /// The run's settings.
    pub settings: &'a Settings,
    /// Bytes per weight in the source's files.
    pub source_width: f64,
    /// Threads of a job.
    pub threads: u32,
}

impl Memory {
    /// Parses a sum of terms.
    ///
    /// # Errors
    /// The term that is not one.
    pub fn parse(text: &str) -> Result<Self, &str> {
        let terms = text.split('+').map(str::trim);
        let terms = terms.map(|term| Term::parse(term).ok_or(term));
        Ok(Self(terms.collect::<Result<_, _>>()?))
    }

    /// The bytes for the layer that takes the most.
    pub fn bytes(&self, shapes: &Shapes<'_>) -> u64 {
        let groups = shapes.model.layer_groups.iter();
        let bytes = groups.map(|group| self.bytes_of_layer(shapes, group));
        bytes.fold(0.0, f64::max) as u64
    }

    fn bytes_of_layer(&self, shapes: &Shapes<'_>, group: &LayerGroup) -> f64 {
        let terms = self.0.iter().map(|term| {
            let threads = if term.per_thread {
                f64::from(shapes.threads)
            } else {
                1.0
            };
            let bytes = threads * term.count * shapes.bytes(term.quantity, LayerCosts { group });
            term.limit.map_or(bytes, |limit| bytes.min(limit))
        });
        terms.sum()
    }
}

impl Term {
    fn parse(text: &str) -> Option<Self> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let mut limit = None;
        if let Some(at) = words.iter().position(|word| *word == "up") {
            let &["up", "to", number, unit] = &words[at..] else {
                return None;
            };
            limit = Some(count(number)? * size(unit)?);
            words.truncate(at);
        }
        let per_thread = words.ends_with(&["per", "thread"]);
        if per_thread {
            words.truncate(words.len() - 2);
        }
        let (number, what) = words.split_first()?;
        Some(Self {
            count: count(number)?,
            quantity: quantity(what)?,
            per_thread,
            limit,
        })
    }
}

fn count(text: &str) -> Option<f64> {
    let number = text.parse().ok();
    number.filter(|number| (0.0..=MAX_COUNT).contains(number))
}

fn size(unit: &str) -> Option<f64> {
    match unit {
        "MiB" => Some(f64::from(1 << 20)),
        "GiB" => Some(f64::from(1 << 30)),
        _ => None,
    }
}

fn quantity(words: &[&str]) -> Option<Quantity> {
    let (words, width) = match words {
        [rest @ .., "in", "f32"] => (rest, Some(Width::F32)),
        [rest @ .., "in", "bf16"] => (rest, Some(Width::Bf16)),
        [rest @ .., "as", "stored"] => (rest, Some(Width::Stored)),
        all => (all, None),
    };
    // "4 layers" is short for "4 layers in f32".
    let or_f32 = width.unwrap_or(Width::F32);
    let quantity = match words {
        ["layer" | "layers"] => return Some(Quantity::Layers(or_f32)),
        ["shared", "linears"] => return Some(Quantity::SharedLinears(or_f32)),
        ["largest", "linear" | "linears"] => return Some(Quantity::LargestLinears(or_f32)),
        ["head" | "heads"] => return Some(Quantity::Head(or_f32)),
        ["input", "row" | "rows"] => Quantity::InputRows,
        ["moment", "block" | "blocks"] => Quantity::MomentBlocks,
        ["largest", "moments"] => Quantity::LargestMoments,
        ["shared", "moments"] => Quantity::SharedMoments,
        ["all", "moments"] => Quantity::AllMoments,
        ["largest", "output", "moments"] => Quantity::LargestOutputMoments,
        ["all", "output", "moments"] => Quantity::AllOutputMoments,
        ["activation" | "activations", "of", tokens, "tokens"] => {
            Quantity::Activations(count(tokens)?)
        }
        [
            "routed",
            "activation" | "activations",
            "of",
            tokens,
            "tokens",
        ] => Quantity::RoutedActivations(count(tokens)?),
        ["logits", "of", tokens, "tokens"] => Quantity::Logits(count(tokens)?),
        ["calibration", "states"] => Quantity::States(Windows::Calibration),
        ["sensitivity", "states"] => Quantity::States(Windows::Sensitivity),
        ["evaluation", "states"] => Quantity::States(Windows::Evaluation),
        [unit] => Quantity::Bytes(size(unit)?),
        _ => return None,
    };
    width.is_none().then_some(quantity)
}

impl<'a> Shapes<'a> {
    /// The shapes of a planned run: the model's files say how its weights are stored.
    pub fn of_plan(model: &'a ModelSummary, plan: &'a Plan, threads: u32) -> Self {
        Self {
            model,
            settings: &plan.settings,
            source_width: source_width(model, plan.externals.get(SOURCE)),
            threads,
        }
    }

    /// The bytes of one quantity for a layer.
    fn bytes(&self, quantity: Quantity, layer: LayerCosts<'_>) -> f64 {
        let (linears, inputs) = (&layer.group.linears, &layer.group.inputs);
        let calibration = &self.settings.calibration;
        let input_block = calibration.max_input_block as usize;
        let output_block = calibration.max_output_block as usize;
        let largest =
            |size: &dyn Fn(&LinearGroup) -> f64| linears.iter().map(size).fold(0.0, f64::max);
        let widest = |routed: bool| {
            let widths = linears.iter().filter(|linear| linear.routed == routed);
            let widths = widths.map(|linear| linear.rows.max(linear.cols));
            widths.max().unwrap_or(0) as f64
        };
        let blocks = inputs
            .iter()
            .map(|input| (input.width, input.width.min(input_block)));
        let model = self.model;
        match quantity {
            Quantity::Bytes(unit) => unit,
            Quantity::Layers(width) => self.width(width) * layer.linear_parameters(),
            Quantity::SharedLinears(width) => {
                let shared = linears.iter().filter(|linear| !linear.routed);
                let weights =
                    shared.map(|linear| (linear.count * linear.rows * linear.cols) as f64);
                self.width(width) * weights.sum::<f64>()
            }
            Quantity::LargestLinears(width) => {
                self.width(width) * largest(&|linear| (linear.rows * linear.cols) as f64)
            }
            Quantity::Head(width) => self.width(width) * (model.vocab * model.hidden) as f64,
            Quantity::InputRows => F32 * largest(&|linear| linear.cols as f64),
            Quantity::MomentBlocks => {
                let sides = blocks.map(|(_, side)| (side * side) as f64);
                F32 * sides.fold(0.0, f64::max)
            }
            Quantity::LargestMoments => {
                let moments = blocks.map(|(width, side)| (width * side) as f64);
                F32 * moments.fold(0.0, f64::max)
            }
            Quantity::SharedMoments => {
                let shared = inputs.iter().filter(|input| !input.routed);
                let entries =
                    shared.map(|input| input.count * input.width * input.width.min(input_block));
                F32 * entries.sum::<usize>() as f64
            }
            Quantity::AllMoments => F32 * layer.moment_entries(input_block),
            Quantity::LargestOutputMoments => {
                let one =
                    |linear: &LinearGroup| layer_costs::output_moments_of_one(linear, output_block);
                F32 * largest(&one)
            }
            Quantity::AllOutputMoments => F32 * layer.output_moment_entries(output_block),
            Quantity::Activations(tokens) => F32 * self.batch(tokens) * widest(false),
            Quantity::RoutedActivations(tokens) => F32 * self.batch(tokens) * widest(true),
            Quantity::Logits(tokens) => F32 * tokens * model.vocab as f64,
            Quantity::States(windows) => F32 * self.tokens(windows) * model.hidden as f64,
        }
    }

    fn width(&self, width: Width) -> f64 {
        match width {
            Width::F32 => F32,
            Width::Bf16 => BF16,
            Width::Stored => self.source_width,
        }
    }

    /// The tokens of a batch: as many windows as have together at most `tokens` tokens, but at least one.
    fn batch(&self, tokens: f64) -> f64 {
        let (calibration, evaluation) = (&self.settings.calibration, &self.settings.evaluation);
        let longest = calibration.length.max(evaluation.length) as usize;
        tokens.max(longest.min(self.model.context) as f64)
    }

    fn tokens(&self, windows: Windows) -> f64 {
        let settings = self.settings;
        let (count, length) = match windows {
            Windows::Calibration => (settings.calibration.windows, settings.calibration.length),
            Windows::Sensitivity => (settings.allocation.windows, settings.calibration.length),
            Windows::Evaluation => (settings.evaluation.windows, settings.evaluation.length),
        };
        f64::from(count) * f64::from(length).min(self.model.context as f64)
    }
}

/// Bytes per weight in the source's files; two if they are not known.
pub fn source_width(model: &ModelSummary, source: Option<&External>) -> f64 {
    let files = source.map_or(&[][..], |source| &source.files);
    let weights = files
        .iter()
        .filter(|file| file.path.extension() == Some("safetensors"));
    let on_disk: u64 = weights.map(|file| file.size).sum();
    let listed = model.index.as_ref().and_then(|index| index.total_size);
    let total = listed.or((on_disk > 0).then_some(on_disk));
    total.map_or(BF16, |bytes| {
        bytes as f64 / model.total_parameters.max(1) as f64
    })
}

/// Computes the memory of every stage of a plan again: settings and threads may have changed since it was made.
pub fn refresh(plan: &mut Plan, model: &ModelSummary, threads: u32) {
    let shapes = Shapes::of_plan(model, plan, threads);
    let declared = plan.stages.iter().map(|stage| {
        let memory = Memory::parse(stage.declared_memory.as_deref()?).ok()?;
        Some(memory.bytes(&shapes))
    });
    let declared: Vec<Option<u64>> = declared.collect();
    for (stage, bytes) in plan.stages.iter_mut().zip(declared) {
        stage.memory = bytes.unwrap_or(stage.memory);
    }
}

#[cfg(test)]
mod tests;
