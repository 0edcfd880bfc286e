//! Random weights and moments for the tests of the codec.

use uc_codec::trellis::BLOCK_ROWS;

/// SplitMix64 with normal deviates.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn normal(&mut self) -> f32 {
        (0..12)
            .map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32)
            .sum::<f32>()
            - 6.0
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Second moments of inputs with a decaying spectrum, `[n, n]`.
pub fn correlated(n: usize, random: &mut Random) -> Vec<f32> {
    let tokens = 4 * n;
    let mix = random.normals(n * n);
    let mut h = vec![0.0f64; n * n];
    for _ in 0..tokens {
        let z: Vec<f32> = (0..n)
            .map(|k| random.normal() / (1.0 + k as f32 * 0.3))
            .collect();
        let x: Vec<f32> = (0..n)
            .map(|i| (0..n).map(|k| mix[i * n + k] * z[k]).sum())
            .collect();
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] += f64::from(x[i]) * f64::from(x[j]) / tokens as f64;
            }
        }
    }
    let mut symmetric = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            symmetric[i * n + j] = h[i.min(j) * n + i.max(j)] as f32;
        }
    }
    symmetric
}

/// Second moments of output gradients that differ in size and are correlated between adjacent rows, [rows, BLOCK_ROWS].
pub fn gradient_moments(rows: usize) -> Vec<f32> {
    let mut moments = vec![0.0; rows * BLOCK_ROWS];
    for i in 0..rows {
        for k in (i - i % BLOCK_ROWS..rows).take(BLOCK_ROWS) {
            let size = |row: usize| 1.0 + (row % 7) as f32;
            moments[i * BLOCK_ROWS + k % BLOCK_ROWS] =
                size(i) * size(k) * 0.6f32.powi(i.abs_diff(k) as i32);
        }
    }
    moments
}
