//! Optimizers: the learning rate's schedule, and the update of all parameters in one pass over memory.

pub(crate) mod row_sparse;
pub mod schedule;
mod state;

pub use schedule::LearningRate;
pub(crate) use state::OptimizerState;
