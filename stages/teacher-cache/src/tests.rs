//! Jobs that are interrupted, before, after and between snapshots of their sums: the files have the bytes of an undisturbed job.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use uc_model::forward::{Arithmetic, Layer, WeightsFromFn};
use uc_model::{Cpu, ModelConfig};
use uc_settings::Settings;
use uc_store::StoreError;
use uc_store::spill::Spill;
use uc_store::stream::{KeptSums, RowSource};
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFileWriter};

use crate::backward::backward_windows;
use crate::forward::forward_windows;
use crate::input_moments::{ExpertTokens, InputMoments};
use crate::sensitivity::LayerSensitivity;
use crate::states::source_weights;

const WINDOWS: usize = 8;
const LENGTH: usize = 16;
/// Windows whose tokens set the metrics of the leverage scores.
const REFERENCE: usize = 2;
/// Divides neither 96 nor 128, so that the last block of moments is narrower.
const MAX_INPUT_BLOCK: usize = 80;

/// States that cannot be read from window `end` on.
struct States {
    width: usize,
    end: usize,
}

impl RowSource for States {
    fn rows(&self) -> usize {
        WINDOWS
    }

    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
        if first + count > self.end {
            return Err(StoreError::malformed("x".into(), "test", "a", "b"));
        }
        let row = LENGTH * self.width;
        let values = (first * row..(first + count) * row)
            .map(|at| ((at * 7919 + at / 31 * 104_729) % 2003) as f32 / 1001.0 - 1.0);
        Ok(values.collect())
    }
}

/// What a job has written, and the windows that it has computed.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    seen: Vec<usize>,
    files: Option<[Vec<u8>; 2]>,
    experts: Option<ExpertTokens>,
}

/// A job over the windows before `end` that continues what lies in `base`.
type Job = fn(&Utf8Path, &Utf8Path, Duration, usize) -> Outcome;

fn file(base: &Utf8Path, name: &str, decls: &[TensorDecl]) -> TensorFileWriter {
    TensorFileWriter::create(&base.join(name), decls).unwrap()
}

fn states_file(base: &Utf8Path, width: usize) -> TensorFileWriter {
    let decl = TensorDecl::new("hidden", TensorDtype::F32, &[WINDOWS, LENGTH, width]);
    file(base, "states", &[decl])
}

/// The bytes of the two files that a job publishes.
fn published(files: [TensorFileWriter; 2]) -> [Vec<u8>; 2] {
    files.map(|file| {
        let path = file.target().to_owned();
        file.commit().unwrap();
        std::fs::read(path).unwrap()
    })
}

fn config_of(model: &Utf8Path) -> ModelConfig {
    ModelConfig::load(model.as_std_path()).unwrap()
}

fn forward(model: &Utf8Path, base: &Utf8Path, least: Duration, end: usize) -> Outcome {
    let (config, device) = (config_of(model), Default::default());
    let (plan, width) = (config.layer_plan(0), config.hidden);
    let read = source_weights(model, plan.clone()).unwrap();
    let weights = WeightsFromFn::<Cpu, _>::new(&read, &device).with_arithmetic(Arithmetic::Bf16);
    let layer = Layer::new(&config.layers[0], LENGTH, &weights, &device).unwrap();
    let weights = plan.inputs.iter().map(|input| {
        let weights = (0..WINDOWS * LENGTH).map(|token| 1.0 + token as f32 / 99.0);
        (input.name.clone(), weights.collect())
    });
    let weights: BTreeMap<_, Vec<f32>> = weights.collect();
    let mut kept = KeptSums::open(base, &base.join("work/rows"), least, || {
        let spill = plan
            .has_experts()
            .then(|| Spill::new(base, &base.join("work/routed")));
        let spill = spill.transpose()?;
        anyhow::Ok(InputMoments::new(&plan, MAX_INPUT_BLOCK, &weights, spill))
    })
    .unwrap();
    let mut states = states_file(base, width);
    let (input, mut outcome) = (States { width, end }, Outcome::default());
    let mut progress = |done| outcome.seen.push(done - 1);
    let dims = [WINDOWS, LENGTH, width];
    let done = forward_windows(
        (&layer, 0),
        (&input, dims),
        1,
        &mut kept,
        &mut states,
        &mut progress,
    );
    if done.is_ok() {
        let moments = kept.into_sums();
        let mut file = file(base, "statistics", &moments.decls());
        outcome.experts = moments.write::<Cpu>(&mut file, &device).unwrap();
        outcome.files = Some(published([states, file]));
    }
    outcome
}

fn backward(model: &Utf8Path, base: &Utf8Path, least: Duration, end: usize) -> Outcome {
    let (config, device) = (config_of(model), Default::default());
    let (plan, width) = (config.layer_plan(0), config.hidden);
    let read = source_weights(model, plan.clone()).unwrap();
    let weights = WeightsFromFn::<burn::backend::Autodiff<Cpu>, _>::new(&read, &device)
        .with_arithmetic(Arithmetic::Bf16);
    let layer = Layer::new(&config.layers[0], LENGTH, &weights, &device).unwrap();
    let mut settings = Settings::default();
    settings.calibration.max_input_block = MAX_INPUT_BLOCK as u32;
    let mut kept = KeptSums::open(base, &base.join("work/rows"), least, || {
        let (tokens, reference) = (WINDOWS * LENGTH, REFERENCE * LENGTH);
        anyhow::Ok(LayerSensitivity::new(&plan, tokens, reference, &settings))
    })
    .unwrap();
    let mut gradient = states_file(base, width);
    let (hidden, output_gradient) = (
        States {
            width,
            end: WINDOWS,
        },
        States { width, end },
    );
    let mut outcome = Outcome::default();
    let mut progress = |done| outcome.seen.push(done - 1);
    let rows: [&dyn RowSource; 2] = [&hidden, &output_gradient];
    let rows = (rows, [WINDOWS, LENGTH, width]);
    let done = backward_windows(
        (&layer, &plan),
        rows,
        1,
        &mut kept,
        &mut gradient,
        &mut progress,
    );
    if done.is_ok() {
        let sums = kept.into_sums();
        let mut file = file(base, "sensitivity", &sums.decls(&plan, [WINDOWS, LENGTH]));
        sums.write(&mut file, &plan).unwrap();
        outcome.files = Some(published([gradient, file]));
    }
    outcome
}

/// Interrupts a job again and again, and compares what it writes in the end.
fn continues(job: Job, model: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let examples = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let run = |name: &str, least, end| job(&examples.join(model), &folder.join(name), least, end);
    // With the first, a job takes a snapshot after the first batch that it computes; with the second, none.
    let (at_once, never) = (Duration::ZERO, Duration::MAX);
    let undisturbed = run("undisturbed", never, WINDOWS);
    assert_eq!(undisturbed.seen, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(undisturbed.files.is_some());
    for (least, end, seen) in [
        (at_once, 2, &[0, 1][..]),
        (never, 5, &[1, 2, 3, 4]), // interrupted between snapshots
        (at_once, 3, &[1, 2]),
        (at_once, 4, &[2, 3]),
    ] {
        let outcome = run("interrupted", least, end);
        assert_eq!((&outcome.seen[..], outcome.files), (seen, None), "{model}");
    }
    let outcome = run("interrupted", never, WINDOWS);
    assert_eq!(outcome.seen, [3, 4, 5, 6, 7], "{model}");
    assert!(outcome.files == undisturbed.files, "{model}: other bytes");
    assert_eq!(outcome.experts, undisturbed.experts);
}

#[test]
fn an_interrupted_forward_pass_continues_with_the_same_bytes() {
    continues(forward, "tiny-stories");
    continues(forward, "tiny-experts");
}

#[test]
fn an_interrupted_backward_pass_continues_with_the_same_bytes() {
    continues(backward, "tiny-stories");
    continues(backward, "tiny-experts");
}
