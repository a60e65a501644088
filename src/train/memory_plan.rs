//! The memory of a trainer, known before it is built.

use super::shard::Shard;
use super::trainer::check;
use crate::Result;
use crate::config::{OnNonFinite, TrainingConfig, TransformerConfig};
use crate::linalg::gemm::panel_bytes;
use crate::memory::Room;
use crate::models::transformer::{Rooms, layout};
use crate::optim::OptimizerState;

/// The memory that a trainer and its model take, in bytes.
///
/// The sizes come from the code that allocates the buffers, told to measure them instead; only `runtime` is an estimate.
/// The tokens to train on, and batches of the caller's own, come on top.
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
    /// About what the first steps bring into memory besides: code, the stacks of the workers, BLAS's copies of blocks of
    /// its operands. 1 MiB, and half a MiB a worker, as measured with OpenBLAS.
    pub runtime: usize,
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
        let optimizer_buffers = OptimizerState::buffers(training);
        let snapshots = training.save_interval.is_some() || training.on_non_finite == OnNonFinite::RollBack;
        let evaluation_tokens = training.batch_size.saturating_mul(training.sequence_length);
        let evaluation_batch = evaluation_tokens.saturating_mul(2 * size_of::<u32>());
        // The thread that builds the trainer has one too: it checks BLAS.
        let panels = panel_bytes().saturating_mul(training.workers + 1);
        Ok(Self {
            parameters: buffer,
            gradients: buffer.saturating_mul(shards),
            optimizer_state: buffer.saturating_mul(optimizer_buffers),
            snapshot: if snapshots { buffer.saturating_mul(1 + optimizer_buffers) } else { 0 },
            activations: rooms.activations.bytes(),
            scratch: rooms.scratch.bytes().saturating_add(evaluation_batch).saturating_add(panels),
            runtime: (2 + training.workers) << 19,
        })
    }

    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> usize {
        let Self { parameters, gradients, optimizer_state, snapshot, activations, scratch, runtime } = *self;
        let parts = [parameters, gradients, optimizer_state, snapshot, activations, scratch, runtime];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_beyond_every_machine_is_still_a_plan() {
        let model = TransformerConfig { layers: 16_000, dim: 1 << 20, context: 1 << 20, ..Default::default() };
        let training =
            TrainingConfig { batch_size: 1 << 20, sequence_length: 1 << 20, workers: 512, ..Default::default() };
        let plan = MemoryPlan::of(&model, &training).unwrap();
        assert!(plan.parameters > 1 << 50 && plan.activations > 1 << 60, "{plan:?}");
    }

    #[test]
    fn settings_that_no_trainer_takes_have_no_plan() {
        let training = TrainingConfig { sequence_length: 65, ..Default::default() };
        assert!(MemoryPlan::of(&TransformerConfig::default(), &training).is_err());
        let model = TransformerConfig { heads: 5, ..Default::default() };
        assert!(MemoryPlan::of(&model, &TrainingConfig::default()).is_err());
    }
}
