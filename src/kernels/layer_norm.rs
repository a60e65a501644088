//! Layer normalisation over rows, and its backward pass.
//!
//! out = gain·(x − mean) / √(variance + ε) + bias over each row, with the biased variance (Ba, Kiros and Hinton, "Layer
//! normalization", 2016; PyTorch's `LayerNorm`). The variance is the mean of squared deviations from the mean, in a second
//! pass, so that it does not cancel.

use super::dispatch::{Target, kernel};
use super::lanes::{LANES, fold, sum};

kernel! {
    /// Normalises the rows of `x`, whose width is that of `gain` and `bias`, into `out`; `mean[r]` and
    /// `inverse_deviation[r]` ← the mean of row r and 1 / √(variance + ε), which the backward pass needs.
    ///
    /// An output is within 10⁻⁶·|gain|·(8 + (|x| + max |x|)·inverse_deviation) + 2⁻²³·|bias| of the true value. A row
    /// with an entry that is not finite becomes NaN.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn layer_norm<T>(
        x: &[f32], gain: &[f32], bias: &[f32], epsilon: f32,
        out: &mut [f32], mean: &mut [f32], inverse_deviation: &mut [f32],
    ) {
        let width = gain.len();
        let rows = mean.len();
        assert_eq!(bias.len(), width, "layer_norm: lengths of bias and gain");
        assert_eq!(inverse_deviation.len(), rows, "layer_norm: lengths of inverse_deviation and mean");
        assert_eq!(x.len(), rows * width, "layer_norm: length of x, and {rows} rows of width {width}");
        assert_eq!(out.len(), x.len(), "layer_norm: lengths of out and x");
        for r in 0..rows {
            let x = &x[r * width..][..width];
            let out = &mut out[r * width..][..width];
            let centre = sum(fold(x, 0.0, |a, x| a + x, |a, b| a + b)) / width as f32;
            let squares = fold(x, 0.0, |a, x| T::multiply_add(x - centre, x - centre, a), |a, b| a + b);
            let inverse = 1.0 / (sum(squares) / width as f32 + epsilon).sqrt();
            for (((out, &x), &gain), &bias) in out.iter_mut().zip(x).zip(gain).zip(bias) {
                *out = T::multiply_add((x - centre) * inverse, gain, bias);
            }
            mean[r] = centre;
            inverse_deviation[r] = inverse;
        }
    }

    /// Backward pass of [`layer_norm`]. With x̂ = (x − mean)·inverse_deviation, g = `gradient_out` and d = gain·g, adds
    /// inverse_deviation·(d − mean(d) − x̂·mean(d·x̂)) to `gradient_in`, Σ_rows g·x̂ to `gradient_gain` and Σ_rows g to
    /// `gradient_bias`.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn layer_norm_backward<T>(
        x: &[f32], mean: &[f32], inverse_deviation: &[f32], gain: &[f32], gradient_out: &[f32],
        gradient_in: &mut [f32], gradient_gain: &mut [f32], gradient_bias: &mut [f32],
    ) {
        let width = gain.len();
        let rows = mean.len();
        assert_eq!(inverse_deviation.len(), rows, "layer_norm_backward: lengths of inverse_deviation and mean");
        assert_eq!(x.len(), rows * width, "layer_norm_backward: length of x, and {rows} rows of width {width}");
        assert_eq!(gradient_out.len(), x.len(), "layer_norm_backward: lengths of gradient_out and x");
        assert_eq!(gradient_in.len(), x.len(), "layer_norm_backward: lengths of gradient_in and x");
        assert_eq!(gradient_gain.len(), width, "layer_norm_backward: lengths of gradient_gain and gain");
        assert_eq!(gradient_bias.len(), width, "layer_norm_backward: lengths of gradient_bias and gain");
        for r in 0..rows {
            let x = &x[r * width..][..width];
            let gradient_out = &gradient_out[r * width..][..width];
            let gradient_in = &mut gradient_in[r * width..][..width];
            let (mean, inverse) = (mean[r], inverse_deviation[r]);
            let (sum, dot) =
                gradient_sums::<T>(x, mean, inverse, gain, gradient_out, gradient_gain, gradient_bias);
            let from_mean = inverse * (sum / width as f32);
            let from_deviation = inverse * (dot / width as f32);
            for (((into, &x), &g), &gain) in gradient_in.iter_mut().zip(x).zip(gradient_out).zip(gain) {
                let normalised = (x - mean) * inverse;
                let through = T::multiply_add(g * gain, inverse, -from_mean);
                *into += T::multiply_add(normalised, -from_deviation, through);
            }
        }
    }
}

/// Adds one row's share to the gradients of gain and bias; returns Σ d and Σ d·x̂ over it.
#[inline(always)]
fn gradient_sums<T: Target>(
    x: &[f32],
    mean: f32,
    inverse: f32,
    gain: &[f32],
    gradient_out: &[f32],
    gradient_gain: &mut [f32],
    gradient_bias: &mut [f32],
) -> (f32, f32) {
    let add = |x: f32, gain: f32, g: f32, into_gain: &mut f32, into_bias: &mut f32, sum: &mut f32, dot: &mut f32| {
        let normalised = (x - mean) * inverse;
        let d = g * gain;
        *sum += d;
        *dot = T::multiply_add(d, normalised, *dot);
        *into_gain = T::multiply_add(g, normalised, *into_gain);
        *into_bias += g;
    };
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (gain, gain_rest) = gain.as_chunks::<LANES>();
    let (g, g_rest) = gradient_out.as_chunks::<LANES>();
    let (into_gain, into_gain_rest) = gradient_gain.as_chunks_mut::<LANES>();
    let (into_bias, into_bias_rest) = gradient_bias.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    let mut dots = [0.0; LANES];
    let blocks = x.iter().zip(gain).zip(g).zip(into_gain).zip(into_bias);
    for ((((x, gain), g), into_gain), into_bias) in blocks {
        for i in 0..LANES {
            add(x[i], gain[i], g[i], &mut into_gain[i], &mut into_bias[i], &mut sums[i], &mut dots[i]);
        }
    }
    let (mut rest_sum, mut rest_dot) = (0.0, 0.0);
    let rest = x_rest.iter().zip(gain_rest).zip(g_rest).zip(into_gain_rest).zip(into_bias_rest);
    for ((((&x, &gain), &g), into_gain), into_bias) in rest {
        add(x, gain, g, into_gain, into_bias, &mut rest_sum, &mut rest_dot);
    }
    (sum(sums) + rest_sum, sum(dots) + rest_dot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, numerical_gradient, wide};

    const EPSILON: f32 = 1e-5;

    /// (mean, inverse deviation) of a row.
    fn statistics(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        (mean, 1.0 / (variance + f64::from(EPSILON)).sqrt())
    }

    /// Rows to normalise; those of odd index lie far from 0.
    fn rows_of(rows: usize, width: usize) -> Vec<f32> {
        let draws = normal(rows * width, width as u64);
        draws.iter().enumerate().map(|(i, x)| if (i / width) % 2 == 1 { x + 300.0 } else { *x }).collect()
    }

    #[test]
    fn outputs_match_the_reference_at_every_width() {
        check_every_set(|report| {
            for (rows, width) in lengths().filter(|&width| width > 0).flat_map(|width| [(1, width), (19, width)]) {
                let (x, gain, bias) = (rows_of(rows, width), normal(width, 1), normal(width, 2));
                let mut out = vec![f32::NAN; rows * width];
                let (mut mean, mut inverse) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                layer_norm(&x, &gain, &bias, EPSILON, &mut out, &mut mean, &mut inverse);
                for r in 0..rows {
                    let row = wide(&x[r * width..][..width]);
                    let (centre, factor) = statistics(&row);
                    let largest = row.iter().fold(0.0, |a: f64, x| a.max(x.abs()));
                    let case = format!("{rows} rows of {width}, row {r}");
                    report.close(&format!("mean, {case}"), &mean[r..=r], &[centre], |_, _| 4e-7 * largest);
                    let variance_error = 1e-6 + (1e-6 * largest * factor).powi(2);
                    report.close(&format!("deviation, {case}"), &inverse[r..=r], &[factor], |_, f| variance_error * f);
                    let expected: Vec<f64> = (0..width)
                        .map(|i| (row[i] - centre) * factor * f64::from(gain[i]) + f64::from(bias[i]))
                        .collect();
                    report.close(&case, &out[r * width..][..width], &expected, |i, _| {
                        let spread = (row[i].abs() + largest) * factor;
                        1e-6 * f64::from(gain[i].abs()) * (8.0 + spread) + 1.2e-7 * f64::from(bias[i].abs())
                    });
                }
            }
        });
    }

    #[test]
    fn the_backward_pass_matches_differences() {
        check_every_set(|report| {
            for (rows, width) in (1..=67).map(|width| (3, width)) {
                let (x, gain, bias) = (normal(rows * width, width as u64), normal(width, 1), normal(width, 2));
                let upstream = normal(rows * width, 3);
                let start: Vec<Vec<f32>> = (4..7).map(|seed| normal(rows * width, seed)).collect();
                let (mut out, mut mean, mut inverse) = (vec![0.0; rows * width], vec![0.0; rows], vec![0.0; rows]);
                layer_norm(&x, &gain, &bias, EPSILON, &mut out, &mut mean, &mut inverse);
                let mut into = start[0].clone();
                let (mut into_gain, mut into_bias) = (start[1][..width].to_vec(), start[2][..width].to_vec());
                layer_norm_backward(&x, &mean, &inverse, &gain, &upstream, &mut into, &mut into_gain, &mut into_bias);
                let loss = |x: &[f64], gain: &[f64], bias: &[f64]| -> f64 {
                    let mut loss = 0.0;
                    for (x, upstream) in x.chunks(width).zip(upstream.chunks(width)) {
                        let (centre, factor) = statistics(x);
                        for i in 0..width {
                            loss += f64::from(upstream[i]) * ((x[i] - centre) * factor * gain[i] + bias[i]);
                        }
                    }
                    loss
                };
                let (x, gain, bias) = (wide(&x), wide(&gain), wide(&bias));
                let case = format!("width {width}");
                // Rows as narrow as two entries amplify what is rounded by their inverse deviation.
                let sharpest = inverse.iter().fold(1.0, |a: f32, x| a.max(*x));
                let check = |name: &str,
                             found: &[f32],
                             start: &[f32],
                             gradient: Vec<f64>,
                             report: &mut crate::kernels::testing::Report| {
                    let expected: Vec<f64> = gradient.iter().zip(start).map(|(g, &s)| g + f64::from(s)).collect();
                    let tolerance = 4e-6 * f64::from(sharpest).powi(2);
                    report.close(&format!("{name}, {case}"), found, &expected, |_, _| tolerance);
                };
                check("x", &into, &start[0], numerical_gradient(&x, 1e-5, |x| loss(x, &gain, &bias)), report);
                let by_gain = numerical_gradient(&gain, 1e-5, |gain| loss(&x, gain, &bias));
                check("gain", &into_gain, &start[1][..width], by_gain, report);
                let by_bias = numerical_gradient(&bias, 1e-5, |bias| loss(&x, &gain, bias));
                check("bias", &into_bias, &start[2][..width], by_bias, report);
            }
        });
    }

    #[test]
    fn results_do_not_depend_on_alignment() {
        let [x, upstream, into] = [1, 2, 3].map(|seed| normal(5 * 67, seed));
        let [gain, bias] = [4, 5].map(|seed| normal(67, seed));
        check_alignment(&[&x, &gain, &bias, &[0.0; 5 * 67], &[0.0; 5], &[0.0; 5]], |slices| {
            let [x, gain, bias, out, mean, inverse] = slices else { unreachable!() };
            layer_norm(x, gain, bias, EPSILON, out, mean, inverse);
        });
        check_alignment(&[&x, &[0.1; 5], &[0.9; 5], &gain, &upstream, &into, &gain, &bias], |slices| {
            let [x, mean, inverse, gain, upstream, into, into_gain, into_bias] = slices else { unreachable!() };
            layer_norm_backward(x, mean, inverse, gain, upstream, into, into_gain, into_bias);
        });
    }

    #[test]
    fn a_constant_row_becomes_the_bias_and_a_bad_row_stays_alone() {
        check_every_set(|report| {
            let width = 33;
            let mut x = vec![7.5; 3 * width];
            x[width + 20] = f32::INFINITY;
            let bias = normal(width, 1);
            let (mut out, mut mean, mut inverse) = (vec![0.0; 3 * width], [0.0; 3], [0.0; 3]);
            layer_norm(&x, &vec![2.0; width], &bias, EPSILON, &mut out, &mut mean, &mut inverse);
            report.same_bits("constant row", &out[..width], &bias);
            report.check(out[width..2 * width].iter().all(|x| x.is_nan()), || "the infinity is lost".into());
            report.same_bits("row after a bad one", &out[2 * width..], &bias);
        });
    }

    #[test]
    #[should_panic(expected = "length of x, and 2 rows of width 3")]
    fn layer_norm_refuses_other_lengths() {
        layer_norm(&[0.0; 7], &[0.0; 3], &[0.0; 3], EPSILON, &mut [0.0; 6], &mut [0.0; 2], &mut [0.0; 2]);
    }
}
