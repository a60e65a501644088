//! Losses. One contract: a loss takes scores, overwrites them with its gradient, and returns its value, summed in f64.

pub mod cross_entropy;
pub mod in_batch_softmax;
pub mod log_similarity;
