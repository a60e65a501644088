//! AdamW on the rows of a table that a batch touched.

use ndarray::ArrayViewMut2;

use crate::kernels::adamw::{AdamwStep, adamw};
use crate::params::AlignedBuffer;

/// The moments of a table, and how often each of its rows was updated.
///
/// A row that a step does not touch stays as it is, and so do its moments: neither do they decay, nor does the row move on
/// by them, nor is its weight decayed. For each row that is AdamW on the steps that touched it, with the bias corrections
/// of its own number of updates, so that a rare row's first update is as long as any row's. (PyTorch's `SparseAdam` is
/// lazy in the same way, but corrects by the number of all steps; its dense `AdamW` goes on moving rows without a
/// gradient.) The work of a step, and what it reads and writes, is in proportion to the rows it touches.
#[derive(Clone, Debug)]
pub(crate) struct RowSparseAdamw {
    pub first_moments: AlignedBuffer,
    pub second_moments: AlignedBuffer,
    pub updates: Vec<u32>,
    width: usize,
}

/// What is cut between rows together with the table.
pub(crate) type RowMoments<'a> = (ArrayViewMut2<'a, f32>, ArrayViewMut2<'a, f32>, &'a mut [u32]);

impl RowSparseAdamw {
    /// Moments of 0 for a table of that shape.
    pub fn new((rows, width): (usize, usize)) -> Self {
        Self {
            first_moments: AlignedBuffer::zeros(rows * width),
            second_moments: AlignedBuffer::zeros(rows * width),
            updates: vec![0; rows],
            width,
        }
    }

    /// First moments, second moments, and numbers of updates, with a row for each of the table.
    pub fn rows_mut(&mut self) -> RowMoments<'_> {
        let shape = (self.updates.len(), self.width);
        let view = |values| ArrayViewMut2::from_shape(shape, values).expect("a row of moments for each row");
        (view(&mut self.first_moments), view(&mut self.second_moments), &mut self.updates)
    }
}

/// `step` with the bias corrections of a row's next update; counts it.
pub(crate) fn next_update(updates: &mut u32, step: &AdamwStep) -> AdamwStep {
    *updates = updates.saturating_add(1);
    let power = i32::try_from(*updates).unwrap_or(i32::MAX);
    AdamwStep {
        bias_correction1: 1.0 - step.beta1.powi(power),
        bias_correction2: 1.0 - step.beta2.powi(power),
        ..*step
    }
}

/// Updates part of row `row` of `part`, from column `column` on, by its gradient.
pub(crate) fn update_row(
    parameters: &mut [f32],
    gradient: &[f32],
    moments: &mut RowMoments<'_>,
    (row, column): (usize, usize),
    step: &AdamwStep,
) {
    let columns = column..column + gradient.len();
    let first = moments.0.row_mut(row).into_slice().expect("rows are contiguous");
    let second = moments.1.row_mut(row).into_slice().expect("rows are contiguous");
    adamw(parameters, gradient, &mut first[columns.clone()], &mut second[columns], step);
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: AdamwStep = AdamwStep {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.3,
        gradient_scale: 1.0,
        bias_correction1: f64::NAN,
        bias_correction2: f64::NAN,
    };

    #[test]
    fn a_row_is_updated_as_dense_adamw_does_with_the_steps_that_touch_it() {
        let mut sparse = RowSparseAdamw::new((3, 2));
        let mut table = vec![1.0f32; 6];
        let (mut p, mut m, mut v) = ([1.0f32; 2], [0.0; 2], [0.0; 2]);
        for touch in 1..6 {
            let gradient = [0.3 * touch as f32, -1.0];
            let (mut first, mut second, updates) = sparse.rows_mut();
            let step = next_update(&mut updates[1], &STEP);
            let mut moments = (first.view_mut(), second.view_mut(), &mut updates[..]);
            // Column by column, as a row wider than a block is.
            update_row(&mut table[2..3], &gradient[..1], &mut moments, (1, 0), &step);
            update_row(&mut table[3..4], &gradient[1..], &mut moments, (1, 1), &step);
            let corrected = AdamwStep {
                bias_correction1: 1.0 - 0.9f64.powi(touch),
                bias_correction2: 1.0 - 0.99f64.powi(touch),
                ..STEP
            };
            adamw(&mut p, &gradient, &mut m, &mut v, &corrected);
            assert_eq!(table, [1.0, 1.0, p[0], p[1], 1.0, 1.0]);
        }
        assert_eq!(sparse.updates, [0, 5, 0]);
        assert_eq!(sparse.first_moments[..2], [0.0; 2]);
    }
}
