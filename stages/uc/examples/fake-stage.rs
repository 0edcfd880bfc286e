//! A stage program for the tests of the driver: its outputs are digests of its inputs, its mishaps are ordered by files.
//!
//! `fake-stage inspect MODEL` states facts like the real shard-loader; `fake-stage job …` is a stage of any name. The
//! folder `FAKE_CONTROL` holds the orders, named `ORDER-STAGE-LAYER`: `hold` waits while the file exists, `crash` dies
//! once, `crash-always` dies every time, `hang` says nothing once, `fail` fails with the class that the file names.
//! Every begin and end of a job is a line of `trace` there.
#![allow(clippy::disallowed_methods)] // an ordinary test program, not part of the pipeline

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use uc_store::ExitCode;
use uc_store::plan::Which;
use uc_store::sha::{Hasher, hash_file};
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Inspect { model: PathBuf },
    Job(StageArgs),
}

/// A failure that was ordered.
#[derive(Debug)]
struct Ordered(ExitCode);

impl std::fmt::Display for Ordered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an ordered failure of class {}", self.0.class())
    }
}

impl std::error::Error for Ordered {}

struct Fake {
    stage: String,
    control: PathBuf,
}

fn main() -> std::process::ExitCode {
    let control = PathBuf::from(std::env::var("FAKE_CONTROL").unwrap_or_else(|_| "/".into()));
    match Cli::parse().task {
        Task::Inspect { model } => inspect(&model),
        Task::Job(args) => {
            let program = Program {
                name: "worker",
                task: "job",
                version: version(&control),
            };
            let stage = args.stage.clone().unwrap_or_default();
            stage::main(program, &args, Fake { stage, control }).into()
        }
    }
}

fn version(control: &std::path::Path) -> u32 {
    let text = std::fs::read_to_string(control.join("version")).unwrap_or_default();
    text.trim().parse().unwrap_or(1)
}

fn inspect(model: &std::path::Path) -> std::process::ExitCode {
    let Ok(layers) = std::fs::read_to_string(model.join("layers.txt")) else {
        eprintln!(
            "error: {}: no layers.txt, expected the number of layers",
            model.display()
        );
        return ExitCode::BadInput.into();
    };
    let layers: u32 = layers.trim().parse().expect("a number");
    println!(
        "{}",
        serde_json::json!({"name": "fake", "layers": layers, "linear_parameters": 100 * layers,
                           "total_parameters": 200 * layers, "files": ["layers.txt"]})
    );
    ExitCode::Ok.into()
}

impl Fake {
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

    /// Whether an order stands, with the text of its file.
    fn order(&self, order: &str, layer: &str) -> Option<String> {
        let name = format!("{order}-{}-{layer}", self.stage);
        std::fs::read_to_string(self.control.join(name)).ok()
    }

    fn carried_out(&self, order: &str, layer: &str) {
        let name = format!("{order}-{}-{layer}", self.stage);
        std::fs::remove_file(self.control.join(name)).expect("order");
    }
}

impl StageProgram for Fake {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let layer = job.layer().ok();
        let label = layer.map_or_else(|| "run".to_owned(), |layer| layer.to_string());
        self.trace("start", &label);
        eprintln!("{} has layer {label} in hand", self.stage);
        while self.order("hold", &label).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.order("crash", &label).is_some() {
            self.carried_out("crash", &label);
            std::process::abort();
        }
        if self.order("crash-always", &label).is_some() {
            std::process::abort();
        }
        if self.order("hang", &label).is_some() {
            self.carried_out("hang", &label);
            std::thread::sleep(Duration::from_secs(600));
        }
        if let Some(class) = self.order("fail", &label) {
            let mut classes = ExitCode::ALL.into_iter();
            let class = classes
                .find(|known| known.class() == class.trim())
                .expect("a class");
            return Err(Ordered(class).into());
        }
        let plan = job.plan();
        let spec = plan.stage(&self.stage).expect("of the plan").clone();
        let mut hasher = Hasher::default();
        for reference in &spec.reads {
            if let Ok(external) = job.external(&reference.name) {
                hasher.update(&external.digest.0);
                continue;
            }
            let every_layer = reference.which == Which::Same && layer.is_none();
            let layers = 0..plan.model.layers;
            let paths: Vec<_> = match every_layer {
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
        job.metric("seen", 1);
        self.trace("end", &label);
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        error.downcast_ref::<Ordered>().map(|ordered| ordered.0)
    }
}
