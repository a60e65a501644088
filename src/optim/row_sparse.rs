//! AdamW on the rows of a table that a batch touched.

use ndarray::ArrayViewMut2;

use crate::kernels::adamw::{AdamwStep, adamw};
use crate::kernels::gathered::gathered_adamw;
use crate::params::{ParameterLayout, ParameterStore};

/// The moments of tables whose rows are updated together, and how often each row was.
///
/// A row that a step does not touch stays as it is, and so do its moments: neither do they decay, nor does the row move on
/// by them, nor is its weight decayed. For each row that is AdamW on the steps that touched it, with the bias corrections
/// of its own number of updates, so that a rare row's first update is as long as any row's. (PyTorch's `SparseAdam` is
/// lazy in the same way, but corrects by the number of all steps; its dense `AdamW` goes on moving rows without a
/// gradient.) The work of a step, and what it reads and writes, is in proportion to the rows it touches.
#[derive(Clone, Debug)]
pub(crate) struct RowSparseAdamw {
    pub first_moments: ParameterStore,
    pub second_moments: ParameterStore,
    pub updates: Vec<u32>,
}

/// A table, its first and its second moments, which are cut between rows together.
pub(crate) type TableAndMoments<'a> = (ArrayViewMut2<'a, f32>, ArrayViewMut2<'a, f32>, ArrayViewMut2<'a, f32>);

impl RowSparseAdamw {
    /// Moments of 0 for the parameters of `layout`, tables of as many rows each.
    pub fn new(layout: &ParameterLayout, rows: usize) -> Self {
        let zeros = || ParameterStore::zeros(layout);
        Self { first_moments: zeros(), second_moments: zeros(), updates: vec![0; rows] }
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

/// Updates row `row` by its gradient.
pub(crate) fn update_row(table: &mut TableAndMoments<'_>, row: usize, gradient: &[f32], step: &AdamwStep) {
    let [parameters, first, second] = rows(table, row);
    adamw(parameters, gradient, first, second, step);
}

/// Updates row `row` by the sum of some rows of gradients, as [`gathered_adamw`].
pub(crate) fn update_row_gathered(
    table: &mut TableAndMoments<'_>,
    row: usize,
    (gradients, gradient_rows): (&[f32], &[u32]),
    step: &AdamwStep,
) -> f32 {
    let [parameters, first, second] = rows(table, row);
    gathered_adamw(parameters, first, second, gradients, gradient_rows, step)
}

fn rows<'a>((table, first, second): &'a mut TableAndMoments<'_>, row: usize) -> [&'a mut [f32]; 3] {
    [table, first, second].map(|values| values.row_mut(row).into_slice().expect("rows are contiguous"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Initialisation;

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
        let mut layout = ParameterLayout::default();
        let id = layout.matrix("table", 3, 2, Initialisation::Ones);
        let mut sparse = RowSparseAdamw::new(&layout, 3);
        let mut table = ParameterStore::zeros(&layout);
        table.slice_mut(id).fill(1.0);
        let (mut p, mut m, mut v) = ([1.0f32; 2], [0.0; 2], [0.0; 2]);
        for touch in 1..6 {
            let gradient = [0.3 * touch as f32, -1.0];
            let step = next_update(&mut sparse.updates[1], &STEP);
            let (first, second) = (&mut sparse.first_moments, &mut sparse.second_moments);
            let mut part = (table.matrix_mut(id), first.matrix_mut(id), second.matrix_mut(id));
            if touch % 2 == 0 {
                update_row(&mut part, 1, &gradient, &step);
            } else {
                update_row_gathered(&mut part, 1, (&[9.0, 9.0, gradient[0], 0.0, 0.0, gradient[1]], &[1, 2]), &step);
            }
            let corrected = AdamwStep {
                bias_correction1: 1.0 - 0.9f64.powi(touch),
                bias_correction2: 1.0 - 0.99f64.powi(touch),
                ..STEP
            };
            adamw(&mut p, &gradient, &mut m, &mut v, &corrected);
            assert_eq!(table.slice(id), [1.0, 1.0, p[0], p[1], 1.0, 1.0]);
        }
        assert_eq!(sparse.updates, [0, 5, 0]);
        assert_eq!(sparse.first_moments.slice(id)[..2], [0.0; 2]);
    }
}
