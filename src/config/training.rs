//! Settings of a training run.

use serde::{Deserialize, Serialize};

use super::{NonFinitePolicy, OnNonFinite, above_zero, below, epsilon, learning_rate, positive, within};
use crate::data::BatchOrder;
use crate::{Error, Result};

/// Tokens in the largest batch, and in all batches of an update.
const LARGEST_BATCH: u64 = 1 << 40;

/// How the learning rate moves from its peak, after the warm-up, to the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls linearly to the minimum.
    Linear,
    /// Falls along half a cosine to the minimum (Loshchilov and Hutter, "SGDR", 2017).
    Cosine,
    /// Stays at the peak, then falls linearly to the minimum over the last `decay_fraction` of the run
    /// (Hu et al., "MiniCPM", 2024).
    WarmupStableDecay,
}

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019).
    #[serde(rename = "adamw")]
    AdamW,
    /// Stochastic gradient descent with momentum; weight decay is added to the gradient.
    Sgd,
}

/// How a batch is split over the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharding {
    /// Chosen from the shapes, by [`TrainingConfig::effective_sharding`].
    Auto,
    /// Each worker takes whole sequences and has a gradient buffer of its own; the buffers are added afterwards.
    Sequences,
    /// All workers take part in every operation; one gradient buffer.
    Operations,
}

/// Everything a training run is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Sequences in one forward and backward pass (B).
    pub batch_size: usize,
    /// Tokens in a sequence (T), at most the model's context.
    pub sequence_length: usize,
    /// Batches accumulated into one update.
    pub accumulation_steps: usize,
    /// Updates after which the run ends.
    pub max_steps: Option<u64>,
    /// Passes over the training tokens after which the run ends; with `max_steps` as well, the earlier counts.
    pub epochs: Option<u64>,
    /// The update rule.
    pub optimizer: Optimizer,
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
    /// Weight decay, applied to matrices only: not to biases, gains.
    pub weight_decay: f64,
    /// AdamW's decay rate of the first moment.
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta2: f64,
    /// AdamW's ε, added to the root of the second moment; at least `f32::MIN_POSITIVE`.
    pub epsilon: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Whether SGD looks ahead (Nesterov).
    pub nesterov: bool,
    /// Largest norm of the whole gradient; a larger gradient is scaled down to it.
    pub gradient_clip: Option<f64>,
    /// Share of the target's probability that is spread evenly over the vocabulary.
    pub label_smoothing: f64,
    /// Targets with this id do not count. It may lie outside the vocabulary.
    pub ignore_id: Option<u32>,
    /// Decay of an exponential moving average of the weights, which evaluation then uses.
    pub moving_average_decay: Option<f64>,
    /// Updates between evaluations; none without.
    pub evaluation_interval: Option<u64>,
    /// Batches an evaluation during the run looks at, spread evenly over the validation tokens; all without.
    pub evaluation_batches: Option<usize>,
    /// The k of the top-k accuracy.
    pub top_k: usize,
    /// Updates between saves; none without. The progress callback is told when one is due.
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
    /// The order in which a run visits the training tokens, given by
    /// [`SequenceSource::for_training`](crate::data::SequenceSource::for_training).
    pub batch_order: BatchOrder,
    /// Seed of batch order and dropout.
    pub seed: u64,
    /// Worker threads.
    pub workers: usize,
    /// How a batch is split over the workers.
    pub sharding: Sharding,
    /// Bytes that one worker's scores over the vocabulary may take; more rows are worked off in chunks.
    pub scores_budget: usize,
    /// Leaves BLAS's own number of threads alone instead of setting it to 1 while the trainer lives.
    pub keep_blas_threads: bool,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        let NonFinitePolicy { on_non_finite, roll_back_factor, non_finite_limit } = NonFinitePolicy::default();
        Self {
            batch_size: 12,
            sequence_length: 64,
            accumulation_steps: 1,
            max_steps: Some(1000),
            epochs: None,
            optimizer: Optimizer::AdamW,
            learning_rate: 1e-3,
            minimum_learning_rate: 1e-4,
            warmup_steps: 100,
            schedule: Schedule::Cosine,
            decay_fraction: 0.2,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            momentum: 0.9,
            nesterov: false,
            gradient_clip: Some(1.0),
            label_smoothing: 0.0,
            ignore_id: None,
            moving_average_decay: None,
            evaluation_interval: None,
            evaluation_batches: None,
            top_k: 5,
            save_interval: None,
            keep_checkpoints: Some(3),
            on_non_finite,
            roll_back_factor,
            non_finite_limit,
            batch_order: BatchOrder::Random,
            seed: 0,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            sharding: Sharding::Auto,
            scores_budget: 64 << 20,
            keep_blas_threads: false,
        }
    }
}

impl TrainingConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        positive("batch_size", self.batch_size)?;
        positive("sequence_length", self.sequence_length)?;
        positive("accumulation_steps", self.accumulation_steps)?;
        positive("top_k", self.top_k)?;
        positive("workers", self.workers)?;
        positive("scores_budget", self.scores_budget)?;
        // The products of sizes below must not overflow.
        let batch = (self.batch_size as u64).saturating_mul(self.sequence_length as u64);
        if batch > LARGEST_BATCH {
            return Err(Error::config("batch_size", self.batch_size, "times sequence_length must be at most 2^40"));
        }
        if batch.saturating_mul(self.accumulation_steps as u64) > LARGEST_BATCH {
            let expected = "times batch_size and sequence_length must be at most 2^40";
            return Err(Error::config("accumulation_steps", self.accumulation_steps, expected));
        }
        if self.workers > 1 << 16 {
            return Err(Error::config("workers", self.workers, "must be at most 65536"));
        }
        for (name, steps) in [
            ("max_steps", self.max_steps),
            ("epochs", self.epochs),
            ("evaluation_interval", self.evaluation_interval),
            ("save_interval", self.save_interval),
            ("keep_checkpoints", self.keep_checkpoints.map(|checkpoints| checkpoints as u64)),
            ("evaluation_batches", self.evaluation_batches.map(|batches| batches as u64)),
        ] {
            if steps == Some(0) {
                return Err(Error::config(name, 0, "must be at least 1, or left out"));
            }
        }
        learning_rate(self.learning_rate)?;
        within("minimum_learning_rate", self.minimum_learning_rate, 0.0, self.learning_rate)?;
        within("decay_fraction", self.decay_fraction, 0.0, 1.0)?;
        within("weight_decay", self.weight_decay, 0.0, f64::INFINITY)?;
        below("beta1", self.beta1, 0.0, 1.0)?;
        below("beta2", self.beta2, 0.0, 1.0)?;
        epsilon(self.epsilon)?;
        below("momentum", self.momentum, 0.0, 1.0)?;
        below("label_smoothing", self.label_smoothing, 0.0, 1.0)?;
        self.non_finite_policy().validate()?;
        if let Some(clip) = self.gradient_clip {
            above_zero("gradient_clip", clip)?;
        }
        if let Some(decay) = self.moving_average_decay {
            below("moving_average_decay", decay, 0.0, 1.0)?;
        }
        if self.nesterov && self.momentum == 0.0 {
            return Err(Error::config("nesterov", true, "needs a momentum above 0"));
        }
        Ok(())
    }
    pub(crate) fn non_finite_policy(&self) -> NonFinitePolicy {
        let Self { on_non_finite, roll_back_factor, non_finite_limit, .. } = *self;
        NonFinitePolicy { on_non_finite, roll_back_factor, non_finite_limit }
    }
}
