//! Which shard of a Hub model to fetch next and which to evict: the local shards are a cache whose size a budget bounds.
//!
//! Pure decisions on sizes and on the order of upcoming reads; files and processes are left to the driver. With the
//! shards ordered by their next use, the longest prefix that fits into the budget should be present. Therefore shards
//! are prefetched, the shard whose next use is farthest away is evicted first (Belady 1966), and a shard that no job
//! reads again is evicted at once.

use std::collections::BTreeSet;

use uc_store::plan::Plan;

/// The state of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// Only on the Hub.
    Absent,
    /// On disk since an earlier session and not verified in this one.
    Unverified,
    /// Being downloaded.
    Downloading,
    /// On disk and verified.
    Present,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fetch a shard, or verify one that an earlier session left on disk.
    Fetch(usize),
    /// Delete a shard.
    Evict(usize),
}

/// The shards of a run, numbered as in the external input `source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    budget: u64,
    sizes: Vec<u64>,
    states: Vec<ShardState>,
}

/// The download volume of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Number of downloads; a shard may be fetched more than once.
    pub fetches: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Shards {
    /// The shards of a plan; those with `is_on_disk` are from an earlier session. None if the whole source stays on disk.
    pub fn new(plan: &Plan, budget: u64, is_on_disk: impl Fn(usize) -> bool) -> Option<Self> {
        let files = &plan.externals.get(uc_store::plan::SOURCE)?.files;
        let mut shards = Self {
            budget,
            sizes: files.iter().map(|file| file.size).collect(),
            states: vec![ShardState::Absent; files.len()],
        };
        let mut numbers = plan.shards().map(|(number, _)| number).peekable();
        numbers.peek()?;
        for number in numbers.filter(|number| is_on_disk(*number)) {
            shards.states[number] = ShardState::Unverified;
        }
        Some(shards)
    }

    /// The state of a shard.
    pub fn state(&self, shard: usize) -> ShardState {
        self.states[shard]
    }

    /// Sets the state of a shard.
    pub fn set(&mut self, shard: usize, state: ShardState) {
        self.states[shard] = state;
    }

    /// Whether all of these shards can be read.
    pub fn are_present(&self, shards: &[usize]) -> bool {
        shards
            .iter()
            .all(|shard| self.states[*shard] == ShardState::Present)
    }

    /// Total size of some shards, bytes.
    pub fn bytes(&self, shards: &[usize]) -> u64 {
        shards.iter().map(|shard| self.sizes[*shard]).sum()
    }

    /// Bytes on disk; a shard that is being downloaded counts with its full size.
    pub fn used(&self) -> u64 {
        let shards = self.sizes.iter().zip(&self.states);
        let on_disk = shards.filter(|(_, state)| **state != ShardState::Absent);
        on_disk.map(|(size, _)| size).sum()
    }

    /// The next step, given the upcoming reads in order; shards that are being read come first.
    pub fn next_step(&self, reads: impl IntoIterator<Item = usize>) -> Option<Step> {
        let (mut listed, mut order) = (BTreeSet::new(), Vec::new());
        order.extend(reads.into_iter().filter(|shard| listed.insert(*shard)));
        let mut remaining = self.budget;
        let fits = order.iter().take_while(|shard| {
            let after = remaining.checked_sub(self.sizes[**shard]);
            remaining = after.unwrap_or(remaining);
            after.is_some()
        });
        let wanted = &order[..fits.count()];

        let is_on_disk = |shard: &usize| {
            matches!(
                self.states[*shard],
                ShardState::Present | ShardState::Unverified
            )
        };
        let on_disk = || (0..self.states.len()).filter(is_on_disk);
        if let Some(unused) = on_disk().find(|shard| !listed.contains(shard)) {
            return Some(Step::Evict(unused));
        }
        let farthest = || order[wanted.len()..].iter().rev().copied().find(is_on_disk);
        if self.used() > self.budget {
            return farthest().map(Step::Evict);
        }
        // One download at a time, so that shards arrive in the order of their use.
        if self.states.contains(&ShardState::Downloading) {
            return None;
        }
        let next = *wanted
            .iter()
            .find(|shard| self.states[**shard] != ShardState::Present)?;
        let added_bytes = match self.states[next] {
            ShardState::Unverified => 0,
            _ => self.sizes[next],
        };
        match self.used() + added_bytes <= self.budget {
            true => Some(Step::Fetch(next)),
            false => farthest().map(Step::Evict),
        }
    }

    /// The downloads that a sequence of jobs causes, given the shards that each job reads.
    pub fn forecast<'a>(&self, jobs: impl IntoIterator<Item = &'a [usize]>) -> Traffic {
        let jobs: Vec<&[usize]> = jobs.into_iter().collect();
        let mut shards = self.clone();
        let mut traffic = Traffic::default();
        for index in 0..=jobs.len() {
            let rest = &jobs[index..];
            let reads = || rest.iter().flat_map(|job| job.iter().copied());
            let current = rest.first().copied().unwrap_or_default();
            while let Some(step) = shards.next_step(reads()) {
                match step {
                    Step::Evict(shard) => shards.set(shard, ShardState::Absent),
                    // Shards for later jobs arrive while this one runs; they are counted with those jobs.
                    Step::Fetch(_) if shards.are_present(current) => break,
                    Step::Fetch(shard) => {
                        if shards.state(shard) == ShardState::Absent {
                            traffic.fetches += 1;
                            traffic.bytes += shards.sizes[shard];
                        }
                        shards.set(shard, ShardState::Present);
                    }
                }
            }
        }
        traffic
    }
}

#[cfg(test)]
mod tests;
