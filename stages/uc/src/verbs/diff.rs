//! `uc diff PACK PACK`: what two packs were made from, their sizes, and every tensor. The pack library compares.

mod table;
mod text;

use uc_input::printable;
use uc_pack::diff::{DiffOptions, PackDiff, Progress, TensorDiff, TensorSide, diff};
use uc_store::{ExitCode, output};

use crate::cli::DiffArgs;
use crate::report::colour::print_report;
use crate::report::csv;
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::progress::Display;
use crate::report::terminal;
use crate::session;

/// Runs the verb; returns the exit status.
pub fn run(args: &DiffArgs, display: &Display) -> anyhow::Result<ExitCode> {
    let (a, b) = (packs::open(&args.a)?, packs::open(&args.b)?);
    let options = DiffOptions {
        layer: args.layer,
        decode: !args.manifest,
        threads: session::threads(args.threads) as usize,
    };
    let task = display.task("comparing the packs", 0);
    let found = diff(&a, &b, &options, &|progress: Progress| {
        task.set(progress.done, progress.total);
    });
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            task.abandon();
            return Err(packs::classify(error));
        }
    };
    task.finish();
    match (args.json, args.csv) {
        (true, _) => print_json(&found)?,
        (_, true) => output::print(table_of_values(&found)),
        _ => {
            let report = text::Report {
                paths: [&args.a, &args.b].map(|path| printable(path.as_str()).into_owned()),
                columns: terminal::stdout_columns(),
                shows_all: args.all,
            };
            print_report(&report.text(&found));
        }
    }
    Ok(match args.exit_code && !found.identical {
        true => ExitCode::Different,
        false => ExitCode::Ok,
    })
}

/// The columns of the CSV for each pack.
const SIDE_COLUMNS: [&str; 7] = [
    "shape",
    "dtype",
    "bits",
    "bits_per_weight",
    "rank",
    "step",
    "sha256",
];
/// The columns of the CSV for the error.
const ERROR_COLUMNS: [&str; 7] = [
    "values",
    "differing",
    "relative_squared_error",
    "signal_to_noise_db",
    "root_mean_square_error",
    "max_absolute_error",
    "cosine",
];

/// The tensors as CSV. A number that does not exist is an empty field.
fn table_of_values(found: &PackDiff) -> String {
    let mut header: Vec<String> = ["tensor", "layer", "outcome"].map(str::to_owned).to_vec();
    for side in ["a", "b"] {
        header.extend(SIDE_COLUMNS.map(|column| format!("{column}_{side}")));
    }
    header.extend(ERROR_COLUMNS.map(str::to_owned));
    let mut text = csv::line(header.iter().map(String::as_str));
    for tensor in &found.tensors {
        let fields = fields(tensor);
        text.push_str(&csv::line(fields.iter().map(String::as_str)));
    }
    text
}

fn fields(tensor: &TensorDiff) -> Vec<String> {
    let mut fields = vec![
        tensor.name.clone(),
        or_empty(tensor.layer),
        text::outcome(tensor.outcome).replace(' ', "_"),
    ];
    for side in [&tensor.a, &tensor.b] {
        fields.extend(match side {
            Some(side) => side_fields(side),
            None => [const { String::new() }; 7],
        });
    }
    fields.extend(match &tensor.error {
        Some(error) => [
            error.values.to_string(),
            error.differing.to_string(),
            or_empty(error.relative_squared_error),
            or_empty(error.signal_to_noise_db),
            error.root_mean_square_error.to_string(),
            error.max_absolute_error.to_string(),
            or_empty(error.cosine),
        ],
        None => [const { String::new() }; 7],
    });
    fields
}

fn side_fields(side: &TensorSide) -> [String; 7] {
    [
        text::shape(&side.shape),
        side.dtype
            .map_or_else(String::new, |dtype| format!("{dtype:?}")),
        side.bits.to_string(),
        side.bits_per_weight.to_string(),
        or_empty(side.rank),
        or_empty(side.step),
        side.sha256.to_string(),
    ]
}

fn or_empty(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}
