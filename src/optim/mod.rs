//! Optimizers: the learning rate's schedule, and the update of all parameters in one pass over memory.

pub(crate) mod row_sparse;
pub mod schedule;
mod state;
mod update;

pub use schedule::LearningRate;
pub(crate) use state::OptimizerState;
pub(crate) use update::{PendingUpdate, Update};
