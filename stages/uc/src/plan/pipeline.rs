//! `pipeline.toml`: parsed, fully checked, and turned into the plan of a run.
//!
//! There are two types: the wire type describes the syntax of the file, and [`Pipeline`] its checked content. Every
//! mistake is reported before anything starts, with file, line and key. Nothing here starts a process or reads a model's weights.

mod assemble;
mod descriptions;
mod locate;
pub mod memory;
mod spec;
#[cfg(test)]
mod tests;
mod wire;

use anyhow::Context;
use camino::Utf8Path;
use uc_settings::Settings;

use crate::process::programs::Programs;
use crate::report::failure::PipelineError;

pub use assemble::{Goals, Request};
pub use spec::Pipeline;

/// The pipeline that is used unless `--pipeline` names another: the file in the root of the repository.
pub const DEFAULT: &str = include_str!("../../../../pipeline.toml");

/// Name of the embedded pipeline in messages.
const DEFAULT_NAME: &str = "pipeline.toml (built in)";

impl Pipeline {
    /// Reads a file; without a path, the embedded pipeline.
    pub fn load(path: Option<&Utf8Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::parse(DEFAULT_NAME, DEFAULT)?);
        };
        let text = uc_input::read_text(path, uc_input::SMALL_JSON)
            .with_context(|| format!("cannot read the pipeline {path}"))?;
        Ok(Self::parse(path.as_str(), &text)?)
    }

    /// Parses and checks a whole pipeline.
    pub fn parse(file: &str, text: &str) -> Result<Self, PipelineError> {
        let pipeline = wire::parse(file, text)?;
        // Two layers reveal every cycle and every missing producer that more layers would.
        pipeline.assemble(&Request::probe(&pipeline))?;
        Ok(pipeline)
    }

    /// The settings of the file.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Program and first arguments of every stage, with the stage's name.
    pub fn commands(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.stages.iter().map(|stage| {
            (
                stage.name.get_ref().as_str(),
                stage.argv.get_ref().as_slice(),
            )
        })
    }

    /// Checks that the program of every stage exists.
    pub fn check_programs(&self, programs: &Programs) -> anyhow::Result<()> {
        for (stage, argv) in self.commands() {
            programs
                .find(&argv[0])
                .map_err(|message| self.argv_error(stage, message))?;
        }
        Ok(())
    }

    /// A mistake in the command line of a stage.
    fn argv_error(&self, stage: &str, message: String) -> PipelineError {
        let at = self
            .stages
            .iter()
            .find(|spec| spec.name.get_ref() == stage)
            .map_or(0, |spec| spec.argv.span().start);
        self.error(at, message)
    }
}
