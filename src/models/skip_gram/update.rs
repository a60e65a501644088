//! What a block has to add to the rows of the tables.

use super::row_set::TableName;
use super::rows::NO_ROW;
use super::subwords::Subwords;
use crate::params::AlignedBuffer;

/// The words of a block, and the gradients of their vectors: rows of `dim` values, `stride` apart.
#[derive(Debug)]
pub(crate) struct BlockGradient<'a> {
    /// Words whose vectors the input table has or, with subwords, makes.
    inputs: Vec<u32>,
    outputs: Vec<u32>,
    negatives: Vec<u32>,
    pub d_input: AlignedBuffer,
    pub d_output: AlignedBuffer,
    pub d_negatives: AlignedBuffer,
    subwords: Option<&'a Subwords>,
    stride: usize,
    dim: usize,
}

impl<'a> BlockGradient<'a> {
    /// Room for as many rows as `rows` says of inputs, outputs and negatives.
    pub fn new(rows: [usize; 3], subwords: Option<&'a Subwords>, stride: usize, dim: usize) -> Self {
        let [inputs, outputs, negatives] = rows.map(Vec::with_capacity);
        let [d_input, d_output, d_negatives] = rows.map(|count| AlignedBuffer::zeros(count * stride));
        Self { inputs, outputs, negatives, d_input, d_output, d_negatives, subwords, stride, dim }
    }

    /// The words that rows belong to from now on; rows beyond them count for nothing.
    ///
    /// For CBOW, as in word2vec.c, every word of a window takes the whole gradient of the mean, not its share of it.
    pub fn set_words(&mut self, inputs: &[u32], outputs: &[u32], negatives: &[u32]) {
        for (words, new) in [(&mut self.inputs, inputs), (&mut self.outputs, outputs), (&mut self.negatives, negatives)]
        {
            words.clear();
            words.extend_from_slice(new);
        }
    }

    /// Calls `each(table, row, gradient)` for every row of a table that the block updates, in an order that is its own.
    pub fn for_each(&self, mut each: impl FnMut(TableName, u32, &[f32])) {
        match self.subwords {
            None => self.rows(&self.inputs, &self.d_input, |row, gradient| each(TableName::Input, row, gradient)),
            Some(subwords) => self.rows(&self.inputs, &self.d_input, |word, gradient| {
                subwords.of_word(word).iter().for_each(|&row| each(TableName::Input, row, gradient));
            }),
        }
        for (words, gradients) in [(&self.outputs, &self.d_output), (&self.negatives, &self.d_negatives)] {
            self.rows(words, gradients, |row, gradient| each(TableName::Output, row, gradient));
        }
    }

    fn rows(&self, words: &[u32], gradients: &[f32], mut each: impl FnMut(u32, &[f32])) {
        for (&word, gradient) in words.iter().zip(gradients.chunks_exact(self.stride)) {
            if word != NO_ROW {
                each(word, &gradient[..self.dim]);
            }
        }
    }
}
