//! A batch of token sequences and their targets.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::{Error, Result};

/// Input tokens and target tokens of `sequences` × `sequence_length` positions, one sequence a row.
///
/// For a language model the target of a position is the token that follows it. Token ids are checked against the
/// vocabulary by whoever takes the batch, since a batch does not know the model.
///
/// ```
/// use cllm::data::Batch;
/// use ndarray::array;
/// let batch = Batch::new(array![[5, 6, 7], [1, 2, 3]], array![[6, 7, 8], [2, 3, 4]])?;
/// assert_eq!((batch.sequences(), batch.sequence_length()), (2, 3));
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    // Both in row-major order, so that a row is a slice.
    inputs: Array2<u32>,
    targets: Array2<u32>,
}

impl Batch {
    /// A batch of the given inputs and targets, both [sequences, positions].
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ or have no element.
    pub fn new(inputs: Array2<u32>, targets: Array2<u32>) -> Result<Self> {
        let shape_error = |what: &str, expected: &[usize], found: &[usize]| {
            Err(Error::Shape { what: what.into(), expected: expected.to_vec(), found: found.to_vec() })
        };
        if inputs.is_empty() {
            let at_least = [inputs.nrows().max(1), inputs.ncols().max(1)];
            return shape_error("batch inputs (at least)", &at_least, inputs.shape());
        }
        if inputs.shape() != targets.shape() {
            return shape_error("batch targets", inputs.shape(), targets.shape());
        }
        Ok(Self { inputs: row_major(inputs), targets: row_major(targets) })
    }

    /// A batch of zeros, to be filled.
    ///
    /// # Panics
    /// If `sequences` or `sequence_length` is 0.
    #[must_use]
    #[track_caller]
    pub fn zeros(sequences: usize, sequence_length: usize) -> Self {
        assert!(sequences > 0 && sequence_length > 0, "an empty batch: {sequences} × {sequence_length}");
        let shape = (sequences, sequence_length);
        Self { inputs: Array2::zeros(shape), targets: Array2::zeros(shape) }
    }

    /// The input tokens, [sequences, positions].
    #[must_use]
    pub fn inputs(&self) -> ArrayView2<'_, u32> {
        self.inputs.view()
    }

    /// The target tokens, [sequences, positions].
    #[must_use]
    pub fn targets(&self) -> ArrayView2<'_, u32> {
        self.targets.view()
    }

    /// The input tokens, to be overwritten.
    pub fn inputs_mut(&mut self) -> ArrayViewMut2<'_, u32> {
        self.inputs.view_mut()
    }

    /// The target tokens, to be overwritten.
    pub fn targets_mut(&mut self) -> ArrayViewMut2<'_, u32> {
        self.targets.view_mut()
    }

    /// Number of sequences: rows.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.inputs.nrows()
    }

    /// Positions in a sequence: columns.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.inputs.ncols()
    }

    /// The input tokens of some sequences, one after the other.
    pub(crate) fn input_rows(&self, sequences: Range<usize>) -> &[u32] {
        rows(&self.inputs, sequences)
    }

    /// The target tokens of some sequences, one after the other.
    pub(crate) fn target_rows(&self, sequences: Range<usize>) -> &[u32] {
        rows(&self.targets, sequences)
    }

    /// The input and target slices of every sequence, in order.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = (&mut [u32], &mut [u32])> {
        let length = self.sequence_length();
        let inputs = self.inputs.as_slice_mut().expect("row-major").chunks_exact_mut(length);
        inputs.zip(self.targets.as_slice_mut().expect("row-major").chunks_exact_mut(length))
    }
}

fn rows(tokens: &Array2<u32>, sequences: Range<usize>) -> &[u32] {
    let length = tokens.ncols();
    &tokens.as_slice().expect("row-major")[sequences.start * length..sequences.end * length]
}

fn row_major(array: Array2<u32>) -> Array2<u32> {
    if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn shapes_that_differ_or_are_empty_are_refused() {
        let error = Batch::new(array![[1, 2]], array![[1], [2]]).unwrap_err();
        assert!(matches!(&error, Error::Shape { expected, found, .. } if expected == &[1, 2] && found == &[2, 1]));
        let error = Batch::new(Array2::zeros((3, 0)), Array2::zeros((3, 0))).unwrap_err();
        assert!(matches!(&error, Error::Shape { expected, found, .. } if expected == &[3, 1] && found == &[3, 0]));
    }

    #[test]
    fn column_major_arrays_keep_their_meaning() {
        let columns = array![[1, 2, 3], [4, 5, 6]].reversed_axes();
        let mut batch = Batch::new(columns.clone(), columns.clone()).unwrap();
        assert_eq!(batch.inputs(), columns);
        let rows: Vec<_> = batch.rows_mut().map(|(inputs, _)| inputs.to_vec()).collect();
        assert_eq!(rows, [[1, 4], [2, 5], [3, 6]]);
    }

    #[test]
    #[should_panic(expected = "an empty batch: 0 × 4")]
    fn zeros_of_nothing_panics() {
        let _ = Batch::zeros(0, 4);
    }
}
