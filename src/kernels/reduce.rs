//! Reductions: sums over rows, dot products and norms, each in an order that depends on the lengths alone.

use super::dispatch::{Target, kernel};
use super::lanes::{LANES, fold_pairs, sum};

/// Accumulators of 16 f64 lanes in a squared norm.
const WIDE: usize = 2 * LANES;

/// Floats between checks whether a slice has already been found not finite.
const FINITE_BLOCK: usize = 4096;

/// Rows that [`sum_rows`] adds at once.
const ROWS: usize = 8;

kernel! {
    /// Σ x·y, in f32: 64 partial sums, then their sum by halving.
    ///
    /// The error is below (n/64 + 8)·2⁻²⁴·Σ |x·y| for n elements.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn dot<T>(x: &[f32], y: &[f32]) -> f32 {
        assert_eq!(x.len(), y.len(), "dot: lengths of x and y");
        sum(fold_pairs(x, y, |a, x, y| T::multiply_add(x, y, a)))
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
