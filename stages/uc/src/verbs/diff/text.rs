//! The comparison of two packs as text that fits the terminal: provenance, totals, tensors.

use uc_pack::diff::{FieldDiff, Outcome, PackDiff};
use uc_pack::statistics::ErrorStatistics;

use super::table;
use crate::report::terminal;

/// Most fields and tensors that the text lists.
pub(super) const SHOWN: usize = 20;
/// Columns of the labels.
const LABEL: usize = 16;

/// How a comparison is shown.
pub(super) struct Report {
    /// The paths of both packs.
    pub(super) paths: [String; 2],
    /// Width of the text.
    pub(super) columns: usize,
    /// Whether everything is listed.
    pub(super) shows_all: bool,
}

impl Report {
    /// The whole text.
    pub(super) fn text(&self, found: &PackDiff) -> String {
        let mut lines = Vec::new();
        let mut row = |name: &str, value: String| lines.push(format!("{name:<LABEL$}{value}"));
        let sides = [("a", &found.a), ("b", &found.b)];
        for ((name, side), path) in sides.into_iter().zip(&self.paths) {
            row(name, path.clone());
            row("  fingerprint", side.fingerprint.to_string());
        }
        row("packs", verdict(found));
        if found.identical {
            return self.wrapped(&lines, "");
        }
        self.provenance(&found.provenance, &mut lines);
        lines.push(String::new());
        totals(found, &mut lines);
        lines.push(format!("{:<LABEL$}{}", "tensors", counts(found)));
        for (name, error) in [
            ("  linears", &found.summary.linears),
            ("  exact", &found.summary.exact),
        ] {
            let error = error.as_ref();
            lines.extend(error.map(|error| format!("{name:<LABEL$}{}", sentence(error))));
        }
        let table = table::text(found, self.columns, self.shows_all);
        self.wrapped(&lines, &table)
    }

    /// The fields that differ, with both values.
    fn provenance(&self, fields: &[FieldDiff], lines: &mut Vec<String>) {
        if fields.is_empty() {
            return;
        }
        lines.push(String::new());
        lines.push("made from and with".to_owned());
        let shown = match self.shows_all {
            true => fields.len(),
            false => SHOWN,
        };
        for field in fields.iter().take(shown) {
            lines.push(format!("  {}", field.field));
            for (name, value) in [("a", &field.a), ("b", &field.b)] {
                let value = value.as_deref().unwrap_or("not recorded");
                lines.push(format!("    {name}  {value}"));
            }
        }
        if fields.len() > shown {
            let hidden = fields.len() - shown;
            lines.push(format!("  … and {hidden} more; --all lists every field"));
        }
    }

    /// The lines, broken where they are too long, and then a table that fits.
    fn wrapped(&self, lines: &[String], table: &str) -> String {
        let lines = lines
            .iter()
            .flat_map(|line| terminal::wrap(line, self.columns, LABEL));
        let mut text: String = lines.map(|line| line + "\n").collect();
        text.push_str(table);
        text
    }
}

/// One sentence on whether the packs differ.
fn verdict(found: &PackDiff) -> String {
    match (found.identical, found.same_values()) {
        (true, _) => "identical".to_owned(),
        (false, true) => "reconstruct the same values, but differ otherwise".to_owned(),
        (false, false) => "DIFFERENT".to_owned(),
    }
}

/// The totals that say most, side by side.
fn totals(found: &PackDiff, lines: &mut Vec<String>) {
    let (a, b) = (&found.a.totals, &found.b.totals);
    let mut row = |name: &str, a: String, b: String| {
        lines.push(format!("{name:<24}{a:>18}{b:>18}"));
    };
    row("totals", "a".to_owned(), "b".to_owned());
    let rows = [
        ("layers", found.a.layers as u64, found.b.layers as u64),
        (
            "weights of the linears",
            a.linear_parameters,
            b.linear_parameters,
        ),
        ("all parameters", a.total_parameters, b.total_parameters),
        ("bytes", a.total_bytes, b.total_bytes),
    ];
    for (name, a, b) in rows {
        row(name, a.to_string(), b.to_string());
    }
    let text = |text: &String| text.clone();
    let (linears_a, linears_b) = (&a.bits_per_weight_linears, &b.bits_per_weight_linears);
    row("bpw of the linears", text(linears_a), text(linears_b));
    let (all_a, all_b) = (&a.bits_per_weight_all, &b.bits_per_weight_all);
    row("bpw of everything", text(all_a), text(all_b));
    lines.push(String::new());
}

/// Numbers of tensors by outcome.
fn counts(found: &PackDiff) -> String {
    let summary = &found.summary;
    let counts = [
        (summary.identical, "identical"),
        (summary.differing, "differ"),
        (summary.incomparable, "of another shape"),
        (summary.only_in_a, "only in a"),
        (summary.only_in_b, "only in b"),
    ];
    let counts = counts.iter().filter(|(n, _)| *n > 0);
    let counts: Vec<_> = counts.map(|(n, name)| format!("{n} {name}")).collect();
    counts.join(", ")
}

/// An error in words.
fn sentence(error: &ErrorStatistics) -> String {
    let relative = error.relative_squared_error;
    let relative = relative.map_or_else(|| "infinite".to_owned(), |error| format!("{error:.3e}"));
    let noise = error.signal_to_noise_db;
    let noise = noise.map_or_else(String::new, |db| format!(" ({db:.2} dB)"));
    let share = 100.0 * error.differing as f64 / error.values.max(1) as f64;
    let max = error.max_absolute_error;
    format!(
        "relative squared error {relative}{noise}, largest {max:.3e}, {share:.1} % of the values of these tensors differ"
    )
}

/// The name of an outcome.
pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Identical => "identical",
        Outcome::Differs => "differs",
        Outcome::Incomparable => "incomparable",
        Outcome::OnlyInA => "only in a",
        Outcome::OnlyInB => "only in b",
    }
}

/// A shape, for example `64x128`; `scalar` for none.
pub(super) fn shape(dims: &[u64]) -> String {
    let dims: Vec<_> = dims.iter().map(u64::to_string).collect();
    match dims.is_empty() {
        true => "scalar".to_owned(),
        false => dims.join("x"),
    }
}
