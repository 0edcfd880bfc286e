//! Which shard of a model of the Hub comes next, and which goes: the source as a window that a budget bounds.
//!
//! Pure decisions on sizes and on the order in which jobs will read; files and processes are the driver's business.
//! Of the shards in the order of their next use the longest beginning that fits into the budget is what ought to be
//! there. So the next ones come before they are asked for, what is read last goes first, and what nobody reads any
//! more goes at once.

use std::collections::BTreeSet;

use uc_store::plan::Plan;

/// Where a shard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the Hub alone.
    Absent,
    /// On disk since an earlier session; nobody has looked at it since.
    Left,
    /// On its way.
    Coming,
    /// On disk and verified when it came.
    Here,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fetch a shard, or look whether one that was left is whole.
    Fetch(usize),
    /// Remove a shard.
    Evict(usize),
}

/// The shards of a run, by their number in the outside input `source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    budget: u64,
    sizes: Vec<u64>,
    places: Vec<Place>,
}

/// What a whole run moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Shards that come, each as often as it comes.
    pub fetches: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Shards {
    /// The shards of a plan, those with `is_here` left from earlier; none if its source does not come and go.
    pub fn of(plan: &Plan, budget: u64, is_here: impl Fn(usize) -> bool) -> Option<Self> {
        let files = &plan.externals.get(uc_store::plan::SOURCE)?.files;
        let mut shards = Self {
            budget,
            sizes: files.iter().map(|file| file.size).collect(),
            places: vec![Place::Absent; files.len()],
        };
        let mut found = plan.shards().peekable();
        found.peek()?;
        for (number, _) in found.filter(|(number, _)| is_here(*number)) {
            shards.places[number] = Place::Left;
        }
        Some(shards)
    }

    /// Where a shard stands.
    pub fn place(&self, shard: usize) -> Place {
        self.places[shard]
    }

    /// Notes where a shard stands now.
    pub fn set(&mut self, shard: usize, place: Place) {
        self.places[shard] = place;
    }

    /// Whether all of these can be read.
    pub fn are_here(&self, shards: &[usize]) -> bool {
        shards
            .iter()
            .all(|shard| self.places[*shard] == Place::Here)
    }

    /// Bytes of some shards.
    pub fn bytes(&self, shards: &[usize]) -> u64 {
        shards.iter().map(|shard| self.sizes[*shard]).sum()
    }

    /// Bytes on disk; a shard on its way counts whole.
    pub fn used(&self) -> u64 {
        let places = self.sizes.iter().zip(&self.places);
        let there = places.filter(|(_, place)| **place != Place::Absent);
        there.map(|(size, _)| size).sum()
    }

    /// The next step, given the shards in the order in which they will be read, those that are being read first.
    pub fn step(&self, uses: impl IntoIterator<Item = usize>) -> Option<Step> {
        let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
        order.extend(uses.into_iter().filter(|shard| seen.insert(*shard)));
        let mut room = self.budget;
        let fits = order.iter().take_while(|shard| {
            let left = room.checked_sub(self.sizes[**shard]);
            room = left.unwrap_or(room);
            left.is_some()
        });
        let wanted = &order[..fits.count()];

        let is_on_disk = |shard: &usize| matches!(self.places[*shard], Place::Here | Place::Left);
        let on_disk = || (0..self.places.len()).filter(is_on_disk);
        if let Some(useless) = on_disk().find(|shard| !seen.contains(shard)) {
            return Some(Step::Evict(useless));
        }
        let last = || order[wanted.len()..].iter().rev().copied().find(is_on_disk);
        if self.used() > self.budget {
            return last().map(Step::Evict);
        }
        // One at a time: shards arrive in the order of their use.
        if self.places.contains(&Place::Coming) {
            return None;
        }
        let next = *wanted
            .iter()
            .find(|shard| self.places[**shard] != Place::Here)?;
        let more = match self.places[next] {
            Place::Left => 0,
            _ => self.sizes[next],
        };
        match self.used() + more <= self.budget {
            true => Some(Step::Fetch(next)),
            false => last().map(Step::Evict),
        }
    }

    /// What comes over the wire when jobs that read these shards run one after another.
    pub fn forecast<'a>(&self, jobs: impl IntoIterator<Item = &'a [usize]>) -> Traffic {
        let jobs: Vec<&[usize]> = jobs.into_iter().collect();
        let mut shards = self.clone();
        let mut traffic = Traffic::default();
        for place in 0..=jobs.len() {
            let rest = &jobs[place..];
            let uses = || rest.iter().flat_map(|job| job.iter().copied());
            let now = rest.first().copied().unwrap_or_default();
            while let Some(step) = shards.step(uses()) {
                match step {
                    Step::Evict(shard) => shards.set(shard, Place::Absent),
                    // What is read later comes meanwhile, and is counted when its turn comes.
                    Step::Fetch(_) if shards.are_here(now) => break,
                    Step::Fetch(shard) => {
                        if shards.place(shard) == Place::Absent {
                            traffic.fetches += 1;
                            traffic.bytes += shards.sizes[shard];
                        }
                        shards.set(shard, Place::Here);
                    }
                }
            }
        }
        traffic
    }
}

#[cfg(test)]
mod tests;
