//! Products of small slices that lie in the cache, as they are: nothing is packed or blocked.
#![allow(unsafe_code)]

use super::dispatch::kernel;
use super::lanes::LANES;
use super::tile::{Addend, Factor, Output, product};

/// A matrix of which element (i, j) is `values[i·row_stride + j·column_stride]`; swap the strides for its transpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

kernel! {
    /// C ← A·B, or C ← C + A·B if `accumulate`, with (rows, inner, columns) = `shape`: A is rows × inner, B inner ×
    /// columns and C rows × columns, both row-major with the stride beside them.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 16, a side is 0, the rows of C overlap, or a slice is too short.
    pub(crate) fn small_product<T>(
        a: Strided<'_>,
        b: (&[f32], usize),
        c: (&mut [f32], usize),
        shape: (usize, usize, usize),
        accumulate: bool,
    ) {
        let (rows, inner, columns) = shape;
        let (b, b_stride) = b;
        let (c, c_stride) = c;
        let is_whole = columns.is_multiple_of(LANES) && rows * inner * columns > 0 && c_stride >= columns;
        assert!(is_whole, "small_product: shape {shape:?}, stride of C {c_stride}");
        let ends = [
            (rows - 1) * a.row_stride + (inner - 1) * a.column_stride + 1,
            (inner - 1) * b_stride + columns,
            (rows - 1) * c_stride + columns,
        ];
        let lengths = [a.values.len(), b.len(), c.len()];
        assert!(ends.iter().zip(lengths).all(|(&end, length)| end <= length), "small_product: {ends:?} of {lengths:?}");
        let a = Factor { start: a.values.as_ptr(), row_stride: a.row_stride, column_stride: a.column_stride };
        let start = c.as_mut_ptr();
        let itself = [Addend { start, row_stride: c_stride }];
        let addends = if accumulate { &itself[..] } else { &[] };
        let c = Output { start, row_stride: c_stride, addends, at: (0, 0), is_far: false, squares: None };
        let shape = (rows, inner, columns / LANES);
        // SAFETY: the last elements of all three were just seen to lie inside their slices, and C is borrowed mutably.
        unsafe { product::<T>(a, (b.as_ptr(), b_stride), c, shape) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;
    use crate::rng::{Purpose, Stream};

    fn random(length: usize, step: u64) -> Vec<f32> {
        let mut values = vec![0.0; length];
        Stream::new(5, Purpose::Caller, step).fill_normal(&mut values, 1.0);
        values
    }

    #[test]
    fn agrees_with_f64_sums_and_writes_nothing_else() {
        for (rows, inner, columns) in [(1, 1, 16), (5, 3, 32), (6, 100, 48), (13, 7, 112), (19, 16, 144), (32, 33, 64)]
        {
            for transposed in [false, true] {
                for accumulate in [false, true] {
                    let (a, b, former) =
                        (random(rows * inner, 0), random(inner * (columns + 3), 1), random(rows * (columns + 5), 2));
                    let (row_stride, column_stride) = if transposed { (1, rows) } else { (inner, 1) };
                    under_every_instruction_set(|set| {
                        let mut c = former.clone();
                        let strided = Strided { values: &a, row_stride, column_stride };
                        small_product(
                            strided,
                            (&b, columns + 3),
                            (&mut c, columns + 5),
                            (rows, inner, columns),
                            accumulate,
                        );
                        for (at, (&found, &before)) in c.iter().zip(&former).enumerate() {
                            let (i, j) = (at / (columns + 5), at % (columns + 5));
                            if j >= columns {
                                assert_eq!(found, before, "written outside C at {i}, {j}");
                                continue;
                            }
                            let term = |p: usize| {
                                f64::from(a[i * row_stride + p * column_stride]) * f64::from(b[p * (columns + 3) + j])
                            };
                            let expected =
                                (0..inner).map(term).sum::<f64>() + if accumulate { before.into() } else { 0.0 };
                            let shape = (rows, inner, columns);
                            assert!(
                                (f64::from(found) - expected).abs() < 1e-4,
                                "{set:?}, {shape:?}, {i}, {j}: {found} for {expected}"
                            );
                        }
                    });
                }
            }
        }
    }
}
