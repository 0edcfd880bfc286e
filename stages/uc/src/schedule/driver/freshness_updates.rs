//! Decisions of the driver that depend on freshness: which waiting jobs have to run, and which files may be deleted.

use std::collections::BTreeMap;

use uc_store::events::{Event, EventKind};
use uc_store::freshness::{self, Freshness, Reason};
use uc_store::plan::{ArtifactId, JobId, Unit};

use super::Driver;
use crate::report::event_log::JobStates;
use crate::schedule::scheduler::Status;

impl Driver<'_> {
    /// Decides whether waiting jobs have to run, as far as their inputs are known by now.
    pub(super) fn decide_waiting(&mut self) -> anyhow::Result<()> {
        let (mut any_retired, mut done) = (false, Vec::new());
        loop {
            let decidable = self.scheduler.decidable();
            if decidable.is_empty() {
                break;
            }
            for id in decidable {
                let state = freshness::state_of(self.plan, self.run, &id, &mut self.work)?;
                any_retired |= state == Freshness::Retired;
                let status = match &state {
                    Freshness::Fresh | Freshness::Retired => Status::Done,
                    Freshness::Stale(_) => Status::Stale,
                };
                self.scheduler.set(&id, status);
                if status == Status::Done {
                    self.display.job_done(&id, None);
                    done.push(id.clone());
                } else {
                    self.display.detail(&format!("{id}: {}", describe(&state)));
                }
                self.work.states.insert(id.clone(), state);
                self.log_states(&[id]);
            }
        }
        if any_retired {
            self.reschedule_retired()?;
        }
        done.iter()
            .try_for_each(|id| self.delete_retirable(Some(id)))
    }

    /// Marks jobs as stale whose deleted outputs are needed again.
    fn reschedule_retired(&mut self) -> anyhow::Result<()> {
        let before: Vec<JobId> = self.work.to_run(self.plan);
        freshness::demand_retired(self.plan, self.run, &mut self.work)?;
        for id in self.work.to_run(self.plan) {
            if !before.contains(&id) && self.scheduler.status(&id) == Some(Status::Done) {
                self.scheduler.set(&id, Status::Stale);
                self.log_states(&[id]);
            }
        }
        Ok(())
    }

    /// Deletes intermediate files that no job needs any more: inputs and outputs of one job, or of all for `None`.
    pub(super) fn delete_retirable(&mut self, job: Option<&JobId>) -> anyhow::Result<()> {
        for id in self.scheduler.retirable(job) {
            if !self.run.artifact_path(self.plan, &id)?.exists() {
                continue;
            }
            freshness::retire(self.plan, self.run, &id)?;
            let producer = self.plan.producer(&id);
            self.log_retired(&id, producer);
        }
        Ok(())
    }

    fn log_retired(&mut self, id: &ArtifactId, producer: Option<JobId>) {
        let (stage, unit) =
            producer.map_or((String::new(), Unit::Run), |job| (job.stage, job.unit));
        self.log.write_job_event(&Event {
            stage,
            unit,
            kind: EventKind::Retired {
                artifact: id.to_string(),
            },
        });
    }

    /// Logs the state of every job.
    pub(super) fn log_all_states(&mut self) {
        let jobs: Vec<JobId> = self.work.states.keys().cloned().collect();
        self.log_states(&jobs);
    }

    /// Logs the states that the freshness check gave to jobs, one event per stage.
    fn log_states(&mut self, jobs: &[JobId]) {
        let mut stages: BTreeMap<&str, JobStates> = BTreeMap::new();
        for id in jobs {
            let states = stages.entry(&id.stage).or_default();
            let never_ran =
                |reason: &Reason| matches!(reason, Reason::NoReceipt | Reason::Waits(_));
            let list = match self.work.states.get(id) {
                Some(Freshness::Fresh | Freshness::Retired) => &mut states.done,
                Some(Freshness::Stale(reasons)) if !reasons.iter().all(never_ran) => {
                    &mut states.stale
                }
                _ => &mut states.waiting,
            };
            list.push(id.unit.layer());
        }
        for (stage, mut states) in stages {
            states.stage = stage.to_owned();
            self.log.write_job_states(&states);
        }
    }
}

/// The freshness of a job in one line.
fn describe(state: &Freshness) -> String {
    match state {
        Freshness::Stale(reasons) => {
            let texts: Vec<String> = reasons.iter().map(Reason::to_string).collect();
            texts.join("; ")
        }
        Freshness::Fresh => "up to date".into(),
        Freshness::Retired => "up to date, intermediate files deleted".into(),
    }
}
