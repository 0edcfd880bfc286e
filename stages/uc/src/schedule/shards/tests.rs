use super::*;

fn shards(budget: u64, sizes: &[u64]) -> Shards {
    Shards {
        budget,
        sizes: sizes.to_vec(),
        states: vec![ShardState::Absent; sizes.len()],
    }
}

/// Carries out every step at once; returns them in the form `+3 -1`.
fn settle(shards: &mut Shards, reads: &[usize]) -> String {
    let mut steps = Vec::new();
    while let Some(step) = shards.next_step(reads.iter().copied()) {
        match step {
            Step::Fetch(shard) => {
                steps.push(format!("+{shard}"));
                shards.set(shard, ShardState::Present);
            }
            Step::Evict(shard) => {
                steps.push(format!("-{shard}"));
                shards.set(shard, ShardState::Absent);
            }
        }
        assert!(shards.used() <= shards.budget, "{steps:?}");
        assert!(steps.len() < 100, "does not end: {steps:?}");
    }
    steps.join(" ")
}

#[test]
fn the_next_read_is_fetched_first_and_the_farthest_read_is_evicted_first() {
    let mut shards = shards(30, &[10, 10, 10, 10, 10]);
    // A forward pass: shards are prefetched up to the budget.
    assert_eq!(settle(&mut shards, &[0, 1, 2, 3, 4]), "+0 +1 +2");
    // Shard 0 is needed again, but last of all.
    assert_eq!(settle(&mut shards, &[1, 2, 3, 4, 0]), "-0 +3");
    assert_eq!(settle(&mut shards, &[4, 3, 2, 1, 0]), "-1 +4");
    // The backward pass finds the shards that the forward pass read last.
    assert_eq!(settle(&mut shards, &[3, 2, 1, 0, 0]), "-4 +1");
    assert_eq!(settle(&mut shards, &[0, 1]), "-2 -3 +0");
    // No job reads any of them again.
    assert_eq!(settle(&mut shards, &[]), "-0 -1");
    assert_eq!(shards.used(), 0);
}

#[test]
fn downloads_are_sequential_and_count_with_their_full_size() {
    let mut shards = shards(25, &[10, 10, 10]);
    assert_eq!(shards.next_step([0, 1, 2]), Some(Step::Fetch(0)));
    shards.set(0, ShardState::Downloading);
    assert_eq!((shards.next_step([0, 1, 2]), shards.used()), (None, 10));
    assert!(!shards.are_present(&[0]));
    shards.set(0, ShardState::Present);
    assert!(shards.are_present(&[0]));
    assert_eq!(shards.next_step([0, 1, 2]), Some(Step::Fetch(1)));
    shards.set(1, ShardState::Downloading);
    // A shard without further reads is evicted even during a download; a shard being downloaded is never evicted.
    assert_eq!(shards.next_step([2]), Some(Step::Evict(0)));
    shards.set(0, ShardState::Absent);
    assert_eq!(shards.next_step([2]), None);
}

#[test]
fn shards_of_an_earlier_session_are_verified_without_counting_twice() {
    let mut shards = shards(20, &[10, 10, 10]);
    shards.set(1, ShardState::Unverified);
    shards.set(2, ShardState::Unverified);
    assert!(!shards.are_present(&[1]));
    assert_eq!(settle(&mut shards, &[1, 0, 2]), "+1 -2 +0");
    // With a smaller budget than before, the farthest read is evicted before anything else happens.
    let mut narrow = Shards {
        budget: 10,
        ..shards
    };
    assert_eq!(narrow.next_step([1, 0]), Some(Step::Evict(0)));
    narrow.set(0, ShardState::Absent);
    assert_eq!(narrow.next_step([1, 0]), None);
}

#[test]
fn a_small_shard_is_not_fetched_before_a_large_one_that_is_read_earlier() {
    let mut shards = shards(30, &[10, 25, 5]);
    assert_eq!(settle(&mut shards, &[0, 1, 2]), "+0");
    assert_eq!(settle(&mut shards, &[1, 2]), "-0 +1 +2");
}

#[test]
fn the_traffic_of_passes_is_that_of_farthest_use_eviction() {
    // Layers that span two shards each, forward, backward and forward again.
    let layers: Vec<Vec<usize>> = (0..6).map(|layer| vec![layer, layer + 1]).collect();
    let forward = layers.iter().map(Vec::as_slice);
    let jobs: Vec<&[usize]> = forward
        .clone()
        .chain(forward.clone().rev())
        .chain(forward)
        .collect();
    let all = shards(70, &[10; 7]).forecast(jobs.clone());
    let expected = |fetches| Traffic {
        fetches,
        bytes: 10 * fetches,
    };
    assert_eq!(all, expected(7));
    // Each change of direction finds as many shards present as the budget holds.
    assert_eq!(
        shards(40, &[10; 7]).forecast(jobs.clone()),
        expected(7 + 3 + 3)
    );
    assert_eq!(shards(20, &[10; 7]).forecast(jobs), expected(7 + 5 + 5));
}
