//! Layer normalisation over rows, and its backward pass.
//!
//! out = gain·(x − mean) / √(variance + ε) + bias over each row, with the biased variance (Ba, Kiros and Hinton, "Layer
//! normalization", 2016; PyTorch's `LayerNorm`). The variance is the mean of squared deviations from the mean, in a second
//! pass, so that it does not cancel.

use super::dispatch::{Target, kernel};
use super::lanes::{LANES, Lanes, fold, sum};

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
    let mut sums: Lanes = [0.0; LANES];
    let mut dots: Lanes = [0.0; LANES];
    let mut add = |lane: usize, x: f32, gain: f32, g: f32, gradient_gain: &mut f32, gradient_bias: &mut f32| {
        let normalised = (x - mean) * inverse;
        let d = g * gain;
        sums[lane] += d;
        dots[lane] = T::multiply_add(d, normalised, dots[lane]);
        *gradient_gain = T::multiply_add(g, normalised, *gradient_gain);
        *gradient_bias += g;
    };
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (gain, gain_rest) = gain.as_chunks::<LANES>();
    let (g, g_rest) = gradient_out.as_chunks::<LANES>();
    let (gradient_gain, gradient_gain_rest) = gradient_gain.as_chunks_mut::<LANES>();
    let (gradient_bias, gradient_bias_rest) = gradient_bias.as_chunks_mut::<LANES>();
    for ((((x, gain), g), gradient_gain), gradient_bias) in
        x.iter().zip(gain).zip(g).zip(gradient_gain).zip(gradient_bias)
    {
        for i in 0..LANES {
            add(i, x[i], gain[i], g[i], &mut gradient_gain[i], &mut gradient_bias[i]);
        }
    }
    for (i, &x) in x_rest.iter().enumerate() {
        add(i, x, gain_rest[i], g_rest[i], &mut gradient_gain_rest[i], &mut gradient_bias_rest[i]);
    }
    (sum(sums), sum(dots))
}
