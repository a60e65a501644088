//! Matrix products of any size: B is copied, panel by panel, into a buffer that stays in the first two caches while the
//! rows of A pass by.
//!
//! A panel is up to [`INNER`] rows by [`COLUMNS`] columns. Packing makes its rows contiguous, whatever B's strides, turns a
//! transposed B around, and fills the last columns up with zeros. This is the scheme of Goto and van de Geijn, "Anatomy of
//! high-performance matrix multiplication" (2008), but A is read where it lies: where the sides are some hundreds, packing
//! A costs more than it gains, and that is what makes this faster there than a BLAS that is made for large matrices
//! (`benches/products.rs`).
//!
//! Panels are worked off in groups of columns, so that a stretch of C is finished before the next is begun. While one panel
//! is multiplied the next is asked for, unless A is short; where A has very few rows, B is not copied if it lies in rows.
#![allow(unsafe_code)]

use std::cell::RefCell;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use super::ahead::Ahead;
use super::dispatch::{InstructionSet, Target, instruction_set, kernel};
use super::lanes::{LANES, Lanes};
use super::tile::{Addend, Factor, Output, Squares, WIDEST, product_ahead};
use super::transpose::transpose_square;
use crate::params::AlignedBuffer;

/// Rows of B in a panel, and columns of it.
const INNER: usize = 256;
const COLUMNS: usize = WIDEST * LANES;

/// Room in a panel.
pub(super) const PANEL_FLOATS: usize = INNER * COLUMNS;

/// Rows of A that pass by before the next panel is packed: they stay in the second-level cache from one panel to the
/// next, or in the buffer for strips.
const ROWS: usize = 768;

/// Columns of C that are finished before the next are begun.
const GROUP: usize = 4 * COLUMNS;

/// Up to so many rows of A are served by B where it lies, if its rows are contiguous: packing it would take a good part of
/// their time.
const FEW_ROWS: usize = 64;

/// From so many rows of A on, the next panel is asked for while they pass by. With fewer it comes too fast, and holds up
/// what they need themselves.
const ROWS_AHEAD: usize = 192;

/// Rows of the highest tile.
pub(super) const HIGHEST: usize = 12;

/// Rows of a tile as wide as a panel.
const LOWER: usize = 6;

thread_local! {
    static PANEL: RefCell<Option<AlignedBuffer>> = const { RefCell::new(None) };
}

/// Runs `run` with this thread's panel.
pub(super) fn with_panel<R>(run: impl FnOnce(&mut [f32]) -> R) -> R {
    PANEL.with_borrow_mut(|panel| run(panel.get_or_insert_with(|| AlignedBuffer::zeros(PANEL_FLOATS))))
}

/// Bytes that each thread keeps for its panel.
#[must_use]
pub(crate) fn panel_bytes() -> usize {
    if is_fast() { size_of::<f32>() * PANEL_FLOATS } else { 0 }
}

/// Allocates this thread's panel, which its first product would otherwise do.
pub(crate) fn prepare_thread() {
    if is_fast() {
        with_panel(|_| ());
    }
}

/// Whether the tiles have the registers that make them fast.
#[must_use]
pub(crate) fn is_fast() -> bool {
    instruction_set() == InstructionSet::Avx512
}

/// What is added to a product.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    /// Nothing: C is overwritten, whatever it held.
    Zero,
    /// What C holds.
    Output,
    /// A row, to every row of C.
    Row(&'a [f32]),
    /// A row, and a matrix as large as C.
    RowAndMatrix(&'a [f32], ArrayView2<'a, f32>),
}

impl<'a> Start<'a> {
    /// The parts that belong to the rows, or columns, of C before and from `index` on.
    pub fn split_at(self, axis: Axis, index: usize) -> (Self, Self) {
        let split_row = |row: &'a [f32]| if axis == Axis(1) { row.split_at(index) } else { (row, row) };
        match self {
            Self::Zero | Self::Output => (self, self),
            Self::Row(row) => {
                let (before, after) = split_row(row);
                (Self::Row(before), Self::Row(after))
            }
            Self::RowAndMatrix(row, matrix) => {
                let (rows, matrices) = (split_row(row), matrix.split_at(axis, index));
                (Self::RowAndMatrix(rows.0, matrices.0), Self::RowAndMatrix(rows.1, matrices.1))
            }
        }
    }
}

/// C ← A·B + `start`, with A `m × k`, B `k × n`, C `m × n`.
///
/// # Panics
/// If the shapes do not fit, a stride is negative, or the rows of C or of a matrix to add are not contiguous.
#[track_caller]
pub(crate) fn packed_product(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    c: ArrayViewMut2<'_, f32>,
    start: Start<'_>,
) {
    compute(a, b, c, start, None);
}

/// [`packed_product`], and the sum of the squares of C, taken of each tile as soon as it is finished.
///
/// # Panics
/// As [`packed_product`].
#[track_caller]
pub(crate) fn packed_product_and_norm(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    c: ArrayViewMut2<'_, f32>,
    start: Start<'_>,
) -> f64 {
    let squares = Squares::default();
    compute(a, b, c, start, Some(&squares));
    squares.sum()
}

#[track_caller]
fn compute(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    mut c: ArrayViewMut2<'_, f32>,
    start: Start<'_>,
    squares: Option<&Squares>,
) {
    let ((rows, inner), columns) = (a.dim(), b.ncols());
    let (row, matrix) = match start {
        Start::Zero | Start::Output => (None, None),
        Start::Row(row) => (Some(row), None),
        Start::RowAndMatrix(row, matrix) => (Some(row), Some(matrix)),
    };
    assert!(
        b.nrows() == inner
            && c.dim() == (rows, columns)
            && row.is_none_or(|row| row.len() == columns)
            && matrix.is_none_or(|matrix| matrix.dim() == c.dim()),
        "packed_product: {:?} · {:?} into {:?}, to which is added a row of {:?} and a matrix of {:?}",
        a.dim(),
        b.dim(),
        c.dim(),
        row.map(<[f32]>::len),
        matrix.map(|matrix| matrix.dim())
    );
    if rows == 0 || columns == 0 {
        return;
    }
    let row_stride = |strides: &[isize]| {
        assert!(columns == 1 || strides[1] == 1, "packed_product: rows with strides {strides:?} are not contiguous");
        stride(strides[0], rows, columns)
    };
    let c_start = c.as_mut_ptr();
    let output = Addend { start: c_start, row_stride: row_stride(c.strides()) };
    let row = row.map(|row| Addend { start: row.as_ptr(), row_stride: 0 });
    let matrix =
        matrix.as_ref().map(|matrix| Addend { start: matrix.as_ptr(), row_stride: row_stride(matrix.strides()) });
    let addends = [row.unwrap_or(output), matrix.unwrap_or(output)];
    let addends = match start {
        Start::Zero => &[],
        Start::Output | Start::Row(_) => &addends[..1],
        Start::RowAndMatrix(..) => &addends[..],
    };
    let c = Output { start: c_start, row_stride: output.row_stride, addends, at: (0, 0), is_far: true, squares };
    with_panel(|panel| blocks(factor(&a), factor(&b), c, (rows, inner, columns), panel));
}

/// A stride as it is multiplied with. That of a side of length 1 is never used, and may be anything.
fn stride(stride: isize, length: usize, unused: usize) -> usize {
    if length <= 1 { unused } else { usize::try_from(stride).expect("packed_product: a stride is negative") }
}

/// Where the elements of a view lie.
pub(super) fn factor(view: &ArrayView2<'_, f32>) -> Factor {
    Factor {
        start: view.as_ptr(),
        row_stride: stride(view.strides()[0], view.nrows(), view.ncols()),
        column_stride: stride(view.strides()[1], view.ncols(), 1),
    }
}

kernel! {
    /// [`packed_product`] on operands that were found to have (rows, inner, columns) = `shape`.
    fn blocks<T>(a: Factor, b: Factor, c: Output<'_>, shape: (usize, usize, usize), panel: &mut [f32]) {
        let (rows, inner, columns) = shape;
        let part = |p: usize, column: usize| (INNER.min(inner - p), COLUMNS.min(columns - column));
        let itself = [Addend { start: c.start, row_stride: c.row_stride }];
        for row in (0..rows).step_by(ROWS) {
            let rows = ROWS.min(rows - row);
            let mut panels = panels(inner, columns).peekable();
            while let Some((p, column)) = panels.next() {
                let (inner_here, width) = part(p, column);
                let c = if p == 0 { c } else { Output { addends: &itself, ..c } };
                let c = if p + inner_here == inner { c } else { Output { squares: None, ..c } };
                // SAFETY: the blocks lie inside the operands, which the caller made of views, C of a mutable one. The panel has
                // room for a block of B; where B is read as it lies, its rows have whole sixteens.
                unsafe {
                    let mut ahead = match panels.peek() {
                        Some(&(p, column)) if rows >= ROWS_AHEAD => {
                            Ahead::of(b.from(p, column), part(p, column), rows / LOWER)
                        }
                        _ => Ahead::NONE,
                    };
                    let b = b.from(p, column);
                    let is_ready = rows <= FEW_ROWS && b.column_stride == 1 && width.is_multiple_of(LANES);
                    let b = if is_ready {
                        (b.start, b.row_stride)
                    } else {
                        pack::<T>(b, (inner_here, width), panel);
                        (panel.as_ptr(), width.next_multiple_of(LANES))
                    };
                    let shape = (rows, inner_here, width);
                    multiply::<T>(a.from(row, p), b, c.from(row, column), shape, &mut ahead);
                }
            }
        }
    }
}

/// Where the panels of B begin, by row and column, in the order in which they are used: those of some columns of C, then
/// of the next, so that C stays in the cache while sums are added to it.
///
/// An inner dimension of 0 has a panel for its columns too, where what is to be added is written.
#[inline(always)]
fn panels(inner: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..columns).step_by(GROUP).flat_map(move |group| {
        let columns = group..columns.min(group + GROUP);
        (0..inner.max(1))
            .step_by(INNER)
            .flat_map(move |p| columns.clone().step_by(COLUMNS).map(move |column| (p, column)))
    })
}

/// Writes rows × width elements of `b` to `panel`, rows of a multiple of 16 floats, the last ones zeros.
///
/// # Safety
/// `b` has these elements to read.
#[inline(always)]
pub(super) unsafe fn pack<T: Target>(b: Factor, (rows, width): (usize, usize), panel: &mut [f32]) {
    let padded = width.next_multiple_of(LANES);
    let full = width - width % LANES;
    if padded > full {
        panel.chunks_exact_mut(padded).take(rows).for_each(|row| row[full..].fill(0.0));
    }
    // SAFETY: indices are below `rows` and `width`.
    unsafe {
        if b.column_stride == 1 {
            for (p, row) in panel.chunks_exact_mut(padded).take(rows).enumerate() {
                let from = b.start.add(p * b.row_stride);
                for (sixteen, into) in row[..full].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    T::store(T::load(&*from.add(sixteen * LANES).cast::<Lanes>()), into);
                }
                for (column, into) in (full..width).zip(&mut row[full..]) {
                    *into = *from.add(column);
                }
            }
            return;
        }
        // The rows that make whole squares with the columns before `full` are transposed square by square.
        let whole = if b.row_stride == 1 { rows - rows % LANES } else { 0 };
        for column in (0..full).step_by(LANES) {
            for p in (0..whole).step_by(LANES) {
                let from = b.start.add(p + column * b.column_stride);
                let rows = std::array::from_fn(|row| T::load(&*from.add(row * b.column_stride).cast::<Lanes>()));
                for (row, lanes) in transpose_square::<T>(rows).into_iter().enumerate() {
                    let into = panel[(p + row) * padded + column..].first_chunk_mut();
                    T::store(lanes, into.expect("the panel has room for the square"));
                }
            }
        }
        for (p, row) in panel.chunks_exact_mut(padded).take(rows).enumerate() {
            let first = if p < whole { full } else { 0 };
            for (column, into) in (first..width).zip(&mut row[first..]) {
                *into = *b.start.add(p * b.row_stride + column * b.column_stride);
            }
        }
    }
}

/// C ← A·B + addends, with (rows, inner, width) = `shape`, and `b` the start of B and the distance between its rows;
/// each tile advances `ahead`.
///
/// # Safety
/// `a`, `b` and the addends have these elements to read, the rows of `b` up to a multiple of 16, and `c` to write; nobody
/// else has access to those of `c`.
#[inline(always)]
unsafe fn multiply<T: Target>(
    a: Factor,
    (b, b_stride): (*const f32, usize),
    c: Output<'_>,
    (rows, inner, width): (usize, usize, usize),
    ahead: &mut Ahead,
) {
    let full = width / LANES;
    // SAFETY: whole sixteens of C's columns are written in place, the columns after them by way of a tile that has room
    // for sixteen.
    unsafe {
        product_ahead::<T>(a, (b, b_stride), c, (rows, inner, full), ahead);
        if width.is_multiple_of(LANES) {
            return;
        }
        let mut tile = [[0.0; LANES]; HIGHEST];
        for row in (0..rows).step_by(HIGHEST) {
            let count = HIGHEST.min(rows - row);
            let into = Output {
                start: tile.as_mut_ptr().cast(),
                row_stride: LANES,
                addends: &[],
                at: (0, 0),
                is_far: false,
                squares: None,
            };
            product_ahead::<T>(
                a.from(row, 0),
                (b.wrapping_add(full * LANES), b_stride),
                into,
                (count, inner, 1),
                ahead,
            );
            for (i, sums) in tile[..count].iter().enumerate() {
                for (column, &sum) in (full * LANES..width).zip(sums) {
                    let added: f32 = c.added(row + i, column).map(|from| *from).sum();
                    *c.start.add((row + i) * c.row_stride + column) = sum + added;
                }
                if let Some(squares) = c.squares {
                    let mut rest = [0.0; LANES];
                    for (square, column) in rest.iter_mut().zip(full * LANES..width) {
                        let value = *c.start.add((row + i) * c.row_stride + column);
                        *square = value * value;
                    }
                    squares.add(&rest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;
    use crate::rng::{Purpose, Stream};

    fn random(rows: usize, columns: usize, step: u64) -> Array2<f32> {
        let mut values = vec![0.0; rows * columns];
        Stream::new(7, Purpose::Caller, step).fill_normal(&mut values, 1.0);
        Array2::from_shape_vec((rows, columns), values).unwrap()
    }

    #[test]
    fn panels_finish_a_group_of_columns_before_the_next() {
        let found: Vec<_> = panels(2 * INNER, GROUP + 1).collect();
        let mut expected: Vec<_> =
            [0, INNER].into_iter().flat_map(|p| (0..GROUP).step_by(COLUMNS).map(move |column| (p, column))).collect();
        expected.extend([(0, GROUP), (INNER, GROUP)]);
        assert_eq!(found, expected);
        assert_eq!(panels(0, 1).collect::<Vec<_>>(), [(0, 0)]);
    }

    #[test]
    fn agrees_with_f64_sums_in_every_layout_and_start() {
        // Beyond a panel's rows and columns, beyond the rows that share one, beyond a group of columns, and with every
        // remainder of a tile.
        let shapes = [
            (1, 1, 1),
            (2, 17, 16),
            (7, 64, 33),
            (13, 65, 270),
            (18, 200, 40),
            (775, 20, 17),
            (3, 5, 0),
            (20, 200, 0),
            (193, 200, 0),
            (193, 321, 258),
        ];
        for (m, n, k) in shapes {
            let (a, b) = (random(m, k, 0), random(k, n, 1));
            let sums = Array2::from_shape_fn((m, n), |(i, j)| {
                (0..k).map(|p| f64::from(a[[i, p]]) * f64::from(b[[p, j]])).sum::<f64>()
            });
            let (a_stored, b_stored) =
                (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
            let (row, wide) = (random(1, n, 2), random(m, n + 4, 3));
            let (row, matrix) = (row.as_slice().unwrap(), wide.slice(s![.., 2..n + 2]));
            under_every_instruction_set(|set| {
                for (a, b) in [(a.view(), b.view()), (a_stored.t(), b.view()), (a.view(), b_stored.t())] {
                    for start in [Start::Zero, Start::Output, Start::Row(row), Start::RowAndMatrix(row, matrix)] {
                        let mut c = Array2::from_elem((m, n + 3), f32::NAN);
                        if let Start::Output = start {
                            c.slice_mut(s![.., 1..=n]).assign(&matrix);
                        }
                        let squares = packed_product_and_norm(a, b, c.slice_mut(s![.., 1..=n]), start);
                        let exact: f64 = c.slice(s![.., 1..=n]).iter().map(|&x| f64::from(x).powi(2)).sum();
                        assert!(
                            (squares - exact).abs() <= 1.5e-6 * exact,
                            "{set:?}, {m} × {n} × {k}: {squares} for {exact}"
                        );
                        for ((i, j), &found) in c.indexed_iter() {
                            if j == 0 || j > n {
                                assert!(found.is_nan(), "written outside C at {i}, {j}");
                                continue;
                            }
                            let j = j - 1;
                            let added = match start {
                                Start::Zero => 0.0,
                                Start::Output => matrix[[i, j]],
                                Start::Row(row) => row[j],
                                Start::RowAndMatrix(row, matrix) => row[j] + matrix[[i, j]],
                            };
                            let expected = sums[[i, j]] + f64::from(added);
                            assert!(
                                (f64::from(found) - expected).abs() < 1e-4,
                                "{set:?}, {m} × {n} × {k}, {start:?}, at {i}, {j}: {found} for {expected}"
                            );
                        }
                    }
                }
            });
        }
    }
}
