//! The update of the rows that a batch touched, each as its gradient is summed.

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::{PairEncoder, PairWorkspace};
use crate::kernels::adamw::AdamwStep;
use crate::kernels::elementwise::{dot, scale};
use crate::optim::row_sparse::{RowMoments, RowSparseAdamw, next_update, update_row};
use crate::parallel::Parallelism;

/// Columns whose gradient is summed and applied together, on the stack.
const BLOCK: usize = 1024;

/// The moments of an encoder's parameters.
#[derive(Clone, Debug)]
pub(crate) struct PairOptimizer {
    pub vectors: RowSparseAdamw,
    pub token_weights: Option<RowSparseAdamw>,
}

type Part<'a> = (ArrayViewMut2<'a, f32>, RowMoments<'a>);

impl PairOptimizer {
    pub fn new(encoder: &PairEncoder) -> Self {
        let shape = encoder.vectors().dim();
        Self {
            vectors: RowSparseAdamw::new(shape),
            token_weights: encoder.token_weights.map(|_| RowSparseAdamw::new((shape.0, 1))),
        }
    }

    /// Updates the encoder by the gradient in `workspace`. The bias corrections in `step` are each row's own instead; its
    /// weight decay is for vectors only.
    pub fn update(
        &mut self,
        encoder: &mut PairEncoder,
        workspace: &PairWorkspace,
        step: &AdamwStep,
        parallelism: Parallelism,
    ) {
        let (rows, width) = encoder.vectors().dim();
        let (vectors, weights) = match encoder.token_weights {
            None => (encoder.parameters.slice_mut(encoder.vectors), None),
            Some(weights) => {
                let (vectors, weights) = encoder.parameters.pair_mut(encoder.vectors, weights);
                (vectors, Some(weights))
            }
        };
        let view = |values, width| ArrayViewMut2::from_shape((rows, width), values).expect("a row for each token");
        let vectors: Part<'_> = (view(vectors, width), self.vectors.rows_mut());
        let weights: Option<Part<'_>> =
            weights.map(|weights| view(weights, 1)).zip(self.token_weights.as_mut().map(RowSparseAdamw::rows_mut));
        let distinct = workspace.distinct();
        let work = |range: Range<usize>, first: u32, (mut vectors, mut weights): (Part<'_>, Option<Part<'_>>)| {
            for index in range {
                let row = (distinct.ids()[index] - first) as usize;
                let weight = weights.as_ref().map(|(weights, _)| weights[[row, 0]]);
                let d_weight = update_vector(&mut vectors, row, weight, workspace, index, step);
                if let Some((weights, moments)) = &mut weights {
                    let step = AdamwStep { weight_decay: 0.0, ..next_update(&mut moments.2[row], step) };
                    let weight = weights.row_mut(row).into_slice().expect("rows are contiguous");
                    update_row(weight, &[d_weight], moments, (row, 0), &step);
                }
            }
        };
        distinct.for_parts_of_table(parallelism, (vectors, weights), &work);
    }
}

/// Updates a row of vectors; returns the gradient of its weight.
fn update_vector(
    (vectors, moments): &mut Part<'_>,
    row: usize,
    weight: Option<f32>,
    workspace: &PairWorkspace,
    index: usize,
    step: &AdamwStep,
) -> f32 {
    let step = next_update(&mut moments.2[row], step);
    let vector = vectors.row_mut(row).into_slice().expect("rows are contiguous");
    let mut buffer = [0.0; BLOCK];
    let mut d_weight = 0.0;
    for (block, vector) in vector.chunks_mut(BLOCK).enumerate() {
        let start = block * BLOCK;
        let gradient = &mut buffer[..vector.len()];
        workspace.gradient_of(index, start..start + vector.len(), gradient);
        if let Some(weight) = weight {
            d_weight += dot(vector, gradient);
            scale(gradient, weight);
        }
        update_row(vector, gradient, moments, (row, start), &step);
    }
    d_weight
}
