//! One step of AdamW over flat buffers, in one pass over memory.

use super::dispatch::kernel;
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

kernel! {
    /// One AdamW step (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), in the order of PyTorch's
    /// `AdamW`. With g = gradient_scale·gradient:
    ///
    /// p ← p·(1 − lr·weight_decay), m ← m + (1 − β₁)·(g − m), v ← β₂·v + (1 − β₂)·g²,
    /// p ← p − lr / bias_correction1 · m / (√v / √bias_correction2 + ε).
    ///
    /// Every operation is rounded to f32, multiply-adds once; m, v and p are within a few ULP of the true values of the
    /// terms that are added. A gradient that is not finite reaches p, m and v: check before the step.
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
        let keep = (1.0 - step.learning_rate * step.weight_decay) as f32;
        let new1 = (1.0 - step.beta1) as f32;
        let beta2 = step.beta2 as f32;
        let new2 = (1.0 - step.beta2) as f32;
        let step_length = (-step.learning_rate / step.bias_correction1) as f32;
        let root_correction = step.bias_correction2.sqrt() as f32;
        let epsilon = step.epsilon as f32;
        let gradient_scale = step.gradient_scale as f32;
        for (((p, &g), m), v) in parameters.iter_mut().zip(gradients).zip(first_moments).zip(second_moments) {
            let g = gradient_scale * g;
            *m = T::multiply_add(new1, g - *m, *m);
            *v = T::multiply_add(new2 * g, g, beta2 * *v);
            let denominator = v.sqrt() / root_correction + epsilon;
            *p = T::multiply_add(step_length, *m / denominator, *p * keep);
        }
    }
}
