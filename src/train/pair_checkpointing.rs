//! Saving a pair trainer's state, and taking a run up where it was left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::checkpointing::schedule_steps;
use super::pair_trainer::{Engine, PairReport, PairTrainer};
use super::recovery::{Recover, Recovery};
use super::report::StepOutcome;
use super::run_data::Recorded;
use crate::checkpoint::difference::{self, refuse};
use crate::checkpoint::saving::{FIRST_MOMENTS, MODEL, SECOND_MOMENTS, Saving, State};
use crate::checkpoint::{Accept, Checkpoint, Checksum, Difference, Manifest, check_finite, to_map};
use crate::config::{NonFinitePolicy, PairTrainingConfig};
use crate::data::{PairBatch, PairSource};
use crate::models::pair_encoder::PairEncoder;
use crate::optim::LearningRate;
use crate::parallel::awake;
use crate::{Error, Result};

/// The kind of checkpoint that this trainer writes.
const KIND: &str = "pairs";

/// How often each row was updated, a u32 each, little endian.
const ROW_UPDATES: &str = "row_updates.u32";

/// What a checkpoint says of the pairs, and of how they are drawn.
#[derive(Serialize)]
struct PairRecord {
    pairs: usize,
    hard_negatives: usize,
    fingerprint: Checksum,
    batch_size: usize,
    seed: u64,
}

impl Recorded for PairSource {
    fn record(&self) -> Result<Map<String, Value>> {
        let store = self.store();
        Ok(to_map(&PairRecord {
            pairs: store.len(),
            hard_negatives: store.hard_negatives(),
            fingerprint: store.fingerprint()?,
            batch_size: self.batch_size(),
            seed: self.seed(),
        }))
    }
}

impl PairTrainer {
    /// Makes `folder` the run folder: [`PairTrainer::run`] then writes a checkpoint to it every
    /// [`save_interval`](PairTrainingConfig::save_interval) updates, and keeps the last
    /// [`keep_checkpoints`](PairTrainingConfig::keep_checkpoints).
    ///
    /// A checkpoint holds the encoder's parameters, both moments, and how often each row was updated. These saves go on
    /// beside training, as [`Trainer::save_to`](crate::Trainer::save_to) describes.
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
    /// [`Error::NonFinite`] if a parameter or a moment is not finite: nothing is written then. [`Error::Locked`],
    /// [`Error::Io`]: the former checkpoint is then untouched, and training can go on.
    pub fn save(&mut self, folder: impl AsRef<Path>) -> Result<PathBuf> {
        let engine = &mut self.engine;
        engine.saving.save_to(folder.as_ref())?;
        self.pool.install(|| engine.save(|saving, state| saving.save_now(&state)))
    }

    /// Waits for a save that is going on beside training.
    ///
    /// # Errors
    /// Its error.
    pub fn finish_saving(&mut self) -> Result<()> {
        self.engine.saving.finish()
    }

    /// Takes up the run in `folder` where its last checkpoint left it, or at the checkpoint that `folder` is; with the
    /// settings `config`, or else those of the checkpoint. The pairs are compared when the run goes on.
    ///
    /// The trainer goes on as the one that wrote the checkpoint would have: bit by bit, if nothing differs. All
    /// differences found are returned; those that `accept` does not cover are an error.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load`]; [`Error::Differences`]; those of
    /// [`PairTrainer::with_encoder`].
    pub fn resume(
        folder: impl AsRef<Path>,
        config: Option<PairTrainingConfig>,
        accept: Accept,
    ) -> Result<(Self, Vec<Difference>)> {
        let checkpoint = Checkpoint::open_kind(folder, KIND)?;
        let (manifest, path) = (checkpoint.manifest(), checkpoint.manifest_path());
        let saved: PairTrainingConfig = manifest.setting(&path, "training")?;
        let config = config.unwrap_or_else(|| saved.clone());
        let differences = difference::runs(manifest, &saved, &config, config.workers);
        refuse(&differences, accept)?;

        let shape = manifest.setting(&path, "model")?;
        let encoder = PairEncoder::with_parameters_from(shape, |layout| checkpoint.load(MODEL, layout))?;
        let mut trainer = Self::with_encoder(encoder, config)?;
        let Engine { encoder, config, optimizer, learning_rate, steps, data, recovery, .. } = &mut trainer.engine;
        optimizer.first_moments = checkpoint.load(FIRST_MOMENTS, encoder.layout())?;
        optimizer.second_moments = checkpoint.load(SECOND_MOMENTS, encoder.layout())?;
        optimizer.updates = row_updates(&checkpoint, optimizer.updates.len())?;
        *steps = manifest.step;
        recovery.learning_rate_factor = manifest.learning_rate_factor;
        let schedule_steps = schedule_steps(manifest, saved.max_steps, config.max_steps);
        *learning_rate = LearningRate::new(&config.schedule(), schedule_steps);
        data.expect(manifest.data.clone(), accept);
        Ok((trainer, differences))
    }
}

fn row_updates(checkpoint: &Checkpoint, rows: usize) -> Result<Vec<u32>> {
    let bytes = checkpoint.file(ROW_UPDATES)?;
    if bytes.len() != rows * size_of::<u32>() {
        let problem = format!("{} bytes for {rows} rows of 4", bytes.len());
        return Err(Error::invalid_file(checkpoint.folder().join(ROW_UPDATES), problem));
    }
    Ok(counts(&bytes).collect())
}

fn counts(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes))
}

impl Engine {
    /// Prepares for a run on `source`, as that of language models does.
    pub fn begin_run(&mut self, source: &PairSource) -> Result<()> {
        self.data.begin(source, self.saving.is_on())?;
        if self.policy().rolls_back() && self.saving.snapshot().is_none() {
            self.save(|saving, state| saving.take_snapshot(state).map(|_| ()))?;
        }
        Ok(())
    }

    /// What is due every save interval, as for language models: a checkpoint, or a copy to roll back to.
    pub fn save_beside_training(&mut self) -> Result<StepOutcome> {
        if !self.saving.is_on() && !self.policy().rolls_back() {
            return Ok(StepOutcome::Updated);
        }
        match self.save(Saving::save_beside_training) {
            Ok(()) => Ok(StepOutcome::Updated),
            Err(error) if self.policy().rolls_back() => self.recover(self.steps, error),
            Err(error) => Err(error),
        }
    }

    /// One update, or what the policy says where there can be none.
    pub fn guarded_step(&mut self, batch: &PairBatch) -> Result<PairReport> {
        match awake(|| self.step(batch)) {
            Ok(report) => {
                self.recovery.reached(report.step);
                Ok(report)
            }
            Err(error) => {
                let outcome = self.recover(self.steps + 1, error)?;
                Ok(PairReport {
                    step: self.steps,
                    loss: f64::NAN,
                    accuracy: 0.0,
                    learning_rate: self.next_learning_rate(),
                    pairs: batch.pairs() as u64,
                    tokens: batch.rows().ids().len() as u64,
                    outcome,
                })
            }
        }
    }

    /// Calls `save` with the state.
    fn save<R>(&mut self, save: impl FnOnce(&mut Saving, State<'_>) -> Result<R>) -> Result<R> {
        self.data.prepare()?;
        let Self { encoder, config, optimizer, learning_rate, steps, saving, data, recovery, .. } = self;
        let manifest = Manifest {
            schedule_steps: learning_rate.total(),
            learning_rate_factor: recovery.learning_rate_factor,
            data: data.recorded(),
            settings: to_map(&json!({ "model": encoder.config(), "training": config })),
            ..Manifest::new(KIND, *steps, config.workers, config.seed)
        };
        let updates: Arc<[u8]> = optimizer.updates.iter().flat_map(|updates| updates.to_le_bytes()).collect();
        let stores = vec![
            (MODEL, encoder.parameters()),
            (FIRST_MOMENTS, &optimizer.first_moments),
            (SECOND_MOMENTS, &optimizer.second_moments),
        ];
        let (layout, keep) = (encoder.layout(), config.keep_checkpoints);
        save(saving, State { manifest, layout, stores, files: vec![(ROW_UPDATES, updates)], keep })
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
        check_finite(step, self.encoder.layout(), &[(MODEL, self.encoder.parameters())])
    }

    fn leave_out(&mut self) {
        self.steps += 1;
    }

    fn restore_snapshot(&mut self) -> bool {
        let Some(snapshot) = self.saving.snapshot() else { return false };
        let optimizer = &mut self.optimizer;
        self.encoder.parameters_mut().values_mut().copy_from_slice(snapshot.values(MODEL));
        optimizer.first_moments.values_mut().copy_from_slice(snapshot.values(FIRST_MOMENTS));
        optimizer.second_moments.values_mut().copy_from_slice(snapshot.values(SECOND_MOMENTS));
        let updates = snapshot.file(ROW_UPDATES).expect("a snapshot has the engine's files");
        optimizer.updates.iter_mut().zip(counts(updates)).for_each(|(count, copy)| *count = copy);
        self.steps = snapshot.manifest().step;
        self.saving.forget();
        true
    }
}
