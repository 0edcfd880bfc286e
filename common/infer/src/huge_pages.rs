//! Vectors in huge pages: weights that are read once for every token would otherwise cost an address translation for every page
//! of 4 KiB, which is dear in a virtual machine.
//!
//! Safety: advice about pages that are not yet used changes nothing but their size; the range lies within an allocation.
#![allow(unsafe_code)]

/// Size of a huge page, on the common processors.
const HUGE: usize = 2 << 20;

/// An empty vector of this capacity, for which the system is asked for huge pages if it is large enough.
pub(crate) fn with_capacity<T>(capacity: usize) -> Vec<T> {
    let values: Vec<T> = Vec::with_capacity(capacity);
    #[cfg(target_os = "linux")]
    {
        let start = values.as_ptr().cast::<u8>();
        let skipped = start.align_offset(HUGE);
        let bytes = (capacity * size_of::<T>()).saturating_sub(skipped) / HUGE * HUGE;
        if bytes > 0 {
            let first = start.wrapping_add(skipped).cast_mut().cast();
            // SAFETY: the range lies within the allocation, and huge pages hold what small ones would.
            let advised =
                unsafe { rustix::mm::madvise(first, bytes, rustix::mm::Advice::LinuxHugepage) };
            // Without huge pages it is only slower.
            let _ = advised;
        }
    }
    values
}

/// The values of an iterator in such a vector.
pub(crate) fn collect<T>(values: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    let mut collected = with_capacity(values.len());
    collected.extend(values);
    collected
}

#[cfg(test)]
mod tests {
    #[test]
    fn vectors_of_any_size_hold_what_they_are_given() {
        for count in [0, 1, 1000, 3 << 20] {
            let values = super::collect((0..count as u32).map(|i| i * 7));
            assert!(values.capacity() >= count);
            assert!(values.into_iter().eq((0..count as u32).map(|i| i * 7)));
        }
    }
}
