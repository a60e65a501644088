//! Saving a trainer's state, and taking a run up where it was left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::engine::Engine;
use super::report::StepOutcome;
use super::saving::{Saving, State};
use super::trainer::Trainer;
use crate::checkpoint::difference::{self, refuse};
use crate::checkpoint::{
    Accept, Checkpoint, DataRecord, Difference, DifferenceKind, FORMAT_VERSION, Machine, Manifest, NamedStore, to_map,
};
use crate::config::{TrainingConfig, TransformerConfig};
use crate::data::SequenceSource;
use crate::models::transformer::Transformer;
use crate::optim::LearningRate;
use crate::{Error, Result};

/// The kind of checkpoint that this trainer writes.
const KIND: &str = "transformer";

const MODEL: &str = "model";
const FIRST_MOMENTS: &str = "first_moments";
const SECOND_MOMENTS: &str = "second_moments";
const AVERAGE: &str = "average";

/// The data of a trainer's run.
#[derive(Debug, Default)]
pub(super) struct RunData {
    /// The source of the last run, and its record once it is needed.
    source: Option<SequenceSource>,
    record: Option<Map<String, Value>>,
    /// The data that a resumed run must find, and how strict to be.
    expected: Option<(Map<String, Value>, Accept)>,
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
    /// [`Error::Locked`] if the folder has another writer, [`Error::Io`], or the error of a former save.
    pub fn save_to(&mut self, folder: impl AsRef<Path>) -> Result<()> {
        self.engine.saving.save_to(folder.as_ref())
    }

    /// Writes a checkpoint to the run folder `folder`, which is made if need be, and returns its path. Nothing is
    /// written if the last checkpoint there, of this trainer, is of this very step.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a weight or a moment is not finite: nothing is written then. [`Error::Locked`],
    /// [`Error::Io`]: the former checkpoint is then untouched, and training can go on.
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
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load`]; [`Error::Differences`]; those of [`Trainer::new`].
    pub fn resume(folder: impl AsRef<Path>, options: &ResumeOptions<'_>) -> Result<(Self, Vec<Difference>)> {
        let checkpoint = Checkpoint::open(folder)?;
        let (manifest, path) = (checkpoint.manifest(), checkpoint.manifest_path());
        if manifest.kind != KIND {
            return Err(Error::invalid_file(path, format!("a checkpoint of a {}, not of a {KIND}", manifest.kind)));
        }
        let model: TransformerConfig = manifest.setting(&path, "model")?;
        let saved: TrainingConfig = manifest.setting(&path, "training")?;
        let config = options.config.clone().unwrap_or_else(|| saved.clone());

        let mut differences = difference::machines(&manifest.machine, &Machine::current(config.workers));
        differences.extend(
            difference::settings(&saved, &config, setting_kind)
                .into_iter()
                .filter(|difference| difference.name != "workers"),
        );
        if let (Some(saved), Some(found)) = (&manifest.data, options.data) {
            differences.extend(difference::data(saved, &to_map(&DataRecord::of(found)?)));
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
        engine.learning_rate = LearningRate::new(&engine.config, schedule_steps(manifest, &saved, &engine.config));
        engine.data.expected = match options.data {
            None => manifest.data.clone().map(|data| (data, options.accept)),
            Some(_) => None,
        };
        Ok((trainer, differences))
    }
}

/// The schedule's length until a run says otherwise: as saved, unless the end was moved.
fn schedule_steps(manifest: &Manifest, saved: &TrainingConfig, config: &TrainingConfig) -> u64 {
    match config.max_steps {
        Some(steps) if config.max_steps != saved.max_steps => steps,
        _ => manifest.schedule_steps,
    }
}

fn setting_kind(name: &str, saved: &Value, found: &Value) -> DifferenceKind {
    let grown = |saved: &Value, found: &Value| saved.as_u64().is_some_and(|saved| found.as_u64() > Some(saved));
    match name {
        "evaluation_interval" | "evaluation_batches" | "top_k" | "save_interval" | "keep_checkpoints" => {
            DifferenceKind::Interval
        }
        "max_steps" | "epochs" if grown(saved, found) => DifferenceKind::Interval,
        _ => DifferenceKind::Setting,
    }
}

impl Engine {
    /// Prepares for a run on `source`: compares it with what a checkpoint says, and does now what would stall a save.
    pub fn begin_run(&mut self, source: &SequenceSource) -> Result<()> {
        self.data.source = Some(source.clone());
        self.data.record = None;
        if let Some((expected, accept)) = &self.data.expected {
            let found = to_map(&DataRecord::of(source)?);
            refuse(&difference::data(expected, &found), *accept)?;
            self.data.record = Some(found);
            self.data.expected = None;
        }
        if self.saving.is_on() {
            self.record_data()?;
        }
        if self.rolls_back() && self.saving.snapshot().is_none() {
            self.saving(|saving, state| saving.take_snapshot(state).map(|_| ()))?;
        }
        Ok(())
    }

    /// What is due every save interval: a checkpoint beside training, if there is a run folder, or else a copy to roll
    /// back to, if that is the policy. State that is not finite is never saved; the policy may roll it back.
    pub fn save_beside_training(&mut self) -> Result<StepOutcome> {
        if !self.saving.is_on() && !self.rolls_back() {
            return Ok(StepOutcome::Updated);
        }
        match self.saving(Saving::save_beside_training) {
            Ok(()) => Ok(StepOutcome::Updated),
            Err(error) if self.rolls_back() => self.recover(error),
            Err(error) => Err(error),
        }
    }

    /// Calls `save` with the state.
    fn saving<R>(&mut self, save: impl FnOnce(&mut Saving, State<'_>) -> Result<R>) -> Result<R> {
        self.record_data()?;
        let mut saving = std::mem::take(&mut self.saving);
        let result = save(&mut saving, self.state());
        self.saving = saving;
        result
    }

    /// Returns to the last copy of the state; whether there was one.
    pub fn restore_snapshot(&mut self) -> bool {
        let Some(snapshot) = self.saving.snapshot() else { return false };
        let copy = |name| snapshot.store(name).expect("a snapshot has the engine's stores").values();
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

    fn record_data(&mut self) -> Result<()> {
        if let (None, Some(source)) = (&self.data.record, &self.data.source) {
            self.data.record = Some(to_map(&DataRecord::of(source)?));
        }
        Ok(())
    }

    fn state(&self) -> State<'_> {
        let (data, mut settings) = (&self.data, Map::new());
        settings.insert("model".into(), json(self.model.config()));
        settings.insert("training".into(), json(&self.config));
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            kind: KIND.into(),
            machine: Machine::current(self.config.workers),
            step: self.steps,
            schedule_steps: self.learning_rate.total(),
            learning_rate_factor: self.recovery.learning_rate_factor,
            seed: self.config.seed,
            data: data.record.as_ref().or(data.expected.as_ref().map(|(expected, _)| expected)).cloned(),
            settings,
            state: Map::new(),
            files: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        let keep = self.config.keep_checkpoints;
        State { manifest, layout: self.model.layout(), stores: self.stores(), files: Vec::new(), keep }
    }
}

fn json(config: &impl Serialize) -> Value {
    serde_json::to_value(config).expect("a configuration has only string keys")
}
