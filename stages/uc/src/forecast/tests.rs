use super::*;

fn measured() -> Measured {
    serde_json::from_str(MEASURED).expect("the embedded receipt")
}

fn of_measured(settings: &[(&str, &str)], machine: Machine) -> Forecast {
    let pipeline = Pipeline::load(None).expect("built in");
    let mut chosen = pipeline.settings().clone();
    for (key, value) in settings {
        chosen.set(key, value).expect(key);
    }
    forecast(measured().model, &pipeline, &chosen, machine).expect("a forecast")
}

#[test]
fn the_measured_run_is_forecast_as_it_was_measured() {
    let forecast = of_measured(&[], Machine::default());
    let measured = measured();
    for stage in &forecast.run.stages {
        let found = measured.stages[&stage.name].seconds;
        assert!((stage.seconds / found - 1.0).abs() < 1e-9, "{}", stage.name);
    }
    let ratio = forecast.run.hours * 3600.0 / measured.wall_seconds;
    assert!((0.8..1.2).contains(&ratio), "{ratio} of the measured time");
    assert_eq!(forecast.pack.bits_per_weight_linears, 5.0);
}

#[test]
fn rates_are_those_of_the_receipt_that_they_name() {
    let receipt = include_str!("../../../../docs/benchmarks/smollm2-135m.json");
    let receipt: serde_json::Value = serde_json::from_str(receipt).expect("JSON");
    let measured = measured();
    assert_eq!(measured.receipt, "smollm2-135m.json");
    assert_eq!(receipt["wall_seconds"], measured.wall_seconds);
    for (name, stage) in &measured.stages {
        let found = &receipt["stages"][name]["seconds"];
        assert_eq!(
            *found, stage.seconds,
            "{name}: run tests/benchmark/throughput.py"
        );
    }
}

#[test]
fn layers_on_disk_stay_few_beside_the_states_of_the_survey() {
    let forecast = of_measured(&[], Machine::default());
    let files = |name: &str| {
        let mut disk = forecast.run.disk.iter();
        disk.find(|artifact| artifact.name == name)
            .expect(name)
            .files
    };
    assert_eq!(files("sensitivity-hidden"), 31);
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
fn faster_products_and_more_cores_take_less_time_and_no_survey_less_disk() {
    let slow = of_measured(&[], Machine::default());
    let fast = Machine {
        threads: Some(16),
        gflops: Some(1e4),
        memory: None,
    };
    let fast = of_measured(&[], fast);
    assert!(fast.run.hours < slow.run.hours / 8.0);
    let bare = of_measured(&[("allocation.mode", "per-tensor")], Machine::default());
    assert!(bare.run.peak_disk_bytes < slow.run.peak_disk_bytes / 4);
    assert!(
        bare.run
            .stages
            .iter()
            .all(|stage| stage.name != "sensitivity-forward")
    );
}

#[test]
fn windows_that_only_a_text_would_tell_are_refused() {
    let pipeline = Pipeline::load(None).expect("built in");
    let mut settings = pipeline.settings().clone();
    settings.set("calibration.windows", "0").expect("set");
    let refused = forecast(measured().model, &pipeline, &settings, Machine::default());
    assert!(
        refused
            .expect_err("refused")
            .to_string()
            .contains("calibration.windows")
    );
}
