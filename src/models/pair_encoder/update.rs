//! The update of the rows that a batch touched, each as its gradient is summed.

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::{PairEncoder, PairWorkspace};
use crate::kernels::adamw::AdamwStep;
use crate::optim::row_sparse::{RowSparseAdamw, TableAndMoments, next_update, update_row, update_row_gathered};
use crate::parallel::Parallelism;
use crate::params::{ParameterId, ParameterStore};

impl PairEncoder {
    /// Moments for every parameter, as before the first update.
    pub(crate) fn optimizer(&self) -> RowSparseAdamw {
        RowSparseAdamw::new(&self.layout, self.config.vocabulary_size)
    }

    /// Updates the rows of the batch by the gradient in `workspace`. The bias corrections in `step` are each row's own
    /// instead; its weight decay is for vectors only.
    pub(crate) fn update(
        &mut self,
        optimizer: &mut RowSparseAdamw,
        workspace: &PairWorkspace,
        step: &AdamwStep,
        parallelism: Parallelism,
    ) {
        let RowSparseAdamw { first_moments, second_moments, updates } = optimizer;
        let ids = (self.vectors, self.token_weights);
        let shape = (self.config.vocabulary_size, self.config.dim);
        let [table, first, second] =
            [&mut self.parameters, first_moments, second_moments].map(|store| tables(store, ids, shape));
        let vectors = (table.0, first.0, second.0);
        let weights = table.1.zip(first.1).zip(second.1).map(|((table, first), second)| (table, first, second));
        let distinct = workspace.distinct();
        let work = |range: Range<usize>, first: u32, (mut vectors, mut weights, updates): Part<'_>| {
            for index in range {
                let row = (distinct.ids()[index] - first) as usize;
                let step = next_update(&mut updates[row], step);
                let gradient = workspace.gradient_of(index);
                let Some(weights) = &mut weights else {
                    update_row_gathered(&mut vectors, row, gradient, &step);
                    continue;
                };
                // A text's sum has the vector times its weight.
                let weight = f64::from(weights.0[[row, 0]]);
                let of_vector = AdamwStep { gradient_scale: weight * step.gradient_scale, ..step };
                let d_weight = update_row_gathered(&mut vectors, row, gradient, &of_vector);
                update_row(weights, row, &[d_weight], &AdamwStep { weight_decay: 0.0, ..step });
            }
        };
        distinct.for_parts_of_table(parallelism, (vectors, weights, &mut updates[..]), &work);
    }
}

/// Vectors, token weights, numbers of updates.
type Part<'a> = (TableAndMoments<'a>, Option<TableAndMoments<'a>>, &'a mut [u32]);

/// What `store` has for the vectors, V × C, and for the token weights, V × 1.
fn tables<'a>(
    store: &'a mut ParameterStore,
    (vectors, weights): (ParameterId, Option<ParameterId>),
    (rows, width): (usize, usize),
) -> (ArrayViewMut2<'a, f32>, Option<ArrayViewMut2<'a, f32>>) {
    let view = |values: &'a mut [f32], width: usize| {
        ArrayViewMut2::from_shape((rows, width), values).expect("a row for each token")
    };
    match weights {
        None => (view(store.slice_mut(vectors), width), None),
        Some(weights) => {
            let (vectors, weights) = store.pair_mut(vectors, weights);
            (view(vectors, width), Some(view(weights, 1)))
        }
    }
}
