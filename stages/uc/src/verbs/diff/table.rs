//! The table of tensors: those that cannot be compared first, then by their error.

use uc_pack::diff::{Outcome, PackDiff, TensorDiff};

use super::text::{SHOWN, outcome, shape};
use crate::report::terminal;

/// Columns of the numbers: bits per weight of both packs, ratio of the steps, relative squared error, share that differs.
const WIDTHS: [usize; 5] = [8, 8, 9, 10, 9];
/// Least columns of a name.
const LEAST_NAME: usize = 16;

/// The table of a comparison, in lines of at most `columns` columns.
pub(super) fn text(found: &PackDiff, columns: usize, shows_all: bool) -> String {
    let mut listed: Vec<&TensorDiff> = found
        .tensors
        .iter()
        .filter(|tensor| shows_all || tensor.outcome != Outcome::Identical)
        .collect();
    if listed.is_empty() {
        return String::new();
    }
    listed.sort_by(|x, y| rank(y).total_cmp(&rank(x)));
    let shown = match shows_all {
        true => listed.len(),
        false => SHOWN.min(listed.len()),
    };
    let numbers: usize = WIDTHS.iter().sum();
    let longest = listed[..shown]
        .iter()
        .map(|t| terminal::width(&t.name))
        .max();
    let room = columns.saturating_sub(numbers).max(LEAST_NAME);
    let name_width = longest.unwrap_or(0).clamp(LEAST_NAME, room);
    let titles = ["bpw a", "bpw b", "step b/a", "rel. err", "differ"];
    let mut text = format!(
        "\n{}\n",
        line("tensor", &titles.map(str::to_owned), name_width)
    );
    for tensor in &listed[..shown] {
        let name = tail(&tensor.name, name_width);
        text.push_str(&match cells(tensor) {
            Ok(cells) => line(&name, &cells, name_width),
            Err(note) => {
                let note = terminal::truncate(&note, columns.saturating_sub(name_width + 2));
                format!("{name:<name_width$}  {note}")
            }
        });
        text.push('\n');
    }
    let hidden = listed.len() - shown;
    if hidden > 0 {
        text.push_str(&format!("… and {hidden} more tensors; --all lists them\n"));
    }
    text
}

/// The larger, the further up.
fn rank(tensor: &TensorDiff) -> f64 {
    match (tensor.outcome, &tensor.error) {
        (Outcome::Identical, _) => -1.0,
        (Outcome::Differs, Some(error)) => {
            let error = error.relative_squared_error;
            error.unwrap_or(f64::MAX)
        }
        (Outcome::Differs, None) => 0.0,
        _ => f64::INFINITY,
    }
}

fn line(name: &str, cells: &[String; 5], name_width: usize) -> String {
    let cells = cells.iter().zip(WIDTHS);
    let cells: String = cells
        .map(|(cell, width)| format!("{cell:>width$}"))
        .collect();
    format!("{name:<name_width$}{cells}")
}

/// The numbers of a tensor that both packs have, or else a note.
fn cells(tensor: &TensorDiff) -> Result<[String; 5], String> {
    let (Some(a), Some(b)) = (&tensor.a, &tensor.b) else {
        return Err(outcome(tensor.outcome).to_owned());
    };
    if tensor.outcome == Outcome::Incomparable {
        let kind = |side: &uc_pack::diff::TensorSide| match side.dtype {
            Some(dtype) => format!("{} {dtype:?}", shape(&side.shape)),
            None => format!("{} coded", shape(&side.shape)),
        };
        return Err(format!("{} and {}", kind(a), kind(b)));
    }
    let none = || "-".to_owned();
    let steps = a.step.zip(b.step);
    let error = tensor.error.as_ref();
    let relative = match (tensor.outcome, error) {
        (Outcome::Identical, _) => "0".to_owned(),
        (_, None) => none(),
        (_, Some(error)) => {
            let relative = error.relative_squared_error;
            relative.map_or_else(|| "infinite".to_owned(), |error| format!("{error:.2e}"))
        }
    };
    let differing = match (tensor.outcome, error) {
        (Outcome::Identical, _) => "0 %".to_owned(),
        (_, None) => none(),
        (_, Some(error)) => {
            let share = 100.0 * error.differing as f64 / error.values.max(1) as f64;
            format!("{share:.1} %")
        }
    };
    Ok([
        format!("{:.3}", a.bits_per_weight),
        format!("{:.3}", b.bits_per_weight),
        steps.map_or_else(none, |(a, b)| format!("{:.3}", b / a)),
        relative,
        differing,
    ])
}

/// The name, cut at its beginning to `limit` columns: its end says more.
fn tail(name: &str, limit: usize) -> String {
    let all: Vec<char> = name.chars().collect();
    match all.len() <= limit {
        true => name.to_owned(),
        false => std::iter::once(&'…')
            .chain(&all[all.len() + 1 - limit..])
            .collect(),
    }
}
