//! The settings of a run: what determines a pack and its evaluation, and where the pack is uploaded.
//!
//! Every setting is declared once, in the module `declaration`: its type, default, allowed values, meaning and example.
//! The struct, its validation, the `[settings.*]` tables of `pipeline.toml` and the reference page `docs/settings.md` are
//! generated from the declaration. A new setting requires only its declaration and the code that uses it.
//!
//! Sections are named in `pipeline.toml` (`[settings.quantize]`) and on the command line (`--set quantize.bpw=4.5`). Each
//! stage lists the sections that determine its output; their fields enter the key of its receipts. This crate reads no
//! file and knows nothing of stages, models or codecs.

mod access;
mod choices;
mod declaration;
mod field;
mod rank;
mod reference;
mod sections;
mod size;

pub use choices::{AllocationMode, Device, SensitivityStates, SourceRetention};
pub use declaration::{
    AllocationSettings, CalibrationSettings, EvaluationSettings, ModelSettings, OverlaySettings,
    QuantizeSettings, RetentionSettings, Settings, UploadSettings,
};
pub use field::{Allowed, Field, Section, SettingError};
pub use rank::Rank;
pub use reference::{pipeline_tables, reference_page};
pub use size::Size;
