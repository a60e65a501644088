//! Settings of text pair training.

use serde::{Deserialize, Serialize};

use super::{NonFinitePolicy, OnNonFinite, Schedule, TrainingConfig, below, epsilon, learning_rate, positive, within};
use crate::data::MAXIMUM_HARD_NEGATIVES;
use crate::{Error, Result};

/// The shape of a [`PairEncoder`](crate::models::pair_encoder::PairEncoder).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairEncoderConfig {
    /// Number of tokens (V).
    pub vocabulary_size: usize,
    /// Width of a vector (C).
    pub dim: usize,
    /// Whether every token has a learned weight in the mean.
    #[serde(default)]
    pub token_weights: bool,
}

impl PairEncoderConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        positive("vocabulary_size", self.vocabulary_size)?;
        positive("dim", self.dim)?;
        if self.vocabulary_size > 1 << 31 {
            return Err(Error::config("vocabulary_size", self.vocabulary_size, "must be at most 2^31"));
        }
        if self.dim > 1 << 16 {
            return Err(Error::config("dim", self.dim, "must be at most 65536"));
        }
        Ok(())
    }
}

/// Everything that training on text pairs is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairTrainingConfig {
    /// Pairs in a batch: every document of a batch is a negative of every other query.
    pub batch_size: usize,
    /// Hard negatives of each pair, at most [`MAXIMUM_HARD_NEGATIVES`].
    pub hard_negatives: usize,
    /// Mean length of a batch's texts, in tokens, that there is room for.
    pub max_tokens: usize,
    /// Updates after which the run ends.
    pub max_steps: Option<u64>,
    /// Passes over the pairs after which the run ends; with `max_steps` as well, the earlier counts.
    pub epochs: Option<u64>,
    /// What similarities are divided by before the softmax, from 10⁻⁹ to 10⁹: squares of gradients are
    /// numbers of f32.
    pub temperature: f64,
    /// Whether documents look for their queries too, at equal shares of the loss.
    pub symmetric: bool,
    /// Widths of prefixes that are trained to be vectors of their own, besides the whole, ascending.
    pub matryoshka: Vec<usize>,
    /// Peak learning rate, at most `f32::MAX`.
    pub learning_rate: f64,
    /// Learning rate at the end of a falling schedule.
    pub minimum_learning_rate: f64,
    /// Updates over which the learning rate rises linearly from near 0 to its peak.
    pub warmup_steps: u64,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// The share of the run in which [`Schedule::WarmupStableDecay`] falls.
    pub decay_fraction: f64,
    /// Weight decay of the rows that an update touches; not of token weights.
    pub weight_decay: f64,
    /// AdamW's decay rate of the first moment.
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta2: f64,
    /// AdamW's ε, added to the root of the second moment; at least `f32::MIN_POSITIVE`.
    pub epsilon: f64,
    /// Updates between two checkpoints; none without.
    pub save_interval: Option<u64>,
    /// Checkpoints that are kept in the run folder, the last ones; all without.
    pub keep_checkpoints: Option<usize>,
    /// What to do when the loss or the gradient is not finite.
    pub on_non_finite: OnNonFinite,
    /// What the learning rate is multiplied by at every [`OnNonFinite::RollBack`].
    pub roll_back_factor: f64,
    /// How many steps may be skipped in a row, or how often the run may be rolled back before it gets beyond the step
    /// that failed; then the error is returned.
    pub non_finite_limit: u64,
    /// Seed of the initial vectors and of the order of pairs.
    pub seed: u64,
    /// Worker threads.
    pub workers: usize,
    /// Leaves BLAS's own number of threads alone instead of setting it to 1 while the trainer lives.
    pub keep_blas_threads: bool,
}

impl Default for PairTrainingConfig {
    fn default() -> Self {
        let NonFinitePolicy { on_non_finite, roll_back_factor, non_finite_limit } = NonFinitePolicy::default();
        Self {
            batch_size: 1024,
            hard_negatives: 0,
            max_tokens: 128,
            max_steps: None,
            epochs: Some(1),
            temperature: 0.05,
            symmetric: false,
            matryoshka: Vec::new(),
            learning_rate: 0.1,
            minimum_learning_rate: 1e-3,
            warmup_steps: 20,
            schedule: Schedule::Linear,
            decay_fraction: 0.2,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            save_interval: None,
            keep_checkpoints: Some(3),
            on_non_finite,
            roll_back_factor,
            non_finite_limit,
            seed: 0,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            keep_blas_threads: false,
        }
    }
}

impl PairTrainingConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        positive("batch_size", self.batch_size)?;
        positive("max_tokens", self.max_tokens)?;
        positive("workers", self.workers)?;
        for (name, value, most) in [
            ("batch_size", self.batch_size, 1 << 16),
            ("hard_negatives", self.hard_negatives, MAXIMUM_HARD_NEGATIVES),
            ("max_tokens", self.max_tokens, 1 << 16),
            ("workers", self.workers, 1 << 16),
        ] {
            if value > most {
                return Err(Error::config(name, value, format!("must be at most {most}")));
            }
        }
        if self.places() >= u64::from(u32::MAX) {
            return Err(Error::config("max_tokens", self.max_tokens, "a batch must have fewer than 2^32 − 1 tokens"));
        }
        for (name, value) in [
            ("max_steps", self.max_steps),
            ("epochs", self.epochs),
            ("save_interval", self.save_interval),
            ("keep_checkpoints", self.keep_checkpoints.map(|count| count as u64)),
        ] {
            if value == Some(0) {
                return Err(Error::config(name, 0, "must be at least 1, or left out"));
            }
        }
        if self.matryoshka.first() == Some(&0) || !self.matryoshka.is_sorted_by(|a, b| a < b) {
            let value = format!("{:?}", self.matryoshka);
            return Err(Error::config("matryoshka", value, "must be widths of at least 1, ascending"));
        }
        within("temperature", self.temperature, 1e-9, 1e9)?;
        learning_rate(self.learning_rate)?;
        within("minimum_learning_rate", self.minimum_learning_rate, 0.0, self.learning_rate)?;
        within("decay_fraction", self.decay_fraction, 0.0, 1.0)?;
        within("weight_decay", self.weight_decay, 0.0, f64::INFINITY)?;
        below("beta1", self.beta1, 0.0, 1.0)?;
        below("beta2", self.beta2, 0.0, 1.0)?;
        epsilon(self.epsilon)?;
        self.non_finite_policy().validate()
    }

    pub(crate) fn non_finite_policy(&self) -> NonFinitePolicy {
        let Self { on_non_finite, roll_back_factor, non_finite_limit, .. } = *self;
        NonFinitePolicy { on_non_finite, roll_back_factor, non_finite_limit }
    }

    /// Texts of a full batch.
    pub(crate) fn texts(&self) -> usize {
        self.batch_size * (2 + self.hard_negatives)
    }

    /// Tokens of a full batch that there is room for.
    pub(crate) fn places(&self) -> u64 {
        self.texts() as u64 * self.max_tokens as u64
    }

    /// The settings of the schedule, as those of language model training.
    pub(crate) fn schedule(&self) -> TrainingConfig {
        TrainingConfig {
            learning_rate: self.learning_rate,
            minimum_learning_rate: self.minimum_learning_rate,
            warmup_steps: self.warmup_steps,
            schedule: self.schedule,
            decay_fraction: self.decay_fraction,
            ..TrainingConfig::default()
        }
    }
}
