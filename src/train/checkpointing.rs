//! Saving a trainer's state, and taking a run up where it was left.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::engine::Engine;
use super::recovery::Recover;
use super::report::StepOutcome;
use super::run_data::Recorded;
use super::trainer::Trainer;
use crate::Result;
use crate::checkpoint::difference::{self, refuse};
use crate::checkpoint::saving::{FIRST_MOMENTS, MODEL, SECOND_MOMENTS, Saving, State};
use crate::checkpoint::{Accept, Checkpoint, DataRecord, Difference, Manifest, NamedStore, to_map};
use crate::config::{TrainingConfig, TransformerConfig};
use crate::data::SequenceSource;
use crate::models::transformer::Transformer;
use crate::optim::LearningRate;

/// The kind of checkpoint that this trainer writes.
const KIND: &str = "transformer";

const AVERAGE: &str = "average";

impl Recorded for SequenceSource {
    fn record(&self) -> Result<Map<String, Value>> {
        Ok(to_map(&DataRecord::of(self)?))
    }
}

/// How a run is resumed.
#[derive(Clone, Debug, Default)]
pub struct ResumeOptions<'a> {
    /// Settings to go on with; those of the checkpoint if none.
    pub config: Option<TrainingConfig>,
    /// The training data, to be compared now; otherwise the first [`Trainer::run`] compares its own.
    pub data: Option<&'a SequenceSource>,
    /// Which differences to accept.
    pub accept: Accept,
}

impl Trainer {
    /// Makes `folder` the run folder: [`Trainer::run`] then writes a checkpoint to it every
    /// [`save_interval`](TrainingConfig::save_interval) updates, and keeps the last
    /// [`keep_checkpoints`](TrainingConfig::keep_checkpoints).
    ///
    /// These saves go on beside training: a step waits for a copy of the state, and for the save before if that is
    /// still being written. What goes wrong with one is returned by the next call that saves, or by `run`, which waits
    /// for the last one at its end. The folder is locked until the trainer is dropped or saves elsewhere.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) if the folder has another writer, [`Error::Io`](crate::Error::Io), or the error of a former save.
    pub fn save_to(&mut self, folder: impl AsRef<Path>) -> Result<()> {
        self.engine.saving.save_to(folder.as_ref())
    }

    /// Writes a checkpoint to the run folder `folder`, which is made if need be, and returns its path. Nothing is
    /// written if the last checkpoint there, of this trainer, is of this very step.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) if a weight or a moment is not finite: nothing is written then. [`Error::Locked`](crate::Error::Locked),
    /// [`Error::Io`](crate::Error::Io): the former checkpoint is then untouched, and training can go on.
    pub fn save(&mut self, folder: impl AsRef<Path>) -> Result<PathBuf> {
        let engine = &mut self.engine;
        engine.saving.save_to(folder.as_ref())?;
        self.pool.install(|| engine.saving(|saving, state| saving.save_now(&state)))
    }

    /// Waits for a save that is going on beside training.
    ///
    /// # Errors
    /// Its error.
    pub fn finish_saving(&mut self) -> Result<()> {
        self.engine.saving.finish()
    }

    /// Takes up the run in `folder` where its last checkpoint left it, or at the checkpoint that `folder` is.
    ///
    /// The trainer goes on as the one that wrote the checkpoint would have: bit by bit, if nothing differs. All
    /// differences found are returned; those that [`ResumeOptions::accept`] does not cover are an error. With other
    /// settings, moments start at 0 under another optimizer, and a new moving average at the weights.
    ///
    /// ```
    /// # use cllm::data::{BatchOrder, SequenceSource, TokenStore};
    /// # use cllm::train::ResumeOptions;
    /// # use cllm::{Trainer, TrainingConfig, Transformer, TransformerConfig};
    /// # fn main() -> cllm::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let tokens = TokenStore::from_tokens(&(0..500).map(|i| i * i % 11).collect::<Vec<_>>(), 11)?;
    /// # let model = TransformerConfig { vocabulary_size: 11, context: 8, dim: 8, heads: 2, layers: 1, feed_forward: 8,
    /// #     ..Default::default() };
    /// # let config = TrainingConfig { batch_size: 2, sequence_length: 8, max_steps: Some(3), workers: 1,
    /// #     ..Default::default() };
    /// # let batches = SequenceSource::new(tokens, BatchOrder::Shuffled, 2, 8, 1)?;
    /// let mut trainer = Trainer::new(Transformer::new(model, 1)?, config)?;
    /// # use std::ops::ControlFlow;
    /// trainer.run(&batches, None, |progress| {
    ///     if progress.report.step == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    /// })?;
    /// trainer.save(folder.path())?;
    ///
    /// let (mut trainer, differences) = Trainer::resume(folder.path(), &ResumeOptions::default())?;
    /// assert_eq!((trainer.steps(), differences.len()), (2, 0));
    /// trainer.run(&batches, None, |_| ControlFlow::Continue(()))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load`]; [`Error::Differences`](crate::Error::Differences); those of [`Trainer::new`].
    pub fn resume(folder: impl AsRef<Path>, options: &ResumeOptions<'_>) -> Result<(Self, Vec<Difference>)> {
        let checkpoint = Checkpoint::open_kind(folder, KIND)?;
        let (manifest, path) = (checkpoint.manifest(), checkpoint.manifest_path());
        let model: TransformerConfig = manifest.setting(&path, "model")?;
        let saved: TrainingConfig = manifest.setting(&path, "training")?;
        let config = options.config.clone().unwrap_or_else(|| saved.clone());

        let mut differences = difference::runs(manifest, &saved, &config, config.workers);
        if let (Some(saved), Some(found)) = (&manifest.data, options.data) {
            differences.extend(difference::data(saved, &found.record()?));
        }
        refuse(&differences, options.accept)?;

        let same_optimizer = saved.optimizer == config.optimizer;
        let model = Transformer::with_parameters_from(model, |layout| checkpoint.load(MODEL, layout))?;
        let mut trainer = Self::new(model, config)?;
        let engine = &mut trainer.engine;
        let layout = engine.model.layout();
        if same_optimizer {
            engine.optimizer.first = checkpoint.load(FIRST_MOMENTS, layout)?;
            if let Some(second) = &mut engine.optimizer.second {
                *second = checkpoint.load(SECOND_MOMENTS, layout)?;
            }
        }
        if let (Some(average), Some(_)) = (&mut engine.optimizer.average, saved.moving_average_decay) {
            *average = checkpoint.load(AVERAGE, layout)?;
        }
        engine.steps = manifest.step;
        engine.recovery.learning_rate_factor = manifest.learning_rate_factor;
        let schedule_steps = schedule_steps(manifest, saved.max_steps, engine.config.max_steps);
        engine.learning_rate = LearningRate::new(&engine.config, schedule_steps);
        if options.data.is_none() {
            engine.data.expect(manifest.data.clone(), options.accept);
        }
        Ok((trainer, differences))
    }
}

/// The schedule's length until a run says otherwise: as saved, unless the end was moved.
pub(super) fn schedule_steps(manifest: &Manifest, saved: Option<u64>, now: Option<u64>) -> u64 {
    now.filter(|_| now != saved).unwrap_or(manifest.schedule_steps)
}

impl Engine {
    /// Prepares for a run on `source`: compares it with what a checkpoint says, and does now what would stall a save.
    pub fn begin_run(&mut self, source: &SequenceSource) -> Result<()> {
        self.data.begin(source, self.saving.is_on())?;
        if self.policy().rolls_back() && self.saving.snapshot().is_none() {
            self.saving(|saving, state| saving.take_snapshot(state).map(|_| ()))?;
        }
        Ok(())
    }

    /// What is due every save interval: a checkpoint beside training, if there is a run folder, or else a copy to roll
    /// back to, if that is the policy. State that is not finite is never saved; the policy may roll it back.
    pub fn save_beside_training(&mut self) -> Result<StepOutcome> {
        if !self.saving.is_on() && !self.policy().rolls_back() {
            return Ok(StepOutcome::Updated);
        }
        match self.saving(Saving::save_beside_training) {
            Ok(()) => Ok(StepOutcome::Updated),
            Err(error) if self.policy().rolls_back() => self.recover(self.steps, error),
            Err(error) => Err(error),
        }
    }

    /// Calls `save` with the state.
    fn saving<R>(&mut self, save: impl FnOnce(&mut Saving, State<'_>) -> Result<R>) -> Result<R> {
        self.data.prepare()?;
        self.finish_step(self.parallelism());
        let mut saving = std::mem::take(&mut self.saving);
        let result = save(&mut saving, self.state());
        self.saving = saving;
        result
    }

    /// Returns to the last copy of the state; whether there was one.
    pub fn return_to_snapshot(&mut self) -> bool {
        let Some(snapshot) = self.saving.snapshot() else { return false };
        let copy = |name| snapshot.values(name);
        self.model.parameters_mut().values_mut().copy_from_slice(copy(MODEL));
        self.optimizer.first.values_mut().copy_from_slice(copy(FIRST_MOMENTS));
        if let Some(second) = &mut self.optimizer.second {
            second.values_mut().copy_from_slice(copy(SECOND_MOMENTS));
        }
        if let Some(average) = &mut self.optimizer.average {
            average.values_mut().copy_from_slice(copy(AVERAGE));
        }
        self.steps = snapshot.manifest().step;
        self.saving.forget();
        true
    }

    fn stores(&self) -> Vec<NamedStore<'_>> {
        let mut stores = vec![(MODEL, self.model.parameters()), (FIRST_MOMENTS, &self.optimizer.first)];
        stores.extend(self.optimizer.second.as_ref().map(|second| (SECOND_MOMENTS, second)));
        stores.extend(self.optimizer.average.as_ref().map(|average| (AVERAGE, average)));
        stores
    }

    fn state(&self) -> State<'_> {
        let manifest = Manifest {
            schedule_steps: self.learning_rate.total(),
            learning_rate_factor: self.recovery.learning_rate_factor,
            data: self.data.recorded(),
            settings: to_map(&json!({ "model": self.model.config(), "training": &self.config })),
            ..Manifest::new(KIND, self.steps, self.config.workers, self.config.seed)
        };
        let keep = self.config.keep_checkpoints;
        State { manifest, layout: self.model.layout(), stores: self.stores(), files: Vec::new(), keep }
    }
}
