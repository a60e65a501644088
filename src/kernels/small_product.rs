//! Products of matrices that fit into the cache, in which BLAS would spend its time on packing and on calls.
//!
//! C is computed in tiles of up to 6 rows by up to 4·16 columns (16 where registers are narrower) that stay in
//! registers over the whole inner dimension: one step takes 6 elements of A and a stretch of a row of B, and adds their
//! outer product to the tile. Every element is one sum in the order of the inner dimension, whatever the tiling.

use super::dispatch::{Target, kernel};
use super::lanes::LANES;

/// A matrix of which element (i, j) is `values[i·row_stride + j·column_stride]`; swap the strides for its transpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

/// Runs `$body` for each `$index` below `$limit`, at most 6, unrolled here: LLVM keeps the sums of a tile in registers
/// only if their indices are constants, and does not reliably unroll loops over so many.
macro_rules! unroll {
    ($limit:expr, $index:ident, $body:block) => { unroll!(@ $limit, $index, $body, 0 1 2 3 4 5) };
    (@ $limit:expr, $index:ident, $body:block, $($number:literal)+) => {$(
        if $number < $limit {
            let $index = $number;
            $body
        }
    )+};
}

/// The tile of `ROWS` × `PANELS`·16 at the start of `a`'s rows, `b`'s columns and `c`.
#[inline(always)]
fn tile<T: Target, const ROWS: usize, const PANELS: usize>(
    a: Strided<'_>,
    (b, b_stride): (&[f32], usize),
    (c, c_stride): (&mut [f32], usize),
    inner: usize,
    accumulate: bool,
) {
    let mut sums = [[T::splat(0.0); PANELS]; ROWS];
    for p in 0..inner {
        let b = &b[p * b_stride..].as_chunks::<LANES>().0[..PANELS];
        unroll!(ROWS, row, {
            let factor = T::splat(a.values[row * a.row_stride + p * a.column_stride]);
            unroll!(PANELS, panel, {
                sums[row][panel] = T::multiply_add_vectors(factor, T::load(&b[panel]), sums[row][panel]);
            });
        });
    }
    unroll!(ROWS, row, {
        let c = &mut c[row * c_stride..].as_chunks_mut::<LANES>().0[..PANELS];
        unroll!(PANELS, panel, {
            let sum = sums[row][panel];
            T::store(if accumulate { T::add(sum, T::load(&c[panel])) } else { sum }, &mut c[panel]);
        });
    });
}

/// `PANELS`·16 columns of C.
#[inline(always)]
fn panels<T: Target, const PANELS: usize>(
    a: Strided<'_>,
    (b, b_stride): (&[f32], usize),
    (c, c_stride): (&mut [f32], usize),
    (rows, inner): (usize, usize),
    accumulate: bool,
) {
    let mut row = 0;
    while row < rows {
        let a = Strided { values: &a.values[row * a.row_stride..], ..a };
        let c = (&mut c[row * c_stride..], c_stride);
        let b = (b, b_stride);
        row += match rows - row {
            6.. => {
                tile::<T, 6, PANELS>(a, b, c, inner, accumulate);
                6
            }
            4.. => {
                tile::<T, 4, PANELS>(a, b, c, inner, accumulate);
                4
            }
            2.. => {
                tile::<T, 2, PANELS>(a, b, c, inner, accumulate);
                2
            }
            _ => {
                tile::<T, 1, PANELS>(a, b, c, inner, accumulate);
                1
            }
        };
    }
}

kernel! {
    /// C ← A·B, or C ← C + A·B if `accumulate`, with (rows, inner, columns) = `shape`: A is rows × inner, B inner ×
    /// columns and C rows × columns, both row-major with the stride beside them.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 16, `inner` is 0, or a slice is too short.
    pub(crate) fn small_product<T>(
        a: Strided<'_>,
        b: (&[f32], usize),
        c: (&mut [f32], usize),
        shape: (usize, usize, usize),
        accumulate: bool,
    ) {
        let (rows, inner, columns) = shape;
        assert!(columns.is_multiple_of(LANES) && inner > 0, "small_product: shape {shape:?}");
        let (b, b_stride) = b;
        let (c, c_stride) = c;
        let mut column = 0;
        while column < columns {
            let b = (&b[column..], b_stride);
            let c = (&mut c[column..], c_stride);
            let left = (columns - column) / LANES;
            column += LANES * match left {
                4.. if T::WIDE => {
                    panels::<T, 4>(a, b, c, (rows, inner), accumulate);
                    4
                }
                3 if T::WIDE => {
                    panels::<T, 3>(a, b, c, (rows, inner), accumulate);
                    3
                }
                2 if T::WIDE => {
                    panels::<T, 2>(a, b, c, (rows, inner), accumulate);
                    2
                }
                _ => {
                    panels::<T, 1>(a, b, c, (rows, inner), accumulate);
                    1
                }
            };
        }
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
