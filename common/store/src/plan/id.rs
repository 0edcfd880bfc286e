//! Names of the parts of a run: units, jobs, artifacts and references to them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which layer of an artifact a stage refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// `name`: the layer of the job; from a per-run stage, every layer.
    Same,
    /// `name+1`: the layer after that of the job.
    Next,
    /// `name@0`: layer 0.
    First,
    /// `name@last`: the index after the last layer.
    Last,
}

/// A reference to an artifact, as in `pipeline.toml`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactRef {
    /// Name of the artifact or external input.
    pub name: String,
    /// The layer.
    pub which: Which,
}

/// An artifact of one layer, or one that is not per layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ArtifactId {
    /// Artifact name.
    pub name: String,
    /// The layer, for an artifact that is one file per layer.
    pub layer: Option<u32>,
}

/// What one job of a stage works on; the counterpart of [`Per`](crate::plan::Per).
///
/// Serialized as two fields, `layer` and `shard`, of which at most one is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "UnitFields", try_from = "UnitFields")]
pub enum Unit {
    /// The whole run.
    Run,
    /// A layer.
    Layer(u32),
    /// A shard of the source: the position of its file in the external input `source`.
    Shard(u32),
}

/// The serialized form of [`Unit`].
#[derive(Serialize, Deserialize)]
struct UnitFields {
    layer: Option<u32>,
    shard: Option<u32>,
}

/// A job: one stage on one unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// Stage name.
    pub stage: String,
    /// What the job works on.
    pub unit: Unit,
}

impl From<Unit> for UnitFields {
    fn from(unit: Unit) -> Self {
        Self {
            layer: unit.layer(),
            shard: unit.shard(),
        }
    }
}

impl TryFrom<UnitFields> for Unit {
    type Error = String;

    fn try_from(fields: UnitFields) -> Result<Self, String> {
        match (fields.layer, fields.shard) {
            (None, None) => Ok(Unit::Run),
            (Some(layer), None) => Ok(Unit::Layer(layer)),
            (None, Some(shard)) => Ok(Unit::Shard(shard)),
            (Some(layer), Some(shard)) => Err(format!(
                "found layer {layer} and shard {shard}, expected one of them"
            )),
        }
    }
}

impl Unit {
    /// The layer, if the unit is one.
    pub fn layer(self) -> Option<u32> {
        match self {
            Unit::Layer(layer) => Some(layer),
            Unit::Run | Unit::Shard(_) => None,
        }
    }

    /// The shard, if the unit is one.
    pub fn shard(self) -> Option<u32> {
        match self {
            Unit::Shard(shard) => Some(shard),
            Unit::Run | Unit::Layer(_) => None,
        }
    }

    /// The name of files and folders that belong to the unit: `run`, or the number in three digits.
    pub fn file_name(self) -> String {
        match self {
            Unit::Run => "run".into(),
            Unit::Layer(number) | Unit::Shard(number) => format!("{number:03}"),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Run => f.write_str("the run"),
            Unit::Layer(layer) => write!(f, "layer {layer}"),
            Unit::Shard(shard) => write!(f, "shard {shard}"),
        }
    }
}

impl fmt::Display for ArtifactRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.which {
            Which::Same => "",
            Which::Next => "+1",
            Which::First => "@0",
            Which::Last => "@last",
        };
        write!(f, "{}{suffix}", self.name)
    }
}

impl FromStr for ArtifactRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, which) = if let Some(name) = text.strip_suffix("+1") {
            (name, Which::Next)
        } else if let Some(name) = text.strip_suffix("@0") {
            (name, Which::First)
        } else if let Some(name) = text.strip_suffix("@last") {
            (name, Which::Last)
        } else {
            (text, Which::Same)
        };
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(is_allowed) {
            return Err(format!(
                "`{text}` is not a reference to an artifact; expected `name`, `name+1`, `name@0` or `name@last` \
                 with a name of a-z, 0-9 and -"
            ));
        }
        Ok(Self {
            name: name.into(),
            which,
        })
    }
}

impl Serialize for ArtifactRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArtifactRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl ArtifactId {
    /// The artifact of a layer.
    pub fn at(name: &str, layer: u32) -> Self {
        Self {
            name: name.into(),
            layer: Some(layer),
        }
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            None => f.write_str(&self.name),
            Some(layer) => write!(f, "{}@{layer:03}", self.name),
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Unit::Run => f.write_str(&self.stage),
            unit => write!(f, "{} of {unit}", self.stage),
        }
    }
}
