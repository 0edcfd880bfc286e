//! External inputs: hashed in parallel when a run is planned, compared by size and time when it is resumed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8PathBuf;
use uc_store::plan::{External, ExternalFile, Plan};
use uc_store::{ExitCode, StoreError, source};

use crate::plan::model::Model;
use crate::report::failure::failure;
use crate::report::progress::Display;

/// Files that are hashed at the same time, at most: more readers do not make a disk faster.
const MAX_READERS: usize = 8;

/// Hashes the files of an input; those that `known` lists with the same size and time are not hashed again.
pub fn describe(
    label: &str,
    paths: &[Utf8PathBuf],
    known: &External,
    threads: u32,
    display: &Display,
) -> anyhow::Result<External> {
    let size = |path: &Utf8PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let task = display.task(&format!("hashing {label}"), paths.iter().map(size).sum());
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Result<External, StoreError>>> = Mutex::default();
    let readers = paths.len().min(threads as usize).clamp(1, MAX_READERS);
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(index) else { return };
                    let result = source::refresh(known, std::slice::from_ref(path));
                    task.advance(size(path));
                    let mut results = results.lock().unwrap_or_else(|e| e.into_inner());
                    results.insert(index, result);
                }
            });
        }
    });
    task.finish();
    let mut files = Vec::with_capacity(paths.len());
    let results = results
        .into_inner()
        .unwrap_or_else(|error| error.into_inner());
    for result in results.into_values() {
        files.extend(result?.files);
    }
    Ok(source::external(files))
}

/// Describes the files of a model: local files by their bytes, shards that are still on the Hub by the size and digest that
/// the Hub states. A fetched shard is compared with them.
pub fn describe_model(
    model: &Model,
    known: &External,
    threads: u32,
    display: &Display,
) -> anyhow::Result<External> {
    let remote = |path: &Utf8PathBuf| path.file_name().and_then(|name| model.remote.get(name));
    let local: Vec<_> = model
        .files
        .iter()
        .filter(|path| remote(path).is_none())
        .cloned()
        .collect();
    let mut described = describe("the model", &local, known, threads, display)?
        .files
        .into_iter();
    let mut files = Vec::with_capacity(model.files.len());
    for path in &model.files {
        let name = path.file_name().unwrap_or_default();
        files.extend(match remote(path) {
            None => described.next(),
            Some(shard) => Some(ExternalFile {
                path: path.clone(),
                size: shard.size,
                sha256: shard.sha256,
                mtime_ns: 0,
                shard: model.shards.get(name).cloned(),
            }),
        });
    }
    Ok(source::external(files))
}

/// A placeholder for an input whose files are not known yet.
pub fn unknown() -> External {
    source::external(Vec::new())
}

/// Compares the external inputs of a plan with the files on disk again; returns a line per change.
///
/// # Errors
/// If the model itself changed. A missing file is not an error as long as no job needs it.
pub fn refresh(plan: &mut Plan, threads: u32, display: &Display) -> anyhow::Result<Vec<String>> {
    let mut changed = Vec::new();
    for (name, known) in plan.externals.clone() {
        // Shards that are fetched on demand are verified when they arrive.
        let is_local = |file: &&ExternalFile| file.shard.is_none();
        let paths: Vec<_> = known
            .files
            .iter()
            .filter(is_local)
            .map(|file| file.path.clone())
            .collect();
        if let Some(missing) = paths.iter().find(|path| !path.exists()) {
            display.warn(&format!(
                "{missing} is missing; jobs that read it will fail"
            ));
            continue;
        }
        let mut files = describe(&name, &paths, &known, threads, display)?.files;
        files.extend(known.files.iter().filter(|file| !is_local(file)).cloned());
        files.sort_by_key(|file| known.files.iter().position(|known| known.path == file.path));
        let current = source::external(files);
        if current.digest != known.digest {
            let differing = current.files.iter().zip(&known.files);
            let differing = differing.filter(|(a, b)| a.sha256 != b.sha256);
            let paths: Vec<_> = differing.map(|(file, _)| file.path.to_string()).collect();
            let paths = paths.join(", ");
            if name == "source" {
                let message = format!(
                    "{paths} changed since the run was planned; start a new run with uc compress"
                );
                return Err(failure(ExitCode::BadInput, message));
            }
            changed.push(format!("{name}: {paths} changed"));
        }
        plan.externals.insert(name, current);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::cli::OutputArgs;

    #[test]
    fn files_keep_their_order_whatever_the_number_of_threads() {
        let temporary = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(temporary.path()).expect("utf-8");
        let paths: Vec<_> = (0..20)
            .map(|n| folder.join(format!("{n:02}.txt")))
            .collect();
        for path in &paths {
            uc_store::atomic::write_bytes(path, path.as_str().as_bytes()).expect("written");
        }
        let display = Display::new(OutputArgs {
            quiet: true,
            verbose: 0,
            log_format: Default::default(),
        });
        let one = describe("text", &paths, &unknown(), 1, &display).expect("hashed");
        let many = describe("text", &paths, &unknown(), 8, &display).expect("hashed");
        assert_eq!(one, many);
        let names: Vec<_> = one.files.iter().map(|file| file.path.clone()).collect();
        assert_eq!(names, paths);
        let absent = [folder.join("absent")];
        assert!(describe("text", &absent, &unknown(), 1, &display).is_err());
    }
}
