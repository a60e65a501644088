//! The exponential function, and the two forms of it that other kernels inline.
//!
//! e^x = 2ⁿ·e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2: n·ln 2 is subtracted in two parts, the first of which has so
//! few bits that n times it is exact (Cody and Waite), and e^r is a polynomial of degree 6 whose relative error, fitted
//! over that interval, is 3.1·10⁻⁹.

use super::dispatch::{Target, kernel};
use super::lanes::{larger, smaller};

/// 1.5·2²³: adding it to a float below 2²² in magnitude rounds that float to an integer in the low bits of the sum.
const ROUNDER: f32 = 12_582_912.0;
/// The leading 10 bits of ln 2, and the rest of it.
const LN_2_HIGH: f32 = 0.693_359_375;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// ln 2⁻¹²⁶, where the normal numbers end, rounded up.
pub(crate) const LOWEST_NORMAL: f32 = -87.336_54;

/// The polynomial for e^r, and n in the low bits of a float; NaN stays NaN.
#[inline(always)]
fn reduced<T: Target>(x: f32) -> (f32, f32) {
    let shifted = T::multiply_add(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = T::multiply_add(n, -LN_2_HIGH, x);
    let r = T::multiply_add(n, -LN_2_LOW, r);
    let mut p = 1.381_431_8e-3;
    p = T::multiply_add(p, r, 8.368_852e-3);
    p = T::multiply_add(p, r, 4.166_84e-2);
    p = T::multiply_add(p, r, 0.166_665_2);
    p = T::multiply_add(p, r, 0.499_999_94);
    p = T::multiply_add(p, r, 1.0);
    (T::multiply_add(p, r, 1.0), shifted)
}

/// e^x for [`LOWEST_NORMAL`] ≤ x ≤ 88, within 1 ULP; NaN for NaN; anything elsewhere.
#[inline(always)]
pub(crate) fn exp_in_range<T: Target>(x: f32) -> f32 {
    let (p, shifted) = reduced::<T>(x);
    // The low 9 bits of `shifted` are n; as an exponent, biased by 127, they are 2ⁿ.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// e^x for x ≤ 88, within 1 ULP, with 0 in place of the numbers below the normal ones; NaN for NaN.
#[inline(always)]
pub(crate) fn exp_flushed<T: Target>(x: f32) -> f32 {
    let y = exp_in_range::<T>(x);
    if x < LOWEST_NORMAL { 0.0 } else { y }
}

/// e^x for every x, as [`exp`].
#[inline(always)]
pub(crate) fn exp_anywhere<T: Target>(x: f32) -> f32 {
    let x = smaller(89.0, larger(-104.0, x));
    let (p, shifted) = reduced::<T>(x);
    let n = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
    // Two factors, since 2ⁿ itself runs from below the smallest number to above the largest.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    p * power(half) * power(n.wrapping_sub(half))
}

kernel! {
    /// x ← e^x, within 1 ULP of the true value.
    ///
    /// Underflow is gradual, down to 0 from x = −103.98 on; overflow gives +∞ from x = 88.73 on; e^±0 = 1, e^−∞ = 0,
    /// e^+∞ = +∞, NaN stays NaN.
    pub fn exp<T>(x: &mut [f32]) {
        for x in x {
            *x = exp_anywhere::<T>(*x);
        }
    }
}
