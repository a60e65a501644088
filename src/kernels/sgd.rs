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
    /// A buffer of zeros gives the first step that PyTorch makes. Every operation is rounded to f32, multiply-adds once.
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
