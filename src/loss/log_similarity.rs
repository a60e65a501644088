//! The negative logarithm of a similarity.
//!
//! For a similarity s: loss = −ln(max(s, 10⁻¹⁰)), gradient = −1/s above 10⁻¹⁰ and 0 below, where the loss is constant.
//!
//! There is no bound from below: the loss falls as long as similarities grow, and for dot products they grow with the
//! norms of the vectors. Nothing pushes any two vectors apart either. See [`crate::models::similarity`].

/// Similarities below this one count as this one.
pub const FLOOR: f32 = 1e-10;

/// scores ← `weight` · d(loss)/d(score) where `counts` says so, else 0; returns the sum of the losses of those that
/// count. A score that is not a number makes the sum, and its own gradient, not a number.
///
/// ```
/// use cllm::loss::log_similarity::replace_by_gradient;
/// let mut scores = [0.5, -3.0, 2.0];
/// let loss = replace_by_gradient(&mut scores, &[true, true, false], 0.5);
/// assert!((loss - (2f64.ln() + 1e10f64.ln())).abs() < 1e-6);
/// assert_eq!(scores, [-1.0, 0.0, 0.0]);
/// ```
///
/// # Panics
/// If the lengths differ.
#[track_caller]
pub fn replace_by_gradient(scores: &mut [f32], counts: &[bool], weight: f32) -> f64 {
    assert_eq!(scores.len(), counts.len(), "log_similarity: lengths of scores and counts");
    let mut loss = 0.0;
    for (score, &counts) in scores.iter_mut().zip(counts) {
        let similarity = *score;
        *score = 0.0;
        if counts {
            // Not `max`, which would hide what is not a number.
            loss -= f64::from(if similarity <= FLOOR { FLOOR } else { similarity }).ln();
            if similarity > FLOOR || similarity.is_nan() {
                *score = -weight / similarity;
            }
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_plain_formula() {
        let loss = |score: f64| -score.max(f64::from(FLOOR)).ln();
        for score in [-1.0, -1e-12, 0.0, 1e-11, 2e-10, 1e-3, 0.7, 1.0, 40.0_f32] {
            let (mut scores, step) = ([score], f64::from(score.abs()) * 1e-4 + 1e-16);
            let found = replace_by_gradient(&mut scores, &[true], 3.0);
            assert!((found - loss(score.into())).abs() < 1e-6, "{score}: {found}");
            let slope = (loss(f64::from(score) + step) - loss(f64::from(score) - step)) / (2.0 * step);
            assert!((f64::from(scores[0]) - 3.0 * slope).abs() <= 1e-5 * (3.0 * slope).abs(), "{score}: {scores:?}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_not_hidden() {
        let mut scores = [f32::NAN, 1.0];
        assert!(replace_by_gradient(&mut scores, &[true, true], 1.0).is_nan());
        assert!(scores[0].is_nan());
        let mut scores = [f32::NAN, 1.0];
        assert_eq!(replace_by_gradient(&mut scores, &[false, true], 1.0), 0.0);
        assert_eq!(scores, [0.0, -1.0]);
    }
}
