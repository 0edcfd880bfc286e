//! A histogram of integers as bars of text.

use uc_pack::statistics::Histogram;

use crate::report::terminal;

/// Most bars.
const MAX_BARS: i64 = 25;
/// Share of the integers at either end that is drawn as one bar.
const TAIL: f64 = 0.001;
/// A full block, and blocks that are narrower by eighths.
const BLOCKS: [char; 8] = ['█', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
/// Columns of the share, with the space before it.
const SHARE: usize = 9;

/// Integers that are drawn as one bar.
struct Bar {
    label: String,
    count: u64,
}

/// The histogram in lines of at most `columns` columns: one bar for each integer, or for a few adjacent ones where there are
/// many.
pub(super) fn lines(histogram: &Histogram, columns: usize) -> Vec<String> {
    let bars = bars(histogram);
    let total = histogram.total().max(1) as f64;
    let highest = bars.iter().map(|bar| bar.count).max().unwrap_or(0).max(1);
    let label_width = bars.iter().map(|bar| terminal::width(&bar.label)).max();
    let label_width = label_width.unwrap_or(0);
    let room = columns.saturating_sub(label_width + 2 + SHARE).max(1);
    let lines = bars.iter().map(|bar| {
        let drawn = drawn(bar.count as f64 / highest as f64, room);
        let padding = " ".repeat(room - drawn.chars().count());
        let share = format!("{:.3} %", 100.0 * bar.count as f64 / total);
        let label = &bar.label;
        format!("{label:>label_width$}  {drawn}{padding}{share:>SHARE$}")
    });
    lines.collect()
}

/// A bar of a length between 0 and 1, in at most `room` characters.
fn drawn(length: f64, room: usize) -> String {
    let eighths = (length * 8.0 * room as f64).round() as usize;
    let mut bar = BLOCKS[0].to_string().repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(BLOCKS[eighths % 8]);
    }
    bar
}

/// The bars, in order; the first and the last one hold the tails where the middle alone has integers enough.
fn bars(histogram: &Histogram) -> Vec<Bar> {
    let (Some(&first), Some(&last)) = (histogram.values.first(), histogram.values.last()) else {
        return Vec::new();
    };
    let (mut low, mut high) = (i64::from(first), i64::from(last));
    if high - low >= MAX_BARS {
        low = quantile(histogram, TAIL).max(low);
        high = quantile(histogram, 1.0 - TAIL).min(high);
    }
    // An odd width, so that 0 is the middle of a bar.
    let width = ((high - low + 1) as u64)
        .div_ceil(MAX_BARS as u64 - 2)
        .max(1) as i64;
    let width = width + i64::from(width % 2 == 0);
    let bin = |value: i64| (value + width / 2).div_euclid(width);
    let (low_bin, high_bin) = (bin(low), bin(high));
    let mut counts = vec![0; (high_bin - low_bin + 1) as usize];
    let (mut below, mut above) = (0, 0);
    for (&value, &count) in histogram.values.iter().zip(&histogram.counts) {
        match bin(value.into()) {
            bin if bin < low_bin => below += count,
            bin if bin > high_bin => above += count,
            bin => counts[(bin - low_bin) as usize] += count,
        }
    }
    let start = |bin: i64| bin * width - width / 2;
    let mut bars = Vec::new();
    if below > 0 {
        let label = format!("below {}", start(low_bin));
        bars.push(Bar {
            label,
            count: below,
        });
    }
    for (bin, count) in (low_bin..).zip(counts) {
        let label = match width {
            1 => bin.to_string(),
            _ => format!("{} to {}", start(bin), start(bin + 1) - 1),
        };
        bars.push(Bar { label, count });
    }
    if above > 0 {
        let label = format!("above {}", start(high_bin + 1) - 1);
        bars.push(Bar {
            label,
            count: above,
        });
    }
    bars
}

/// The smallest integer such that at least this share is not above it.
fn quantile(histogram: &Histogram, share: f64) -> i64 {
    let wanted = (share * histogram.total() as f64).ceil() as u64;
    let mut seen = 0;
    let mut values = histogram.values.iter().zip(&histogram.counts);
    let reached = values.find(|(_, count)| {
        seen += **count;
        seen >= wanted
    });
    reached.map_or(0, |(value, _)| i64::from(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: impl Iterator<Item = (i32, u64)>) -> Histogram {
        let (values, counts) = counts.unzip();
        Histogram { values, counts }
    }

    #[test]
    fn few_integers_have_a_bar_each() {
        let lines = lines(&histogram([(-1, 1), (0, 8), (1, 1)].into_iter()), 30);
        let expected = [
            "-1  ██▏                10.000 %",
            " 0  █████████████████  80.000 %",
            " 1  ██▏                10.000 %",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn many_integers_share_bars_that_fit_and_lose_none() {
        let wide =
            histogram((-3000..=3000).map(|i| (i, 1 + (9_000_000 - i64::from(i).pow(2)) as u64)));
        for columns in [60, 80, 120] {
            let lines = lines(&wide, columns);
            assert!(lines.len() as i64 <= MAX_BARS, "{}", lines.len());
            assert!(
                lines.iter().all(|line| terminal::width(line) <= columns),
                "{lines:#?}"
            );
            let counted: u64 = bars(&wide).iter().map(|bar| bar.count).sum();
            assert_eq!(counted, wide.total());
        }
        let outlier = histogram([(0, 100_000), (1, 100_000), (65_535, 1)].into_iter());
        let lines = lines(&outlier, 80);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[2].contains("above 1"), "{lines:#?}");
    }
}
