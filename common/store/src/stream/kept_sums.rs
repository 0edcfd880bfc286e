//! Rows and sums that are kept while they are computed, so that an interrupted job continues after the last snapshot of the sums.

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::{KeptRows, RowSink, RowSource};
use crate::error::StoreError;
use crate::framed::{Journal, Snapshot};

/// A snapshot is taken when at least so many times the time that the last one took to write has passed since.
const COST: u32 = 30;

/// What a job accumulates beside its rows.
pub trait Sums {
    /// Passes all values through a snapshot, in the same order every time.
    ///
    /// # Errors
    /// Those of the snapshot; while loading, also that a file to which the snapshot refers is not the saved one.
    fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError>;
}

/// The rows that a job has computed so far, and the sums that it accumulates.
#[derive(Debug)]
pub struct KeptSums<S> {
    rows: KeptRows,
    sums: S,
    snapshots: Snapshots,
}

impl<S: Sums> KeptSums<S> {
    /// Opens a file of rows below `base`, and the snapshot beside it, with what an interrupted job left in them. `begin` makes the empty
    /// sums. Rows are kept as by [`KeptRows::open`]. A snapshot is taken when at least `least` has passed since the last one, and 30
    /// times as long as that one took to write. What is damaged, and what was computed after the last snapshot, is computed again.
    ///
    /// # Errors
    /// Those of [`KeptRows::open`] and of `begin`.
    pub fn open<E: From<StoreError>>(
        base: &Utf8Path,
        path: &Utf8Path,
        least: Duration,
        begin: impl Fn() -> Result<S, E>,
    ) -> Result<Self, E> {
        let mut rows = KeptRows::open(base, path, least)?;
        let mut snapshots = Snapshots {
            base: base.to_owned(),
            path: path.with_extension("sums"),
            least,
            batches: 0,
            last: Instant::now(),
            cost: Duration::ZERO,
        };
        let mut sums = begin()?;
        if snapshots.path.exists() && snapshots.load(rows.batches(), &mut sums).is_err() {
            // Some values may have been loaded. Never two at the same time: they may be the largest thing in memory.
            drop(sums);
            sums = begin()?;
        }
        rows.truncate(snapshots.batches)?;
        Ok(Self {
            rows,
            sums,
            snapshots,
        })
    }

    /// Number of batches that are kept.
    pub fn batches(&self) -> usize {
        self.rows.batches()
    }

    /// As [`KeptRows::map_rows`], for a computation that adds to the sums.
    ///
    /// # Errors
    /// Those of [`KeptRows::map_rows`].
    pub fn map_rows<E: From<StoreError>>(
        &mut self,
        input: &dyn RowSource,
        batch: usize,
        output: &mut dyn RowSink,
        mut compute: impl FnMut(&mut S, Vec<f32>, usize, usize) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        let (sums, snapshots) = (&mut self.sums, &mut self.snapshots);
        self.rows
            .map_batches(input, batch, output, |kept, values, count, first| {
                let is_new = kept.frames().len() > snapshots.batches;
                if is_new && snapshots.are_due(snapshots.last.elapsed()) {
                    snapshots.save(kept, sums)?;
                }
                compute(sums, values, count, first)
            })
    }

    /// The sums.
    pub fn into_sums(self) -> S {
        self.sums
    }
}

/// The snapshots of a job: one file, which the next one replaces.
#[derive(Debug)]
struct Snapshots {
    base: Utf8PathBuf,
    path: Utf8PathBuf,
    least: Duration,
    /// Number of batches whose sums are in the last one; 0 without one.
    batches: usize,
    /// When the last one was written, or the job began.
    last: Instant,
    /// How long that took.
    cost: Duration,
}

impl Snapshots {
    /// Whether one is due when `elapsed` has passed since the last one.
    fn are_due(&self, elapsed: Duration) -> bool {
        elapsed >= self.least && elapsed >= self.cost * COST
    }

    /// Saves the sums over all batches that are kept.
    fn save(&mut self, kept: &Journal, sums: &mut impl Sums) -> Result<(), StoreError> {
        let begun = Instant::now();
        kept.sync()?;
        let mut snapshot = Snapshot::save(&self.base, &self.path)?;
        snapshot.value(&mut kept.frames().len())?;
        sums.pass_through(&mut snapshot)?;
        snapshot.finish()?;
        self.batches = kept.frames().len();
        self.last = Instant::now();
        self.cost = self.last - begun;
        Ok(())
    }

    /// Loads the sums, which must be those of at most `kept` batches.
    fn load(&mut self, kept: usize, sums: &mut impl Sums) -> Result<(), StoreError> {
        let mut snapshot = Snapshot::load(&self.path)?;
        let mut batches = 0;
        snapshot.value(&mut batches)?;
        if batches > kept {
            let found = format!("sums of {batches} batches");
            let expected = format!("at most {kept}");
            return Err(StoreError::malformed(
                &self.path, "snapshot", found, expected,
            ));
        }
        sums.pass_through(&mut snapshot)?;
        snapshot.finish()?;
        self.batches = batches;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::kept::tests::{Numbers, Rows};
    use super::*;
    use crate::atomic;
    use crate::plan::tests_support::folder;

    /// The sum of the rows in two types.
    #[derive(Default)]
    struct Total(u64, [f32; 1]);

    impl Sums for Total {
        fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
            snapshot.value(&mut self.0)?;
            snapshot.sums(&mut self.1)
        }
    }

    /// The rows, and their sum in two types.
    type Outcome = (Vec<f32>, u64, f32);

    /// Doubles and adds up seven rows, two at a time, and fails at row `end`; the rows that were computed, and the outcome.
    fn add(
        base: &Utf8Path,
        least: Duration,
        end: usize,
    ) -> (Vec<usize>, Result<Outcome, StoreError>) {
        let (mut seen, mut rows) = (Vec::new(), Rows::default());
        let begin = || Ok::<_, StoreError>(Total::default());
        let mut kept = KeptSums::open(base, &base.join("work/rows"), least, begin).expect("opened");
        let done = kept.map_rows(&Numbers(7), 2, &mut rows, |total, values, count, first| {
            if first >= end {
                return Err(StoreError::malformed("x".into(), "test", "a", "b"));
            }
            seen.extend(first..first + count);
            total.0 += values.iter().map(|&value| value as u64).sum::<u64>();
            total.1[0] += values.iter().sum::<f32>();
            Ok(values.into_iter().map(|value| 2.0 * value).collect())
        });
        let Total(whole, [float]) = kept.into_sums();
        (seen, done.map(|()| (rows.0, whole, float)))
    }

    fn expected() -> Outcome {
        ((0..7).map(|row| 2.0 * row as f32).collect(), 21, 21.0)
    }

    /// With it every job takes a snapshot after its first batch, with `NEVER` none.
    const AT_ONCE: Duration = Duration::ZERO;
    const NEVER: Duration = Duration::MAX;

    #[test]
    fn a_job_continues_after_the_last_snapshot_with_the_same_sums() {
        let (_keep, base) = folder();
        let (seen, outcome) = add(&base, AT_ONCE, 2);
        assert_eq!(seen, [0, 1]);
        assert!(outcome.is_err());
        // Interrupted between snapshots: the rows are kept, but not in the sums.
        let (seen, outcome) = add(&base, NEVER, 6);
        assert_eq!(seen, [2, 3, 4, 5]);
        assert!(outcome.is_err());
        let (seen, outcome) = add(&base, AT_ONCE, 4);
        assert_eq!(seen, [2, 3]);
        assert!(outcome.is_err());
        let files = || base.join("work").read_dir_utf8().expect("folder").count();
        assert_eq!(files(), 2, "rows and one snapshot");
        let (seen, outcome) = add(&base, NEVER, 7);
        assert_eq!(seen, [4, 5, 6]);
        assert_eq!(outcome.expect("done"), expected());
    }

    #[test]
    fn what_is_damaged_or_was_not_kept_is_computed_again() {
        let (_keep, base) = folder();
        let snapshot = base.join("work/rows.sums");
        assert!(add(&base, NEVER, 4).1.is_err());
        assert!(!snapshot.exists());
        assert_eq!(add(&base, AT_ONCE, 2).0, [0, 1], "nothing was kept");
        let whole = std::fs::read(&snapshot).expect("snapshot");
        let rows = std::fs::read(base.join("work/rows")).expect("rows");
        let mut damaged = whole.clone();
        *damaged.last_mut().expect("bytes") ^= 1;
        for (file, bytes) in [
            ("rows.sums", &damaged[..]),
            ("rows.sums", &whole[..whole.len() - 1]),
            ("rows", &rows[..rows.len() - 1]),
        ] {
            atomic::write_bytes(&snapshot, &whole).expect("written");
            atomic::write_bytes(&base.join("work/rows"), &rows).expect("written");
            atomic::write_bytes(&base.join("work").join(file), bytes).expect("written");
            let (seen, outcome) = add(&base, NEVER, 7);
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6], "{file}");
            assert_eq!(outcome.expect("done"), expected());
        }
    }

    /// Sums of which there are as many as references to a token, less one.
    struct Counted(Rc<()>);

    impl Sums for Counted {
        fn pass_through(&mut self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
            snapshot.value(&mut 0_u64)
        }
    }

    #[test]
    fn two_sums_are_never_in_memory_together() {
        let (_keep, base) = folder();
        let token = Rc::new(());
        let open = || {
            let begin = || {
                assert_eq!(Rc::strong_count(&token), 1, "other sums are in memory");
                Ok::<_, StoreError>(Counted(token.clone()))
            };
            let kept = KeptSums::open(&base, &base.join("work/rows"), NEVER, begin);
            Rc::strong_count(&kept.expect("opened").into_sums().0)
        };
        assert_eq!(open(), 2, "without a snapshot");
        assert!(add(&base, AT_ONCE, 4).1.is_err());
        assert_eq!(open(), 2, "with the snapshot of other sums");
    }

    #[test]
    fn a_snapshot_is_due_after_an_interval_and_a_multiple_of_its_cost() {
        let seconds = Duration::from_secs;
        let snapshots = |cost| Snapshots {
            base: "/run".into(),
            path: "/run/sums".into(),
            least: seconds(120),
            batches: 0,
            last: Instant::now(),
            cost: seconds(cost),
        };
        for (cost, elapsed, is_due) in [
            (0, 119, false),
            (0, 120, true),
            (4, 120, true),
            (10, 299, false),
            (10, 300, true),
        ] {
            let found = snapshots(cost).are_due(seconds(elapsed));
            assert_eq!(found, is_due, "{cost} s, {elapsed} s later");
        }
    }
}
