//! A forecast as text for people.

use uc_store::plan::Per;

use super::facts::{Facts, IndexFacts, Kind};
use super::{Forecast, PackForecast, RunForecast};

impl Forecast {
    /// The whole text.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        model(&self.model, &mut lines);
        match &self.model.index {
            Some(index) => agreement(index, &self.pack, &mut lines),
            None => lines.push(row(
                "index",
                "none given: names and layouts are the usual ones",
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

fn model(facts: &Facts, lines: &mut Vec<String>) {
    let Facts {
        family,
        layers,
        context,
        hidden,
        vocab,
        ..
    } = facts;
    lines.push(row("family", family));
    lines.push(row("layers", layers.to_string()));
    lines.push(row("context", format!("{context} tokens")));
    let head = if facts.tied_head { ", tied head" } else { "" };
    lines.push(row("width", format!("{hidden}, vocabulary {vocab}{head}")));
    let tensors = format!(
        "{} linears, {} exact in layers, {} in the non_layer; {} in the source's files",
        facts.linears, facts.exact, facts.non_layer_tensors, facts.source_tensors
    );
    lines.push(row("tensors", tensors));
    let parameters = format!(
        "{} in linears, {} in all",
        facts.linear_parameters, facts.total_parameters
    );
    lines.push(row("parameters", parameters));
    for made in &facts.kinds {
        kind(made, lines);
    }
}

fn kind(kind: &Kind, lines: &mut Vec<String>) {
    let experts = match kind.experts {
        0 => String::new(),
        experts => format!(", {experts} experts of which a token takes {}", kind.chosen),
    };
    let layers = format!(
        "{} alike from {}{experts}, {} exact tensors",
        kind.layers.len(),
        kind.layers.first().copied().unwrap_or(0),
        kind.exact
    );
    lines.push(row("layers", layers));
    for group in &kind.linears {
        let shape = format!("{} x {}", group.rows, group.cols);
        lines.push(format!("  {:>5} {shape:>15}  {}", group.count, group.name));
    }
}

fn agreement(index: &IndexFacts, pack: &PackForecast, lines: &mut Vec<String>) {
    let shards = format!(
        "{} tensors in {} shards, {} layers in more than one",
        index.tensors, index.shards, index.spanning_layers
    );
    lines.push(row("index", shards));
    if let Some(size) = index.total_size {
        let width = pack.source_bytes_per_weight;
        let text = format!("{} by the index, {width:.2} bytes a weight", bytes(size));
        lines.push(row("source", text));
    }
    let verdict = match (index.missing.len(), index.left_over.len()) {
        (0, 0) => "every planned tensor is in the index, and the other way round".into(),
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
        "{} at {:.3} bits per weight of the linears, every byte counted",
        bytes(pack.layer_bytes),
        pack.bits_per_weight_linears
    );
    lines.push(row("pack layers", layers));
    lines.push(row("exact scaffold", bytes(pack.non_layer_bytes)));
    lines.push(row(
        "manifest",
        format!("about {}", bytes(pack.manifest_bytes)),
    ));
    let all = format!(
        "{}, {:.3} bits per weight of the whole model; tokenizer files on top",
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
    let [calibration, survey, evaluation] = run.tokens;
    let tokens = format!("{calibration} calibrate, {survey} survey, {evaluation} evaluate");
    lines.push(row("tokens", tokens));
    lines.push(format!(
        "{:<18}{:>11}{:>7}{:>11}{:>10}{:>13}",
        "stage", "jobs", "lead", "memory", "bound by", "hours"
    ));
    for stage in &run.stages {
        let jobs = match stage.per {
            Per::Layer => format!("{} layers", stage.jobs),
            Per::Run => "1".into(),
            Per::Shard => "by need".into(),
        };
        let max_lead = stage
            .max_lead
            .map_or("-".into(), |max_lead| max_lead.to_string());
        let memory = match stage.memory_bytes {
            0 => "-".into(),
            memory => bytes(memory),
        };
        let bound = stage.bound.unwrap_or("unknown");
        let hours = stage.seconds / 3600.0;
        lines.push(format!(
            "{:<18}{jobs:>11}{max_lead:>7}{memory:>11}{bound:>10}{hours:>13.4}",
            stage.name
        ));
    }
    memory(run, lines);
    lines.push(String::new());
    lines.push(format!(
        "{:<24}{:>6}{:>6}{:>12}{:>20}",
        "on disk", "temp", "files", "most", "when it is fullest"
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
    let peak = format!(
        "{} beside the source's {}",
        bytes(run.peak_disk_bytes),
        bytes(run.source_bytes)
    );
    lines.push(row("peak disk", peak));
    let moved = format!(
        "{} read, {} written; every input once, the source once more to hash it",
        bytes(run.read_bytes),
        bytes(run.written_bytes)
    );
    lines.push(row("bytes in all", moved));
    lines.push(String::new());
    time(run, lines);
}

fn memory(run: &RunForecast, lines: &mut Vec<String>) {
    let declared = format!(
        "{} declared by the largest stage, {} by jobs side by side",
        bytes(run.largest_memory_bytes),
        bytes(run.peak_memory_bytes)
    );
    lines.push(row("peak memory", declared));
    let Some(limit) = run.machine.memory_bytes else {
        return;
    };
    let verdict = match run.largest_memory_bytes <= limit {
        true => "every stage fits",
        false => "a stage declares more; it runs alone, and may not fit",
    };
    lines.push(row("memory given", format!("{}: {verdict}", bytes(limit))));
}

fn time(run: &RunForecast, lines: &mut Vec<String>) {
    let machine = &run.machine;
    let hours = format!(
        "{:.2} hours, jobs side by side; {:.2} one after another",
        run.hours, run.hours_of_jobs
    );
    lines.push(row("estimated time", hours));
    let basis = format!(
        "{:.2} hours of {} ({}, {} cores, {:.0} GFLOP/s in products)",
        machine.measured_hours,
        machine.receipt,
        machine.processor,
        machine.measured_cores,
        machine.measured_gflops
    );
    lines.push(row("  measured", basis));
    let asked = format!(
        "{} cores, {:.0} GFLOP/s in products",
        machine.cores, machine.gflops
    );
    lines.push(row("  estimated for", asked));
    lines.push(
        "Only the first was measured, on a small model. From it products are scaled by GFLOP/s, the codec by cores, moving \
         bytes not at\nall, as if nothing else changed with size or machine. Memory is what pipeline.toml declares; sizes \
         on disk follow from shapes."
            .into(),
    );
}

/// A size with a unit of thousands.
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
