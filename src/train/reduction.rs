//! Sums of worker gradients, and the norm of the result, in one pass and in a fixed order.

use rayon::prelude::*;

use super::shard::Shard;
use crate::kernels::elementwise::add_assign;
use crate::kernels::reduce::{add_and_squared_norm, squared_norm};
use crate::params::{CHUNK, ParameterLayout};

/// Adds the gradients of the shards after the first to the first's, and returns the Euclidean norm of the sum.
///
/// Shards are added in order within each chunk, and the chunks' norms in order, so the result does not depend on which
/// thread takes which chunk. A single shard may know the norms of parameters already, which are not read again.
pub(super) fn reduce(shards: &mut [Shard], layout: &ParameterLayout) -> f64 {
    let (first, others) = shards.split_first_mut().expect("a trainer has a shard");
    if !first.has_gradients {
        first.gradients.values_mut().fill(0.0);
        first.has_gradients = true;
        first.norms.forget();
    }
    let others = &*others;
    let (known, places) = first.norms.places();
    let chunks = first.gradients.values_mut().par_chunks_mut(CHUNK).zip(places);
    chunks.enumerate().for_each(|(chunk, (sums, norm))| {
        let start = chunk * CHUNK;
        *norm = if others.is_empty() {
            let parts = layout.parts_of(start..start + sums.len());
            parts.filter(|(_, spec)| known[spec.id.index()].is_nan()).map(|(part, _)| squared_norm(&sums[part])).sum()
        } else {
            add_others(sums, start, others)
        };
    });
    first.norms.norm()
}

/// Adds to `sums`, which begin at `start` in the buffer, the gradients of `others`; returns the squared norm.
fn add_others(sums: &mut [f32], start: usize, others: &[Shard]) -> f64 {
    let range = start..start + sums.len();
    let with_gradients = others.iter().filter(|shard| shard.has_gradients);
    let mut parts = with_gradients.map(|shard| &shard.gradients.values()[range.clone()]).peekable();
    loop {
        match parts.next() {
            None => return squared_norm(sums),
            Some(last) if parts.peek().is_none() => return add_and_squared_norm(sums, last),
            Some(part) => add_assign(sums, part),
        }
    }
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
                        let case = format!(
                            "{sharding:?}, {workers} workers, {sequences} × {sequence_length} tokens, step {step}"
                        );
                        let exact = squared_norm(values).sqrt();
                        assert!((found - exact).abs() < 2e-6 * exact, "{case}: {found} for {exact}");
                        // Rows of the table that are not gathered.
                        rests.push(squared_norm(&values[1000 * model.dim..19_000 * model.dim]));
                    }
                }
            }
            assert!(rests.iter().all(|rest| (rest / rests[0] - 1.0).abs() < 1e-4), "{rests:?}");
        }
    }
}
