//! The Gaussian error linear unit in its tanh form, as GPT-2 has it.
//!
//! gelu(x) = x/2·(1 + tanh u) with u = √(2/π)·(x + 0.044715·x³) (Hendrycks and Gimpel, "Gaussian error linear units",
//! 2016). Since (1 + tanh u)/2 = σ(2u) = 1 / (1 + e^−2u), it takes one exponential and one division:
//! gelu(x) = x·σ(2u), gelu′(x) = σ(2u)·(1 + x·(1 − σ(2u))·2u′).

use super::dispatch::{Target, kernel};
use super::exp::exp_in_range;
use super::lanes::{larger, smaller};

/// −2·√(2/π) and −2·√(2/π)·0.044715: the coefficients of −2u.
const LINEAR: f32 = -1.595_769_1;
const CUBIC: f32 = -0.071_354_814;

/// Where x is clamped for σ(2u), so that e^−2u stays a normal number: σ is 10⁻³⁸ or 1 there.
const CLAMP: f32 = 10.0;

/// (gelu(x), gelu′(x)).
#[inline(always)]
fn gelu_pair<T: Target>(x: f32) -> (f32, f32) {
    let above = larger(-CLAMP, x);
    let x = smaller(CLAMP, above);
    let square = x * x;
    let sigmoid = 1.0 / (1.0 + exp_in_range::<T>(x * T::multiply_add(CUBIC, square, LINEAR)));
    let gelu = above * sigmoid;
    // −2u′ = LINEAR + 3·CUBIC·x²
    let slope = x * T::multiply_add(3.0 * CUBIC, square, LINEAR);
    let derivative = sigmoid * T::multiply_add(sigmoid - 1.0, slope, 1.0);
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
