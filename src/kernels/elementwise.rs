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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, wide};

    #[test]
    fn passes_over_slices_match_at_every_length() {
        check_every_set(|report| {
            for length in lengths() {
                let (x, y) = (normal(length, 1), normal(length, 2));
                let pairs = || x.iter().zip(&y).map(|(&x, &y)| (f64::from(x), f64::from(y)));
                let case = |name: &str| format!("{name}, length {length}");
                let mut out = y.clone();
                axpy(&mut out, -0.3, &x);
                let expected: Vec<f64> = pairs().map(|(x, y)| y + f64::from(-0.3f32) * x).collect();
                report.close(&case("axpy"), &out, &expected, |i, _| 1.2e-7 * f64::from(x[i].abs() + y[i].abs()));
                let mut out = y.clone();
                add_assign(&mut out, &x);
                let expected: Vec<f32> = pairs().map(|(x, y)| (x + y) as f32).collect();
                report.same_bits(&case("add_assign"), &out, &expected);
                let mut out = y.clone();
                multiply_assign(&mut out, &x);
                let expected: Vec<f32> = pairs().map(|(x, y)| (x * y) as f32).collect();
                report.same_bits(&case("multiply_assign"), &out, &expected);
                let mut out = x.clone();
                scale(&mut out, 0.7);
                let expected: Vec<f32> = wide(&x).iter().map(|x| (x * f64::from(0.7f32)) as f32).collect();
                report.same_bits(&case("scale"), &out, &expected);
            }
        });
        check_alignment(&[&normal(67, 1), &normal(67, 2)], |slices| {
            let [y, x] = slices else { unreachable!() };
            axpy(y, 0.3, x);
        });
    }

    #[test]
    fn passes_over_rows_match_at_every_width() {
        check_every_set(|report| {
            for width in lengths() {
                for rows in [0, 1, 3] {
                    let (x, row) = (normal(rows * width, 1), normal(width, 2));
                    let case = |name: &str| format!("{name}, {rows} rows of {width}");
                    let expected: Vec<f32> = x.iter().zip(row.repeat(rows)).map(|(x, bias)| x + bias).collect();
                    let mut out = x.clone();
                    add_row(&mut out, &row);
                    report.same_bits(&case("add_row"), &out, &expected);
                }
            }
        });
    }

    #[test]
    fn specials_follow_ieee_arithmetic() {
        check_every_set(|report| {
            let mut y = [f32::INFINITY, f32::MAX, -0.0, f32::NAN, f32::from_bits(3)].repeat(7);
            axpy(&mut y, 1.0, &[f32::NEG_INFINITY, f32::MAX, -0.0, 0.0, 0.0].repeat(7));
            for y in y.chunks(5) {
                let good = y[0].is_nan() && y[1] == f32::INFINITY && y[2].to_bits() == (-0.0f32).to_bits();
                report.check(good && y[3].is_nan() && y[4] == f32::from_bits(3), || format!("{y:?}"));
            }
        });
    }

    #[test]
    #[should_panic(expected = "axpy: lengths of y and x")]
    fn axpy_refuses_different_lengths() {
        axpy(&mut [0.0; 3], 1.0, &[0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "7 floats are no rows of width 3")]
    fn add_row_refuses_a_part_of_a_row() {
        add_row(&mut [0.0; 7], &[0.0; 3]);
    }
}
