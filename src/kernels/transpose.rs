//! Transposition, in squares of sixteen.
//!
//! To interleave the first half of an array with its second half, element by element, is to rotate the bits of every
//! index by one. On 16 rows of 16 elements, four such passes exchange the row's number with the column's, and a pass is
//! two shuffles for each pair of registers.

use super::dispatch::{Target, kernel};
use super::lanes::LANES;

/// The transpose of 16 × 16 floats, whose rows are vectors.
#[inline(always)]
pub(super) fn transpose_square<T: Target>(mut rows: [T::Vector; LANES]) -> [T::Vector; LANES] {
    for _ in 0..4 {
        let former = rows;
        for i in 0..LANES / 2 {
            [rows[2 * i], rows[2 * i + 1]] = T::interleave(former[i], former[i + LANES / 2]);
        }
    }
    rows
}

kernel! {
    /// Writes element (i, j) of `rows`, row-major with `width` columns, to `out[j·out_stride + i]`.
    ///
    /// # Panics
    /// If the numbers of rows and columns are not multiples of 16, or `out` is too short.
    pub(crate) fn transpose<T>(rows: &[f32], width: usize, out: &mut [f32], out_stride: usize) {
        let group = LANES * width;
        let is_whole = width.is_multiple_of(LANES) && group > 0 && rows.len().is_multiple_of(group);
        assert!(is_whole, "transpose: {} floats of width {width}", rows.len());
        for (index, rows) in rows.chunks_exact(group).enumerate() {
            for column in (0..width).step_by(LANES) {
                let row = |i: usize| rows[i * width + column..].first_chunk().expect("the row has sixteen more columns");
                let square = transpose_square::<T>(std::array::from_fn(|i| T::load(row(i))));
                for (j, lanes) in square.into_iter().enumerate() {
                    let into = &mut out[(column + j) * out_stride + index * LANES..];
                    T::store(lanes, into.first_chunk_mut().expect("the output has room for sixteen rows"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;

    #[test]
    fn every_element_changes_its_indices() {
        for (rows, width) in [(16, 16), (32, 48), (48, 112)] {
            let matrix: Vec<f32> = (0..rows * width).map(|at| at as f32).collect();
            under_every_instruction_set(|set| {
                let mut out = vec![-1.0; width * (rows + 3)];
                transpose(&matrix, width, &mut out, rows + 3);
                for (at, &found) in out.iter().enumerate() {
                    let (j, i) = (at / (rows + 3), at % (rows + 3));
                    let expected = if i < rows { matrix[i * width + j] } else { -1.0 };
                    assert_eq!(found, expected, "{set:?}, {rows} × {width}, column {j}, row {i}");
                }
            });
        }
    }
}
