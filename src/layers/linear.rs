//! The linear layer: y = x·W + b, with W `inputs × outputs` as GPT-2 stores it.
//!
//! The bias rides with the product: every row of y is preset to b, and the product is added to it. BLAS would
//! otherwise spend the same pass on clearing y.
//!
//! Backward: dx = dy·Wᵀ, dW = xᵀ·dy, db = the column sums of dy.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{slice, slice_mut};
use crate::kernels::elementwise::{add_with_row, fill_rows, sum_rows};
use crate::linalg::{Write, gemm};
use crate::parallel::{Parallelism, for_rows};

/// y ← x·W + b.
pub fn forward(
    x: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    bias: &[f32],
    mut y: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    for_rows(parallelism, y.nrows(), y.view_mut(), &|mut y| fill_rows(slice_mut(&mut y), bias));
    gemm(1.0, x, weight, Write::Add, y, parallelism);
}

/// y ← residual + x·W + b: a projection back onto the residual stream.
pub fn forward_residual(
    x: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    bias: &[f32],
    residual: ArrayView2<'_, f32>,
    mut y: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    for_rows(parallelism, y.nrows(), (y.view_mut(), residual), &|(mut y, residual)| {
        add_with_row(slice_mut(&mut y), slice(&residual), bias);
    });
    gemm(1.0, x, weight, Write::Add, y, parallelism);
}

/// dx ← dy·Wᵀ.
pub fn backward_input(
    dy: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    dx: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    gemm(1.0, dy, weight.t(), Write::Replace, dx, parallelism);
}

/// dW ← xᵀ·dy, or dW ← dW + xᵀ·dy.
pub fn backward_weight(
    x: ArrayView2<'_, f32>,
    dy: ArrayView2<'_, f32>,
    dweight: ArrayViewMut2<'_, f32>,
    write: Write,
    parallelism: Parallelism,
) {
    gemm(1.0, x.t(), dy, write, dweight, parallelism);
}

/// db ← the column sums of dy, or added.
pub fn backward_bias(dy: ArrayView2<'_, f32>, dbias: &mut [f32], write: Write) {
    sum_rows(slice(&dy), dbias, write == Write::Add);
}
