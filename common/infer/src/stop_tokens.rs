//! The tokens with which a model ends a text, from the pack's descriptions.

use serde::Deserialize;
use uc_pack::{CONFIG_FILE, Pack};

use crate::error::InferError;
use crate::load::{self, Checks};

/// The file that names them; without it, the model's own configuration does.
const GENERATION_CONFIG: &str = "generation_config.json";

#[derive(Default, Deserialize)]
struct Description {
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

/// One token or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

/// The tokens that end a text: those of `generation_config.json`, or else of `config.json`.
///
/// # Errors
/// Those of [`load::file`], [`InferError::Description`].
pub fn stop_tokens(pack: &Pack, checks: Checks) -> Result<Vec<u32>, InferError> {
    let files = &pack.manifest().files;
    for name in [GENERATION_CONFIG, CONFIG_FILE] {
        if !files.iter().any(|file| file.name == name) {
            continue;
        }
        let bytes = load::file(pack, name, checks)?;
        let description: Description =
            serde_json::from_slice(&bytes).map_err(|source| InferError::Description {
                path: pack.path(name),
                source,
            })?;
        match description.eos_token_id {
            Some(Ids::One(id)) => return Ok(vec![id]),
            Some(Ids::Several(ids)) => return Ok(ids),
            None => {}
        }
    }
    Ok(Vec::new())
}
