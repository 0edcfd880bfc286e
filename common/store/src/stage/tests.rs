use super::serve::execute;
use super::*;
use crate::atomic;
use crate::events::EventKind;
use crate::plan::tests_support::{folder, small_plan};
use crate::plan::{ExternalFile, JobId, Plan, SOURCE, Unit};
use crate::receipt::Receipt;
use crate::run::RunDir;
use crate::source::Verified;

/// A task that writes a fixed text into an output, and publishes it unless told otherwise.
fn echo(output: &'static str, commit: bool) -> Task {
    Task::new("echo", "", move |job| {
        job.progress(1, 2, "half");
        job.metric("length", 5);
        atomic::write_bytes(&job.work_dir()?.join("partial"), b"state")?;
        let mut file = job.output(output)?;
        file.append(b"hello")?;
        if commit {
            job.commit(output, file)?;
        }
        Ok(())
    })
}

fn start() -> (tempfile::TempDir, RunDir, Plan) {
    let (keep, folder) = folder();
    let plan = small_plan();
    let run = RunDir::create(&folder, &plan).expect("run");
    (keep, run, plan)
}

fn job(stage: &str, unit: Unit) -> JobId {
    JobId {
        stage: stage.into(),
        unit,
    }
}

fn perform(
    run: &RunDir,
    plan: &Plan,
    id: &JobId,
    output: &'static str,
) -> (anyhow::Result<()>, Vec<EventKind>) {
    let mut events = Vec::new();
    let mut task = echo(output, true);
    let mut verified = Verified::default();
    let outcome = execute(run, plan, id, &mut task, &mut verified, &mut |event| {
        events.push(event.kind)
    });
    (outcome, events)
}

#[test]
fn a_job_leaves_output_metrics_and_receipt_but_no_scratch() {
    let (_keep, run, plan) = start();
    let load = job("load", Unit::Layer(1));
    let (outcome, events) = perform(&run, &plan, &load, "weights");
    outcome.expect("done");
    assert!(matches!(events[0], EventKind::Started));
    assert!(matches!(
        events[1],
        EventKind::Progress {
            done: 1,
            total: 2,
            ..
        }
    ));
    assert!(matches!(events[2], EventKind::Metric { .. }));
    assert!(matches!(events[3], EventKind::Finished { .. }));
    let receipt = Receipt::read(&run, &load).expect("read").expect("there");
    assert_eq!(receipt.outputs[0].size, 5);
    assert_eq!(
        std::fs::read(run.root().join("layers/001/weights")).expect("output"),
        b"hello"
    );
    let metrics = std::fs::read_to_string(run.metrics_path(&load)).expect("metrics");
    assert!(metrics.contains("\"length\": 5"));
    assert!(!run.work_path(&load).exists());
}

#[test]
fn what_an_interrupted_job_left_is_kept_for_the_same_key_only() {
    let (_keep, run, mut plan) = start();
    perform(&run, &plan, &job("load", Unit::Layer(0)), "weights")
        .0
        .expect("load");
    perform(&run, &plan, &job("embed", Unit::Run), "hidden")
        .0
        .expect("embed");
    let quantize = job("quantize", Unit::Layer(0));
    // Fails after leaving a file, unless there is one.
    let found = |plan: &Plan| {
        let mut task = Task::new("", "", |job| {
            let state = job.resumable_dir()?.join("state");
            anyhow::ensure!(state.exists(), {
                atomic::write_bytes(&state, b"state")?;
                "interrupted"
            });
            let file = job.output("codes")?;
            job.commit("codes", file)?;
            Ok(())
        });
        let mut verified = Verified::default();
        execute(&run, plan, &quantize, &mut task, &mut verified, &mut |_| {}).is_ok()
    };
    assert!(!found(&plan), "nothing is there");
    plan.settings.quantize.bpw = 4.0;
    assert!(!found(&plan), "other settings");
    assert!(found(&plan), "the same job");
    assert!(!run.work_path(&quantize).exists());
}

#[test]
fn inputs_are_verified_before_the_job_runs() {
    let (_keep, run, plan) = start();
    let quantize = job("quantize", Unit::Layer(0));
    let error = perform(&run, &plan, &quantize, "codes")
        .0
        .expect_err("no input");
    assert!(
        error
            .to_string()
            .contains("weights@000 is missing: quantize of layer 0 needs it"),
        "{error}"
    );
    perform(&run, &plan, &job("load", Unit::Layer(0)), "weights")
        .0
        .expect("load");
    perform(&run, &plan, &job("embed", Unit::Run), "hidden")
        .0
        .expect("embed");
    perform(&run, &plan, &quantize, "codes")
        .0
        .expect("quantize");

    atomic::write_bytes(&run.root().join("layers/000/weights"), b"hellO").expect("damage");
    let error = perform(&run, &plan, &quantize, "codes")
        .0
        .expect_err("damaged");
    assert_eq!(ExitCode::of_error(&error), Some(ExitCode::Damaged));
    std::fs::remove_file(run.root().join("layers/000/weights")).expect("removed");
    let error = perform(&run, &plan, &quantize, "codes")
        .0
        .expect_err("missing");
    assert_eq!(ExitCode::of_error(&error), Some(ExitCode::MissingInput));
}

#[test]
fn an_output_that_was_not_published_is_an_error_and_leaves_no_receipt() {
    let (_keep, run, plan) = start();
    let load = job("load", Unit::Layer(0));
    let mut task = echo("weights", false);
    let mut verified = Verified::default();
    let error = execute(&run, &plan, &load, &mut task, &mut verified, &mut |_| {});
    let error = error.expect_err("not published");
    assert!(
        error
            .to_string()
            .contains("without publishing its output `weights@000`"),
        "{error}"
    );
    assert_eq!(Receipt::read(&run, &load).expect("read"), None);
    assert!(!run.root().join("layers/000/weights").exists());
}

#[test]
fn unknown_names_and_layers_are_refused() {
    let (_keep, run, plan) = start();
    let error = perform(&run, &plan, &job("load", Unit::Layer(0)), "codes")
        .0
        .expect_err("unknown");
    assert!(
        error
            .to_string()
            .contains("unknown output of this stage `codes`; known: weights@000"),
        "{error}"
    );
    let error = perform(&run, &plan, &job("load", Unit::Layer(2)), "weights")
        .0
        .expect_err("layer");
    assert!(
        error.to_string().contains("layer found 2, expected 0 to 1"),
        "{error}"
    );
    let error = perform(&run, &plan, &job("embed", Unit::Layer(0)), "hidden")
        .0
        .expect_err("layer");
    assert!(error.to_string().contains("one job for the run"), "{error}");
    let error = perform(&run, &plan, &job("nothing", Unit::Run), "hidden")
        .0
        .expect_err("stage");
    assert!(
        error.to_string().contains("unknown stage `nothing`"),
        "{error}"
    );
}

#[test]
fn a_shard_is_verified_only_for_the_jobs_that_read_it() {
    let (_keep, run, mut plan) = start();
    let path = run.root().join("source/shard");
    let source = plan.externals.get_mut(SOURCE).expect("source");
    source.files.push(ExternalFile {
        path: path.clone(),
        size: 4,
        sha256: crate::sha::hash_bytes(b"good"),
        mtime_ns: 0,
        shard: Some(crate::plan::ShardContent {
            layers: vec![1],
            non_layer: false,
            header: None,
        }),
    });
    let load = plan.stages.iter_mut().find(|stage| stage.name == "load");
    load.expect("a stage").weights = Some(crate::plan::Weights::Layer);
    let load = |layer| perform(&run, &plan, &job("load", Unit::Layer(layer)), "weights").0;
    load(0).expect("reads no shard");
    let class = |error: anyhow::Error| ExitCode::of_error(&error);
    let absent = load(1).expect_err("absent");
    assert!(absent.to_string().contains("source/shard"), "{absent}");
    assert_eq!(class(absent), Some(ExitCode::MissingInput));
    atomic::write_bytes(&path, b"evil").expect("written");
    assert_eq!(
        class(load(1).expect_err("other bytes")),
        Some(ExitCode::BadInput)
    );
    load(0).expect("reads no shard");
    atomic::write_bytes(&path, b"good").expect("written");
    load(1).expect("the planned bytes");
}

#[test]
fn a_process_hashes_an_unchanged_file_once() {
    let (_keep, folder) = folder();
    let path = folder.join("file");
    atomic::write_bytes(&path, b"good").expect("written");
    let mut file = crate::source::describe_file(&path).expect("hashed");
    file.mtime_ns = 0;
    let mut verified = Verified::default();
    crate::source::verify_file(&file, &mut verified).expect("good");
    // The file is recognized by its time of change, so the wrong digest in the plan is not compared.
    file.sha256 = crate::sha::hash_bytes(b"other");
    crate::source::verify_file(&file, &mut verified).expect("known");
    atomic::write_bytes(&path, b"good").expect("written again");
    assert!(crate::source::verify_file(&file, &mut verified).is_err());
}

/// A program with two tasks that are never run.
fn two_tasks() -> (Program, Vec<Task>) {
    let program = Program {
        name: "worker",
        about: "Works",
        version: 1,
        classify: |_| None,
    };
    let task = |name| Task::new(name, "One part of the work", |_| unreachable!());
    (program, vec![task("first"), task("second")])
}

#[test]
fn a_task_is_a_subcommand_and_a_program_of_one_nameless_task_has_none() {
    let (program, tasks) = two_tasks();
    let parse = |tasks: &[Task], words: &[&str]| {
        command(program, tasks, Command::new(program.name)).try_get_matches_from(words)
    };
    let matches = parse(&tasks, &["worker", "second", "--run", "r", "--layer", "3"]);
    let matches = matches.expect("a task");
    let (name, matches) = matches.subcommand().expect("a task");
    assert_eq!(name, "second");
    let args = StageArgs::from_arg_matches(matches).expect("arguments");
    assert_eq!((args.run, args.layer), (Some("r".into()), Some(3)));
    let nameless = [Task::new("", "", |_| unreachable!())];
    parse(&nameless, &["worker", "--describe"]).expect("no task word");
    for tasks in [&tasks[..], &nameless] {
        let help = command(program, tasks, Command::new(program.name)).render_help();
        assert!(help.to_string().starts_with("Works\n"), "{help}");
    }
    let help = command(program, &tasks, Command::new(program.name)).render_help();
    let help = help.to_string();
    assert!(help.contains("first   One part of the work"), "{help}");

    let refused = |tasks: &[Task], words: &[&str]| parse(tasks, words).expect_err("refused").kind();
    use clap::error::ErrorKind;
    assert_eq!(
        refused(&tasks, &["worker", "third", "--describe"]),
        ErrorKind::InvalidSubcommand
    );
    assert_eq!(
        refused(&tasks, &["worker"]),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    assert_eq!(
        refused(&tasks, &["worker", "first"]),
        ErrorKind::MissingRequiredArgument
    );
    assert_eq!(
        refused(
            &tasks,
            &["worker", "first", "--run", "r", "--layer", "1", "--jobs"]
        ),
        ErrorKind::ArgumentConflict
    );
}

#[test]
fn the_stores_class_of_an_error_precedes_the_programs_unless_it_is_vague() {
    let program = Program {
        classify: |_| Some(ExitCode::Network),
        ..two_tasks().0
    };
    let path = camino::Utf8Path::new("/x");
    let store_error = |kind: std::io::ErrorKind| {
        anyhow::Error::from(crate::StoreError::io("write", path)(kind.into()))
    };
    let full = store_error(std::io::ErrorKind::StorageFull);
    assert_eq!(classify(program, &full), ExitCode::DiskFull);
    let vague = store_error(std::io::ErrorKind::BrokenPipe);
    assert_eq!(classify(program, &vague), ExitCode::Network);
    let unknown = anyhow::anyhow!("unknown");
    assert_eq!(classify(two_tasks().0, &vague), ExitCode::Io);
    assert_eq!(classify(two_tasks().0, &unknown), ExitCode::Internal);
}
