//! The forecast of the measured run, the completeness of the formulas, and the effect of settings and machine.

use super::measured::SHORT;
use super::*;
use crate::plan::pipeline::DEFAULT;

fn measured() -> MeasuredRun {
    Measurements::embedded()
        .expect("the embedded measurements")
        .runs
        .swap_remove(0)
}

/// The forecast of the first measured model.
fn forecast_measured(settings: &[(&str, &str)], machine: Machine) -> Forecast {
    let pipeline = Pipeline::load(None).expect("built in");
    let mut chosen = pipeline.settings().clone();
    for (key, value) in settings {
        chosen.set(key, value).expect(key);
    }
    forecast(measured().model, &pipeline, &chosen, machine).expect("a forecast")
}

#[test]
fn the_forecasts_of_the_measured_runs_are_within_a_quarter_of_the_measurement() {
    let pipeline = Pipeline::load(None).expect("built in");
    for run in Measurements::embedded().expect("embedded").runs {
        let settings = run.settings().expect("settings");
        let forecast = forecast(run.model.clone(), &pipeline, &settings, Machine::default());
        let planned = forecast.expect("a forecast").run;
        let mut is_complete = true;
        for stage in &planned.stages {
            let Some(expected) = run.seconds_alone(&stage.name) else {
                is_complete = false;
                continue;
            };
            if expected < SHORT {
                continue;
            }
            let ratio = stage.seconds / expected;
            assert!(
                (0.75..1.25).contains(&ratio),
                "{}: {}",
                run.receipt,
                stage.name
            );
            let range = stage.seconds_low..=stage.seconds_high;
            assert!(
                range.contains(&stage.seconds) && range.contains(&expected),
                "{}",
                stage.name
            );
        }
        let ratio = planned.hours * 3600.0 / run.wall_seconds;
        assert!(
            !is_complete || (0.75..1.25).contains(&ratio),
            "{}: {ratio} of the measured time",
            run.receipt
        );
        assert!((planned.hours_low..=planned.hours_high).contains(&planned.hours));
    }
    assert_eq!(
        forecast_measured(&[], Machine::default())
            .pack
            .bits_per_weight_linears,
        5.0
    );
}

/// A layer of a width between those that the forecast rests on.
#[test]
fn the_forecast_at_a_width_that_was_not_fitted_is_within_a_quarter_of_the_measurement() {
    const RECEIPT: &str = include_str!("../../../../docs/benchmarks/wide-layers-quarter.json");
    let receipt: serde_json::Value = serde_json::from_str(RECEIPT).expect("JSON");
    let measured = &receipt["models"]["llama-405b"];
    let model: ModelSummary = serde_json::from_value(measured["model"].clone()).expect("a model");
    let is_other = |run: &MeasuredRun| run.model.hidden != model.hidden;
    let runs = Measurements::embedded().expect("embedded").runs;
    assert!(runs.iter().all(is_other));
    let pipeline = Pipeline::load(None).expect("built in");
    let mut settings = pipeline.settings().clone();
    for (key, value) in measured["settings"].as_object().expect("settings") {
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        settings.set(key, &value).expect(key);
    }
    let forecast = forecast(model, &pipeline, &settings, Machine::default());
    let planned = forecast.expect("a forecast").run;
    let seconds = measured["wall_seconds"].as_f64().expect("seconds");
    let ratio = planned.hours * 3600.0 / seconds;
    assert!((0.75..1.25).contains(&ratio), "{ratio}");
}

/// A run on another processor than that of the measured runs, whose speeds alone are known.
#[test]
fn the_forecast_for_another_processor_is_within_a_quarter_of_the_measurement() {
    const RECEIPT: &str = include_str!("../../../../docs/benchmarks/smollm2-135m-amx.json");
    const PROBE: &str = include_str!("../../../../docs/benchmarks/probe-amx.json");
    let receipt: serde_json::Value = serde_json::from_str(RECEIPT).expect("JSON");
    let probe: Probe = serde_json::from_str(PROBE).expect("a probe");
    assert_ne!(
        probe.processor,
        Measurements::embedded().expect("embedded").probe.processor
    );
    let machine = Machine {
        probe: Some((probe, SpeedsOf::File)),
        ..Machine::default()
    };
    let planned = forecast_measured(&[], machine).run;
    let hours = receipt["wall_seconds"].as_f64().expect("seconds") / 3600.0;
    let ratio = planned.hours / hours;
    assert!((0.75..1.25).contains(&ratio), "{ratio}");
    assert!((planned.hours_low..=planned.hours_high).contains(&hours));
}

#[test]
fn times_are_those_of_the_receipts_that_they_name() {
    // A receipt that was recorded before these stages were renamed.
    let recorded_as = BTreeMap::from([
        ("non-layer", "scaffold"),
        ("sensitivity-windows", "survey-windows"),
        ("sensitivity-forward", "survey"),
        ("sensitivity-loss", "loss"),
        ("sensitivity-backward", "sensitivity"),
    ]);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks");
    for run in Measurements::embedded().expect("embedded").runs {
        let path = camino::Utf8Path::new(folder).join(&run.receipt);
        let receipt: serde_json::Value =
            uc_input::read_json(&path, uc_input::LARGE_JSON).expect("a receipt");
        let receipt = match &run.entry {
            None => &receipt,
            Some(model) => &receipt["models"][model],
        };
        assert_eq!(receipt["wall_seconds"], run.wall_seconds);
        let old_names = receipt["stages"].get("scaffold").is_some();
        for (name, stage) in &run.stages {
            let recorded = recorded_as.get(name.as_str()).filter(|_| old_names);
            let seconds = &receipt["stages"][recorded.copied().unwrap_or(name)]["seconds"];
            assert_eq!(
                *seconds, stage.seconds,
                "{name}: run tests/benchmark/throughput.py"
            );
        }
    }
}

#[test]
fn the_speeds_of_another_machine_change_the_time_in_proportion() {
    let slow = forecast_measured(&[], Machine::default()).run;
    let probe = Measurements::embedded().expect("embedded").probe;
    let mut fast = probe.with(Some(2 * probe.cores), None);
    (fast.memory, fast.disk) = (2.0 * fast.memory, fast.disk.map(|speed| 2.0 * speed));
    let machine = Machine {
        probe: Some((fast, SpeedsOf::ThisMachine)),
        ..Machine::default()
    };
    let fast = forecast_measured(&[], machine).run;
    assert!((slow.hours / fast.hours - 2.0).abs() < 1e-9);
    assert_eq!(fast.machine.speeds_of, SpeedsOf::ThisMachine);
    assert_eq!(slow.machine.speeds_of, SpeedsOf::MeasuredRuns);
}

/// Checks how many files of each artifact a run of this many layers has on disk at the same time.
fn check_files_on_disk(forecast: &Forecast, layers: usize) {
    let files = |name: &str| {
        let mut disk = forecast.run.disk.iter();
        disk.find(|artifact| artifact.name == name)
            .expect(name)
            .files
    };
    assert_eq!(files("sensitivity-hidden"), layers + 1);
    for name in [
        "weights",
        "hidden",
        "statistics",
        "sensitivity-statistics",
        "codes",
    ] {
        assert!(files(name) <= 4, "{} files of {name}", files(name));
    }
}

#[test]
fn few_files_per_artifact_are_on_disk_except_the_states_of_the_sensitivity_stages() {
    check_files_on_disk(&forecast_measured(&[], Machine::default()), 30);
}

/// Some 12,000 jobs, simulated once for every stage: this does not end unless an event takes time that does not grow with
/// the number of jobs.
#[test]
fn the_largest_number_of_layers_is_planned_by_the_same_rules() {
    let mut model = measured().model;
    model.layers = uc_pack::MAX_LAYERS as usize;
    model.layer_groups[0].layers = (0..uc_pack::MAX_LAYERS as u32).collect();
    let pipeline = Pipeline::load(None).expect("built in");
    let settings = pipeline.settings().clone();
    let forecast = forecast(model, &pipeline, &settings, Machine::default()).expect("a forecast");
    check_files_on_disk(&forecast, 1000);
}

#[test]
fn faster_machines_take_less_time_and_runs_without_sensitivities_less_disk() {
    let slow = forecast_measured(&[], Machine::default());
    let fast = Machine {
        threads: Some(16),
        gflops: Some(1e4),
        ..Machine::default()
    };
    let fast = forecast_measured(&[], fast);
    assert!(fast.run.hours < slow.run.hours / 2.5);
    let per_tensor = forecast_measured(&[("allocation.mode", "per-tensor")], Machine::default());
    assert!(per_tensor.run.other_disk.is_none());
    let other = slow.run.other_disk.as_ref().expect("states");
    let (key, value) = other.setting.split_once('=').expect("a setting");
    let with_other = forecast_measured(&[(key, value)], Machine::default());
    assert_eq!(with_other.run.peak_disk_bytes, other.peak_disk_bytes);
    assert!(other.peak_disk_bytes > 3 * slow.run.peak_disk_bytes / 2);
    assert!(per_tensor.run.peak_disk_bytes < 2 * slow.run.peak_disk_bytes / 3);
    assert!(
        per_tensor
            .run
            .stages
            .iter()
            .all(|stage| stage.name != "sensitivity-forward")
    );
}

#[test]
fn settings_that_leave_the_number_of_windows_to_the_text_are_rejected() {
    let pipeline = Pipeline::load(None).expect("built in");
    let mut settings = pipeline.settings().clone();
    settings.set("calibration.windows", "0").expect("set");
    let result = forecast(measured().model, &pipeline, &settings, Machine::default());
    assert!(
        result
            .expect_err("rejected")
            .to_string()
            .contains("calibration.windows")
    );
}

/// The embedded pipeline with every stage and artifact, including the fetching of shards.
fn complete_plan(model: &ModelSummary) -> Plan {
    let pipeline = Pipeline::load(None).expect("built in");
    let mut settings = pipeline.settings().clone();
    settings.set("retention.source", "evict").expect("set");
    let copied = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "LICENSE",
    ];
    plan_without_files(model, &copied, &pipeline, &settings, 1).expect("a plan")
}

#[test]
fn every_stage_and_artifact_of_the_embedded_pipeline_has_a_formula() {
    let measured = measured();
    let plan = complete_plan(&measured.model);
    for line in DEFAULT.lines() {
        let name = |table: &str| line.strip_prefix(table)?.split(']').next();
        if let Some(stage) = name("[stage.") {
            assert!(plan.stage(stage).is_some(), "{stage} is not in the plan");
        }
        if let Some(artifact) = name("[artifact.") {
            let copy = format!("{artifact}-00"); // of an artifact per description file
            let is_planned = [artifact, &copy].map(|name| plan.artifacts.contains_key(name));
            assert!(is_planned.contains(&true), "{artifact}");
        }
    }
    let speeds = Speeds::embedded().expect("embedded");
    let costs = CostModel::new(&measured.model, &plan.settings);
    Estimate::new(&plan, costs, &speeds.measured.probe, &speeds.slowdowns)
        .expect("a formula for everything");
    let fetcher = plan.fetcher().expect("a stage per shard");
    assert!(costs.job_cost(&fetcher.argv, None).is_some());
}

#[test]
fn stages_and_artifacts_without_a_formula_are_rejected_by_name() {
    let measured = measured();
    let other_stage = DEFAULT.replace("argv = [\"overlay-fit\"]", "argv = [\"my-overlay\"]");
    let other_artifact = DEFAULT
        .replace("[artifact.allocation]", "[artifact.my-allocation]")
        .replace("writes = [\"allocation\"]", "writes = [\"my-allocation\"]")
        .replace(
            "\"sensitivity\", \"allocation\"",
            "\"sensitivity\", \"my-allocation\"",
        );
    for (text, name) in [
        (other_stage, "stage overlay-fit (`my-overlay`)"),
        (other_artifact, "artifact my-allocation"),
    ] {
        let pipeline = Pipeline::parse("p.toml", &text).expect("valid");
        let settings = pipeline.settings().clone();
        let result = forecast(
            measured.model.clone(),
            &pipeline,
            &settings,
            Machine::default(),
        );
        let error = result.expect_err("rejected").to_string();
        assert!(error.contains(name), "{error}");
    }
}
