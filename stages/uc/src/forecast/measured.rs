//! The measured run behind the estimates of time, and the rates that it implies.

use std::collections::BTreeMap;

use serde::Deserialize;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::Plan;

use super::cost_model::{CostModel, JobCost};

/// The measured run, written by `tests/benchmark/throughput.py`.
const MEASURED: &str = include_str!("../../../../docs/benchmarks/throughput.json");

/// A measured run of the built-in pipeline at its defaults.
#[derive(Debug, Deserialize)]
pub struct Measurement {
    /// File name of the receipt that the numbers are from.
    pub receipt: String,
    /// Processor of the machine.
    pub processor: String,
    /// Its cores.
    pub cores: u32,
    /// Wall time of the run.
    pub wall_seconds: f64,
    /// The model.
    pub model: ModelSummary,
    /// Time of every stage, by name.
    pub stages: BTreeMap<String, MeasuredStage>,
}

/// The time of one stage.
#[derive(Debug, Deserialize)]
pub struct MeasuredStage {
    /// Wall seconds of all jobs.
    pub seconds: f64,
}

impl Measurement {
    /// The measured run that this program is built with.
    pub fn embedded() -> anyhow::Result<Self> {
        Ok(serde_json::from_str(MEASURED)?)
    }
}

/// What the measured machine did per second.
#[derive(Debug)]
pub struct Rates {
    /// Work per second, by command.
    by_command: BTreeMap<String, f64>,
    /// Rate of all product-bound stages together, 10⁹ operations per second.
    pub gflops: f64,
}

impl Rates {
    /// Divides the work of every stage of the measured plan by its measured seconds.
    pub fn new(measured: &Measurement, plan: &Plan) -> Self {
        let costs = CostModel::new(&measured.model, &plan.settings);
        let (mut operations, mut seconds) = (0.0, 0.0);
        let mut by_command = BTreeMap::new();
        for stage in &plan.stages {
            let Some(measured_stage) = measured.stages.get(&stage.name) else {
                continue;
            };
            let units = stage.units(plan.model.layers).into_iter();
            let job_costs: Vec<JobCost> = units
                .filter_map(|unit| {
                    let group = unit.layer().and_then(|n| measured.model.layer_group(n));
                    costs.job_cost(&stage.argv, group)
                })
                .collect();
            let amount: f64 = job_costs.iter().map(|cost| cost.amount()).sum();
            if let Some(JobCost::Product(_)) = job_costs.first() {
                operations += amount;
                seconds += measured_stage.seconds;
            }
            by_command.insert(stage.argv.join(" "), amount / measured_stage.seconds);
        }
        Rates {
            by_command,
            gflops: operations / seconds / 1e9,
        }
    }

    /// Work per second of a command, if it was measured.
    pub fn rate(&self, argv: &[String]) -> Option<f64> {
        self.by_command.get(&argv.join(" ")).copied()
    }
}
