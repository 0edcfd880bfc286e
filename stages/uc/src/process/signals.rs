//! SIGINT, SIGTERM and SIGHUP: the first asks for an orderly end, the second for an immediate one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uc_store::ExitCode;

use crate::process::runner::Message;

/// Signals after which the process leaves even if its main thread does not react.
const LIMIT: usize = 3;

/// Listens to the end of the process. While nobody is attached, a signal ends the process at once: every file is
/// published whole or not at all, so there is nothing to put in order.
#[derive(Debug, Clone)]
pub struct Listener {
    count: Arc<AtomicUsize>,
    to: Arc<Mutex<Option<Sender<Message>>>>,
}

impl Listener {
    /// Begins to listen.
    pub fn start() -> anyhow::Result<Self> {
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
        let listener = Self {
            count: Arc::default(),
            to: Arc::default(),
        };
        let shared = listener.clone();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                let seen = shared.count.fetch_add(1, Ordering::SeqCst) + 1;
                if !shared.tell() || seen >= LIMIT {
                    std::process::exit(ExitCode::Interrupted.code().into());
                }
            }
        });
        Ok(listener)
    }

    /// From now on signals are messages.
    pub fn attach(&self, to: Sender<Message>) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
    }

    /// From now on signals end the process again.
    pub fn detach(&self) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many signals there were.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn tell(&self) -> bool {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.as_ref()
            .is_some_and(|to| to.send(Message::Signal).is_ok())
    }
}
