//! Quantization of a layer within its budget, also after an interruption.

mod random;

use random::{Random, correlated, gradient_moments};
use uc_codec::contexts::LayerTables;
use uc_codec::factor_cache::FactorCache;
use uc_codec::layer::{self, CodedLinear, InitialSteps, LayerIo, LinearShape, Progress};
use uc_codec::{CodecError, TensorCode, Weights, factor, rans};

/// Weights [rows, cols] that outlive the layer that they are from.
struct Stored(Vec<f32>, usize);

impl Weights for Stored {
    type Error = CodecError;

    fn shape(&self) -> (usize, usize) {
        (self.0.len() / self.1, self.1)
    }

    fn rows(
        &self,
        rows: std::ops::Range<usize>,
    ) -> Result<std::borrow::Cow<'_, [f32]>, CodecError> {
        Ok(self.0[rows.start * self.1..rows.end * self.1].into())
    }
}

/// A layer in memory.
#[derive(Default, Clone)]
struct MemoryLayer {
    weights: Vec<Vec<f32>>,
    cols: usize,
    linears: Vec<CodedLinear>,
    kept: Vec<CodedLinear>,
    /// What survives an interruption besides `linears`, those of pass `pass`.
    steps: Vec<InitialSteps>,
    bits: Vec<u64>,
    pass: usize,
    /// How many more linears are stored before the next one fails.
    failure: Option<usize>,
    stored: usize,
    progress: Vec<Progress>,
}

impl LayerIo for MemoryLayer {
    type Error = CodecError;
    type Weights = Stored;

    fn weights(&self, index: usize) -> Result<Stored, CodecError> {
        Ok(Stored(self.weights[index].clone(), self.cols))
    }

    fn saved_steps(&mut self) -> Result<Vec<InitialSteps>, CodecError> {
        Ok(self.steps.clone())
    }

    fn save_steps(&mut self, steps: &InitialSteps) -> Result<(), CodecError> {
        self.steps.push(steps.clone());
        Ok(())
    }

    fn measured(&mut self, pass: usize) -> Result<Option<u64>, CodecError> {
        Ok(self.bits.get(pass).copied())
    }

    fn begin_pass(&mut self, pass: usize) -> Result<usize, CodecError> {
        if pass != self.pass {
            self.linears.clear();
        }
        self.pass = pass;
        Ok(self.linears.len())
    }

    fn store(&mut self, index: usize, linear: CodedLinear) -> Result<(), CodecError> {
        if self.failure == Some(self.stored) {
            let (found, expected) = (0, 0);
            return Err(CodecError::Budget { found, expected });
        }
        assert_eq!(index, self.linears.len());
        self.linears.push(linear);
        self.stored += 1;
        Ok(())
    }

    fn measure(&mut self) -> Result<u64, CodecError> {
        let codes: Vec<&TensorCode> = self.linears.iter().map(|linear| &linear.code).collect();
        let tables = LayerTables::build(&codes)?;
        let mut bytes = 100 + tables.to_bytes().len();
        for code in codes {
            bytes += rans::encode(code, &tables)?.payload.len() + code.rows + code.cols;
        }
        self.bits.push(8 * bytes as u64);
        Ok(8 * bytes as u64)
    }

    fn keep_pass(&mut self) -> Result<(), CodecError> {
        // A pass that was measured before an interruption was also kept before it, unless this is the interrupted one.
        if self.pass + 1 == self.bits.len() && self.linears.len() == self.weights.len() {
            self.kept.clone_from(&self.linears);
        }
        Ok(())
    }

    fn progress(&mut self, progress: Progress) {
        self.progress.push(progress);
    }
}

#[test]
fn a_layer_meets_its_budget_from_below_and_an_impossible_one_is_refused() {
    let mut random = Random(6);
    let n = 96;
    let h = correlated(n, &mut random);
    let input = factor::factorize(&h, n, 0.01).expect("factor");
    let outputs = factor::factorize(&gradient_moments(320), 320, 0.1).expect("outputs");
    let output_factor = |name: &str| Ok((name == "a").then(|| outputs.clone()));
    let factors = FactorCache::new(|_: &str| Ok(input.clone()), output_factor, 0);
    let shapes = |bits: f64| {
        [("a", 320, 0.25), ("b", 128, -0.625)].map(|(name, rows, more)| LinearShape {
            name: name.into(),
            input: "x".into(),
            rows,
            cols: n,
            bits: bits + more,
            lambda: None,
            regular: true,
        })
    };
    let budget = |bpw: f64| (bpw * ((320 + 128) * n) as f64) as u64;
    let weights: Vec<Vec<f32>> = [320, 128].map(|rows| random.normals(rows * n)).into();
    let total = (320 + 128) * n;
    for bpw in [2.5, 5.0, 7.3] {
        let mut io = layer_of(&weights, n);
        let bits = (bpw * total as f64) as u64;
        layer::quantize(&shapes(bpw), budget(bpw), &factors, 64, &mut io).expect("met");
        io.linears.clone_from(&io.kept);
        let found = io.measure().expect("measured");
        let below = (bits as f64 - found as f64) / total as f64;
        assert!((0.0..0.01).contains(&below), "{bpw}: {below} below");
    }
    let mut io = layer_of(&weights, n);
    let refused = layer::quantize(&shapes(0.02), budget(0.02), &factors, 64, &mut io);
    assert!(
        matches!(refused, Err(CodecError::Budget { .. })),
        "{refused:?}"
    );
}

fn layer_of(weights: &[Vec<f32>], cols: usize) -> MemoryLayer {
    MemoryLayer {
        weights: weights.to_vec(),
        cols,
        ..MemoryLayer::default()
    }
}

#[test]
fn an_interrupted_layer_continues_with_the_next_linear_and_gives_the_same_codes() {
    let mut random = Random(16);
    let (n, rows) = (64, [256, 64, 128]);
    let h = correlated(n, &mut random);
    let input = factor::factorize(&h, n, 0.01).expect("factor");
    let factors = FactorCache::new(|_: &str| Ok(input.clone()), |_: &str| Ok(None), 0);
    let shapes = rows.map(|rows| LinearShape {
        name: format!("{rows}"),
        input: "x".into(),
        rows,
        cols: n,
        bits: 5.0,
        lambda: None,
        regular: true,
    });
    let weights: Vec<Vec<f32>> = rows.map(|rows| random.normals(rows * n)).into();
    let total = rows.iter().sum::<usize>() * n;
    let budget = 5 * total as u64;
    let quantize = |io: &mut MemoryLayer| layer::quantize(&shapes, budget, &factors, 64, io);
    let mut whole = layer_of(&weights, n);
    quantize(&mut whole).expect("quantized");
    assert!(whole.bits.len() > 1, "{:?}", whole.bits);
    assert!(whole.progress.contains(&Progress::Weights(total as u64)));
    for failure in 0..whole.stored {
        let mut io = layer_of(&weights, n);
        io.failure = Some(failure);
        quantize(&mut io).expect_err("interrupted");
        let probed = io.steps.len();
        io.failure = None;
        quantize(&mut io).expect("continued");
        assert_eq!(io.kept, whole.kept, "interrupted at {failure}");
        assert_eq!((io.stored, &io.bits), (whole.stored, &whole.bits));
        assert_eq!(probed, io.steps.len(), "no step is probed twice");
    }
}
