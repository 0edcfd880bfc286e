//! Evaluation windows: drawing, recording and embedding them for teacher and pack.
//!
//! Teacher and pack start from the same hidden states, because the pack stores embeddings exactly. The report refuses a pack
//! whose embedding differs from the source's.

use uc_model::ModelConfig;
use uc_model::text::{WindowChoice, WindowSet};
use uc_store::stage::Job;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile};

/// Draws the evaluation windows, records them, and writes their hidden states before layer 0.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let settings = &job.settings().evaluation;
    let choice = WindowChoice {
        count: settings.windows as usize,
        length: settings.length as usize,
        seed: settings.seed,
        field: &settings.field,
    };
    let dir = job.plan().model.path.as_std_path();
    let config = ModelConfig::load(dir)?;
    let texts: Vec<_> = job
        .external("evaluation-text")?
        .files
        .iter()
        .map(|file| &file.path)
        .collect();
    let set = WindowSet::draw(dir, &config, &texts, choice)?;
    job.metric("evaluation windows", set.windows.len());
    let shortfalls = set.shortfalls();
    if !shortfalls.is_empty() {
        job.metric("shortfalls", shortfalls);
    }

    let mut file = job.output("evaluation-windows")?;
    file.append(&serde_json::to_vec(&set)?)?;
    job.commit("evaluation-windows", file)?;

    let non_layer = TensorFile::open(&job.input("non-layer")?)?;
    let shape = [set.windows.len(), set.length, config.hidden];
    let decls = ["teacher", "pack"].map(|name| TensorDecl::new(name, TensorDtype::F32, &shape));
    let mut hidden = job.output_tensors("eval-hidden", &decls)?;
    for _ in &decls {
        for window in &set.windows {
            let read_row = |name: &str, row| non_layer.read_rows_f32(name, row, 1);
            let values = config.embedding.window(&window.ids, read_row)?;
            hidden.append_f32(&values)?;
        }
    }
    job.commit_tensors("eval-hidden", hidden)?;
    Ok(())
}
