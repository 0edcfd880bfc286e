//! The evaluation windows: drawn, recorded, embedded for teacher and pack.
//!
//! Both start from the same embedding: the pack's is exact, and the report refuses a scaffold that is not.

use uc_model::ModelConfig;
use uc_model::text::{WindowChoice, WindowSet};
use uc_store::stage::Job;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile, f32_bytes};

/// Writes `evaluation-windows` and `eval-hidden@0`.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let settings = &job.settings().evaluation;
    let choice = WindowChoice {
        count: settings.windows as usize,
        length: settings.length as usize,
        seed: settings.seed,
    };
    let dir = job.plan().model.path.as_std_path();
    let config = ModelConfig::load(dir)?;
    let texts: Vec<_> = job
        .external("evaluation-text")?
        .files
        .iter()
        .map(|f| &f.path)
        .collect();
    let set = WindowSet::draw(dir, &config, &texts, choice)?;
    job.metric("evaluation windows", set.windows.len());

    let mut file = job.output("evaluation-windows")?;
    file.append(&serde_json::to_vec(&set)?)?;
    job.commit("evaluation-windows", file)?;

    let non_layer = TensorFile::open(&job.input("non-layer")?)?;
    let shape = [set.windows.len(), set.length, config.hidden];
    let decls = ["teacher", "pack"].map(|name| TensorDecl::new(name, TensorDtype::F32, &shape));
    let mut hidden = job.output_tensors("eval-hidden", &decls)?;
    for _ in &decls {
        for window in &set.windows {
            for (position, &id) in window.ids.iter().enumerate() {
                let row = |name: &str, row| non_layer.read_rows_f32(name, row, 1);
                let values = config.embedding.token(id, position, row)?;
                hidden.append(&f32_bytes(&values))?;
            }
        }
    }
    job.commit_tensors("eval-hidden", hidden)?;
    Ok(())
}
