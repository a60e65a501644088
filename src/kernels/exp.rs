//! The exponential function, and the two forms of it that other kernels inline.
//!
//! e^x = 2ⁿ·e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2: n·ln 2 is subtracted in two parts, the first of which has so
//! few bits that n times it is exact (Cody and Waite), and e^r is a polynomial of degree 6 whose relative error, fitted
//! over that interval, is 3.1·10⁻⁹.

use super::dispatch::{Target, kernel};
use super::lanes::{larger, smaller};

/// 1.5·2²³: adding it to a float below 2²² in magnitude rounds that float to an integer in the low bits of the sum.
const ROUNDER: f32 = 12_582_912.0;
/// The leading 9 bits of ln 2, and the rest of it.
const LN_2_HIGH: f32 = 355.0 / 512.0;
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
    // By halves rather than by Horner's rule: the chain of dependent operations limits the throughput.
    let square = r * r;
    let low = T::multiply_add(0.166_665_2, r, 0.499_999_94);
    let high = T::multiply_add(8.368_852e-3, r, 4.166_84e-2);
    let high = T::multiply_add(1.381_431_8e-3, square, high);
    let p = T::multiply_add(high, square, low);
    (T::multiply_add(p, square, r) + 1.0, shifted)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, ulp, wide};

    #[test]
    fn exp_is_within_one_ulp_everywhere() {
        // Every 1021st float of either sign, up to the infinities.
        let x: Vec<f32> = (0..=f32::INFINITY.to_bits())
            .step_by(1021)
            .flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)])
            .chain((0..200_000).map(|i| -104.0 + i as f32 * 1e-3))
            .collect();
        check_every_set(|report| {
            let mut y = x.clone();
            exp(&mut y);
            let mut worst = 0.0f64;
            for (&x, &y) in x.iter().zip(&y) {
                let expected = f64::from(x).exp();
                let error = if expected > f64::from(f32::MAX) {
                    // Up to half a ULP above the largest float rounds to it.
                    let finite = y == f32::MAX && expected < 3.402_823_6e38;
                    if y == f32::INFINITY || finite { 0.0 } else { f64::INFINITY }
                } else {
                    (f64::from(y) - expected).abs() / ulp(expected)
                };
                worst = worst.max(error);
                report.check(error <= 1.0, || format!("e^{x:e}: found {y:e}, expected {expected:e}, {error} ULP"));
            }
            println!("worst error of exp: {worst:.3} ULP");
        });
    }

    #[test]
    fn exp_has_its_special_values() {
        let cases = [
            (0.0, 1.0),
            (-0.0, 1.0),
            (f32::NEG_INFINITY, 0.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::NAN, f32::NAN),
            (-f32::NAN, f32::NAN),
            (88.73, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
            (-103.98, 0.0),
            (f32::MIN, 0.0),
            (-103.97, f32::from_bits(1)),
            (f32::MIN_POSITIVE, 1.0),
        ];
        check_every_set(|report| {
            for (x, expected) in cases {
                // Alone and in a full block: the scalar and the vector code.
                for length in [1, 64] {
                    let mut y = vec![x; length];
                    exp(&mut y);
                    let good = y.iter().all(|&y| y == expected || (y.is_nan() && expected.is_nan()));
                    report.check(good, || format!("e^{x:e}, length {length}: found {y:?}"));
                }
            }
        });
    }

    #[test]
    fn exp_works_at_every_length() {
        check_every_set(|report| {
            for length in lengths() {
                let x = normal(length, length as u64);
                let mut y = x.clone();
                exp(&mut y);
                let expected: Vec<f64> = wide(&x).into_iter().map(f64::exp).collect();
                report.close(&format!("length {length}"), &y, &expected, |_, y| ulp(y));
            }
        });
        check_alignment(&[&normal(67, 1)], |slices| exp(slices[0]));
    }

    #[test]
    fn inner_forms_flush_below_the_normal_numbers() {
        assert_eq!(exp_flushed::<crate::kernels::dispatch::PortableTarget>(-87.34), 0.0);
        assert_eq!(exp_flushed::<crate::kernels::dispatch::PortableTarget>(f32::NEG_INFINITY), 0.0);
        assert!(exp_flushed::<crate::kernels::dispatch::PortableTarget>(LOWEST_NORMAL) >= f32::MIN_POSITIVE);
        assert!(exp_flushed::<crate::kernels::dispatch::PortableTarget>(f32::NAN).is_nan());
        assert!(f64::from(LOWEST_NORMAL) >= -126.0 * std::f64::consts::LN_2);
        assert!(f64::from(LOWEST_NORMAL.next_down()) < -126.0 * std::f64::consts::LN_2);
    }
}
