//! Mistakes in a pipeline are reported with file, line and key; the built-in pipeline is valid.

use std::collections::BTreeSet;

use uc_store::plan::{ArtifactId, Per};

use super::*;

/// A small valid pipeline; the cases replace parts of it.
const SMALL: &str = r#"version = 2
[settings.quantize]
bpw = 4.0
[artifact.weights]
path = "layers/{layer}/weights"
temporary = true
[artifact.hidden]
path = "hidden/{layer}"
temporary = true
[artifact.report]
path = "{pack}/report.json"
temporary = false
[stage.load]
argv = ["loader", "layer"]
per = "layer"
reads = ["source"]
writes = ["weights"]
max_lead = 1
[stage.embed]
argv = ["loader", "embed"]
per = "run"
reads = ["source"]
writes = ["hidden@0"]
[stage.push]
argv = ["push"]
per = "layer"
reads = ["weights", "hidden"]
writes = ["hidden+1"]
settings = ["quantize"]
cpus = "50%"
memory = "2 layers"
[stage.finish]
argv = ["finish"]
per = "run"
reads = ["hidden@last"]
writes = ["report"]
"#;

/// The error after replacing a part of the pipeline.
fn rejected(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    let text = SMALL.replacen(from, to, 1);
    match Pipeline::parse("p.toml", &text) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted: {from} -> {to}"),
    }
}

#[test]
fn every_mistake_is_refused_with_file_line_and_key() {
    let cases = [
        ("max_lead = 1", "ahed = 1"),
        ("[stage.push]", "[stag.push]"),
        ("max_lead = 1", "max_lead = -1"),
        ("max_lead = 1", "retries = 1000"),
        ("max_lead = 1", "unless = \"quantize.bwp=5\""),
        ("max_lead = 1", "unless = \"quantize.bpw=many\""),
        ("max_lead = 1", "stall_timeout = \"soon\""),
        ("max_lead = 1", "max_lead = 1\nmax_lead = 2"),
        ("version = 2", "version = 3"),
        ("version = 2\n", ""),
        ("[settings.quantize]", "[settings.quantise]"),
        ("bpw = 4.0", "bwp = 4.0"),
        ("bpw = 4.0", "bpw = 9.0"),
        ("bpw = 4.0", "bpw = true"),
        ("cpus = \"50%\"", "cpus = \"150%\""),
        ("cpus = \"50%\"", "cpus = -2"),
        ("memory = \"2 layers\"", "memory = \"2 GB\""),
        ("memory = \"2 layers\"", "memory = \"2 layers + much\""),
        ("memory = \"2 layers\"", "memory = \"-1 GiB\""),
        (
            "memory = \"2 layers\"",
            "memory = \"1 all moments in bf16\"",
        ),
        (
            "memory = \"2 layers\"",
            "memory = \"1 all moments up to 4\"",
        ),
        ("memory = \"2 layers\"", "memory = \"\""),
        ("[\"push\"]", "[]"),
        ("per = \"run\"", "per = \"model\""),
        ("per = \"run\"", "per = \"shard\""),
        ("max_lead = 1", "weights = \"non-layer\""),
        ("max_lead = 1", "weights = \"all\""),
        ("[\"weights\", \"hidden\"]", "[\"weights\", \"hiden\"]"),
        ("[\"weights\", \"hidden\"]", "[\"weights\", \"hidden@2\"]"),
        ("[\"weights\", \"hidden\"]", "[\"weights\", \"weights\"]"),
        ("[\"weights\", \"hidden\"]", "[\"weights\", \"hidden+1\"]"),
        ("settings = [\"quantize\"]", "settings = [\"codec\"]"),
        ("writes = [\"hidden@0\"]", "writes = [\"report\"]"),
        ("writes = [\"hidden@0\"]", "writes = [\"hidden\"]"),
        ("writes = [\"report\"]", "writes = [\"source\"]"),
        ("reads = [\"hidden@last\"]", "reads = [\"report@0\"]"),
        ("\"hidden/{layer}\"", "\"/hidden/{layer}\""),
        ("\"hidden/{layer}\"", "\"hidden/../../{layer}\""),
        ("\"hidden/{layer}\"", "\"hidden/{index}\""),
        ("[artifact.weights]", "[artifact.Weights]"),
        ("temporary = false", "temporary = \"yes\""),
        (
            "temporary = false",
            "temporary = false\nsource_file = \"../x\"",
        ),
        ("argv = [\"push\"]\n", ""),
    ];
    let report: Vec<String> = cases
        .iter()
        .map(|(from, to)| {
            let change = format!("{from} -> {to}").replace('\n', "\\n");
            format!("{change}\n    {}", rejected(from, to))
        })
        .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn a_pipeline_without_stages_is_rejected() {
    let error = Pipeline::parse("p.toml", "version = 2\n[stage]\n").expect_err("empty");
    assert!(error.message.contains("no stage"), "{error}");
}

#[test]
fn the_embedded_pipeline_is_valid_and_states_the_default_of_every_setting() {
    let pipeline = Pipeline::load(None).expect("valid");
    assert_eq!(pipeline.settings(), &Settings::default());
    for key in Settings::keys() {
        let (section, field) = key.split_once('.').expect("section.field");
        let table = DEFAULT.split(&format!("[settings.{section}]\n")).nth(1);
        let table = table.expect(section).split("\n[").next().expect("body");
        assert!(
            table.contains(&format!("{field} = ")),
            "{key} is not stated"
        );
    }
}

#[test]
fn an_upload_is_requested_by_its_goal_and_reads_the_metrics_if_they_exist() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    let upload_stages = |plan: &uc_store::plan::Plan| {
        let running = plan.stages.iter().filter(|stage| !stage.optional);
        running
            .filter(|stage| stage.argv[0] == "hub-upload")
            .count()
    };
    let card_reads_metrics = |plan: &uc_store::plan::Plan| {
        let card = plan.stage("model-card").expect("stage");
        card.reads.iter().any(|read| read.name == "metrics")
    };
    let mut complete = pipeline.assemble(&request).expect("plan");
    assert_eq!(upload_stages(&complete), 0);
    assert!(complete.ask_for("remote-pack") && card_reads_metrics(&complete));
    assert_eq!(upload_stages(&complete), 4);
    request.goals = Goals::Only(&["manifest", "remote-pack"]);
    let mut without_metrics = pipeline.assemble(&request).expect("plan");
    assert!(without_metrics.stage("eval-report").is_none());
    assert!(without_metrics.ask_for("remote-pack") && !card_reads_metrics(&without_metrics));
    assert_eq!(upload_stages(&without_metrics), 4);
    // The pack does not depend on the upload settings.
    for stage in without_metrics
        .stages
        .iter()
        .filter(|stage| stage.argv[0] != "hub-upload")
    {
        assert!(
            !stage.settings.contains(&"upload".to_owned()),
            "{}",
            stage.name
        );
    }
}

#[test]
fn a_disabled_stage_is_left_out_with_its_outputs() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    let with = pipeline.assemble(&request).expect("plan");
    request
        .settings
        .set("allocation.mode", "per-tensor")
        .expect("set");
    let without = pipeline.assemble(&request).expect("plan");
    let reads = |plan: &uc_store::plan::Plan| {
        let quantize = plan.stage("quantize").expect("stage");
        quantize
            .reads
            .iter()
            .any(|reference| reference.name == "allocation")
    };
    assert!(reads(&with) && with.stage("sensitivity-forward").is_some());
    assert!(!reads(&without) && without.stage("sensitivity-forward").is_none());
    assert!(
        without
            .artifacts
            .keys()
            .all(|name| !name.starts_with("sensitivity"))
    );
}

#[test]
fn every_other_file_of_the_model_becomes_an_artifact_of_its_own() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    let files = [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    request.source_files = files.map(str::to_owned).into();
    let plan = pipeline.assemble(&request).expect("plan");
    let paths = |prefix: &str| {
        let artifacts = plan.artifacts.iter();
        let described = artifacts.filter(|(name, _)| name.starts_with(prefix));
        described
            .map(|(_, artifact)| artifact.path.as_str())
            .collect::<Vec<_>>()
    };
    let expected = ["{pack}/LICENSE", "{pack}/chat_template.jinja"];
    assert_eq!(paths("pack-description"), expected);
    let manifest = plan.stage("manifest").expect("stage");
    let written = manifest
        .writes
        .iter()
        .filter(|write| write.name.starts_with("pack-description"));
    assert_eq!(written.count(), 2);
}

#[test]
fn an_artifact_without_its_source_file_is_left_out_of_the_plan() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    request.source_files = BTreeSet::new();
    let plan = pipeline.assemble(&request).expect("plan");
    let manifest = plan.stage("manifest").expect("stage");
    assert!(!plan.artifacts.contains_key("pack-tokenizer-config"));
    assert!(
        manifest
            .writes
            .iter()
            .all(|w| w.name != "pack-tokenizer-config")
    );
    assert!(manifest.writes.iter().any(|w| w.name == "pack-tokenizer"));
}

#[test]
fn goals_select_the_stages_that_they_need() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    request.goals = Goals::Only(&["manifest"]);
    let plan = pipeline.assemble(&request).expect("plan");
    assert!(plan.stage("pack-writer").is_some());
    for absent in ["eval-windows", "evaluator", "eval-report", "hub-upload"] {
        assert!(plan.stage(absent).is_none(), "{absent}");
    }
    request.goals = Goals::Only(&["dust"]);
    let error = pipeline.assemble(&request).expect_err("unknown goal");
    assert!(error.message.contains("`dust`"), "{error}");
}

#[test]
fn shards_are_fetched_on_demand_and_only_with_eviction() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    assert!(
        pipeline
            .assemble(&request)
            .expect("plan")
            .fetcher()
            .is_none()
    );
    request
        .settings
        .set("retention.source", "evict")
        .expect("set");
    for goals in [Goals::Everything, Goals::Only(&["manifest"])] {
        request.goals = goals;
        let plan = pipeline.assemble(&request).expect("plan");
        let fetcher = plan.fetcher().expect("a stage per shard");
        assert!(fetcher.optional && plan.jobs().iter().all(|id| id.stage != fetcher.name));
        let readers = plan.stages.iter().filter(|stage| stage.weights.is_some());
        let readers: Vec<_> = readers.map(|stage| stage.name.as_str()).collect();
        let expected = [
            "non-layer",
            "sensitivity-forward",
            "rates",
            "sensitivity-backward",
            "shard-loader",
        ];
        assert_eq!(readers, expected);
    }
}

#[test]
fn an_evaluation_needs_no_stage_that_compresses() {
    let pipeline = Pipeline::load(None).expect("valid");
    let mut request = Request::probe(&pipeline);
    request.goals = Goals::Only(&["metrics"]);
    let empty = request.externals["source"].clone();
    for name in [
        "pack-layer@000",
        "pack-layer@001",
        "pack-non-layer",
        "manifest",
    ] {
        request.externals.insert(name.into(), empty.clone());
    }
    request.externals.remove("calibration-text");
    let plan = pipeline.assemble(&request).expect("plan");
    let names: Vec<_> = plan.stages.iter().map(|s| s.name.as_str()).collect();
    let expected = [
        "non-layer",
        "shard-loader",
        "eval-windows",
        "evaluator",
        "eval-report",
    ];
    assert_eq!(names, expected);
    assert!(plan.external(&ArtifactId::at("pack-layer", 1)).is_some());
    assert!(!plan.artifacts.contains_key("manifest"));
}

#[test]
fn shares_and_layers_are_resolved_when_the_plan_is_made() {
    let pipeline = Pipeline::parse("p.toml", SMALL).expect("valid");
    let mut request = Request::probe(&pipeline);
    request.cpus = 7;
    let model = crate::forecast::tests_support::measured_model();
    let linears = model.layer_groups[0].linears.iter();
    let weights: usize = linears
        .map(|linear| linear.count * linear.rows * linear.cols)
        .sum();
    request.summary = Some(model);
    let plan = pipeline.assemble(&request).expect("plan");
    let push = plan.stage("push").expect("stage");
    let memory = 2 * 4 * weights as u64;
    assert_eq!((push.cpus, push.memory, push.per), (4, memory, Per::Layer));
    assert_eq!(push.declared_memory.as_deref(), Some("2 layers"));
    assert_eq!(plan.settings.quantize.bpw, 4.0);
    assert_eq!(plan.stage("load").expect("stage").max_lead, Some(1));
}

#[test]
fn a_missing_program_is_reported_at_its_line() {
    let pipeline = Pipeline::parse("p.toml", SMALL).expect("valid");
    let error = pipeline.argv_error("push", "no such program".into());
    let line = SMALL
        .lines()
        .position(|l| l == "argv = [\"push\"]")
        .expect("line")
        + 1;
    assert_eq!((error.line, error.key.as_str()), (line, "stage.push.argv"));
}

#[test]
fn an_unreadable_file_is_named() {
    let error = Pipeline::load(Some("/nonexistent/p.toml".into())).expect_err("absent");
    assert!(format!("{error:#}").contains("/nonexistent/p.toml"));
}
