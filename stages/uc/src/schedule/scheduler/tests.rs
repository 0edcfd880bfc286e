//! Order, budget, distance and retention, on a plan without files.

use uc_settings::Settings;
use uc_store::plan::{Artifact, External, ModelSource, PLAN_VERSION, Per, StagePlan, Unit};

use super::*;

fn stage(name: &str, per: Per, reads: &[&str], writes: &[&str]) -> StagePlan {
    let refs = |names: &[&str]| {
        names
            .iter()
            .map(|name| name.parse().expect("ref"))
            .collect()
    };
    StagePlan {
        name: name.into(),
        argv: vec![name.into()],
        per,
        reads: refs(reads),
        writes: refs(writes),
        settings: Vec::new(),
        version: 1,
        cpus: 1,
        memory: 0,
        max_lead: None,
        optional: false,
        retries: 1,
        stall_timeout: 0,
        weights: None,
    }
}

/// load -> teach (rolling) -> code per layer -> finish, over `layers` layers.
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

fn board(plan: &Plan, cpus: u32) -> Board<'_> {
    Board::new(plan, &all_stale(plan), Budget { cpus, memory: 0 })
}

/// Starts what may start; returns it.
fn start_all(board: &mut Board<'_>) -> Vec<String> {
    let mut started = Vec::new();
    while let Some(id) = board.next() {
        board.set(&id, Status::Running);
        started.push(id.to_string());
    }
    started
}

#[test]
fn jobs_start_when_their_inputs_are_there_and_stages_overlap() {
    let plan = plan(3);
    let mut board = board(&plan, 8);
    assert_eq!(start_all(&mut board), ["embed", "load of layer 0"]);
    board.set(&job("load", 0), Status::Done);
    assert_eq!(start_all(&mut board), ["load of layer 1"]);
    board.set(&job("embed", None), Status::Done);
    assert_eq!(
        start_all(&mut board),
        ["code of layer 0", "teach of layer 0"]
    );
    board.set(&job("teach", 0), Status::Done);
    board.set(&job("load", 1), Status::Done);
    // teach goes on with layer 1 while code is still at layer 0.
    assert_eq!(
        start_all(&mut board),
        ["teach of layer 1", "load of layer 2"]
    );
    assert!(!board.is_complete());
}

#[test]
fn claims_on_processors_are_kept_and_who_claims_none_runs_beside_all() {
    let mut plan = plan(2);
    plan.stages[0].cpus = u32::MAX;
    let mut board = board(&plan, 4);
    // embed wants every core and comes first: it runs alone.
    assert_eq!(start_all(&mut board), ["embed"]);
    board.set(&job("embed", None), Status::Done);
    assert_eq!(start_all(&mut board), ["load of layer 0"]);
    plan.stages[1].cpus = 0;
    let mut board = self::board(&plan, 4);
    assert_eq!(start_all(&mut board), ["embed", "load of layer 0"]);
}

#[test]
fn a_ready_job_that_does_not_fit_is_not_overtaken_for_ever() {
    let mut plan = plan(2);
    plan.stages[3].cpus = u32::MAX;
    let mut board = board(&plan, 2);
    for id in [job("embed", None), job("load", 0)] {
        board.set(&id, Status::Done);
    }
    board.set(&job("load", 1), Status::Running);
    // `code` wants all cores and is first in line, so `teach` waits though it would fit.
    assert_eq!(board.next(), None);
    board.set(&job("load", 1), Status::Done);
    assert_eq!(start_all(&mut board), ["code of layer 0"]);
}

#[test]
fn memory_is_kept_but_a_job_alone_always_runs() {
    let mut plan = plan(2);
    plan.stages[0].memory = 600;
    plan.stages[1].memory = 600;
    let budget = Budget {
        cpus: 8,
        memory: 1000,
    };
    let mut limited = Board::new(&plan, &all_stale(&plan), budget);
    assert_eq!(start_all(&mut limited), ["embed"]);
    plan.stages[0].memory = 5000;
    let mut too_large = Board::new(&plan, &all_stale(&plan), budget);
    assert_eq!(start_all(&mut too_large), ["embed"]);
}

#[test]
fn a_stage_stays_within_its_distance_of_the_slowest_reader() {
    let mut plan = plan(6);
    plan.stages[1].max_lead = Some(1);
    let mut board = board(&plan, 8);
    for id in [job("embed", None), job("load", 0), job("load", 1)] {
        board.set(&id, Status::Done);
    }
    for id in [job("teach", 0), job("code", 0)] {
        board.set(&id, Status::Running);
    }
    assert_eq!(board.next(), None, "layer 0 is still being read");
    board.set(&job("teach", 0), Status::Done);
    assert_eq!(start_all(&mut board), ["teach of layer 1"]);
    board.set(&job("code", 0), Status::Done);
    assert!(start_all(&mut board).contains(&"load of layer 2".to_owned()));
}

#[test]
fn a_reader_that_waits_for_the_whole_sweep_does_not_count_and_nobody_else_runs_ahead() {
    // A sweep forward, then one backward over what the first wrote; beside it a loader for what comes later.
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
        stage("begin", Per::Run, &["source"], &["states@0"]),
        sweep,
        stage("turn", Per::Run, &["states@last"], &["gradient@last"]),
        stage("back", Per::Layer, &["states", "gradient+1"], &["gradient"]),
        load,
        stage("teach", Per::Layer, &["weights", "gradient"], &["codes"]),
    ];
    let mut board = board(&plan, 8);
    let mut order = Vec::new();
    loop {
        let started = start_all(&mut board);
        if started.is_empty() {
            break;
        }
        order.extend(started);
        let running: Vec<JobId> = board
            .jobs()
            .filter(|(_, status)| *status == Status::Running)
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            board.set(&id, Status::Done);
        }
    }
    assert!(board.is_complete(), "{order:?}");
    let at = |what: &str| order.iter().position(|job| job == what).expect("started");
    assert!(at("load of layer 1") > at("back of layer 0"), "{order:?}");
}

#[test]
fn distance_gives_way_when_nothing_else_can_go_on() {
    let mut plan = plan(3);
    plan.stages[1].max_lead = Some(0);
    // A reader of layer 0 that needs the weights of every layer first: bounds alone would stop the run.
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
    let mut board = board(&plan, 8);
    for id in [job("embed", None), job("load", 0), job("teach", 0)] {
        board.set(&id, Status::Done);
    }
    assert_eq!(start_all(&mut board), ["load of layer 1"]);
}

#[test]
fn intermediates_go_when_every_reader_is_done_and_results_stay() {
    let plan = plan(2);
    let mut board = board(&plan, 8);
    for id in [job("embed", None), job("load", 0), job("teach", 0)] {
        board.set(&id, Status::Done);
    }
    assert!(
        board.retirable(Some(&job("teach", 0))).is_empty(),
        "code of layer 0 still reads"
    );
    board.set(&job("code", 0), Status::Done);
    let gone = board.retirable(Some(&job("code", 0)));
    assert_eq!(
        gone,
        [ArtifactId::at("weights", 0), ArtifactId::at("hidden", 0)]
    );
    for id in plan.jobs() {
        board.set(&id, Status::Done);
    }
    assert!(board.is_complete());
    let all = board.retirable(None);
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
    let mut board = Board::new(&plan, &work, Budget { cpus: 8, memory: 0 });
    assert!(board.decidable().is_empty());
    for id in [job("embed", None), job("load", 0)] {
        board.set(&id, Status::Done);
    }
    assert_eq!(board.decidable(), [job("code", 0)]);
    assert_eq!(board.status(&job("code", 0)), Some(Status::Waiting));
}

#[test]
fn optional_stages_take_no_part() {
    let mut plan = plan(1);
    plan.stages[3].optional = true;
    plan.stages[4].reads = vec!["hidden@last".parse().expect("ref")];
    let board = board(&plan, 8);
    assert_eq!(board.status(&job("code", 0)), None);
    assert!(!board.has_work("code"));
    assert!(board.has_work("teach"));
}

#[test]
fn retries_are_counted_per_job() {
    let plan = plan(1);
    let mut board = board(&plan, 8);
    assert!(board.retry(&job("load", 0)));
    assert!(!board.retry(&job("load", 0)));
    assert!(board.retry(&job("teach", 0)));
}

/// The plan with what is made per layer and sent from there.
fn sending(layers: u32, temporary: bool) -> Plan {
    let mut plan = plan(layers);
    let artifact = |path: &str, temporary| Artifact {
        path: path.into(),
        temporary,
    };
    plan.artifacts
        .insert("codes".into(), artifact("c/{layer}", temporary));
    plan.artifacts
        .insert("sent".into(), artifact("s/{layer}", false));
    plan.stages[3].max_lead = Some(1);
    plan.stages[4].reads = vec!["hidden@last".parse().expect("ref")];
    plan.stages
        .push(stage("send", Per::Layer, &["codes"], &["sent"]));
    plan
}

/// Runs everything but `send` of layer 0 until nothing starts; gives the layers of `code` that were done.
fn without_sending(board: &mut Board<'_>, first: Status) -> usize {
    board.set(&job("send", 0), first);
    while let Some(id) = board.next() {
        board.set(&id, Status::Done);
    }
    let done = board.jobs().filter(|(_, status)| *status == Status::Done);
    done.filter(|(id, _)| id.stage == "code").count()
}

#[test]
fn only_what_goes_away_holds_its_producer_back() {
    let (kept, freed) = (sending(6, false), sending(6, true));
    assert_eq!(without_sending(&mut board(&kept, 8), Status::Running), 6);
    assert_eq!(without_sending(&mut board(&freed, 8), Status::Running), 2);
}

#[test]
fn what_the_network_did_not_take_is_not_overrun_and_its_stage_does_not_go_on_alone() {
    let freed = sending(6, true);
    let mut waits = board(&freed, 8);
    assert_eq!(without_sending(&mut waits, Status::GivenUp), 2);
    assert_eq!(waits.next(), None);
    assert!(!waits.is_complete());
    // Beside others it goes on.
    let kept = sending(6, false);
    let mut waits = board(&kept, 8);
    waits.set(&job("send", 0), Status::GivenUp);
    for layer in 0..2 {
        for stage in ["load", "teach", "code"] {
            waits.set(&job(stage, layer), Status::Done);
        }
    }
    waits.set(&job("load", 2), Status::Running);
    assert!(start_all(&mut waits).contains(&"send of layer 1".to_owned()));
    // A walk does not start it again.
    waits.update(&all_stale(&kept));
    assert_eq!(waits.status(&job("send", 0)), Some(Status::GivenUp));
}

#[test]
fn a_job_whose_part_of_the_source_is_absent_is_wanted_and_does_not_start() {
    let mut plan = plan(6);
    plan.stages[1].max_lead = Some(1);
    let mut board = board(&plan, 8);
    board.set(&job("embed", None), Status::Done);
    assert_eq!(board.wanted(), [job("load", 0), job("load", 1)]);
    // No later layer starts in their place: it would be too far ahead of those that read what it makes.
    let is_there = |id: &JobId| id.unit.layer() > Some(1);
    assert_eq!(board.next_if(is_there), None);
    assert_eq!(board.next_if(|_| true), Some(job("load", 0)));
    // Where only bounds are in the way, they give way; what is wanted then is what may start then.
    board.set(&job("load", 0), Status::Done);
    board.set(&job("load", 1), Status::Done);
    board.set(&job("teach", 0), Status::Running);
    assert_eq!(board.wanted(), [job("code", 0)]);
}

#[test]
fn the_expected_order_is_that_of_one_job_at_a_time() {
    let plan = plan(2);
    let budget = Budget { cpus: 1, memory: 0 };
    let order = Board::order(&plan, &all_stale(&plan), budget);
    let order: Vec<String> = order.iter().map(ToString::to_string).collect();
    assert_eq!(order.len(), 8);
    let place = |id: &str| order.iter().position(|found| found == id);
    assert!(place("teach of layer 0") < place("teach of layer 1"));
    assert!(place("code of layer 1") < place("finish"));
}
