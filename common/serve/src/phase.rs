//! Whether the server goes on, ends, or cuts what is left.

use tokio::sync::watch;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are accepted.
    Open,
    /// No request is accepted; those that run go on.
    Ending,
    /// Those that run are ended.
    Cut,
}

/// A view of the phase.
#[derive(Debug, Clone)]
pub(crate) struct Watch(watch::Receiver<Phase>);

impl Watch {
    /// The sender sets the phase.
    pub(crate) fn new() -> (watch::Sender<Phase>, Self) {
        let (sender, receiver) = watch::channel(Phase::Open);
        (sender, Watch(receiver))
    }

    /// The phase now.
    pub(crate) fn now(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns when the phase is at least this one.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        // Without a sender nothing changes any more: the server is gone.
        let _ = self.0.wait_for(|&now| now >= phase).await;
    }
}
