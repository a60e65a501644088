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
    /// 2⁻²⁴·|weight|·(8 + 2·|logit − largest|)·p + 2⁻²³·|weight|. A logit that is NaN or +∞, or a row that is all −∞,
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
fn exponential_sum<T: Target>(x: &[f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += exp_flushed::<T>(x - shift);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += exp_flushed::<T>(x - shift);
    }
    sum(lanes)
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
