//! What can be wrong with a plan: each mistake names the stage or artifact and what was expected.

use super::ArtifactId;

/// What can be wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanProblem {
    /// A reference to nothing.
    #[error(
        "stage `{stage}` {direction} `{artifact}`, which is neither an artifact nor an outside input; known: {known}"
    )]
    UnknownArtifact {
        /// The stage.
        stage: String,
        /// "reads" or "writes".
        direction: &'static str,
        /// The name.
        artifact: String,
        /// The names there are.
        known: String,
    },
    /// Two stages write the same thing.
    #[error(
        "artifact `{artifact}` is written by `{first}` and by `{second}`; expected one producer"
    )]
    TwoProducers {
        /// The artifact instance.
        artifact: ArtifactId,
        /// One producer.
        first: String,
        /// The other.
        second: String,
    },
    /// Nobody writes what is read.
    #[error("stage `{stage}` reads `{artifact}`, which no stage writes")]
    NoProducer {
        /// The reader.
        stage: String,
        /// The artifact instance.
        artifact: ArtifactId,
    },
    /// A job that would wait for itself.
    #[error("stages wait for each other in a circle: {}", path.join(" -> "))]
    Cycle {
        /// The jobs of the circle.
        path: Vec<String>,
    },
    /// A reference whose form does not fit stage or artifact.
    #[error("stage `{stage}`: `{reference}` does not fit: {why}")]
    BadReference {
        /// The stage.
        stage: String,
        /// The reference as written.
        reference: String,
        /// What does not fit.
        why: &'static str,
    },
    /// A section of the settings that does not exist.
    #[error("stage `{stage}` lists the settings section `{section}`; known: {known}")]
    UnknownSection {
        /// The stage.
        stage: String,
        /// The name.
        section: String,
        /// The names there are.
        known: String,
    },
    /// A path template that could leave the run directory or is otherwise unusable.
    #[error("artifact `{artifact}`: path `{path}`: {why}")]
    BadPath {
        /// The artifact.
        artifact: String,
        /// The template.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Two stages of one name.
    #[error("stage `{stage}` is defined twice")]
    TwoStages {
        /// The name.
        stage: String,
    },
}
