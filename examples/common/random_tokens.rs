//! Random tokens, to measure speed on.

use cllm::rng::{Purpose, Stream};

/// `count` tokens below `vocabulary`.
pub fn random_tokens(count: u64, vocabulary: usize) -> Vec<u32> {
    let stream = Stream::new(7, Purpose::Caller, 0);
    (0..count).map(|place| stream.below(place, vocabulary as u64) as u32).collect()
}
