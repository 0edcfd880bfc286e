//! Calibration windows: drawing, recording and embedding them, and choosing those of the sensitivity pass.

use anyhow::Context;
use uc_model::ModelConfig;
use uc_model::text::{RecordedWindow, WindowChoice, WindowSet};
use uc_store::stage::Job;
use uc_store::stream::RowSink;
use uc_store::tensors::TensorFile;

use crate::states::StateWriter;

/// One in this many windows of the sensitivity pass is a reference window: its tokens set the metrics of the leverage
/// scores ([`crate::leverage`]) and are not scored themselves.
pub const REFERENCE_DIVISOR: usize = 4;

/// Draws the calibration windows, records them, and writes their hidden states before layer 0.
pub fn draw(job: &mut Job<'_>) -> anyhow::Result<()> {
    let settings = &job.settings().calibration;
    let choice = WindowChoice {
        count: settings.windows as usize,
        length: settings.length as usize,
        seed: settings.seed,
        field: &settings.field,
    };
    let dir = job.plan().model.path.as_std_path();
    let config = ModelConfig::load(dir)?;
    let texts = job.external("calibration-text")?.files.iter();
    let texts: Vec<_> = texts.map(|file| &file.path).collect();
    let set = WindowSet::draw(dir, &config, &texts, choice)?;
    job.metric("windows", set.windows.len());
    job.metric("tokens", set.tokens());
    let shortfalls = set.shortfalls();
    if !shortfalls.is_empty() {
        job.metric("shortfalls", shortfalls);
    }

    let mut file = job.output("calibration-windows")?;
    file.append(&serde_json::to_vec(&set)?)?;
    job.commit("calibration-windows", file)?;
    let windows: Vec<_> = set.windows.iter().collect();
    embed(job, &config, &windows, "hidden")
}

/// Writes the hidden states before layer 0 of the windows of the sensitivity pass.
pub fn embed_sensitivity(job: &mut Job<'_>) -> anyhow::Result<()> {
    let config = ModelConfig::load(job.plan().model.path.as_std_path())?;
    let path = job.input("calibration-windows")?;
    let set: WindowSet =
        uc_input::read_json(&path, u64::MAX).with_context(|| format!("cannot read {path}"))?;
    let selected = sensitivity_windows(set.windows.len(), job.settings().allocation.windows);
    job.metric("windows", selected.len());
    let windows: Vec<_> = selected.iter().map(|&index| &set.windows[index]).collect();
    embed(job, &config, &windows, "sensitivity-hidden")
}

/// Indices of the calibration windows that the sensitivity pass uses: `count` of `windows`, evenly spaced; 0 selects all.
/// The reference windows, every [`REFERENCE_DIVISOR`]th, come first, so that they are spread over the whole text.
pub fn sensitivity_windows(windows: usize, count: u32) -> Vec<usize> {
    let count = match count as usize {
        0 => windows,
        count => count.min(windows),
    };
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|index| index % REFERENCE_DIVISOR != 1);
    let window = |index| (2 * index + 1) * windows / (2 * count);
    order.into_iter().map(window).collect()
}

/// Number of reference windows among `windows`, which are processed in batches: whole batches, and never all windows.
pub fn reference_windows(windows: usize, batch: usize) -> usize {
    match (windows / REFERENCE_DIVISOR).next_multiple_of(batch) {
        count if count >= windows => 0,
        count => count,
    }
}

/// Writes the embedded windows as the artifact `output`, `[windows, length, width]`.
fn embed(
    job: &mut Job<'_>,
    config: &ModelConfig,
    windows: &[&RecordedWindow],
    output: &str,
) -> anyhow::Result<()> {
    let non_layer = TensorFile::open(&job.input("non-layer")?)?;
    let length = windows.first().map_or(0, |window| window.ids.len());
    let mut file = StateWriter::new(job, output, [windows.len(), length, config.hidden])?;
    for window in windows {
        let read_row = |name: &str, row| non_layer.read_rows_f32(name, row, 1);
        let values = config.embedding.window(&window.ids, read_row)?;
        file.append_rows(&values)?;
    }
    file.commit(job, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sensitivity_pass_uses_windows_from_the_whole_text() {
        assert_eq!(sensitivity_windows(8, 4), [3, 1, 5, 7]);
        assert_eq!(sensitivity_windows(16, 8), [3, 11, 1, 5, 7, 9, 13, 15]);
        assert_eq!(sensitivity_windows(7, 3), [3, 1, 5]);
        assert_eq!(sensitivity_windows(3, 0), [1, 0, 2]);
        assert_eq!(sensitivity_windows(3, 9), [1, 0, 2]);
        assert!(sensitivity_windows(0, 0).is_empty());
    }

    #[test]
    fn reference_windows_fill_whole_batches_and_leave_windows_to_score() {
        assert_eq!(reference_windows(48, 1), 12);
        assert_eq!(reference_windows(46, 4), 12);
        assert_eq!(reference_windows(3, 1), 0);
        assert_eq!(reference_windows(8, 8), 0);
        assert_eq!(reference_windows(9, 8), 8);
    }
}
