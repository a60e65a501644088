//! The micro-kernel of matrix products: a tile of C that stays in registers over the whole inner dimension.
//!
//! C ← A·B + addends, which may be C itself, rows of another matrix, or one row for all.
//!
//! One step takes an element of each row of A and a stretch of a row of B, and adds their outer product to the tile.
//! Every element of C is one sum in the order of the inner dimension, whatever the tiling.
//!
//! Matrices are pointers and strides here: a window of a wider matrix, such as an attention head, is not a slice, since
//! another thread may be writing to what lies between its rows.
#![allow(unsafe_code)]

use std::cell::Cell;

use super::ahead::Ahead;
use super::dispatch::{Target, prefetch_for_write, prefetch_near};
use super::lanes::{LANES, Lanes};

/// Sixteens of columns in the widest tile.
pub(super) const WIDEST: usize = 4;

/// Runs `$body` for each `$index` below `$limit`, at most 12, unrolled here: LLVM keeps the sums of a tile in registers
/// only if their indices are constants, and does not reliably unroll loops over so many.
macro_rules! unroll {
    ($limit:expr, $index:ident, $body:block) => { unroll!(@ $limit, $index, $body, 0 1 2 3 4 5 6 7 8 9 10 11) };
    (@ $limit:expr, $index:ident, $body:block, $($number:literal)+) => {$(
        if $number < $limit {
            let $index = $number;
            $body
        }
    )+};
}

/// Element (i, j) lies `i·row_stride + j·column_stride` floats after `start`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    pub start: *const f32,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl Factor {
    /// The factor's part from `row` and `column` on, which is not read if it is empty.
    #[inline(always)]
    pub fn from(self, row: usize, column: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.row_stride + column * self.column_stride), ..self }
    }
}

/// Rows to add to a product: row i begins `i·row_stride` floats after `start`, so that a stride of 0 adds one row to all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addend {
    pub start: *const f32,
    pub row_stride: usize,
}

/// Where a product is written, and what is added to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output<'a> {
    pub start: *mut f32,
    pub row_stride: usize,
    pub addends: &'a [Addend],
    /// The row and the column of the addends that belong to `start`.
    pub at: (usize, usize),
    /// Whether it and a matrix to add may lie outside of the caches.
    pub is_far: bool,
    /// Takes the squares of what is written, if there is such.
    pub squares: Option<&'a Squares>,
}

/// A sum of squares, in lanes.
#[derive(Debug, Default)]
pub(super) struct Squares(Cell<[f64; LANES]>);

impl Squares {
    /// Takes the squares of a tile, in f32 within each lane of it: while they are in registers, this takes no time.
    #[inline(always)]
    fn take<T: Target, const ROWS: usize, const SIXTEENS: usize>(&self, tile: &[[T::Vector; SIXTEENS]; ROWS]) {
        let mut squares = [T::splat(0.0); SIXTEENS];
        unroll!(ROWS, row, {
            unroll!(SIXTEENS, sixteen, {
                squares[sixteen] = T::multiply_add_vectors(tile[row][sixteen], tile[row][sixteen], squares[sixteen]);
            });
        });
        for sixteen in 1..SIXTEENS {
            squares[0] = T::add(squares[0], squares[sixteen]);
        }
        let mut lanes = [0.0; LANES];
        T::store(squares[0], &mut lanes);
        self.add(&lanes);
    }

    /// Adds squares.
    #[inline(always)]
    pub fn add(&self, squares: &[f32; LANES]) {
        let mut sums = self.0.get();
        for (sum, &square) in sums.iter_mut().zip(squares) {
            *sum += f64::from(square);
        }
        self.0.set(sums);
    }

    /// The sum of all that were taken.
    pub fn sum(&self) -> f64 {
        self.0.get().iter().sum()
    }
}

impl Output<'_> {
    /// The output's part from `row` and `column` on.
    ///
    /// # Safety
    /// The output has that element.
    #[inline(always)]
    pub unsafe fn from(self, row: usize, column: usize) -> Self {
        // SAFETY: the element lies in the same memory, as the caller vouches.
        let start = unsafe { self.start.add(row * self.row_stride + column) };
        Self { start, at: (self.at.0 + row, self.at.1 + column), ..self }
    }

    /// The element of each addend at `row` and `column`.
    ///
    /// # Safety
    /// The output has that element.
    #[inline(always)]
    pub unsafe fn added(&self, row: usize, column: usize) -> impl Iterator<Item = *const f32> {
        let (row, column) = (self.at.0 + row, self.at.1 + column);
        // SAFETY: the addends have the elements that the output has.
        self.addends.iter().map(move |addend| unsafe { addend.start.add(row * addend.row_stride + column) })
    }
}

/// `ROWS` × `SIXTEENS`·16 elements of C ← A·B + addends.
///
/// # Safety
/// `a` has ROWS × `inner` elements to read, `b` `inner` rows of SIXTEENS·16 floats, and `c` and its addends ROWS such rows;
/// nobody else has access to those of `c`. IS_TRANSPOSED, which says that the columns of `a` are contiguous, may be anything.
#[inline(always)]
unsafe fn tile<T: Target, const ROWS: usize, const SIXTEENS: usize, const IS_TRANSPOSED: bool>(
    a: Factor,
    (b, b_stride): (*const f32, usize),
    c: Output<'_>,
    inner: usize,
) {
    let mut sums = [[T::splat(0.0); SIXTEENS]; ROWS];
    if c.is_far {
        unroll!(ROWS, row, {
            unroll!(SIXTEENS, sixteen, {
                prefetch_for_write(c.start.wrapping_add(row * c.row_stride + sixteen * LANES));
            });
        });
        if let [_, matrix] = c.addends {
            let from = matrix.start.wrapping_add(c.at.0 * matrix.row_stride + c.at.1);
            unroll!(ROWS, row, {
                unroll!(SIXTEENS, sixteen, {
                    prefetch_near(from.wrapping_add(row * matrix.row_stride + sixteen * LANES));
                });
            });
        }
    }
    for p in 0..inner {
        // SAFETY: p is below `inner`, and the indices below ROWS and SIXTEENS: the caller vouches for what they address.
        unsafe {
            let a_column = a.start.add(p * a.column_stride);
            let b_row = b.add(p * b_stride).cast::<Lanes>();
            if IS_TRANSPOSED {
                // Every step reads another line, which serves the next tiles too; the lines after these are new.
                prefetch_near(a_column.wrapping_add(2 * LANES));
            }
            unroll!(ROWS, row, {
                let factor = T::splat(*a_column.add(row * a.row_stride));
                unroll!(SIXTEENS, sixteen, {
                    sums[row][sixteen] =
                        T::multiply_add_vectors(factor, T::load(&*b_row.add(sixteen)), sums[row][sixteen]);
                });
            });
        }
    }
    // SAFETY: as above.
    unsafe {
        for from in c.added(0, 0).zip(c.addends) {
            let (from, addend) = from;
            unroll!(ROWS, row, {
                let from = from.add(row * addend.row_stride).cast::<Lanes>();
                unroll!(SIXTEENS, sixteen, {
                    sums[row][sixteen] = T::add(sums[row][sixteen], T::load(&*from.add(sixteen)));
                });
            });
        }
        if let Some(squares) = c.squares {
            squares.take::<T, ROWS, SIXTEENS>(&sums);
        }
        unroll!(ROWS, row, {
            let into = c.start.add(row * c.row_stride).cast::<Lanes>();
            unroll!(SIXTEENS, sixteen, {
                T::store(sums[row][sixteen], &mut *into.add(sixteen));
            });
        });
    }
}

/// `rows` rows of `SIXTEENS`·16 columns of C ← A·B + addends, tile by tile.
///
/// # Safety
/// As for [`tile`], with `rows` rows.
#[inline(always)]
unsafe fn columns<T: Target, const SIXTEENS: usize>(
    a: Factor,
    b: (*const f32, usize),
    c: Output<'_>,
    (rows, inner): (usize, usize),
    ahead: &mut Ahead,
) {
    let mut row = 0;
    while row < rows {
        ahead.advance();
        // SAFETY: the rows from `row` on are at least as many as the tile has.
        unsafe {
            let (a, c) = (a.from(row, 0), c.from(row, 0));
            row += match rows - row {
                // Two vectors of columns alone are too few sums to hide the latency of an addition.
                12.. if T::WIDE && SIXTEENS <= 2 => {
                    tile::<T, 12, SIXTEENS, false>(a, b, c, inner);
                    12
                }
                6.. if a.row_stride == 1 && c.is_far => {
                    tile::<T, 6, SIXTEENS, true>(a, b, c, inner);
                    6
                }
                6.. => {
                    tile::<T, 6, SIXTEENS, false>(a, b, c, inner);
                    6
                }
                4.. => {
                    tile::<T, 4, SIXTEENS, false>(a, b, c, inner);
                    4
                }
                2.. => {
                    tile::<T, 2, SIXTEENS, false>(a, b, c, inner);
                    2
                }
                _ => {
                    tile::<T, 1, SIXTEENS, false>(a, b, c, inner);
                    1
                }
            };
        }
    }
}

/// C ← A·B + addends, with (rows, inner, sixteens of columns) = `shape`.
///
/// # Safety
/// As for [`tile`], with as many rows and columns.
#[inline(always)]
pub(super) unsafe fn product<T: Target>(
    a: Factor,
    b: (*const f32, usize),
    c: Output<'_>,
    shape: (usize, usize, usize),
) {
    let mut nothing = Ahead::NONE;
    // SAFETY: the caller vouches for the same.
    unsafe { product_ahead::<T>(a, b, c, shape, &mut nothing) };
}

/// As [`product`]; each tile advances `ahead`.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
pub(super) unsafe fn product_ahead<T: Target>(
    a: Factor,
    (b, b_stride): (*const f32, usize),
    c: Output<'_>,
    (rows, inner, sixteens): (usize, usize, usize),
    ahead: &mut Ahead,
) {
    let mut done = 0;
    while done < sixteens {
        // SAFETY: at least as many columns are left as are taken.
        unsafe {
            let (b, c) = ((b.wrapping_add(done * LANES), b_stride), c.from(0, done * LANES));
            let size = (rows, inner);
            done += match sixteens - done {
                WIDEST.. if T::WIDE => {
                    columns::<T, WIDEST>(a, b, c, size, ahead);
                    WIDEST
                }
                3 if T::WIDE => {
                    columns::<T, 3>(a, b, c, size, ahead);
                    3
                }
                2 if T::WIDE => {
                    columns::<T, 2>(a, b, c, size, ahead);
                    2
                }
                _ => {
                    columns::<T, 1>(a, b, c, size, ahead);
                    1
                }
            };
        }
    }
}
