//! The linear layer: y = x·W + b, with W `inputs × outputs` as GPT-2 stores it.
//!
//! Backward: dx = dy·Wᵀ, dW = xᵀ·dy, db = the column sums of dy.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::slice;
use crate::kernels::elementwise::sum_rows;
use crate::linalg::{Write, affine, gemm, gemm_and_norm};
use crate::parallel::Parallelism;

/// y ← x·W + b.
pub fn forward(
    x: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    bias: &[f32],
    y: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    affine(x, weight, bias, None, y, parallelism);
}

/// y ← residual + x·W + b: a projection back onto the residual stream.
pub fn forward_residual(
    x: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    bias: &[f32],
    residual: ArrayView2<'_, f32>,
    y: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) {
    affine(x, weight, bias, Some(residual), y, parallelism);
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

/// As [`backward_weight`]; returns the sum of the squares of dW, as [`gemm_and_norm`] takes it.
pub fn backward_weight_and_norm(
    x: ArrayView2<'_, f32>,
    dy: ArrayView2<'_, f32>,
    dweight: ArrayViewMut2<'_, f32>,
    write: Write,
    parallelism: Parallelism,
) -> f64 {
    gemm_and_norm(x.t(), dy, write, dweight, parallelism)
}

/// db ← the column sums of dy, or added.
pub fn backward_bias(dy: ArrayView2<'_, f32>, dbias: &mut [f32], write: Write) {
    sum_rows(slice(&dy), dbias, write == Write::Add);
}
