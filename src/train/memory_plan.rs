//! The memory of a trainer, known before it is built.

use super::engine::norms;
use super::shard::Shard;
use super::trainer::check;
use crate::Result;
use crate::config::{OnNonFinite, TrainingConfig, TransformerConfig};
use crate::memory::Room;
use crate::models::transformer::{Rooms, layout};
use crate::optim::OptimizerState;

/// The memory that a trainer and its model take, in bytes.
///
/// The sizes come from the code that allocates the buffers, told to measure them instead. What they do not hold: the
/// batches that a caller makes, the tokens, evaluations of more than loss and accuracy; and some MiB of the program
/// itself, the stacks of its threads, and BLAS's own buffers.
///
/// ```
/// use cllm::{MemoryPlan, Preset, TrainingConfig};
/// # fn main() -> cllm::Result<()> {
/// let config = TrainingConfig { batch_size: 4, sequence_length: 64, workers: 2, ..Default::default() };
/// let plan = MemoryPlan::of(&Preset::Gpt2.model(), &config)?;
/// assert_eq!(plan.parameters, 4 * 123_702_528);
/// assert_eq!(plan.optimizer_state, 2 * plan.parameters);
/// assert!(plan.total() < 4 << 30);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The model's parameters.
    pub parameters: usize,
    /// Gradients of the parameters: one buffer, or one a worker where workers take whole sequences.
    pub gradients: usize,
    /// AdamW's moments or SGD's momentum, and the moving average of the weights.
    pub optimizer_state: usize,
    /// The copy of parameters and optimizer state that is kept while they are saved beside training, or to roll back to:
    /// 0 where the config has neither a `save_interval` nor that policy.
    pub snapshot: usize,
    /// What the backward needs of the forward, for all workers.
    pub activations: usize,
    /// Scores over the vocabulary, gradients of activations, tiles of attention, of all workers; the batch of an
    /// evaluation.
    pub scratch: usize,
}

impl MemoryPlan {
    /// The plan of a trainer for a model of this shape; allocates next to nothing. Sums that exceed the address space are
    /// `usize::MAX`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) as from [`Transformer::new`](crate::Transformer::new) and
    /// [`Trainer::new`](crate::Trainer::new).
    pub fn of(model: &TransformerConfig, training: &TrainingConfig) -> Result<Self> {
        model.validate()?;
        check(model, training)?;
        let (layout, _) = layout(model);
        let buffer = size_of::<f32>().saturating_mul(layout.buffer_length());
        let rooms = Rooms { activations: Room::measured(), scratch: Room::measured() };
        let shards = Shard::measure(&rooms, model, training, &layout);
        norms(&rooms.scratch, &layout);
        let optimizer_buffers = OptimizerState::buffers(training);
        let snapshots = training.save_interval.is_some() || training.on_non_finite == OnNonFinite::RollBack;
        let evaluation_tokens = training.batch_size.saturating_mul(training.sequence_length);
        Ok(Self {
            parameters: buffer,
            gradients: buffer.saturating_mul(shards),
            optimizer_state: buffer.saturating_mul(optimizer_buffers),
            snapshot: if snapshots { buffer.saturating_mul(1 + optimizer_buffers) } else { 0 },
            activations: rooms.activations.bytes(),
            scratch: rooms.scratch.bytes().saturating_add(evaluation_tokens.saturating_mul(2 * size_of::<u32>())),
        })
    }

    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> usize {
        let Self { parameters, gradients, optimizer_state, snapshot, activations, scratch } = *self;
        [parameters, gradients, optimizer_state, snapshot, activations, scratch]
            .iter()
            .fold(0, |sum, &part| sum.saturating_add(part))
    }
}
