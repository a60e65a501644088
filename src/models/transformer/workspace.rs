//! Everything a forward and backward pass writes, allocated once and sized from the configuration.

use ndarray::{Array2, ArrayViewMut2, s};

use crate::config::TransformerConfig;
use crate::layers::attention::Scratch;
use crate::layers::layer_norm::Statistics;
use crate::memory::Room;
use crate::parallel::Parallelism;

/// Fewer rows of scores than this would stream the vocabulary's weights through the cache too often.
const LEAST_SCORE_ROWS: usize = 256;

/// What one block's forward keeps for its backward. N is the number of tokens.
#[derive(Clone, Debug)]
pub(crate) struct BlockActivations {
    /// N × C: the residual stream after the attention.
    pub middle: Array2<f32>,
    pub attention_norm: Statistics,
    /// N × C: input of the attention.
    pub attention_input: Array2<f32>,
    /// N × 3C: queries, keys and values.
    pub qkv: Array2<f32>,
    /// H × N: ln Σ exp of each row of scores.
    pub log_sum_exp: Array2<f32>,
    /// N × C: output of the heads.
    pub attended: Array2<f32>,
    pub feed_forward_norm: Statistics,
    /// N × C: input of the feed-forward.
    pub feed_forward_input: Array2<f32>,
    /// N × F: the hidden layer before its activation, then the activation's derivative.
    pub derivative: Array2<f32>,
    /// N × F: the hidden layer.
    pub hidden: Array2<f32>,
}

/// Gradients of activations, shared by all blocks.
#[derive(Clone, Debug)]
pub(crate) struct Gradients {
    /// N × C: of the residual stream.
    pub residual: Array2<f32>,
    /// N × C: of a layer's input or output.
    pub layer: Array2<f32>,
    /// N × 3C.
    pub qkv: Array2<f32>,
    /// N × F.
    pub hidden: Array2<f32>,
    /// N × C: a masked copy of the residual stream's gradient, where there is residual dropout.
    pub dropped: Array2<f32>,
}

/// Where the buffers of workspaces come from: what the backward needs of the forward, and everything else.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    pub activations: Room,
    pub scratch: Room,
}

/// The buffers of one worker, or of all workers together.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// layers + 1 matrices N × C: the residual stream before each block and after the last.
    pub residual: Vec<Array2<f32>>,
    pub blocks: Vec<BlockActivations>,
    pub final_norm: Statistics,
    /// N × C: what is compared with the vocabulary's embeddings.
    pub normalised: Array2<f32>,
    /// rows × V: scores over the vocabulary, as many rows at a time as the budget allows.
    pub scores: Array2<f32>,
    pub attention: Scratch,
    /// Absent where only a forward pass is wanted.
    pub gradients: Option<Gradients>,
}

impl Workspace {
    /// Room for `tokens` tokens in sequences of up to `sequence_length`, and `workers` workers inside an operation.
    pub fn new(
        config: &TransformerConfig,
        tokens: usize,
        sequence_length: usize,
        scores_budget: usize,
        parallelism: Parallelism,
        with_gradients: bool,
    ) -> Self {
        let rooms = Rooms::default();
        Self::within(&rooms, config, tokens, sequence_length, scores_budget, parallelism, with_gradients)
    }

    /// As [`new`](Self::new), its buffers from `rooms`.
    pub fn within(
        Rooms { activations, scratch }: &Rooms,
        config: &TransformerConfig,
        tokens: usize,
        sequence_length: usize,
        scores_budget: usize,
        parallelism: Parallelism,
        with_gradients: bool,
    ) -> Self {
        let (dim, hidden) = (config.dim, config.feed_forward);
        let zeros = |columns| activations.matrix(tokens, columns);
        let gradient_zeros = |columns| scratch.matrix(tokens, columns);
        let block = || BlockActivations {
            middle: zeros(dim),
            attention_norm: Statistics::within(activations, tokens),
            attention_input: zeros(dim),
            qkv: zeros(3 * dim),
            log_sum_exp: activations.matrix(config.heads, tokens),
            attended: zeros(dim),
            feed_forward_norm: Statistics::within(activations, tokens),
            feed_forward_input: zeros(dim),
            derivative: zeros(hidden),
            hidden: zeros(hidden),
        };
        let budget_rows = scores_budget / (size_of::<f32>() * config.vocabulary_size);
        let score_rows = budget_rows.max(LEAST_SCORE_ROWS).min(tokens);
        Self {
            residual: (0..=config.layers).map(|_| zeros(dim)).collect(),
            blocks: (0..config.layers).map(|_| block()).collect(),
            final_norm: Statistics::within(activations, tokens),
            normalised: zeros(dim),
            scores: scratch.matrix(score_rows, config.vocabulary_size),
            attention: Scratch::within(scratch, parallelism.count(), sequence_length),
            gradients: with_gradients.then(|| Gradients {
                residual: gradient_zeros(dim),
                layer: gradient_zeros(dim),
                qkv: gradient_zeros(3 * dim),
                hidden: gradient_zeros(hidden),
                dropped: if config.residual_dropout > 0.0 { gradient_zeros(dim) } else { Array2::zeros((0, dim)) },
            }),
        }
    }
}

/// The first `rows` rows.
pub(crate) fn first(matrix: &mut Array2<f32>, rows: usize) -> ArrayViewMut2<'_, f32> {
    matrix.slice_mut(s![..rows, ..])
}
