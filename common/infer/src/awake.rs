//! Keeps the threads of the pool awake while a step is computed.
//!
//! A step of one token consists of hundreds of products that take microseconds each. A thread that has gone to sleep between two of
//! them comes too late for the next, so they look for tasks until the step is done.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Looks for a task before the processor is offered to other threads.
const LOOKS: u32 = 1000;
/// Looks for a task, each with the processor offered, before a thread may sleep again: about a millisecond.
const OFFERS: u32 = 2000;

/// Runs `work`, while the other threads of the current pool wait for its tasks without sleeping.
///
/// A thread may be told to wait while it waits inside a task of `work` already, as rayon lets a thread that waits take other
/// tasks. It then must not wait for the end of `work`, which in turn waits for that task. So no thread waits for long when there
/// is nothing to do.
pub(crate) fn awake<T>(work: impl FnOnce() -> T) -> T {
    let Some(own) = rayon::current_thread_index() else {
        return work();
    };
    if rayon::current_num_threads() == 1 {
        return work();
    }
    let done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, context| {
            // The thread that runs `work` may take this task while it waits for others, and must not stay here.
            let mut looks = 0;
            while context.index() != own && looks < LOOKS + OFFERS && !done.load(Ordering::Acquire)
            {
                match rayon::yield_now() {
                    Some(Yield::Executed) => looks = 0,
                    _ => {
                        looks += 1;
                        pause(looks <= LOOKS);
                    }
                }
            }
        });
        let _done = Done(&done);
        work()
    })
}

/// Waits a moment between two looks at what other threads have done: without giving up the processor, or else offering it to other
/// programs, which may need it.
pub(crate) fn pause(keep_processor: bool) {
    match keep_processor {
        true => std::hint::spin_loop(),
        false => std::thread::yield_now(),
    }
}

/// Sets the flag at its end, also when `work` panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rayon::ThreadPoolBuilder;

    use super::*;

    /// Waits for the flag; says whether it was set within a time that is as good as forever.
    fn comes(flag: &AtomicBool) -> bool {
        let start = Instant::now();
        while !flag.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        flag.load(Ordering::Acquire)
    }

    #[test]
    fn a_thread_that_is_told_to_wait_inside_a_task_completes_the_task() {
        let pool = ThreadPoolBuilder::new().num_threads(2).build();
        let [taken, begun, completed] = [(); 3].map(|()| AtomicBool::new(false));
        pool.expect("a pool").in_place_scope(|scope| {
            scope.spawn(|scope| {
                // The other thread takes this before it is told to wait for tasks.
                scope.spawn(|_| {
                    taken.store(true, Ordering::Release);
                    comes(&begun);
                    // What it does when it waits for a part of its task.
                    while rayon::yield_now() == Some(Yield::Executed) {}
                    completed.store(true, Ordering::Release);
                });
                comes(&taken);
                awake(|| {
                    begun.store(true, Ordering::Release);
                    assert!(comes(&completed));
                });
            });
        });
    }
}
