//! What the optimizer remembers between steps.

use crate::config::{Optimizer, TrainingConfig};
use crate::params::{ParameterLayout, ParameterStore};

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
}
