//! What a trainer does about numbers that go wrong.

use super::engine::Engine;
use super::report::{StepOutcome, StepReport};
use crate::checkpoint::check_finite;
use crate::config::OnNonFinite;
use crate::data::Batch;
use crate::{Error, Result};

/// What the policy has done so far.
#[derive(Debug)]
pub(super) struct Recovery {
    /// What the schedule's learning rate is multiplied by.
    pub learning_rate_factor: f64,
    /// Steps skipped, or roll-backs, since the run last got beyond the step that failed.
    failures: u64,
    /// The last step that failed.
    failed: u64,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { learning_rate_factor: 1.0, failures: 0, failed: 0 }
    }
}

impl Engine {
    pub fn rolls_back(&self) -> bool {
        self.config.on_non_finite == OnNonFinite::RollBack
    }

    /// One update, or what the policy says where there can be none.
    pub fn guarded_step(&mut self, batch: &Batch) -> Result<StepReport> {
        match self.step(batch) {
            Ok(report) => {
                if report.step > self.recovery.failed {
                    self.recovery.failures = 0;
                }
                Ok(report)
            }
            Err(error) => {
                let outcome = self.recover(error)?;
                Ok(StepReport {
                    step: self.steps,
                    loss: f64::NAN,
                    accuracy: 0.0,
                    gradient_norm: f64::NAN,
                    learning_rate: self.learning_rate.at(self.steps) * self.recovery.learning_rate_factor,
                    tokens: (batch.sequences() * batch.sequence_length()) as u64,
                    outcome,
                })
            }
        }
    }

    /// Does what the policy says about `error`, or returns it.
    pub fn recover(&mut self, error: Error) -> Result<StepOutcome> {
        let Error::NonFinite { step, .. } = error else { return Err(error) };
        if self.recovery.failures >= self.config.non_finite_limit {
            return Err(error);
        }
        let outcome = match self.config.on_non_finite {
            OnNonFinite::Stop => return Err(error),
            OnNonFinite::Skip => {
                // Without finite weights every further step would fail as well.
                check_finite(step, self.model.layout(), &[("model", self.model.parameters())])?;
                self.steps += 1;
                StepOutcome::Skipped
            }
            OnNonFinite::RollBack => {
                if !self.restore_snapshot() {
                    return Err(error);
                }
                self.recovery.learning_rate_factor *= self.config.roll_back_factor;
                StepOutcome::RolledBack
            }
        };
        self.recovery.failures += 1;
        self.recovery.failed = self.recovery.failed.max(step);
        tracing::warn!(%error, ?outcome, step = self.steps, "a step failed");
        Ok(outcome)
    }
}
