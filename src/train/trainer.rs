//! The trainer: a model, its optimizer, and the threads they run on.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ndarray::ArrayViewD;

use super::engine::Engine;
use super::memory_plan::MemoryPlan;
use super::report::{BatchLoss, Evaluation, Progress, StepOutcome, StepReport};
use crate::config::{TrainingConfig, TransformerConfig};
use crate::data::{Batch, SequenceSource};
use crate::linalg::gemm::prepare_thread;
use crate::linalg::self_check::verify_blas;
use crate::linalg::threads::{SingleThreadedBlas, blas_core_name};
use crate::models::transformer::{Transformer, view};
use crate::optim::LearningRate;
use crate::{Error, Result};

/// Trains a [`Transformer`].
///
/// A trainer owns its worker threads and every buffer it needs: [`Trainer::run`] allocates nothing once it is under
/// way. A [`Trainer::step`] called from outside costs what handing the call to the workers costs: now and then a block
/// of the thread pool's queue, and nothing more.
///
/// For a given number of workers, build and machine, the same calls give the same bits.
///
/// While a trainer lives, OpenBLAS is set to one thread for the whole process (see
/// [`SingleThreadedBlas`]), unless [`TrainingConfig::keep_blas_threads`] is set.
///
/// ```
/// use cllm::data::{BatchOrder, SequenceSource, TokenStore};
/// use cllm::{Trainer, TrainingConfig, Transformer, TransformerConfig};
/// use std::ops::ControlFlow;
/// # fn main() -> cllm::Result<()> {
/// let tokens: Vec<u32> = (0..4000).map(|i| i * i % 11).collect();
/// let tokens = TokenStore::from_tokens(&tokens, 11)?;
/// let model = TransformerConfig { vocabulary_size: 11, context: 16, dim: 16, heads: 2, layers: 1, feed_forward: 64,
///     ..Default::default() };
/// let config = TrainingConfig { batch_size: 4, sequence_length: 16, max_steps: Some(60), warmup_steps: 10,
///     learning_rate: 1e-2, workers: 2, ..Default::default() };
/// let batches = SequenceSource::new(tokens, BatchOrder::Shuffled, 4, 16, 1)?;
/// let mut trainer = Trainer::new(Transformer::new(model, 1)?, config)?;
/// trainer.run(&batches, None, |progress| {
///     if progress.report.loss < 0.01 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
/// })?;
/// assert!(trainer.evaluate(&batches)?.perplexity() < 8.0);
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    pub(super) engine: Engine,
    pub(super) pool: rayon::ThreadPool,
    _blas: Option<SingleThreadedBlas>,
}

impl fmt::Debug for Trainer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Trainer")
            .field("steps", &self.steps())
            .field("model", self.model())
            .field("config", self.config())
            .finish_non_exhaustive()
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunSummary {
    /// Steps made in all, those before the run included.
    pub steps: u64,
    /// Whether the callback stopped the run before its last step.
    pub stopped: bool,
    /// The last step's report; none if the run had no step left to make.
    pub last: Option<StepReport>,
    /// Training tokens of this run.
    pub tokens: u64,
    /// Time spent in training steps, without evaluation and callbacks.
    pub training_time: Duration,
}

impl RunSummary {
    /// Training tokens a second.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.training_time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Trainer {
    /// A trainer for `model`, with its buffers and its worker threads.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a value is not valid, or the sequences exceed the model's context;
    /// [`Error::BrokenBlas`] if BLAS computes wrong products; [`Error::Threads`] if the threads cannot be started.
    pub fn new(model: Transformer, config: TrainingConfig) -> Result<Self> {
        check(model.config(), &config)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|worker| format!("cllm worker {worker}"))
            .build()?;
        let blas = (!config.keep_blas_threads).then(SingleThreadedBlas::acquire);
        verify_blas()?;
        pool.broadcast(|_| prepare_thread());
        // Inside the pool, so that each worker's buffers are first touched by the threads that use them.
        let engine = pool.install(|| Engine::new(model, config));
        let parameters = engine.model.layout().parameter_count();
        let sharding = engine.config.effective_sharding(parameters);
        tracing::info!(
            parameters,
            workers = engine.config.workers,
            ?sharding,
            blas = blas_core_name(),
            "trainer built"
        );
        Ok(Self { engine, pool, _blas: blas })
    }

    /// Makes one update from `batch`: forward, backward, clip, optimizer.
    ///
    /// The batch may have any number of sequences, up to the configured length; they are worked off `batch_size` at a
    /// time, and the loss is the mean over all targets that count. Ids are checked against the vocabulary.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TokenOutOfRange`], [`Error::NoTargets`] for a batch that cannot be used, and
    /// [`Error::NonFinite`] if the loss or the gradient is not finite: the parameters are then as before. Under another
    /// policy than [`OnNonFinite::Stop`](crate::config::OnNonFinite::Stop) the report's outcome tells of it instead.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let engine = &mut self.engine;
        self.pool.install(|| engine.guarded_step(batch, false))
    }

    /// Computes the loss and the gradient of `batch` as [`Trainer::step`] does, and updates nothing.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn compute_gradients(&mut self, batch: &Batch) -> Result<BatchLoss> {
        let engine = &mut self.engine;
        self.pool.install(|| engine.compute_gradients(batch))
    }

    /// The gradient of the parameter `name` as computed last, before clipping.
    #[must_use]
    pub fn gradient(&self, name: &str) -> Option<ArrayViewD<'_, f32>> {
        self.engine.model.layout().find(name).map(|spec| view(self.engine.gradients(), spec))
    }

    /// Trains on the batches of `source` until the configured end, from the step this trainer is at.
    ///
    /// Where several workers share operations, a step's update is made beside the next step's forward, if nothing asks for the
    /// model before: such a step takes less time than a [`Trainer::step`], and gives the same bits.
    ///
    /// After every step `on_progress` is called, on a worker thread, and may stop the run. Jobs that it leaves in the
    /// workers' pool may hold up the next steps, and must not wait for them. When an evaluation is due
    /// and there is a `validation` source, the model (or the moving average of its weights) is evaluated first.
    ///
    /// # Errors
    /// As [`Trainer::step`], those of reading the tokens, and those of saving (see [`Trainer::save_to`]); after any the
    /// run can be continued by calling this again. [`Error::Differences`] if the trainer was resumed and `source` is not the data of its
    /// checkpoint; [`Error::InvalidConfig`] if the config says neither `max_steps` nor `epochs`;
    /// [`Error::Shape`] if a source has batches of another shape than `batch_size`·`accumulation_steps` (of any number
    /// of sequences, for validation) × `sequence_length`.
    pub fn run(
        &mut self,
        source: &SequenceSource,
        validation: Option<&SequenceSource>,
        on_progress: impl FnMut(&Progress<'_>) -> ControlFlow<()> + Send,
    ) -> Result<RunSummary> {
        let config = &self.engine.config;
        let expected = vec![config.batch_size * config.accumulation_steps, config.sequence_length];
        let found = vec![source.sequences(), source.sequence_length()];
        if expected != found {
            return Err(Error::Shape { what: "batches of the training source".into(), expected, found });
        }
        let in_epochs = config.epochs.map(|epochs| epochs.saturating_mul(source.batches_per_epoch()));
        let last_step = match (config.max_steps, in_epochs) {
            (Some(steps), Some(epochs)) => steps.min(epochs),
            (Some(steps), None) | (None, Some(steps)) => steps,
            (None, None) => return Err(Error::config("max_steps", "none", "set max_steps or epochs")),
        };
        self.engine.learning_rate = LearningRate::new(config, last_step);
        let engine = &mut self.engine;
        self.pool.install(|| engine.begin_run(source))?;
        self.pool.install(|| run(engine, source, validation, last_step, on_progress))
    }

    /// Evaluates the model, or the moving average of its weights if there is one, on every window of `source`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the source's sequences have another length than the configured one,
    /// [`Error::TokenOutOfRange`], [`Error::NoTargets`].
    pub fn evaluate(&mut self, source: &SequenceSource) -> Result<Evaluation> {
        let engine = &mut self.engine;
        self.pool.install(|| engine.evaluate(source, None))
    }

    /// The memory that this trainer takes, the model's included: [`MemoryPlan::of`] its settings.
    #[must_use]
    pub fn memory_plan(&self) -> MemoryPlan {
        MemoryPlan::of(self.engine.model.config(), &self.engine.config).expect("a trainer's settings are valid")
    }

    /// Steps made so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.engine.steps
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &TrainingConfig {
        &self.engine.config
    }

    /// The model as trained so far.
    #[must_use]
    pub fn model(&self) -> &Transformer {
        &self.engine.model
    }

    /// The model with the moving average of its weights, if one is kept.
    #[must_use]
    pub fn averaged_model(&self) -> Option<Transformer> {
        let average = self.engine.optimizer.average.as_ref()?;
        let mut model = self.engine.model.clone();
        model.parameters_mut().values_mut().copy_from_slice(average.values());
        Some(model)
    }

    /// Ends the training and returns the model.
    #[must_use]
    pub fn into_model(self) -> Transformer {
        self.engine.model
    }
}

/// Checks the settings of a run, and that its sequences fit the model.
pub(super) fn check(model: &TransformerConfig, config: &TrainingConfig) -> Result<()> {
    config.validate()?;
    if config.sequence_length > model.context {
        let expected = format!("must be at most the model's context of {}", model.context);
        return Err(Error::config("sequence_length", config.sequence_length, expected));
    }
    Ok(())
}

/// Makes the update that a run's last step left, however the run ends.
struct FinishOnDrop<'a>(&'a mut Engine);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish_step(self.0.parallelism());
    }
}

fn run(
    engine: &mut Engine,
    source: &SequenceSource,
    validation: Option<&SequenceSource>,
    last_step: u64,
    mut on_progress: impl FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<RunSummary> {
    let running = FinishOnDrop(engine);
    let engine = &mut *running.0;
    let due = |interval: Option<u64>, step: u64| interval.is_some_and(|interval| step.is_multiple_of(interval));
    let mut batch = Batch::zeros(source.sequences(), source.sequence_length());
    let (mut last, mut stopped, mut tokens) = (None, false, 0);
    engine.training_time = Duration::ZERO;
    while engine.steps < last_step {
        let start = Instant::now();
        source.fill(engine.steps, &mut batch)?;
        let mut report = engine.guarded_step(&batch, engine.can_leave_updates())?;
        engine.training_time += start.elapsed();
        tokens += report.tokens;
        let save_due = report.outcome == StepOutcome::Updated && due(engine.config.save_interval, report.step);
        if save_due {
            report.outcome = engine.save_beside_training()?;
            report.step = engine.steps;
        }
        last = Some(report);
        tracing::debug!(step = report.step, loss = report.loss, gradient_norm = report.gradient_norm, "step");
        let evaluation = match validation {
            Some(validation) if due(engine.config.evaluation_interval, report.step) => {
                let evaluation = engine.evaluate(validation, engine.config.evaluation_batches)?;
                tracing::info!(step = report.step, loss = evaluation.loss, "evaluation");
                Some(evaluation)
            }
            _ => None,
        };
        let tokens_per_second = tokens as f64 / engine.training_time.as_secs_f64().max(f64::MIN_POSITIVE);
        let progress = Progress::new((report, last_step, tokens_per_second), evaluation, save_due, engine);
        if on_progress(&progress).is_break() {
            stopped = report.step < last_step;
            break;
        }
    }
    engine.finish_step(engine.parallelism());
    engine.saving.finish()?;
    Ok(RunSummary { steps: engine.steps, stopped, last, tokens, training_time: engine.training_time })
}
