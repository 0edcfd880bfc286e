//! The table of tensors: those that cannot be compared first, then by their error.

use uc_pack::diff::{Outcome, PackDiff, TensorDiff, TensorSide};

use super::text::{SHOWN, outcome, shape};
use crate::report::terminal;

/// A column of numbers: its title, its width, the number of a tensor that both packs have.
type Column = (
    &'static str,
    usize,
    fn(&TensorDiff, [&TensorSide; 2]) -> String,
);

/// The columns of numbers; the last one only where ranks differ.
const COLUMNS: [Column; 6] = [
    ("bpw a", 8, |_, [a, _]| format!("{:.3}", a.bits_per_weight)),
    ("bpw b", 8, |_, [_, b]| format!("{:.3}", b.bits_per_weight)),
    ("step b/a", 9, |_, [a, b]| ratio_of_steps(a, b)),
    ("rel. err", 10, |tensor, _| relative_error(tensor)),
    ("differ", 9, |tensor, _| differing_share(tensor)),
    ("ranks", 8, |_, [a, b]| ranks(a, b)),
];
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
    listed.sort_by(|x, y| place(y).total_cmp(&place(x)));
    let shown = match shows_all {
        true => listed.len(),
        false => SHOWN.min(listed.len()),
    };
    let rank = |side: &Option<TensorSide>| side.as_ref().and_then(|side| side.rank);
    let both = |tensor: &&TensorDiff| tensor.a.is_some() && tensor.b.is_some();
    let mut compared = listed.iter().copied().filter(both);
    let ranks_differ = compared.any(|tensor| rank(&tensor.a) != rank(&tensor.b));
    let numbers = match ranks_differ {
        true => &COLUMNS[..],
        false => &COLUMNS[..COLUMNS.len() - 1],
    };
    let longest = listed[..shown]
        .iter()
        .map(|t| terminal::width(name(t)))
        .max();
    let room = columns.saturating_sub(numbers.iter().map(|(_, width, _)| width).sum());
    let name_width = longest.unwrap_or(0).clamp(LEAST_NAME, room.max(LEAST_NAME));
    let titles = numbers
        .iter()
        .map(|(title, width, _)| format!("{title:>width$}"));
    let titles: String = titles.collect();
    let mut text = format!("\n{:<name_width$}{titles}\n", "tensor");
    for tensor in &listed[..shown] {
        let name = tail(name(tensor), name_width);
        text.push_str(&format!("{name:<name_width$}"));
        match (&tensor.a, &tensor.b, tensor.outcome) {
            (Some(a), Some(b), outcome) if outcome != Outcome::Incomparable => {
                for (_, width, number) in numbers {
                    text.push_str(&format!("{:>width$}", number(tensor, [a, b])));
                }
            }
            _ => {
                let room = columns.saturating_sub(name_width + 2);
                text.push_str("  ");
                text.push_str(&terminal::truncate(&note(tensor), room));
            }
        }
        text.push('\n');
    }
    let hidden = listed.len() - shown;
    if hidden > 0 {
        text.push_str(&format!("… and {hidden} more; --all lists every tensor\n"));
    }
    text
}

/// The larger, the further up.
fn place(tensor: &TensorDiff) -> f64 {
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

/// Why there are no numbers.
fn note(tensor: &TensorDiff) -> String {
    let kind = |side: &TensorSide| match side.dtype {
        Some(dtype) => format!("{} {dtype:?}", shape(&side.shape)),
        None => format!("{} coded", shape(&side.shape)),
    };
    match (&tensor.a, &tensor.b) {
        (Some(a), Some(b)) => format!("{} and {}", kind(a), kind(b)),
        _ => outcome(tensor.outcome).to_owned(),
    }
}

/// What stands for a number that was not measured.
fn unknown() -> String {
    "-".to_owned()
}

fn ratio_of_steps(a: &TensorSide, b: &TensorSide) -> String {
    let steps = a.step.zip(b.step);
    steps.map_or_else(unknown, |(a, b)| format!("{:.3}", b / a))
}

fn relative_error(tensor: &TensorDiff) -> String {
    let relative = tensor
        .error
        .as_ref()
        .map(|error| error.relative_squared_error);
    match (tensor.outcome, relative) {
        (Outcome::Identical, _) => "0".to_owned(),
        (_, None) => unknown(),
        (_, Some(None)) => "infinite".to_owned(),
        (_, Some(Some(error))) => format!("{error:.2e}"),
    }
}

fn differing_share(tensor: &TensorDiff) -> String {
    match (tensor.outcome, &tensor.error) {
        (Outcome::Identical, _) => "0 %".to_owned(),
        (_, None) => unknown(),
        (_, Some(error)) => {
            let share = 100.0 * error.differing as f64 / error.values.max(1) as f64;
            format!("{share:.1} %")
        }
    }
}

fn ranks(a: &TensorSide, b: &TensorSide) -> String {
    let ranks = a.rank.zip(b.rank);
    ranks.map_or_else(unknown, |(a, b)| format!("{a}, {b}"))
}

/// The name without its usual ending; every verb accepts it.
fn name(tensor: &TensorDiff) -> &str {
    tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name)
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
