//! `uc export PACK --to FORMAT --out DIR`: the weights of a pack for programs that do not read packs.

use std::fmt::Write;

use camino::Utf8Path;
use serde_json::json;
use uc_export::{ExportError, Format, GgufType, Plan, Progress, Report, Request};
use uc_input::printable;
use uc_pack::Pack;
use uc_store::{ExitCode, output};

use crate::cli::{ExportArgs, ExportFormat, ExportType};
use crate::report::failure::failure;
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;

/// Runs the verb.
pub fn run(args: &ExportArgs, display: &Display) -> anyhow::Result<()> {
    let threads = session::threads(args.threads);
    let format = format(args)?;
    let pack = packs::open(&args.pack)?;
    let request = Request {
        pack: &pack,
        format,
        out: &args.out,
        force: args.force,
        threads: threads as usize,
    };
    // What can be refused without reading the weights is refused first.
    let plan = Plan::new(request).map_err(classify)?;
    for note in plan.notes() {
        display.warn(&printable(note));
    }
    if args.dry_run {
        return show_plan(&plan, &pack, args.json);
    }
    // The pack is still the one that was opened.
    let expected = args.expect.unwrap_or(pack.fingerprint());
    packs::require_verified(&args.pack, threads, Some(expected), display)?;
    let report = write(&plan, "exporting", display)?;
    match args.json {
        true => print_json(&report),
        false => {
            output::print(text(&args.out, format, &report));
            Ok(())
        }
    }
}

/// The format of the command line.
fn format(args: &ExportArgs) -> anyhow::Result<Format> {
    match (args.to, args.element_type) {
        (ExportFormat::Safetensors, None) => Ok(Format::Safetensors),
        (ExportFormat::Safetensors, Some(_)) => {
            let message = "--type: safetensors are written in bf16, as the pack reconstructs them; only --to gguf has types";
            Err(failure(ExitCode::Usage, message))
        }
        (ExportFormat::Gguf, element) => Ok(Format::Gguf(match element {
            None | Some(ExportType::Bf16) => GgufType::Bf16,
            Some(ExportType::F16) => GgufType::F16,
            Some(ExportType::F32) => GgufType::F32,
            Some(ExportType::Q8_0) => GgufType::Q8_0,
        })),
    }
}

/// Writes the export, or the rest of it, and gives it its name.
///
/// # Errors
/// Those of the export; a later call continues.
pub fn write(plan: &Plan<'_>, what: &str, display: &Display) -> anyhow::Result<Report> {
    let task = display.task(what, 0);
    let written = plan.write(&|progress: Progress| task.set(progress.done, progress.total));
    let (report, kept) = match written {
        Ok(written) => written,
        Err(error) => {
            task.abandon();
            return Err(classify(error));
        }
    };
    task.finish();
    if kept > 0 {
        display.info(&format!("{kept} bytes were there from an earlier call"));
    }
    plan.publish(&report).map_err(classify)?;
    Ok(report)
}

/// The exit status of an error of the export library.
pub fn classify(error: ExportError) -> anyhow::Error {
    let code = match error {
        ExportError::Pack(error) => return packs::classify(error),
        // Errors of the store and of the system have classes of their own.
        ExportError::Store(error) => return error.into(),
        ExportError::Exists { .. } => ExitCode::Usage,
        ExportError::Config(_) | ExportError::Unsupported { .. } => ExitCode::BadInput,
        ExportError::FreedLayers { .. } => ExitCode::MissingInput,
        ExportError::Digest { .. } | ExportError::Malformed { .. } => ExitCode::Damaged,
    };
    failure(code, error.to_string())
}

/// Prints what would be written.
fn show_plan(plan: &Plan<'_>, pack: &Pack, is_json: bool) -> anyhow::Result<()> {
    let files: Vec<_> = plan.files().collect();
    let total: u64 = files.iter().map(|(_, size)| size).sum();
    if is_json {
        let files = files
            .iter()
            .map(|(name, size)| json!({ "name": name, "size": size }));
        return print_json(&json!({
            "pack_fingerprint": pack.fingerprint(),
            "files": files.collect::<Vec<_>>(),
            "notes": plan.notes(),
            "bytes": total,
        }));
    }
    let mut text = String::new();
    for (name, size) in files {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{size:>16}  {}", printable(name));
    }
    let _ = writeln!(
        text,
        "{total:>16}  in all; nothing was written and the pack was not verified"
    );
    output::print(text);
    Ok(())
}

/// The result as text.
fn text(out: &Utf8Path, format: Format, report: &Report) -> String {
    let mut text = String::new();
    let total: u64 = report.files.iter().map(|file| file.size).sum();
    // Writing to a string cannot fail.
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{}", printable(value));
    };
    row("export", out.as_str());
    row(
        "format",
        &format!("{}, {}", format.name(), format.element_type()),
    );
    row("pack", &report.pack_fingerprint.to_string());
    row(
        "tensors",
        &format!("{}, each compared with the manifest", report.tensors),
    );
    row("files", &format!("{}, {total} bytes", report.files.len()));
    text
}
