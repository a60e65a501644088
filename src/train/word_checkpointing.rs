//! Saving a word trainer's state, and taking a run up where it was left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::recovery::{Recover, Recovery};
use super::report::StepOutcome;
use super::run_data::{Recorded, RunData};
use super::word_shared::block_of;
use super::word_trainer::WordTrainer;
use super::word_worker::WorkerPlace;
use crate::checkpoint::difference::{self, refuse};
use crate::checkpoint::saving::{MODEL, State};
use crate::checkpoint::{Accept, Checkpoint, Checksum, Difference, Manifest, check_finite, to_map};
use crate::config::{NonFinitePolicy, WordTrainingConfig};
use crate::data::{TextFiles, WordSplit, WordVocabulary};
use crate::models::skip_gram::SkipGram;
use crate::models::skip_gram::subwords::Subwords;
use crate::{Error, Result};

/// The kind of checkpoint that this trainer writes.
const KIND: &str = "words";

const VOCABULARY: &str = "vocabulary.txt";
const WORKERS: &str = "workers";

/// The text of a trainer's run, and the vocabulary's file.
#[derive(Debug, Default)]
pub(super) struct WordData {
    text: RunData<TextFiles>,
    vocabulary: Option<Arc<[u8]>>,
}

/// What a checkpoint says of the text.
#[derive(Serialize)]
struct TextRecord {
    files: usize,
    bytes: u64,
    fingerprint: Checksum,
}

impl Recorded for TextFiles {
    fn record(&self) -> Result<Map<String, Value>> {
        let (files, bytes) = (self.paths().len(), self.total_bytes());
        Ok(to_map(&TextRecord { files, bytes, fingerprint: self.fingerprint()? }))
    }
}

/// What it says of the vocabulary, beside its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VocabularyRecord {
    split: WordSplit,
    corpus_words: u64,
}

impl WordTrainer {
    /// Makes `folder` the run folder: [`WordTrainer::run`] then writes a checkpoint to it every
    /// [`save_interval`](WordTrainingConfig::save_interval) words of the corpus or so, and keeps the last
    /// [`keep_checkpoints`](WordTrainingConfig::keep_checkpoints).
    ///
    /// A checkpoint holds both tables, the vocabulary, and each worker's place in the text: the block to come, the words
    /// in sight, its sums of the epoch. These saves go on beside training, as [`Trainer::save_to`](crate::Trainer::save_to)
    /// describes; in asynchronous mode the workers come to rest between two blocks while the state is copied.
    ///
    /// # Errors
    /// [`Error::Locked`] if the folder has another writer, [`Error::Io`], or the error of a former save.
    pub fn save_to(&mut self, folder: impl AsRef<Path>) -> Result<()> {
        self.saving.save_to(folder.as_ref())
    }

    /// Writes a checkpoint to the run folder `folder`, which is made if need be, and returns its path. Nothing is
    /// written if the last checkpoint there, of this trainer, is of this very word.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if an element of a table is not finite: nothing is written then. [`Error::Locked`],
    /// [`Error::Io`]: the former checkpoint is then untouched, and training can go on.
    pub fn save(&mut self, folder: impl AsRef<Path>) -> Result<PathBuf> {
        self.saving.save_to(folder.as_ref())?;
        self.data.prepare(&self.vocabulary)?;
        let Self { vocabulary, config, model, places, saving, data, recovery, pool } = self;
        let state = data.state(vocabulary, config, model, places, recovery.learning_rate_factor);
        pool.install(|| saving.save_now(&state))
    }

    /// Takes up the run in `folder` where its last checkpoint left it, or at the checkpoint that `folder` is; with the
    /// settings `config`, or else those of the checkpoint. The text is compared when the run goes on.
    ///
    /// In deterministic mode the trainer goes on as the one that wrote the checkpoint would have, bit by bit. In
    /// asynchronous mode it goes on at the same place, but no two runs have the same bits. All differences found are
    /// returned; those that `accept` does not cover are an error. The number of workers and what a block is must be the
    /// same in any case, since the places in the text depend on them; of few words, another `sample` can make it smaller.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::load`]; [`Error::Differences`]; those of [`WordTrainer::new`].
    pub fn resume(
        folder: impl AsRef<Path>,
        config: Option<WordTrainingConfig>,
        accept: Accept,
    ) -> Result<(Self, Vec<Difference>)> {
        let checkpoint = Checkpoint::open_kind(folder, KIND)?;
        let (manifest, path) = (checkpoint.manifest(), checkpoint.manifest_path());
        let saved: WordTrainingConfig = manifest.setting(&path, "training")?;
        let config = config.unwrap_or_else(|| saved.clone());
        for (name, saved, found) in [
            ("workers", saved.workers, config.workers),
            ("block", saved.block, config.block),
            ("window", saved.window, config.window),
        ] {
            if saved != found {
                return Err(Error::config(name, found, format!("must be {saved}, as in the checkpoint")));
            }
        }
        let differences = difference::runs(manifest, &saved, &config, config.workers);
        refuse(&differences, accept)?;

        let VocabularyRecord { split, corpus_words } = manifest.setting(&path, "vocabulary")?;
        let text = checkpoint.file(VOCABULARY)?;
        let vocabulary = WordVocabulary::parse(&text, split, corpus_words)
            .map_err(|problem| Error::invalid_file(checkpoint.folder().join(VOCABULARY), problem))?;
        let places: Vec<Option<WorkerPlace>> = manifest.state(&path, WORKERS)?;
        if !places.is_empty() && places.len() != config.workers {
            let problem = format!("{} places for {} workers", places.len(), config.workers);
            return Err(Error::invalid_file(path, problem));
        }
        if !places.iter().flatten().all(WorkerPlace::counts) {
            return Err(Error::invalid_file(path, "a worker's place with numbers that are too large"));
        }
        let mut trainer = Self::new(vocabulary, config)?;
        let block = |config: &WordTrainingConfig| {
            let subwords = config.subwords.map(|subwords| Subwords::new(&trainer.vocabulary, subwords));
            block_of(&trainer.vocabulary, config, subwords.as_ref())
        };
        let (before, after) = (block(&saved), block(&trainer.config));
        if before != after {
            let expected = format!("makes blocks of {after} words, where the checkpoint has blocks of {before}");
            return Err(match saved.subwords == trainer.config.subwords {
                true => Error::config("sample", trainer.config.sample, expected),
                false => Error::config("subwords", format!("{:?}", trainer.config.subwords), expected),
            });
        }
        let tables = checkpoint.load(MODEL, trainer.model.layout())?;
        trainer.model.parameters_mut().values_mut().copy_from_slice(tables.values());
        trainer.places = places;
        trainer.recovery.learning_rate_factor = manifest.learning_rate_factor;
        trainer.data.text.expect(manifest.data.clone(), accept);
        Ok((trainer, differences))
    }

    /// Waits for a save that is going on beside training.
    ///
    /// # Errors
    /// Its error.
    pub fn finish_saving(&mut self) -> Result<()> {
        self.saving.finish()
    }

    /// Words of the corpus read so far, in all epochs.
    #[must_use]
    pub fn words(&self) -> u64 {
        words(&self.places)
    }

    /// Compares the text of a run with what a checkpoint says, and does now what would stall a save.
    pub(super) fn begin_run(&mut self, text: &TextFiles) -> Result<()> {
        self.data.text.begin(text, self.saving.is_on())?;
        let rolls_back = self.policy().rolls_back();
        if self.saving.is_on() || rolls_back {
            self.data.prepare(&self.vocabulary)?;
        }
        let Self { vocabulary, config, model, places, saving, data, recovery, pool } = self;
        if rolls_back && saving.snapshot().is_none() {
            let state = data.state(vocabulary, config, model, places, recovery.learning_rate_factor);
            pool.install(|| saving.take_snapshot(state))?;
        }
        Ok(())
    }

    /// Does what the policy says about the `error` that ended a part of a run, or returns it. The rounds before `reached`
    /// words of all workers went well.
    pub(super) fn go_on_after(&mut self, error: Error, reached: u64) -> Result<StepOutcome> {
        self.recovery.reached(reached);
        let error = match error {
            // A loss tells of some weight; this finds which.
            Error::NonFinite { .. } => self.check_weights(self.words()).err().unwrap_or(error),
            error => return Err(error),
        };
        self.recover(self.words(), error)
    }
}

impl Recover for WordTrainer {
    fn policy(&self) -> NonFinitePolicy {
        self.config.non_finite_policy()
    }

    fn recovery(&mut self) -> &mut Recovery {
        &mut self.recovery
    }

    fn check_weights(&self, step: u64) -> Result<()> {
        let model = &self.model;
        self.pool.install(|| check_finite(step, model.layout(), &[(MODEL, model.parameters())]))
    }

    /// The workers' places are behind the block that failed, which made no update.
    fn leave_out(&mut self) {}

    fn restore_snapshot(&mut self) -> bool {
        let Some(snapshot) = self.saving.snapshot() else { return false };
        self.model.parameters_mut().values_mut().copy_from_slice(snapshot.values(MODEL));
        let places = snapshot.manifest().state(Path::new(WORKERS), WORKERS);
        self.places = places.expect("a snapshot has the workers' places");
        self.saving.forget();
        true
    }
}

impl WordData {
    fn prepare(&mut self, vocabulary: &WordVocabulary) -> Result<()> {
        self.text.prepare()?;
        self.vocabulary.get_or_insert_with(|| vocabulary.to_text().into_bytes().into());
        Ok(())
    }

    pub fn state<'a>(
        &self,
        vocabulary: &WordVocabulary,
        config: &WordTrainingConfig,
        model: &'a SkipGram,
        places: &[Option<WorkerPlace>],
        learning_rate_factor: f64,
    ) -> State<'a> {
        let record = VocabularyRecord { split: vocabulary.split(), corpus_words: vocabulary.corpus_words() };
        let manifest = Manifest {
            schedule_steps: vocabulary.corpus_words().saturating_mul(config.epochs),
            learning_rate_factor,
            data: self.text.recorded(),
            settings: to_map(&json!({ "training": config, "vocabulary": record })),
            state: to_map(&json!({ WORKERS: places })),
            ..Manifest::new(KIND, words(places), config.workers, config.seed)
        };
        let vocabulary = self.vocabulary.as_ref().expect("`prepare` was called");
        State {
            manifest,
            layout: model.layout(),
            stores: vec![(MODEL, model.parameters())],
            files: vec![(VOCABULARY, Arc::clone(vocabulary))],
            keep: config.keep_checkpoints,
        }
    }
}

fn words(places: &[Option<WorkerPlace>]) -> u64 {
    places.iter().flatten().map(WorkerPlace::words_read).sum()
}
