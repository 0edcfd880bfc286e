//! Mistakes in a plan. Each names the stage or artifact, and what was expected.

use super::ArtifactId;

/// A mistake in a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanProblem {
    /// A reference to an unknown artifact.
    #[error(
        "stage `{stage}` {direction} `{artifact}`, which is neither an artifact nor an external input; known: {known}"
    )]
    UnknownArtifact {
        /// The stage.
        stage: String,
        /// "reads" or "writes".
        direction: &'static str,
        /// The name.
        artifact: String,
        /// The known names.
        known: String,
    },
    /// Two stages write the same artifact.
    #[error(
        "artifact `{artifact}` is written by `{first}` and by `{second}`; expected one producer"
    )]
    TwoProducers {
        /// The artifact.
        artifact: ArtifactId,
        /// One producer.
        first: String,
        /// The other.
        second: String,
    },
    /// No stage writes what another reads.
    #[error("stage `{stage}` reads `{artifact}`, which no stage writes")]
    NoProducer {
        /// The reader.
        stage: String,
        /// The artifact.
        artifact: ArtifactId,
    },
    /// Jobs that wait for each other.
    #[error("stages wait for each other in a cycle: {}", path.join(" -> "))]
    Cycle {
        /// The jobs of the cycle.
        path: Vec<String>,
    },
    /// A reference that does not fit its stage or artifact.
    #[error("stage `{stage}`: `{reference}` does not fit: {reason}")]
    BadReference {
        /// The stage.
        stage: String,
        /// The reference as written.
        reference: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// An unknown section of the settings.
    #[error("stage `{stage}` lists the settings section `{section}`; known: {known}")]
    UnknownSection {
        /// The stage.
        stage: String,
        /// The name.
        section: String,
        /// The known names.
        known: String,
    },
    /// A path template that could leave the run directory, or that is invalid.
    #[error("artifact `{artifact}`: path `{path}`: {reason}")]
    BadPath {
        /// The artifact.
        artifact: String,
        /// The template.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A name that is not allowed.
    #[error("{kind} `{name}`: expected a name of a-z, 0-9 and -, of at most 100 characters")]
    BadName {
        /// "stage" or "artifact".
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A stage without a program.
    #[error("stage `{stage}` has an empty argv; expected a program and its first arguments")]
    NoProgram {
        /// The stage.
        stage: String,
    },
    /// More layers than any model has.
    #[error(
        "the model has {layers} layers; expected at most {}",
        super::MAX_LAYERS
    )]
    TooManyLayers {
        /// The number of layers.
        layers: u32,
    },
    /// Two stages with the same name.
    #[error("stage `{stage}` is defined twice")]
    TwoStages {
        /// The name.
        stage: String,
    },
}
