//! What the optimizer remembers between steps, and its pass over all parameters.

use rayon::prelude::*;

use crate::config::{Optimizer, TrainingConfig};
use crate::kernels::adamw::{AdamwStep, adamw};
use crate::kernels::sgd::{SgdStep, moving_average, sgd_momentum};
use crate::params::{CHUNK, ParameterLayout, ParameterStore};

/// Moments and averages of every parameter.
#[derive(Clone, Debug)]
pub(crate) struct OptimizerState {
    /// AdamW's first moments, or SGD's momentum.
    pub first: ParameterStore,
    /// AdamW's second moments.
    pub second: Option<ParameterStore>,
    /// The moving average of the weights.
    pub average: Option<ParameterStore>,
}

impl OptimizerState {
    /// How many buffers of the parameters' size the state has under `config`.
    pub fn buffers(config: &TrainingConfig) -> usize {
        1 + usize::from(config.optimizer == Optimizer::AdamW) + usize::from(config.moving_average_decay.is_some())
    }

    /// The state before the first step: moments of 0, the average at the parameters themselves.
    pub fn new(layout: &ParameterLayout, config: &TrainingConfig, parameters: &ParameterStore) -> Self {
        Self {
            first: ParameterStore::zeros(layout),
            second: (config.optimizer == Optimizer::AdamW).then(|| ParameterStore::zeros(layout)),
            average: config.moving_average_decay.map(|_| parameters.clone()),
        }
    }

    /// Updates every parameter; `step` counts from 1, `gradient_scale` is the clip's factor.
    ///
    /// Chunks of the flat buffers are spread over the rayon pool; no sum crosses a chunk, so the number of workers does
    /// not change the result.
    pub fn update(
        &mut self,
        layout: &ParameterLayout,
        config: &TrainingConfig,
        parameters: &mut ParameterStore,
        gradients: &ParameterStore,
        (step, learning_rate, gradient_scale): (u64, f64, f64),
    ) {
        let parameters = parameters.values_mut().par_chunks_mut(CHUNK);
        let gradients = gradients.values().par_chunks(CHUNK);
        let first = self.first.values_mut().par_chunks_mut(CHUNK);
        match &mut self.second {
            Some(second) => {
                let power = i32::try_from(step).unwrap_or(i32::MAX);
                let adamw_step = AdamwStep {
                    learning_rate,
                    beta1: config.beta1,
                    beta2: config.beta2,
                    epsilon: config.epsilon,
                    weight_decay: config.weight_decay,
                    gradient_scale,
                    bias_correction1: 1.0 - config.beta1.powi(power),
                    bias_correction2: 1.0 - config.beta2.powi(power),
                };
                let second = second.values_mut().par_chunks_mut(CHUNK);
                (parameters, gradients, first, second).into_par_iter().enumerate().for_each(|(chunk, (p, g, m, v))| {
                    for (range, spec) in layout.parts_of(chunk * CHUNK..chunk * CHUNK + p.len()) {
                        let weight_decay = if spec.decay { config.weight_decay } else { 0.0 };
                        let step = AdamwStep { weight_decay, ..adamw_step };
                        let (p, g) = (&mut p[range.clone()], &g[range.clone()]);
                        adamw(p, g, &mut m[range.clone()], &mut v[range], &step);
                    }
                });
            }
            None => {
                let sgd_step = SgdStep {
                    learning_rate,
                    momentum: config.momentum,
                    weight_decay: config.weight_decay,
                    gradient_scale,
                    nesterov: config.nesterov,
                };
                (parameters, gradients, first).into_par_iter().enumerate().for_each(|(chunk, (p, g, m))| {
                    for (range, spec) in layout.parts_of(chunk * CHUNK..chunk * CHUNK + p.len()) {
                        let weight_decay = if spec.decay { config.weight_decay } else { 0.0 };
                        let step = SgdStep { weight_decay, ..sgd_step };
                        sgd_momentum(&mut p[range.clone()], &g[range.clone()], &mut m[range], &step);
                    }
                });
            }
        }
    }

    /// Moves the average, where there is one, towards the parameters.
    pub fn update_average(&mut self, config: &TrainingConfig, parameters: &ParameterStore) {
        let (Some(average), Some(decay)) = (&mut self.average, config.moving_average_decay) else { return };
        let parameters = parameters.values().par_chunks(CHUNK);
        average.values_mut().par_chunks_mut(CHUNK).zip(parameters).for_each(|(a, p)| moving_average(a, p, decay));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Initialisation;

    #[test]
    fn weight_decay_leaves_vectors_alone() {
        let mut layout = ParameterLayout::default();
        let weight = layout.matrix("weight", 2, 2, Initialisation::Ones);
        let gain = layout.vector("gain", 2, Initialisation::Ones);
        for optimizer in [Optimizer::AdamW, Optimizer::Sgd] {
            let config = TrainingConfig { optimizer, weight_decay: 0.5, ..TrainingConfig::default() };
            let mut parameters = ParameterStore::zeros(&layout);
            layout.initialise(parameters.values_mut(), 0);
            let gradients = ParameterStore::zeros(&layout);
            let mut state = OptimizerState::new(&layout, &config, &parameters);
            state.update(&layout, &config, &mut parameters, &gradients, (1, 0.1, 1.0));
            assert_eq!(parameters.slice(weight), [0.95; 4], "{optimizer:?}");
            assert_eq!(parameters.slice(gain), [1.0; 2], "{optimizer:?}");
        }
    }
}
