//! Softmax cross-entropy of one row of logits, and its gradient in place.
//!
//! With p = softmax(logits), V entries, target t and label smoothing ε, as PyTorch's `cross_entropy` defines it:
//! loss = −(1 − ε)·ln p_t − ε/V·Σ_v ln p_v, d(loss)/d(logit_v) = p_v − ε/V − (1 − ε)·[v = t].
//! A row may be a whole vocabulary of 50,000: partial sums of f32 lanes are flushed into f64 every few thousand entries.

use super::dispatch::{Target, kernel};
use super::exp::exp_flushed;
use super::lanes::{LANES, fold, sum};
use super::softmax::{exponentials, largest};

/// Entries whose f32 partial sums are flushed into f64 together.
const FLUSH: usize = 4096;

/// What [`cross_entropy_row`] returns besides the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// The loss of the row, by the natural logarithm.
    pub loss: f64,
    /// Whether the target has the largest logit (of equal ones, the first).
    pub correct: bool,
}

/// The sum of `x`.
#[inline(always)]
fn total(x: &[f32]) -> f64 {
    let mut total = 0.0;
    for chunk in x.chunks(FLUSH) {
        total += f64::from(sum(fold(chunk, 0.0, |a, x| a + x, |a, b| a + b)));
    }
    total
}

/// The loss from the largest logit, Σ e^(logit − largest), the target's logit and the mean logit (0 without smoothing).
#[inline(always)]
fn loss(largest: f32, sum: f64, target: f32, mean: f64, label_smoothing: f32) -> f64 {
    let log_sum = sum.ln();
    let largest = f64::from(largest);
    let smoothing = f64::from(label_smoothing);
    let mut loss = (1.0 - smoothing) * (log_sum + (largest - f64::from(target)));
    if smoothing > 0.0 {
        loss += smoothing * (log_sum + (largest - mean));
    }
    loss
}

#[inline(always)]
#[track_caller]
fn check(name: &str, logits: &[f32], target: usize, label_smoothing: f32) {
    assert!(target < logits.len(), "{name}: target {target} of {} logits", logits.len());
    assert!((0.0..=1.0).contains(&label_smoothing), "{name}: label smoothing {label_smoothing}");
}

kernel! {
    /// Overwrites `logits` with weight·d(loss)/d(logits) and returns the loss, without the weight.
    ///
    /// The loss is within 10⁻⁶·(1 + |largest logit − target's logit|) of the true value, a gradient within
    /// 2⁻²⁴·|weight|·((8 + 2·|logit − largest|)·p + 2·ε/V + 2·[v = t]). A logit that is NaN or +∞, or a row that is all −∞,
    /// makes the loss and the gradient NaN; with a target of −∞ the loss is +∞.
    ///
    /// # Panics
    /// If `target` is not below the number of logits or `label_smoothing` is outside 0..=1.
    pub fn cross_entropy_row<T>(logits: &mut [f32], target: usize, label_smoothing: f32, weight: f32) -> RowLoss {
        check("cross_entropy_row", logits, target, label_smoothing);
        let shift = largest(logits);
        let target_logit = logits[target];
        let correct = target_logit == shift && logits[..target].iter().all(|&x| x != shift);
        let entries = logits.len() as f64;
        let mean = if label_smoothing > 0.0 { total(logits) / entries } else { 0.0 };
        let mut sum = 0.0;
        for chunk in logits.chunks_mut(FLUSH) {
            sum += f64::from(exponentials::<T>(chunk, 1.0, shift));
        }
        let factor = (f64::from(weight) / sum) as f32;
        let uniform = (f64::from(weight) * f64::from(label_smoothing) / entries) as f32;
        for x in logits.iter_mut() {
            *x = T::multiply_add(*x, factor, -uniform);
        }
        logits[target] -= weight * (1.0 - label_smoothing);
        RowLoss { loss: loss(shift, sum, target_logit, mean, label_smoothing), correct }
    }

    /// The loss of [`cross_entropy_row`] without its gradient, and the rank of the target: the number of logits that are
    /// greater than its own, or equal and before it. The target is among the k likeliest if its rank is below k.
    ///
    /// NaN compares as not greater.
    ///
    /// # Panics
    /// As [`cross_entropy_row`].
    pub fn cross_entropy_row_loss<T>(logits: &[f32], target: usize, label_smoothing: f32) -> (f64, usize) {
        check("cross_entropy_row_loss", logits, target, label_smoothing);
        let shift = largest(logits);
        let target_logit = logits[target];
        let mean = if label_smoothing > 0.0 { total(logits) / logits.len() as f64 } else { 0.0 };
        let mut sum = 0.0;
        for chunk in logits.chunks(FLUSH) {
            sum += f64::from(exponential_sum::<T>(chunk, shift));
        }
        let greater = count(logits, |x| x > target_logit);
        let equal_before = count(&logits[..target], |x| x == target_logit);
        (loss(shift, sum, target_logit, mean, label_smoothing), greater + equal_before)
    }
}

/// Σ e^(x − shift), in the order of [`exponentials`].
#[inline(always)]
pub(super) fn exponential_sum<T: Target>(x: &[f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += exp_flushed::<T>(block[i] - shift);
        }
    }
    let mut rest_sum = 0.0;
    for &x in rest {
        rest_sum += exp_flushed::<T>(x - shift);
    }
    sum(lanes) + rest_sum
}

#[inline(always)]
fn count(x: &[f32], counts: impl Fn(f32) -> bool) -> usize {
    let mut count = 0;
    for chunk in x.chunks(FLUSH) {
        let mut in_chunk = 0;
        for &x in chunk {
            in_chunk += u32::from(counts(x));
        }
        count += in_chunk as usize;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, numerical_gradient, wide};

    /// The loss as PyTorch's documentation defines it.
    fn reference(logits: &[f64], target: usize, label_smoothing: f64) -> f64 {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
        let mean = logits.iter().map(|x| log_sum - x).sum::<f64>() / logits.len() as f64;
        (1.0 - label_smoothing) * (log_sum - logits[target]) + label_smoothing * mean
    }

    fn probabilities(logits: &[f64]) -> Vec<f64> {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
        logits.iter().map(|x| (x - largest).exp() / sum).collect()
    }

    #[test]
    fn losses_and_gradients_match_the_reference() {
        check_every_set(|report| {
            for length in lengths().chain([50_257]).filter(|&length| length > 0) {
                for (spread, label_smoothing, weight) in [(1.0, 0.0, 1.0), (8.0, 0.0, 1e-3), (3.0, 0.1, 0.5)] {
                    let logits: Vec<f32> = normal(length, length as u64).iter().map(|x| spread * x).collect();
                    let exact = wide(&logits);
                    for target in [0, length / 2, length - 1] {
                        let case = format!("length {length}, target {target}, smoothing {label_smoothing}");
                        let mut gradient = logits.clone();
                        let found = cross_entropy_row(&mut gradient, target, label_smoothing, weight);
                        let (alone, rank) = cross_entropy_row_loss(&logits, target, label_smoothing);
                        let expected = reference(&exact, target, label_smoothing.into());
                        let largest = exact.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let bound = 1e-6 * (1.0 + largest - exact[target]);
                        report.check((found.loss - expected).abs() <= bound && found.loss == alone, || {
                            format!("{case}: loss {} and {alone}, expected {expected}", found.loss)
                        });
                        let ahead =
                            |&(i, x): &(usize, &f32)| *x > logits[target] || (*x == logits[target] && i < target);
                        let expected_rank = logits.iter().enumerate().filter(ahead).count();
                        report.check(rank == expected_rank && found.correct == (rank == 0), || {
                            format!("{case}: rank {rank}, correct {}, expected {expected_rank}", found.correct)
                        });
                        let (w, smoothing) = (f64::from(weight), f64::from(label_smoothing));
                        let p = probabilities(&exact);
                        let mut expected: Vec<f64> = p.iter().map(|p| w * (p - smoothing / length as f64)).collect();
                        expected[target] -= w * (1.0 - smoothing);
                        report.close(&case, &gradient, &expected, |i, _| {
                            let exponent = 8.0 + 2.0 * (largest - exact[i]);
                            let flushed = 1e-37;
                            let relative = exponent * p[i] + 2.0 * smoothing / length as f64;
                            let at_target = if i == target { 2.0 } else { 0.0 };
                            w * (2.0f64).powi(-24) * (relative + at_target) + flushed
                        });
                    }
                }
            }
        });
        check_alignment(&[&normal(1000, 3)], |slices| {
            cross_entropy_row(slices[0], 500, 0.1, 1.0);
        });
    }

    #[test]
    fn the_gradient_matches_differences_of_the_loss() {
        check_every_set(|report| {
            for label_smoothing in [0.0, 0.3, 1.0] {
                let logits = normal(37, 5);
                let mut gradient = logits.clone();
                cross_entropy_row(&mut gradient, 11, label_smoothing, 2.0);
                let expected: Vec<f64> =
                    numerical_gradient(&wide(&logits), 1e-5, |x| 2.0 * reference(x, 11, label_smoothing.into()));
                report.close(&format!("smoothing {label_smoothing}"), &gradient, &expected, |_, _| 3e-7);
            }
        });
    }

    #[test]
    fn of_equal_logits_the_first_is_the_prediction() {
        check_every_set(|report| {
            let mut logits = vec![0.0f32; 40];
            logits[7] = 1.0;
            logits[23] = 1.0;
            for (target, rank) in [(7, 0), (23, 1), (0, 2), (39, 39)] {
                let found = cross_entropy_row_loss(&logits, target, 0.0).1;
                let correct = cross_entropy_row(&mut logits.clone(), target, 0.0, 1.0).correct;
                report.check(found == rank && correct == (rank == 0), || format!("target {target}: rank {found}"));
            }
        });
    }

    #[test]
    fn extremes_give_infinite_losses_or_nan() {
        check_every_set(|report| {
            let mut certain = [f32::MIN, 0.0, f32::NEG_INFINITY, -200.0];
            let row = cross_entropy_row(&mut certain, 1, 0.0, 1.0);
            report.check(row == RowLoss { loss: 0.0, correct: true }, || format!("certain: {row:?}"));
            report.check(certain == [0.0; 4], || format!("certain: {certain:?}"));
            let mut impossible = [0.0, f32::NEG_INFINITY];
            let row = cross_entropy_row(&mut impossible, 1, 0.0, 1.0);
            report.check(row == RowLoss { loss: f64::INFINITY, correct: false }, || format!("impossible: {row:?}"));
            report.check(impossible == [1.0, -1.0], || format!("impossible: {impossible:?}"));
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = [0.0, bad, 1.0];
                let row = cross_entropy_row(&mut logits, 0, 0.0, 1.0);
                report.check(row.loss.is_nan() && logits.iter().all(|x| x.is_nan()), || format!("{bad}: {row:?}"));
            }
        });
    }

    #[test]
    #[should_panic(expected = "target 3 of 3 logits")]
    fn a_target_outside_the_row_is_refused() {
        cross_entropy_row(&mut [0.0; 3], 3, 0.0, 1.0);
    }
}
