//! One step of AdamW over flat buffers, in one pass over memory.

use super::dispatch::{Target, kernel};
pub use super::sgd::{SgdStep, moving_average, sgd_momentum};

/// The scalars of one [`adamw`] step.
///
/// They are f64, as in PyTorch, whose 1 − β are rounded to f32 only after the subtraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Step length.
    pub learning_rate: f64,
    /// Decay of the first moments.
    pub beta1: f64,
    /// Decay of the second moments.
    pub beta2: f64,
    /// Added to the root of the second moments.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor of the gradients: below 1 where they are clipped, or 1 over the number of accumulated batches.
    pub gradient_scale: f64,
    /// 1 − β₁^t at step t, counted from 1.
    pub bias_correction1: f64,
    /// 1 − β₂^t at step t, counted from 1.
    pub bias_correction2: f64,
}

/// The scalars of a step as they are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    keep: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    step_length: f32,
    root_correction: f32,
    epsilon: f32,
    gradient_scale: f32,
}

impl Factors {
    #[inline(always)]
    pub fn of(step: &AdamwStep) -> Self {
        Self {
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            new1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            new2: (1.0 - step.beta2) as f32,
            step_length: (-step.learning_rate / step.bias_correction1) as f32,
            root_correction: step.bias_correction2.sqrt() as f32,
            epsilon: step.epsilon as f32,
            gradient_scale: step.gradient_scale as f32,
        }
    }

    /// [`adamw`] of one parameter.
    #[inline(always)]
    pub fn update<T: Target>(&self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let g = self.gradient_scale * g;
        *m = T::multiply_add(self.new1, g - *m, *m);
        *v = T::multiply_add(self.new2 * g, g, self.beta2 * *v);
        let denominator = v.sqrt() / self.root_correction + self.epsilon;
        *p = T::multiply_add(self.step_length, *m / denominator, *p * self.keep);
    }
}

kernel! {
    /// One AdamW step (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), in the order of PyTorch's
    /// `AdamW`. With g = gradient_scale·gradient:
    ///
    /// p ← p·(1 − lr·weight_decay), m ← m + (1 − β₁)·(g − m), v ← β₂·v + (1 − β₂)·g²,
    /// p ← p − lr / bias_correction1 · m / (√v / √bias_correction2 + ε).
    ///
    /// Every operation is rounded to f32, multiply-adds once: p is within 4·10⁻⁷·(|p| + |its change|) of the true value,
    /// m within 2·10⁻⁷·(|m| + |g|), v within 3·10⁻⁷·v. A gradient that is not finite makes its p NaN and
    /// stays in m and v: check before the step. With ε = 0, a parameter without any gradient so far becomes NaN.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adamw<T>(
        parameters: &mut [f32], gradients: &[f32], first_moments: &mut [f32], second_moments: &mut [f32],
        step: &AdamwStep,
    ) {
        let length = parameters.len();
        assert_eq!(gradients.len(), length, "adamw: lengths of gradients and parameters");
        assert_eq!(first_moments.len(), length, "adamw: lengths of first moments and parameters");
        assert_eq!(second_moments.len(), length, "adamw: lengths of second moments and parameters");
        let factors = Factors::of(step);
        for (((p, &g), m), v) in parameters.iter_mut().zip(gradients).zip(first_moments).zip(second_moments) {
            factors.update::<T>(p, g, m, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{check_alignment, check_every_set, lengths, normal, wide};

    const STEP: AdamwStep = AdamwStep {
        learning_rate: 3e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        gradient_scale: 0.7,
        bias_correction1: 1.0 - 0.9 * 0.9 * 0.9,
        bias_correction2: 1.0 - 0.95 * 0.95 * 0.95,
    };

    /// The update as it is printed in PyTorch's documentation.
    fn reference(p: f64, g: f64, m: f64, v: f64, step: &AdamwStep) -> [f64; 3] {
        let g = g * step.gradient_scale;
        let p = p - step.learning_rate * step.weight_decay * p;
        let m = step.beta1 * m + (1.0 - step.beta1) * g;
        let v = step.beta2 * v + (1.0 - step.beta2) * g * g;
        let (m_hat, v_hat) = (m / step.bias_correction1, v / step.bias_correction2);
        [p - step.learning_rate * m_hat / (v_hat.sqrt() + step.epsilon), m, v]
    }

    #[test]
    fn adamw_matches_the_published_update() {
        check_every_set(|report| {
            for length in lengths() {
                let seed = 4 * length as u64;
                let (p, g, m) = (normal(length, seed), normal(length, seed + 1), normal(length, seed + 2));
                let v: Vec<f32> = normal(length, seed + 3).iter().map(|x| x * x).collect();
                let expected: Vec<[f64; 3]> =
                    (0..length).map(|i| reference(p[i].into(), g[i].into(), m[i].into(), v[i].into(), &STEP)).collect();
                let (mut new_p, mut new_m, mut new_v) = (p.clone(), m.clone(), v.clone());
                adamw(&mut new_p, &g, &mut new_m, &mut new_v, &STEP);
                let column = |k: usize| expected.iter().map(|row| row[k]).collect::<Vec<f64>>();
                let case = format!("length {length}");
                report.close(&format!("p, {case}"), &new_p, &column(0), |i, new| {
                    4e-7 * ((new - f64::from(p[i])).abs() + f64::from(p[i]).abs())
                });
                report
                    .close(&format!("m, {case}"), &new_m, &column(1), |i, _| 2e-7 * f64::from(m[i].abs() + g[i].abs()));
                report.close(&format!("v, {case}"), &new_v, &column(2), |_, v| 3e-7 * v);
            }
        });
        let v: Vec<f32> = normal(67, 4).iter().map(|x| x * x).collect();
        check_alignment(&[&normal(67, 1), &normal(67, 2), &normal(67, 3), &v], |slices| {
            let [p, g, m, v] = slices else { unreachable!() };
            adamw(p, g, m, v, &STEP);
        });
    }

    #[test]
    fn a_first_step_moves_each_parameter_by_the_learning_rate() {
        check_every_set(|report| {
            let g = [1e-6, -1e-3, 1.0, -1e3, 1e6];
            let (mut p, mut m, mut v) = ([0.0; 5], [0.0; 5], [0.0; 5]);
            let step = AdamwStep { gradient_scale: 1.0, bias_correction1: 0.1, bias_correction2: 0.05, ..STEP };
            adamw(&mut p, &g, &mut m, &mut v, &step);
            let expected: Vec<f64> = wide(&g).iter().map(|g| -3e-2 * g / (g.abs() + 1e-8)).collect();
            report.close("p", &p, &expected, |_, p| 1e-6 * p.abs());
        });
    }

    #[test]
    fn a_gradient_of_zero_only_decays() {
        check_every_set(|report| {
            let (mut p, mut m, mut v) = (vec![2.0; 33], vec![0.0; 33], vec![0.0; 33]);
            adamw(&mut p, &[0.0; 33], &mut m, &mut v, &STEP);
            report.close("p", &p, &[2.0 * (1.0 - 3e-3); 33], |_, p| 1e-7 * p);
            report.same_bits("m", &m, &[0.0; 33]);
            report.same_bits("v", &v, &[0.0; 33]);
        });
    }

    #[test]
    fn a_bad_gradient_stays_with_its_parameter() {
        check_every_set(|report| {
            for bad in [f32::NAN, f32::INFINITY] {
                let (mut p, mut m, mut v) = (vec![1.0; 40], vec![0.0; 40], vec![0.0; 40]);
                let mut g = vec![1.0; 40];
                g[21] = bad;
                adamw(&mut p, &g, &mut m, &mut v, &STEP);
                for i in 0..40 {
                    let finite = [p[i], m[i], v[i]].map(f32::is_finite);
                    report.check(finite == [i != 21; 3], || format!("{bad} at 21, element {i}: {finite:?}"));
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "lengths of second moments and parameters")]
    fn adamw_refuses_different_lengths() {
        adamw(&mut [0.0; 3], &[0.0; 3], &mut [0.0; 3], &mut [0.0; 2], &STEP);
    }
}
