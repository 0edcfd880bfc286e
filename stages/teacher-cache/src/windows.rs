//! Windows of calibration text: drawn, recorded, embedded; and those of them that the survey takes.

use anyhow::Context;
use uc_model::ModelConfig;
use uc_model::text::{RecordedWindow, WindowChoice, WindowSet};
use uc_store::stage::Job;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFile, f32_bytes};

use crate::gradient::PARTS;

/// Writes the calibration windows and the hidden states before layer 0.
pub fn draw(job: &mut Job<'_>) -> anyhow::Result<()> {
    let chosen = &job.settings().calibration;
    let choice = WindowChoice {
        count: chosen.windows as usize,
        length: chosen.length as usize,
        seed: chosen.seed,
    };
    let dir = job.plan().model.path.as_std_path();
    let config = ModelConfig::load(dir)?;
    let texts = job.external("calibration-text")?.files.iter();
    let texts: Vec<_> = texts.map(|file| &file.path).collect();
    let set = WindowSet::draw(dir, &config, &texts, choice)?;
    job.metric("windows", set.windows.len());
    job.metric("tokens", set.tokens());

    let mut file = job.output("calibration-windows")?;
    file.append(&serde_json::to_vec(&set)?)?;
    job.commit("calibration-windows", file)?;
    let windows: Vec<_> = set.windows.iter().collect();
    embed(job, &config, &windows, "hidden")
}

/// Writes the hidden states before layer 0 of the windows that the survey takes.
pub fn draw_survey(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let path = job.input("calibration-windows")?;
    let text = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let set: WindowSet = serde_json::from_slice(&text)?;
    let chosen = surveyed(set.windows.len(), job.settings().allocation.windows);
    job.metric("windows", chosen.len());
    let windows: Vec<_> = chosen.iter().map(|&index| &set.windows[index]).collect();
    embed(job, &config, &windows, "sensitivity-hidden")
}

/// Which of `windows` calibration windows the survey takes: `count` of them, evenly spaced; 0 takes all. Every fourth comes first:
/// those set the metric of the backward sweep and are to be of the whole text.
pub fn surveyed(windows: usize, count: u32) -> Vec<usize> {
    let count = match count as usize {
        0 => windows,
        count => count.min(windows),
    };
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|index| index % PARTS != 1);
    let window = |index| (2 * index + 1) * windows / (2 * count);
    order.into_iter().map(window).collect()
}

/// Writes the embedded windows as the artifact `hidden`, `[windows, length, width]`.
fn embed(
    job: &mut Job<'_>,
    config: &ModelConfig,
    windows: &[&RecordedWindow],
    hidden: &str,
) -> anyhow::Result<()> {
    let non_layer = TensorFile::open(&job.input("non-layer")?)?;
    let length = windows.first().map_or(0, |window| window.ids.len());
    let shape = [windows.len(), length, config.hidden];
    let decl = TensorDecl::new("hidden", TensorDtype::F32, &shape);
    let mut file = job.output_tensors(hidden, &[decl])?;
    for window in windows {
        for (position, &id) in window.ids.iter().enumerate() {
            let row = |name: &str, row| non_layer.read_rows_f32(name, row, 1);
            let values = config.embedding.token(id, position, row)?;
            file.append(&f32_bytes(&values))?;
        }
    }
    job.commit_tensors(hidden, file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_survey_takes_windows_from_the_whole_text() {
        assert_eq!(surveyed(8, 4), [3, 1, 5, 7]);
        assert_eq!(surveyed(16, 8), [3, 11, 1, 5, 7, 9, 13, 15]);
        assert_eq!(surveyed(7, 3), [3, 1, 5]);
        assert_eq!(surveyed(3, 0), [1, 0, 2]);
        assert_eq!(surveyed(3, 9), [1, 0, 2]);
        assert!(surveyed(0, 0).is_empty());
    }
}
