//! Training of a text encoder on pairs.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::recovery::{Recover, Recovery};
use super::report::StepOutcome;
use super::run_data::RunData;
use crate::checkpoint::saving::Saving;
use crate::config::{PairEncoderConfig, PairTrainingConfig};
use crate::data::{PairBatch, PairSource, PairStore};
use crate::kernels::adamw::AdamwStep;
use crate::linalg::gemm::prepare_thread;
use crate::linalg::self_check::verify_blas;
use crate::linalg::threads::SingleThreadedBlas;
use crate::models::pair_encoder::{PairEncoder, PairWorkspace};
use crate::optim::LearningRate;
use crate::optim::row_sparse::RowSparseAdamw;
use crate::parallel::Parallelism;
use crate::{Error, Result};

/// What a step on pairs did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairReport {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean loss of a pair before the update, in nats.
    pub loss: f64,
    /// Share of the queries whose document had the highest score of the batch.
    pub accuracy: f64,
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// Pairs in the batch.
    pub pairs: u64,
    /// Tokens in the batch.
    pub tokens: u64,
    /// What became of the step.
    pub outcome: StepOutcome,
}

/// What a run's callback is told after every step.
#[derive(Clone, Copy, Debug)]
pub struct PairProgress<'a> {
    /// The step that was just made.
    pub report: PairReport,
    /// The step at which the run ends.
    pub last_step: u64,
    /// Pairs a second since the run began, callbacks left out.
    pub pairs_per_second: f64,
    /// The encoder after this step.
    pub encoder: &'a PairEncoder,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairSummary {
    /// Steps made in all, those before the run included.
    pub steps: u64,
    /// Whether the callback stopped the run before its last step.
    pub stopped: bool,
    /// The last step's report; none if the run had no step left to make.
    pub last: Option<PairReport>,
    /// Pairs of this run.
    pub pairs: u64,
    /// Time spent in training steps, without callbacks.
    pub training_time: Duration,
}

impl PairSummary {
    /// Pairs a second.
    #[must_use]
    pub fn pairs_per_second(&self) -> f64 {
        self.pairs as f64 / self.training_time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Trains a [`PairEncoder`] by the in-batch softmax and row-sparse AdamW.
///
/// A trainer owns its worker threads and every buffer it needs; a warm run allocates nothing. For a given number of
/// workers, build and machine, the same calls give the same bits. While a trainer lives, OpenBLAS is set to one thread
/// (see [`SingleThreadedBlas`]), unless [`PairTrainingConfig::keep_blas_threads`] is set.
///
/// A step updates the rows of the tokens in its batch and no others. Moments and weight decay of the others wait: each row
/// is updated by AdamW over the steps that touch it, with bias corrections by their number.
///
/// [`save`](Self::save) and [`resume`](Self::resume) take a run up again, exactly.
///
/// ```
/// use cllm::config::{PairEncoderConfig, PairTrainingConfig};
/// use cllm::data::{PairSource, PairStoreBuilder};
/// use cllm::train::PairTrainer;
/// use std::ops::ControlFlow;
/// # fn main() -> cllm::Result<()> {
/// // Query i has the token i, document i the token 20 + i.
/// let mut pairs = PairStoreBuilder::new(40, 0)?;
/// for i in 0..20 {
///     pairs.push(&[[i], [20 + i]])?;
/// }
/// let pairs = pairs.finish();
/// let encoder = PairEncoderConfig { vocabulary_size: 40, dim: 16, token_weights: false };
/// let config = PairTrainingConfig { batch_size: 10, epochs: Some(60), workers: 2, ..Default::default() };
/// let source = PairSource::new(pairs, config.batch_size, config.seed)?;
/// let mut trainer = PairTrainer::new(encoder, config)?;
/// trainer.run(&source, |_| ControlFlow::Continue(()))?;
/// assert_eq!(trainer.recall(source.store(), &[1])?, [1.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PairTrainer {
    pub(super) engine: Engine,
    pub(super) pool: rayon::ThreadPool,
    _blas: Option<SingleThreadedBlas>,
}

/// Everything of a trainer but its threads.
#[derive(Debug)]
pub(super) struct Engine {
    pub encoder: PairEncoder,
    pub config: PairTrainingConfig,
    pub optimizer: RowSparseAdamw,
    workspace: PairWorkspace,
    pub learning_rate: LearningRate,
    parallelism: Parallelism,
    pub steps: u64,
    pub saving: Saving,
    pub data: RunData<PairSource>,
    pub recovery: Recovery,
}

impl PairTrainer {
    /// A trainer for a new encoder, drawn from [`PairTrainingConfig::seed`].
    ///
    /// # Errors
    /// Those of [`PairTrainer::with_encoder`].
    pub fn new(encoder: PairEncoderConfig, config: PairTrainingConfig) -> Result<Self> {
        Self::with_encoder(PairEncoder::new(encoder, config.seed)?, config)
    }

    /// A trainer that goes on with an encoder.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a value is not valid, or a Matryoshka width exceeds the encoder's;
    /// [`Error::BrokenBlas`] if BLAS computes wrong products; [`Error::Threads`] if the threads cannot be started.
    pub fn with_encoder(encoder: PairEncoder, config: PairTrainingConfig) -> Result<Self> {
        config.validate()?;
        if let Some(&width) = config.matryoshka.last()
            && width > encoder.config().dim
        {
            let expected = format!("must be at most the encoder's width of {}", encoder.config().dim);
            return Err(Error::config("matryoshka", width, expected));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|worker| format!("cllm worker {worker}"))
            .build()?;
        // Threads that are still starting allocate, which a run's first steps shall not see.
        pool.broadcast(|_| prepare_thread());
        let blas = (!config.keep_blas_threads).then(SingleThreadedBlas::acquire);
        verify_blas()?;
        let engine = Engine {
            optimizer: encoder.optimizer(),
            workspace: PairWorkspace::new(&encoder, &config),
            learning_rate: LearningRate::new(&config.schedule(), config.max_steps.unwrap_or(u64::MAX)),
            parallelism: Parallelism::workers(config.workers),
            steps: 0,
            saving: Saving::default(),
            data: RunData::default(),
            recovery: Recovery::default(),
            encoder,
            config,
        };
        Ok(Self { engine, pool, _blas: blas })
    }

    /// Makes one update from `batch`, which may have fewer pairs than the configured number.
    ///
    /// # Errors
    /// [`Error::Shape`] for a batch with more pairs, other numbers of hard negatives or more tokens than there is room
    /// for; [`Error::TokenOutOfRange`]; [`Error::NonFinite`] if the loss or the gradient is not finite: the parameters are
    /// then as before. What this update itself makes of the parameters is looked at by what reads them next: a step, a
    /// save, [`recall`](Self::recall). Under another policy than [`OnNonFinite::Stop`](crate::config::OnNonFinite::Stop) the report's outcome
    /// tells of it instead.
    pub fn step(&mut self, batch: &PairBatch) -> Result<PairReport> {
        let engine = &mut self.engine;
        self.pool.install(|| engine.guarded_step(batch))
    }

    /// Trains on the batches of `source` until the configured end, from the step this trainer is at.
    ///
    /// After every step `on_progress` is called, on a worker thread, and may stop the run. Jobs that it leaves in the
    /// workers' pool may hold up the next steps, and must not wait for them.
    ///
    /// # Errors
    /// As [`PairTrainer::step`], and those of saving (see [`PairTrainer::save_to`]); [`Error::InvalidConfig`] if the config
    /// says neither `max_steps` nor `epochs`; [`Error::Shape`], before the first step, if the source's batches are not of
    /// the configured size or its pairs have another number of hard negatives; [`Error::Differences`] if the trainer was
    /// resumed and `source` is not the data of its checkpoint.
    pub fn run(
        &mut self,
        source: &PairSource,
        on_progress: impl FnMut(&PairProgress<'_>) -> ControlFlow<()> + Send,
    ) -> Result<PairSummary> {
        let config = &self.engine.config;
        let expected = vec![config.batch_size, config.hard_negatives];
        let found = vec![source.batch_size(), source.store().hard_negatives()];
        if expected != found {
            return Err(Error::Shape {
                what: "batches of the training source, pairs × hard negatives".into(),
                expected,
                found,
            });
        }
        let in_epochs = config.epochs.map(|epochs| epochs.saturating_mul(source.batches_per_epoch()));
        let last_step = match (config.max_steps, in_epochs) {
            (Some(steps), Some(epochs)) => steps.min(epochs),
            (Some(steps), None) | (None, Some(steps)) => steps,
            (None, None) => return Err(Error::config("max_steps", "none", "set max_steps or epochs")),
        };
        let engine = &mut self.engine;
        engine.learning_rate = LearningRate::new(&engine.config.schedule(), last_step);
        self.pool.install(|| {
            engine.begin_run(source)?;
            engine.run(source, last_step, on_progress)
        })
    }

    /// [`PairEncoder::recall`], on the trainer's threads.
    ///
    /// # Errors
    /// As there.
    pub fn recall(&self, pairs: &PairStore, ranks: &[usize]) -> Result<Vec<f64>> {
        let engine = &self.engine;
        self.pool.install(|| engine.encoder.recall(pairs, ranks, engine.parallelism))
    }

    /// Steps made so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.engine.steps
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &PairTrainingConfig {
        &self.engine.config
    }

    /// The encoder as trained so far.
    #[must_use]
    pub fn encoder(&self) -> &PairEncoder {
        &self.engine.encoder
    }

    /// Ends the training and returns the encoder.
    #[must_use]
    pub fn into_encoder(self) -> PairEncoder {
        self.engine.encoder
    }
}

impl Engine {
    fn check(&self, batch: &PairBatch) -> Result<()> {
        let config = &self.config;
        let shape =
            |what: &str, expected: Vec<usize>, found: Vec<usize>| Error::Shape { what: what.into(), expected, found };
        if batch.pairs() == 0 || batch.pairs() > config.batch_size || batch.hard_negatives() != config.hard_negatives {
            return Err(shape(
                "batch, (at most) pairs × hard negatives",
                vec![config.batch_size, config.hard_negatives],
                vec![batch.pairs(), batch.hard_negatives()],
            ));
        }
        let tokens = batch.rows().ids().len();
        if tokens as u64 > config.places() {
            return Err(shape("tokens of a batch, at most", vec![config.places() as usize], vec![tokens]));
        }
        self.encoder.check("batch", batch.rows())
    }

    pub fn step(&mut self, batch: &PairBatch) -> Result<PairReport> {
        self.check(batch)?;
        let (sum, finite) = self.workspace.loss_and_gradient(&self.encoder, batch, self.parallelism);
        let pairs = batch.pairs() as f64;
        let loss = sum.loss / pairs;
        if !loss.is_finite() || !finite {
            let step = self.steps + 1;
            self.check_weights(step)?;
            let what = if finite { "the loss" } else { "the gradient" };
            return Err(Error::NonFinite { step, what: what.into(), value: loss });
        }
        let learning_rate = self.next_learning_rate();
        let step = AdamwStep {
            learning_rate,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            gradient_scale: 1.0,
            bias_correction1: 1.0,
            bias_correction2: 1.0,
        };
        self.encoder.update(&mut self.optimizer, &self.workspace, &step, self.parallelism);
        self.steps += 1;
        Ok(PairReport {
            step: self.steps,
            loss,
            accuracy: sum.correct as f64 / pairs,
            learning_rate,
            pairs: batch.pairs() as u64,
            tokens: batch.rows().ids().len() as u64,
            outcome: StepOutcome::Updated,
        })
    }

    pub fn next_learning_rate(&self) -> f64 {
        self.learning_rate.at(self.steps) * self.recovery.learning_rate_factor
    }

    fn run(
        &mut self,
        source: &PairSource,
        last_step: u64,
        mut on_progress: impl FnMut(&PairProgress<'_>) -> ControlFlow<()>,
    ) -> Result<PairSummary> {
        let mut batch = source.batch();
        let mut summary =
            PairSummary { steps: self.steps, stopped: false, last: None, pairs: 0, training_time: Duration::ZERO };
        while self.steps < last_step {
            let start = Instant::now();
            source.fill(self.steps, &mut batch)?;
            let mut report = self.guarded_step(&batch)?;
            summary.training_time += start.elapsed();
            summary.pairs += report.pairs;
            let due = self.config.save_interval.is_some_and(|interval| report.step.is_multiple_of(interval));
            if due && report.outcome == StepOutcome::Updated {
                report.outcome = self.save_beside_training()?;
                report.step = self.steps;
            }
            summary.steps = self.steps;
            summary.last = Some(report);
            tracing::debug!(step = report.step, loss = report.loss, "step");
            let progress = PairProgress {
                report,
                last_step,
                pairs_per_second: summary.pairs_per_second(),
                encoder: &self.encoder,
            };
            if on_progress(&progress).is_break() {
                summary.stopped = self.steps < last_step;
                break;
            }
        }
        self.saving.finish()?;
        Ok(summary)
    }
}
