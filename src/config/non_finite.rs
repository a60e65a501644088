//! What to do about numbers that go wrong, the same settings for every trainer.

use serde::{Deserialize, Serialize};

use super::{above_zero, within};
use crate::Result;

/// What a trainer does when the loss or the gradient of a step is not finite.
///
/// A step of [`WordTrainer`](crate::train::WordTrainer) is a round: a block of each worker. Whatever the policy, a block
/// whose loss is not finite makes no update; those of other workers make theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonFinite {
    /// Returns [`Error::NonFinite`](crate::Error::NonFinite); the trainer stays usable, its parameters are as before the step.
    #[default]
    Stop,
    /// Leaves the batch out: no update, but the step counts. Does not help where a weight is not finite, which is an
    /// error.
    Skip,
    /// Returns to the last save (without a run folder, to the copy of the state that is made every `save_interval`;
    /// before the first of either, to the run's beginning) and multiplies the learning rate by `roll_back_factor`.
    RollBack,
}

/// The settings of [`OnNonFinite`], as the configurations of all trainers have them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NonFinitePolicy {
    pub on_non_finite: OnNonFinite,
    pub roll_back_factor: f64,
    pub non_finite_limit: u64,
}

impl Default for NonFinitePolicy {
    fn default() -> Self {
        Self { on_non_finite: OnNonFinite::Stop, roll_back_factor: 0.5, non_finite_limit: 10 }
    }
}

impl NonFinitePolicy {
    pub fn validate(self) -> Result<()> {
        above_zero("roll_back_factor", self.roll_back_factor)?;
        within("roll_back_factor", self.roll_back_factor, 0.0, 1.0)
    }

    pub fn rolls_back(self) -> bool {
        self.on_non_finite == OnNonFinite::RollBack
    }
}
