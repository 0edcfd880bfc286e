//! Which job may start now, and which intermediate files may be deleted: the state of every job and the budget.
//!
//! Pure decisions on a plan; files and processes are left to the driver. What follows from the states (ready jobs, running
//! jobs, missing inputs) is kept up to date with every change, so that a decision does not look at every job of a run.

mod lead;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::{Freshness, PendingWork, Reason};
use uc_store::plan::{ArtifactId, JobId, Plan, Unit};

use lead::LeadBounds;

/// Resources that running jobs may claim together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Processor cores.
    pub cpus: u32,
    /// Bytes; 0 means unlimited.
    pub memory: u64,
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its outputs are up to date, or were and are no longer needed.
    Done,
    /// Whether it has to run is decided once its inputs are known.
    Waiting,
    /// It has to run.
    Stale,
    /// It is running.
    Running,
    /// It failed for lack of a network; another session may retry it.
    GivenUp,
    /// It is not to be done in this session, although it is not up to date. Files that it reads are kept.
    Held,
}

/// One job and its position in the graph.
#[derive(Debug)]
struct Node {
    id: JobId,
    /// Index of the stage in the plan.
    stage: usize,
    outputs: Vec<ArtifactId>,
    /// Indices of the jobs that produce its inputs.
    producers: BTreeSet<usize>,
    /// Indices of the jobs that read its outputs.
    readers: BTreeSet<usize>,
    /// Number of its producers that are not done.
    missing: usize,
    status: Status,
    /// Number of times that it was started again.
    retries: u32,
}

/// The jobs of a run, except those of optional stages.
#[derive(Debug)]
pub struct Scheduler<'p> {
    plan: &'p Plan,
    budget: Budget,
    nodes: Vec<Node>,
    /// Index of every job.
    indices: BTreeMap<JobId, usize>,
    /// Indices of the jobs that read each artifact.
    consumers: BTreeMap<ArtifactId, Vec<usize>>,
    lead: LeadBounds,
    /// For every stage, the stale jobs whose inputs are complete, by layer.
    ready: Vec<BTreeSet<(Unit, usize)>>,
    /// Indices of the running jobs.
    running: BTreeSet<usize>,
    /// For every stage, the number of jobs that gave up.
    given_up: Vec<usize>,
}

impl<'p> Scheduler<'p> {
    /// Builds the job graph with the states that the freshness check determined.
    pub fn new(plan: &'p Plan, work: &PendingWork, budget: Budget) -> Self {
        let mut nodes = jobs_without_edges(plan);
        let consumers = connect(plan, &mut nodes);
        let indices = nodes.iter().enumerate();
        let indices = indices.map(|(index, node)| (node.id.clone(), index));
        let mut scheduler = Self {
            plan,
            budget,
            indices: indices.collect(),
            lead: LeadBounds::new(plan, &nodes, &consumers),
            ready: vec![BTreeSet::new(); plan.stages.len()],
            running: BTreeSet::new(),
            given_up: vec![0; plan.stages.len()],
            nodes,
            consumers,
        };
        scheduler.update(work);
        scheduler
    }

    /// Adopts the states of a freshness check; jobs that are running or given up keep their status.
    pub fn update(&mut self, work: &PendingWork) {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if matches!(
                node.status,
                Status::Running | Status::GivenUp | Status::Held
            ) {
                continue;
            }
            let status = match work.states.get(&node.id) {
                Some(Freshness::Fresh | Freshness::Retired) => Status::Done,
                Some(Freshness::Stale(reasons)) if only_waits(reasons) => Status::Waiting,
                Some(Freshness::Stale(_)) => Status::Stale,
                None => Status::Waiting,
            };
            self.change(index, status);
        }
    }

    /// Every job with its status, in plan order.
    pub fn jobs(&self) -> impl Iterator<Item = (&JobId, Status)> {
        self.nodes.iter().map(|node| (&node.id, node.status))
    }

    /// The status of a job.
    pub fn status(&self, id: &JobId) -> Option<Status> {
        self.indices.get(id).map(|index| self.nodes[*index].status)
    }

    /// Sets the status of a job.
    pub fn set(&mut self, id: &JobId, status: Status) {
        self.change(self.indices[id], status);
    }

    /// The only place that changes a status: keeps what follows from it up to date.
    fn change(&mut self, index: usize, status: Status) {
        let before = std::mem::replace(&mut self.nodes[index].status, status);
        let stage = self.nodes[index].stage;
        self.given_up[stage] += usize::from(status == Status::GivenUp);
        self.given_up[stage] -= usize::from(before == Status::GivenUp);
        if status == Status::Running {
            self.running.insert(index);
        } else {
            self.running.remove(&index);
        }
        self.update_ready(index);
        if (before == Status::Done) == (status == Status::Done) {
            return;
        }
        for reader in self.nodes[index].readers.clone() {
            let missing = &mut self.nodes[reader].missing;
            *missing = if status == Status::Done {
                *missing - 1
            } else {
                *missing + 1
            };
            self.update_ready(reader);
        }
        self.lead.note(index, status == Status::Done);
    }

    fn update_ready(&mut self, index: usize) {
        let node = &self.nodes[index];
        let (ready, key) = (&mut self.ready[node.stage], (node.id.unit, index));
        if node.status == Status::Stale && node.missing == 0 {
            ready.insert(key);
        } else {
            ready.remove(&key);
        }
    }

    /// Counts a retry of a job and marks it stale; `false` if its stage allows no more.
    pub fn retry(&mut self, id: &JobId) -> bool {
        let index = self.indices[id];
        self.change(index, Status::Stale);
        let node = &mut self.nodes[index];
        node.retries += 1;
        node.retries <= self.plan.stages[node.stage].retries
    }

    /// Holds every job that is not needed for the inputs of `job`, and the job itself.
    pub fn work_only_for_inputs_of(&mut self, job: &JobId) {
        let target = self.indices[job];
        let mut needed = BTreeSet::new();
        let mut pending: Vec<usize> = self.nodes[target].producers.iter().copied().collect();
        while let Some(index) = pending.pop() {
            // What is done needs no inputs.
            if self.nodes[index].status != Status::Done && needed.insert(index) {
                pending.extend(&self.nodes[index].producers);
            }
        }
        for index in 0..self.nodes.len() {
            let is_done = self.nodes[index].status == Status::Done;
            if index == target || (!is_done && !needed.contains(&index)) {
                self.change(index, Status::Held);
            }
        }
    }

    /// Whether every job is done that is to be done.
    pub fn is_complete(&self) -> bool {
        let is_settled = |node: &Node| matches!(node.status, Status::Done | Status::Held);
        self.nodes.iter().all(is_settled)
    }

    /// Whether a stage has a job that is to be done.
    pub fn has_work(&self, stage: &str) -> bool {
        let is_open = |node: &Node| !matches!(node.status, Status::Done | Status::Held);
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.id.stage == stage && is_open(node))
    }

    /// Waiting jobs whose producers are all done, so that their state can be decided.
    pub fn decidable(&self) -> Vec<JobId> {
        self.nodes
            .iter()
            .filter(|node| node.status == Status::Waiting && node.missing == 0)
            .map(|node| node.id.clone())
            .collect()
    }

    /// The job to start next, if one may start now.
    ///
    /// Lower layers come first, and within a layer later stages before earlier ones: work in progress is completed, and its
    /// intermediate files can be deleted. If the first ready job in that order does not fit, nothing else starts in its
    /// place, so it cannot starve. A stage that gave up a job continues only while other stages run: alone it would do
    /// nothing but wait for the network.
    pub fn next(&self) -> Option<JobId> {
        self.next_if(|_| true)
    }

    /// The job to start next among those whose part of the source is present.
    pub fn next_if(&self, is_source_present: impl Fn(&JobId) -> bool) -> Option<JobId> {
        let is_startable = |index: &usize| is_source_present(&self.nodes[*index].id);
        let stages = self.startable_stages();
        let firsts = stages.iter().filter_map(|&stage| {
            let mut jobs = self.ready_of(stage);
            jobs.find(|index| self.is_within_lead(*index) && is_startable(index))
        });
        let first_past_lead = || {
            let jobs = stages.iter().flat_map(|&stage| self.ready_of(stage));
            self.first(jobs.filter(is_startable))
        };
        let first = match self.first(firsts) {
            Some(first) => first,
            None if self.ignores_lead(&stages) => first_past_lead()?,
            None => return None,
        };
        let first = &self.nodes[first];
        self.fits(first).then(|| first.id.clone())
    }

    /// The jobs that could start if the source and the budget permitted, in order of priority.
    pub fn runnable(&self) -> Vec<JobId> {
        let stages = self.startable_stages();
        let ignore_lead = self.ignores_lead(&stages);
        let jobs = stages.iter().flat_map(|&stage| self.ready_of(stage));
        let mut jobs: Vec<usize> = jobs
            .filter(|index| ignore_lead || self.is_within_lead(*index))
            .collect();
        jobs.sort_by_key(|index| self.priority(*index));
        let ids = jobs.into_iter().map(|index| self.nodes[index].id.clone());
        ids.collect()
    }

    /// The remaining jobs in the order in which they would run one at a time.
    pub fn sequential_order(plan: &'p Plan, work: &PendingWork, budget: Budget) -> Vec<JobId> {
        let mut scheduler = Self::new(plan, work, budget);
        for index in 0..scheduler.nodes.len() {
            if scheduler.nodes[index].status == Status::Waiting {
                scheduler.change(index, Status::Stale);
            }
        }
        let mut order = Vec::new();
        while let Some(id) = scheduler.next() {
            scheduler.set(&id, Status::Done);
            order.push(id);
        }
        order
    }

    /// Indices of the stages that may start a job: they are idle, and if they gave up a job, another one is running.
    fn startable_stages(&self) -> Vec<usize> {
        let busy: BTreeSet<usize> = self.running().map(|node| node.stage).collect();
        let is_startable = |stage: &usize| {
            !busy.contains(stage) && (self.given_up[*stage] == 0 || !self.running.is_empty())
        };
        (0..self.plan.stages.len()).filter(is_startable).collect()
    }

    /// The ready jobs of a stage, lower layers first.
    fn ready_of(&self, stage: usize) -> impl Iterator<Item = usize> {
        self.ready[stage].iter().map(|(_, index)| *index)
    }

    /// The order in which jobs start.
    fn priority(&self, index: usize) -> (Unit, Reverse<usize>) {
        let node = &self.nodes[index];
        (node.id.unit, Reverse(node.stage))
    }

    fn first(&self, jobs: impl Iterator<Item = usize>) -> Option<usize> {
        jobs.min_by_key(|index| self.priority(*index))
    }

    /// Whether the bounds of lead are ignored, because nothing else can proceed and they would stop the run; but not while
    /// uploads have given up, because their files would fill the disk.
    fn ignores_lead(&self, stages: &[usize]) -> bool {
        let has_given_up = self.given_up.iter().any(|count| *count > 0);
        let mut ready = stages.iter().flat_map(|&stage| self.ready_of(stage));
        self.running.is_empty() && !has_given_up && !ready.any(|index| self.is_within_lead(index))
    }

    fn is_within_lead(&self, index: usize) -> bool {
        !self.lead.is_exceeded(index)
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.running.iter().map(|index| &self.nodes[*index])
    }

    /// Processor cores that a job claims.
    fn cpus(&self, node: &Node) -> u32 {
        self.plan.stages[node.stage].cpus.min(self.budget.cpus)
    }

    /// Whether a job fits into the budget beside the running ones; a job may always run alone.
    fn fits(&self, node: &Node) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let cpus: u32 = self.running().map(|other| self.cpus(other)).sum();
        let memory_of = |node: &Node| self.plan.stages[node.stage].memory;
        let memory: u64 = self.running().map(memory_of).sum();
        let memory_fits =
            self.budget.memory == 0 || memory.saturating_add(memory_of(node)) <= self.budget.memory;
        cpus.saturating_add(self.cpus(node)) <= self.budget.cpus && memory_fits
    }

    /// Temporary artifacts that no job needs any more: among the inputs and outputs of one job, or of all jobs for `None`.
    pub fn retirable(&self, job: Option<&JobId>) -> Vec<ArtifactId> {
        let candidates: Vec<ArtifactId> = match job {
            None => self
                .nodes
                .iter()
                .flat_map(|node| node.outputs.clone())
                .collect(),
            Some(id) => {
                let node = &self.nodes[self.indices[id]];
                let inputs = self.plan.inputs(&self.plan.stages[node.stage], id.unit);
                inputs
                    .into_iter()
                    .chain(node.outputs.iter().cloned())
                    .collect()
            }
        };
        candidates
            .into_iter()
            .filter(|id| self.is_retirable(id))
            .collect()
    }

    fn is_retirable(&self, id: &ArtifactId) -> bool {
        // An artifact without readers is a result.
        let readers = self.consumers.get(id).filter(|readers| !readers.is_empty());
        is_temporary(self.plan, id)
            && self.plan.external(id).is_none()
            && readers.is_some_and(|readers| {
                readers
                    .iter()
                    .all(|index| self.nodes[*index].status == Status::Done)
            })
    }
}

/// The jobs of all stages that are not optional.
fn jobs_without_edges(plan: &Plan) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (stage, spec) in plan.stages.iter().enumerate() {
        if spec.optional {
            continue;
        }
        for unit in spec.units(plan.model.layers) {
            nodes.push(Node {
                id: JobId {
                    stage: spec.name.clone(),
                    unit,
                },
                stage,
                outputs: plan.outputs(spec, unit),
                producers: BTreeSet::new(),
                readers: BTreeSet::new(),
                missing: 0,
                status: Status::Waiting,
                retries: 0,
            });
        }
    }
    nodes
}

/// Enters who produces and who reads what; returns the indices of the jobs that read each artifact.
fn connect(plan: &Plan, nodes: &mut [Node]) -> BTreeMap<ArtifactId, Vec<usize>> {
    let producers: BTreeMap<ArtifactId, usize> = nodes
        .iter()
        .enumerate()
        .flat_map(|(index, node)| node.outputs.iter().map(move |id| (id.clone(), index)))
        .collect();
    let mut consumers: BTreeMap<ArtifactId, Vec<usize>> = BTreeMap::new();
    for index in 0..nodes.len() {
        let node = &nodes[index];
        for input in plan.inputs(&plan.stages[node.stage], node.id.unit) {
            if plan.external(&input).is_some() {
                continue;
            }
            if let Some(&producer) = producers.get(&input) {
                nodes[index].producers.insert(producer);
                nodes[producer].readers.insert(index);
            }
            consumers.entry(input).or_default().push(index);
        }
        nodes[index].missing = nodes[index].producers.len();
    }
    consumers
}

/// Whether an artifact is deleted after its last reader.
fn is_temporary(plan: &Plan, id: &ArtifactId) -> bool {
    let artifact = plan.artifacts.get(&id.name);
    artifact.is_some_and(|artifact| artifact.temporary)
}

/// Whether waiting for inputs is the only reason why a job is stale.
fn only_waits(reasons: &[Reason]) -> bool {
    reasons
        .iter()
        .all(|reason| matches!(reason, Reason::Waits(_)))
}

#[cfg(test)]
mod tests;
