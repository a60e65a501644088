//! Room for buffers, allocated or only measured: one description of a workspace serves to make it and to say, before
//! anything is allocated, how large it would be.

use std::cell::Cell;

use ndarray::{Array, Array1, Array2, Array3, Dimension, IntoDimension, s};

/// Bytes in a cache line: a vector register that is loaded from across two lines takes twice the time.
const ALIGNMENT: usize = 64;

/// Gives buffers of zeros and counts their bytes.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Counts alone: every buffer is empty.
    measuring: bool,
    bytes: Cell<usize>,
}

impl Room {
    /// Room that allocates nothing, whose buffers are empty.
    pub fn measured() -> Self {
        Self { measuring: true, bytes: Cell::new(0) }
    }

    /// Bytes of all buffers so far; `usize::MAX` if they exceed the address space.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Counts a buffer of `shape` elements of `T`, which the caller makes, and returns the number of its first dimension
    /// that is to be allocated.
    fn count<T>(&self, shape: &[usize]) -> usize {
        let bytes = shape.iter().fold(size_of::<T>(), |bytes, &length| bytes.saturating_mul(length));
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        if self.measuring { 0 } else { shape[0] }
    }

    pub fn vector<T: Clone + Default>(&self, length: usize) -> Vec<T> {
        vec![T::default(); self.count::<T>(&[length])]
    }

    pub fn matrix(&self, rows: usize, columns: usize) -> Array2<f32> {
        let rows = self.count::<f32>(&[rows, columns]);
        if self.measuring { Array2::zeros((0, 0)) } else { zeros((rows, columns)) }
    }

    pub fn tensor(&self, parts: usize, rows: usize, columns: usize) -> Array3<f32> {
        let parts = self.count::<f32>(&[parts, rows, columns]);
        // An empty array's other sides must not overflow either.
        if self.measuring { Array3::zeros((0, 0, 0)) } else { zeros((parts, rows, columns)) }
    }
}

/// An array of zeros that begins on a cache line.
fn zeros<D: Dimension>(shape: impl IntoDimension<Dim = D>) -> Array<f32, D> {
    let shape = shape.into_dimension();
    let length = shape.size();
    let values = vec![0.0; length + ALIGNMENT / size_of::<f32>()];
    let start = values.as_ptr().align_offset(ALIGNMENT);
    let values = Array1::from_vec(values).slice_move(s![start..start + length]);
    values.into_shape_with_order(shape).expect("the length is the shape's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_room_counts_the_same_and_allocates_nothing() {
        let fill = |room: &Room| {
            let (vector, matrix, tensor) = (room.vector::<f64>(3), room.matrix(5, 7), room.tensor(2, 3, 4));
            (vector.capacity(), matrix.len(), tensor.len())
        };
        let (allocated, measured) = (Room::default(), Room::measured());
        assert_eq!(fill(&allocated), (3, 35, 24));
        assert_eq!(fill(&measured), (0, 0, 0));
        assert_eq!(allocated.bytes(), 8 * 3 + 4 * 35 + 4 * 24);
        assert_eq!(measured.bytes(), allocated.bytes());
    }

    #[test]
    fn arrays_begin_on_a_cache_line_and_hold_zeros() {
        let room = Room::default();
        for columns in [1, 7, 100_000] {
            let (matrix, tensor) = (room.matrix(3, columns), room.tensor(2, 3, columns));
            for start in [matrix.as_ptr(), tensor.as_ptr()] {
                assert_eq!(start as usize % ALIGNMENT, 0);
            }
            assert!(matrix.as_slice().is_some_and(|values| values.iter().all(|&value| value == 0.0)));
            assert_eq!(tensor.as_slice().map(<[f32]>::len), Some(6 * columns));
        }
    }

    #[test]
    fn more_than_the_address_space_is_counted_without_overflow() {
        let room = Room::measured();
        let _ = (room.tensor(usize::MAX, usize::MAX, 2), room.matrix(1 << 60, 1 << 60));
        assert_eq!(room.bytes(), usize::MAX);
    }
}
