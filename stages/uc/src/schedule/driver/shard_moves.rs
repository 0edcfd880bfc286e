//! Fetching and evicting shards of the source, and counting the retries of jobs, including fetches.

use uc_store::ExitCode;
use uc_store::events::{Event, EventKind};
use uc_store::plan::{JobId, SOURCE};

use super::Driver;
use crate::schedule::shards::{ShardState, Step};

impl Driver<'_> {
    /// Fetches the shards that jobs will read next, and evicts those that no job reads again or that take up their space.
    pub(super) fn move_shards(&mut self) -> anyhow::Result<()> {
        while let Some(source) = &mut self.source
            && self.shards_outdated
        {
            let running = self.jobs.values().map(|job| &job.id);
            let step = source
                .shards
                .next_step(source.upcoming_reads(&self.scheduler, running));
            match step {
                None => self.shards_outdated = false,
                Some(Step::Fetch(shard)) => {
                    source.shards.set(shard, ShardState::Downloading);
                    let id = source.fetch_job(shard);
                    self.dispatch(id)?;
                }
                Some(Step::Evict(shard)) => {
                    let path = &self.plan.externals[SOURCE].files[shard].path;
                    self.run
                        .remove_shard(path.file_name().unwrap_or_default())?;
                    source.shards.set(shard, ShardState::Absent);
                    let JobId { stage, unit } = source.fetch_job(shard);
                    let artifact = path.file_name().unwrap_or_default().to_owned();
                    let kind = EventKind::Retired { artifact };
                    self.log.write_job_event(&Event { stage, unit, kind });
                }
            }
        }
        Ok(())
    }

    /// Counts a retry of a job; `false` if its stage allows no more.
    pub(super) fn retry(&mut self, id: &JobId, class: ExitCode) -> bool {
        let fetch_retries = self.source.as_mut().and_then(|source| {
            let shard = source.fetched_by(id)?;
            let is_complete = self.plan.externals[SOURCE].files[shard].path.exists();
            let state = match is_complete {
                true => ShardState::Unverified,
                false => ShardState::Absent,
            };
            source.shards.set(shard, state);
            source.retries += 1;
            Some(source.retries)
        });
        match fetch_retries {
            // After a network failure the stage has already retried by itself.
            Some(retries) => {
                let allowed = self.plan.stage(&id.stage).map_or(0, |stage| stage.retries);
                class != ExitCode::Network && retries <= allowed
            }
            None => self.scheduler.retry(id),
        }
    }
}
