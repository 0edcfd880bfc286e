//! Divides tasks of microseconds among the threads of the pool.
//!
//! A step of one token is a hundred lists of such tasks, one after the other. In rayon's loops a thread that waits for the last task of
//! a list goes to sleep after a few microseconds and is woken by the system, which takes longer than the task. Here every thread
//! has a share of the list, whose tasks lie side by side in memory, takes from the shares of others when it has done its own,
//! and stays awake while it waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::awake::pause;

/// Looks at the number of unfinished tasks before the processor is offered to other threads.
const LOOKS: u32 = 10_000;

/// Runs every task, on all threads of the current pool. Which thread runs which task is a matter of chance. The tasks of a thread
/// have its memory one after the other. A task must not wait for other threads: the caller may wait for it without doing anything
/// for them.
///
/// # Panics
/// If a task panics.
pub(crate) fn for_each<T: Send, M: Default>(mut tasks: Vec<T>, run: impl Fn(T, &mut M) + Sync) {
    let threads = rayon::current_num_threads().min(tasks.len());
    if threads < 2 {
        let mut memory = M::default();
        return tasks.into_iter().for_each(|task| run(task, &mut memory));
    }
    let unfinished = AtomicUsize::new(tasks.len());
    let shares = (0..threads).rev().map(|thread| {
        let share = tasks.split_off(tasks.len() * thread / (thread + 1));
        Mutex::new(VecDeque::from(share))
    });
    let shares: Vec<Mutex<VecDeque<T>>> = shares.collect();
    let share = |index: usize| {
        shares[index % threads]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    let work = |own: usize| {
        let next = || {
            let first = share(own).pop_front();
            first.or_else(|| (own + 1..own + threads).find_map(|other| share(other).pop_back()))
        };
        let mut memory = M::default();
        while let Some(task) = next() {
            let _finished = Finished(&unfinished);
            run(task, &mut memory);
        }
    };
    rayon::in_place_scope(|scope| {
        for other in 1..threads {
            let work = &work;
            scope.spawn(move |_| work(other));
        }
        work(0);
        // Without sleeping, and without taking up other work, which might last longer.
        let mut looks = 0;
        while unfinished.load(Ordering::Acquire) > 0 {
            looks += 1;
            pause(looks < LOOKS);
        }
    });
}

/// Least values of a part of [`for_parts`]: fewer are done before another thread has begun.
const PART: usize = 1 << 13;

/// Calls `update` with parts of `values`, each of whole rows of `row` values, and with the index of the first value of each: for elementwise
/// functions and those of rows. If the values are many, all threads of the pool do it.
pub(crate) fn for_parts(values: &mut [f32], row: usize, update: impl Fn(usize, &mut [f32]) + Sync) {
    let parts = values.len() / PART;
    if parts < 2 {
        return update(0, values);
    }
    let threads = rayon::current_num_threads();
    let parts = match parts > threads {
        // As many for each thread.
        true => parts.next_multiple_of(threads),
        false => parts,
    };
    let part = values.len().div_ceil(row).div_ceil(parts) * row;
    let parts = values.chunks_mut(part).enumerate();
    let parts = parts.map(|(index, values)| (index * part, values));
    for_each(parts.collect(), |(first, values), (): &mut ()| {
        update(first, values)
    });
}

/// Counts a task as finished, also if it panics.
struct Finished<'a>(&'a AtomicUsize);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool").install(work)
    }

    #[test]
    fn every_task_is_run_once_by_any_number_of_threads() {
        for threads in [1, 2, 5] {
            for count in [0, 1, 3, 1000] {
                let mut squares = vec![0; count];
                let tasks = squares.iter_mut().enumerate().collect();
                with_threads(threads, || {
                    for_each(tasks, |(i, square): (usize, &mut usize), (): &mut ()| {
                        *square += i * i
                    });
                });
                assert!(squares.into_iter().eq((0..count).map(|i| i * i)));
            }
        }
    }

    #[test]
    fn parts_are_whole_rows_and_cover_all_values_once() {
        for (rows, row) in [(0, 3), (1, 50_000), (700, 37), (3, 9000), (100_000, 1)] {
            let mut values = vec![0.0; rows * row];
            with_threads(3, || {
                for_parts(&mut values, row, |first, part| {
                    assert!(first % row == 0 && part.len() % row == 0);
                    for (index, value) in part.iter_mut().enumerate() {
                        *value += (first + index) as f32;
                    }
                });
            });
            assert!(values.into_iter().eq((0..rows * row).map(|i| i as f32)));
        }
    }

    #[test]
    fn lists_of_tasks_may_be_run_side_by_side() {
        use rayon::prelude::*;
        let sum = AtomicUsize::new(0);
        with_threads(3, || {
            (0..40).into_par_iter().for_each(|list: usize| {
                let add = |i, (): &mut ()| _ = sum.fetch_add(i, Ordering::Relaxed);
                for_each((0..list).collect(), add);
            });
        });
        let expected: usize = (0..40)
            .map(|list: usize| list * list.saturating_sub(1) / 2)
            .sum();
        assert_eq!(sum.into_inner(), expected);
    }

    #[test]
    fn the_panic_of_a_task_reaches_the_caller() {
        for bad in [0, 7, 99] {
            let panicked = std::panic::catch_unwind(|| {
                with_threads(2, || {
                    for_each((0..100).collect(), |i, (): &mut ()| {
                        assert!(i != bad, "task {i}")
                    });
                });
            });
            assert!(panicked.is_err());
        }
    }
}
