//! Workspace rules that a machine can check: which crate may use which, file headers, the length of files and functions,
//! and the names at the top level.
//!
//! Lints and formatting are not checked here; `make lint` does that.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Most lines of a Rust file.
const MAX_FILE_LINES: usize = 600;

/// Most lines of a function, from the line with its name to its closing brace.
const MAX_FUNCTION_LINES: usize = 80;

type Crates = BTreeSet<&'static str>;

/// The workspace crates that each crate may use. A stage never uses another stage.
fn allowed_dependencies() -> BTreeMap<&'static str, Crates> {
    let crates = |names: &'static str| names.split_whitespace().collect::<Crates>();
    let libraries =
        crates("uc-input uc-settings uc-store uc-codec uc-pack uc-model uc-layer-quantizer");
    // Only the stages that download and upload may use the network.
    let mut libraries_and_hub = libraries.clone();
    libraries_and_hub.insert("uc-hub");
    let mut rules = BTreeMap::from([
        ("uc-simd", crates("")),
        ("uc-input", crates("")),
        ("uc-settings", crates("")),
        ("uc-store", crates("uc-input uc-settings")),
        ("uc-codec", crates("uc-simd")),
        ("uc-model", crates("uc-input uc-settings uc-simd")),
        ("uc-hub", crates("uc-input uc-store")),
        ("uc-export", crates("uc-input uc-store uc-pack uc-model")),
        ("uc-fake-hub", crates("")),
        ("uc-pack", crates("uc-codec uc-input")),
        ("ucpack", crates("uc-export uc-input uc-pack uc-model")),
        (
            "uc-infer",
            crates("uc-input uc-simd uc-codec uc-pack uc-model"),
        ),
        ("uc-serve", crates("uc-input uc-infer uc-model")),
        (
            "uc-layer-quantizer",
            crates("uc-input uc-settings uc-store uc-codec uc-pack uc-model"),
        ),
        (
            "uc",
            crates(
                "uc-input uc-settings uc-simd uc-store uc-codec uc-pack uc-model uc-export uc-infer uc-serve",
            ),
        ),
        ("uc-examples", &libraries | &crates("uc-infer")),
        ("uc-tests", crates("")),
    ]);
    for stage in [
        "teacher-cache",
        "quantize",
        "overlay-fit",
        "pack-writer",
        "evaluator",
    ] {
        rules.insert(stage, libraries.clone());
    }
    // It also evaluates exports.
    rules
        .get_mut("evaluator")
        .expect("inserted above")
        .insert("uc-export");
    for stage in ["shard-loader", "hub-upload"] {
        rules.insert(stage, libraries_and_hub.clone());
    }
    rules
}

/// Crates that must build without burn, so that verifying a pack stays a small program.
const WITHOUT_BURN: [&str; 12] = [
    "uc-simd",
    "uc-input",
    "uc-settings",
    "uc-store",
    "uc-codec",
    "uc-pack",
    "uc-hub",
    "uc-infer",
    "uc-serve",
    "ucpack",
    "uc-export",
    "uc",
];

#[test]
fn crates_depend_only_on_the_crates_that_the_rules_allow() {
    let metadata = MetadataCommand::new()
        .manifest_path(uc_tests::repository().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let packages = metadata.workspace_packages();
    let members: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let rules = allowed_dependencies();
    for name in &members {
        assert!(
            rules.contains_key(name),
            "crate `{name}` has no entry in allowed_dependencies(): add the crates that it may use"
        );
    }
    for name in rules.keys() {
        assert!(
            members.contains(name),
            "allowed_dependencies() has an entry for `{name}`, which is not a member of the workspace"
        );
    }
    for package in packages {
        let name = package.name.as_str();
        let normal = package
            .dependencies
            .iter()
            .filter(|d| d.kind == DependencyKind::Normal);
        for dependency in normal.filter(|d| members.contains(d.name.as_str())) {
            assert!(
                rules[name].contains(dependency.name.as_str()),
                "crate `{name}` must not depend on `{}`",
                dependency.name
            );
        }
    }
}

#[test]
fn crates_that_verify_packs_build_without_burn() {
    let tree = |package: &str| {
        let output = std::process::Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--edges",
                "normal",
                "--prefix",
                "none",
            ])
            .args(["--package", package])
            .current_dir(uc_tests::repository())
            .output()
            .expect("cargo tree");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            output.status.success() && text.starts_with(package),
            "{text}"
        );
        text
    };
    let uses_burn = |text: &str| text.lines().any(|line| line.starts_with("burn"));
    for package in WITHOUT_BURN {
        assert!(
            !uses_burn(&tree(package)),
            "crate `{package}` must build without burn"
        );
    }
    assert!(
        uses_burn(&tree("uc-model")),
        "the crate with the forward pass uses burn"
    );
}

/// Every Rust file of the repository, with its text.
fn rust_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    collect_rust_files(&uc_tests::repository(), &mut files);
    assert!(files.len() > 50, "only {} files found", files.len());
    files
}

fn collect_rust_files(folder: &Path, files: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            collect_rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("UTF-8 text");
            files.push((path, text));
        }
    }
}

/// Fails with the whole list, so that one run names every violation.
fn assert_none(violations: &[String], rule: &str) {
    assert!(violations.is_empty(), "{rule}:\n{}", violations.join("\n"));
}

#[test]
fn every_file_begins_with_a_header_that_says_what_it_is_for() {
    let without_header = |(path, text): &(PathBuf, String)| {
        // A file of tests is described by the file whose tests it holds.
        let is_test_module = path.ends_with("tests.rs");
        (!is_test_module && !text.starts_with("//!")).then(|| path.display().to_string())
    };
    let violations: Vec<String> = rust_files().iter().filter_map(without_header).collect();
    assert_none(&violations, "files without a `//!` header");
}

#[test]
fn programs_print_only_through_the_one_writer_that_survives_a_closed_pipe() {
    let printing = |(path, text): &(PathBuf, String)| {
        let is_program = |part: &str| path.to_string_lossy().contains(part);
        let is_checked = (is_program("/stages/") || is_program("/common/"))
            && is_program("/src/")
            && !path.ends_with("tests.rs");
        // Tests may print.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let macros = ["println!(", "print!(", "eprintln!(", "eprint!("];
        let line = code.lines().find(|line| {
            macros
                .iter()
                .any(|name| line.trim_start().starts_with(name))
        })?;
        is_checked.then(|| format!("{}: {}", path.display(), line.trim()))
    };
    let violations: Vec<String> = rust_files().iter().filter_map(printing).collect();
    assert_none(&violations, "use uc_store::output instead");
}

#[test]
fn no_file_is_longer_than_600_lines() {
    let too_long = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().count();
        (lines > MAX_FILE_LINES).then(|| format!("{}: {lines} lines", path.display()))
    };
    let violations: Vec<String> = rust_files().iter().filter_map(too_long).collect();
    assert_none(&violations, "files that are too long");
}

/// The functions of a file that rustfmt formatted: line of the name, name, and number of lines.
///
/// A function ends at the first closing brace that is indented like the line with its name; a declaration without a body
/// ends at its semicolon. A line of a string literal can look like such an end, so the count is a lower bound.
fn functions(text: &str) -> Vec<(usize, &str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indentation = line.len() - code.len();
        let Some(name) = function_name(code) else {
            continue;
        };
        let is_end = |line: &&str| {
            line.len() - line.trim_start().len() == indentation
                && (line.trim_start() == "}" || (line.ends_with(';') && !line.contains('{')))
        };
        // A one-line function and a declaration without a body end where they begin.
        let is_single_line = code.ends_with(';') || code.ends_with('}');
        let length = match is_single_line {
            true => 1,
            false => {
                let rest = lines[start + 1..].iter().position(is_end);
                rest.map_or(1, |offset| offset + 2)
            }
        };
        functions.push((start + 1, name, length));
    }
    functions
}

/// The name of the function that a line of code declares, if it declares one.
fn function_name(code: &str) -> Option<&str> {
    let (before, after) = code.split_once("fn ")?;
    let is_modifier = |word: &str| {
        word.starts_with("pub")
            || word.ends_with(')')
            || matches!(
                word,
                "const" | "async" | "unsafe" | "extern" | "\"C\"" | "default"
            )
    };
    let name = after.split(['(', '<']).next()?;
    let is_identifier =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (before.split_whitespace().all(is_modifier) && is_identifier).then_some(name)
}

#[test]
fn no_function_is_longer_than_80_lines() {
    let mut violations = Vec::new();
    for (path, text) in rust_files() {
        for (line, name, length) in functions(&text) {
            if length > MAX_FUNCTION_LINES {
                let place = path.display();
                violations.push(format!("{place}:{line}: fn {name}: {length} lines"));
            }
        }
    }
    assert_none(&violations, "functions that are too long");
}

#[test]
fn the_length_of_a_function_is_counted_from_its_name_to_its_closing_brace() {
    let text = "\
impl A {
    /// fn in_a_comment
    pub(crate) const fn one(&self) -> u8 {
        if true {
            1
        } else {
            2
        }
    }

    fn declared(&self);
    fn short() {}
}

unsafe fn long<T>(
    a: T,
) where
    T: Copy,
{
    let f = |x: fn(u8)| x;
}
";
    let expected = [
        (3, "one", 7),
        (11, "declared", 1),
        (12, "short", 1),
        (15, "long", 7),
    ];
    assert_eq!(functions(text), expected);
}

/// The code of a file without its unit tests, which may write and read what they like.
fn without_tests(text: &str) -> &str {
    let end = text.find("#[cfg(test)]\nmod tests {");
    &text[..end.unwrap_or(text.len())]
}

/// Places of code, outside of tests, that name one of these functions.
fn places_of(functions: &[&str], is_checked: impl Fn(&str) -> bool) -> Vec<String> {
    let mut places = Vec::new();
    for (path, text) in rust_files() {
        let below = path.strip_prefix(uc_tests::repository()).expect("below");
        let name = below.to_str().expect("UTF-8");
        let is_test = ["tests/", "/examples/", "tests.rs", "/benches/"];
        if is_test.iter().any(|part| name.contains(part)) || !is_checked(name) {
            continue;
        }
        for (number, line) in without_tests(&text).lines().enumerate() {
            if functions.iter().any(|function| line.contains(function)) {
                places.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    places
}

#[test]
fn only_the_store_deletes_files() {
    let functions = [
        "fs::remove_file(",
        "fs::remove_dir(",
        "fs::remove_dir_all(",
        "unlinkat(",
    ];
    let in_store = |name: &str| name.contains("common/store/src/atomic");
    let places = places_of(&functions, |name| !in_store(name));
    assert_none(&places, "deletions outside of uc_store::atomic");
    assert!(
        !places_of(&functions, in_store).is_empty(),
        "the rule finds nothing"
    );
}

#[test]
fn files_are_opened_through_the_input_crate() {
    let functions = [
        " File::open(",
        "=File::open(",
        "fs::File::open(",
        "fs::read(",
        "fs::read_to_string(",
    ];
    let is_program = |name: &str| name.starts_with("common/") || name.starts_with("stages/");
    let places = places_of(&functions, |name| {
        is_program(name) && name.contains("/src/") && !name.starts_with("common/input/")
    });
    assert_none(&places, "files that are opened without uc_input");
}

#[test]
fn the_top_level_holds_only_the_names_that_are_listed_here() {
    let allowed = [
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "SECURITY.md",
        "clippy.toml",
        "common",
        "deny.toml",
        "docs",
        "examples",
        "fuzz",
        "models",
        "pipeline.toml",
        "runs",
        "rustfmt.toml",
        "stages",
        "target",
        "tests",
    ];
    for entry in std::fs::read_dir(uc_tests::repository())
        .expect("repository root")
        .flatten()
    {
        let name = entry.file_name().into_string().expect("UTF-8");
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "`{name}` does not belong at the top level; move it into a folder or add it to this list"
        );
    }
}
