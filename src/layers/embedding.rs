//! Token and position embedding: `x[b·T + t] = tokens[id(b, t)] + positions[t]`.
//!
//! The gather writes straight into the first buffer of the residual stream, which is the batch's persistent cache of
//! input embeddings: allocated once, refilled each step.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2};

use crate::kernels::elementwise::add_assign;

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
    for (index, (&id, mut x)) in ids.iter().zip(x.rows_mut()).enumerate() {
        x.assign(&tokens.row(id as usize));
        x += &positions.row(index % sequence_length);
    }
}

/// Adds the gradient of x to the rows of the token table it was gathered from, in token order.
pub fn backward_tokens(ids: &[u32], dx: ArrayView2<'_, f32>, mut dtokens: ArrayViewMut2<'_, f32>) {
    for (&id, dx) in ids.iter().zip(dx.rows()) {
        add_row(dtokens.row_mut(id as usize), dx);
    }
}

/// Adds the gradient of x to the rows of the position table, in token order.
pub fn backward_positions(sequence_length: usize, dx: ArrayView2<'_, f32>, mut dpositions: ArrayViewMut2<'_, f32>) {
    for (index, dx) in dx.rows().into_iter().enumerate() {
        add_row(dpositions.row_mut(index % sequence_length), dx);
    }
}

fn add_row(mut sum: ArrayViewMut1<'_, f32>, row: ArrayView1<'_, f32>) {
    let sum = sum.as_slice_mut().expect("rows are contiguous");
    add_assign(sum, row.to_slice().expect("rows are contiguous"));
}
