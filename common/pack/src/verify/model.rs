//! Comparison of the manifest with the model that config.json describes.

use std::path::Path;

use serde::Deserialize;

use super::Severity;
use super::findings::FindingLog;
use crate::check::check_equal;
use crate::error::PackError;
use crate::manifest::{Manifest, read_bounded};
use crate::{CONFIG_FILE, MANIFEST_FILE, planned};

/// Longest config.json that is compared with the manifest, bytes. Parsed JSON takes up to 16 times its bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// Compares the number of layers and, if the caller can plan a model, the tensors.
pub(super) fn compare(
    dir: &Path,
    manifest: &Manifest,
    planner: Option<&planned::Planner>,
    log: &mut FindingLog,
) {
    let path = dir.join(MANIFEST_FILE);
    let origin = path.display().to_string();
    // The number of layers comes first: the plan of a configuration with another number could be large.
    let counted = log.record(None, check_layer_count(dir, manifest));
    if let (Some(()), Some(planner)) = (counted, planner) {
        compare_with_plan(dir, manifest, planner, &origin, log);
    }
}

/// Compares the manifest with the tensors that config.json requires.
fn compare_with_plan(
    dir: &Path,
    manifest: &Manifest,
    planner: &planned::Planner,
    origin: &str,
    log: &mut FindingLog,
) {
    let config = dir.join(CONFIG_FILE);
    let Some(text) = log.record(None, read_bounded(&config, MAX_CONFIG)) else {
        return;
    };
    match planner(&text, &manifest.name_search()) {
        Ok(plan) => {
            for error in planned::compare(manifest, plan.as_ref(), origin) {
                log.add_error(None, &error);
            }
        }
        Err(message) => {
            let message = format!("cannot compare the tensors with those of the model: {message}");
            log.add(Severity::Error, None, &message);
        }
    }
}

/// Compares the number of layers with config.json: a manifest without the last layers would be consistent in itself. A
/// configuration that cannot be read or names the number otherwise is left to the plan.
fn check_layer_count(dir: &Path, manifest: &Manifest) -> Result<(), PackError> {
    let path = dir.join(CONFIG_FILE);
    let origin = path.display().to_string();
    let Ok(text) = read_bounded(&path, MAX_CONFIG) else {
        return Ok(());
    };
    let config = serde_json::from_slice::<LayerCount>(&text);
    let Some(expected) = config.ok().and_then(|config| config.num_hidden_layers) else {
        return Ok(());
    };
    let found = manifest.layers.len() as u64;
    let what = "layers of the manifest, compared with num_hidden_layers";
    check_equal(&origin, what, found, expected)
}

/// The number of layers in a config.json. The other keys are skipped, whatever their size.
#[derive(Deserialize)]
struct LayerCount {
    num_hidden_layers: Option<u64>,
}
