use super::tests_support::{small_plan, stage};
use super::*;

fn id(text: &str) -> ArtifactId {
    match text.split_once('@') {
        None => ArtifactId {
            name: text.into(),
            layer: None,
        },
        Some((name, layer)) => ArtifactId::at(name, layer.parse().expect("layer")),
    }
}

#[test]
fn references_have_four_forms_and_no_other() {
    for (text, which) in [
        ("hidden", Which::Same),
        ("hidden+1", Which::Next),
        ("hidden@0", Which::First),
        ("eval-hidden@last", Which::Last),
    ] {
        let reference: ArtifactRef = text.parse().expect(text);
        assert_eq!(reference.which, which);
        assert_eq!(reference.to_string(), text);
    }
    for bad in ["", "+1", "hidden+2", "hidden@1", "Hidden", "a b", "a/b"] {
        assert!(bad.parse::<ArtifactRef>().is_err(), "{bad}");
    }
}

#[test]
fn inputs_outputs_producers_and_consumers_are_resolved_by_layer() {
    let plan = small_plan();
    plan.validate().expect("valid");
    let stage = |name: &str| plan.stage(name).expect("stage");
    assert_eq!(
        plan.inputs(stage("teacher"), Unit::Layer(1)),
        [id("weights@1"), id("hidden@1")]
    );
    assert_eq!(
        plan.outputs(stage("teacher"), Unit::Layer(1)),
        [id("hidden@2")]
    );
    assert_eq!(
        plan.inputs(stage("finish"), Unit::Run),
        [id("codes@0"), id("codes@1"), id("hidden@2")]
    );
    let job = |stage: &str, unit| JobId {
        stage: stage.into(),
        unit,
    };
    assert_eq!(
        plan.producer(&id("hidden@0")),
        Some(job("embed", Unit::Run))
    );
    assert_eq!(
        plan.producer(&id("hidden@2")),
        Some(job("teacher", Unit::Layer(1)))
    );
    assert_eq!(plan.producer(&id("hidden@3")), None);
    assert_eq!(plan.producer(&id("source")), None);
    assert_eq!(
        plan.consumers(&id("hidden@1"), true),
        [
            job("teacher", Unit::Layer(1)),
            job("quantize", Unit::Layer(1))
        ]
    );
    assert_eq!(
        plan.consumers(&id("hidden@2"), true),
        [job("finish", Unit::Run)]
    );
    assert_eq!(plan.jobs().len(), 1 + 2 + 2 + 2 + 1);
}

#[test]
fn optional_consumers_count_only_on_request() {
    let mut plan = small_plan();
    plan.stages[4].optional = true;
    assert_eq!(plan.consumers(&id("hidden@2"), false), []);
    assert_eq!(plan.consumers(&id("hidden@2"), true).len(), 1);
}

#[test]
fn a_requested_artifact_enables_exactly_the_optional_stages_that_it_needs() {
    let optional = |plan: &Plan| {
        let stages = plan.stages.iter().filter(|stage| stage.optional);
        stages.map(|stage| stage.name.clone()).collect::<Vec<_>>()
    };
    let mut plan = small_plan();
    for stage in &mut plan.stages[1..] {
        stage.optional = true;
    }
    assert!(!plan.ask_for("nothing"));
    assert!(plan.ask_for("hidden"));
    assert_eq!(optional(&plan), ["quantize", "finish"]);
    assert!(plan.ask_for("manifest") && plan.ask_for("manifest"));
    assert_eq!(optional(&plan), [""; 0]);
}

#[test]
fn paths_fill_in_layer_and_pack() {
    let mut plan = small_plan();
    let root = Utf8Path::new("/run");
    assert_eq!(
        plan.path(root, &id("weights@7")).expect("path"),
        "/run/layers/007/weights"
    );
    assert_eq!(
        plan.path(root, &id("codes@1")).expect("path"),
        "/run/pack/layer_001.uc"
    );
    plan.pack_dir = "/elsewhere/p".into();
    assert_eq!(
        plan.path(root, &id("manifest")).expect("path"),
        "/elsewhere/p/manifest.json"
    );
    assert_eq!(plan.path(root, &id("nothing")), None);
}

#[test]
fn an_external_artifact_of_a_layer_needs_no_producer() {
    let mut plan = small_plan();
    plan.stages.retain(|stage| stage.name == "finish");
    plan.stages[0].reads = vec!["codes".parse().expect("reference")];
    assert!(matches!(
        plan.validate(),
        Err(PlanProblem::NoProducer { .. })
    ));
    for layer in 0..2 {
        let external = plan.externals["source"].clone();
        plan.externals
            .insert(ArtifactId::at("codes", layer).to_string(), external);
    }
    plan.validate().expect("valid");
}

/// Applies a change to the small plan and returns the text of the error.
fn problem(change: impl FnOnce(&mut Plan)) -> String {
    let mut plan = small_plan();
    change(&mut plan);
    plan.validate().expect_err("refused").to_string()
}

#[test]
fn every_mistake_is_named() {
    let push = |plan: &mut Plan, per, reads: &[&str], writes: &[&str]| {
        plan.stages.push(stage("extra", per, reads, writes, &[]));
    };
    let cases: Vec<(String, &str)> = vec![
        (
            problem(|p| push(p, Per::Layer, &["wieghts"], &[])),
            "neither an artifact nor an external input; known: codes",
        ),
        (
            problem(|p| push(p, Per::Layer, &[], &["source"])),
            "writes `source`",
        ),
        (
            problem(|p| push(p, Per::Layer, &[], &["weights"])),
            "expected one producer",
        ),
        (
            problem(|p| drop(p.stages.remove(1))),
            "reads `weights@000`, which no stage writes",
        ),
        (
            problem(|p| p.stages[1].reads.push("codes".parse().expect("r"))),
            "in a cycle: ",
        ),
        (
            problem(|p| push(p, Per::Run, &["hidden+1"], &[])),
            "only a per-layer stage",
        ),
        (
            problem(|p| push(p, Per::Run, &["manifest@0"], &[])),
            "no {layer}",
        ),
        (
            problem(|p| push(p, Per::Layer, &[], &["manifest"])),
            "overwrite one file for each layer",
        ),
        (
            problem(|p| push(p, Per::Layer, &[], &["hidden@0"])),
            "overwrite the file of one layer",
        ),
        (
            problem(|p| p.stages[0].settings.push("codec".into())),
            "settings section `codec`",
        ),
        (
            problem(|p| p.stages[1].name = "embed".into()),
            "defined twice",
        ),
    ];
    for (text, expected) in cases {
        assert!(text.contains(expected), "{text}\nexpected: {expected}");
    }
}

#[test]
fn paths_that_leave_the_run_directory_are_refused() {
    for bad in [
        "/abs",
        "../x",
        "a/../../x",
        "",
        "a/",
        "{packs}/x",
        "x/{pack}",
        "{layer",
    ] {
        let text = problem(|p| p.artifacts.get_mut("codes").expect("codes").path = bad.into());
        assert!(text.starts_with("artifact `codes`: path"), "{bad}: {text}");
    }
}
