//! The wire format of `pipeline.toml` and its translation into [`Pipeline`].

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use toml::{Spanned, Value};
use uc_settings::Settings;
use uc_store::plan::{Artifact, ArtifactRef, Per, Weights};

use super::descriptions::{ANY_FILE, FILE_NAME};
use super::locate;
use super::memory::{self, Memory};
use super::spec::{ArtifactSpec, Condition, Cpus, Pipeline, StageSpec};

use crate::report::failure::PipelineError;

/// The version of `pipeline.toml` that this program reads.
const VERSION: u32 = 2;
/// Retries of a failed job unless the stage sets its own number.
const DEFAULT_RETRIES: u32 = 2;
/// More retries than this are rejected as a mistake.
const MAX_RETRIES: u32 = 100;
/// Seconds without an event after which a job counts as stalled, unless the stage sets its own limit.
const DEFAULT_STALL_TIMEOUT: u64 = 2 * 60 * 60;
/// More cores than this are rejected as a mistake.
const MAX_CPUS: i64 = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: Spanned<u32>,
    #[serde(default)]
    settings: BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, Spanned<Value>>>,
    #[serde(default)]
    artifact: BTreeMap<Spanned<String>, WireArtifact>,
    stage: BTreeMap<Spanned<String>, WireStage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireArtifact {
    path: Spanned<String>,
    temporary: bool,
    source_file: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireStage {
    argv: Spanned<Vec<String>>,
    per: Per,
    #[serde(default)]
    reads: Vec<Spanned<ArtifactRef>>,
    #[serde(default)]
    reads_if_made: Vec<Spanned<ArtifactRef>>,
    writes: Vec<Spanned<ArtifactRef>>,
    #[serde(default)]
    settings: Vec<Spanned<String>>,
    cpus: Option<Spanned<Value>>,
    memory: Option<Spanned<String>>,
    max_lead: Option<u32>,
    #[serde(default)]
    optional: bool,
    unless: Option<Spanned<String>>,
    retries: Option<Spanned<u32>>,
    stall_timeout: Option<Spanned<String>>,
    weights: Option<Spanned<Weights>>,
}

/// Parses the text; references between stages are checked by the caller.
pub fn parse(file: &str, text: &str) -> Result<Pipeline, PipelineError> {
    let fail = |at: usize, message: String| locate::error(file, text, at, message);
    check_version(text).map_err(|(at, message)| PipelineError {
        key: "version".into(),
        ..fail(at, message)
    })?;
    let wire: Wire = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        // One line: the parser breaks long messages.
        fail(at, error.message().trim().replace('\n', ", "))
    })?;
    debug_assert_eq!(*wire.version.get_ref(), VERSION);
    let settings = settings(&wire.settings).map_err(|(at, message)| fail(at, message))?;
    let mut artifacts = BTreeMap::new();
    for (name, artifact) in wire.artifact {
        check_name(&name).map_err(|(at, message)| fail(at, message))?;
        let spec = artifact_spec(artifact).map_err(|(at, message)| fail(at, message))?;
        artifacts.insert(name.into_inner(), spec);
    }
    let mut stages = Vec::new();
    for (name, stage) in wire.stage {
        check_name(&name).map_err(|(at, message)| fail(at, message))?;
        stages.push(stage_spec(name, stage).map_err(|(at, message)| fail(at, message))?);
    }
    if stages.is_empty() {
        return Err(fail(0, "found no stage, expected at least one".into()));
    }
    stages.sort_by_key(|stage| stage.name.span().start);
    Ok(Pipeline {
        file: file.into(),
        text: text.into(),
        settings,
        artifacts,
        stages,
    })
}

/// A mistake that is not located yet: byte offset and message.
type Mistake = (usize, String);

/// Checks the version first: a newer file may have keys that this program does not know.
fn check_version(text: &str) -> Result<(), Mistake> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: Option<Spanned<u32>>,
    }
    match toml::from_str::<VersionOnly>(text) {
        Ok(VersionOnly { version: None }) => {
            Err((0, format!("found none, expected version = {VERSION}")))
        }
        Ok(VersionOnly {
            version: Some(found),
        }) if *found.get_ref() != VERSION => Err((
            found.span().start,
            format!("found version {found}, this program reads version {VERSION}"),
        )),
        // The full type reports any other mistake better.
        _ => Ok(()),
    }
}

/// Applies the file's settings to the defaults.
fn settings(
    tables: &BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, Spanned<Value>>>,
) -> Result<Settings, Mistake> {
    let mut settings = Settings::default();
    for (section, fields) in tables {
        if !Settings::SECTIONS.contains(&section.get_ref().as_str()) {
            let message = format!(
                "unknown section `{section}`, expected one of {}",
                Settings::SECTIONS.join(", ")
            );
            return Err((section.span().start, message));
        }
        for (field, value) in fields {
            let text = match value.get_ref() {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            settings
                .set(&format!("{section}.{field}"), &text)
                .map_err(|error| (field.span().start, error.to_string()))?;
        }
    }
    Ok(settings)
}

/// Checks a name: names become folders and parts of messages.
fn check_name(name: &Spanned<String>) -> Result<(), Mistake> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.get_ref().is_empty() || !name.get_ref().chars().all(is_allowed) {
        let message = format!("found the name `{name}`, expected a-z, 0-9 and -");
        return Err((name.span().start, message));
    }
    Ok(())
}

fn artifact_spec(wire: WireArtifact) -> Result<ArtifactSpec, Mistake> {
    if let Some(file) = &wire.source_file
        && (file.get_ref().is_empty() || file.get_ref().contains('/'))
    {
        let message = format!("found `{file}`, expected the name of a file in the model's folder");
        return Err((file.span().start, message));
    }
    let is_any = wire
        .source_file
        .as_ref()
        .is_some_and(|file| file.get_ref() == ANY_FILE);
    if is_any != wire.path.get_ref().contains(FILE_NAME) {
        let message = format!(
            "found `{}`, expected {FILE_NAME} with source_file = \"{ANY_FILE}\" and only with it",
            wire.path.get_ref()
        );
        return Err((wire.path.span().start, message));
    }
    Ok(ArtifactSpec {
        path_at: wire.path.span().start,
        artifact: Artifact {
            path: wire.path.into_inner(),
            temporary: wire.temporary,
        },
        source_file: wire.source_file.map(Spanned::into_inner),
    })
}

fn stage_spec(name: Spanned<String>, wire: WireStage) -> Result<StageSpec, Mistake> {
    if wire.argv.get_ref().first().is_none_or(String::is_empty) {
        let message = "found no program, expected its name first".into();
        return Err((wire.argv.span().start, message));
    }
    for list in [&wire.reads, &wire.reads_if_made, &wire.writes] {
        let mut seen = BTreeSet::new();
        for reference in list {
            if !seen.insert(reference.get_ref()) {
                let message = format!("`{}` is listed twice", reference.get_ref());
                return Err((reference.span().start, message));
            }
        }
    }
    if let Some(write) = wire.writes.first().filter(|_| wire.per == Per::Shard) {
        let message = format!(
            "found `{}`, expected nothing: a stage per shard downloads files of the source",
            write.get_ref()
        );
        return Err((write.span().start, message));
    }
    if let Some(weights) = &wire.weights {
        let mismatch = match (weights.get_ref(), wire.per) {
            (Weights::Layer, Per::Layer) | (Weights::NonLayer, Per::Run) => None,
            (Weights::Layer, _) => Some("found \"layer\" in a stage that is not per layer"),
            (Weights::NonLayer, _) => Some("found \"non-layer\" in a stage that is not per run"),
        };
        if let Some(mismatch) = mismatch {
            let message =
                format!("{mismatch}, expected \"layer\" per layer, \"non-layer\" per run");
            return Err((weights.span().start, message));
        }
    }
    let retries = match &wire.retries {
        None => DEFAULT_RETRIES,
        Some(retries) if *retries.get_ref() <= MAX_RETRIES => *retries.get_ref(),
        Some(retries) => {
            let message = format!("found {retries}, expected 0 to {MAX_RETRIES}");
            return Err((retries.span().start, message));
        }
    };
    Ok(StageSpec {
        cpus: wire.cpus.as_ref().map_or(Ok(Cpus::Count(1)), cpus)?,
        memory: wire.memory.as_ref().map_or(Ok(Memory::default()), memory)?,
        declared_memory: wire.memory.map(Spanned::into_inner),
        stall_timeout: match &wire.stall_timeout {
            None => DEFAULT_STALL_TIMEOUT,
            Some(timeout) => duration(timeout)?,
        },
        unless: wire.unless.as_ref().map(condition).transpose()?,
        name,
        argv: wire.argv,
        per: wire.per,
        reads: wire.reads,
        reads_if_made: wire.reads_if_made,
        writes: wire.writes,
        settings: wire.settings,
        max_lead: wire.max_lead,
        optional: wire.optional,
        weights: wire.weights.map(Spanned::into_inner),
        retries,
    })
}

/// Parses `section.key=value`.
fn condition(text: &Spanned<String>) -> Result<Condition, Mistake> {
    let parts = text.get_ref().split_once('=');
    let known = parts.filter(|(key, _)| Settings::keys().iter().any(|known| known == key));
    let Some((key, value)) = known else {
        let keys = Settings::keys().join(", ");
        let message =
            format!("found \"{text}\", expected \"key=value\" with one of the keys {keys}");
        return Err((text.span().start, message));
    };
    Settings::default()
        .set(key, value)
        .map_err(|error| (text.span().start, error.to_string()))?;
    Ok(Condition {
        key: key.into(),
        value: value.into(),
    })
}

fn cpus(value: &Spanned<Value>) -> Result<Cpus, Mistake> {
    let refuse = || {
        let found = value.get_ref();
        let message = format!("found {found}, expected 0 to {MAX_CPUS} or a share such as \"50%\"");
        (value.span().start, message)
    };
    match value.get_ref() {
        Value::Integer(0) => Ok(Cpus::All),
        Value::Integer(count @ 1..=MAX_CPUS) => Ok(Cpus::Count(*count as u32)),
        Value::String(text) => text
            .strip_suffix('%')
            .and_then(|percent| percent.parse().ok())
            .filter(|percent| (0..=100).contains(percent))
            .map(Cpus::Percent)
            .ok_or_else(refuse),
        _ => Err(refuse()),
    }
}

fn memory(value: &Spanned<String>) -> Result<Memory, Mistake> {
    Memory::parse(value.get_ref()).map_err(|term| {
        let message = format!("found \"{term}\", expected {}", memory::FORMS);
        (value.span().start, message)
    })
}

fn duration(value: &Spanned<String>) -> Result<u64, Mistake> {
    humantime::parse_duration(value.get_ref())
        .map(|duration| duration.as_secs())
        .map_err(|error| {
            let message = format!("found \"{value}\" ({error}), expected \"30m\" or \"2h\"");
            (value.span().start, message)
        })
}
