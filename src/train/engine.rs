//! The step itself, run inside the trainer's pool.

use std::time::{Duration, Instant};

use super::recovery::Recovery;
use super::reduction::reduce;
use super::report::{BatchLoss, Evaluation, StepOutcome, StepReport};
use super::run_data::RunData;
use super::shard::{Shard, Step};
use crate::checkpoint::check_finite;
use crate::checkpoint::saving::Saving;
use crate::config::TrainingConfig;
use crate::data::{Batch, SequenceSource};
use crate::layers::dropout::Masks;
use crate::loss::cross_entropy::{CrossEntropy, LossSum};
use crate::models::transformer::{Transformer, check_tokens};
use crate::optim::{LearningRate, OptimizerState, PendingUpdate, Update};
use crate::parallel::{Parallelism, for_each_indexed};
use crate::params::ParameterStore;
use crate::{Error, Result};

/// Everything of a trainer but its threads.
#[derive(Debug)]
pub(super) struct Engine {
    pub model: Transformer,
    pub config: TrainingConfig,
    pub learning_rate: LearningRate,
    pub optimizer: OptimizerState,
    pub shards: Vec<Shard>,
    /// The update of the last step, by the gradient in the first shard, if it is still to be made. The model, the optimizer's
    /// state and that gradient are then still those before it.
    pub due: Option<Update>,
    /// Steps made so far.
    pub steps: u64,
    /// Where evaluation gathers its windows.
    pub evaluation_batch: Batch,
    pub saving: Saving,
    pub data: RunData<SequenceSource>,
    pub recovery: Recovery,
    /// Time spent in the steps of the run.
    pub training_time: Duration,
}

impl Engine {
    pub fn new(model: Transformer, config: TrainingConfig) -> Self {
        let layout = model.layout();
        Self {
            learning_rate: LearningRate::new(&config, config.max_steps.unwrap_or(u64::MAX)),
            optimizer: OptimizerState::new(layout, &config, model.parameters()),
            shards: Shard::all(model.config(), &config, layout),
            due: None,
            steps: 0,
            evaluation_batch: Batch::zeros(config.batch_size, config.sequence_length),
            saving: Saving::default(),
            data: RunData::default(),
            recovery: Recovery::default(),
            training_time: Duration::ZERO,
            model,
            config,
        }
    }

    fn loss(&self) -> CrossEntropy {
        CrossEntropy { ignore_id: self.config.ignore_id, label_smoothing: self.config.label_smoothing as f32 }
    }

    /// Checks a batch from outside and counts its targets.
    fn check(&self, batch: &Batch) -> Result<u64> {
        if batch.sequence_length() > self.config.sequence_length {
            return Err(Error::Shape {
                what: "batch, sequences × at most the configured sequence length".into(),
                expected: vec![batch.sequences(), self.config.sequence_length],
                found: vec![batch.sequences(), batch.sequence_length()],
            });
        }
        let vocabulary = self.model.config().vocabulary_size;
        let (inputs, targets) = (batch.inputs(), batch.targets());
        let targets = targets.as_slice().expect("a batch is contiguous");
        check_tokens("batch inputs", inputs.as_slice().expect("a batch is contiguous"), vocabulary, None)?;
        check_tokens("batch targets", targets, vocabulary, self.config.ignore_id)?;
        let counted = match self.config.ignore_id {
            None => targets.len(),
            Some(ignored) => targets.iter().filter(|&&id| id != ignored).count(),
        };
        if counted == 0 { Err(Error::NoTargets { positions: targets.len() }) } else { Ok(counted as u64) }
    }

    /// The loss of `batch` and its gradient, which is then in the first shard.
    pub fn compute_gradients(&mut self, batch: &Batch) -> Result<BatchLoss> {
        let targets = self.check(batch)?;
        let masks = Masks::new(self.config.seed, self.steps);
        let forwarded = self.forward_beside_update(batch, masks);
        let (model, loss, weight) = (self.model.view(), self.loss(), 1.0 / targets as f32);
        let step = Step { model, batch, loss, weight, masks, forwarded };
        self.shards.iter_mut().for_each(Shard::begin);
        let parts = self.shards.len();
        let mut start = 0;
        while start < batch.sequences() {
            let end = (start + self.config.batch_size).min(batch.sequences());
            let is_last = end == batch.sequences();
            for_each_indexed(&mut self.shards, &|part, shard| shard.train(step, start..end, (part, parts), is_last));
            start = end;
        }
        let gradient_norm = reduce(&mut self.shards, self.model.layout());
        let sum = self.shards.iter().fold(LossSum::default(), |sum, shard| sum + shard.sum);
        let loss = sum.loss / targets as f64;
        self.check_finite(loss, gradient_norm)?;
        Ok(BatchLoss { loss, accuracy: sum.correct as f64 / targets as f64, targets, gradient_norm })
    }

    fn check_finite(&self, loss: f64, gradient_norm: f64) -> Result<()> {
        let step = self.steps + 1;
        if !loss.is_finite() {
            check_finite(step, self.model.layout(), &[("model", self.model.parameters())])?;
            return Err(Error::NonFinite { step, what: "the loss".into(), value: loss });
        }
        if gradient_norm.is_finite() {
            return Ok(());
        }
        for spec in self.model.layout().specs() {
            if let Some(&value) = self.gradients().slice(spec.id).iter().find(|value| !value.is_finite()) {
                let what = format!("the gradient of {}", spec.name);
                return Err(Error::NonFinite { step, what, value: value.into() });
            }
        }
        Err(Error::NonFinite { step, what: "the norm of the gradient".into(), value: gradient_norm })
    }

    /// The gradient computed last.
    pub fn gradients(&self) -> &ParameterStore {
        &self.shards[0].gradients
    }

    /// The forward of the first sequences of `batch`, beside the update that is due; returns of how many, 0 if none is due.
    fn forward_beside_update(&mut self, batch: &Batch, masks: Masks) -> usize {
        let Some(update) = self.due.take() else { return 0 };
        let sequences = self.config.batch_size.min(batch.sequences());
        let state = (&mut self.model, &mut self.optimizer);
        self.shards[0].forward_beside_update(update, &self.config, state, (batch, masks), 0..sequences);
        sequences
    }

    /// Whether an update may be left to the next step, which then takes less time: where several workers share operations.
    pub fn can_leave_updates(&self) -> bool {
        self.shards.len() == 1 && self.config.workers > 1
    }

    pub fn parallelism(&self) -> Parallelism {
        Parallelism::workers(self.config.workers)
    }

    /// Makes the update that is due, if one is.
    pub fn make_update(&mut self, parallelism: Parallelism) {
        let Some(update) = self.due.take() else { return };
        let (_, layout, _, parameters) = self.model.parts_mut();
        let gradients = &self.shards[0].gradients;
        PendingUpdate::new(update, &self.config, layout, parameters, gradients, &mut self.optimizer).apply(parallelism);
    }

    /// As [`make_update`](Self::make_update), for a step of a run that left it.
    pub fn finish_step(&mut self, parallelism: Parallelism) {
        if self.due.is_some() {
            let start = Instant::now();
            self.make_update(parallelism);
            self.training_time += start.elapsed();
        }
    }

    /// One step, but for its update, which is then due.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let BatchLoss { loss, accuracy, gradient_norm, .. } = self.compute_gradients(batch)?;
        let learning_rate = self.learning_rate.at(self.steps) * self.recovery.learning_rate_factor;
        // As PyTorch's clip_grad_norm_, whose small constant keeps the quotient finite.
        let gradient_scale =
            self.config.gradient_clip.map_or(1.0, |largest| (largest / (gradient_norm + 1e-6)).min(1.0));
        self.steps += 1;
        self.due = Some(Update { step: self.steps, learning_rate, gradient_scale });
        let tokens = (batch.sequences() * batch.sequence_length()) as u64;
        let outcome = StepOutcome::Updated;
        Ok(StepReport { step: self.steps, loss, accuracy, gradient_norm, learning_rate, tokens, outcome })
    }

    /// Evaluates consecutive windows of `source`: all of them, or `batches` batches spread evenly.
    pub fn evaluate(&mut self, source: &SequenceSource, batches: Option<usize>) -> Result<Evaluation> {
        self.finish_step(self.parallelism());
        if source.sequence_length() != self.config.sequence_length {
            return Err(Error::Shape {
                what: "sequences of the evaluation tokens".into(),
                expected: vec![self.config.sequence_length],
                found: vec![source.sequence_length()],
            });
        }
        let all = source.windows().div_ceil(self.config.batch_size as u64);
        let wanted = batches.map_or(all, |batches| all.min(batches as u64));
        let vocabulary = self.model.config().vocabulary_size;
        let loss = CrossEntropy { label_smoothing: 0.0, ..self.loss() };
        self.shards.iter_mut().for_each(Shard::begin);
        for index in 0..wanted {
            let batch = &mut self.evaluation_batch;
            let rows = source.fill_evaluation(index * all / wanted, batch)?;
            let batch = &self.evaluation_batch;
            let tokens = [("evaluation inputs", batch.inputs()), ("evaluation targets", batch.targets())];
            for (what, tokens) in tokens {
                check_tokens(what, tokens.as_slice().expect("contiguous"), vocabulary, self.config.ignore_id)?;
            }
            let parameters = self.optimizer.average.as_ref().unwrap_or(self.model.parameters());
            let model = self.model.with_parameters(parameters);
            let (parts, top_k) = (self.shards.len(), self.config.top_k);
            for_each_indexed(&mut self.shards, &|part, shard| {
                shard.evaluate(model, batch, (loss, top_k), 0..rows, (part, parts));
            });
        }
        let sum = self.shards.iter().fold(LossSum::default(), |sum, shard| sum + shard.sum);
        if sum.targets == 0 {
            return Err(Error::NoTargets { positions: wanted as usize * self.evaluation_batch.inputs().len() });
        }
        Ok(Evaluation::new(sum))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::config::{Sharding, TransformerConfig};
    use crate::data::TokenStore;
    use crate::train::Trainer;

    #[test]
    fn runs_leave_updates_to_the_next_step_where_workers_share_operations() {
        let tokens = TokenStore::from_tokens(&[1, 2, 3, 4, 5, 6, 7].repeat(10), 8).unwrap();
        let shape = TransformerConfig {
            vocabulary_size: 8,
            context: 4,
            dim: 8,
            heads: 2,
            layers: 1,
            feed_forward: 8,
            ..Default::default()
        };
        for (sharding, workers) in [(Sharding::Operations, 2), (Sharding::Operations, 1), (Sharding::Sequences, 2)] {
            let leaves = sharding == Sharding::Operations && workers == 2;
            let config = TrainingConfig {
                batch_size: 3,
                sequence_length: 4,
                max_steps: Some(4),
                sharding,
                workers,
                ..Default::default()
            };
            let source = SequenceSource::for_training(tokens.clone(), &config).unwrap();
            let mut trainer = Trainer::new(Transformer::new(shape.clone(), 1).unwrap(), config).unwrap();
            let run = trainer.run(&source, None, |progress| {
                assert_eq!(progress.has_update_due(), leaves, "{sharding:?}, {workers} workers");
                progress.model();
                ControlFlow::Continue(())
            });
            assert_eq!(run.unwrap().steps, 4);
            let engine = &mut trainer.engine;
            assert!(engine.due.is_none());

            let mut batch = Batch::zeros(5, 4);
            assert_eq!(engine.forward_beside_update(&batch, Masks::new(1, 4)), 0);
            if leaves {
                batch.targets_mut().fill(1);
                trainer.pool.install(|| {
                    engine.guarded_step(&batch, true).unwrap();
                    // The first of two micro-batches.
                    assert_eq!(engine.forward_beside_update(&batch, Masks::new(1, 5)), 3);
                });
            }
        }
    }
}
