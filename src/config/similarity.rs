//! Settings of the similarity objective.

use serde::{Deserialize, Serialize};

use super::{TrainingConfig, TransformerConfig, learning_rate, positive};
use crate::{Error, Result};

/// Everything that training by the [similarity objective](crate::models::similarity) is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimilarityConfig {
    /// Number of tokens (V).
    pub vocabulary_size: usize,
    /// Width of an embedding (C).
    pub dim: usize,
    /// Sequences in a batch, at most (B).
    pub batch_size: usize,
    /// Tokens in a sequence, at most (T).
    pub sequence_length: usize,
    /// Transformer blocks of the encoder of the inputs; with 0, an input's row is compared as it is.
    pub layers: usize,
    /// Attention heads of the encoder; they divide the width.
    pub heads: usize,
    /// Width of the hidden layers of the encoder.
    pub feed_forward: usize,
    /// Whether both sides are scaled to length 1, so that similarities are cosines and the loss is at least 0.
    pub unit_norm: bool,
    /// Pairs with this id on either side do not count. It may lie outside the vocabulary.
    pub ignore_id: Option<u32>,
    /// Standard deviation of initial values.
    pub initial_deviation: f32,
    /// AdamW's learning rate, at most `f32::MAX`.
    pub learning_rate: f64,
    /// AdamW's weight decay, of matrices, both tables among them. A row that is in no pair for n steps shrinks to (1 −
    /// learning_rate · weight_decay)ⁿ of its length; where that could come to 10⁻¹⁵, after some 350,000 steps by default, it
    /// is lost to f32, and runs that leave tokens out for so long need a decay of 0.
    pub weight_decay: f64,
    /// AdamW's decay rate of the first moment.
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta2: f64,
    /// AdamW's ε, at least `f32::MIN_POSITIVE`.
    pub epsilon: f64,
    /// Checkpoints that are kept in the run folder, the last ones; all without.
    pub keep_checkpoints: Option<usize>,
    /// Worker threads.
    pub workers: usize,
    /// Seed of the initial values.
    pub seed: u64,
}

impl Default for SimilarityConfig {
    /// No encoder, cosines.
    fn default() -> Self {
        let training = TrainingConfig::default();
        Self {
            vocabulary_size: 256,
            dim: 64,
            batch_size: 16,
            sequence_length: 16,
            layers: 0,
            heads: 4,
            feed_forward: 256,
            unit_norm: true,
            ignore_id: None,
            initial_deviation: 0.02,
            learning_rate: 1e-3,
            weight_decay: training.weight_decay,
            beta1: training.beta1,
            beta2: training.beta2,
            epsilon: training.epsilon,
            keep_checkpoints: Some(3),
            workers: 1,
            seed: 1,
        }
    }
}

impl SimilarityConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        positive("batch_size", self.batch_size)?;
        positive("sequence_length", self.sequence_length)?;
        positive("workers", self.workers)?;
        // Heads and hidden layers only matter where there is an encoder.
        let shape = match self.layers {
            0 => TransformerConfig { layers: 1, heads: 1, feed_forward: 1, ..self.encoder() },
            _ => self.encoder(),
        };
        shape.validate()?;
        learning_rate(self.learning_rate)?;
        self.optimizer().validate()?;
        let tokens = self.batch_size.checked_mul(self.sequence_length);
        match tokens.filter(|&tokens| u32::try_from(tokens).is_ok()) {
            Some(_) => Ok(()),
            None => Err(Error::config("batch_size", self.batch_size, "times sequence_length must be below 2^32")),
        }
    }

    /// The encoder's shape.
    pub(crate) fn encoder(&self) -> TransformerConfig {
        TransformerConfig {
            vocabulary_size: self.vocabulary_size,
            context: self.sequence_length,
            dim: self.dim,
            heads: self.heads,
            layers: self.layers,
            feed_forward: self.feed_forward,
            initial_deviation: self.initial_deviation,
            ..TransformerConfig::default()
        }
    }

    /// AdamW's settings, as the optimizer takes them.
    pub(crate) fn optimizer(&self) -> TrainingConfig {
        TrainingConfig {
            learning_rate: self.learning_rate,
            minimum_learning_rate: 0.0,
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            keep_checkpoints: self.keep_checkpoints,
            workers: self.workers,
            seed: self.seed,
            ..TrainingConfig::default()
        }
    }
}
