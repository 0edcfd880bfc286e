//! A stage program for tests of the driver: its outputs are digests of its inputs, and it fails when a file instructs it to.
//!
//! `fake-stage inspect MODEL` and `fake-stage describe --config FILE` inspect a model like the real shard-loader; `fake-stage job …` acts
//! as a stage of any name. The
//! folder `FAKE_CONTROL` holds the instructions, named `INSTRUCTION-STAGE-LAYER`: `hold` waits while the file exists,
//! `crash` aborts once, `crash-always` aborts every time, `hang` reports nothing once, `fail` fails with the class in the
//! file. If `misread` is there, a program takes a setting of the plan for another, like one of another build. The start and end of
//! every job are lines of `trace` in that folder.
#![allow(clippy::disallowed_methods)] // an ordinary test program, not part of the pipeline

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use uc_store::ExitCode;
use uc_store::plan::Which;
use uc_store::run::RunDir;
use uc_store::sha::{Hasher, hash_file};
use uc_store::stage::{self, Job, Program, Task};

#[derive(Subcommand)]
enum Verb {
    Inspect {
        model: PathBuf,
    },
    Describe {
        #[arg(long)]
        config: PathBuf,
    },
}

/// A failure by instruction.
#[derive(Debug)]
struct InjectedFailure(ExitCode);

impl std::fmt::Display for InjectedFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an injected failure of class {}", self.0.class())
    }
}

impl std::error::Error for InjectedFailure {}

/// A stage of any name.
struct FakeStage {
    stage: String,
    control: PathBuf,
}

fn main() -> std::process::ExitCode {
    let control = PathBuf::from(std::env::var("FAKE_CONTROL").unwrap_or_else(|_| "/".into()));
    let program = Program {
        name: "worker",
        about: "A stage program for tests",
        version: version(&control),
        classify: |error| {
            error
                .downcast_ref::<InjectedFailure>()
                .map(|failure| failure.0)
        },
    };
    if control.join("misread").exists() {
        misread_plan();
    }
    let work = move |job: &mut Job<'_>| {
        let stage = job.id().stage.clone();
        let control = control.clone();
        FakeStage { stage, control }.run(job)
    };
    let tasks = [Task::new("job", "Run as a stage of any name", work)];
    stage::run_with_verbs(program, tasks, |verb| match verb {
        Verb::Inspect { model } => inspect(&model),
        Verb::Describe { config } => describe(&config),
    })
}

/// Changes the plan of the run, which a driver has read before.
fn misread_plan() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--run");
    if let Some(run) = arguments.nth(1) {
        let (run, mut plan) = RunDir::open(run.as_str().into()).expect("a run");
        plan.settings.quantize.damping *= 2.0;
        RunDir::create(run.root(), &plan).expect("a plan");
    }
}

fn version(control: &std::path::Path) -> u32 {
    let text = std::fs::read_to_string(control.join("version")).unwrap_or_default();
    text.trim().parse().unwrap_or(1)
}

/// The number of layers of a model.
fn layers(model: &std::path::Path) -> Result<u32, ExitCode> {
    let Ok(layers) = std::fs::read_to_string(model.join("layers.txt")) else {
        eprintln!(
            "error: {}: no layers.txt, expected the number of layers",
            model.display()
        );
        return Err(ExitCode::BadInput);
    };
    Ok(layers.trim().parse().expect("a number"))
}

fn inspect(model: &std::path::Path) -> ExitCode {
    let layers = match layers(model) {
        Ok(layers) => layers,
        Err(code) => return code,
    };
    println!(
        "{}",
        serde_json::json!({"name": "fake", "layers": layers, "linear_parameters": 100 * layers,
                           "total_parameters": 200 * layers, "files": ["layers.txt"]})
    );
    ExitCode::Ok
}

/// Layers without linears: no stage of the tests declares memory by their shapes.
fn describe(config: &std::path::Path) -> ExitCode {
    let layers = match layers(config.parent().expect("a folder")) {
        Ok(layers) => layers,
        Err(code) => return code,
    };
    println!(
        "{}",
        serde_json::json!({"family": "fake", "layers": layers, "context": 16, "hidden": 1, "vocab": 1,
            "tied_head": true, "linears": 0, "exact": 0, "non_layer_tensors": 0, "source_tensors": 0,
            "linear_parameters": 100 * layers, "exact_parameters": 100 * layers, "non_layer_parameters": 0,
            "total_parameters": 200 * layers, "index": null,
            "layer_groups": [{"layers": (0..layers).collect::<Vec<_>>(), "experts": 0, "experts_per_token": 0,
                              "linears": [], "exact": 0, "exact_parameters": 100, "inputs": [], "attention_width": 1}]})
    );
    ExitCode::Ok
}

impl FakeStage {
    fn trace(&self, what: &str, layer: &str) {
        let path = self.control.join("trace");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        let line = format!("{what} {} {layer}\n", self.stage);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("trace");
    }

    /// The text of an instruction, if it exists.
    fn instruction(&self, instruction: &str, layer: &str) -> Option<String> {
        let name = format!("{instruction}-{}-{layer}", self.stage);
        std::fs::read_to_string(self.control.join(name)).ok()
    }

    /// Removes an instruction that was followed.
    fn remove_instruction(&self, instruction: &str, layer: &str) {
        let name = format!("{instruction}-{}-{layer}", self.stage);
        std::fs::remove_file(self.control.join(name)).expect("instruction");
    }

    fn run(&self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let layer = job.layer().ok();
        let label = layer.map_or_else(|| "run".to_owned(), |layer| layer.to_string());
        self.trace("start", &label);
        eprintln!("{} is working on layer {label}", self.stage);
        while self.instruction("hold", &label).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.instruction("crash", &label).is_some() {
            self.remove_instruction("crash", &label);
            std::process::abort();
        }
        if self.instruction("crash-always", &label).is_some() {
            std::process::abort();
        }
        if self.instruction("hang", &label).is_some() {
            self.remove_instruction("hang", &label);
            std::thread::sleep(Duration::from_secs(600));
        }
        if let Some(class) = self.instruction("fail", &label) {
            let mut classes = ExitCode::ALL.into_iter();
            let class = classes
                .find(|known| known.class() == class.trim())
                .expect("a class");
            return Err(InjectedFailure(class).into());
        }
        let plan = job.plan();
        let spec = plan.stage(&self.stage).expect("of the plan").clone();
        let mut hasher = Hasher::default();
        for reference in &spec.reads {
            if let Ok(external) = job.external(&reference.name) {
                hasher.update(&external.digest.0);
                continue;
            }
            let reads_all_layers = reference.which == Which::Same && layer.is_none();
            let layers = 0..plan.model.layers;
            let paths: Vec<_> = match reads_all_layers {
                true => layers
                    .filter_map(|n| job.input_at(&reference.name, n).ok())
                    .collect(),
                false => vec![job.input(&reference.name)?],
            };
            for path in paths {
                hasher.update(&hash_file(&path)?.0.0);
            }
        }
        for section in &spec.settings {
            hasher.update(format!("{:?}", job.settings().fields(section)).as_bytes());
        }
        let digest = hasher.finish().0;
        for reference in &spec.writes {
            let mut file = job.output(&reference.name)?;
            file.append(format!("{} {digest}\n", reference.name).as_bytes())?;
            job.commit(&reference.name, file)?;
        }
        job.progress(1, 1, "thing");
        job.metric("jobs", 1);
        self.trace("end", &label);
        Ok(())
    }
}
