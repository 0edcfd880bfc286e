//! Work, sizes and seconds of the jobs and files of a plan: the cost model, and the speeds of a machine applied to it.

use uc_store::ExitCode;
use uc_store::model_summary::LayerGroup;
use uc_store::plan::{ArtifactId, JobId, Plan, StagePlan};

use super::cost_model::{CostModel, JobCost};
use super::measured::{Range, Slowdowns};
use super::probe::{Probe, Resource, Work};
use super::simulation::Sizes;
use crate::report::failure::failure;

/// A plan in which every stage and artifact has a formula.
#[derive(Debug)]
pub struct PlanCosts<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The formulas.
    pub costs: CostModel<'a>,
}

impl<'a> PlanCosts<'a> {
    /// Checks that every stage and artifact of the plan has a formula.
    ///
    /// # Errors
    /// Names the first stage or artifact without one.
    pub fn new(plan: &'a Plan, costs: CostModel<'a>) -> anyhow::Result<Self> {
        let plan_costs = Self { plan, costs };
        for stage in &plan.stages {
            for unit in stage.units(plan.model.layers) {
                if costs
                    .job_cost(&stage.argv, plan_costs.group(unit.layer()))
                    .is_none()
                {
                    let command = stage.argv.join(" ");
                    return Err(no_formula(format!("stage {} (`{command}`)", stage.name)));
                }
                for output in plan.outputs(stage, unit) {
                    if plan_costs.find_bytes(&output).is_none() {
                        return Err(no_formula(format!("artifact {}", output.name)));
                    }
                }
            }
        }
        Ok(plan_costs)
    }

    /// The group of a layer.
    pub fn group(&self, layer: Option<u32>) -> Option<&LayerGroup> {
        layer.and_then(|layer| self.costs.model.layer_group(layer))
    }

    fn stage(&self, job: &JobId) -> &StagePlan {
        self.plan.stage(&job.stage).expect("a stage of the plan")
    }

    /// What a job takes, with what it reads from disk and writes to it; none for a job that only waits for the network.
    pub fn work(&self, job: &JobId) -> Option<Work> {
        let group = self.group(job.unit.layer());
        let cost = self.costs.job_cost(&self.stage(job).argv, group);
        match cost.expect("every stage was checked") {
            JobCost::Network => None,
            JobCost::Work(work) => Some(
                work.and(Resource::DiskRead, self.bytes_read(job))
                    .and(Resource::DiskWrite, self.bytes_written(job)),
            ),
        }
    }

    /// Bytes that a job reads: its inputs, its part of the source, and what it spilled.
    pub fn bytes_read(&self, job: &JobId) -> f64 {
        let stage = self.stage(job);
        let inputs = self.plan.inputs(stage, job.unit).into_iter();
        let inputs: f64 = inputs.map(|input| self.bytes(&input)).sum();
        let group = self.group(job.unit.layer());
        inputs + self.costs.source_bytes_read(&stage.argv, group) + self.spilled(job)
    }

    /// Bytes that a job writes: its outputs, and what it spills and keeps.
    pub fn bytes_written(&self, job: &JobId) -> f64 {
        let outputs = self.plan.outputs(self.stage(job), job.unit).into_iter();
        outputs.map(|output| self.bytes(&output)).sum::<f64>() + self.scratch(job)
    }

    /// Bytes of a file; the source and the texts are not part of a run's disk use.
    pub fn bytes(&self, artifact: &ArtifactId) -> f64 {
        if self.plan.external(artifact).is_some() {
            return 0.0;
        }
        self.find_bytes(artifact)
            .expect("every artifact was checked")
    }

    /// Bytes that a job needs on disk while it runs, besides its inputs and outputs.
    pub fn scratch(&self, job: &JobId) -> f64 {
        let group = self.group(job.unit.layer());
        self.spilled(job) + self.costs.kept_bytes(&self.stage(job).argv, group)
    }

    fn spilled(&self, job: &JobId) -> f64 {
        let group = self.group(job.unit.layer());
        self.costs.spilled_bytes(&self.stage(job).argv, group)
    }

    fn find_bytes(&self, artifact: &ArtifactId) -> Option<f64> {
        self.costs
            .artifact_bytes(&artifact.name, self.group(artifact.layer))
    }
}

fn no_formula(what: String) -> anyhow::Error {
    let message =
        format!("{what}: found no formula for its cost, expected one of the built-in pipeline");
    failure(ExitCode::BadPipeline, message)
}

/// The costs of a plan on a machine.
#[derive(Debug)]
pub struct Estimate<'a> {
    /// The costs.
    pub costs: PlanCosts<'a>,
    /// The machine.
    pub probe: &'a Probe,
    /// How much longer than their work stages take.
    pub slowdowns: &'a Slowdowns,
}

impl<'a> Estimate<'a> {
    /// Checks that the time of every stage can be estimated.
    ///
    /// # Errors
    /// Those of [`PlanCosts::new`], and if a stage was never measured.
    pub fn new(
        plan: &'a Plan,
        costs: CostModel<'a>,
        probe: &'a Probe,
        slowdowns: &'a Slowdowns,
    ) -> anyhow::Result<Self> {
        let costs = PlanCosts::new(plan, costs)?;
        for stage in &plan.stages {
            for unit in stage.units(plan.model.layers).into_iter().take(1) {
                let job = JobId {
                    stage: stage.name.clone(),
                    unit,
                };
                let is_known = slowdowns.of(&stage.argv, costs.costs.model).is_some();
                if costs.work(&job).is_some() && !is_known {
                    let message = format!("stage {}: found no measured time", stage.name);
                    return Err(failure(ExitCode::Internal, message));
                }
            }
        }
        Ok(Self {
            costs,
            probe,
            slowdowns,
        })
    }

    /// Seconds of a job that has all cores; 0 for one that only waits for the network.
    pub fn range(&self, job: &JobId) -> Range {
        let model = self.costs.costs.model;
        let Some(work) = self.costs.work(job) else {
            return Range::default();
        };
        let slowdown = self.slowdowns.of(&self.costs.stage(job).argv, model);
        slowdown.expect("every stage was checked") * work.seconds(self.probe, model.hidden)
    }
}

impl Sizes for Estimate<'_> {
    fn seconds(&self, job: &JobId) -> f64 {
        self.range(job).expected
    }

    fn bytes(&self, artifact: &ArtifactId) -> f64 {
        self.costs.bytes(artifact)
    }

    fn scratch(&self, job: &JobId) -> f64 {
        self.costs.scratch(job)
    }
}
