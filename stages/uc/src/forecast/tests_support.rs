//! A model and its plan for unit tests of other modules.

use super::*;

/// The model of the first measured run.
pub fn measured_model() -> ModelSummary {
    let mut runs = Measurements::embedded().expect("embedded").runs;
    runs.swap_remove(0).model
}

/// The plan of the built-in pipeline for a model with some settings.
pub fn plan_of(model: &ModelSummary, settings: &[(&str, &str)]) -> Plan {
    let pipeline = Pipeline::load(None).expect("built in");
    let mut chosen = pipeline.settings().clone();
    for (key, value) in settings {
        chosen.set(key, value).expect(key);
    }
    plan_without_files(model, &[], &pipeline, &chosen, 2).expect("a plan")
}
