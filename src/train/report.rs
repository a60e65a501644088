//! What training tells its caller.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::engine::Engine;
use crate::loss::cross_entropy::LossSum;
use crate::models::transformer::Transformer;
use crate::parallel::Parallelism;

/// Loss of a batch at the parameters it was computed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLoss {
    /// Mean loss over the targets that count, in nats.
    pub loss: f64,
    /// Share of these targets that had the highest score.
    pub accuracy: f64,
    /// Number of these targets.
    pub targets: u64,
    /// Euclidean norm of the whole gradient, before clipping.
    pub gradient_norm: f64,
}

/// One update of the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean loss of the batch before the update, in nats.
    pub loss: f64,
    /// Share of the targets that had the highest score.
    pub accuracy: f64,
    /// Euclidean norm of the whole gradient, before clipping.
    pub gradient_norm: f64,
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// Tokens in the batch.
    pub tokens: u64,
    /// What became of the step.
    pub outcome: StepOutcome,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// The parameters were updated.
    Updated,
    /// The loss or the gradient was not finite, and the batch was skipped; the report's loss and norm are NaN.
    Skipped,
    /// The loss or the gradient was not finite, and the state is again that of the report's step, at a lower learning
    /// rate; the report's loss and norm are NaN.
    RolledBack,
}

impl StepReport {
    /// e^loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// How well a model predicts some tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss, in nats.
    pub loss: f64,
    /// Share of targets with the highest score.
    pub accuracy: f64,
    /// Share of targets among the k highest scores.
    pub top_k_accuracy: f64,
    /// Number of targets looked at.
    pub targets: u64,
}

impl Evaluation {
    pub(crate) fn new(sum: LossSum) -> Self {
        let targets = sum.targets as f64;
        Self {
            loss: sum.loss / targets,
            accuracy: sum.correct as f64 / targets,
            top_k_accuracy: sum.correct_in_top_k as f64 / targets,
            targets: sum.targets,
        }
    }

    /// e^loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// What a run's callback is told after every step.
pub struct Progress<'a> {
    /// The step that was just made.
    pub report: StepReport,
    /// The step at which the run ends.
    pub last_step: u64,
    /// Training tokens a second since the run began, evaluation left out. The time of an update counts once it is made.
    pub tokens_per_second: f64,
    /// The evaluation made after this step, if one was due.
    pub evaluation: Option<Evaluation>,
    /// Whether the save interval says to save now.
    pub save_due: bool,
    /// Taken when the model is asked for.
    engine: Mutex<Option<&'a mut Engine>>,
    model: OnceLock<&'a Transformer>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        (report, last_step, tokens_per_second): (StepReport, u64, f64),
        evaluation: Option<Evaluation>,
        save_due: bool,
        engine: &'a mut Engine,
    ) -> Self {
        let engine = Mutex::new(Some(engine));
        Self { report, last_step, tokens_per_second, evaluation, save_due, engine, model: OnceLock::new() }
    }

    #[cfg(test)]
    pub(super) fn has_update_due(&self) -> bool {
        self.engine.lock().unwrap().as_ref().is_some_and(|engine| engine.due.is_some())
    }

    /// The model after this step.
    ///
    /// A run whose updates are made beside the next step makes this one now, which takes the longer: ask for the model only
    /// where it is needed.
    pub fn model(&self) -> &'a Transformer {
        self.model.get_or_init(|| {
            let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
            let engine = engine.expect("the model is taken once");
            // Alone: who waits for a half of it could take another job of the callback's that asks for the model.
            engine.finish_step(Parallelism::SEQUENTIAL);
            &engine.model
        })
    }
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Progress")
            .field("report", &self.report)
            .field("last_step", &self.last_step)
            .field("tokens_per_second", &self.tokens_per_second)
            .field("evaluation", &self.evaluation)
            .field("save_due", &self.save_due)
            .finish_non_exhaustive()
    }
}
