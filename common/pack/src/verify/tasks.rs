//! A pool of threads for tasks that lead to further tasks: opening a file leads to one task for each of its tensors.
//!
//! As many files are open as there are threads, so that headers of many layers are never in memory together. Threads are
//! started here and not taken from a global pool, because their number is the user's choice.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Stack of a thread. Buffers are on the heap.
const STACK: usize = 512 << 10;

/// The tasks that are left.
struct Queue<T> {
    /// Tasks that open something, in order.
    first: VecDeque<T>,
    /// Tasks that follow from those.
    following: VecDeque<T>,
    /// Number of first tasks in progress: they may lead to further tasks.
    opening: usize,
}

/// Runs all tasks with `threads` threads, each with a state of its own. `work` returns the tasks that follow from a task; those
/// are preferred to the next first task. A thread that cannot be started leaves its work to the others.
pub(super) fn run<T: Send, S: Default>(
    threads: usize,
    first: impl IntoIterator<Item = T>,
    work: &(dyn Fn(T, &mut S) -> Vec<T> + Sync),
) {
    let first: VecDeque<T> = first.into_iter().collect();
    let queue = Mutex::new(Queue {
        first,
        following: VecDeque::new(),
        opening: 0,
    });
    let changed = Condvar::new();
    let worker = || {
        let mut state = S::default();
        while let Some((task, is_first)) = next(&queue, &changed) {
            let following = work(task, &mut state);
            let mut queue = lock(&queue);
            queue.following.extend(following);
            queue.opening -= usize::from(is_first);
            drop(queue);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let thread = std::thread::Builder::new().stack_size(STACK);
            if thread.spawn_scoped(scope, worker).is_err() {
                break;
            }
        }
        worker();
    });
}

/// The next task, and whether it is a first one. Waits while another thread may add tasks.
fn next<T>(queue: &Mutex<Queue<T>>, changed: &Condvar) -> Option<(T, bool)> {
    let mut queue = lock(queue);
    loop {
        if let Some(task) = queue.following.pop_front() {
            return Some((task, false));
        }
        if let Some(task) = queue.first.pop_front() {
            queue.opening += 1;
            return Some((task, true));
        }
        if queue.opening == 0 {
            return None;
        }
        queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_and_every_task_that_follows_runs_once_for_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let seen = Mutex::new(Vec::new());
            run(threads, [3u32, 0, 5], &|task, count: &mut usize| {
                *count += 1;
                lock(&seen).push(task);
                (0..if task < 10 { task } else { 0 })
                    .map(|i| 10 * task + i)
                    .collect()
            });
            let mut seen = seen.into_inner().expect("not poisoned");
            seen.sort_unstable();
            assert_eq!(seen, [0, 3, 5, 30, 31, 32, 50, 51, 52, 53, 54], "{threads}");
        }
    }
}
