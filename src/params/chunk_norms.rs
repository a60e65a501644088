//! The norm of a gradient, chunk by chunk, each taken while its values are still in the caches.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::reduce::squared_norm;
use crate::memory::Room;

/// Floats that one worker takes at a time in passes over all parameters: 64 KiB a buffer.
pub(crate) const CHUNK: usize = 1 << 14;

/// The squared norm of each chunk of a buffer; NaN stands for one that is not known.
#[derive(Debug)]
pub(crate) struct ChunkNorms(Vec<f64>);

impl ChunkNorms {
    /// A place for each chunk of a buffer of `length` floats.
    pub fn within(room: &Room, length: usize) -> Self {
        Self(room.vector(length.div_ceil(CHUNK)))
    }

    /// Knows nothing any more.
    pub fn forget(&mut self) {
        self.0.fill(f64::NAN);
    }

    /// Takes the norms of the chunks of `values` that lie wholly in `range`, which has its last values.
    pub fn take(&mut self, values: &[f32], range: Range<usize>) {
        let chunks = range.start.div_ceil(CHUNK)..range.end / CHUNK;
        if chunks.is_empty() {
            return;
        }
        let values = values[chunks.start * CHUNK..chunks.end * CHUNK].par_chunks(CHUNK);
        self.0[chunks].par_iter_mut().zip(values).for_each(|(norm, chunk)| *norm = squared_norm(chunk));
    }

    /// Forgets the chunks that `range` touches, whose values change after all.
    pub fn changes(&mut self, range: Range<usize>) {
        self.0[range.start / CHUNK..range.end.div_ceil(CHUNK)].fill(f64::NAN);
    }

    /// Each chunk's place.
    pub fn places(&mut self) -> &mut [f64] {
        &mut self.0
    }

    /// The Euclidean norm of the whole, once every chunk's is known; chunks are added in order.
    pub fn norm(&self) -> f64 {
        self.0.iter().sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(norms: &mut ChunkNorms) -> Vec<bool> {
        norms.places().iter().map(|norm| !norm.is_nan()).collect()
    }

    #[test]
    fn whole_chunks_are_taken_and_changed_ones_forgotten() {
        let values: Vec<f32> = (0..4 * CHUNK + 7).map(|i| (i / CHUNK + 1) as f32).collect();
        let mut norms = ChunkNorms::within(&Room::default(), values.len());
        norms.forget();
        norms.take(&values, 1..CHUNK);
        norms.take(&values, CHUNK + 1..CHUNK + 2);
        assert_eq!(known(&mut norms), [false; 5]);
        norms.take(&values, 1..3 * CHUNK + 1);
        assert_eq!(known(&mut norms), [false, true, true, false, false]);
        norms.take(&values, 0..4 * CHUNK);
        let expected = [1.0, 4.0, 9.0, 16.0].map(|square| square * CHUNK as f64);
        assert_eq!(norms.places()[..4], expected);
        norms.places()[4] = 7.0;
        assert_eq!(norms.norm(), (30.0 * CHUNK as f64 + 7.0).sqrt());
        norms.changes(2 * CHUNK - 1..2 * CHUNK + 1);
        assert_eq!(known(&mut norms), [true, false, false, true, true]);
        norms.changes(4 * CHUNK..4 * CHUNK + 7);
        assert_eq!(known(&mut norms), [true, false, false, true, false]);
    }
}
