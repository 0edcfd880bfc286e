//! Sizes and seconds of the jobs and files of a plan: the cost model and the measured rates applied to it.

use uc_store::ExitCode;
use uc_store::model_summary::LayerGroup;
use uc_store::plan::{ArtifactId, JobId, Plan};

use super::cost_model::{CostModel, JobCost};
use super::measured::Rates;
use super::simulation::Sizes;
use crate::report::failure::failure;

/// A plan in which every stage and artifact has a cost formula.
#[derive(Debug)]
pub struct Estimate<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The formulas.
    pub costs: CostModel<'a>,
    rates: &'a Rates,
    /// Speed of matrix products relative to the measured machine.
    product_speed: f64,
    /// Speed of the codec relative to the measured machine.
    codec_speed: f64,
}

impl<'a> Estimate<'a> {
    /// Checks that every stage and artifact of the plan has a formula.
    ///
    /// # Errors
    /// Names the first stage or artifact without one.
    pub fn new(
        plan: &'a Plan,
        costs: CostModel<'a>,
        rates: &'a Rates,
        product_speed: f64,
        codec_speed: f64,
    ) -> anyhow::Result<Self> {
        let estimate = Self {
            plan,
            costs,
            rates,
            product_speed,
            codec_speed,
        };
        estimate.check_formulas()?;
        Ok(estimate)
    }

    fn check_formulas(&self) -> anyhow::Result<()> {
        let missing = |what: String| {
            let message = format!(
                "{what}: found no formula for its cost, expected one of the built-in pipeline"
            );
            failure(ExitCode::BadPipeline, message)
        };
        for stage in &self.plan.stages {
            for unit in stage.units(self.plan.model.layers) {
                let cost = self
                    .costs
                    .job_cost(&stage.argv, self.group(unit.layer()))
                    .ok_or_else(|| {
                        missing(format!("stage {} (`{}`)", stage.name, stage.argv.join(" ")))
                    })?;
                let is_network = matches!(cost, JobCost::Network(_));
                if !is_network && self.rates.rate(&stage.argv).is_none() {
                    let message = format!("stage {}: found no measured rate", stage.name);
                    return Err(failure(ExitCode::Internal, message));
                }
                for output in self.plan.outputs(stage, unit) {
                    if self.find_bytes(&output).is_none() {
                        return Err(missing(format!("artifact {}", output.name)));
                    }
                }
            }
        }
        Ok(())
    }

    /// The group of a layer.
    pub fn group(&self, layer: Option<u32>) -> Option<&LayerGroup> {
        layer.and_then(|layer| self.costs.model.layer_group(layer))
    }

    /// Cost of a job of the plan.
    pub fn job_cost(&self, job: &JobId) -> JobCost {
        let cost = self
            .costs
            .job_cost(self.argv(job), self.group(job.unit.layer()));
        cost.expect("every stage was checked")
    }

    fn argv(&self, job: &JobId) -> &[String] {
        self.plan.stage(&job.stage).map_or(&[], |stage| &stage.argv)
    }

    fn find_bytes(&self, artifact: &ArtifactId) -> Option<f64> {
        self.costs
            .artifact_bytes(&artifact.name, self.group(artifact.layer))
    }
}

impl Sizes for Estimate<'_> {
    fn seconds(&self, job: &JobId) -> f64 {
        let cost = self.job_cost(job);
        let speed = match cost {
            JobCost::Product(_) => self.product_speed,
            JobCost::Codec(_) => self.codec_speed,
            JobCost::Bytes(_) => 1.0,
            JobCost::Network(_) => return 0.0,
        };
        let rate = self.rates.rate(self.argv(job));
        cost.amount() / rate.expect("every stage was checked") / speed
    }

    fn bytes(&self, artifact: &ArtifactId) -> f64 {
        if self.plan.external(artifact).is_some() {
            return 0.0; // the source and the texts are not part of the run's disk use
        }
        self.find_bytes(artifact)
            .expect("every artifact was checked")
    }

    fn scratch(&self, job: &JobId) -> f64 {
        self.costs
            .scratch_bytes(self.argv(job), self.group(job.unit.layer()))
    }
}
