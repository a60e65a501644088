//! Reductions: sums over rows, dot products and norms, each in an order that depends on the lengths alone.

use super::dispatch::{Target, kernel};
use super::lanes::{LANES, sum_pairs};

/// Accumulators of 16 f64 lanes in a squared norm.
const WIDE: usize = 2 * LANES;

/// Floats between checks whether a slice has already been found not finite.
const FINITE_BLOCK: usize = 4096;

/// Rows that [`sum_rows`] adds at once.
const ROWS: usize = 8;

kernel! {
    /// Σ x·y, in f32: 64 partial sums, then their sum by halving.
    ///
    /// The error is below (n/64 + 24)·2⁻²⁴·Σ |x·y| for n elements.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn dot<T>(x: &[f32], y: &[f32]) -> f32 {
        assert_eq!(x.len(), y.len(), "dot: lengths of x and y");
        sum_pairs(x, y, |a, x, y| T::multiply_add(x, y, a))
    }

    /// Σ x², accumulated in f64: squares of floats are exact there, and no finite slice overflows.
    #[must_use]
    pub fn squared_norm<T>(x: &[f32]) -> f64 {
        let mut lanes = [0.0; WIDE];
        let (blocks, rest) = x.as_chunks::<WIDE>();
        for block in blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane = add_square::<T>(*lane, x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane = add_square::<T>(*lane, x);
        }
        sum_wide(lanes)
    }

    /// into ← into + other, and the squared norm of the sum, in the order of [`squared_norm`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_and_squared_norm<T>(into: &mut [f32], other: &[f32]) -> f64 {
        assert_eq!(into.len(), other.len(), "add_and_squared_norm: lengths of into and other");
        let mut lanes = [0.0; WIDE];
        let (blocks, rest) = into.as_chunks_mut::<WIDE>();
        let (other_blocks, other_rest) = other.as_chunks::<WIDE>();
        for (block, other) in blocks.iter_mut().zip(other_blocks) {
            for i in 0..WIDE {
                block[i] += other[i];
                lanes[i] = add_square::<T>(lanes[i], block[i]);
            }
        }
        for ((lane, into), &other) in lanes.iter_mut().zip(rest).zip(other_rest) {
            *into += other;
            *lane = add_square::<T>(*lane, *into);
        }
        sum_wide(lanes)
    }

    /// out ← the sum of the rows of `rows`, which are as wide as `out`, or out + that sum if `accumulate`: the gradient
    /// of a bias.
    ///
    /// Rows are added eight at a time, as ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), and those sums in order; the error
    /// is below (n/8 + 4)·2⁻²⁴·Σ |x| for n rows.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn sum_rows<T>(rows: &[f32], out: &mut [f32], accumulate: bool) {
        let width = out.len();
        assert!(
            if width == 0 { rows.is_empty() } else { rows.len().is_multiple_of(width) },
            "sum_rows: {} floats are no rows of width {width}", rows.len()
        );
        if !accumulate {
            out.fill(0.0);
        }
        if width == 0 {
            return;
        }
        let mut groups = rows.chunks_exact(ROWS * width);
        for group in &mut groups {
            let mut parts = group.chunks_exact(width);
            let [a, b, c, d, e, f, g, h]: [&[f32]; ROWS] =
                std::array::from_fn(|_| parts.next().unwrap_or_default());
            for i in 0..width {
                out[i] += ((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i]));
            }
        }
        for row in groups.remainder().chunks_exact(width) {
            for (out, &x) in out.iter_mut().zip(row) {
                *out += x;
            }
        }
    }

    /// Whether no element is infinite or NaN.
    #[must_use]
    pub fn all_finite<T>(x: &[f32]) -> bool {
        const INFINITY: u32 = f32::INFINITY.to_bits();
        x.chunks(FINITE_BLOCK).all(|block| {
            block.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & !(1 << 31))) < INFINITY
        })
    }
}

#[inline(always)]
fn add_square<T: Target>(sum: f64, x: f32) -> f64 {
    let x = f64::from(x);
    if T::FUSED { x.mul_add(x, sum) } else { x * x + sum }
}

/// The sum of the lanes, by halving.
#[inline(always)]
fn sum_wide(mut lanes: [f64; WIDE]) -> f64 {
    let mut half = WIDE / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, wide};

    #[test]
    fn dots_and_norms_match_at_every_length() {
        check_every_set(|report| {
            for length in lengths() {
                let (x, y) = (normal(length, 1), normal(length, 2));
                let (exact_x, exact_y) = (wide(&x), wide(&y));
                let case = |name: &str| format!("{name}, length {length}");
                let terms = || exact_x.iter().zip(&exact_y).map(|(x, y)| x * y);
                let bound = (length as f64 / 64.0 + 24.0) * (2.0f64).powi(-24) * terms().map(f64::abs).sum::<f64>();
                report.close(&case("dot"), &[dot(&x, &y)], &[terms().sum()], |_, _| bound);
                let norm = squared_norm(&x);
                let expected: f64 = exact_x.iter().map(|x| x * x).sum();
                report.check((norm - expected).abs() <= 1e-13 * expected, || {
                    format!("{}: {norm}, expected {expected}", case("squared_norm"))
                });
                let mut sum = x.clone();
                let norm = add_and_squared_norm(&mut sum, &y);
                let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
                report.same_bits(&case("add_and_squared_norm"), &sum, &expected);
                report.check(norm.to_bits() == squared_norm(&expected).to_bits(), || case("norm of the sum"));
            }
        });
        check_alignment(&[&normal(67, 1), &normal(67, 2), &[0.0; 3]], |slices| {
            let [x, y, out] = slices else { unreachable!() };
            out.copy_from_slice(&[dot(x, y), squared_norm(x) as f32, add_and_squared_norm(x, y) as f32]);
        });
    }

    #[test]
    fn column_sums_match_at_every_shape() {
        check_every_set(|report| {
            for width in lengths() {
                for rows in [0, 1, 7, 8, 9, 16, 23] {
                    let (x, start) = (normal(rows * width, 1), normal(width, 2));
                    for accumulate in [false, true] {
                        let mut out = if accumulate { start.clone() } else { vec![f32::NAN; width] };
                        sum_rows(&x, &mut out, accumulate);
                        let first = |i: usize| if accumulate { f64::from(start[i]) } else { 0.0 };
                        let sizes: Vec<f64> = (0..width)
                            .map(|i| (0..rows).map(|r| f64::from(x[r * width + i].abs())).sum::<f64>() + first(i).abs())
                            .collect();
                        let expected: Vec<f64> = (0..width)
                            .map(|i| (0..rows).map(|r| f64::from(x[r * width + i])).sum::<f64>() + first(i))
                            .collect();
                        let case = format!("{rows} rows of {width}, accumulate {accumulate}");
                        let steps = rows as f64 / 8.0 + 11.0;
                        report.close(&case, &out, &expected, |i, _| steps * (2.0f64).powi(-24) * sizes[i]);
                    }
                }
            }
        });
        check_alignment(&[&normal(67 * 11, 1), &normal(67, 2)], |slices| {
            let [rows, out] = slices else { unreachable!() };
            sum_rows(rows, out, true);
        });
    }

    #[test]
    fn large_norms_do_not_overflow_and_bad_ones_show() {
        check_every_set(|report| {
            let norm = squared_norm(&[f32::MAX; 40]);
            report.check((norm / f64::from(f32::MAX).powi(2) - 40.0).abs() < 1e-12, || format!("{norm}"));
            let tiny = squared_norm(&[f32::from_bits(1); 40]);
            report.check(tiny > 0.0, || "denormals are lost".into());
            report.check(squared_norm(&[f32::INFINITY, 1.0]) == f64::INFINITY, || "infinity is lost".into());
            report.check(squared_norm(&[1.0, f32::NAN]).is_nan(), || "NaN is lost".into());
        });
    }

    #[test]
    fn all_finite_finds_one_bad_element_anywhere() {
        check_every_set(|report| {
            for length in lengths() {
                let mut x = normal(length, 1);
                if let Some(first) = x.first_mut() {
                    *first = f32::MIN;
                }
                report.check(all_finite(&x), || format!("length {length}: finite"));
                let step = if length > 128 { 97 } else { 1 };
                for i in (0..length).step_by(step).chain(length.checked_sub(1)) {
                    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let kept = std::mem::replace(&mut x[i], bad);
                        report.check(!all_finite(&x), || format!("{bad} at {i} of {length} is not found"));
                        x[i] = kept;
                    }
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "sum_rows: 7 floats are no rows of width 3")]
    fn sum_rows_refuses_a_part_of_a_row() {
        sum_rows(&[0.0; 7], &mut [0.0; 3], false);
    }
}
