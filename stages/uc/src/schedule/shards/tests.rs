use super::*;

fn shards(budget: u64, sizes: &[u64]) -> Shards {
    Shards {
        budget,
        sizes: sizes.to_vec(),
        places: vec![Place::Absent; sizes.len()],
    }
}

/// Carries out every step at once; tells them as `+3` and `-1`.
fn settle(shards: &mut Shards, uses: &[usize]) -> String {
    let mut steps = Vec::new();
    while let Some(step) = shards.step(uses.iter().copied()) {
        match step {
            Step::Fetch(shard) => {
                steps.push(format!("+{shard}"));
                shards.set(shard, Place::Here);
            }
            Step::Evict(shard) => {
                steps.push(format!("-{shard}"));
                shards.set(shard, Place::Absent);
            }
        }
        assert!(shards.used() <= shards.budget, "{steps:?}");
        assert!(steps.len() < 100, "no end: {steps:?}");
    }
    steps.join(" ")
}

#[test]
fn what_is_read_next_comes_first_and_what_is_read_last_goes_first() {
    let mut shards = shards(30, &[10, 10, 10, 10, 10]);
    // A forward sweep: the next ones come as far as there is room.
    assert_eq!(settle(&mut shards, &[0, 1, 2, 3, 4]), "+0 +1 +2");
    // Shard 0 is done for now, but comes again last of all.
    assert_eq!(settle(&mut shards, &[1, 2, 3, 4, 0]), "-0 +3");
    assert_eq!(settle(&mut shards, &[4, 3, 2, 1, 0]), "-1 +4");
    // The backward sweep finds what the forward sweep left.
    assert_eq!(settle(&mut shards, &[3, 2, 1, 0, 0]), "-4 +1");
    assert_eq!(settle(&mut shards, &[0, 1]), "-2 -3 +0");
    // Nobody reads any of them again.
    assert_eq!(settle(&mut shards, &[]), "-0 -1");
    assert_eq!(shards.used(), 0);
}

#[test]
fn one_comes_at_a_time_and_counts_whole_from_its_first_byte() {
    let mut shards = shards(25, &[10, 10, 10]);
    assert_eq!(shards.step([0, 1, 2]), Some(Step::Fetch(0)));
    shards.set(0, Place::Coming);
    assert_eq!((shards.step([0, 1, 2]), shards.used()), (None, 10));
    assert!(!shards.are_here(&[0]));
    shards.set(0, Place::Here);
    assert!(shards.are_here(&[0]));
    assert_eq!(shards.step([0, 1, 2]), Some(Step::Fetch(1)));
    shards.set(1, Place::Coming);
    // What nobody reads any more goes even while another comes; one on its way is never removed.
    assert_eq!(shards.step([2]), Some(Step::Evict(0)));
    shards.set(0, Place::Absent);
    assert_eq!(shards.step([2]), None);
}

#[test]
fn what_an_earlier_session_left_is_looked_at_without_taking_more_room() {
    let mut shards = shards(20, &[10, 10, 10]);
    shards.set(1, Place::Left);
    shards.set(2, Place::Left);
    assert!(!shards.are_here(&[1]));
    assert_eq!(settle(&mut shards, &[1, 0, 2]), "+1 -2 +0");
    // A smaller budget than before: what is read last goes before anything else happens.
    let mut narrow = Shards {
        budget: 10,
        ..shards
    };
    assert_eq!(narrow.step([1, 0]), Some(Step::Evict(0)));
    narrow.set(0, Place::Absent);
    assert_eq!(narrow.step([1, 0]), None);
}

#[test]
fn a_small_shard_does_not_overtake_a_large_one_that_is_read_before_it() {
    let mut shards = shards(30, &[10, 25, 5]);
    assert_eq!(settle(&mut shards, &[0, 1, 2]), "+0");
    assert_eq!(settle(&mut shards, &[1, 2]), "-0 +1 +2");
}

#[test]
fn the_traffic_of_sweeps_is_that_of_the_farthest_use() {
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
    // Each turn finds the budget's worth of shards there.
    assert_eq!(
        shards(40, &[10; 7]).forecast(jobs.clone()),
        expected(7 + 3 + 3)
    );
    assert_eq!(shards(20, &[10; 7]).forecast(jobs), expected(7 + 5 + 5));
}
