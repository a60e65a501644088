//! Token and position embedding: `x[b·T + t] = tokens[id(b, t)] + positions[t]`.
//!
//! The gather writes straight into the first buffer of the residual stream, which is the batch's persistent cache of
//! input embeddings: allocated once, refilled each step.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::kernels::elementwise::add_assign;
use crate::kernels::reduce::squared_norm;

/// x ← the embedded `ids`, sequences of `sequence_length` tokens one after the other.
///
/// # Panics
/// If an id or a position exceeds its table.
pub fn forward(
    ids: &[u32],
    sequence_length: usize,
    tokens: ArrayView2<'_, f32>,
    positions: ArrayView2<'_, f32>,
    mut x: ArrayViewMut2<'_, f32>,
) {
    assert_eq!(ids.len(), x.nrows(), "one id a row");
    for (&id, mut x) in ids.iter().zip(x.rows_mut()) {
        x.assign(&tokens.row(id as usize));
    }
    add_positions(sequence_length, positions, x);
}

/// Adds the embedded positions to x, where the tokens' rows are already.
pub fn add_positions(sequence_length: usize, positions: ArrayView2<'_, f32>, mut x: ArrayViewMut2<'_, f32>) {
    for (index, mut x) in x.rows_mut().into_iter().enumerate() {
        x += &positions.row(index % sequence_length);
    }
}

/// Adds the gradient of x to the rows of the token table it was gathered from, in token order.
pub fn backward_tokens(ids: &[u32], dx: ArrayView2<'_, f32>, mut dtokens: ArrayViewMut2<'_, f32>) {
    for (&id, dx) in ids.iter().zip(dx.rows()) {
        let mut row = dtokens.row_mut(id as usize);
        let sum = row.as_slice_mut().expect("rows are contiguous");
        add_assign(sum, dx.to_slice().expect("rows are contiguous"));
    }
}

/// As [`backward_tokens`]; returns by how much the squared norm of the table's gradient grows.
pub fn backward_tokens_and_norm(ids: &[u32], dx: ArrayView2<'_, f32>, mut dtokens: ArrayViewMut2<'_, f32>) -> f64 {
    let mut difference = 0.0;
    for (&id, dx) in ids.iter().zip(dx.rows()) {
        let mut row = dtokens.row_mut(id as usize);
        let sum = row.as_slice_mut().expect("rows are contiguous");
        difference -= squared_norm(sum);
        add_assign(sum, dx.to_slice().expect("rows are contiguous"));
        difference += squared_norm(sum);
    }
    difference
}

/// Adds the gradient of x to the rows of the position table, in token order.
pub fn backward_positions(sequence_length: usize, dx: ArrayView2<'_, f32>, mut dpositions: ArrayViewMut2<'_, f32>) {
    for (index, dx) in dx.rows().into_iter().enumerate() {
        let mut sum = dpositions.row_mut(index % sequence_length);
        let sum = sum.as_slice_mut().expect("rows are contiguous");
        add_assign(sum, dx.to_slice().expect("rows are contiguous"));
    }
}
