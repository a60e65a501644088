//! The losses of a run: in `metrics.jsonl`, and in memory for the curve and the outcome.

use std::collections::VecDeque;
use std::path::Path;

use cllm::train::{Evaluation, Progress, StepOutcome};
use serde::Serialize;
use serde_json::Value;

use crate::Result;
use crate::chart::{self, Curve};
use crate::run_folder::MetricsLog;

/// Steps that the loss of the outcome is the mean of.
const RECENT: usize = 100;

/// Losses so far.
pub struct Record {
    log: MetricsLog,
    log_every: u64,
    /// The last losses of this process.
    recent: VecDeque<f64>,
    training: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
}

#[derive(Serialize)]
struct StepLine {
    step: u64,
    loss: f64,
    learning_rate: f64,
    gradient_norm: f64,
    tokens_per_s: f64,
    /// What became of a step that was not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
}

#[derive(Serialize)]
struct EvaluationLine {
    step: u64,
    validation_loss: f64,
    validation_perplexity: f64,
    validation_accuracy: f64,
    validation_top_k_accuracy: f64,
    validation_targets: u64,
}

impl Record {
    /// A record of every `log_every`-th step, and of the first and the last, which goes on from the `former` lines.
    pub fn new((former, log): (Vec<Value>, MetricsLog), log_every: u64) -> Self {
        let points = |loss: &str| {
            let point = |line: &Value| Some((line["step"].as_f64()?, line[loss].as_f64()?));
            former.iter().filter_map(point).collect()
        };
        let (training, validation) = (points("loss"), points("validation_loss"));
        Self { log, log_every, recent: VecDeque::with_capacity(RECENT), training, validation }
    }

    pub fn step(&mut self, progress: &Progress<'_>) -> Result<()> {
        let report = &progress.report;
        let outcome = match report.outcome {
            StepOutcome::Updated => None,
            StepOutcome::Skipped => Some("skipped"),
            StepOutcome::RolledBack => Some("rolled back"),
        };
        if outcome.is_some() {
            return self.write(progress, outcome);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(report.loss);
        if report.step != 1 && report.step != progress.last_step && !report.step.is_multiple_of(self.log_every) {
            return Ok(());
        }
        self.training.push((report.step as f64, report.loss));
        self.write(progress, None)
    }

    fn write(&mut self, progress: &Progress<'_>, outcome: Option<&'static str>) -> Result<()> {
        let report = &progress.report;
        self.log.write(&StepLine {
            step: report.step,
            loss: report.loss,
            learning_rate: report.learning_rate,
            gradient_norm: report.gradient_norm,
            tokens_per_s: progress.tokens_per_second,
            outcome,
        })
    }

    pub fn evaluation(&mut self, step: u64, evaluation: &Evaluation) -> Result<()> {
        // The last evaluation, over the whole validation data, replaces one of the same step.
        self.validation.pop_if(|point| point.0 == step as f64);
        self.validation.push((step as f64, evaluation.loss));
        self.log.write(&EvaluationLine {
            step,
            validation_loss: evaluation.loss,
            validation_perplexity: evaluation.perplexity(),
            validation_accuracy: evaluation.accuracy,
            validation_top_k_accuracy: evaluation.top_k_accuracy,
            validation_targets: evaluation.targets,
        })
    }

    /// Mean loss of the last steps that this process made: 100, or all if there were fewer; NaN if there was none.
    pub fn recent_loss(&self) -> f64 {
        self.recent.iter().sum::<f64>() / self.recent.len() as f64
    }

    /// Draws both curves to an SVG file.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let curves = [
            Curve { name: "training", points: &self.training },
            Curve { name: "validation", points: &self.validation },
        ];
        chart::draw_loss(path, "Loss", &curves)
    }
}
