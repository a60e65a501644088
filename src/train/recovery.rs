//! What a trainer does about numbers that go wrong.

use super::engine::Engine;
use super::report::{StepOutcome, StepReport};
use crate::checkpoint::check_finite;
use crate::config::{NonFinitePolicy, OnNonFinite};
use crate::data::Batch;
use crate::parallel::awake;
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

impl Recovery {
    /// Takes note of a `step` that went well.
    pub fn reached(&mut self, step: u64) {
        if step > self.failed {
            self.failures = 0;
        }
    }
}

/// A trainer that can go on after a step that failed.
pub(super) trait Recover {
    fn policy(&self) -> NonFinitePolicy;

    fn recovery(&mut self) -> &mut Recovery;

    /// Fails if a weight is not finite, and names it.
    fn check_weights(&self, step: u64) -> Result<()>;

    /// Goes on to the next step without an update.
    fn leave_out(&mut self);

    /// Returns to the last copy of the state, but for the learning rate; whether there was one.
    fn restore_snapshot(&mut self) -> bool;

    /// Does what the policy says about `error`, met at `step`, or returns it.
    fn recover(&mut self, step: u64, error: Error) -> Result<StepOutcome> {
        if !matches!(error, Error::NonFinite { .. }) {
            return Err(error);
        }
        let policy = self.policy();
        if self.recovery().failures >= policy.non_finite_limit {
            return Err(error);
        }
        let outcome = match policy.on_non_finite {
            OnNonFinite::Stop => return Err(error),
            OnNonFinite::Skip => {
                // Without finite weights every further step would fail as well.
                self.check_weights(step)?;
                self.leave_out();
                StepOutcome::Skipped
            }
            OnNonFinite::RollBack => {
                if !self.restore_snapshot() {
                    return Err(error);
                }
                let factor = &mut self.recovery().learning_rate_factor;
                // A checkpoint with a factor of 0 would be refused.
                *factor = (*factor * policy.roll_back_factor).max(f64::MIN_POSITIVE);
                StepOutcome::RolledBack
            }
        };
        let recovery = self.recovery();
        recovery.failures += 1;
        recovery.failed = recovery.failed.max(step);
        tracing::warn!(%error, ?outcome, "a step failed");
        Ok(outcome)
    }
}

impl Recover for Engine {
    fn policy(&self) -> NonFinitePolicy {
        self.config.non_finite_policy()
    }

    fn recovery(&mut self) -> &mut Recovery {
        &mut self.recovery
    }

    fn check_weights(&self, step: u64) -> Result<()> {
        check_finite(step, self.model.layout(), &[("model", self.model.parameters())])
    }

    fn leave_out(&mut self) {
        self.steps += 1;
    }

    fn restore_snapshot(&mut self) -> bool {
        self.return_to_snapshot()
    }
}

impl Engine {
    /// One step, or what the policy says where there can be none. Its update is made now or left to the next step.
    pub fn guarded_step(&mut self, batch: &Batch, leaves_update: bool) -> Result<StepReport> {
        // Workers that take whole sequences share too few operations to pay for staying awake.
        let shares_operations = self.shards.len() == 1;
        let mut step = || {
            let report = self.step(batch)?;
            if !leaves_update {
                self.make_update(self.parallelism());
            }
            Ok(report)
        };
        let result = if shares_operations { awake(step) } else { step() };
        match result {
            Ok(report) => {
                self.recovery.reached(report.step);
                Ok(report)
            }
            Err(error) => {
                let outcome = self.recover(self.steps + 1, error)?;
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
}
