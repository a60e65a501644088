//! What a block has to add to the rows of a table.

use std::ops::Range;

use super::rows::NO_ROW;
use super::subwords::Subwords;

/// Words, with the gradient of each word's vector.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    pub words: &'a [u32],
    /// What the vectors are made of, where they are not rows of the table.
    pub subwords: Option<&'a Subwords>,
    /// Rows of `dim` values, `stride` apart.
    pub gradients: &'a [f32],
    pub stride: usize,
    pub dim: usize,
}

impl Update<'_> {
    /// Calls `each(row, gradient)` for every row below `rows.end` from `rows.start` on, in the order of the block.
    pub fn for_each(self, rows: Range<u32>, mut each: impl FnMut(u32, &[f32])) {
        if let Some(subwords) = self.subwords {
            self.for_each_subword(subwords, rows, each);
            return;
        }
        for (&word, gradient) in self.words.iter().zip(self.gradients.chunks_exact(self.stride)) {
            if word != NO_ROW && rows.contains(&word) {
                each(word, &gradient[..self.dim]);
            }
        }
    }

    fn for_each_subword(self, subwords: &Subwords, range: Range<u32>, mut each: impl FnMut(u32, &[f32])) {
        for (&word, gradient) in self.words.iter().zip(self.gradients.chunks_exact(self.stride)) {
            if word != NO_ROW {
                let rows = subwords.of_word(word).iter().filter(|row| range.contains(row));
                rows.for_each(|&row| each(row, &gradient[..self.dim]));
            }
        }
    }
}
