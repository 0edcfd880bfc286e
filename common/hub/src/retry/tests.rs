use std::sync::Mutex;

use super::*;
use crate::error::{ErrorDetail, RequestContext};

/// A clock that records the requested waits and does not sleep.
#[derive(Default)]
struct RecordingClock(Mutex<Vec<Duration>>);

impl Clock for RecordingClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH
            + self
                .0
                .lock()
                .expect("not poisoned")
                .iter()
                .sum::<Duration>()
    }

    fn sleep(&self, wait: Duration) {
        self.0.lock().expect("not poisoned").push(wait);
    }
}

fn request() -> RequestContext {
    RequestContext {
        method: "GET",
        url: "https://hub.example/x".into(),
        request_id: Some("r1".into()),
    }
}

fn server_error() -> HubError {
    HubError::Server {
        request: request(),
        status: 500,
        detail: ErrorDetail::default(),
    }
}

fn busy_error(seconds: u64) -> HubError {
    HubError::Busy {
        request: request(),
        status: 429,
        retry_after: Some(Duration::from_secs(seconds)),
        detail: ErrorDetail::default(),
    }
}

/// The waits and the outcome of an operation that fails with the given errors and then succeeds.
fn run_with_errors(seed: u64, errors: Vec<HubError>) -> (Vec<Duration>, Result<u32, HubError>) {
    let clock = Arc::new(RecordingClock::default());
    let policy = RetryPolicy {
        jitter_seed: seed,
        ..RetryPolicy::default()
    };
    let mut retrier = Retrier::with_clock(policy, clock.clone());
    let mut errors = errors.into_iter();
    let outcome = retrier.run("test", |_| errors.next().map_or(Ok(7), Err));
    let waits = clock.0.lock().expect("not poisoned").clone();
    (waits, outcome)
}

#[test]
fn waits_double_are_jittered_by_the_seed_and_stay_below_the_limit() {
    let many = || (0..7).map(|_| server_error()).collect::<Vec<_>>();
    let (first, outcome) = run_with_errors(1, many());
    assert_eq!(outcome.expect("the eighth attempt succeeds"), 7);
    assert_eq!(first.len(), 7);
    for (index, wait) in first.iter().enumerate() {
        let backoff = Duration::from_secs(1 << index);
        assert!(
            *wait >= backoff / 2 && *wait <= backoff,
            "{index}: {wait:?}"
        );
    }
    assert_eq!(run_with_errors(1, many()).0, first);
    assert_ne!(run_with_errors(2, many()).0, first);
}

#[test]
fn eight_failed_attempts_end_with_a_summary_of_all_of_them() {
    let mut errors: Vec<_> = (0..7).map(|_| server_error()).collect();
    errors.insert(3, busy_error(2));
    let (waits, outcome) = run_with_errors(1, errors);
    assert_eq!(waits.len(), 7);
    let error = outcome.expect_err("given up");
    let HubError::RetriesExhausted { failures, last, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(failures.len(), 8);
    assert_eq!(failures[7].waited_ms, None);
    assert!(matches!(**last, HubError::Server { .. }));
    assert_eq!(
        error.to_string(),
        "test: gave up after 8 attempts, server 7, busy 1; last: \
         GET https://hub.example/x (request r1): status 500"
    );
    assert!(!error.is_transient());
}

#[test]
fn the_wait_that_a_server_asks_for_is_honoured_up_to_the_limit() {
    let (short, _) = run_with_errors(1, vec![busy_error(30)]);
    assert!(short[0] >= Duration::from_secs(30) && short[0] < Duration::from_secs(31));
    let (long, _) = run_with_errors(1, vec![busy_error(1_000_000)]);
    assert_eq!(long, [RetryPolicy::default().max_wait]);
}

#[test]
fn a_permanent_error_is_not_retried_and_is_returned_unchanged() {
    let not_found = HubError::NotFound {
        request: request(),
        detail: ErrorDetail::default(),
    };
    let (waits, outcome) = run_with_errors(1, vec![server_error(), not_found]);
    assert_eq!(waits.len(), 1);
    assert!(matches!(outcome, Err(HubError::NotFound { .. })));
}

#[test]
fn progress_resets_the_count_of_attempts() {
    let mut retrier =
        Retrier::with_clock(RetryPolicy::default(), Arc::new(RecordingClock::default()));
    let mut remaining_failures = 20;
    retrier
        .run("parts", |attempt| {
            if remaining_failures == 0 {
                return Ok(());
            }
            remaining_failures -= 1;
            attempt.mark_progress();
            Err(server_error())
        })
        .expect("each attempt made progress");
    assert_eq!(retrier.failed_attempts().len(), 20);
}

#[test]
fn the_observer_receives_every_state() {
    let states = Mutex::new(Vec::new());
    let policy = RetryPolicy {
        max_attempts: 2,
        ..RetryPolicy::default()
    };
    let mut retrier = Retrier::with_clock(policy, Arc::new(RecordingClock::default()))
        .with_observer(|state| states.lock().expect("states").push(state.clone()));
    let _ = retrier.run::<()>("test", |_| Err(server_error()));
    drop(retrier);
    let states = states.into_inner().expect("states");
    let phases: Vec<_> = states.iter().map(|state| state.phase).collect();
    assert_eq!(
        phases,
        [
            RetryPhase::Trying,
            RetryPhase::Waiting,
            RetryPhase::Trying,
            RetryPhase::GivenUp
        ]
    );
    assert!(states[1].next_try_at_ms.expect("a time") >= 500);
    assert_eq!(states[2].attempt, 2);
    assert!(states[3].last_error.as_ref().expect("why").contains("500"));
    let line = serde_json::to_string(&states[1]).expect("JSON");
    assert_eq!(
        serde_json::from_str::<RetryState>(&line).expect("state"),
        states[1]
    );
}

fn unreachable() -> HubError {
    HubError::Unreachable {
        request: request(),
        reason: "host not found".into(),
    }
}

#[test]
fn a_server_that_was_never_reached_is_given_up_within_seconds() {
    let clock = Arc::new(RecordingClock::default());
    let policy = RetryPolicy::default();
    let mut retrier = Retrier::with_clock(policy, clock.clone()).failing_fast();
    let error = retrier.run("test", |_| Err::<(), _>(unreachable()));
    let error = error.expect_err("given up").to_string();
    assert!(error.contains("3 attempts, unreachable 3"), "{error}");
    let waited: Duration = clock.0.lock().expect("not poisoned").iter().sum();
    assert!(waited < Duration::from_secs(4), "{waited:?}");

    // A single attempt that took long is not repeated.
    let slow = |clock: &RecordingClock| {
        clock.sleep(FIRST_CONTACT_TIME);
        Err::<(), _>(unreachable())
    };
    let mut retrier = Retrier::with_clock(policy, clock.clone()).failing_fast();
    retrier.run("test", |_| slow(&clock)).expect_err("given up");
    assert_eq!(retrier.failed_attempts().len(), 1);
}

#[test]
fn once_reached_a_server_is_tried_as_often_as_the_policy_allows() {
    let clock = Arc::new(RecordingClock::default());
    let policy = RetryPolicy::default();
    for first in [Ok(()), Err(server_error())] {
        let mut retrier = Retrier::with_clock(policy, clock.clone()).failing_fast();
        let mut first = Some(first);
        let mut attempt = |retrier: &mut Retrier<'_>| {
            let result = retrier.run("test", |_| first.take().unwrap_or(Err(unreachable())));
            (result.is_ok(), retrier.failed_attempts().len())
        };
        let mut outcome = attempt(&mut retrier);
        if outcome.0 {
            outcome = attempt(&mut retrier);
        }
        assert_eq!(outcome, (false, policy.max_attempts as usize));
    }
    let mut retrier = Retrier::with_clock(policy, clock);
    retrier
        .run("test", |_| Err::<(), _>(unreachable()))
        .expect_err("given up");
    assert_eq!(
        retrier.failed_attempts().len(),
        policy.max_attempts as usize
    );
}
