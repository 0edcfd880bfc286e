//! Checks that the texts generated from the declaration of the settings are up to date in the repository.
//!
//! `UPDATE_SETTINGS=1 cargo test -p uc-settings --test generated_text` regenerates them.
#![allow(clippy::disallowed_methods)] // a test that rewrites its expected files on request

use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a file with its expected content. With `UPDATE_SETTINGS` set, rewrites it instead.
fn check(path: &Path, expected: &str) {
    let actual = std::fs::read_to_string(path).unwrap_or_default();
    if actual == expected {
        return;
    }
    if std::env::var_os("UPDATE_SETTINGS").is_some() {
        return std::fs::write(path, expected).expect("written");
    }
    panic!(
        "{} differs from the declaration of the settings; \
         UPDATE_SETTINGS=1 cargo test -p uc-settings --test generated_text regenerates it",
        path.display()
    );
}

#[test]
fn pipeline_toml_holds_every_setting_with_its_default_and_meaning() {
    let path = repository().join("pipeline.toml");
    let text = std::fs::read_to_string(&path).expect("pipeline.toml");
    // Lines of dashes enclose the heading of each part; the tables follow the first heading.
    let rule = format!("# {}\n", "-".repeat(117));
    let mut parts: Vec<&str> = text.split(&rule).collect();
    assert!(parts[1].starts_with("# Settings"), "{}", parts[1]);
    let tables = format!("\n{}", uc_settings::pipeline_tables());
    parts[2] = &tables;
    check(&path, &parts.join(&rule));
}

#[test]
fn the_reference_page_describes_every_setting() {
    let path = repository().join("docs/settings.md");
    check(&path, &uc_settings::reference_page());
}
