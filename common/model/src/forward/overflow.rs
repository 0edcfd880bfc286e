//! Whether hidden states are still numbers that a model can compute with.
//!
//! Checked once for every layer, on the states that are written anyway. A sum of squares that overflows would be divided
//! out by the next norm and leave zeros, which look like a result: teacher and pack would agree perfectly.

use crate::error::ModelError;

/// Values whose squares are summed side by side.
const LANES: usize = 16;

/// Checks that the squares of every row of `states: [rows, width]`, the hidden states after a layer, can be summed in f32.
///
/// # Errors
/// [`ModelError::Overflow`] with the layer and the first row that overflows.
pub fn check_states(
    states: &[f32],
    width: usize,
    layer: usize,
    model: &'static str,
) -> Result<(), ModelError> {
    let overflows = |row: &[f32]| !sum_of_squares(row).is_finite();
    let Some(row) = states.chunks(width.max(1)).find(|row| overflows(row)) else {
        return Ok(());
    };
    let is_worse =
        |found: f32, value: &f32| !found.is_nan() && (value.is_nan() || value.abs() > found.abs());
    let worst = row
        .iter()
        .fold(0.0, |found, value| match is_worse(found, value) {
            true => *value,
            false => found,
        });
    Err(ModelError::Overflow {
        layer,
        model,
        found: worst,
    })
}

fn sum_of_squares(row: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    let rest: f32 = rest.iter().map(|value| value * value).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_a_norm_could_not_divide_are_refused_with_the_layer() {
        let mut states = vec![1.0; 3 * 37];
        check_states(&states, 37, 5, "the teacher").expect("ordinary states");
        states[40] = 1e15;
        check_states(&states, 37, 5, "the teacher").expect("large states");
        for value in [1e20, -1e30, f32::INFINITY, f32::NAN] {
            for index in [0, 36, 37, 73, 110] {
                let mut states = states.clone();
                states[index] = value;
                let error = check_states(&states, 37, 5, "the teacher").expect_err("overflow");
                let message = error.to_string();
                assert!(message.contains("layer 5"), "{message}");
                assert!(message.contains(&value.to_string()), "{message}");
            }
        }
    }
}
