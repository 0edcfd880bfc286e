//! Artifacts of which there is one for each file that describes the model: `source_file = "*"` in a pipeline.
//!
//! Turns such an artifact, and the references to it, into one artifact for each file of the model that no other artifact
//! names. Decides nothing about which files these are: `shard-loader` lists them.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use uc_store::plan::{Artifact, ArtifactRef};

use super::spec::{ArtifactSpec, Pipeline};

/// The `source_file` of such an artifact.
pub(super) const ANY_FILE: &str = "*";
/// The part of its path that stands for the file's name.
pub(super) const FILE_NAME: &str = "{file}";
/// Endings of files of a model that are not copied: the weights and their index.
const NOT_COPIED: [&str; 2] = [".safetensors", ".safetensors.index.json"];

impl Pipeline {
    /// The pipeline with one artifact for each of the model's files in place of every artifact for any file. They are
    /// named by number, in the order of the file names.
    pub(super) fn with_descriptions(&self, source_files: &BTreeSet<String>) -> Pipeline {
        let mut pipeline = self.clone();
        let mut named: BTreeSet<String> = self
            .artifacts
            .values()
            .flat_map(|spec| [spec.source_file.clone(), file_name(&spec.artifact.path)])
            .flatten()
            .collect();
        let any: Vec<String> = self
            .artifacts
            .iter()
            .filter(|(_, spec)| spec.source_file.as_deref() == Some(ANY_FILE))
            .map(|(name, _)| name.clone())
            .collect();
        for name in any {
            let Some(spec) = pipeline.artifacts.remove(&name) else {
                continue;
            };
            let is_copied = |file: &&String| {
                !named.contains(*file) && !NOT_COPIED.iter().any(|ending| file.ends_with(ending))
            };
            let files: Vec<String> = source_files.iter().filter(is_copied).cloned().collect();
            let mut copies: BTreeMap<String, ArtifactSpec> = BTreeMap::new();
            for (number, file) in files.iter().enumerate() {
                let artifact = Artifact {
                    path: spec.artifact.path.replace(FILE_NAME, file),
                    temporary: spec.artifact.temporary,
                };
                let source_file = Some(file.clone());
                let copy = ArtifactSpec {
                    artifact,
                    path_at: spec.path_at,
                    source_file,
                };
                copies.insert(format!("{name}-{number:02}"), copy);
            }
            for stage in &mut pipeline.stages {
                for list in [
                    &mut stage.reads,
                    &mut stage.reads_if_made,
                    &mut stage.writes,
                ] {
                    *list = expanded(list, &name, &copies);
                }
            }
            named.extend(files);
            pipeline.artifacts.extend(copies);
        }
        pipeline
    }
}

/// The file name at the end of a path.
fn file_name(path: &str) -> Option<String> {
    path.rsplit('/').next().map(str::to_owned)
}

/// References with those to `name` replaced by references to all copies.
fn expanded(
    list: &[Spanned<ArtifactRef>],
    name: &str,
    copies: &BTreeMap<String, ArtifactSpec>,
) -> Vec<Spanned<ArtifactRef>> {
    list.iter()
        .flat_map(|reference| {
            let which = reference.get_ref().which;
            match reference.get_ref().name == name {
                false => vec![reference.clone()],
                true => copies
                    .keys()
                    .map(|copy| {
                        let copy = ArtifactRef {
                            name: copy.clone(),
                            which,
                        };
                        Spanned::new(reference.span(), copy)
                    })
                    .collect(),
            }
        })
        .collect()
}
