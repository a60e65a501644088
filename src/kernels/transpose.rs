//! Transposition of rows, sixteen at a time.
//!
//! To interleave the first half of an array with its second half, element by element, is to rotate the bits of every
//! index by one. On 16 rows of n elements, four such passes bring the row's number from the front of the index to its
//! end: the result is n groups of 16, one for each column. LLVM makes two shuffles a pair of registers of it, which it
//! does not of a transposition written as nested loops.

use super::dispatch::kernel;
use super::lanes::LANES;

#[inline(always)]
fn interleave(from: &[f32], into: &mut [f32]) {
    let (first, second) = from.split_at(from.len() / 2);
    for ((pair, &a), &b) in into.chunks_exact_mut(2).zip(first).zip(second) {
        pair[0] = a;
        pair[1] = b;
    }
}

kernel! {
    /// Writes element (i, j) of `rows`, row-major with `width` columns, to `out[j·out_stride + i]`.
    ///
    /// # Panics
    /// If `rows` is not a multiple of 16 rows, `scratch` is not of 32 rows, or `out` is too short.
    pub(crate) fn transpose<T>(rows: &[f32], width: usize, scratch: &mut [f32], out: &mut [f32], out_stride: usize) {
        let group = LANES * width;
        assert!(rows.len().is_multiple_of(group) && scratch.len() == 2 * group, "transpose: {} floats of width {width}", rows.len());
        let (first, second) = scratch.split_at_mut(group);
        for (index, rows) in rows.chunks_exact(group).enumerate() {
            interleave(rows, first);
            interleave(first, second);
            interleave(second, first);
            interleave(first, second);
            for (column, lanes) in second.as_chunks::<LANES>().0.iter().enumerate() {
                out[column * out_stride + index * LANES..][..LANES].copy_from_slice(lanes);
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
        for (rows, width) in [(16, 1), (16, 16), (32, 7), (48, 112)] {
            let matrix: Vec<f32> = (0..rows * width).map(|at| at as f32).collect();
            under_every_instruction_set(|set| {
                let mut out = vec![-1.0; width * (rows + 3)];
                transpose(&matrix, width, &mut vec![0.0; 2 * LANES * width], &mut out, rows + 3);
                for (at, &found) in out.iter().enumerate() {
                    let (j, i) = (at / (rows + 3), at % (rows + 3));
                    let expected = if i < rows { matrix[i * width + j] } else { -1.0 };
                    assert_eq!(found, expected, "{set:?}, {rows} × {width}, column {j}, row {i}");
                }
            });
        }
    }
}
