//! The Gaussian error linear unit in its tanh form, as GPT-2 has it.
//!
//! gelu(x) = x/2·(1 + tanh u) with u = √(2/π)·(x + 0.044715·x³) (Hendrycks and Gimpel, "Gaussian error linear units",
//! 2016). Since (1 + tanh u)/2 = σ(2u) = 1 / (1 + e^−2u), it takes one exponential and one division:
//! gelu(x) = x·σ(2u), gelu′(x) = σ(2u)·(1 + x·(1 − σ(2u))·2u′).

use super::dispatch::{Target, kernel};
use super::exp::exp_in_range;
use super::lanes::{larger, smaller};

/// −2·√(2/π) and −2·√(2/π)·0.044715: the coefficients of −2u.
const LINEAR: f32 = -1.595_769;
const CUBIC: f32 = -0.071_354_814;

/// Where x is clamped for σ(2u), so that e^−2u stays a normal number: σ is 10⁻³⁸ or 1 there.
const CLAMP: f32 = 10.0;

/// (gelu(x), gelu′(x)).
#[inline(always)]
fn gelu_pair<T: Target>(x: f32) -> (f32, f32) {
    let above = larger(-CLAMP, x);
    let x = smaller(CLAMP, above);
    let square = x * x;
    let exponential = exp_in_range::<T>(x * T::multiply_add(CUBIC, square, LINEAR));
    let sigmoid = 1.0 / (1.0 + exponential);
    let gelu = above * sigmoid;
    // x·2u′ = x·(−LINEAR − 3·CUBIC·x²), and 1 − σ without cancellation.
    let slope = x * T::multiply_add(-3.0 * CUBIC, square, -LINEAR);
    let derivative = sigmoid * T::multiply_add(exponential * sigmoid, slope, 1.0);
    (gelu, derivative)
}

kernel! {
    /// out ← gelu(pre), pre ← gelu′(pre), in one pass, so that the backward pass is one multiplication.
    ///
    /// Both within 3·10⁻⁷·max(1, |x|) of the true values. Below x = −10, where gelu is −10⁻³⁷ and rises to 0, the value
    /// at −10 is returned, also for −∞; gelu(+∞) = +∞, with derivative 1; NaN gives NaN twice.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gelu_with_derivative<T>(pre: &mut [f32], out: &mut [f32]) {
        assert_eq!(pre.len(), out.len(), "gelu_with_derivative: lengths of pre and out");
        for (pre, out) in pre.iter_mut().zip(out) {
            (*out, *pre) = gelu_pair::<T>(*pre);
        }
    }

    /// x ← gelu(x), with the bits of [`gelu_with_derivative`].
    pub fn gelu<T>(x: &mut [f32]) {
        for x in x {
            *x = gelu_pair::<T>(*x).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, numerical_gradient};

    fn reference(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        0.5 * x * (1.0 + u.tanh())
    }

    fn reference_derivative(x: f64) -> f64 {
        numerical_gradient(&[x], 1e-5, |x| reference(x[0]))[0]
    }

    #[test]
    fn gelu_and_its_derivative_match_at_every_length() {
        check_every_set(|report| {
            let dense: Vec<f32> = (-120_000..=120_000).map(|i| i as f32 * 1e-4).collect();
            let inputs = lengths().map(|length| normal(length, length as u64)).chain([dense]);
            let mut worst = [0.0f64; 2];
            for x in inputs {
                let (mut derivative, mut y, mut alone) = (x.clone(), x.clone(), x.clone());
                gelu_with_derivative(&mut derivative, &mut y);
                gelu(&mut alone);
                report.same_bits("gelu alone", &alone, &y);
                let length = x.len();
                for i in 0..length {
                    let wide = f64::from(x[i]);
                    let bound = wide.abs().max(1.0);
                    let errors = [
                        (f64::from(y[i]) - reference(wide)).abs() / bound,
                        (f64::from(derivative[i]) - reference_derivative(wide)).abs() / bound,
                    ];
                    worst = [worst[0].max(errors[0]), worst[1].max(errors[1])];
                    report.check(errors.iter().all(|&error| error <= 3e-7), || {
                        format!("x = {wide:e}, {i} of {length}: {:e} and {:e} err by {errors:?}", y[i], derivative[i])
                    });
                }
            }
            println!("worst errors of gelu and its derivative: {worst:?}");
        });
        check_alignment(&[&normal(67, 1), &[0.0; 67]], |slices| {
            let [pre, out] = slices else { unreachable!() };
            gelu_with_derivative(pre, out);
        });
    }

    #[test]
    fn gelu_has_its_special_values() {
        let cases: [(f32, f32, f32); 8] = [
            (0.0, 0.0, 0.5),
            (-0.0, -0.0, 0.5),
            (f32::INFINITY, f32::INFINITY, 1.0),
            (f32::MAX, f32::MAX, 1.0),
            (1e4, 1e4, 1.0),
            (-1e4, 0.0, 0.0),
            (f32::MIN, 0.0, 0.0),
            (f32::NEG_INFINITY, 0.0, 0.0),
        ];
        check_every_set(|report| {
            for length in [1, 64] {
                for (x, gelu, derivative) in cases {
                    let (mut pre, mut out) = (vec![x; length], vec![0.0; length]);
                    gelu_with_derivative(&mut pre, &mut out);
                    for (&found, &slope) in out.iter().zip(&pre) {
                        let near = found == gelu || (gelu == 0.0 && found.abs() < 1e-35);
                        report.check(near && (slope - derivative).abs() < 1e-35, || {
                            format!("x = {x:e}: found {found:e} and {slope:e}")
                        });
                    }
                }
                let (mut pre, mut out) = (vec![f32::NAN; length], vec![0.0; length]);
                gelu_with_derivative(&mut pre, &mut out);
                report.check(pre.iter().chain(&out).all(|x| x.is_nan()), || "NaN is lost".into());
            }
        });
    }

    #[test]
    #[should_panic(expected = "lengths of pre and out")]
    fn gelu_refuses_different_lengths() {
        gelu_with_derivative(&mut [0.0; 3], &mut [0.0; 4]);
    }
}
