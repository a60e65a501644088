//! The update of the rows that a batch touched, each as its gradient is summed.

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::{PairEncoder, PairWorkspace};
use crate::kernels::adamw::AdamwStep;
use crate::kernels::elementwise::{dot, scale};
use crate::optim::row_sparse::{RowSparseAdamw, TableAndMoments, next_update, update_row};
use crate::parallel::Parallelism;
use crate::params::{ParameterId, ParameterStore};

/// Columns whose gradient is summed and applied together, on the stack.
const BLOCK: usize = 1024;

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
            let mut buffer = [0.0; BLOCK];
            for index in range {
                workspace.prefetch_gradient_of(index + 1);
                let row = (distinct.ids()[index] - first) as usize;
                let step = next_update(&mut updates[row], step);
                let weight = weights.as_ref().map(|(weights, ..)| weights[[row, 0]]);
                let d_weight = update_vector(&mut vectors, row, weight, (workspace, index), &mut buffer, &step);
                if let Some(weights) = &mut weights {
                    update_row(weights, &[d_weight], (row, 0), &AdamwStep { weight_decay: 0.0, ..step });
                }
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

/// Updates a row of vectors; returns the gradient of its weight.
fn update_vector(
    vectors: &mut TableAndMoments<'_>,
    row: usize,
    weight: Option<f32>,
    (workspace, index): (&PairWorkspace, usize),
    buffer: &mut [f32; BLOCK],
    step: &AdamwStep,
) -> f32 {
    let width = vectors.0.ncols();
    let mut d_weight = 0.0;
    for start in (0..width).step_by(BLOCK) {
        let columns = start..width.min(start + BLOCK);
        let gradient = &mut buffer[..columns.len()];
        workspace.gradient_of(index, columns.clone(), gradient);
        if let Some(weight) = weight {
            let vector = vectors.0.row(row).to_slice().expect("rows are contiguous");
            d_weight += dot(&vector[columns], gradient);
            scale(gradient, weight);
        }
        update_row(vectors, gradient, (row, start), step);
    }
    d_weight
}
