//! The bound `max_lead`: how far a stage may be ahead of the slowest stage that reads its temporary outputs.

use std::collections::BTreeMap;

use uc_store::plan::{ArtifactId, Plan};

use super::{Node, is_temporary};

/// The bounds of all stages, and which of their readers are not done.
#[derive(Debug)]
pub struct LeadBounds {
    /// By stage; `None` for a stage without a bound.
    stages: Vec<Option<Bound>>,
    /// For every job, its stage, and its layer if its stage has a bound.
    jobs: Vec<(usize, Option<u32>)>,
    /// For every job of a stage with a bound, the jobs that depend on it.
    downstream: BTreeMap<usize, BitSet>,
    /// For every job that is waited for: the stages and layers that wait for it.
    waited_for: BTreeMap<usize, Vec<(usize, u32)>>,
}

/// The bound of one stage.
#[derive(Debug)]
struct Bound {
    max_lead: u32,
    /// For every layer of the stage, the jobs that read its temporary outputs and are not done.
    pending: BTreeMap<u32, Vec<usize>>,
}

impl LeadBounds {
    /// The bounds of a plan, as long as no job is done.
    pub fn new(plan: &Plan, nodes: &[Node], consumers: &BTreeMap<ArtifactId, Vec<usize>>) -> Self {
        let bound_of =
            |node: &Node| Some((plan.stages[node.stage].max_lead?, node.id.unit.layer()?));
        let mut stages: Vec<Option<Bound>> = plan.stages.iter().map(|_| None).collect();
        let mut waited_for: BTreeMap<usize, Vec<(usize, u32)>> = BTreeMap::new();
        for node in nodes {
            let Some((max_lead, layer)) = bound_of(node) else {
                continue;
            };
            let outputs = node.outputs.iter().filter(|id| is_temporary(plan, id));
            let readers = outputs.filter_map(|id| consumers.get(id)).flatten();
            let mut pending: Vec<usize> = readers
                .copied()
                .filter(|reader| {
                    let reader = &nodes[*reader];
                    reader.stage != node.stage && reader.id.unit.layer().is_some()
                })
                .collect();
            pending.sort_unstable();
            pending.dedup();
            for reader in &pending {
                waited_for
                    .entry(*reader)
                    .or_default()
                    .push((node.stage, layer));
            }
            let bound = stages[node.stage].get_or_insert_with(|| Bound {
                max_lead,
                pending: BTreeMap::new(),
            });
            bound.pending.insert(layer, pending);
        }
        let bounded = |index: &usize| bound_of(&nodes[*index]).is_some();
        Self {
            stages,
            jobs: nodes
                .iter()
                .map(|node| (node.stage, bound_of(node).map(|(_, layer)| layer)))
                .collect(),
            downstream: downstream(nodes, bounded),
            waited_for,
        }
    }

    /// Notes that a job is done, or no longer is.
    pub fn note(&mut self, job: usize, is_done: bool) {
        for (stage, layer) in self.waited_for.get(&job).into_iter().flatten() {
            let bound = self.stages[*stage].as_mut().expect("a stage with a bound");
            if is_done {
                let pending = bound.pending.get_mut(layer);
                let pending = pending.expect("a job that is waited for and not done");
                pending.retain(|reader| *reader != job);
                if pending.is_empty() {
                    bound.pending.remove(layer);
                }
            } else {
                bound.pending.entry(*layer).or_default().push(job);
            }
        }
    }

    /// Whether a job is more than `max_lead` layers ahead of the slowest per-layer reader of its stage's temporary outputs.
    ///
    /// A reader that depends on the job does not count: the backward pass of the sensitivity stages reads what the forward
    /// pass wrote, but only after the last layer. Waiting for it would be a deadlock.
    pub fn is_exceeded(&self, job: usize) -> bool {
        let (stage, layer) = self.jobs[job];
        let (Some(bound), Some(layer)) = (&self.stages[stage], layer) else {
            return false;
        };
        let dependents = &self.downstream[&job];
        let slower = bound.pending.range(..layer.saturating_sub(bound.max_lead));
        slower
            .flat_map(|(_, readers)| readers)
            .any(|reader| !dependents.contains(*reader))
    }
}

/// The jobs that depend on each of the chosen jobs, directly or indirectly.
fn downstream(nodes: &[Node], is_chosen: impl Fn(&usize) -> bool) -> BTreeMap<usize, BitSet> {
    // Every job after all its producers; from the last one backwards, its dependents are its readers and theirs.
    let mut missing: Vec<usize> = nodes.iter().map(|node| node.producers.len()).collect();
    let mut order: Vec<usize> = (0..nodes.len()).filter(|job| missing[*job] == 0).collect();
    let mut next = 0;
    while let Some(&job) = order.get(next) {
        next += 1;
        for &reader in &nodes[job].readers {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                order.push(reader);
            }
        }
    }
    let mut sets = vec![BitSet::new(nodes.len()); nodes.len()];
    for &job in order.iter().rev() {
        let mut set = BitSet::new(nodes.len());
        for &reader in &nodes[job].readers {
            set.insert(reader);
            set.union(&sets[reader]);
        }
        sets[job] = set;
    }
    let sets = sets.into_iter().enumerate();
    sets.filter(|(job, _)| is_chosen(job)).collect()
}

/// A set of job indices.
#[derive(Debug, Clone)]
struct BitSet(Vec<u64>);

impl BitSet {
    fn new(jobs: usize) -> Self {
        Self(vec![0; jobs.div_ceil(64)])
    }

    fn insert(&mut self, job: usize) {
        self.0[job / 64] |= 1 << (job % 64);
    }

    fn contains(&self, job: usize) -> bool {
        self.0[job / 64] >> (job % 64) & 1 == 1
    }

    fn union(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }
}
