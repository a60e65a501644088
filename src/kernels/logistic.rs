//! Logistic loss of scores against weighted labels, and its gradient in place.
//!
//! With σ(s) = 1/(1 + e^−s): −ln σ(−s) = max(s, 0) + ln(1 + e^−|s|), and ln(1 + t) on 0..=1 is t times a polynomial of
//! degree 8 with a relative error of 3·10⁻⁸.

use super::dispatch::{Target, kernel};
use super::exp::exp_in_range;
use super::lanes::{LANES, Lanes, larger, smaller, sum};

/// σ(s) and −ln σ(−s); NaN for NaN.
#[inline(always)]
fn logistic<T: Target>(s: f32) -> (f32, f32) {
    let magnitude = s.abs();
    let t = exp_in_range::<T>(-smaller(87.0, magnitude));
    let larger_side = 1.0 / (1.0 + t);
    let probability = if s < 0.0 { t * larger_side } else { larger_side };
    let mut p = 5.232_669_4e-3;
    p = T::multiply_add(p, t, -2.950_513_7e-2);
    p = T::multiply_add(p, t, 7.822_578e-2);
    p = T::multiply_add(p, t, -0.136_632_3);
    p = T::multiply_add(p, t, 0.191_06);
    p = T::multiply_add(p, t, -0.248_429_8);
    p = T::multiply_add(p, t, 0.333_190_98);
    p = T::multiply_add(p, t, -0.499_994_93);
    p = T::multiply_add(p, t, 0.999_999_94);
    (probability, T::multiply_add(p, t, larger(0.0, s)))
}

kernel! {
    /// For rows of `negatives` scores of negative pairs followed by `width` scores s of positive pairs with weights m
    /// (rows of `weights`, 0 for a pair that does not count): with n = Σ m·`ratio`/`negatives`, a row's loss is
    /// Σ_positive −m·ln σ(s) + Σ_negative −n·ln σ(−s). Overwrites the scores with its gradient, and returns the loss of
    /// the positive and of the negative pairs.
    ///
    /// # Panics
    /// If `negatives` or `width` is not a multiple of 16, or the slices do not have the same number of rows.
    pub(crate) fn negative_sampling_rows<T>(
        scores: &mut [f32],
        negatives: usize,
        weights: &[f32],
        width: usize,
        ratio: f32,
    ) -> [f64; 2] {
        let stride = negatives + width;
        let fits = scores.len().is_multiple_of(stride) && scores.len() / stride * width == weights.len();
        assert!(
            fits && negatives.is_multiple_of(LANES) && width.is_multiple_of(LANES),
            "negative_sampling_rows: {} scores, {} weights, rows of {negatives} + {width}",
            scores.len(),
            weights.len()
        );
        let mut total = [0.0; 2];
        for (row, weights) in scores.chunks_exact_mut(stride).zip(weights.chunks_exact(width)) {
            let (negative, positive) = row.split_at_mut(negatives);
            let mut count: Lanes = [0.0; LANES];
            let mut loss: Lanes = [0.0; LANES];
            for (scores, weights) in positive.as_chunks_mut::<LANES>().0.iter_mut().zip(weights.as_chunks::<LANES>().0) {
                for lane in 0..LANES {
                    let (probability, cost) = logistic::<T>(-scores[lane]);
                    scores[lane] = -weights[lane] * probability;
                    loss[lane] = T::multiply_add(weights[lane], cost, loss[lane]);
                    count[lane] += weights[lane];
                }
            }
            total[0] += f64::from(sum(loss));
            let weight = sum(count) * ratio / negatives as f32;
            let mut loss: Lanes = [0.0; LANES];
            for scores in negative.as_chunks_mut::<LANES>().0 {
                for lane in 0..LANES {
                    let (probability, cost) = logistic::<T>(scores[lane]);
                    scores[lane] = weight * probability;
                    loss[lane] += cost;
                }
            }
            total[1] += f64::from(weight * sum(loss));
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dispatch::under_every_instruction_set;

    /// The loss of one row in f64, term by term.
    fn row_loss(negative: &[f64], positive: &[f64], weights: &[f32], ratio: f64) -> [f64; 2] {
        let cost = |s: f64| if s > 30.0 { s } else { s.exp().ln_1p() };
        let count: f64 = weights.iter().map(|&m| f64::from(m)).sum();
        let attraction = positive.iter().zip(weights).map(|(&s, &m)| f64::from(m) * cost(-s)).sum();
        [attraction, count * ratio / negative.len() as f64 * negative.iter().map(|&s| cost(s)).sum::<f64>()]
    }

    #[test]
    fn loss_and_gradient_agree_with_the_formula_in_f64() {
        let (negatives, width, ratio) = (32, 16, 5.0f32);
        let scores: Vec<f32> =
            (0..2 * 48).map(|at| ((at * 37 % 97) as f32 - 48.0) * if at < 48 { 0.1 } else { 2.5 }).collect();
        let weights: Vec<f32> = (0..2 * 16).map(|at| [0.0, 1.0, 1.0, 2.0][at % 4]).collect();
        let split = |row: usize| {
            let row: Vec<f64> = scores[row * 48..][..48].iter().map(|&s| s.into()).collect();
            (row[..negatives].to_vec(), row[negatives..].to_vec())
        };
        under_every_instruction_set(|set| {
            let mut gradient = scores.clone();
            let found = negative_sampling_rows(&mut gradient, negatives, &weights, width, ratio);
            let mut expected = [0.0; 2];
            for row in 0..2 {
                let weights = &weights[row * width..][..width];
                let (negative, positive) = split(row);
                let loss = |negative: &[f64], positive: &[f64]| row_loss(negative, positive, weights, ratio.into());
                let [attraction, repulsion] = loss(&negative, &positive);
                expected = [expected[0] + attraction, expected[1] + repulsion];
                for at in 0..48 {
                    let moved = |by: f64| {
                        let (mut negative, mut positive) = (negative.clone(), positive.clone());
                        if at < negatives {
                            negative[at] += by
                        } else {
                            positive[at - negatives] += by
                        }
                        loss(&negative, &positive).iter().sum::<f64>()
                    };
                    let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                    let found = f64::from(gradient[row * 48 + at]);
                    assert!(
                        (found - slope).abs() < 1e-6 * (1.0 + slope.abs()),
                        "{set:?}, {row}, {at}: {found} for {slope}"
                    );
                }
            }
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6 * expected, "{set:?}: loss {found} for {expected}");
            }
        });
    }

    #[test]
    fn extreme_scores_stay_finite_and_nan_stays_nan() {
        under_every_instruction_set(|set| {
            let mut scores = [1e30f32; 32];
            scores[16..].fill(-1e30);
            let loss = negative_sampling_rows(&mut scores, 16, &[1.0; 16], 16, 5.0);
            assert!(loss.iter().all(|loss| loss.is_finite()), "{set:?}: {loss:?}");
            assert_eq!((scores[0], scores[16]), (5.0, -1.0), "{set:?}");
            scores[3] = f32::NAN;
            let loss = negative_sampling_rows(&mut scores, 16, &[1.0; 16], 16, 5.0);
            assert!(loss[1].is_nan() && scores[3].is_nan(), "{set:?}");
        });
    }
}
