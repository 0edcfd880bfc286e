//! Windows of calibration text: drawn, recorded, embedded.

use uc_model::ModelConfig;
use uc_model::text::{WindowChoice, WindowSet};
use uc_store::stage::Job;
use uc_store::tensors::{Dtype, TensorDecl, TensorFile, f32_bytes, to_f32};

use crate::Pass;

/// Writes the windows of a pass and the hidden states before layer 0.
pub fn draw(job: &mut Job<'_>, pass: Pass) -> anyhow::Result<()> {
    let settings = job.settings();
    let choice = |count: u32, length: u32, seed| WindowChoice {
        count: count as usize,
        length: length as usize,
        seed,
    };
    let (choice, windows, hidden) = match pass {
        Pass::Main => {
            let chosen = &settings.calibration;
            let choice = choice(chosen.windows, chosen.length, chosen.seed);
            (choice, "calibration-windows", "hidden")
        }
        Pass::Survey => {
            let chosen = &settings.allocation;
            let choice = choice(chosen.windows, chosen.length, chosen.seed);
            (choice, "survey-windows", "survey-hidden")
        }
    };
    let dir = job.plan().model.path.as_std_path();
    let config = ModelConfig::load(dir)?;
    let texts = job.external("calibration-text")?.files.iter();
    let texts: Vec<_> = texts.map(|file| &file.path).collect();
    let set = WindowSet::draw(dir, &config, &texts, choice)?;
    job.figure("windows", set.windows.len());
    job.figure("tokens", set.tokens());

    let mut file = job.output(windows)?;
    file.append(&serde_json::to_vec(&set)?)?;
    job.commit(windows, file)?;

    let scaffold = TensorFile::open(&job.input("scaffold")?)?;
    let dtype = scaffold.tensor("model.embed_tokens.weight")?.dtype;
    let shape = [set.windows.len(), set.length, config.hidden];
    let decl = TensorDecl::new("hidden", Dtype::F32, &shape);
    let mut file = job.output_tensors(hidden, &[decl])?;
    for id in set.windows.iter().flat_map(|window| &window.ids) {
        let row = scaffold.read_rows("model.embed_tokens.weight", *id as usize, 1)?;
        let values = to_f32(dtype, &row).expect("shard-loader admits floats only");
        file.append(&f32_bytes(&values))?;
    }
    job.commit_tensors(hidden, file)?;
    Ok(())
}
