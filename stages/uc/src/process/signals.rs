//! SIGINT, SIGTERM and SIGHUP: the first requests an orderly stop, the second an immediate one. A SIGHUP that was ignored when
//! the program started (`nohup`) stays ignored.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uc_store::ExitCode;

use crate::process::runner::Message;

/// Number of signals after which the process exits even if its main thread does not react.
const FORCED_EXIT: usize = 3;

/// Listens for signals until the process exits. While no receiver is attached, a signal ends the process at once: files are
/// published whole or not at all, so nothing needs cleaning up.
#[derive(Debug, Clone)]
pub struct Listener {
    count: Arc<AtomicUsize>,
    to: Arc<Mutex<Option<Sender<Message>>>>,
    before_exit: Arc<Mutex<Cleanup>>,
}

/// What is done before a signal ends the process.
#[derive(Default)]
struct Cleanup(Option<Box<dyn Fn() + Send>>);

impl std::fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cleanup").field(&self.0.is_some()).finish()
    }
}

impl Listener {
    /// Starts listening.
    pub fn start() -> anyhow::Result<Self> {
        uc_store::signals::catch_file_size_limit().context("cannot handle SIGXFSZ")?;
        let mut stopping = vec![SIGINT, SIGTERM];
        if !is_ignored(SIGHUP) {
            stopping.push(SIGHUP);
        }
        let mut signals = Signals::new(stopping).context("cannot listen for signals")?;
        let listener = Self {
            count: Arc::default(),
            to: Arc::default(),
            before_exit: Arc::default(),
        };
        let shared = listener.clone();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                let count = shared.count.fetch_add(1, Ordering::SeqCst) + 1;
                if !shared.forward() || count >= FORCED_EXIT {
                    shared.clean_up();
                    std::process::exit(ExitCode::Interrupted.code().into());
                }
            }
        });
        Ok(listener)
    }

    /// Before a signal ends the process, `action` is done.
    pub fn before_exit(&self, action: impl Fn() + Send + 'static) {
        let mut cleanup = self
            .before_exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        cleanup.0 = Some(Box::new(action));
    }

    fn clean_up(&self) {
        let cleanup = self
            .before_exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(action) = &cleanup.0 {
            action();
        }
    }

    /// From now on signals are sent as messages.
    pub fn attach(&self, to: Sender<Message>) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
    }

    /// From now on a signal ends the process again.
    pub fn detach(&self) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Says that the signals so far have been dealt with: they do not count towards the immediate end.
    pub fn handled(&self) {
        self.count.store(0, Ordering::SeqCst);
    }

    /// Number of signals received.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Sends a signal to the receiver; returns whether there is one.
    fn forward(&self) -> bool {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.as_ref()
            .is_some_and(|to| to.send(Message::Signal).is_ok())
    }
}

/// Whether this process ignores a signal, as it does after `nohup`.
fn is_ignored(signal: i32) -> bool {
    let status = uc_input::read_text("/proc/self/status", 1 << 20).unwrap_or_default();
    ignored_in(&status, signal)
}

/// Whether the mask of ignored signals in `/proc/PID/status` contains a signal.
fn ignored_in(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_found_in_the_mask() {
        let status = "Name:\tuc\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignored_in(status, SIGHUP) && ignored_in(status, 13));
        assert!(!ignored_in(status, SIGINT) && !ignored_in("", SIGHUP));
    }
}
