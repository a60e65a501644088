//! Sums of worker gradients, and the norm of the result, in one pass and in a fixed order.

use rayon::prelude::*;

use super::shard::Shard;
use crate::kernels::elementwise::add_assign;
use crate::kernels::reduce::{add_and_squared_norm, squared_norm};
use crate::optim::CHUNK;

/// Adds the gradients of the shards after the first to the first's, and returns the Euclidean norm of the sum.
///
/// Shards are added in order within each chunk, and the chunks' norms in order, so the result does not depend on which
/// thread takes which chunk. `norms` has one place a chunk.
pub(super) fn reduce(shards: &mut [Shard], norms: &mut [f64]) -> f64 {
    let (first, others) = shards.split_first_mut().expect("a trainer has a shard");
    if !first.has_gradients {
        first.gradients.values_mut().fill(0.0);
        first.has_gradients = true;
    }
    let others = &*others;
    let chunks = first.gradients.values_mut().par_chunks_mut(CHUNK).zip(norms.par_iter_mut());
    chunks.enumerate().for_each(|(chunk, (sum, norm))| {
        let range = chunk * CHUNK..chunk * CHUNK + sum.len();
        let mut parts = others
            .iter()
            .filter(|shard| shard.has_gradients)
            .map(|shard| &shard.gradients.values()[range.clone()])
            .peekable();
        *norm = loop {
            match parts.next() {
                None => break squared_norm(sum),
                Some(last) if parts.peek().is_none() => break add_and_squared_norm(sum, last),
                Some(part) => add_assign(sum, part),
            }
        };
    });
    norms.iter().sum::<f64>().sqrt()
}
