//! Stochastic gradient descent with momentum, and moving averages, over flat buffers.

use super::dispatch::kernel;

/// The scalars of one [`sgd_momentum`] step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Step length.
    pub learning_rate: f64,
    /// Decay of the momentum buffer; 0 is plain gradient descent.
    pub momentum: f64,
    /// Weight decay, added to the gradient as weight_decay·p.
    pub weight_decay: f64,
    /// Factor of the gradients: below 1 where they are clipped, or 1 over the number of accumulated batches.
    pub gradient_scale: f64,
    /// Whether the step looks ahead along the momentum (Nesterov).
    pub nesterov: bool,
}

kernel! {
    /// One step of gradient descent with momentum, as PyTorch's `SGD` without dampening. With
    /// g = gradient_scale·gradient + weight_decay·p:
    ///
    /// b ← momentum·b + g, p ← p − lr·b, or p ← p − lr·(g + momentum·b) with Nesterov's look-ahead.
    ///
    /// A buffer of zeros gives the first step that PyTorch makes. Every operation is rounded to f32, multiply-adds once:
    /// after two steps from there, p and b are within 4·10⁻⁷·(|p| + |g₁| + |g₂|) of the true values.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sgd_momentum<T>(parameters: &mut [f32], gradients: &[f32], momentum_buffer: &mut [f32], step: &SgdStep) {
        let length = parameters.len();
        assert_eq!(gradients.len(), length, "sgd_momentum: lengths of gradients and parameters");
        assert_eq!(momentum_buffer.len(), length, "sgd_momentum: lengths of momentum buffer and parameters");
        let step_length = -step.learning_rate as f32;
        let momentum = step.momentum as f32;
        let weight_decay = step.weight_decay as f32;
        let gradient_scale = step.gradient_scale as f32;
        // p moves along b + look_ahead·(g + momentum·b − b).
        let nesterov = step.nesterov;
        for ((p, &g), b) in parameters.iter_mut().zip(gradients).zip(momentum_buffer) {
            let g = T::multiply_add(weight_decay, *p, gradient_scale * g);
            *b = T::multiply_add(momentum, *b, g);
            let direction = if nesterov { T::multiply_add(momentum, *b, g) } else { *b };
            *p = T::multiply_add(step_length, direction, *p);
        }
    }

    /// average ← average + (1 − decay)·(x − average): an exponential moving average, as of a model's weights.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn moving_average<T>(average: &mut [f32], x: &[f32], decay: f64) {
        assert_eq!(average.len(), x.len(), "moving_average: lengths of average and x");
        let new = (1.0 - decay) as f32;
        for (average, &x) in average.iter_mut().zip(x) {
            *average = T::multiply_add(new, x - *average, *average);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal};

    const STEP: SgdStep =
        SgdStep { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01, gradient_scale: 0.7, nesterov: false };

    /// Two steps from a buffer of zeros, as PyTorch's documentation has them.
    fn reference(mut p: f64, gradients: [f64; 2], step: &SgdStep) -> [f64; 2] {
        let mut b = 0.0;
        for (t, g) in gradients.into_iter().enumerate() {
            let g = g * step.gradient_scale + step.weight_decay * p;
            b = if t == 0 { g } else { step.momentum * b + g };
            p -= step.learning_rate * if step.nesterov { g + step.momentum * b } else { b };
        }
        [p, b]
    }

    #[test]
    fn sgd_matches_the_published_update() {
        check_every_set(|report| {
            for (momentum, nesterov) in [(0.9, false), (0.9, true), (0.0, false)] {
                let step = SgdStep { momentum, nesterov, ..STEP };
                for length in lengths() {
                    let seed = 3 * length as u64;
                    let start = normal(length, seed);
                    let gradients = [normal(length, seed + 1), normal(length, seed + 2)];
                    let (mut p, mut b) = (start.clone(), vec![0.0; length]);
                    for g in &gradients {
                        sgd_momentum(&mut p, g, &mut b, &step);
                    }
                    let both: Vec<[f64; 2]> = (0..length)
                        .map(|i| reference(start[i].into(), [gradients[0][i].into(), gradients[1][i].into()], &step))
                        .collect();
                    let case = format!("momentum {momentum}, nesterov {nesterov}, length {length}");
                    let column = |k: usize| both.iter().map(|row| row[k]).collect::<Vec<f64>>();
                    let size = |i: usize| f64::from(start[i].abs() + gradients[0][i].abs() + gradients[1][i].abs());
                    report.close(&format!("p, {case}"), &p, &column(0), |i, _| 4e-7 * size(i));
                    report.close(&format!("b, {case}"), &b, &column(1), |i, _| 4e-7 * size(i));
                }
            }
        });
        check_alignment(&[&normal(67, 1), &normal(67, 2), &normal(67, 3)], |slices| {
            let [p, g, b] = slices else { unreachable!() };
            sgd_momentum(p, g, b, &STEP);
        });
    }

    #[test]
    fn moving_average_approaches_its_argument() {
        check_every_set(|report| {
            for length in lengths() {
                let (start, x) = (normal(length, 1), normal(length, 2));
                let mut average = start.clone();
                moving_average(&mut average, &x, 0.99);
                let expected: Vec<f64> =
                    start.iter().zip(&x).map(|(&a, &x)| 0.99 * f64::from(a) + 0.01 * f64::from(x)).collect();
                report.close(&format!("length {length}"), &average, &expected, |i, _| {
                    2e-7 * f64::from(start[i].abs() + x[i].abs())
                });
                moving_average(&mut average, &start, 1.0);
                moving_average(&mut average, &x, 0.0);
                report.close("decay 0", &average, &x.iter().map(|&x| x.into()).collect::<Vec<_>>(), |i, x| {
                    2e-7 * (x.abs() + f64::from(start[i].abs()))
                });
            }
        });
    }

    #[test]
    #[should_panic(expected = "lengths of gradients and parameters")]
    fn sgd_refuses_different_lengths() {
        sgd_momentum(&mut [0.0; 3], &[0.0; 4], &mut [0.0; 3], &STEP);
    }
}
