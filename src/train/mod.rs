//! Training: a trainer, its workers, evaluation, and the progress it reports.
//!
//! A batch is cut into micro-batches of `batch_size` sequences, and each of these over the workers in one of two ways
//! (see [`Sharding`](crate::config::Sharding)): whole sequences to each worker, or every operation to all of them. The
//! gradients are reduced in a fixed order, so a run is bit-identical for a given number of workers, build and machine.

mod checkpointing;
mod engine;
mod memory_plan;
mod pair_checkpointing;
mod pair_trainer;
mod recovery;
mod reduction;
mod report;
mod run_data;
mod shard;
mod trainer;
mod word_checkpointing;
mod word_round;
mod word_shared;
mod word_trainer;
mod word_watch;
mod word_worker;

pub use checkpointing::ResumeOptions;
pub use memory_plan::MemoryPlan;
pub use pair_trainer::{PairProgress, PairReport, PairSummary, PairTrainer};
pub use report::{BatchLoss, Evaluation, Progress, StepOutcome, StepReport};
pub use trainer::{RunSummary, Trainer};
pub use word_trainer::{WordProgress, WordSummary, WordTrainer};
