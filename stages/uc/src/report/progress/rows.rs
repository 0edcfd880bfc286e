//! The rows of the display on a terminal, as text: one for every stage that has started, and one for the whole run.

use crate::report::outlook::{Outlook, coarse_duration};
use crate::report::terminal::{Size, truncate};

/// What the row of a stage shows.
#[derive(Debug, Clone, Default)]
pub struct StageRow<'a> {
    /// Name of the stage.
    pub name: &'a str,
    /// Jobs done.
    pub done: u64,
    /// All jobs.
    pub total: u64,
    /// What its running job works on, and how far it is; none while it waits.
    pub running: Option<String>,
    /// Estimated seconds until it is done, while a job runs.
    pub seconds_left: Option<f64>,
}

/// What the last row shows.
#[derive(Debug, Clone, Copy)]
pub struct TotalRow {
    /// Share done and time left.
    pub outlook: Outlook,
    /// Jobs done.
    pub done: u64,
    /// All jobs.
    pub total: u64,
    /// Seconds since the session began.
    pub seconds: f64,
}

/// The rows for a terminal of a size: none is wider, and they are fewer than its lines. Where not all stages fit, running
/// ones come first. `name_width` is the length of the longest name that can appear.
pub fn block(
    stages: &[StageRow<'_>],
    total: TotalRow,
    name_width: usize,
    size: Size,
) -> Vec<String> {
    let limit = size.columns.saturating_sub(1);
    let counts: Vec<String> = stages
        .iter()
        .map(|stage| format!("{}/{}", stage.done, stage.total))
        .collect();
    let count_width = counts.iter().map(String::len).max().unwrap_or(0).max(5);
    let bar_width = match size.columns {
        ..70 => 0,
        70..100 => 10,
        _ => 24,
    };
    let room = size.rows.saturating_sub(2);
    let mut shown: Vec<usize> = (0..stages.len()).collect();
    shown.sort_by_key(|index| stages[*index].running.is_none());
    shown.truncate(room);
    shown.sort_unstable();
    let mut rows: Vec<String> = shown
        .into_iter()
        .map(|index| {
            let (stage, count) = (&stages[index], &counts[index]);
            let bar = bar(share(stage), bar_width);
            let left = stage.seconds_left.map_or_else(String::new, |left| {
                format!("{} left", coarse_duration(left))
            });
            let running = stage.running.as_deref().unwrap_or_default();
            let row = format!(
                "{:name_width$} {bar}{count:>count_width$} {left:>11}  {running}",
                stage.name
            );
            truncate(row.trim_end(), limit)
        })
        .collect();
    let Outlook { share, .. } = total.outlook;
    let percent = format!("{:.0} %", (share * 100.0).floor());
    let row = format!(
        "{:name_width$} {}{percent:>count_width$} {:>11}  {} of {} jobs, {} so far",
        "total",
        bar(share, bar_width),
        time_left(&total.outlook),
        total.done,
        total.total,
        coarse_duration(total.seconds)
    );
    rows.push(truncate(&row, limit));
    rows
}

fn share(stage: &StageRow<'_>) -> f64 {
    stage.done as f64 / stage.total.max(1) as f64
}

/// The time left in words; empty if nothing is known.
pub fn time_left(outlook: &Outlook) -> String {
    match (outlook.seconds_left, outlook.is_partial) {
        (None, _) => String::new(),
        (Some(left), false) => format!("{} left", coarse_duration(left)),
        (Some(left), true) => format!(">{} left", coarse_duration(left)),
    }
}

/// A bar of a width with a space after it; empty without a width.
pub fn bar(share: f64, width: usize) -> String {
    if width == 0 {
        return String::new();
    }
    let full = ((share * width as f64) as usize).min(width);
    format!("{}{} ", "█".repeat(full), "░".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::terminal::width;

    fn stages() -> Vec<StageRow<'static>> {
        let mut stages = vec![
            StageRow {
                name: "sensitivity-backward",
                done: 3,
                total: 126,
                running: Some("layer 122 31/128 windows".into()),
                seconds_left: Some(7_000.0),
            },
            StageRow {
                name: "shard",
                done: 1,
                total: 191,
                running: Some("model-00001-of-00191.safetensors 1.5 GiB of 4.6 GiB".into()),
                seconds_left: Some(90_000.0),
            },
        ];
        for name in ["layer", "quantize", "overlay-fit", "pack-layer", "windows"] {
            stages.push(StageRow {
                name,
                done: 1,
                total: 126,
                ..StageRow::default()
            });
        }
        stages
    }

    fn total() -> TotalRow {
        TotalRow {
            outlook: Outlook {
                share: 0.437,
                seconds_left: Some(31_000.0),
                is_partial: false,
            },
            done: 512,
            total: 1300,
            seconds: 25_000.0,
        }
    }

    #[test]
    fn no_row_is_wider_and_no_block_is_higher_than_the_terminal() {
        for columns in [20, 40, 60, 80, 120, 200] {
            for rows in [3, 4, 8, 24] {
                let block = block(&stages(), total(), 20, Size { columns, rows });
                assert!(block.len() < rows, "{block:#?}");
                assert!(block.iter().all(|row| width(row) < columns), "{block:#?}");
            }
        }
    }

    #[test]
    fn the_share_and_the_time_left_are_shown_at_60_columns() {
        let size = Size {
            columns: 60,
            rows: 24,
        };
        let block = block(&stages(), total(), 20, size);
        let last = block.last().expect("the total");
        assert!(
            last.contains("43 %") && last.contains("8.6 h left"),
            "{last}"
        );
        assert_eq!(block.len(), 8);
        // A stage that waits has no time left.
        assert!(block[3].starts_with("quantize") && !block[3].contains("left"));
    }

    #[test]
    fn running_stages_stay_when_not_all_fit() {
        let size = Size {
            columns: 80,
            rows: 5,
        };
        let block = block(&stages(), total(), 20, size);
        assert_eq!(block.len(), 4);
        assert!(block[0].starts_with("sensitivity-backward"));
        assert!(block[1].starts_with("shard"));
    }
}
