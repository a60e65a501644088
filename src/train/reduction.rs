//! Sums of worker gradients, and the norm of the result, in one pass and in a fixed order.

use rayon::prelude::*;

use super::shard::Shard;
use crate::kernels::elementwise::add_assign;
use crate::kernels::reduce::{add_and_squared_norm, squared_norm};
use crate::params::CHUNK;

/// Adds the gradients of the shards after the first to the first's, and returns the Euclidean norm of the sum.
///
/// Shards are added in order within each chunk, and the chunks' norms in order, so the result does not depend on which
/// thread takes which chunk. A single shard may know the norms of chunks already, which are not read again.
pub(super) fn reduce(shards: &mut [Shard]) -> f64 {
    let (first, others) = shards.split_first_mut().expect("a trainer has a shard");
    if !first.has_gradients {
        first.gradients.values_mut().fill(0.0);
        first.has_gradients = true;
        first.norms.forget();
    }
    let others = &*others;
    let chunks = first.gradients.values_mut().par_chunks_mut(CHUNK).zip(first.norms.places().par_iter_mut());
    let unknown = chunks.enumerate().filter(|(_, (_, norm))| norm.is_nan());
    unknown.for_each(|(chunk, (sum, norm))| {
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
    first.norms.norm()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::config::{Sharding, TrainingConfig, TransformerConfig};
    use crate::data::Batch;
    use crate::models::transformer::Transformer;
    use crate::train::Trainer;

    /// A table of more than one part, whose rows are gathered at both ends and in the middle; one micro-batch and several;
    /// scores in one piece and, beyond 256 rows, in several.
    #[test]
    fn the_norm_is_that_of_the_gradient_in_every_sharding() {
        let model = TransformerConfig {
            vocabulary_size: 40_000,
            context: 150,
            dim: 64,
            heads: 2,
            layers: 1,
            feed_forward: 256,
            ..Default::default()
        };
        for (sequences, sequence_length) in [(2, 8), (5, 8), (2, 150)] {
            let mut rests = Vec::new();
            for sharding in [Sharding::Operations, Sharding::Sequences] {
                for workers in [1, 2] {
                    let training = TrainingConfig {
                        batch_size: 2,
                        sequence_length,
                        workers,
                        sharding,
                        scores_budget: 1,
                        ..Default::default()
                    };
                    let mut trainer = Trainer::new(Transformer::new(model.clone(), 1).unwrap(), training).unwrap();
                    let ids = [0, 39_999, 20_000, 7, 300, 301, 39_000];
                    let tokens = Array2::from_shape_fn((sequences, sequence_length), |(i, j)| ids[(i + j) % ids.len()]);
                    let batch = Batch::new(tokens.clone(), tokens).unwrap();
                    for step in 0..2 {
                        let found = trainer.compute_gradients(&batch).unwrap().gradient_norm;
                        let values = trainer.engine.gradients().values();
                        let chunks = values.chunks(CHUNK).map(squared_norm);
                        let case = format!(
                            "{sharding:?}, {workers} workers, {sequences} × {sequence_length} tokens, step {step}"
                        );
                        assert_eq!(found, chunks.sum::<f64>().sqrt(), "{case}");
                        // Rows of the table that are not gathered, whose chunks are taken before the reduction.
                        rests.push(squared_norm(&values[1000 * model.dim..19_000 * model.dim]));
                    }
                }
            }
            assert!(rests.iter().all(|rest| (rest / rests[0] - 1.0).abs() < 1e-4), "{rests:?}");
        }
    }
}
