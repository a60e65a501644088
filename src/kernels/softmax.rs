//! Softmax over rows, whole or causal, and its backward pass.
//!
//! p_j = e^(scale·s_j − ln Σ_k e^(scale·s_k)); the row's largest entry is subtracted from every exponent, so nothing
//! overflows. Probabilities that underflow the normal numbers before they are normalised are 0. The relative error of a
//! probability is below 2⁻²⁴·(8 + 2·|scale·s_j| + 2·|scale·max| + 2·ln n), where n entries are valid: the rounding of
//! the exponent dominates it.
//!
//! In causal rows the work on row r ends at its last valid entry, rounded up to a whole vector: masked entries in
//! between are set to −∞, whose exponential is 0. How far that is differs from row to row, so that single entries are
//! masked by comparisons of whole vectors, and nothing is called to clear the rest of a row.

use super::dispatch::{Target, kernel};
use super::exp::exp_flushed;
use super::lanes::{LANES, Lanes, combine, fold, larger, sum};

/// Rows that [`causal_softmax`] takes through each of its passes together, so that the processor works on the next row
/// while the result of a reduction is on its way.
const GROUP: usize = 8;

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
        for i in 0..LANES {
            block[i] = exp_flushed::<T>(T::multiply_add(scale, block[i], -shift));
            lanes[i] += block[i];
        }
    }
    let mut rest_sum = 0.0;
    for x in rest {
        *x = exp_flushed::<T>(T::multiply_add(scale, *x, -shift));
        rest_sum += *x;
    }
    sum(lanes) + rest_sum
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

/// The entries of a causal row that are worked on: the valid ones, and masked ones up to a whole vector.
#[inline(always)]
fn covered(row: &mut [f32], valid: usize) -> &mut [f32] {
    let covered = valid.next_multiple_of(LANES).min(row.len());
    &mut row[..covered]
}

/// Sixteen whole words, then sixteen of zeros: from 16 − n on they keep the bits of n lanes.
const KEEP: [u32; 2 * LANES] = {
    let mut keep = [0; 2 * LANES];
    let mut i = 0;
    while i < LANES {
        keep[i] = u32::MAX;
        i += 1;
    }
    keep
};

/// Overwrites the lanes from `valid` on. How many are valid is something else in every row, which a branch would not
/// foresee, and comparisons are not made with whole vectors.
#[inline(always)]
fn mask(lanes: &mut Lanes, valid: usize, with: f32) {
    let keep: &[u32; LANES] = KEEP[LANES - valid.min(LANES)..].first_chunk().expect("sixteen words from there on");
    for i in 0..LANES {
        lanes[i] = f32::from_bits((lanes[i].to_bits() & keep[i]) | (with.to_bits() & !keep[i]));
    }
}

/// Applies `f` to the valid entries of a causal row; the others become 0.
#[inline(always)]
fn map_valid(row: &mut [f32], valid: usize, f: impl Fn(f32) -> f32) {
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for (index, block) in blocks.iter_mut().enumerate() {
        let valid = valid.saturating_sub(index * LANES);
        if valid == 0 {
            *block = [0.0; LANES];
            continue;
        }
        for x in &mut *block {
            *x = f(*x);
        }
        mask(block, valid, 0.0);
    }
    let valid = valid.saturating_sub(blocks.len() * LANES);
    for (i, x) in rest.iter_mut().enumerate() {
        *x = if i < valid { f(*x) } else { 0.0 };
    }
}

/// The largest valid entry of a causal row, whose masked entries become −∞ up to a whole vector.
#[inline(always)]
fn masked_largest(row: &mut [f32], valid: usize) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = covered(row, valid).as_chunks_mut::<LANES>();
    for (index, block) in blocks.iter_mut().enumerate() {
        mask(block, valid - index * LANES, f32::NEG_INFINITY);
        for i in 0..LANES {
            lanes[i] = larger(block[i], lanes[i]);
        }
    }
    let mut rest_largest = f32::NEG_INFINITY;
    let valid = valid.saturating_sub(blocks.len() * LANES);
    for (i, x) in rest.iter_mut().enumerate() {
        *x = if i < valid { *x } else { f32::NEG_INFINITY };
        rest_largest = larger(*x, rest_largest);
    }
    larger(combine(lanes, larger), rest_largest)
}

/// Σ p·g over the valid entries of a causal row; masked entries of `g` become 0 up to a whole vector.
#[inline(always)]
fn masked_dot<T: Target>(p: &[f32], g: &mut [f32], valid: usize) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = covered(g, valid).as_chunks_mut::<LANES>();
    let (p_blocks, p_rest) = p.as_chunks::<LANES>();
    for (index, (p, g)) in p_blocks.iter().zip(&mut *blocks).enumerate() {
        mask(g, valid - index * LANES, 0.0);
        for i in 0..LANES {
            lanes[i] = T::multiply_add(p[i], g[i], lanes[i]);
        }
    }
    let mut rest_dot = 0.0;
    let valid = valid.saturating_sub(blocks.len() * LANES);
    for (i, (&p, g)) in p_rest.iter().zip(rest).enumerate() {
        *g = if i < valid { *g } else { 0.0 };
        rest_dot = T::multiply_add(p, *g, rest_dot);
    }
    sum(lanes) + rest_dot
}

/// Applies `f` to the [`covered`] entries of a causal row; those after them become 0.
#[inline(always)]
fn map_covered(row: &mut [f32], valid: usize, f: impl Fn(f32) -> f32) {
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for (index, block) in blocks.iter_mut().enumerate() {
        if index * LANES < valid {
            for x in block {
                *x = f(*x);
            }
        } else {
            *block = [0.0; LANES];
        }
    }
    let is_covered = blocks.len() * LANES < valid;
    for x in rest {
        *x = if is_covered { f(*x) } else { 0.0 };
    }
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
        for (group, log_sum_exp) in log_sum_exp.chunks_mut(GROUP).enumerate() {
            let mut shifts = [0.0; GROUP];
            let mut sums = [0.0; GROUP];
            let first = group * GROUP;
            let rows = &mut scores[first * width..][..log_sum_exp.len() * width];
            for (j, row) in rows.chunks_exact_mut(width).enumerate() {
                shifts[j] = scale * masked_largest(row, first_valid + first + j);
            }
            for (j, row) in rows.chunks_exact_mut(width).enumerate() {
                sums[j] = exponentials::<T>(covered(row, first_valid + first + j), scale, shifts[j]);
            }
            for (j, row) in rows.chunks_exact_mut(width).enumerate() {
                let factor = 1.0 / sums[j];
                map_covered(row, first_valid + first + j, |p| p * factor);
            }
            for (j, log_sum_exp) in log_sum_exp.iter_mut().enumerate() {
                *log_sum_exp = shifts[j] + sums[j].ln();
            }
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
            let row = &mut scores[r * width..][..width];
            map_valid(row, first_valid + r, |s| exp_flushed::<T>(T::multiply_add(scale, s, -log_sum_exp)));
        }
    }

    /// Backward pass of [`causal_softmax`]: `gradients`, which comes with d(loss)/dp, becomes d(loss)/ds =
    /// scale·p·(d(loss)/dp − Σ p·d(loss)/dp) in the valid entries and 0 after them.
    ///
    /// # Panics
    /// If the lengths do not agree, or as [`causal_softmax`].
    pub fn softmax_backward<T>(
        probabilities: &[f32], gradients: &mut [f32], width: usize, first_valid: usize, scale: f32,
    ) {
        let rows = causal_rows("softmax_backward", gradients.len(), width, first_valid);
        assert_eq!(probabilities.len(), gradients.len(), "softmax_backward: lengths of probabilities and gradients");
        for first in (0..rows).step_by(GROUP) {
            let mut dots = [0.0; GROUP];
            let count = GROUP.min(rows - first);
            let probabilities = &probabilities[first * width..][..count * width];
            let gradients = &mut gradients[first * width..][..count * width];
            for (j, (p, g)) in probabilities.chunks_exact(width).zip(gradients.chunks_exact_mut(width)).enumerate() {
                dots[j] = masked_dot::<T>(p, g, first_valid + first + j);
            }
            for (j, (p, g)) in probabilities.chunks_exact(width).zip(gradients.chunks_exact_mut(width)).enumerate() {
                let valid = first_valid + first + j;
                let (p_blocks, p_rest) = p.as_chunks::<LANES>();
                let (blocks, rest) = g.as_chunks_mut::<LANES>();
                for (index, (p, g)) in p_blocks.iter().zip(blocks).enumerate() {
                    if index * LANES < valid {
                        for i in 0..LANES {
                            g[i] = scale * p[i] * (g[i] - dots[j]);
                        }
                    } else {
                        *g = [0.0; LANES];
                    }
                }
                for (&p, g) in p_rest.iter().zip(rest) {
                    *g = if p_blocks.len() * LANES < valid { scale * p * (*g - dots[j]) } else { 0.0 };
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{
        Report, check_alignment, check_every_set, lengths, normal, numerical_gradient, wide,
    };

    /// ln Σ e^(scale·s), and softmax(scale·s).
    fn reference(scores: &[f64], scale: f64) -> (f64, Vec<f64>) {
        let largest = scores.iter().map(|s| s * scale).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s * scale - largest).exp()).sum();
        let log_sum_exp = largest + sum.ln();
        (log_sum_exp, scores.iter().map(|s| (s * scale - log_sum_exp).exp()).collect())
    }

    fn scaled(x: Vec<f32>, factor: f32) -> Vec<f32> {
        x.into_iter().map(|x| factor * x).collect()
    }

    /// Shapes (rows, width, first_valid) with every width and every kind of triangle.
    fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
        lengths().filter(|&width| width > 0).flat_map(|width| {
            let all = if width <= 128 { width } else { 3 };
            [(all, width, width + 1 - all), (1, width, width), (1, width, 1), (width.div_ceil(3).min(19), width, 1)]
        })
    }

    fn check_row(report: &mut Report, case: &str, found: &[f32], scores: &[f32], scale: f32) {
        let (_, expected) = reference(&wide(scores), scale.into());
        let largest = scores.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        report.close(case, &found[..scores.len()], &expected, |i, p| {
            let exponent = f64::from(scale * (scores[i].abs() + largest));
            p * (2.0f64).powi(-24) * (8.0 + 2.0 * (exponent + (scores.len() as f64).ln())) + 1e-37
        });
        report.same_bits(
            &format!("{case}, after the valid part"),
            &found[scores.len()..],
            &vec![0.0; found.len() - scores.len()],
        );
    }

    #[test]
    fn causal_rows_match_the_reference() {
        check_every_set(|report| {
            for (rows, width, first_valid) in shapes() {
                for (spread, scale) in [(1.0, 1.0), (30.0, 0.125), (100.0, 1.0)] {
                    let scores = scaled(normal(rows * width, (rows + width) as u64), spread);
                    let (mut p, mut log_sum_exp) = (scores.clone(), vec![f32::NAN; rows]);
                    causal_softmax(&mut p, width, first_valid, scale, &mut log_sum_exp);
                    let mut again = scores.clone();
                    causal_probabilities(&mut again, width, first_valid, scale, &log_sum_exp);
                    for r in 0..rows {
                        let valid = &scores[r * width..][..first_valid + r];
                        let case = format!("{rows} rows of {width} from {first_valid}, spread {spread}, row {r}");
                        check_row(report, &case, &p[r * width..][..width], valid, scale);
                        check_row(report, &format!("again, {case}"), &again[r * width..][..width], valid, scale);
                        let (expected, _) = reference(&wide(valid), scale.into());
                        report.close(&case, &log_sum_exp[r..=r], &[expected], |_, l| 2e-7 * (1.0 + l.abs()));
                    }
                }
            }
        });
    }

    #[test]
    fn the_backward_pass_matches_differences() {
        check_every_set(|report| {
            for (rows, width, first_valid) in shapes().filter(|&(_, width, _)| width <= 67) {
                let scale = 0.5;
                let length = rows * width;
                let (scores, upstream) = (normal(length, length as u64), normal(length, 1 + length as u64));
                let (mut p, mut log_sum_exp) = (scores.clone(), vec![0.0; rows]);
                causal_softmax(&mut p, width, first_valid, scale, &mut log_sum_exp);
                let mut gradients = upstream.clone();
                for r in 0..rows {
                    // What the masked part holds must not matter.
                    gradients[r * width..][first_valid + r..width].fill(f32::NAN);
                }
                softmax_backward(&p, &mut gradients, width, first_valid, scale);
                // The derivatives by differences of a few rows: the first, a middle one, the last.
                for r in [0, rows / 2, rows - 1] {
                    let valid = first_valid + r;
                    let upstream = &upstream[r * width..][..valid];
                    let mut expected = numerical_gradient(&wide(&scores[r * width..][..valid]), 1e-5, |scores| {
                        let (_, p) = reference(scores, scale.into());
                        p.iter().zip(upstream).map(|(p, &g)| p * f64::from(g)).sum()
                    });
                    expected.resize(width, 0.0);
                    let case = format!("{rows} rows of {width} from {first_valid}, row {r}");
                    report.close(&case, &gradients[r * width..][..width], &expected, |_, _| 1e-6);
                }
            }
        });
    }

    #[test]
    fn whole_rows_match_the_reference_at_every_length() {
        check_every_set(|report| {
            for length in lengths() {
                let scores = scaled(normal(length, length as u64), 5.0);
                let mut p = scores.clone();
                softmax(&mut p);
                check_row(report, &format!("length {length}"), &p, &scores, 1.0);
            }
        });
        check_alignment(&[&normal(67, 1)], |slices| softmax(slices[0]));
        check_alignment(&[&normal(67 * 5, 1), &[0.0; 5]], |slices| {
            let [scores, log_sum_exp] = slices else { unreachable!() };
            causal_softmax(scores, 67, 33, 0.5, log_sum_exp);
        });
    }

    #[test]
    fn extremes_become_probabilities_or_nan() {
        const INFINITY: f32 = f32::INFINITY;
        let cases: [(&[f32], &[f32]); 7] = [
            (&[-INFINITY, 0.0, -INFINITY, 0.0], &[0.0, 0.5, 0.0, 0.5]),
            (&[f32::MAX, f32::MIN, 0.0], &[1.0, 0.0, 0.0]),
            (&[-1e30, -1e30], &[0.5, 0.5]),
            (&[-0.0], &[1.0]),
            (&[-INFINITY, -INFINITY], &[f32::NAN; 2]),
            (&[0.0, INFINITY], &[f32::NAN; 2]),
            (&[0.0, f32::NAN, 1.0], &[f32::NAN; 3]),
        ];
        check_every_set(|report| {
            for (scores, expected) in cases {
                let same = |p: &[f32]| p.iter().zip(expected).all(|(p, e)| p == e || (p.is_nan() && e.is_nan()));
                let mut p = scores.to_vec();
                softmax(&mut p);
                report.check(same(&p), || format!("softmax of {scores:?}: {p:?}"));
                let (mut p, mut log_sum_exp) = (scores.to_vec(), [0.0]);
                causal_softmax(&mut p, scores.len(), scores.len(), 1.0, &mut log_sum_exp);
                report.check(same(&p), || format!("causal softmax of {scores:?}: {p:?}"));
                report.check(log_sum_exp[0].is_finite() == expected[0].is_finite(), || {
                    format!("log-sum-exp of {scores:?}: {}", log_sum_exp[0])
                });
            }
            let mut nothing = [];
            causal_softmax(&mut nothing, 4, 1, 1.0, &mut []);
        });
    }

    #[test]
    #[should_panic(expected = "3 rows of width 4 cannot have 3 valid entries")]
    fn causal_softmax_refuses_too_many_rows() {
        causal_softmax(&mut [0.0; 12], 4, 3, 1.0, &mut [0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "rows of scores and of log_sum_exp")]
    fn causal_softmax_refuses_another_number_of_rows() {
        causal_softmax(&mut [0.0; 12], 4, 1, 1.0, &mut [0.0; 2]);
    }
}
