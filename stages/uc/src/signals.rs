//! SIGINT, SIGTERM and SIGHUP: the first asks for an orderly end, the second for an immediate one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uc_store::ExitCode;

use crate::runner::Message;

/// Listens from its start to the end of the process; before that the signals end the process as usual.
#[derive(Debug, Clone)]
pub struct Listener {
    count: Arc<AtomicUsize>,
}

impl Listener {
    /// Begins to listen; every signal is counted and sent to the driver.
    pub fn start(to: Option<Sender<Message>>) -> anyhow::Result<Self> {
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        std::thread::spawn(move || {
            for _ in signals.forever() {
                let seen = counter.fetch_add(1, Ordering::SeqCst);
                let heard = to
                    .as_ref()
                    .is_none_or(|to| to.send(Message::Signal).is_ok());
                // Nobody listens any more, or nobody reacted to two: leave at once; stages end with their driver.
                if !heard || seen >= 2 {
                    std::process::exit(ExitCode::Interrupted.code().into());
                }
            }
        });
        Ok(Self { count })
    }

    /// How many signals there were.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}
