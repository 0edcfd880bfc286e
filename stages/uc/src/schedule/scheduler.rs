//! Which job may start now: the state of every job, the budget, and what may be deleted.
//!
//! Pure decisions on a plan; files and processes are the driver's business.

use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::{Freshness, PendingWork, Reason};
use uc_store::plan::{ArtifactId, JobId, Plan};

/// What jobs may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Processor cores.
    pub cpus: u32,
    /// Bytes; 0 does not limit.
    pub memory: u64,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its outputs are recorded and good, or were and are no longer needed.
    Done,
    /// Whether it has to run shows when its inputs are known.
    Waiting,
    /// It has to run.
    Stale,
    /// It runs.
    Running,
    /// The network failed it; another session may try again.
    GivenUp,
}

/// One job with its place in the graph.
#[derive(Debug)]
struct Node {
    id: JobId,
    /// Position of the stage in the plan.
    stage: usize,
    outputs: Vec<ArtifactId>,
    producers: BTreeSet<usize>,
    status: Status,
    /// Times that it was started again.
    retries: u32,
}

/// All jobs of the run that are not optional.
#[derive(Debug)]
pub struct Board<'p> {
    plan: &'p Plan,
    budget: Budget,
    nodes: Vec<Node>,
    places: BTreeMap<JobId, usize>,
    consumers: BTreeMap<ArtifactId, Vec<usize>>,
    /// For every job of a stage with a bound on its distance the jobs that cannot start before it; else empty.
    downstream: Vec<BTreeSet<usize>>,
}

impl<'p> Board<'p> {
    /// Lays out the jobs with the states that the walk over the run found.
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
        let makers: BTreeMap<ArtifactId, usize> = nodes
            .iter()
            .enumerate()
            .flat_map(|(place, node)| node.outputs.iter().map(move |id| (id.clone(), place)))
            .collect();
        let mut consumers: BTreeMap<ArtifactId, Vec<usize>> = BTreeMap::new();
        for place in 0..nodes.len() {
            let node = &nodes[place];
            for input in plan.inputs(&plan.stages[node.stage], node.id.unit) {
                if plan.external(&input).is_some() {
                    continue;
                }
                if let Some(maker) = makers.get(&input) {
                    nodes[place].producers.insert(*maker);
                }
                consumers.entry(input).or_default().push(place);
            }
        }
        let places = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| (node.id.clone(), place));
        let downstream = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| match plan.stages[node.stage].max_lead {
                Some(_) => downstream(place, &nodes, &consumers),
                None => BTreeSet::new(),
            })
            .collect();
        let mut board = Self {
            plan,
            budget,
            downstream,
            places: places.collect(),
            nodes,
            consumers,
        };
        board.update(work);
        board
    }

    /// Takes over the states of a walk; running jobs keep running, and what was given up stays so.
    pub fn update(&mut self, work: &PendingWork) {
        for node in &mut self.nodes {
            if matches!(node.status, Status::Running | Status::GivenUp) {
                continue;
            }
            node.status = match work.states.get(&node.id) {
                Some(Freshness::Fresh | Freshness::Retired) => Status::Done,
                Some(Freshness::Stale(reasons)) if waits(reasons) => Status::Waiting,
                Some(Freshness::Stale(_)) => Status::Stale,
                None => Status::Waiting,
            };
        }
    }

    /// Every job with its status, in the order of the plan.
    pub fn jobs(&self) -> impl Iterator<Item = (&JobId, Status)> {
        self.nodes.iter().map(|node| (&node.id, node.status))
    }

    /// The status of a job.
    pub fn status(&self, id: &JobId) -> Option<Status> {
        self.places.get(id).map(|place| self.nodes[*place].status)
    }

    /// Sets the status of a job.
    pub fn set(&mut self, id: &JobId, status: Status) {
        let place = self.places[id];
        self.nodes[place].status = status;
    }

    /// Counts another try of a job; `false` when its stage allows no more.
    pub fn retry(&mut self, id: &JobId) -> bool {
        let node = &mut self.nodes[self.places[id]];
        node.retries += 1;
        node.status = Status::Stale;
        node.retries <= self.plan.stages[node.stage].retries
    }

    /// Whether everything is done.
    pub fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.status == Status::Done)
    }

    /// Whether a stage has a job that is not done.
    pub fn has_work(&self, stage: &str) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.id.stage == stage && node.status != Status::Done)
    }

    /// Waiting jobs whose producers are all done, so that their state can be known.
    pub fn decidable(&self) -> Vec<JobId> {
        self.nodes
            .iter()
            .filter(|node| node.status == Status::Waiting && self.inputs_done(node))
            .map(|node| node.id.clone())
            .collect()
    }

    /// The job to start next, if one may start now.
    ///
    /// Lower layers come first and later stages before earlier ones: what was begun is finished, and intermediate
    /// files can go. The first job in that order that is ready but does not fit reserves the next free place. A stage that
    /// gave up a job goes on only beside others: by itself it would wait for the network again and again.
    pub fn next(&self) -> Option<JobId> {
        self.next_if(|_| true)
    }

    /// The job to start next among those whose part of the source is there.
    pub fn next_if(&self, is_there: impl Fn(&JobId) -> bool) -> Option<JobId> {
        let running = self.running();
        let ready = self.ready(&running);
        let first = self
            .candidates(&ready, &running)
            .find(|node| is_there(&node.id))?;
        self.fits(first, &running).then(|| first.id.clone())
    }

    /// The jobs that could start if their part of the source were there and there were room, the first one first.
    pub fn wanted(&self) -> Vec<JobId> {
        let running = self.running();
        let ready = self.ready(&running);
        let candidates = self.candidates(&ready, &running);
        candidates.map(|node| node.id.clone()).collect()
    }

    /// The jobs that are left, in the order in which they would run one at a time.
    pub fn order(plan: &'p Plan, work: &PendingWork, budget: Budget) -> Vec<JobId> {
        let mut board = Self::new(plan, work, budget);
        for node in &mut board.nodes {
            if node.status == Status::Waiting {
                node.status = Status::Stale;
            }
        }
        let mut order = Vec::new();
        while let Some(id) = board.next() {
            board.set(&id, Status::Done);
            order.push(id);
        }
        order
    }

    /// Jobs whose inputs are made and whose stage is idle, the first one first.
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

    /// The stages that gave up a job.
    fn given_up(&self) -> BTreeSet<usize> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| node.status == Status::GivenUp)
            .map(|node| node.stage)
            .collect()
    }

    /// Those of them that are not too far ahead. Bounds are wishes: when nothing else can go on, all of them; but what the
    /// network did not take fills no disk.
    fn candidates<'n>(
        &'n self,
        ready: &'n [&'n Node],
        running: &[&Node],
    ) -> impl Iterator<Item = &'n Node> {
        let is_near = |node: &&&Node| !self.is_too_far_ahead(node);
        let idle = running.is_empty() && self.given_up().is_empty();
        let unbounded = idle && ready.iter().find(is_near).is_none();
        let ready = ready.iter();
        ready
            .filter(move |node| unbounded || is_near(node))
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
            .all(|place| self.nodes[*place].status == Status::Done)
    }

    fn claim(&self, node: &Node) -> u32 {
        self.plan.stages[node.stage].cpus.min(self.budget.cpus)
    }

    /// Whether the claims fit; a job alone always may run.
    fn fits(&self, node: &Node, running: &[&Node]) -> bool {
        if running.is_empty() {
            return true;
        }
        let cpus: u32 = running.iter().map(|other| self.claim(other)).sum();
        let needs = |node: &Node| self.plan.stages[node.stage].memory;
        let memory: u64 = running.iter().map(|other| needs(other)).sum();
        let memory_fits =
            self.budget.memory == 0 || memory.saturating_add(needs(node)) <= self.budget.memory;
        cpus.saturating_add(self.claim(node)) <= self.budget.cpus && memory_fits
    }

    /// Whether a job would be more than its stage's `max_lead` layers before the slowest per-layer reader of what is not kept.
    ///
    /// A reader that itself waits for the job does not count: the backward sweep of the survey reads what the forward
    /// sweep wrote only after all of it, and waiting for it would be waiting for ever.
    fn is_too_far_ahead(&self, node: &Node) -> bool {
        let (Some(max_lead), Some(layer)) =
            (self.plan.stages[node.stage].max_lead, node.id.unit.layer())
        else {
            return false;
        };
        let behind = &self.downstream[self.places[&node.id]];
        let has_slow_reader = |sibling: &&Node| {
            let readers = sibling
                .outputs
                .iter()
                .filter(|id| self.is_temporary(id))
                .filter_map(|id| self.consumers.get(id))
                .flatten();
            let readers = readers.filter(|place| !behind.contains(place));
            let mut readers = readers.map(|place| &self.nodes[*place]);
            readers.any(|reader| {
                let counts = reader.id.unit.layer().is_some() && reader.stage != node.stage;
                counts && reader.status != Status::Done
            })
        };
        let slowest = self
            .nodes
            .iter()
            .filter(|sibling| sibling.stage == node.stage)
            .filter(has_slow_reader)
            .filter_map(|sibling| sibling.id.unit.layer())
            .min();
        slowest.is_some_and(|slowest| layer > slowest.saturating_add(max_lead))
    }

    /// Artifacts that no job needs any more, among those that a job reads or makes; all of them for `None`.
    pub fn retirable(&self, around: Option<&JobId>) -> Vec<ArtifactId> {
        let candidates: Vec<ArtifactId> = match around {
            None => self
                .nodes
                .iter()
                .flat_map(|node| node.outputs.clone())
                .collect(),
            Some(id) => {
                let node = &self.nodes[self.places[id]];
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

    /// Whether an artifact is deleted once nobody needs it.
    fn is_temporary(&self, id: &ArtifactId) -> bool {
        let artifact = self.plan.artifacts.get(&id.name);
        artifact.is_some_and(|artifact| artifact.temporary)
    }

    fn is_retirable(&self, id: &ArtifactId) -> bool {
        // What nobody reads is somebody's result.
        let readers = self.consumers.get(id).filter(|readers| !readers.is_empty());
        self.is_temporary(id)
            && self.plan.external(id).is_none()
            && readers.is_some_and(|readers| {
                readers
                    .iter()
                    .all(|place| self.nodes[*place].status == Status::Done)
            })
    }
}

/// The jobs that read what a job makes, what is made of that, and so on.
fn downstream(
    place: usize,
    nodes: &[Node],
    consumers: &BTreeMap<ArtifactId, Vec<usize>>,
) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut pending = vec![place];
    while let Some(place) = pending.pop() {
        let outputs = nodes[place].outputs.iter();
        let readers = outputs.filter_map(|id| consumers.get(id)).flatten();
        pending.extend(readers.filter(|reader| found.insert(**reader)));
    }
    found
}

/// Whether all that is known of a job is that it waits.
fn waits(reasons: &[Reason]) -> bool {
    reasons
        .iter()
        .all(|reason| matches!(reason, Reason::Waits(_)))
}

#[cfg(test)]
mod tests;
