//! Batches of random tokens, to measure speed on.

use cllm::data::Batch;
use cllm::rng::{Purpose, Stream};
use ndarray::Array2;

/// `sequences` × `length` inputs and targets below `vocabulary`; another batch for another `step`.
pub fn random_batch(sequences: usize, length: usize, vocabulary: usize, step: u64) -> Batch {
    let stream = Stream::new(7, Purpose::Caller, step);
    let ids = |first: usize| {
        Array2::from_shape_fn((sequences, length), |(row, column)| {
            stream.below((first + row * length + column) as u64, vocabulary as u64) as u32
        })
    };
    Batch::new(ids(0), ids(sequences * length)).expect("the shapes agree")
}
