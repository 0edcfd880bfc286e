//! Initial weights of a model, by the names and shapes of its tensors.

use crate::stories::Random;

/// Initial values of the tensor `name` in a model of `layers` layers: normal matrices scaled by the fan-in, gains of one, biases
/// of zero. State space models have decay rates of 1 to N and time steps of 0.001 to 0.1, as in Mamba (Gu and Dao 2023).
pub fn initial(name: &str, shape: &[usize], layers: usize, random: &mut Random) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let ends_with = |part: &str| name.ends_with(part);
    let last = shape.last().copied().unwrap_or(1);
    if ends_with("A_log") {
        return (0..count).map(|i| ((i % last + 1) as f32).ln()).collect();
    }
    if ends_with("dt_proj.bias") {
        let step = |uniform: usize| 0.001 * 100.0_f32.powf(uniform as f32 / 1000.0);
        let inverse_softplus = |step: f32| step.exp_m1().ln();
        return (0..count)
            .map(|_| inverse_softplus(step(random.below(1000))))
            .collect();
    }
    let residual = ["o_proj.weight", "down_proj.weight", "out_proj.weight"];
    let scale = match shape.len() {
        1 if ends_with(".bias") => return vec![0.0; count],
        1 => return vec![1.0; count],
        _ if name.contains("embed") => 0.05,
        _ if residual.iter().any(|part| ends_with(part)) => {
            1.0 / ((last * 2 * layers) as f32).sqrt()
        }
        _ => 1.0 / (last as f32).sqrt(),
    };
    (0..count).map(|_| scale * random.normal()).collect()
}
