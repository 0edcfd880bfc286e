//! `uc inspect PACK --tensor NAME`: what a tensor looks like, as text, JSON or CSV. The pack library measures it.

use serde::Serialize;
use uc_pack::Pack;
use uc_pack::statistics::{
    CodeStatistics, OUTLIER_DEVIATIONS, Storage, Summary, TensorStatistics, ValueStatistics,
    tensor_statistics,
};
use uc_store::output;

use super::histogram;
use super::source::{self, SourceComparison};
use crate::cli::InspectArgs;
use crate::report::colour::print_report;
use crate::report::csv;
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::terminal;

/// Columns of the labels.
const LABEL: usize = 16;

/// What is printed.
#[derive(Serialize)]
struct Inspection {
    #[serde(flatten)]
    statistics: TensorStatistics,
    /// The comparison with a model, if one was given.
    error: Option<SourceComparison>,
}

/// Measures and prints a tensor.
pub(super) fn run(args: &InspectArgs, pack: &Pack, name: &str) -> anyhow::Result<()> {
    // First, because it refuses what does not fit before anything is measured.
    let error = match &args.model {
        Some(model) => Some(source::compare(pack, name, model, args.other_model)?),
        None => None,
    };
    let inspection = Inspection {
        statistics: tensor_statistics(pack, name).map_err(packs::classify)?,
        error,
    };
    match (args.json, args.csv) {
        (true, _) => print_json(&inspection)?,
        (_, true) => output::print(table_of_values(&inspection)),
        _ => print_report(&text(&inspection, terminal::stdout_columns())),
    }
    Ok(())
}

/// The tensor as text of at most `columns` columns.
fn text(inspection: &Inspection, columns: usize) -> String {
    let statistics = &inspection.statistics;
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<LABEL$}{value}"));
    row("tensor", statistics.name.clone());
    row("file", statistics.file.clone());
    let dims: Vec<_> = statistics.shape.iter().map(u64::to_string).collect();
    let parameters = statistics.parameters;
    row("shape", format!("{} ({parameters} values)", dims.join("x")));
    row("sha256", statistics.sha256.to_string());
    match &statistics.storage {
        Storage::Exact(dtype) => row("stored", format!("exactly, as {dtype:?}")),
        Storage::Coded(code) => code_rows(code, parameters, &mut row),
    }
    value_rows(&statistics.values, &mut row);
    if let Some(comparison) = &inspection.error {
        error_rows(comparison, &mut row);
    }
    let mut lines: Vec<String> = lines
        .iter()
        .flat_map(|line| terminal::wrap(line, columns, LABEL))
        .collect();
    if let Storage::Coded(code) = &statistics.storage {
        lines.extend([String::new(), "levels".to_owned()]);
        lines.extend(histogram::lines(&code.levels, columns));
    }
    lines.join("\n") + "\n"
}

fn code_rows(code: &CodeStatistics, weights: u64, row: &mut impl FnMut(&str, String)) {
    row("source sha256", code.source_sha256.to_string());
    let (bits, per_weight) = (code.bits, code.bits_per_weight);
    row(
        "stored",
        format!("coded, {bits} bits, {per_weight:.4} per weight"),
    );
    row("rank", code.rank.to_string());
    row("step", format!("{:.4e}", code.step));
    row("column steps", range(&code.column_steps));
    row("row factors", range(&code.row_factors));
    row(
        "levels",
        format!("{:.4} bits of entropy", code.level_entropy),
    );
    row(
        "indices",
        format!("{:.4} bits of entropy", code.index_entropy),
    );
    let (coded, gain) = (
        code.index_bits_per_weight,
        code.index_entropy - code.index_bits_per_weight,
    );
    let gain = match gain >= 0.0 {
        true => format!("{gain:.4} saved by contexts"),
        false => format!("{:.4} more than their entropy", -gain),
    };
    row("  coded in", format!("{coded:.4} bits, {gain}"));
    row("  escaped", code.escapes.to_string());
    row("zero levels", share(code.zero_levels, weights));
}

fn value_rows(values: &ValueStatistics, row: &mut impl FnMut(&str, String)) {
    row(
        "values",
        format!("{:.4e} to {:.4e}", values.min, values.max),
    );
    row("mean", format!("{:.4e}", values.mean));
    row("deviation", format!("{:.4e}", values.standard_deviation));
    let kurtosis = values.excess_kurtosis;
    let kurtosis = kurtosis.map_or_else(|| "none, all equal".to_owned(), |k| format!("{k:.3}"));
    row("excess kurtosis", kurtosis);
    let outliers = values.outliers;
    row(
        "outliers",
        format!("{outliers} beyond {OUTLIER_DEVIATIONS} standard deviations"),
    );
    row("zeros", values.zeros.to_string());
    let quantiles = values.quantiles.iter();
    let quantiles: Vec<_> = quantiles
        .map(|q| format!("{} %: {:.3e}", 100.0 * q.probability, q.value))
        .collect();
    row("quantiles", quantiles.join(", "));
}

fn error_rows(comparison: &SourceComparison, row: &mut impl FnMut(&str, String)) {
    let which = match comparison.is_source {
        true => "the source, by its SHA-256",
        false => "not the source",
    };
    row("against", format!("{} ({which})", comparison.model));
    let Some(error) = &comparison.error else {
        return;
    };
    let relative = error.relative_squared_error;
    let relative = relative.map_or_else(|| "infinite".to_owned(), |error| format!("{error:.4e}"));
    let noise = error.signal_to_noise_db;
    let noise = noise.map_or_else(String::new, |db| format!(" ({db:.2} dB)"));
    row("  rel. error", format!("{relative}{noise}, squared"));
    row(
        "  rms error",
        format!("{:.4e}", error.root_mean_square_error),
    );
    row(
        "  largest error",
        format!("{:.4e}", error.max_absolute_error),
    );
    let cosine = error.cosine;
    row(
        "  cosine",
        cosine.map_or_else(|| "none".to_owned(), |c| format!("{c:.6}")),
    );
}

fn range(summary: &Summary) -> String {
    let Summary { min, median, max } = summary;
    format!("{min:.4e} to {max:.4e}, median {median:.4e}")
}

fn share(count: u64, total: u64) -> String {
    let percent = 100.0 * count as f64 / total.max(1) as f64;
    format!("{count} ({percent:.2} %)")
}

/// The tensor as CSV: quantity, what it is of, value. A number that does not exist has no line.
fn table_of_values(inspection: &Inspection) -> String {
    let statistics = &inspection.statistics;
    let mut text = csv::line(["tensor", "quantity", "of", "value"]);
    let mut add = |quantity: &str, of: &str, value: String| {
        text.push_str(&csv::line([&statistics.name, quantity, of, &value]));
    };
    add("file", "", statistics.file.clone());
    for (i, dim) in statistics.shape.iter().enumerate() {
        add("shape", &i.to_string(), dim.to_string());
    }
    add("parameters", "", statistics.parameters.to_string());
    add("sha256", "", statistics.sha256.to_string());
    match &statistics.storage {
        Storage::Exact(dtype) => add("dtype", "", format!("{dtype:?}")),
        Storage::Coded(code) => code_lines(code, &mut add),
    }
    let values = &statistics.values;
    for (quantity, value) in [
        ("min", Some(values.min)),
        ("max", Some(values.max)),
        ("mean", Some(values.mean)),
        ("standard_deviation", Some(values.standard_deviation)),
        ("excess_kurtosis", values.excess_kurtosis),
    ] {
        value
            .into_iter()
            .for_each(|value| add(quantity, "", value.to_string()));
    }
    add("zeros", "", values.zeros.to_string());
    add("outliers", "", values.outliers.to_string());
    for quantile in &values.quantiles {
        let of = quantile.probability.to_string();
        add("quantile", &of, quantile.value.to_string());
    }
    if let Some(comparison) = &inspection.error {
        error_lines(comparison, &mut add);
    }
    text
}

fn code_lines(code: &CodeStatistics, add: &mut impl FnMut(&str, &str, String)) {
    add("source_sha256", "", code.source_sha256.to_string());
    add("bits", "", code.bits.to_string());
    add("bits_per_weight", "", code.bits_per_weight.to_string());
    add("rank", "", code.rank.to_string());
    add("step", "", code.step.to_string());
    for (quantity, summary) in [
        ("column_steps", code.column_steps),
        ("row_factors", code.row_factors),
    ] {
        add(quantity, "min", summary.min.to_string());
        add(quantity, "median", summary.median.to_string());
        add(quantity, "max", summary.max.to_string());
    }
    add("level_entropy", "", code.level_entropy.to_string());
    add("index_entropy", "", code.index_entropy.to_string());
    let coded = code.index_bits_per_weight;
    add("index_bits_per_weight", "", coded.to_string());
    add("escapes", "", code.escapes.to_string());
    add("zero_levels", "", code.zero_levels.to_string());
    for (level, count) in code.levels.values.iter().zip(&code.levels.counts) {
        add("level", &level.to_string(), count.to_string());
    }
}

fn error_lines(comparison: &SourceComparison, add: &mut impl FnMut(&str, &str, String)) {
    let of = match comparison.is_source {
        true => "source",
        false => "other",
    };
    add("model", of, comparison.model.clone());
    let Some(error) = &comparison.error else {
        return;
    };
    for (quantity, value) in [
        ("relative_squared_error", error.relative_squared_error),
        ("signal_to_noise_db", error.signal_to_noise_db),
        ("root_mean_square_error", Some(error.root_mean_square_error)),
        ("max_absolute_error", Some(error.max_absolute_error)),
        ("cosine", error.cosine),
    ] {
        value
            .into_iter()
            .for_each(|value| add(quantity, of, value.to_string()));
    }
    add("differing", of, error.differing.to_string());
}
