//! One role's values (parameters, gradients, a moment) for every parameter of a layout.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{AlignedBuffer, ParameterId, ParameterLayout};

/// The values of a range of a store, in which whole parameters lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParameterView<'a> {
    values: &'a [f32],
    start: usize,
}

impl<'a> ParameterView<'a> {
    /// The `values` that a store has from `start` on.
    pub fn new(values: &'a [f32], start: usize) -> Self {
        Self { values, start }
    }

    /// A parameter's values.
    ///
    /// # Panics
    /// If it does not lie in the range.
    pub fn slice(self, id: ParameterId) -> &'a [f32] {
        let Range { start, end } = id.range();
        &self.values[start - self.start..end - self.start]
    }

    /// A parameter as a matrix; a vector is one row.
    ///
    /// # Panics
    /// As [`slice`](Self::slice).
    pub fn matrix(self, id: ParameterId) -> ArrayView2<'a, f32> {
        ArrayView2::from_shape((id.rows, id.columns), self.slice(id)).expect("an id has its slice's length")
    }
}

/// A flat, aligned buffer with views by [`ParameterId`].
///
/// Elementwise passes (the optimizer, norms, reductions) run over the flat slice; the zeros between parameters stay
/// zero under all of them.
#[derive(Clone, Debug)]
pub struct ParameterStore {
    values: AlignedBuffer,
}

impl ParameterStore {
    /// Zeros for every parameter of `layout`.
    #[must_use]
    pub fn zeros(layout: &ParameterLayout) -> Self {
        Self { values: AlignedBuffer::zeros(layout.buffer_length()) }
    }

    /// All values, in the layout's order.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, in the layout's order.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(crate) fn view(&self) -> ParameterView<'_> {
        ParameterView::new(&self.values, 0)
    }

    /// A parameter's values.
    #[must_use]
    pub fn slice(&self, id: ParameterId) -> &[f32] {
        self.view().slice(id)
    }

    /// A parameter's values.
    pub fn slice_mut(&mut self, id: ParameterId) -> &mut [f32] {
        &mut self.values[id.range()]
    }

    /// A parameter as a matrix; a vector is one row.
    #[must_use]
    pub fn matrix(&self, id: ParameterId) -> ArrayView2<'_, f32> {
        self.view().matrix(id)
    }

    /// A parameter as a matrix; a vector is one row.
    pub fn matrix_mut(&mut self, id: ParameterId) -> ArrayViewMut2<'_, f32> {
        ArrayViewMut2::from_shape((id.rows, id.columns), self.slice_mut(id)).expect("an id has its slice's length")
    }

    /// Two different parameters at once, such as a gain and its bias.
    ///
    /// # Panics
    /// If the ids are the same.
    pub fn pair_mut(&mut self, first: ParameterId, second: ParameterId) -> (&mut [f32], &mut [f32]) {
        let [first, second] =
            self.values.get_disjoint_mut([first.range(), second.range()]).expect("the ids are different parameters");
        (first, second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Initialisation;

    #[test]
    fn views_address_the_flat_buffer() {
        let mut layout = ParameterLayout::default();
        let weight = layout.matrix("weight", 2, 3, Initialisation::Zeros);
        let bias = layout.vector("bias", 3, Initialisation::Zeros);
        let mut store = ParameterStore::zeros(&layout);
        store.matrix_mut(weight)[[1, 2]] = 4.0;
        let (weights, biases) = store.pair_mut(weight, bias);
        weights[0] = 1.0;
        biases[1] = 2.0;
        assert_eq!(store.slice(weight), [1.0, 0.0, 0.0, 0.0, 0.0, 4.0]);
        assert_eq!(store.matrix(bias), ndarray::array![[0.0, 2.0, 0.0]]);
        assert_eq!(store.values()[17], 2.0);
    }

    #[test]
    #[should_panic(expected = "different parameters")]
    fn the_same_parameter_twice_panics() {
        let mut layout = ParameterLayout::default();
        let bias = layout.vector("bias", 3, Initialisation::Zeros);
        let _ = ParameterStore::zeros(&layout).pair_mut(bias, bias);
    }
}
