//! Memory that a step has freed and the next will need.
//!
//! The vectors of a step have megabytes. The allocator of glibc would give them back to the system one by one, which then clears
//! their pages anew for the next: for prompts a tenth of the time on one thread, and more on several, which wait for each other.
//! It learns from the blocks that it is given what is worth keeping, up to [`LARGEST`].

use std::hint::black_box;

/// The largest block, and half of the memory at the end of a heap, that the allocator can learn to keep.
const LARGEST: usize = 31 << 20;

/// Lets the allocator keep what vectors of a step free. Another allocator takes and frees a block that is never used.
pub(crate) fn keep() {
    drop(black_box(Vec::<u8>::with_capacity(LARGEST)));
}

#[cfg(test)]
mod tests {
    /// Pages that this thread has been given.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn pages() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("on Linux");
        let after_name = stat.rsplit(')').next().expect("a name");
        let faults = after_name.split_whitespace().nth(7).expect("minor faults");
        faults.parse().expect("a number")
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn vectors_of_a_size_that_was_freed_need_no_new_pages() {
        let vector = || std::hint::black_box(vec![1_u8; 9 << 20]);
        super::keep();
        drop(vector());
        let before = pages();
        for _ in 0..8 {
            drop(vector());
        }
        let found = pages() - before;
        assert!(found < 1000, "{found}");
    }
}
