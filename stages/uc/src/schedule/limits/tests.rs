use super::*;
use crate::forecast::tests_support::{measured_model, plan_of};

fn limits(memory: u64) -> Limits {
    Limits {
        budget: Budget { cpus: 2, memory },
        origin: Origin::Option,
    }
}

#[test]
fn a_size_is_taken_and_anything_else_refused() {
    for (text, memory) in [
        ("64 GiB", 64 << 30),
        ("64GiB", 64 << 30),
        ("24 GB", 24_000_000_000),
    ] {
        let given = Limits::new(3, Some(text)).expect("a size");
        assert_eq!((given.budget.cpus, given.budget.memory), (3, memory));
        assert_eq!(given.origin, Origin::Option);
    }
    for text in ["64", "0 GiB", "2 layers", ""] {
        let error = Limits::new(3, Some(text)).expect_err(text).to_string();
        assert!(error.contains("--memory"), "{error}");
    }
    let own = Limits::new(3, None).expect("this machine").budget.memory;
    assert!((1..resources::total_memory_bytes()).contains(&own), "{own}");
}

/// The model of the measured run, 16 times as wide.
fn wide_model() -> ModelSummary {
    let mut model = measured_model();
    for group in &mut model.layer_groups {
        for linear in &mut group.linears {
            (linear.rows, linear.cols) = (16 * linear.rows, 16 * linear.cols);
        }
        group.inputs.iter_mut().for_each(|input| input.width *= 16);
    }
    model
}

#[test]
fn a_job_that_does_not_fit_is_refused_with_a_setting_that_makes_it_fit() {
    let model = wide_model();
    let plan = plan_of(&model, &[]);
    let runs = |stage: &StagePlan| !stage.optional;
    let largest = plan.stages.iter().filter(|stage| runs(stage));
    let largest = largest.map(|stage| stage.memory).max().expect("stages");
    assert!(limits(largest).check(&plan, Some(&model), runs).is_ok());
    assert!(limits(0).check(&plan, Some(&model), runs).is_ok());
    let error = limits(largest - 1).check(&plan, Some(&model), runs);
    let error = error.expect_err("too large").to_string();
    assert!(
        error.contains("nothing was started") && error.contains("--set "),
        "{error}"
    );
    // What it suggests is enough.
    let set = error
        .split("--set ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let (key, value) = set.and_then(|set| set.split_once('=')).expect("a setting");
    let plan = plan_of(&model, &[(key, value)]);
    assert!(limits(largest - 1).check(&plan, Some(&model), runs).is_ok());
    // Nothing makes the program itself smaller.
    let error = limits(1)
        .check(&plan, Some(&model), runs)
        .expect_err("too large");
    assert!(!error.to_string().contains("--set"), "{error}");
}

#[test]
fn stages_without_work_do_not_count() {
    let model = measured_model();
    let plan = plan_of(&model, &[]);
    assert!(limits(1).check(&plan, Some(&model), |_| false).is_ok());
}
