//! Order, budget, lead and retention, on a plan without files.

use uc_settings::Settings;
use uc_store::plan::{Artifact, External, ModelSource, PLAN_VERSION, Per, StagePlan, Unit};

use super::*;
use crate::plan::test_stage;

fn stage(name: &str, per: Per, reads: &[&str], writes: &[&str]) -> StagePlan {
    let refs = |names: &[&str]| {
        names
            .iter()
            .map(|name| name.parse().expect("ref"))
            .collect()
    };
    StagePlan {
        reads: refs(reads),
        writes: refs(writes),
        ..test_stage::stage(name, per)
    }
}

/// load -> teach (passes states from layer to layer) -> code per layer -> finish, over `layers` layers.
fn plan(layers: u32) -> Plan {
    let artifact = |path: &str, temporary| Artifact {
        path: path.into(),
        temporary,
    };
    Plan {
        version: PLAN_VERSION,
        tool_version: "0".into(),
        model: ModelSource {
            name: "m".into(),
            path: "/m".into(),
            layers,
            linear_parameters: 1,
            total_parameters: 1,
            hub: None,
        },
        pack_dir: "pack".into(),
        settings: Settings::default(),
        externals: BTreeMap::from([(
            "source".into(),
            External {
                files: Vec::new(),
                digest: uc_store::sha::hash_bytes(b""),
            },
        )]),
        artifacts: BTreeMap::from([
            ("weights".into(), artifact("w/{layer}", true)),
            ("hidden".into(), artifact("h/{layer}", true)),
            ("codes".into(), artifact("c/{layer}", false)),
            ("pack".into(), artifact("pack", true)),
        ]),
        stages: vec![
            stage("embed", Per::Run, &["source"], &["hidden@0"]),
            stage("load", Per::Layer, &["source"], &["weights"]),
            stage("teach", Per::Layer, &["weights", "hidden"], &["hidden+1"]),
            stage("code", Per::Layer, &["weights", "hidden"], &["codes"]),
            stage("finish", Per::Run, &["codes", "hidden@last"], &["pack"]),
        ],
    }
}

fn job(stage: &str, layer: impl Into<Option<u32>>) -> JobId {
    JobId {
        stage: stage.into(),
        unit: layer.into().map_or(Unit::Run, Unit::Layer),
    }
}

fn all_stale(plan: &Plan) -> PendingWork {
    let mut work = PendingWork::default();
    for id in plan.jobs() {
        work.states
            .insert(id, Freshness::Stale(vec![Reason::NoReceipt]));
    }
    work
}

fn scheduler(plan: &Plan, cpus: u32) -> Scheduler<'_> {
    Scheduler::new(plan, &all_stale(plan), Budget { cpus, memory: 0 })
}

/// Starts every job that may start and returns their names.
fn start_all(scheduler: &mut Scheduler<'_>) -> Vec<String> {
    let mut started = Vec::new();
    while let Some(id) = scheduler.next() {
        scheduler.set(&id, Status::Running);
        started.push(id.to_string());
    }
    started
}

#[test]
fn jobs_start_when_their_inputs_are_ready_and_stages_overlap() {
    let plan = plan(3);
    let mut scheduler = scheduler(&plan, 8);
    assert_eq!(start_all(&mut scheduler), ["embed", "load of layer 0"]);
    scheduler.set(&job("load", 0), Status::Done);
    assert_eq!(start_all(&mut scheduler), ["load of layer 1"]);
    scheduler.set(&job("embed", None), Status::Done);
    assert_eq!(
        start_all(&mut scheduler),
        ["code of layer 0", "teach of layer 0"]
    );
    scheduler.set(&job("teach", 0), Status::Done);
    scheduler.set(&job("load", 1), Status::Done);
    // teach continues with layer 1 while code is still at layer 0.
    assert_eq!(
        start_all(&mut scheduler),
        ["teach of layer 1", "load of layer 2"]
    );
    assert!(!scheduler.is_complete());
}

#[test]
fn the_cpu_budget_is_respected_and_a_job_without_a_claim_runs_beside_any_other() {
    let mut plan = plan(2);
    plan.stages[0].cpus = u32::MAX;
    let mut scheduler = scheduler(&plan, 4);
    // embed claims every core and comes first, so it runs alone.
    assert_eq!(start_all(&mut scheduler), ["embed"]);
    scheduler.set(&job("embed", None), Status::Done);
    assert_eq!(start_all(&mut scheduler), ["load of layer 0"]);
    plan.stages[1].cpus = 0;
    let mut scheduler = self::scheduler(&plan, 4);
    assert_eq!(start_all(&mut scheduler), ["embed", "load of layer 0"]);
}

#[test]
fn a_ready_job_that_does_not_fit_is_not_starved() {
    let mut plan = plan(2);
    plan.stages[3].cpus = u32::MAX;
    let mut scheduler = scheduler(&plan, 2);
    for id in [job("embed", None), job("load", 0)] {
        scheduler.set(&id, Status::Done);
    }
    scheduler.set(&job("load", 1), Status::Running);
    // `code` claims all cores and is first in line, so `teach` waits although it would fit.
    assert_eq!(scheduler.next(), None);
    scheduler.set(&job("load", 1), Status::Done);
    assert_eq!(start_all(&mut scheduler), ["code of layer 0"]);
}

#[test]
fn the_memory_budget_is_respected_but_a_job_may_always_run_alone() {
    let mut plan = plan(2);
    plan.stages[0].memory = 600;
    plan.stages[1].memory = 600;
    let budget = Budget {
        cpus: 8,
        memory: 1000,
    };
    let mut limited = Scheduler::new(&plan, &all_stale(&plan), budget);
    assert_eq!(start_all(&mut limited), ["embed"]);
    plan.stages[0].memory = 5000;
    let mut too_large = Scheduler::new(&plan, &all_stale(&plan), budget);
    assert_eq!(start_all(&mut too_large), ["embed"]);
}

#[test]
fn a_stage_stays_within_its_lead_of_the_slowest_reader() {
    let mut plan = plan(6);
    plan.stages[1].max_lead = Some(1);
    let mut scheduler = scheduler(&plan, 8);
    for id in [job("embed", None), job("load", 0), job("load", 1)] {
        scheduler.set(&id, Status::Done);
    }
    for id in [job("teach", 0), job("code", 0)] {
        scheduler.set(&id, Status::Running);
    }
    assert_eq!(scheduler.next(), None, "layer 0 is still being read");
    scheduler.set(&job("teach", 0), Status::Done);
    assert_eq!(start_all(&mut scheduler), ["teach of layer 1"]);
    scheduler.set(&job("code", 0), Status::Done);
    assert!(start_all(&mut scheduler).contains(&"load of layer 2".to_owned()));
}

#[test]
fn a_reader_that_waits_for_the_whole_pass_does_not_count_and_no_other_stage_runs_ahead() {
    // A forward pass, then a backward pass over its outputs; beside them a loader for a later stage.
    let mut plan = plan(6);
    let artifact = |path: &str| Artifact {
        path: path.into(),
        temporary: true,
    };
    for (name, path) in [("states", "s/{layer}"), ("gradient", "g/{layer}")] {
        plan.artifacts.insert(name.into(), artifact(path));
    }
    let mut sweep = stage("sweep", Per::Layer, &["source", "states"], &["states+1"]);
    sweep.max_lead = Some(0);
    let mut load = stage("load", Per::Layer, &["source"], &["weights"]);
    load.max_lead = Some(0);
    plan.stages = vec![
        stage("embed", Per::Run, &["source"], &["states@0"]),
        sweep,
        stage("turn", Per::Run, &["states@last"], &["gradient@last"]),
        stage("back", Per::Layer, &["states", "gradient+1"], &["gradient"]),
        load,
        stage("teach", Per::Layer, &["weights", "gradient"], &["codes"]),
    ];
    let mut scheduler = scheduler(&plan, 8);
    let mut order = Vec::new();
    loop {
        let started = start_all(&mut scheduler);
        if started.is_empty() {
            break;
        }
        order.extend(started);
        let running: Vec<JobId> = scheduler
            .jobs()
            .filter(|(_, status)| *status == Status::Running)
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            scheduler.set(&id, Status::Done);
        }
    }
    assert!(scheduler.is_complete(), "{order:?}");
    let at = |what: &str| order.iter().position(|job| job == what).expect("started");
    assert!(at("load of layer 1") > at("back of layer 0"), "{order:?}");
}

#[test]
fn the_lead_is_ignored_when_nothing_else_can_proceed() {
    let mut plan = plan(3);
    plan.stages[1].max_lead = Some(0);
    // A reader of layer 0 that needs the weights of every layer first: the bound alone would stop the run.
    plan.artifacts.insert(
        "late".into(),
        Artifact {
            path: "late".into(),
            temporary: false,
        },
    );
    plan.stages
        .push(stage("late", Per::Run, &["weights"], &["late"]));
    plan.stages[3].reads.push("late".parse().expect("ref"));
    let mut scheduler = scheduler(&plan, 8);
    for id in [job("embed", None), job("load", 0), job("teach", 0)] {
        scheduler.set(&id, Status::Done);
    }
    assert_eq!(start_all(&mut scheduler), ["load of layer 1"]);
}

#[test]
fn intermediates_are_deleted_after_their_last_reader_and_results_stay() {
    let plan = plan(2);
    let mut scheduler = scheduler(&plan, 8);
    for id in [job("embed", None), job("load", 0), job("teach", 0)] {
        scheduler.set(&id, Status::Done);
    }
    assert!(
        scheduler.retirable(Some(&job("teach", 0))).is_empty(),
        "code of layer 0 still reads"
    );
    scheduler.set(&job("code", 0), Status::Done);
    let retirable = scheduler.retirable(Some(&job("code", 0)));
    assert_eq!(
        retirable,
        [ArtifactId::at("weights", 0), ArtifactId::at("hidden", 0)]
    );
    for id in plan.jobs() {
        scheduler.set(&id, Status::Done);
    }
    assert!(scheduler.is_complete());
    let all = scheduler.retirable(None);
    assert!(
        all.iter().all(|id| id.name != "codes" && id.name != "pack"),
        "{all:?}"
    );
    assert_eq!(all.len(), 2 + 3);
}

#[test]
fn waiting_jobs_are_decided_when_their_producers_are_done() {
    let plan = plan(1);
    let mut work = all_stale(&plan);
    let wait = Reason::Waits(ArtifactId::at("weights", 0));
    work.states
        .insert(job("code", 0), Freshness::Stale(vec![wait]));
    let mut scheduler = Scheduler::new(&plan, &work, Budget { cpus: 8, memory: 0 });
    assert!(scheduler.decidable().is_empty());
    for id in [job("embed", None), job("load", 0)] {
        scheduler.set(&id, Status::Done);
    }
    assert_eq!(scheduler.decidable(), [job("code", 0)]);
    assert_eq!(scheduler.status(&job("code", 0)), Some(Status::Waiting));
}

#[test]
fn optional_stages_are_not_scheduled() {
    let mut plan = plan(1);
    plan.stages[3].optional = true;
    plan.stages[4].reads = vec!["hidden@last".parse().expect("ref")];
    let scheduler = scheduler(&plan, 8);
    assert_eq!(scheduler.status(&job("code", 0)), None);
    assert!(!scheduler.has_work("code"));
    assert!(scheduler.has_work("teach"));
}

#[test]
fn retries_are_counted_per_job() {
    let plan = plan(1);
    let mut scheduler = scheduler(&plan, 8);
    assert!(scheduler.retry(&job("load", 0)));
    assert!(!scheduler.retry(&job("load", 0)));
    assert!(scheduler.retry(&job("teach", 0)));
}

/// The plan with an upload of every layer.
fn uploading(layers: u32, temporary: bool) -> Plan {
    let mut plan = plan(layers);
    let artifact = |path: &str, temporary| Artifact {
        path: path.into(),
        temporary,
    };
    plan.artifacts
        .insert("codes".into(), artifact("c/{layer}", temporary));
    plan.artifacts
        .insert("uploaded".into(), artifact("s/{layer}", false));
    plan.stages[3].max_lead = Some(1);
    plan.stages[4].reads = vec!["hidden@last".parse().expect("ref")];
    plan.stages
        .push(stage("upload", Per::Layer, &["codes"], &["uploaded"]));
    plan
}

/// Runs everything but `upload` of layer 0 until nothing starts; returns how many layers `code` completed.
fn coded_without_upload(scheduler: &mut Scheduler<'_>, first_upload: Status) -> usize {
    scheduler.set(&job("upload", 0), first_upload);
    while let Some(id) = scheduler.next() {
        scheduler.set(&id, Status::Done);
    }
    let done = scheduler
        .jobs()
        .filter(|(_, status)| *status == Status::Done);
    done.filter(|(id, _)| id.stage == "code").count()
}

#[test]
fn only_temporary_outputs_hold_their_producer_back() {
    let (kept, deleted) = (uploading(6, false), uploading(6, true));
    assert_eq!(
        coded_without_upload(&mut scheduler(&kept, 8), Status::Running),
        6
    );
    assert_eq!(
        coded_without_upload(&mut scheduler(&deleted, 8), Status::Running),
        2
    );
}

#[test]
fn a_failed_upload_holds_its_producer_back_and_its_stage_does_not_continue_alone() {
    let deleted = uploading(6, true);
    let mut stalled = scheduler(&deleted, 8);
    assert_eq!(coded_without_upload(&mut stalled, Status::GivenUp), 2);
    assert_eq!(stalled.next(), None);
    assert!(!stalled.is_complete());
    // Beside running stages it continues.
    let kept = uploading(6, false);
    let mut stalled = scheduler(&kept, 8);
    stalled.set(&job("upload", 0), Status::GivenUp);
    for layer in 0..2 {
        for stage in ["load", "teach", "code"] {
            stalled.set(&job(stage, layer), Status::Done);
        }
    }
    stalled.set(&job("load", 2), Status::Running);
    assert!(start_all(&mut stalled).contains(&"upload of layer 1".to_owned()));
    // A freshness check does not start it again.
    stalled.update(&all_stale(&kept));
    assert_eq!(stalled.status(&job("upload", 0)), Some(Status::GivenUp));
}

#[test]
fn a_job_whose_part_of_the_source_is_absent_is_runnable_but_does_not_start() {
    let mut plan = plan(6);
    plan.stages[1].max_lead = Some(1);
    let mut scheduler = scheduler(&plan, 8);
    scheduler.set(&job("embed", None), Status::Done);
    assert_eq!(scheduler.runnable(), [job("load", 0), job("load", 1)]);
    // No later layer starts in their place: it would be too far ahead of its readers.
    let is_present = |id: &JobId| id.unit.layer() > Some(1);
    assert_eq!(scheduler.next_if(is_present), None);
    assert_eq!(scheduler.next_if(|_| true), Some(job("load", 0)));
    // With other jobs running, the bound holds for what is runnable.
    scheduler.set(&job("load", 0), Status::Done);
    scheduler.set(&job("load", 1), Status::Done);
    scheduler.set(&job("teach", 0), Status::Running);
    assert_eq!(scheduler.runnable(), [job("code", 0)]);
}

#[test]
fn the_sequential_order_respects_dependencies() {
    let plan = plan(2);
    let budget = Budget { cpus: 1, memory: 0 };
    let order = Scheduler::sequential_order(&plan, &all_stale(&plan), budget);
    let order: Vec<String> = order.iter().map(ToString::to_string).collect();
    assert_eq!(order.len(), 8);
    let position = |id: &str| order.iter().position(|job| job == id);
    assert!(position("teach of layer 0") < position("teach of layer 1"));
    assert!(position("code of layer 1") < position("finish"));
}
