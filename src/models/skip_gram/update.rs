//! What a block has to add to the rows of the tables.

use super::block::{Block, BlockLoss};
use super::row_set::{RowSet, TableName};
use super::rows::Racing;
use super::subwords::{Subwords, rows_of};
use crate::params::AlignedBuffer;

/// The gradients of a block's vectors: a row of `dim` values for each of its places.
#[derive(Debug)]
pub(crate) struct BlockGradient {
    /// Rows `stride` apart: of the words of the input table, of those of the output table, of the negatives.
    values: AlignedBuffer,
    /// The places where the second and the third part begin.
    starts: [usize; 2],
    stride: usize,
    dim: usize,
}

impl BlockGradient {
    /// Room for as many rows as `rows` says of inputs, outputs and negatives.
    pub fn new([inputs, outputs, negatives]: [usize; 3], stride: usize, dim: usize) -> Self {
        let values = AlignedBuffer::zeros((inputs + outputs + negatives) * stride);
        Self { values, starts: [inputs, inputs + outputs], stride, dim }
    }

    /// The rows of inputs, of outputs and of negatives.
    pub fn parts_mut(&mut self) -> [&mut [f32]; 3] {
        let (inputs, others) = self.values.split_at_mut(self.starts[0] * self.stride);
        let (outputs, negatives) = others.split_at_mut((self.starts[1] - self.starts[0]) * self.stride);
        [inputs, outputs, negatives]
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.values.len() / self.stride
    }

    /// The row of a place.
    pub fn row(&self, place: usize) -> &[f32] {
        &self.values[place * self.stride..][..self.dim]
    }
}

/// The updates of a block: those that are made at once, and those that are left pending.
#[derive(Debug)]
pub(crate) struct Updates<'a> {
    gradient: BlockGradient,
    /// What the gradient is multiplied by.
    factor: f32,
    /// Words with updates that are pending, and their places in the gradient.
    pending: Vec<(TableName, u32, usize)>,
    subwords: Option<&'a Subwords>,
}

impl<'a> Updates<'a> {
    /// Room for the updates of a block.
    pub fn new(block: &Block<'a>) -> Self {
        let gradient = block.new_gradient();
        let pending = Vec::with_capacity(gradient.places());
        Self { gradient, factor: 0.0, pending, subwords: block.subwords }
    }

    /// Overwrites the updates with those of `block`, whose gradient is to be multiplied by `factor`, and makes those of
    /// rows outside of `contested`; none, and there are no updates, if the loss is not finite.
    pub fn make(
        &mut self,
        block: &mut Block<'_>,
        factor: f32,
        contested: Option<&RowSet>,
        [input, output]: [Racing<'_>; 2],
    ) -> BlockLoss {
        let Self { gradient, pending, .. } = self;
        self.factor = factor;
        pending.clear();
        let loss = block.compute(input, output, gradient);
        if !loss.loss.is_finite() {
            return loss;
        }
        block.for_each_word(|table, word, place| {
            let values = if table == TableName::Input { input } else { output };
            let mut is_pending = false;
            for &row in rows_of(self.subwords, table, &word) {
                if contested.is_some_and(|contested| contested.may_contain(table, row)) {
                    is_pending = true;
                } else {
                    values.add(row, factor, gradient.row(place));
                }
            }
            if is_pending {
                pending.push((table, word, place));
            }
        });
        loss
    }

    /// There are none.
    pub fn clear(&mut self) {
        self.pending.clear();
    }

    /// Calls `each(table, row, factor, gradient)` for every update of a row in `contested`, which are pending.
    pub fn for_each_pending(&self, contested: &RowSet, mut each: impl FnMut(TableName, u32, f32, &[f32])) {
        for (table, word, place) in &self.pending {
            for &row in rows_of(self.subwords, *table, word) {
                if contested.may_contain(*table, row) {
                    each(*table, row, self.factor, self.gradient.row(*place));
                }
            }
        }
    }
}
