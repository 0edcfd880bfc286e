//! Which job may start now, and which intermediate files may be deleted: the state of every job and the budget.
//!
//! Pure decisions on a plan; files and processes are left to the driver.

use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::{Freshness, PendingWork, Reason};
use uc_store::plan::{ArtifactId, JobId, Plan};

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
    /// For every job of a stage with a `max_lead`, the jobs that depend on it; else empty.
    downstream: Vec<BTreeSet<usize>>,
}

impl<'p> Scheduler<'p> {
    /// Builds the job graph with the states that the freshness check determined.
    pub fn new(plan: &'p Plan, work: &PendingWork, budget: Budget) -> Self {
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
                    status: Status::Waiting,
                    retries: 0,
                });
            }
        }
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
                if let Some(producer) = producers.get(&input) {
                    nodes[index].producers.insert(*producer);
                }
                consumers.entry(input).or_default().push(index);
            }
        }
        let indices = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (node.id.clone(), index));
        let downstream = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| match plan.stages[node.stage].max_lead {
                Some(_) => downstream(index, &nodes, &consumers),
                None => BTreeSet::new(),
            })
            .collect();
        let mut scheduler = Self {
            plan,
            budget,
            downstream,
            indices: indices.collect(),
            nodes,
            consumers,
        };
        scheduler.update(work);
        scheduler
    }

    /// Adopts the states of a freshness check; jobs that are running or given up keep their status.
    pub fn update(&mut self, work: &PendingWork) {
        for node in &mut self.nodes {
            if matches!(
                node.status,
                Status::Running | Status::GivenUp | Status::Held
            ) {
                continue;
            }
            node.status = match work.states.get(&node.id) {
                Some(Freshness::Fresh | Freshness::Retired) => Status::Done,
                Some(Freshness::Stale(reasons)) if only_waits(reasons) => Status::Waiting,
                Some(Freshness::Stale(_)) => Status::Stale,
                None => Status::Waiting,
            };
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
        let index = self.indices[id];
        self.nodes[index].status = status;
    }

    /// Counts a retry of a job and marks it stale; `false` if its stage allows no more.
    pub fn retry(&mut self, id: &JobId) -> bool {
        let node = &mut self.nodes[self.indices[id]];
        node.retries += 1;
        node.status = Status::Stale;
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
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if index == target || (node.status != Status::Done && !needed.contains(&index)) {
                node.status = Status::Held;
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
            .filter(|node| node.status == Status::Waiting && self.inputs_done(node))
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
        let running = self.running();
        let ready = self.ready(&running);
        let first = self
            .candidates(&ready, &running)
            .find(|node| is_source_present(&node.id))?;
        self.fits(first, &running).then(|| first.id.clone())
    }

    /// The jobs that could start if the source and the budget permitted, in order of priority.
    pub fn runnable(&self) -> Vec<JobId> {
        let running = self.running();
        let ready = self.ready(&running);
        let candidates = self.candidates(&ready, &running);
        candidates.map(|node| node.id.clone()).collect()
    }

    /// The remaining jobs in the order in which they would run one at a time.
    pub fn sequential_order(plan: &'p Plan, work: &PendingWork, budget: Budget) -> Vec<JobId> {
        let mut scheduler = Self::new(plan, work, budget);
        for node in &mut scheduler.nodes {
            if node.status == Status::Waiting {
                node.status = Status::Stale;
            }
        }
        let mut order = Vec::new();
        while let Some(id) = scheduler.next() {
            scheduler.set(&id, Status::Done);
            order.push(id);
        }
        order
    }

    /// Jobs whose inputs are complete and whose stage is idle, in order of priority.
    fn ready(&self, running: &[&Node]) -> Vec<&Node> {
        let given_up = self.given_up();
        let busy: BTreeSet<usize> = running.iter().map(|node| node.stage).collect();
        let mut ready: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|node| node.status == Status::Stale && !busy.contains(&node.stage))
            .filter(|node| self.inputs_done(node))
            .filter(|node| !given_up.contains(&node.stage) || !running.is_empty())
            .collect();
        ready.sort_by_key(|node| (node.id.unit, std::cmp::Reverse(node.stage)));
        ready
    }

    /// Indices of the stages that gave up a job.
    fn given_up(&self) -> BTreeSet<usize> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| node.status == Status::GivenUp)
            .map(|node| node.stage)
            .collect()
    }

    /// The ready jobs that respect their `max_lead`. If nothing else can proceed, the bound is ignored, because it would
    /// stop the run; but not while uploads have given up, because their files would fill the disk.
    fn candidates<'n>(
        &'n self,
        ready: &'n [&'n Node],
        running: &[&Node],
    ) -> impl Iterator<Item = &'n Node> {
        let is_within_lead = |node: &&&Node| !self.is_too_far_ahead(node);
        let is_idle = running.is_empty() && self.given_up().is_empty();
        let ignore_lead = is_idle && ready.iter().find(is_within_lead).is_none();
        let ready = ready.iter();
        ready
            .filter(move |node| ignore_lead || is_within_lead(node))
            .copied()
    }

    fn running(&self) -> Vec<&Node> {
        self.nodes
            .iter()
            .filter(|node| node.status == Status::Running)
            .collect()
    }

    fn inputs_done(&self, node: &Node) -> bool {
        node.producers
            .iter()
            .all(|index| self.nodes[*index].status == Status::Done)
    }

    /// Processor cores that a job claims.
    fn cpus(&self, node: &Node) -> u32 {
        self.plan.stages[node.stage].cpus.min(self.budget.cpus)
    }

    /// Whether a job fits into the budget beside the running ones; a job may always run alone.
    fn fits(&self, node: &Node, running: &[&Node]) -> bool {
        if running.is_empty() {
            return true;
        }
        let cpus: u32 = running.iter().map(|other| self.cpus(other)).sum();
        let memory_of = |node: &Node| self.plan.stages[node.stage].memory;
        let memory: u64 = running.iter().map(|other| memory_of(other)).sum();
        let memory_fits =
            self.budget.memory == 0 || memory.saturating_add(memory_of(node)) <= self.budget.memory;
        cpus.saturating_add(self.cpus(node)) <= self.budget.cpus && memory_fits
    }

    /// Whether a job is more than `max_lead` layers ahead of the slowest per-layer reader of its stage's temporary outputs.
    ///
    /// A reader that depends on the job does not count: the backward pass of the sensitivity stages reads what the forward
    /// pass wrote, but only after the last layer. Waiting for it would be a deadlock.
    fn is_too_far_ahead(&self, node: &Node) -> bool {
        let (Some(max_lead), Some(layer)) =
            (self.plan.stages[node.stage].max_lead, node.id.unit.layer())
        else {
            return false;
        };
        let dependents = &self.downstream[self.indices[&node.id]];
        let has_pending_reader = |sibling: &&Node| {
            let readers = sibling
                .outputs
                .iter()
                .filter(|id| self.is_temporary(id))
                .filter_map(|id| self.consumers.get(id))
                .flatten();
            let readers = readers.filter(|index| !dependents.contains(index));
            let mut readers = readers.map(|index| &self.nodes[*index]);
            readers.any(|reader| {
                let is_other_stage = reader.id.unit.layer().is_some() && reader.stage != node.stage;
                is_other_stage && reader.status != Status::Done
            })
        };
        let slowest = self
            .nodes
            .iter()
            .filter(|sibling| sibling.stage == node.stage)
            .filter(has_pending_reader)
            .filter_map(|sibling| sibling.id.unit.layer())
            .min();
        slowest.is_some_and(|slowest| layer > slowest.saturating_add(max_lead))
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

    /// Whether an artifact is deleted after its last reader.
    fn is_temporary(&self, id: &ArtifactId) -> bool {
        let artifact = self.plan.artifacts.get(&id.name);
        artifact.is_some_and(|artifact| artifact.temporary)
    }

    fn is_retirable(&self, id: &ArtifactId) -> bool {
        // An artifact without readers is a result.
        let readers = self.consumers.get(id).filter(|readers| !readers.is_empty());
        self.is_temporary(id)
            && self.plan.external(id).is_none()
            && readers.is_some_and(|readers| {
                readers
                    .iter()
                    .all(|index| self.nodes[*index].status == Status::Done)
            })
    }
}

/// The jobs that depend on a job, directly or indirectly.
fn downstream(
    job: usize,
    nodes: &[Node],
    consumers: &BTreeMap<ArtifactId, Vec<usize>>,
) -> BTreeSet<usize> {
    let mut dependents = BTreeSet::new();
    let mut pending = vec![job];
    while let Some(index) = pending.pop() {
        let outputs = nodes[index].outputs.iter();
        let readers = outputs.filter_map(|id| consumers.get(id)).flatten();
        pending.extend(readers.filter(|reader| dependents.insert(**reader)));
    }
    dependents
}

/// Whether waiting for inputs is the only reason why a job is stale.
fn only_waits(reasons: &[Reason]) -> bool {
    reasons
        .iter()
        .all(|reason| matches!(reason, Reason::Waits(_)))
}

#[cfg(test)]
mod tests;
