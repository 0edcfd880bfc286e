//! Keeps the threads of the pool awake while a step is computed.
//!
//! A step of one token consists of hundreds of products that take microseconds each. A thread that has gone to sleep between two of
//! them comes too late for the next, so they look for tasks until the step is done.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Looks for a task before the processor is offered to other threads.
const LOOKS: u32 = 1000;

/// Runs `work`, while the other threads of the current pool wait for its tasks without sleeping.
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
            while context.index() != own && !done.load(Ordering::Acquire) {
                match rayon::yield_now() {
                    Some(Yield::Executed) => looks = 0,
                    _ if looks < LOOKS => {
                        looks += 1;
                        std::hint::spin_loop();
                    }
                    // Another program may need the processor.
                    _ => std::thread::yield_now(),
                }
            }
        });
        let _done = Done(&done);
        work()
    })
}

/// Sets the flag at its end, also when `work` panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
