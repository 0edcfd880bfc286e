//! The thread that owns the batch and steps it. Requests reach it through a channel; each has a channel of its own for what
//! happens to it.
//!
//! A sequence holds a permit from the moment it is accepted until it has ended, so that the number of waiting sequences is
//! limited. A sequence whose ticket is dropped is cancelled: that is how a client that goes away is noticed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use rayon::ThreadPool;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uc_infer::batch::{Batch, BatchSettings};
use uc_infer::request::{Event, Finish, Progress, RequestId};
use uc_infer::{Constraint, InferError, Request};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::served::Prepared;

/// One sequence to compute.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
}

/// What happens to a sequence, with its index among those of its request.
pub(crate) type Events = UnboundedSender<(usize, Progress)>;

enum Command {
    Add(Box<Added>),
    Cancel(u64),
}

struct Added {
    ticket: u64,
    job: Job,
    index: usize,
    events: Events,
    permit: OwnedSemaphorePermit,
}

/// A sequence that is being computed; it is cancelled when this is dropped.
pub(crate) struct Ticket {
    id: u64,
    commands: Sender<Command>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Of no use after the thread has ended.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

/// The way to the thread.
pub(crate) struct Engine {
    commands: Sender<Command>,
    permits: Arc<Semaphore>,
    /// Most sequences that run or wait.
    most: usize,
    tickets: AtomicU64,
}

impl Engine {
    /// Starts the thread, which computes in this pool. It ends when this and all tickets are dropped.
    ///
    /// # Errors
    /// Those of [`Batch::new`].
    pub(crate) fn start(
        prepared: &Prepared,
        settings: BatchSettings,
        queue: usize,
        pool: Arc<ThreadPool>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, JoinHandle<()>), InferError> {
        let model = prepared.served.model.clone();
        let tokenizer = prepared.served.tokenizer.clone();
        let make = move || Batch::new(model.clone(), tokenizer.clone(), settings);
        let batch = make()?;
        let (commands, received) = channel();
        let thread = std::thread::spawn(move || {
            pool.install(|| Worker::new(batch, make, received, metrics).run());
        });
        let most = settings.slots + queue;
        let engine = Engine {
            commands,
            permits: Arc::new(Semaphore::new(most)),
            most,
            tickets: AtomicU64::new(0),
        };
        Ok((engine, thread))
    }

    /// Takes permits for so many sequences.
    ///
    /// # Errors
    /// 400 for more than can ever run and wait, 429 for more than can now.
    pub(crate) fn permits(&self, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        if count > self.most {
            let message = format!(
                "found {count} choices in one request, expected at most {}, what the server lets run and wait",
                self.most
            );
            return Err(ApiError::invalid(message).param("n"));
        }
        let permits = self.permits.clone().try_acquire_many_owned(count as u32);
        permits.map_err(|_| {
            let message = format!(
                "the queue is full: {} sequences run or wait; try again later",
                self.most - self.permits.available_permits().min(self.most)
            );
            ApiError::busy(message)
        })
    }

    /// Adds sequences, one permit for each.
    pub(crate) fn add(
        &self,
        jobs: Vec<Job>,
        mut permits: OwnedSemaphorePermit,
        events: &Events,
    ) -> Vec<Ticket> {
        let mut tickets = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.into_iter().enumerate() {
            let id = self.tickets.fetch_add(1, Ordering::Relaxed);
            let Some(permit) = permits.split(1) else {
                break;
            };
            let added = Added {
                ticket: id,
                job,
                index,
                events: events.clone(),
                permit,
            };
            // If the thread has ended, the channel of events is closed, which is noticed.
            let _ = self.commands.send(Command::Add(Box::new(added)));
            tickets.push(Ticket {
                id,
                commands: self.commands.clone(),
            });
        }
        tickets
    }
}

/// A sequence of the batch.
struct Entry {
    ticket: u64,
    index: usize,
    events: Events,
    since: Instant,
    has_text: bool,
    _permit: OwnedSemaphorePermit,
}

/// The thread's own.
struct Worker<F> {
    batch: Batch,
    make: F,
    commands: Receiver<Command>,
    metrics: Arc<Metrics>,
    entries: HashMap<RequestId, Entry>,
    by_ticket: HashMap<u64, RequestId>,
}

impl<F: Fn() -> Result<Batch, InferError>> Worker<F> {
    fn new(batch: Batch, make: F, commands: Receiver<Command>, metrics: Arc<Metrics>) -> Self {
        Worker {
            batch,
            make,
            commands,
            metrics,
            entries: HashMap::new(),
            by_ticket: HashMap::new(),
        }
    }

    /// Works until nobody can add anything any more.
    fn run(mut self) {
        loop {
            if self.batch.is_idle() {
                self.metrics.stepped(self.batch.counters());
                match self.commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if self.batch.is_idle() {
                continue;
            }
            // A panic is an error in this program. It costs the sequences that run; the server goes on.
            match catch_unwind(AssertUnwindSafe(|| self.batch.step())) {
                Ok(events) => {
                    self.metrics.stepped(self.batch.counters());
                    events.into_iter().for_each(|event| self.tell(event));
                }
                Err(_) => {
                    tracing::error!("a step has panicked; the sequences that run and wait fail");
                    self.start_again();
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(added) => self.add(*added),
            Command::Cancel(ticket) => {
                if let Some(id) = self.by_ticket.get(&ticket) {
                    self.batch.cancel(*id);
                }
            }
        }
    }

    fn add(&mut self, added: Added) {
        let Added {
            ticket,
            job,
            index,
            events,
            permit,
        } = added;
        match self.batch.add(job.request, job.constraint) {
            Ok(id) => {
                let entry = Entry {
                    ticket,
                    index,
                    events,
                    since: Instant::now(),
                    has_text: false,
                    _permit: permit,
                };
                self.by_ticket.insert(ticket, id);
                self.entries.insert(id, entry);
            }
            Err(error) => {
                self.metrics.failed();
                // The client may have gone away.
                let _ = events.send((index, Progress::Failed { error }));
            }
        }
    }

    fn tell(&mut self, event: Event) {
        let Event { request, progress } = event;
        let Some(entry) = self.entries.get_mut(&request) else {
            return;
        };
        let has_ended = match &progress {
            Progress::Text { .. } if !entry.has_text => {
                entry.has_text = true;
                self.metrics.first_token(entry.since.elapsed());
                false
            }
            Progress::Finished { finish, usage } => {
                self.metrics.finished(usage, *finish == Finish::Cancelled);
                true
            }
            Progress::Failed { .. } => {
                self.metrics.failed();
                true
            }
            _ => false,
        };
        // The client may have gone away.
        let _ = entry.events.send((entry.index, progress));
        if has_ended && let Some(entry) = self.entries.remove(&request) {
            self.by_ticket.remove(&entry.ticket);
        }
    }

    /// Drops the batch and everything in it: the receivers find their channels closed.
    fn start_again(&mut self) {
        for _ in self.entries.drain() {
            self.metrics.failed();
        }
        self.by_ticket.clear();
        if let Ok(batch) = (self.make)() {
            self.batch = batch;
        }
    }
}
