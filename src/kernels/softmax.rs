//! Softmax over rows, whole or causal, and its backward pass.
//!
//! p_j = e^(scale·s_j − ln Σ_k e^(scale·s_k)); the row's largest entry is subtracted from every exponent, so nothing
//! overflows. Probabilities that underflow the normal numbers before they are normalised are 0. The relative error of a
//! probability is below 2⁻²⁴·(8 + 2·|scale·s_j| + 2·|max|), which the rounding of the exponent dominates.
//!
//! In causal rows the work on row r ends at its last valid entry, rounded up to a whole vector: masked entries in
//! between are set to −∞, whose exponential is 0.

use super::dispatch::{Target, kernel};
use super::exp::exp_flushed;
use super::lanes::{LANES, combine, fold, larger, sum};

/// The largest entry of `x`, passing over NaN; −∞ for none.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    combine(fold(x, f32::NEG_INFINITY, |a, x| larger(x, a), larger), larger)
}

/// x ← e^(scale·x − shift), which must not exceed e⁸⁸; returns the sum of it.
#[inline(always)]
pub(super) fn exponentials<T: Target>(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks_mut::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *x = exp_flushed::<T>(T::multiply_add(scale, *x, -shift));
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp_flushed::<T>(T::multiply_add(scale, *x, -shift));
        *lane += *x;
    }
    sum(lanes)
}

/// The number of rows, and a check that row r may have `first_valid + r` valid entries.
#[inline(always)]
#[track_caller]
fn causal_rows(name: &str, length: usize, width: usize, first_valid: usize) -> usize {
    if length == 0 {
        return 0;
    }
    assert!(width > 0 && length.is_multiple_of(width), "{name}: {length} floats are no rows of width {width}");
    let rows = length / width;
    assert!(
        first_valid > 0 && first_valid - 1 + rows <= width,
        "{name}: {rows} rows of width {width} cannot have {first_valid} valid entries and one more each row"
    );
    rows
}

/// Splits a causal row into the entries to be worked on, whose masked end is set to −∞, and the rest, which is set to 0.
#[inline(always)]
fn masked(row: &mut [f32], valid: usize) -> &mut [f32] {
    let covered = valid.next_multiple_of(LANES).min(row.len());
    let (covered, rest) = row.split_at_mut(covered);
    rest.fill(0.0);
    for x in &mut covered[valid..] {
        *x = f32::NEG_INFINITY;
    }
    covered
}

kernel! {
    /// Causal softmax, in place: row r of the n rows of `scores` has `first_valid + r` valid entries s, which become
    /// softmax(scale·s); the entries after them become 0. `log_sum_exp[r]` ← ln Σ e^(scale·s).
    ///
    /// A valid entry that is NaN or +∞ makes its row NaN, and so does a row whose valid entries are all −∞.
    ///
    /// # Panics
    /// If `scores` is not `log_sum_exp.len()` rows of `width`, if a row would have no valid entry or more than `width`,
    /// or if `scale` is not above 0.
    pub fn causal_softmax<T>(
        scores: &mut [f32], width: usize, first_valid: usize, scale: f32, log_sum_exp: &mut [f32],
    ) {
        let rows = causal_rows("causal_softmax", scores.len(), width, first_valid);
        assert_eq!(rows, log_sum_exp.len(), "causal_softmax: rows of scores and of log_sum_exp");
        assert!(scale > 0.0, "causal_softmax: scale {scale}");
        for (r, log_sum_exp) in log_sum_exp.iter_mut().enumerate() {
            let row = masked(&mut scores[r * width..][..width], first_valid + r);
            let shift = scale * largest(row);
            let sum = exponentials::<T>(row, scale, shift);
            let factor = 1.0 / sum;
            for p in row {
                *p *= factor;
            }
            *log_sum_exp = shift + sum.ln();
        }
    }

    /// Recomputes what [`causal_softmax`] made of `scores` from its `log_sum_exp`: p = e^(scale·s − log_sum_exp) in
    /// the valid entries, 0 after them.
    ///
    /// # Panics
    /// As [`causal_softmax`].
    pub fn causal_probabilities<T>(
        scores: &mut [f32], width: usize, first_valid: usize, scale: f32, log_sum_exp: &[f32],
    ) {
        let rows = causal_rows("causal_probabilities", scores.len(), width, first_valid);
        assert_eq!(rows, log_sum_exp.len(), "causal_probabilities: rows of scores and of log_sum_exp");
        assert!(scale > 0.0, "causal_probabilities: scale {scale}");
        for (r, &log_sum_exp) in log_sum_exp.iter().enumerate() {
            for s in masked(&mut scores[r * width..][..width], first_valid + r) {
                *s = exp_flushed::<T>(T::multiply_add(scale, *s, -log_sum_exp));
            }
        }
    }

    /// Backward pass of [`causal_softmax`]: `gradients`, which comes with d(loss)/dp, becomes d(loss)/ds =
    /// scale·p·(d(loss)/dp − row_dot) in the valid entries and 0 after them, where `row_dots[r]` is Σ p·d(loss)/dp over
    /// row r.
    ///
    /// # Panics
    /// If the lengths do not agree, or as [`causal_softmax`].
    pub fn softmax_backward<T>(
        probabilities: &[f32], gradients: &mut [f32], width: usize, first_valid: usize, scale: f32, row_dots: &[f32],
    ) {
        let rows = causal_rows("softmax_backward", gradients.len(), width, first_valid);
        assert_eq!(probabilities.len(), gradients.len(), "softmax_backward: lengths of probabilities and gradients");
        assert_eq!(rows, row_dots.len(), "softmax_backward: rows of gradients and of row_dots");
        for (r, &row_dot) in row_dots.iter().enumerate() {
            let row = &mut gradients[r * width..][..width];
            let valid = first_valid + r;
            let covered = valid.next_multiple_of(LANES).min(width);
            for (g, &p) in row[..covered].iter_mut().zip(&probabilities[r * width..][..covered]) {
                *g = scale * p * (*g - row_dot);
            }
            row[valid..].fill(0.0);
        }
    }

    /// row ← softmax(row).
    ///
    /// An entry that is NaN or +∞ makes the row NaN, and so do entries that are all −∞.
    pub fn softmax<T>(row: &mut [f32]) {
        let shift = largest(row);
        let factor = 1.0 / exponentials::<T>(row, 1.0, shift);
        for p in row {
            *p *= factor;
        }
    }
}
