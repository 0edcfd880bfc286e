//! Arithmetic on vectors of channels, one channel per lane, for the kernels of the scan.

use uc_simd::LANES;

/// One value of each of [`LANES`] channels.
pub(super) type Lane = [f32; LANES];

/// The first values of a row, padded with zeros.
#[inline(always)]
pub(super) fn load(row: &[f32]) -> Lane {
    match row.first_chunk() {
        Some(full) => *full,
        None => {
            let mut lane = [0.0; LANES];
            lane[..row.len()].copy_from_slice(row);
            lane
        }
    }
}

/// `a * b` in every lane.
#[inline(always)]
pub(super) fn mul(a: Lane, b: Lane) -> Lane {
    std::array::from_fn(|i| a[i] * b[i])
}

/// `a * b + c` in every lane, rounded once.
#[inline(always)]
pub(super) fn mul_add(a: Lane, b: Lane, c: Lane) -> Lane {
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

/// The sum of all lanes, pairwise.
#[inline(always)]
pub(super) fn sum(mut lane: Lane) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lane[i] += lane[i + half];
        }
        half /= 2;
    }
    lane[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rows_are_padded_with_zeros_and_all_lanes_are_summed() {
        assert_eq!(sum(load(&[1.0, 2.0, 4.0])), 7.0);
        let row: Vec<f32> = (0..20).map(|i| i as f32).collect();
        assert_eq!(sum(load(&row)), 120.0);
    }
}
