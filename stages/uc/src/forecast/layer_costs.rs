//! Operations and sizes of one layer, from the shapes of its linears.
//!
//! Operations are floating-point operations; a multiplication with an addition counts as two. Small contributions are left
//! out: norms, rotary embeddings, softmax, routers, the scan of a state space (about 1 % of Mamba's operations), and the
//! factors of the output gradients' second moments.

use uc_store::model_summary::{InputGroup, LayerGroup, LinearGroup};

/// Number of outputs of an expert's linear whose gradients' second moments are computed jointly.
const EXPERT_OUTPUT_BLOCK: usize = 128;
/// Operations per weight and rank of the search for leading singular triples.
const TRIPLES: f64 = 24.0;

/// Operations per weight of the bound on what an overlay could capture: 16 vectors, multiplied by the residual's transpose
/// once and by the residual and its transpose four times, as is typical.
const BOUND: f64 = 2.0 * 16.0 * (1.0 + 2.0 * 4.0);
/// Operations per entry of the second moments of the same.
const BOUND_MOMENTS: f64 = 2.0 * 16.0 * 4.0;

/// A layer of a group, with the formulas for its costs.
#[derive(Debug, Clone, Copy)]
pub struct LayerCosts<'a> {
    /// The structure of the layer.
    pub group: &'a LayerGroup,
}

/// Number of outputs of a linear whose quantization errors are fed back into one another.
fn output_block(linear: &LinearGroup, max_output_block: usize) -> usize {
    linear.rows.min(if linear.routed {
        EXPERT_OUTPUT_BLOCK
    } else {
        max_output_block
    })
}

/// Operations of the Cholesky factors of a matrix of this size in diagonal blocks of at most `max_block`.
fn cholesky(size: usize, max_block: usize) -> f64 {
    let block = size.min(max_block) as f64;
    size as f64 * block * block / 3.0
}

/// Entries of the second moments of the output gradients of one linear of a group.
pub fn output_moments_of_one(linear: &LinearGroup, max_output_block: usize) -> f64 {
    (linear.rows * output_block(linear, max_output_block)) as f64
}

/// The same of all linears of a group.
fn output_moment_entries(linear: &LinearGroup, max_output_block: usize) -> f64 {
    linear.count as f64 * output_moments_of_one(linear, max_output_block)
}

impl LayerCosts<'_> {
    /// Parameters of the linears.
    pub fn linear_parameters(&self) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| (group.count * group.rows * group.cols) as f64)
            .sum()
    }

    /// Number of linears.
    pub fn linear_count(&self) -> usize {
        self.group.linears.iter().map(|group| group.count).sum()
    }

    /// Number of inputs.
    pub fn input_count(&self) -> usize {
        self.group.inputs.iter().map(|group| group.count).sum()
    }

    /// Number of linears and exact tensors.
    pub fn tensor_count(&self) -> usize {
        self.linear_count() + self.group.exact
    }

    /// Share of the tokens that reach a linear or an input.
    fn token_share(&self, routed: bool) -> f64 {
        match routed && self.group.experts > 0 {
            true => self.group.experts_per_token as f64 / self.group.experts as f64,
            false => 1.0,
        }
    }

    /// Parameters that take part in the computation for one token.
    pub fn active_parameters(&self) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| {
                self.token_share(group.routed) * (group.count * group.rows * group.cols) as f64
            })
            .sum()
    }

    /// Operations per token of the products with the weights in a forward pass: two per weight.
    pub fn forward(&self) -> f64 {
        2.0 * self.active_parameters()
    }

    /// Operations per token of causal attention in windows of `length` tokens: the scores and weighted sums, so many of them.
    pub fn attention(&self, length: f64, products: f64) -> f64 {
        products * length * self.group.attention_width as f64
    }

    /// Operations per token of the products with the weights in a recorded forward pass with the gradients of the inputs, and of the second
    /// moments of the output gradients (one triangle only).
    pub fn backward(&self, max_output_block: usize) -> f64 {
        let linears = self.group.linears.iter();
        let outputs: f64 = linears
            .map(|group| {
                self.token_share(group.routed) * output_moment_entries(group, max_output_block)
            })
            .sum();
        4.0 * self.active_parameters() + outputs
    }

    /// Operations per token of the second moments of the inputs (one triangle only).
    pub fn moments(&self, max_input_block: usize) -> f64 {
        let inputs = self.group.inputs.iter();
        inputs
            .map(|input| {
                let entries = (input.count * input.width * input.width.min(max_input_block)) as f64;
                self.token_share(input.routed) * entries
            })
            .sum()
    }

    /// Entries of the second moments of all inputs.
    pub fn moment_entries(&self, max_input_block: usize) -> f64 {
        let inputs = self.group.inputs.iter();
        inputs
            .map(|input| (input.count * input.width * input.width.min(max_input_block)) as f64)
            .sum()
    }

    /// Entries of the second moments of all output gradients.
    pub fn output_moment_entries(&self, max_output_block: usize) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| output_moment_entries(group, max_output_block))
            .sum()
    }

    /// Operations of the Cholesky factors of the input moments.
    pub fn factors(&self, max_input_block: usize) -> f64 {
        let inputs = self.group.inputs.iter();
        inputs
            .map(|input| input.count as f64 * cholesky(input.width, max_input_block))
            .sum()
    }

    /// Entries of the second moments of the inputs that every token reaches.
    pub fn shared_moment_entries(&self, max_input_block: usize) -> f64 {
        let inputs = self.group.inputs.iter().filter(|input| !input.routed);
        inputs
            .map(|input| (input.count * input.width * input.width.min(max_input_block)) as f64)
            .sum()
    }

    /// Entries of the metrics of the leverage scores, which corresponding inputs of all experts share.
    pub fn metric_entries(&self, max_input_block: usize) -> f64 {
        let inputs = self.group.inputs.iter();
        inputs
            .map(|input| {
                let entries = input.width * input.width.min(max_input_block);
                (self.metric_count(input) * entries) as f64
            })
            .sum()
    }

    /// Operations of the Cholesky factors of these metrics.
    pub fn shared_factors(&self, max_input_block: usize) -> f64 {
        let inputs = self.group.inputs.iter();
        inputs
            .map(|input| self.metric_count(input) as f64 * cholesky(input.width, max_input_block))
            .sum()
    }

    /// Number of metrics of the leverage scores of a group of inputs.
    fn metric_count(&self, input: &InputGroup) -> usize {
        match input.routed {
            true => input.count.div_ceil(self.group.experts.max(1)),
            false => input.count,
        }
    }

    /// Operations of the Cholesky factors of the output moments.
    pub fn output_factors(&self, max_output_block: usize) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|linear| {
                let block = output_block(linear, max_output_block);
                linear.count as f64 * cholesky(linear.rows, block)
            })
            .sum()
    }

    /// Weights in at most `rows` rows of every linear.
    pub fn probed_weights(&self, rows: usize) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| (group.count * group.rows.min(rows) * group.cols) as f64)
            .sum()
    }

    /// Operations of error feedback along the columns, on at most `rows` rows of every linear.
    pub fn feedback_along_columns(&self, max_input_block: usize, rows: usize) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| {
                let weights = (group.count * group.rows.min(rows) * group.cols) as f64;
                weights * group.cols.min(max_input_block) as f64
            })
            .sum()
    }

    /// Operations of error feedback along columns and rows.
    pub fn feedback(&self, max_input_block: usize, max_output_block: usize) -> f64 {
        let linears = self.group.linears.iter();
        let along_rows: f64 = linears
            .map(|group| output_moment_entries(group, max_output_block) * group.cols as f64)
            .sum();
        self.feedback_along_columns(max_input_block, usize::MAX) + along_rows
    }

    /// Values per token at the inputs and outputs of the linears.
    pub fn active_values(&self) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|linear| {
                self.token_share(linear.routed)
                    * (linear.count * (linear.rows + linear.cols)) as f64
            })
            .sum()
    }

    /// Operations of the bound that excludes overlays.
    pub fn overlay_bound(&self, max_input_block: usize) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| {
                let inputs = (group.count * group.cols) as f64;
                let block = group.cols.min(max_input_block) as f64;
                inputs * (BOUND * group.rows as f64 + BOUND_MOMENTS * block)
            })
            .sum()
    }

    /// Operations of the search for an overlay of a given rank.
    pub fn overlay(&self, max_input_block: usize, rank: u32) -> f64 {
        let linears = self.group.linears.iter();
        linears
            .map(|group| {
                let weights = (group.count * group.rows * group.cols) as f64;
                weights * (group.cols.min(max_input_block) as f64 + TRIPLES * f64::from(rank))
            })
            .sum()
    }

    /// Expected number of values per token in the inputs that only routed tokens reach.
    pub fn routed_width(&self) -> f64 {
        let routed = self.group.inputs.iter().filter(|input| input.routed);
        routed
            .map(|input| self.token_share(true) * (input.count * input.width) as f64)
            .sum()
    }
}
