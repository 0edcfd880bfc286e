//! How much of a run is done and how long the rest takes: a forecast, corrected by what was measured.
//!
//! Pure arithmetic. A stage that has finished jobs counts with their mean time. The others count with their forecast,
//! scaled by how far the measured stages are from theirs. The sum of the remaining job times is divided by the number of
//! jobs that run at once, for which the forecast is the first guess and the session the evidence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Share of the forecast duration after which measured concurrency counts as much as the forecast of it.
const PRIOR_SHARE: f64 = 0.05;

/// What a run is expected to take before any of its jobs has run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// Seconds of a job, by stage.
    pub seconds_per_job: BTreeMap<String, f64>,
    /// Mean number of jobs that run at once.
    pub concurrency: f64,
}

/// The work of one stage.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StageWork {
    /// Its name.
    pub name: String,
    /// Jobs done, running ones by the share of them that is done.
    pub done: f64,
    /// All jobs.
    pub total: f64,
    /// Jobs whose time was measured, in this session or before.
    pub measured_jobs: u64,
    /// Their seconds.
    pub measured_seconds: f64,
}

/// What the present session has worked so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Session {
    /// Its wall time, seconds.
    pub seconds: f64,
    /// The sum of the times of its jobs, finished and running, seconds.
    pub job_seconds: f64,
}

/// The state of a run as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlook {
    /// The part of the work that is done, 0 to 1.
    pub share: f64,
    /// Estimated seconds until the rest is done; none if nothing is known.
    pub seconds_left: Option<f64>,
    /// Whether the estimate leaves out a stage of which nothing is known.
    pub is_partial: bool,
}

/// Estimates the outlook of a run.
pub fn outlook(
    stages: &[StageWork],
    expectation: Option<&Expectation>,
    session: Session,
) -> Outlook {
    let expected =
        |stage: &StageWork| expectation.and_then(|e| e.seconds_per_job.get(&stage.name).copied());
    let measured = stages.iter().filter(|stage| stage.measured_jobs > 0);
    let (found, forecast) = measured
        .filter_map(|stage| {
            let forecast = expected(stage)? * stage.measured_jobs as f64;
            Some((stage.measured_seconds, forecast))
        })
        .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    let correction = if forecast > 0.0 {
        found / forecast
    } else {
        1.0
    };
    let seconds: Vec<Option<f64>> = stages
        .iter()
        .map(|stage| match stage.measured_jobs {
            0 => expected(stage).map(|seconds| seconds * correction),
            jobs => Some(stage.measured_seconds / jobs as f64),
        })
        .collect();
    let known: Vec<f64> = seconds.iter().flatten().copied().collect();
    let mean = match known.is_empty() {
        true => 1.0,
        // A stage of which nothing is known counts like the others in the share.
        false => (known.iter().sum::<f64>() / known.len() as f64).max(f64::MIN_POSITIVE),
    };
    let (mut all, mut done, mut left, mut is_partial) = (0.0, 0.0, 0.0, false);
    for (stage, seconds) in stages.iter().zip(&seconds) {
        let weight = seconds.unwrap_or(mean);
        let open = (stage.total - stage.done).max(0.0);
        all += stage.total * weight;
        done += stage.done.min(stage.total) * weight;
        left += open * seconds.unwrap_or(0.0);
        is_partial |= seconds.is_none() && open > 0.0;
    }
    let concurrency = concurrency(all * correction, expectation, session);
    Outlook {
        share: if all > 0.0 {
            (done / all).min(1.0)
        } else {
            1.0
        },
        seconds_left: (!known.is_empty()).then(|| left / concurrency),
        is_partial,
    }
}

/// Mean number of jobs at once: the forecast at first, then more and more what was measured.
fn concurrency(job_seconds: f64, expectation: Option<&Expectation>, session: Session) -> f64 {
    let prior = expectation.map_or(1.0, |e| e.concurrency).max(1.0);
    let prior_seconds = (PRIOR_SHARE * job_seconds / prior).max(1.0);
    let worked = session.job_seconds + prior * prior_seconds;
    (worked / (session.seconds + prior_seconds)).max(0.1)
}

/// A duration as it is shown for a time left: no more digits than an estimate has.
pub fn coarse_duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 99.5 => format!("{seconds:.0} s"),
        seconds if seconds < 5970.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 360_000.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, done: f64, total: f64, measured: (u64, f64)) -> StageWork {
        StageWork {
            name: name.into(),
            done,
            total,
            measured_jobs: measured.0,
            measured_seconds: measured.1,
        }
    }

    fn expectation() -> Expectation {
        Expectation {
            seconds_per_job: [("load".to_owned(), 1.0), ("code".to_owned(), 9.0)].into(),
            concurrency: 2.0,
        }
    }

    #[test]
    fn before_the_first_job_the_forecast_is_shown() {
        let stages = [
            stage("load", 0.0, 10.0, (0, 0.0)),
            stage("code", 0.0, 10.0, (0, 0.0)),
        ];
        let outlook = outlook(&stages, Some(&expectation()), Session::default());
        assert_eq!(outlook.share, 0.0);
        assert_eq!(outlook.seconds_left, Some(50.0));
        assert!(!outlook.is_partial);
    }

    #[test]
    fn measured_times_correct_the_forecast_of_stages_that_have_not_started() {
        // Loading takes three times as long as forecast; so will coding.
        let stages = [
            stage("load", 10.0, 10.0, (10, 30.0)),
            stage("code", 0.0, 10.0, (0, 0.0)),
        ];
        let session = Session {
            seconds: 1e6,
            job_seconds: 1e6,
        };
        let outlook = outlook(&stages, Some(&expectation()), session);
        assert!((outlook.share - 0.1).abs() < 1e-9, "{outlook:?}");
        let left = outlook.seconds_left.expect("known");
        assert!((left - 270.0).abs() < 0.5, "{left}");
    }

    #[test]
    fn a_running_job_counts_by_its_share() {
        let at = |done| {
            let stages = [stage("code", done, 2.0, (1, 10.0))];
            outlook(&stages, None, Session::default())
        };
        assert_eq!(at(1.0).share, 0.5);
        assert_eq!(at(1.5).share, 0.75);
        assert!(at(1.5).seconds_left < at(1.0).seconds_left);
    }

    #[test]
    fn without_forecast_and_measurement_there_is_no_time_left() {
        let unknown = [stage("x", 1.0, 4.0, (0, 0.0))];
        let all = outlook(&unknown, None, Session::default());
        assert_eq!(
            (all.share, all.seconds_left, all.is_partial),
            (0.25, None, true)
        );
        let mixed = [
            stage("x", 0.0, 4.0, (0, 0.0)),
            stage("y", 1.0, 2.0, (1, 3.0)),
        ];
        assert!(outlook(&mixed, None, Session::default()).is_partial);
        let done = [stage("x", 4.0, 4.0, (4, 3.0))];
        let done = outlook(&done, None, Session::default());
        assert_eq!((done.share, done.seconds_left), (1.0, Some(0.0)));
    }

    #[test]
    fn a_time_left_has_no_more_digits_than_an_estimate() {
        for (seconds, text) in [
            (0.4, "0 s"),
            (99.0, "99 s"),
            (100.0, "2 min"),
            (5_000.0, "83 min"),
            (7_200.0, "2.0 h"),
            (400_000.0, "4.6 days"),
        ] {
            assert_eq!(coarse_duration(seconds), text);
        }
    }
}
