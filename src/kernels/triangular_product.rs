//! Products of which a triangle is left out, for the tiles of a causal attention that lie on its diagonal.
//!
//! C is worked off in blocks of rows, each with the part of the inner dimension, or of the columns, that it needs: about
//! 0.6 of a square's multiplications remain.
#![allow(unsafe_code)]

use ndarray::{ArrayView2, ArrayViewMut2};

use super::dispatch::kernel;
use super::lanes::LANES;
use super::packed_product::{HIGHEST, PANEL_FLOATS, factor, pack, with_panel};
use super::tile::{Addend, Factor, Output, product};

/// Where the triangle lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Triangle {
    /// Of C, the elements on and below the diagonal are wanted; those above are written or left as they are.
    Wanted,
    /// A is 0 above its diagonal.
    Lower,
    /// A is 0 below its diagonal.
    Upper,
}

/// Whether [`triangular_product`] takes A·B: if B has whole sixteens of columns, and lies in rows or fits into a panel.
#[must_use]
pub(crate) fn takes(b: ArrayView2<'_, f32>) -> bool {
    b.ncols().is_multiple_of(LANES) && !b.is_empty() && (b.strides()[1] == 1 || b.len() <= PANEL_FLOATS)
}

/// C ← A·B, or C ← C + A·B if `accumulate`, without the multiplications by the `triangle`'s zeros.
///
/// # Panics
/// If the shapes do not fit, B is none that it [takes], or the rows of C are not contiguous.
#[track_caller]
pub(crate) fn triangular_product(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    mut c: ArrayViewMut2<'_, f32>,
    triangle: Triangle,
    accumulate: bool,
) {
    let ((rows, inner), columns) = (a.dim(), b.ncols());
    assert!(
        b.nrows() == inner && c.dim() == (rows, columns) && takes(b) && c.strides()[1] == 1,
        "triangular_product: {:?} · {:?} with strides {:?} into {:?} with strides {:?}",
        a.dim(),
        b.dim(),
        b.strides(),
        c.dim(),
        c.strides()
    );
    let row_stride = factor(&c.view()).row_stride;
    let start = c.as_mut_ptr();
    let itself = [Addend { start, row_stride }];
    let addends = if accumulate { &itself[..] } else { &[] };
    let c = Output { start, row_stride, addends, at: (0, 0), is_far: triangle != Triangle::Wanted, squares: None };
    with_panel(|panel| row_blocks(factor(&a), factor(&b), c, (rows, inner, columns), triangle, panel));
}

kernel! {
    /// [`triangular_product`] on operands that were found to have (rows, inner, columns) = `shape`.
    fn row_blocks<T>(
        a: Factor, b: Factor, c: Output<'_>, shape: (usize, usize, usize), triangle: Triangle, panel: &mut [f32],
    ) {
        let (rows, inner, columns) = shape;
        let b = if b.column_stride == 1 {
            b
        } else {
            // SAFETY: B has these elements, as the caller found, and the panel room for them.
            unsafe { pack::<T>(b, (inner, columns), panel) };
            Factor { start: panel.as_ptr(), row_stride: columns, column_stride: 1 }
        };
        for row in (0..rows).step_by(HIGHEST) {
            let count = HIGHEST.min(rows - row);
            let below = row + count;
            let (needed, columns) = match triangle {
                Triangle::Wanted => (0..inner, below.next_multiple_of(LANES).min(columns)),
                Triangle::Lower => (0..below.min(inner), columns),
                Triangle::Upper => (row.min(inner)..inner, columns),
            };
            let from = b.from(needed.start, 0);
            let shape = (count, needed.len(), columns / LANES);
            // SAFETY: the blocks lie inside the operands, which the caller made of views, C of a mutable one; the rows of B
            // have whole sixteens.
            unsafe {
                product::<T>(a.from(row, needed.start), (from.start, from.row_stride), c.from(row, 0), shape);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;
    use crate::kernels::testing::normal;

    fn random(rows: usize, columns: usize, step: u64) -> Array2<f32> {
        Array2::from_shape_vec((rows, columns), normal(rows * columns, step)).unwrap()
    }

    /// Whether element (i, j) belongs to the triangle that counts.
    fn counts(triangle: Triangle, i: usize, j: usize) -> bool {
        if triangle == Triangle::Upper { j >= i } else { j <= i }
    }

    #[test]
    fn agrees_with_f64_sums_in_every_triangle() {
        let sizes = (1..=67).chain([100, 129]);
        for (rows, inner, columns) in
            sizes.flat_map(|rows| [(rows, 33, 16), (rows, rows, 32), (rows, 64, 64), (rows, 40, 80)])
        {
            for triangle in [Triangle::Wanted, Triangle::Lower, Triangle::Upper] {
                let (mut a, b, former) =
                    (random(rows, inner, 0), random(inner, columns, 1), random(rows, columns + 3, 2));
                if triangle != Triangle::Wanted {
                    a.indexed_iter_mut().filter(|((i, j), _)| !counts(triangle, *i, *j)).for_each(|(_, a)| *a = 0.0);
                }
                let (a_stored, b_stored) =
                    (a.t().as_standard_layout().into_owned(), b.t().as_standard_layout().into_owned());
                under_every_instruction_set(|set| {
                    for (a, b) in [(a.view(), b.view()), (a_stored.t(), b.view()), (a.view(), b_stored.t())] {
                        for accumulate in [false, true] {
                            let mut c = former.clone();
                            triangular_product(a, b, c.slice_mut(s![.., 1..=columns]), triangle, accumulate);
                            for ((i, j), &found) in c.indexed_iter() {
                                let case = || {
                                    format!(
                                        "{set:?}, {rows} × {columns} × {inner}, {triangle:?}, {accumulate}, at {i}, {j}"
                                    )
                                };
                                let before = former[[i, j]];
                                if j == 0 || j > columns {
                                    assert_eq!(found, before, "written outside C: {}", case());
                                    continue;
                                }
                                if triangle == Triangle::Wanted && !counts(triangle, i, j - 1) {
                                    continue;
                                }
                                let term = |p: usize| f64::from(a[[i, p]]) * f64::from(b[[p, j - 1]]);
                                let sum =
                                    (0..inner).map(term).sum::<f64>() + if accumulate { before.into() } else { 0.0 };
                                assert!((f64::from(found) - sum).abs() < 1e-4, "{}: {found} for {sum}", case());
                            }
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn the_zeros_are_not_multiplied_by() {
        // A NaN in what belongs to a whole block of zeros leaves no trace.
        let ones = Array2::<f32>::ones((64, 64));
        let mut late = ones.clone();
        late.slice_mut(s![2 * HIGHEST.., ..]).fill(f32::NAN);
        let mut c = ones.clone();
        triangular_product(ones.view(), late.view(), c.view_mut(), Triangle::Lower, false);
        assert!(c.slice(s![..2 * HIGHEST, ..]).iter().all(|c| c.is_finite()));
        let mut early = ones.clone();
        early.slice_mut(s![..2 * HIGHEST, ..]).fill(f32::NAN);
        triangular_product(ones.view(), early.view(), c.view_mut(), Triangle::Upper, false);
        assert!(c.slice(s![2 * HIGHEST.., ..]).iter().all(|c| c.is_finite()));
        c.fill(-1.0);
        triangular_product(ones.view(), ones.view(), c.view_mut(), Triangle::Wanted, false);
        assert!(c.slice(s![..HIGHEST, LANES..]).iter().all(|&c| c == -1.0));
    }

    #[test]
    #[should_panic(expected = "triangular_product")]
    fn columns_that_are_no_sixteens_are_refused() {
        let (a, b) = (random(3, 3, 0), random(3, 17, 1));
        triangular_product(a.view(), b.view(), Array2::zeros((3, 17)).view_mut(), Triangle::Lower, false);
    }
}
