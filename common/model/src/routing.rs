//! Which experts a token is sent to, from the scores of one token.
//!
//! Shared by the forward pass on burn and by programs that run a model without it. The weights of the selected experts are
//! computed there. Never reads a tensor.

/// Added to the sum of sigmoids before dividing by it.
pub const RENORMALIZE_EPS: f32 = 1e-20;

/// Whether SparseMixer leaves an expert out of the softmax around the selected score `peak`: its score is further from it than
/// the relative distance `2 · jitter`.
pub fn is_masked(score: f32, peak: f32, jitter: f32) -> bool {
    (peak - score) / score.abs().max(peak) > 2.0 * jitter
}

/// The top `k` of `scores` within the `topk_group` best of `groups` equal groups. A group ranks by the sum of
/// its two largest scores.
pub fn group_limited_top_k(
    mut scores: Vec<f32>,
    [groups, topk_group]: [usize; 2],
    k: usize,
) -> Vec<usize> {
    let size = scores.len() / groups;
    let group_score = |group: &[f32]| top_k(group, 2).into_iter().map(|i| group[i]).sum();
    let group_scores: Vec<f32> = scores.chunks_exact(size).map(group_score).collect();
    for group in &top_k(&group_scores, groups)[topk_group..] {
        scores[group * size..][..size].fill(f32::NEG_INFINITY);
    }
    top_k(&scores, k)
}

/// The indices of the `k` largest values, largest first; among equal values, lower indices first.
pub fn top_k(row: &[f32], k: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..row.len()).collect();
    indices.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    indices.truncate(k);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_selected_within_the_groups_whose_two_best_have_the_largest_sum() {
        // The group scores are 0.9, 1.1 and -0.3. The best single expert is in a group that is not selected.
        let scores = vec![0.95, -0.05, -1.0, 0.5, 0.6, 0.0, -0.1, -0.2, -0.3];
        assert_eq!(group_limited_top_k(scores.clone(), [3, 1], 2), [4, 3]);
        assert_eq!(group_limited_top_k(scores.clone(), [3, 2], 3), [0, 4, 3]);
        assert_eq!(group_limited_top_k(scores, [1, 1], 4), [0, 4, 3, 5]);
    }

    #[test]
    fn negative_scores_of_a_selected_group_rank_before_those_of_other_groups() {
        assert_eq!(
            group_limited_top_k(vec![-1.0, -2.0, -3.0, -4.0], [2, 1], 2),
            [0, 1]
        );
    }
}
