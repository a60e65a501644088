//! The feed-forward's activation: GELU in its tanh form (Hendrycks and Gimpel, 2016),
//! gelu(u) = ½·u·(1 + tanh(√(2/π)·(u + 0.044715·u³))).
//!
//! The forward leaves gelu'(u) where u was, so the backward is one product and no tanh is computed twice.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{slice, slice_mut};
use crate::kernels;
use crate::parallel::{Parallelism, for_rows};

/// y ← gelu(u), u ← gelu'(u).
pub fn activate(u: ArrayViewMut2<'_, f32>, y: ArrayViewMut2<'_, f32>, parallelism: Parallelism) {
    for_rows(parallelism, u.nrows(), (u, y), &|(mut u, mut y)| {
        kernels::gelu::gelu_with_derivative(slice_mut(&mut u), slice_mut(&mut y));
    });
}

/// dy ← dy·gelu'(u), the gradient of u.
pub fn activate_backward(derivative: ArrayView2<'_, f32>, dy: ArrayViewMut2<'_, f32>, parallelism: Parallelism) {
    for_rows(parallelism, derivative.nrows(), (derivative, dy), &|(derivative, mut dy)| {
        kernels::elementwise::multiply_assign(slice_mut(&mut dy), slice(&derivative));
    });
}
