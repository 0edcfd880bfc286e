//! The measured runs behind the estimates of time, and how far their stages fell behind the speeds of the machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uc_settings::Settings;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{JobId, Plan};

use super::cost_model::CostModel;
use super::estimate::PlanCosts;
use super::probe::{Probe, Work};

/// The measured runs, written by `tests/benchmark/throughput.py`.
const MEASURED: &str = include_str!("../../../../docs/benchmarks/throughput.json");
/// What two runs of the same work differ by, and two stages of the same kind, relative to their time.
const SCATTER: f64 = 0.15;
/// By how much more a slowdown may differ for each doubling of the width beyond the nearest measured one.
const PER_DOUBLING: f64 = 0.1;

/// Measured runs of the built-in pipeline, and the speeds of their machine.
#[derive(Debug, Deserialize)]
pub struct Measurements {
    /// The machine.
    pub probe: Probe,
    /// The runs.
    pub runs: Vec<MeasuredRun>,
}

/// A measured run.
#[derive(Debug, Deserialize)]
pub struct MeasuredRun {
    /// File name of the receipt that the numbers are from.
    pub receipt: String,
    /// The model within a receipt of several.
    #[serde(default)]
    pub entry: Option<String>,
    /// Settings that differ from the defaults.
    pub settings: BTreeMap<String, String>,
    /// Wall time of the run.
    pub wall_seconds: f64,
    /// The model.
    pub model: ModelSummary,
    /// Time of every stage, by name.
    pub stages: BTreeMap<String, MeasuredStage>,
}

/// The time of one stage.
#[derive(Debug, Deserialize)]
pub struct MeasuredStage {
    /// Wall seconds of all jobs.
    pub seconds: f64,
}

impl Measurements {
    /// The measurements that this program is built with.
    pub fn embedded() -> anyhow::Result<Self> {
        Ok(serde_json::from_str(MEASURED)?)
    }
}

impl MeasuredRun {
    /// The receipt, and which of its models.
    pub fn name(&self) -> String {
        match &self.entry {
            None => self.receipt.clone(),
            Some(entry) => format!("{} ({entry})", self.receipt),
        }
    }

    /// The settings of the run.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = Settings::default();
        for (key, value) in &self.settings {
            settings.set(key, value)?;
        }
        Ok(settings)
    }

    /// Seconds that a stage would have taken with all cores to itself. Jobs that ran side by side shared them: together their
    /// stages took the time of the run.
    pub fn seconds_alone(&self, stage: &str) -> Option<f64> {
        let together: f64 = self.stages.values().map(|stage| stage.seconds).sum();
        let share = (self.wall_seconds / together).min(1.0);
        Some(self.stages.get(stage)?.seconds * share)
    }
}

/// An estimate and what it may lie between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Range {
    /// The least.
    pub low: f64,
    /// The estimate.
    pub expected: f64,
    /// The most.
    pub high: f64,
}

impl std::ops::Mul<f64> for Range {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            low: factor * self.low,
            expected: factor * self.expected,
            high: factor * self.high,
        }
    }
}

impl std::ops::Add for Range {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            low: self.low + other.low,
            expected: self.expected + other.expected,
            high: self.high + other.high,
        }
    }
}

impl std::iter::Sum for Range {
    fn sum<I: Iterator<Item = Self>>(ranges: I) -> Self {
        ranges.fold(Self::default(), |sum, range| sum + range)
    }
}

/// By how much stages took longer than their work at the speeds of their machine.
#[derive(Debug, Default)]
pub struct Slowdowns {
    by_command: BTreeMap<String, Vec<Point>>,
}

/// The slowdown of a stage in one run.
#[derive(Debug, Clone, Copy)]
struct Point {
    has_experts: bool,
    /// Logarithm of the width of the model.
    log_width: f64,
    slowdown: f64,
}

fn has_experts(model: &ModelSummary) -> bool {
    model.layer_groups.iter().any(|group| group.experts > 0)
}

fn log_width(model: &ModelSummary) -> f64 {
    (model.hidden.max(1) as f64).ln()
}

impl Slowdowns {
    /// The slowdowns of the measured runs, whose plans are `plans`.
    ///
    /// # Errors
    /// If a plan has a stage or artifact without a formula.
    pub fn new(measurements: &Measurements, plans: &[Plan]) -> anyhow::Result<Self> {
        let mut slowdowns = Self::default();
        for (run, plan) in measurements.runs.iter().zip(plans) {
            let costs = CostModel::new(&run.model, &plan.settings);
            let costs = PlanCosts::new(plan, costs)?;
            for stage in &plan.stages {
                let units = stage.units(plan.model.layers).into_iter();
                let works = units.filter_map(|unit| {
                    costs.work(&JobId {
                        stage: stage.name.clone(),
                        unit,
                    })
                });
                let ideal = works
                    .sum::<Work>()
                    .seconds(&measurements.probe, run.model.hidden);
                let Some(seconds) = run.seconds_alone(&stage.name).filter(|_| ideal > 0.0) else {
                    continue;
                };
                let points = slowdowns.by_command.entry(stage.argv.join(" "));
                points.or_default().push(Point {
                    has_experts: has_experts(&run.model),
                    log_width: log_width(&run.model),
                    slowdown: seconds / ideal,
                });
            }
        }
        Ok(slowdowns)
    }

    /// The slowdown of a command for a model; none if it was never measured. Models with experts are estimated from such, if one
    /// was measured, and others from others. Between the measured widths the slowdown is interpolated by the logarithm of the
    /// width; it lies between the least and the largest one measured, and what runs differ by. Beyond the
    /// measured widths less is known.
    pub fn of(&self, argv: &[String], model: &ModelSummary) -> Option<Range> {
        let all = self.by_command.get(&argv.join(" "))?;
        let like = |point: &&Point| point.has_experts == has_experts(model);
        let mut points: Vec<Point> = all.iter().filter(like).copied().collect();
        if points.is_empty() {
            points.clone_from(all);
        }
        points.sort_by(|a, b| a.log_width.total_cmp(&b.log_width));
        let expected = interpolate(&points, log_width(model))?;
        let beyond = 1.0 + PER_DOUBLING * doublings_beyond(&points, log_width(model));
        let slowdowns = || all.iter().map(|point| point.slowdown);
        let (least, most) = (
            slowdowns().fold(expected, f64::min),
            slowdowns().fold(expected, f64::max),
        );
        Some(Range {
            low: least * (1.0 - SCATTER) / beyond,
            expected,
            high: most * (1.0 + SCATTER) * beyond,
        })
    }
}

/// The slowdown at a width between sorted points; beyond them, that of the nearest.
fn interpolate(points: &[Point], at: f64) -> Option<f64> {
    let after = points.iter().position(|point| point.log_width >= at);
    let (before, after) = match after {
        None => return points.last().map(|point| point.slowdown),
        Some(0) => return Some(points[0].slowdown),
        Some(index) => (points[index - 1], points[index]),
    };
    let share = (at - before.log_width) / (after.log_width - before.log_width);
    // Slowdowns are factors: their logarithms are interpolated.
    let log = (1.0 - share) * before.slowdown.ln() + share * after.slowdown.ln();
    Some(log.exp())
}

/// How often the width has doubled or halved beyond sorted points; 0 between them.
fn doublings_beyond(points: &[Point], at: f64) -> f64 {
    let narrowest = points.first().map_or(at, |point| point.log_width);
    let widest = points.last().map_or(at, |point| point.log_width);
    (narrowest - at).max(at - widest).max(0.0) / std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::tests_support::measured_model;

    fn point(has_experts: bool, width: f64, slowdown: f64) -> Point {
        Point {
            has_experts,
            log_width: width.ln(),
            slowdown,
        }
    }

    #[test]
    fn slowdowns_are_interpolated_by_width_among_models_of_the_same_kind() {
        let points = vec![
            point(false, 4096.0, 2.0),
            point(false, 256.0, 8.0),
            point(true, 1024.0, 100.0),
        ];
        let slowdowns = Slowdowns {
            by_command: [("quantize layer".to_owned(), points)].into(),
        };
        let argv = ["quantize", "layer"].map(str::to_owned);
        let mut model = measured_model();
        let mut at = |width, experts| {
            model.hidden = width;
            model.layer_groups[0].experts = experts;
            slowdowns.of(&argv, &model).expect("measured")
        };
        for (width, expected) in [
            (64, 8.0),
            (256, 8.0),
            (1024, 4.0),
            (4096, 2.0),
            (16384, 2.0),
        ] {
            let range = at(width, 0);
            assert!(
                (range.expected - expected).abs() < 1e-9,
                "{width}: {range:?}"
            );
            // A tenth more for each doubling beyond.
            let beyond = match width {
                64 | 16384 => 1.2,
                _ => 1.0,
            };
            assert!((range.low - 1.7 / beyond).abs() < 1e-9, "{range:?}");
            assert!((range.high - 115.0 * beyond).abs() < 1e-9, "{range:?}");
        }
        assert_eq!(at(64, 8).expected, 100.0);
        assert_eq!(slowdowns.of(&["other".to_owned()], &measured_model()), None);
    }

    #[test]
    fn jobs_that_ran_side_by_side_shared_the_time_of_the_run() {
        let mut run = Measurements::embedded()
            .expect("embedded")
            .runs
            .swap_remove(0);
        let stages = [("a", 30.0), ("b", 90.0)];
        let stages = stages.map(|(name, seconds)| (name.to_owned(), MeasuredStage { seconds }));
        run.stages = stages.into();
        run.wall_seconds = 60.0;
        assert_eq!(run.seconds_alone("a"), Some(15.0));
        run.wall_seconds = 130.0;
        assert_eq!(run.seconds_alone("b"), Some(90.0));
        assert_eq!(run.seconds_alone("c"), None);
    }
}
