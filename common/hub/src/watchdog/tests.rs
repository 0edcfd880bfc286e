use std::sync::Mutex;

use super::*;
use crate::error::{At, Said};

/// A clock that writes down what it was asked to wait.
#[derive(Default)]
struct Noted(Mutex<Vec<Duration>>);

impl Clock for Noted {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.0.lock().expect("notes").iter().sum::<Duration>()
    }

    fn sleep(&self, wait: Duration) {
        self.0.lock().expect("notes").push(wait);
    }
}

fn at() -> At {
    At {
        method: "GET",
        url: "https://hub.example/x".into(),
        request_id: Some("r1".into()),
    }
}

fn server() -> HubError {
    HubError::Server {
        at: at(),
        status: 500,
        said: Said::default(),
    }
}

fn busy(seconds: u64) -> HubError {
    HubError::Busy {
        at: at(),
        status: 429,
        retry_after: Some(Duration::from_secs(seconds)),
        said: Said::default(),
    }
}

/// Waits and outcome of an operation that fails with the given errors and then succeeds.
fn waits(seed: u64, errors: Vec<HubError>) -> (Vec<Duration>, Result<u32, HubError>) {
    let clock = Arc::new(Noted::default());
    let policy = Policy {
        seed,
        ..Policy::default()
    };
    let mut watchdog = Watchdog::with_clock(policy, clock.clone());
    let mut errors = errors.into_iter();
    let outcome = watchdog.run("test", |_| errors.next().map_or(Ok(7), Err));
    let waits = clock.0.lock().expect("notes").clone();
    (waits, outcome)
}

#[test]
fn waits_double_are_jittered_by_the_seed_and_stay_below_the_longest() {
    let many = || (0..7).map(|_| server()).collect::<Vec<_>>();
    let (first, outcome) = waits(1, many());
    assert_eq!(outcome.expect("the eighth attempt succeeds"), 7);
    assert_eq!(first.len(), 7);
    for (index, wait) in first.iter().enumerate() {
        let whole = Duration::from_secs(1 << index);
        assert!(*wait >= whole / 2 && *wait <= whole, "{index}: {wait:?}");
    }
    assert_eq!(waits(1, many()).0, first);
    assert_ne!(waits(2, many()).0, first);
}

#[test]
fn eight_failures_end_with_a_summary_of_all_attempts() {
    let mut errors: Vec<_> = (0..7).map(|_| server()).collect();
    errors.insert(3, busy(2));
    let (waits, outcome) = waits(1, errors);
    assert_eq!(waits.len(), 7);
    let error = outcome.expect_err("given up");
    let HubError::GaveUp { tried, last, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(tried.len(), 8);
    assert_eq!(tried[7].waited_ms, None);
    assert!(matches!(**last, HubError::Server { .. }));
    assert_eq!(
        error.to_string(),
        "test: gave up after 8 attempts, server 7, busy 1; last: \
         GET https://hub.example/x (request r1): status 500"
    );
    assert!(!error.is_transient());
}

#[test]
fn what_a_server_asks_is_honoured_up_to_the_longest_wait() {
    let (short, _) = waits(1, vec![busy(30)]);
    assert!(short[0] >= Duration::from_secs(30) && short[0] < Duration::from_secs(31));
    let (long, _) = waits(1, vec![busy(1_000_000)]);
    assert_eq!(long, [Policy::default().longest_wait]);
}

#[test]
fn a_final_error_ends_at_once_and_stays_itself() {
    let gone = HubError::NotFound {
        at: at(),
        said: Said::default(),
    };
    let (waits, outcome) = waits(1, vec![server(), gone]);
    assert_eq!(waits.len(), 1);
    assert!(matches!(outcome, Err(HubError::NotFound { .. })));
}

#[test]
fn progress_starts_the_count_anew() {
    let mut watchdog = Watchdog::with_clock(Policy::default(), Arc::new(Noted::default()));
    let mut left = 20;
    watchdog
        .run("parts", |attempt| {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            attempt.progressed();
            Err(server())
        })
        .expect("each attempt brought something");
    assert_eq!(watchdog.tried().len(), 20);
}

#[test]
fn every_state_is_told() {
    let states = Mutex::new(Vec::new());
    let policy = Policy {
        attempts: 2,
        ..Policy::default()
    };
    let mut watchdog = Watchdog::with_clock(policy, Arc::new(Noted::default()))
        .observed(|state| states.lock().expect("states").push(state.clone()));
    let _ = watchdog.run::<()>("test", |_| Err(server()));
    drop(watchdog);
    let states = states.into_inner().expect("states");
    let phases: Vec<_> = states.iter().map(|state| state.phase).collect();
    assert_eq!(
        phases,
        [Phase::Trying, Phase::Waiting, Phase::Trying, Phase::GivenUp]
    );
    assert!(states[1].next_try_at_ms.expect("a time") >= 500);
    assert_eq!(states[2].attempt, 2);
    assert!(states[3].last_error.as_ref().expect("why").contains("500"));
    let line = serde_json::to_string(&states[1]).expect("JSON");
    assert_eq!(
        serde_json::from_str::<WatchState>(&line).expect("state"),
        states[1]
    );
}
