//! Shape of a decoder-only transformer.

use serde::{Deserialize, Serialize};

use super::{above_zero, below, positive};
use crate::{Error, Result};

/// Values in the largest matrix.
const LARGEST_MATRIX: u64 = 1 << 40;

/// Shape, dropout and initialisation of a GPT-2 style transformer (Radford et al., "Language models are unsupervised
/// multitask learners", 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// Number of tokens in the vocabulary (V).
    pub vocabulary_size: usize,
    /// Longest sequence the model can see: rows of the position table.
    pub context: usize,
    /// Width of the residual stream and of an embedding (C).
    pub dim: usize,
    /// Attention heads (H); they divide the width.
    pub heads: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the feed-forward's hidden layer; 4·dim in GPT-2.
    pub feed_forward: usize,
    /// ε of the layer norms, added to the variance.
    pub layer_norm_epsilon: f32,
    /// Probability of dropping a value of the embedded input.
    pub embedding_dropout: f32,
    /// Probability of dropping an attention weight.
    pub attention_dropout: f32,
    /// Probability of dropping a value that a block adds to the residual stream.
    pub residual_dropout: f32,
    /// Standard deviation of initial weights; projections onto the residual stream get this over √(2·layers).
    pub initial_deviation: f32,
}

impl Default for TransformerConfig {
    /// The shape of the `nano` preset with a byte vocabulary.
    fn default() -> Self {
        Self {
            vocabulary_size: 256,
            context: 64,
            dim: 128,
            heads: 4,
            layers: 4,
            feed_forward: 512,
            layer_norm_epsilon: 1e-5,
            embedding_dropout: 0.0,
            attention_dropout: 0.0,
            residual_dropout: 0.0,
            initial_deviation: 0.02,
        }
    }
}

impl TransformerConfig {
    /// Width of one attention head (D).
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// Floating-point operations of one training step per token, as the field counts them:
    /// 6·(matrix parameters of the blocks + V·C) + 12·layers·C·T, with T the sequence length.
    ///
    /// The feed-forward is counted at its configured width.
    #[must_use]
    pub fn training_flops_per_token(&self, sequence_length: usize) -> f64 {
        let (dim, layers) = (self.dim as f64, self.layers as f64);
        let block = 4.0 * dim * dim + 2.0 * dim * self.feed_forward as f64;
        6.0 * (layers * block + self.vocabulary_size as f64 * dim) + 12.0 * layers * dim * sequence_length as f64
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        positive("vocabulary_size", self.vocabulary_size)?;
        positive("context", self.context)?;
        positive("dim", self.dim)?;
        positive("heads", self.heads)?;
        positive("layers", self.layers)?;
        positive("feed_forward", self.feed_forward)?;
        if u32::try_from(self.vocabulary_size).is_err() {
            return Err(Error::config("vocabulary_size", self.vocabulary_size, "token ids are 32-bit numbers"));
        }
        // The lanes of the dropout streams hold three per block.
        if self.layers > 16_000 {
            return Err(Error::config("layers", self.layers, "must be at most 16000"));
        }
        // The products of sizes below must not overflow, and no machine could hold such a table.
        let sizes =
            [("vocabulary_size", self.vocabulary_size), ("context", self.context), ("feed_forward", self.feed_forward)];
        for (name, size) in sizes {
            if (size as u64).saturating_mul(self.dim as u64) > LARGEST_MATRIX {
                return Err(Error::config(name, size, format!("times dim = {} is more than 2^40", self.dim)));
            }
        }
        if (self.dim as u64).saturating_mul(self.dim as u64) > LARGEST_MATRIX {
            return Err(Error::config("dim", self.dim, "must be at most 2^20"));
        }
        if !self.dim.is_multiple_of(self.heads) {
            return Err(Error::config("heads", self.heads, format!("must divide dim = {}", self.dim)));
        }
        above_zero("layer_norm_epsilon", self.layer_norm_epsilon.into())?;
        below("embedding_dropout", self.embedding_dropout.into(), 0.0, 1.0)?;
        below("attention_dropout", self.attention_dropout.into(), 0.0, 1.0)?;
        below("residual_dropout", self.residual_dropout.into(), 0.0, 1.0)?;
        above_zero("initial_deviation", self.initial_deviation.into())
    }
}
