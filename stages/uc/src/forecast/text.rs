//! A forecast as text.

use uc_store::model_summary::{IndexSummary, LayerGroup, ModelSummary};
use uc_store::plan::Per;

use crate::schedule::limits;

use super::probe::{Probe, SIDES};
use super::types::{Forecast, MachineForecast, PackForecast, RunForecast, SpeedsOf};

impl Forecast {
    /// The forecast as text.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        model(&self.model, &mut lines);
        match &self.model.index {
            Some(index) => agreement(index, &self.pack, &mut lines),
            None => lines.push(row(
                "index",
                "none given: tensor names and layouts are the usual ones",
            )),
        }
        lines.push(String::new());
        pack(&self.pack, &mut lines);
        lines.push(String::new());
        run(&self.run, &mut lines);
        lines.join("\n") + "\n"
    }
}

fn row(name: &str, value: impl AsRef<str>) -> String {
    format!("{name:<22}{}", value.as_ref())
}

fn model(model: &ModelSummary, lines: &mut Vec<String>) {
    let ModelSummary {
        family,
        layers,
        context,
        hidden,
        vocab,
        ..
    } = model;
    lines.push(row("family", family));
    lines.push(row("layers", layers.to_string()));
    lines.push(row("context", format!("{context} tokens")));
    let head = if model.tied_head { ", tied head" } else { "" };
    lines.push(row("width", format!("{hidden}, vocabulary {vocab}{head}")));
    let tensors = format!(
        "{} linears, {} exact in layers, {} outside the layers; {} in the source's files",
        model.linears, model.exact, model.non_layer_tensors, model.source_tensors
    );
    lines.push(row("tensors", tensors));
    let parameters = format!(
        "{} in linears, {} in all",
        model.linear_parameters, model.total_parameters
    );
    lines.push(row("parameters", parameters));
    for group in &model.layer_groups {
        layer_group(group, lines);
    }
}

fn layer_group(group: &LayerGroup, lines: &mut Vec<String>) {
    let experts = match group.experts {
        0 => String::new(),
        experts => format!(", {experts} experts, {} per token", group.experts_per_token),
    };
    let layers = format!(
        "{} like layer {}{experts}, {} exact tensors",
        group.layers.len(),
        group.layers.first().copied().unwrap_or(0),
        group.exact
    );
    lines.push(row("layers", layers));
    for linear in &group.linears {
        let shape = format!("{} x {}", linear.rows, linear.cols);
        lines.push(format!(
            "  {:>5} {shape:>15}  {}",
            linear.count, linear.name
        ));
    }
}

fn agreement(index: &IndexSummary, pack: &PackForecast, lines: &mut Vec<String>) {
    let shards = format!(
        "{} tensors in {} shards, {} layers in more than one",
        index.tensors, index.shards, index.spanning_layers
    );
    lines.push(row("index", shards));
    if let Some(size) = index.total_size {
        let width = pack.source_bytes_per_weight;
        let text = format!("{} by the index, {width:.2} bytes per weight", bytes(size));
        lines.push(row("source", text));
    }
    let verdict = match (index.missing.len(), index.left_over.len()) {
        (0, 0) => "the index lists exactly the planned tensors".into(),
        (missing, left_over) => {
            format!("DIFFERENT: {missing} planned tensors missing, {left_over} left over")
        }
    };
    lines.push(row("agreement", verdict));
    if !index.tolerated.is_empty() {
        let count = index.tolerated.len();
        let text = format!("{count} that follow from the configuration or repeat a tied head");
        lines.push(row("tolerated", text));
    }
}

fn pack(pack: &PackForecast, lines: &mut Vec<String>) {
    let layers = format!(
        "{} at {:.3} bits per weight of the linears, including every byte",
        bytes(pack.layer_bytes),
        pack.bits_per_weight_linears
    );
    lines.push(row("pack layers", layers));
    lines.push(row("non-layer tensors", bytes(pack.non_layer_bytes)));
    lines.push(row(
        "manifest",
        format!("about {}", bytes(pack.manifest_bytes)),
    ));
    let all = format!(
        "{}, {:.3} bits per weight of the whole model; tokenizer files not included",
        bytes(pack.total_bytes),
        pack.bits_per_weight_all
    );
    lines.push(row("pack", all));
    let ratio = format!(
        "{:.3} against {} in bf16",
        pack.compression_ratio,
        bytes(pack.bf16_bytes)
    );
    lines.push(row("compression ratio", ratio));
}

fn run(run: &RunForecast, lines: &mut Vec<String>) {
    let [calibration, sensitivities, evaluation] = run.tokens;
    let tokens = format!(
        "{calibration} for calibration, {sensitivities} for sensitivities, {evaluation} for evaluation"
    );
    lines.push(row("tokens", tokens));
    lines.push(format!(
        "{:<22}{:>11}{:>7}{:>11}{:>10}{:>11}{:>11}{:>11}",
        "stage", "jobs", "lead", "memory", "bound by", "hours", "least", "most"
    ));
    for stage in &run.stages {
        let jobs = match stage.per {
            Per::Layer => format!("{} layers", stage.jobs),
            Per::Run => "1".into(),
            Per::Shard => "on demand".into(),
        };
        let max_lead = stage
            .max_lead
            .map_or("-".into(), |max_lead| max_lead.to_string());
        let memory = match stage.memory_bytes {
            0 => "-".into(),
            memory => bytes(memory),
        };
        let bound = stage.bound;
        let [hours, low, high] =
            [stage.seconds, stage.seconds_low, stage.seconds_high].map(|seconds| seconds / 3600.0);
        lines.push(format!(
            "{:<22}{jobs:>11}{max_lead:>7}{memory:>11}{bound:>10}{hours:>11.4}{low:>11.4}{high:>11.4}",
            stage.name
        ));
    }
    memory(run, lines);
    lines.push(String::new());
    lines.push(format!(
        "{:<24}{:>6}{:>6}{:>12}{:>20}",
        "on disk", "temp", "files", "peak", "at overall peak"
    ));
    for artifact in &run.disk {
        let temporary = if artifact.temporary { "yes" } else { "no" };
        lines.push(format!(
            "{:<24}{temporary:>6}{:>6}{:>12}{:>20}",
            artifact.name,
            artifact.files,
            bytes(artifact.bytes),
            bytes(artifact.bytes_at_peak)
        ));
    }
    let other = run.other_disk.as_ref().map_or_else(String::new, |other| {
        let peak = bytes(other.peak_disk_bytes);
        format!("; {peak} with --set {}", other.setting)
    });
    let peak = format!(
        "{} besides {} of the source{other}",
        bytes(run.peak_disk_bytes),
        bytes(run.source_bytes)
    );
    lines.push(row("peak disk", peak));
    let moved = format!(
        "{} read, {} written; every input once, the source once more for hashing",
        bytes(run.read_bytes),
        bytes(run.written_bytes)
    );
    lines.push(row("total bytes", moved));
    lines.push(String::new());
    time(run, lines);
}

fn memory(run: &RunForecast, lines: &mut Vec<String>) {
    let declared = format!(
        "{} declared by the largest stage, {} by concurrent jobs",
        bytes(run.largest_memory_bytes),
        bytes(run.peak_memory_bytes)
    );
    lines.push(row("peak memory", declared));
    let machine = &run.machine;
    let (Some(limit), Some(origin)) = (machine.memory_bytes, machine.memory_origin) else {
        return;
    };
    let limited = limits::describe_memory(limit, origin);
    let verdict = match (run.largest_memory_bytes <= limit, &run.fits_with) {
        (true, _) => "every job fits".into(),
        (false, Some(setting)) => {
            format!(
                "not every job fits, and the run would be refused; with --set {setting} every job fits"
            )
        }
        (false, None) => "not every job fits, and the run would be refused".into(),
    };
    lines.push(row("memory limit", format!("{limited}: {verdict}")));
}

fn time(run: &RunForecast, lines: &mut Vec<String>) {
    let MachineForecast {
        probe,
        speeds_of,
        receipts,
        ..
    } = &run.machine;
    let hours = format!(
        "{:.2} hours, likely {:.2} to {:.2}",
        run.hours, run.hours_low, run.hours_high
    );
    lines.push(row("estimated time", hours));
    let machine = match speeds_of {
        SpeedsOf::ThisMachine => format!("this machine, measured {}", probe.date),
        SpeedsOf::File => format!("from --speeds, measured {}", probe.date),
        SpeedsOf::MeasuredRuns => {
            "the machine of the measured runs; uc plan --measure measures this one".into()
        }
    };
    let machine = format!("{} ({machine}), {} cores", probe.processor, probe.cores);
    lines.push(row("  machine", machine));
    lines.extend(probe.lines().into_iter().map(|line| row("", line)));
    lines.push(row("  measured runs", receipts.join(", ")));
    lines.push(
        "The work of a job, at these speeds, takes as many times longer as it did in the measured runs. The range covers what stages\n\
         of models of other widths did. Memory is as declared in pipeline.toml; sizes on disk follow from shapes."
            .into(),
    );
}

impl Probe {
    /// The speeds as text.
    pub fn lines(&self) -> Vec<String> {
        let [small, large] = self.products.map(|speed| speed / 1e9);
        let [rounded, exact] = self.weight_products.map(|speed| speed / 1e9);
        let [read, write] = self.disk.map(|speed| speed / 1e9);
        vec![
            format!(
                "products {small:.0} GFLOP/s at {} rows and columns, {large:.0} at {}; with weights in bfloat16 {rounded:.0} rounded, {exact:.0} in f32",
                SIDES[0], SIDES[1]
            ),
            format!(
                "codec: search {:.1} M weights/s, feedback {:.0} GFLOP/s, factors {:.0} GFLOP/s, encoding {:.0} M symbols/s, decoding {:.0}",
                self.search / 1e6,
                self.feedback / 1e9,
                self.factors / 1e9,
                self.encode / 1e6,
                self.decode / 1e6
            ),
            format!(
                "memory {:.1} GB/s; disk: reading {read:.2} GB/s, writing {write:.2}",
                self.memory / 1e9
            ),
        ]
    }
}

/// A size with a decimal unit.
fn bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}
