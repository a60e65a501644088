//! Elementwise passes over slices, and over rows with one row.

use super::dispatch::kernel;
pub use super::reduce::{all_finite, dot, squared_norm, sum_rows};

/// The rows of width `row` in `rows` floats.
#[inline(always)]
#[track_caller]
fn check_rows(name: &str, rows: usize, width: usize) {
    assert!(
        if width == 0 { rows == 0 } else { rows.is_multiple_of(width) },
        "{name}: {rows} floats are no rows of width {width}"
    );
}

kernel! {
    /// y ← y + a·x.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn axpy<T>(y: &mut [f32], a: f32, x: &[f32]) {
        assert_eq!(y.len(), x.len(), "axpy: lengths of y and x");
        for (y, &x) in y.iter_mut().zip(x) {
            *y = T::multiply_add(a, x, *y);
        }
    }

    /// y ← y + x.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign<T>(y: &mut [f32], x: &[f32]) {
        assert_eq!(y.len(), x.len(), "add_assign: lengths of y and x");
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// y ← y·x, elementwise.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn multiply_assign<T>(y: &mut [f32], x: &[f32]) {
        assert_eq!(y.len(), x.len(), "multiply_assign: lengths of y and x");
        for (y, &x) in y.iter_mut().zip(x) {
            *y *= x;
        }
    }

    /// x ← a·x.
    pub fn scale<T>(x: &mut [f32], a: f32) {
        for x in x {
            *x *= a;
        }
    }

    /// Every row of `rows` ← `row`, as before a matrix product that adds to a bias.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn fill_rows<T>(rows: &mut [f32], row: &[f32]) {
        check_rows("fill_rows", rows.len(), row.len());
        for out in rows.chunks_exact_mut(row.len().max(1)) {
            out.copy_from_slice(row);
        }
    }

    /// Every row of `rows` ← itself + `row`.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn add_row<T>(rows: &mut [f32], row: &[f32]) {
        check_rows("add_row", rows.len(), row.len());
        for out in rows.chunks_exact_mut(row.len().max(1)) {
            for (out, &bias) in out.iter_mut().zip(row) {
                *out += bias;
            }
        }
    }

    /// Every row of `out` ← the row of `x` + `row`, as a residual with a bias.
    ///
    /// # Panics
    /// If the lengths of `out` and `x` differ, or they are not a whole number of rows.
    pub fn add_with_row<T>(out: &mut [f32], x: &[f32], row: &[f32]) {
        assert_eq!(out.len(), x.len(), "add_with_row: lengths of out and x");
        check_rows("add_with_row", x.len(), row.len());
        let width = row.len().max(1);
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for ((out, &x), &bias) in out.iter_mut().zip(x).zip(row) {
                *out = x + bias;
            }
        }
    }
}
