//! Embedding of token windows, and the number of windows per batch.
//!
//! Shared by the stages that run the forward pass. The choice of windows is made in [`crate::text`].

use crate::spec::EmbeddingSpec;

impl EmbeddingSpec {
    /// The tokens `ids` of a window as they enter the residual stream, `[length, hidden]`. `read_row` reads a row of a
    /// tensor by its full name.
    ///
    /// # Errors
    /// What `read_row` returns.
    pub fn window<E>(
        &self,
        ids: &[u32],
        read_row: impl Fn(&str, usize) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let mut values = Vec::new();
        for (position, &id) in ids.iter().enumerate() {
            values.extend(self.token(id, position, &read_row)?);
        }
        Ok(values)
    }
}

/// Number of windows of `length` tokens in a batch of about `tokens` tokens; at least one.
pub fn windows_per_batch(tokens: usize, length: usize) -> usize {
    (tokens / length).max(1)
}
