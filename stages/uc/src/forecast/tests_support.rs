//! A model and its plan for unit tests of other modules.

use uc_store::model_summary::{InputGroup, LayerGroup, LinearGroup};

use super::*;

/// The model of the first measured run.
pub fn measured_model() -> ModelSummary {
    let mut runs = Measurements::embedded().expect("embedded").runs;
    runs.swap_remove(0).model
}

/// Two layers with 2 attention heads of width 4 and one linear [16, 8], and with 4 experts that have one linear [8, 32] each. Every
/// token is routed to one expert.
pub fn group_with_experts() -> LayerGroup {
    let linear = |name: &str, rows, cols, count, routed| LinearGroup {
        name: name.into(),
        rows,
        cols,
        count,
        routed,
    };
    let input = |width, count, routed| InputGroup {
        width,
        count,
        routed,
    };
    LayerGroup {
        layers: vec![0, 1],
        experts: 4,
        experts_per_token: 1,
        linears: vec![linear("a", 16, 8, 1, false), linear("b.*", 8, 32, 4, true)],
        exact: 3,
        exact_parameters: 40,
        inputs: vec![input(8, 1, false), input(32, 4, true)],
        attention_width: 8,
    }
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
