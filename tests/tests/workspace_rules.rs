//! The rules of the house that a machine can check: who may use whom, and that every file says what it is for.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The project's crates that each crate may use. A stage never uses a stage.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let of = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let every = of(&[
        "uc-settings",
        "uc-store",
        "uc-codec",
        "uc-pack",
        "uc-model",
        "uc-layer-quantizer",
    ]);
    // The network is for the stages that load and upload, and for nobody else.
    let mut with_hub = every.clone();
    with_hub.insert("uc-hub");
    let mut rules = BTreeMap::from([
        ("uc-settings", of(&[])),
        ("uc-store", of(&["uc-settings"])),
        ("uc-simd", of(&[])),
        ("uc-codec", of(&["uc-simd"])),
        ("uc-model", of(&["uc-settings", "uc-simd"])),
        ("uc-hub", of(&["uc-store"])),
        ("uc-fake-hub", of(&[])),
        ("uc-pack", of(&["uc-codec"])),
        (
            "uc-layer-quantizer",
            of(&["uc-settings", "uc-store", "uc-codec", "uc-pack", "uc-model"]),
        ),
        ("uc", of(&["uc-settings", "uc-store", "uc-pack"])),
        ("uc-examples", every.clone()),
        ("uc-tests", of(&[])),
    ]);
    for stage in [
        "teacher-cache",
        "quantize",
        "overlay-fit",
        "pack-writer",
        "evaluator",
    ] {
        rules.insert(stage, every.clone());
    }
    for stage in ["shard-loader", "hub-upload"] {
        rules.insert(stage, with_hub.clone());
    }
    rules
}

#[test]
fn crates_use_only_whom_they_may() {
    let manifest = uc_tests::repository().join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let members: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let rules = allowed();
    assert_eq!(
        members,
        rules.keys().map(ToString::to_string).collect(),
        "a crate without a rule"
    );
    for package in metadata.workspace_packages() {
        let used = package
            .dependencies
            .iter()
            .filter(|d| d.kind == DependencyKind::Normal);
        for dependency in used.filter(|d| members.contains(&d.name)) {
            let may = rules[package.name.as_str()].contains(dependency.name.as_str());
            assert!(may, "{} must not use {}", package.name, dependency.name);
        }
        let burns = package
            .dependencies
            .iter()
            .any(|d| d.name.starts_with("burn"));
        let light = ["uc-store", "uc-simd", "uc-codec", "uc-pack", "uc-hub", "uc"]
            .contains(&package.name.as_str());
        assert!(
            !(burns && light),
            "{} must build without burn",
            package.name
        );
    }
}

fn rust_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_opens_by_saying_what_it_is_for_and_stays_readable() {
    let mut files = Vec::new();
    rust_files(&uc_tests::repository(), &mut files);
    assert!(files.len() > 50);
    for path in files {
        let text = std::fs::read_to_string(&path).expect("text");
        let is_tests = path.ends_with("tests.rs"); // a test module stands under the header of its file
        assert!(
            is_tests || text.starts_with("//!"),
            "{} has no //! header",
            path.display()
        );
        let lines = text.lines().count();
        assert!(lines <= 800, "{} has {lines} lines", path.display());
    }
}

#[test]
fn the_top_level_holds_what_the_house_plan_names() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "stages",
        "pipeline.toml",
        "common",
        "tests",
        "examples",
        "docs",
        "Makefile",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "clippy.toml",
        "deny.toml",
        "rustfmt.toml",
        "target",
        "runs",
        "models",
    ];
    for entry in std::fs::read_dir(uc_tests::repository())
        .expect("root")
        .flatten()
    {
        let name = entry.file_name().into_string().expect("UTF-8");
        assert!(
            name.starts_with('.') || known.contains(&name.as_str()),
            "{name} at the top level"
        );
    }
}
