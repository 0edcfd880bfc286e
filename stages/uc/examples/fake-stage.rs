//! A stage program for the tests of the driver: its outputs are digests of its inputs, and files tell it how to fail.
//!
//! `fake-stage inspect MODEL` prints a summary as the real shard-loader does; `fake-stage job …` is a stage of any name. The
//! folder `FAKE_CONTROL` holds the orders, named `ORDER-STAGE-LAYER`: `hold` waits while the file exists, `crash` aborts
//! once, `crash-always` aborts every time, `hang` sends no event once, `fail` fails with the class that the file names.
//! Every start and end of a job appends a line to `trace` in that folder.
#![allow(clippy::disallowed_methods)] // an ordinary test program, not part of the pipeline

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use uc_store::ExitCode;
use uc_store::plan::Which;
use uc_store::sha::{Hasher, hash_file};
use uc_store::stage::{self, Job, Program, Task};

#[derive(Subcommand)]
enum Verb {
    Inspect { model: PathBuf },
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

/// One stage, and the folder of the orders.
struct FakeStage {
    name: String,
    control: PathBuf,
}

fn main() -> std::process::ExitCode {
    let control = PathBuf::from(std::env::var("FAKE_CONTROL").unwrap_or_else(|_| "/".into()));
    let program = Program {
        name: "worker",
        about: "A stage program for tests",
        version: version(&control),
        classify: |error| error.downcast_ref::<Ordered>().map(|ordered| ordered.0),
    };
    let work = move |job: &mut Job<'_>| {
        let name = job.id().stage.clone();
        let control = control.clone();
        FakeStage { name, control }.run(job)
    };
    let tasks = [Task::new("job", "Be a stage of any name", work)];
    stage::run_with_verbs(program, tasks, |verb| match verb {
        Verb::Inspect { model } => inspect(&model),
    })
}

fn version(control: &std::path::Path) -> u32 {
    let text = std::fs::read_to_string(control.join("version")).unwrap_or_default();
    text.trim().parse().unwrap_or(1)
}

fn inspect(model: &std::path::Path) -> ExitCode {
    let Ok(layers) = std::fs::read_to_string(model.join("layers.txt")) else {
        eprintln!(
            "error: {}: no layers.txt, expected the number of layers",
            model.display()
        );
        return ExitCode::BadInput;
    };
    let layers: u32 = layers.trim().parse().expect("a number");
    println!(
        "{}",
        serde_json::json!({"name": "fake", "layers": layers, "linear_parameters": 100 * layers,
                           "total_parameters": 200 * layers, "files": ["layers.txt"]})
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
        let line = format!("{what} {} {layer}\n", self.name);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("trace");
    }

    /// The text of an order's file, if there is one.
    fn order(&self, order: &str, layer: &str) -> Option<String> {
        let name = format!("{order}-{}-{layer}", self.name);
        std::fs::read_to_string(self.control.join(name)).ok()
    }

    /// Removes an order that is to be followed once.
    fn remove_order(&self, order: &str, layer: &str) {
        let name = format!("{order}-{}-{layer}", self.name);
        std::fs::remove_file(self.control.join(name)).expect("order");
    }

    fn run(&self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let layer = job.layer().ok();
        let label = layer.map_or_else(|| "run".to_owned(), |layer| layer.to_string());
        self.trace("start", &label);
        eprintln!("{} has layer {label} in hand", self.name);
        while self.order("hold", &label).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.order("crash", &label).is_some() {
            self.remove_order("crash", &label);
            std::process::abort();
        }
        if self.order("crash-always", &label).is_some() {
            std::process::abort();
        }
        if self.order("hang", &label).is_some() {
            self.remove_order("hang", &label);
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
        let spec = plan.stage(&self.name).expect("of the plan").clone();
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
}
