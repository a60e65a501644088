//! Layer normalisation (Ba, Kiros and Hinton, 2016): y = (x − mean) / √(variance + ε) · gain + bias, for each row.
//!
//! The forward keeps each row's mean and 1 / √(variance + ε) for the backward, which with x̂ the normalised row and
//! g = dy · gain computes dx = (g − mean(g) − x̂ · mean(g · x̂)) / √(variance + ε).

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{slice, slice_mut};
use crate::kernels;
use crate::memory::Room;
use crate::parallel::{Parallelism, for_rows};

/// What the backward needs of the forward: one value of each a row.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Mean of each row.
    pub mean: Vec<f32>,
    /// 1 / √(variance + ε) of each row.
    pub inverse_deviation: Vec<f32>,
}

impl Statistics {
    /// Room for `rows` rows.
    #[must_use]
    pub fn new(rows: usize) -> Self {
        Self::within(&Room::default(), rows)
    }

    pub(crate) fn within(room: &Room, rows: usize) -> Self {
        Self { mean: room.vector(rows), inverse_deviation: room.vector(rows) }
    }
}

/// y ← layer norm of each row of x; the first rows of `statistics` are filled.
pub fn forward(
    x: ArrayView2<'_, f32>,
    gain: &[f32],
    bias: &[f32],
    epsilon: f32,
    y: ArrayViewMut2<'_, f32>,
    statistics: &mut Statistics,
    parallelism: Parallelism,
) {
    let rows = x.nrows();
    let parts = (x, y, &mut statistics.mean[..rows], &mut statistics.inverse_deviation[..rows]);
    for_rows(parallelism, rows, parts, &|(x, mut y, mean, inverse_deviation)| {
        kernels::layer_norm::layer_norm(slice(&x), gain, bias, epsilon, slice_mut(&mut y), mean, inverse_deviation);
    });
}

/// Adds the gradient to `dx`, to `dgain` and to `dbias`: the residual stream's own gradient is already in `dx`.
pub fn backward(
    x: ArrayView2<'_, f32>,
    statistics: &Statistics,
    gain: &[f32],
    dy: ArrayView2<'_, f32>,
    mut dx: ArrayViewMut2<'_, f32>,
    dgain: &mut [f32],
    dbias: &mut [f32],
) {
    let rows = x.nrows();
    kernels::layer_norm::layer_norm_backward(
        slice(&x),
        &statistics.mean[..rows],
        &statistics.inverse_deviation[..rows],
        gain,
        slice(&dy),
        slice_mut(&mut dx),
        dgain,
        dbias,
    );
}
