//! The norm of a gradient, most of it taken of what is still in the caches.

use crate::memory::Room;

use super::{ParameterId, ParameterLayout};

/// Floats that one worker takes at a time in passes over all parameters: 64 KiB a buffer.
pub(crate) const CHUNK: usize = 1 << 14;

/// Sums of fewer than 10¹² squares below this may have lost some to the smallest f32, of 10⁻³⁸.
const SMALLEST: f64 = 1e-20;

/// Squared norms: those of whole parameters, which who writes a gradient may tell, and those of what is left of each chunk
/// of the buffer.
#[derive(Debug)]
pub(crate) struct GradientNorms {
    /// NaN where none is known.
    parameters: Vec<f64>,
    chunks: Vec<f64>,
}

impl GradientNorms {
    /// A place for each parameter of `layout` and for each chunk.
    pub fn within(room: &Room, layout: &ParameterLayout) -> Self {
        let chunks = layout.buffer_length().div_ceil(CHUNK);
        Self { parameters: room.vector(layout.specs().len()), chunks: room.vector(chunks) }
    }

    /// Knows nothing any more.
    pub fn forget(&mut self) {
        self.parameters.fill(f64::NAN);
    }

    /// Takes note of the squared norm of the parameter `id`, all of which is written, taken in f32 in part. One that may have
    /// overflowed or vanished is left to be taken again.
    pub fn tell(&mut self, id: ParameterId, squared_norm: f64) {
        let is_exact = squared_norm.is_finite() && squared_norm >= SMALLEST;
        self.parameters[id.index()] = if is_exact { squared_norm } else { f64::NAN };
    }

    /// Takes note of by how much the squared norm of the parameter `id` changes, if it is known. What nearly cancels is left
    /// to be taken again.
    pub fn change(&mut self, id: ParameterId, difference: f64) {
        let norm = &mut self.parameters[id.index()];
        *norm = if *norm + difference >= 0.25 * *norm { *norm + difference } else { f64::NAN };
    }

    /// The squared norm of each parameter, NaN where it is not known, and the chunks' places for the rest.
    pub fn places(&mut self) -> (&[f64], &mut [f64]) {
        (&self.parameters, &mut self.chunks)
    }

    /// The Euclidean norm of the whole, once the chunks' places are filled: what is known is added first, in order.
    pub fn norm(&self) -> f64 {
        let known = self.parameters.iter().filter(|norm| !norm.is_nan());
        known.chain(&self.chunks).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Initialisation;

    #[test]
    fn what_is_told_counts_besides_the_chunks_and_infinity_does_not() {
        let mut layout = ParameterLayout::default();
        let [a, b, c, d, e] =
            ["a", "b", "c", "d", "e"].map(|name| layout.matrix(name, 300, 100, Initialisation::Zeros));
        let mut norms = GradientNorms::within(&Room::default(), &layout);
        norms.forget();
        norms.tell(a, 9.0);
        norms.tell(b, 2.0);
        norms.tell(b, f64::INFINITY);
        norms.change(a, -5.0);
        norms.change(c, 1.0);
        norms.tell(d, 1e-21);
        norms.tell(e, 1.0);
        norms.change(e, -0.8);
        let (known, chunks) = norms.places();
        assert_eq!(known[0], 4.0);
        assert!(known[1..].iter().all(|norm| norm.is_nan()));
        assert_eq!(chunks.len(), 10);
        chunks.fill(2.0);
        assert_eq!(norms.norm(), 24_f64.sqrt());
        norms.forget();
        assert_eq!(norms.norm(), 20_f64.sqrt());
    }
}
