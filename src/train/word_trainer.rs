//! Training of word embeddings.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::recovery::{Recover, Recovery};
use super::report::StepOutcome;
use super::word_checkpointing::WordData;
use super::word_round::{Attendance, deterministic_rounds};
use super::word_shared::Shared;
use super::word_watch::{Pause, Watch};
use super::word_worker::{NO_PANIC, WordWorker, WorkerPlace};
use crate::checkpoint::saving::Saving;
use crate::config::{WordTrainingConfig, WorkerMode};
use crate::data::{TextFiles, WordVocabulary};
use crate::models::skip_gram::SkipGram;
use crate::models::skip_gram::rows::Racing;
use crate::parallel::for_each_indexed;
use crate::params::as_atomics;
use crate::{Result, WordVectors};

/// Words that a racing worker reads before it tells the others again how far it is.
const TOLD_WORDS: u64 = 1 << 10;

/// What a run's callback is told now and then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordProgress {
    /// Words of the corpus that all workers have read so far, in all epochs, those that were passed over included.
    pub words: u64,
    /// The share of the run that is done.
    pub done: f64,
    /// The learning rate at the moment, the mean of the workers', who may be at different shares of their parts.
    pub learning_rate: f64,
    /// Mean loss of a positive pair and its negatives since the last report, in nats; not a number if there was no pair.
    pub loss: f64,
    /// Words of the corpus a second since the run began.
    pub words_per_second: f64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordSummary {
    /// Words of the corpus read, in all epochs, those before the run included.
    pub words: u64,
    /// Words of the corpus that this run read.
    pub run_words: u64,
    /// Mean loss of a positive pair and its negatives in the last epoch, in nats; not a number if there was no pair.
    pub loss: f64,
    /// Time spent training.
    pub training_time: Duration,
    /// Whether the callback stopped the run.
    pub stopped: bool,
    /// Blocks that this run left out, since their loss was not finite.
    pub skipped: u64,
    /// How often this run was rolled back.
    pub rolled_back: u64,
}

impl WordSummary {
    /// Words of the corpus a second.
    #[must_use]
    pub fn words_per_second(&self) -> f64 {
        self.run_words as f64 / self.training_time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Trains word embeddings by skip-gram or CBOW with negative sampling (see [`SkipGram`]).
///
/// The text is read anew in every epoch and never held; each worker reads a part of its own. The learning rate falls
/// linearly with the part of the text that has been read.
///
/// ```
/// use cllm::config::WordTrainingConfig;
/// use cllm::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};
/// use cllm::train::WordTrainer;
/// use std::ops::ControlFlow;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("corpus.txt");
/// std::fs::write(&path, "the cat sat on the mat\nthe dog lay on the rug\n".repeat(20))?;
/// let corpus = TextFiles::collect(&[path], &TextOptions::default())?;
/// let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 5)?;
/// let config = WordTrainingConfig { dim: 16, epochs: 2, ..Default::default() };
/// let mut trainer = WordTrainer::new(vocabulary, config)?;
/// let summary = trainer.run(&corpus, |_| ControlFlow::Continue(()))?;
/// assert_eq!(summary.words, 2 * 20 * 12);
/// assert_eq!(trainer.model().vectors().dim(), (8, 16));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WordTrainer {
    pub(super) vocabulary: WordVocabulary,
    pub(super) config: WordTrainingConfig,
    pub(super) model: SkipGram,
    /// Where each worker is; nowhere before the first block.
    pub(super) places: Vec<Option<WorkerPlace>>,
    pub(super) saving: Saving,
    pub(super) data: WordData,
    pub(super) recovery: Recovery,
    pub(super) pool: rayon::ThreadPool,
}

impl WordTrainer {
    /// A trainer with new tables for `vocabulary`, and its worker threads.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if a value is not valid;
    /// [`Error::Threads`](crate::Error::Threads) if the threads cannot be started.
    pub fn new(vocabulary: WordVocabulary, config: WordTrainingConfig) -> Result<Self> {
        let model = SkipGram::new(&vocabulary, &config)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|worker| format!("cllm worker {worker}"))
            .build()?;
        let (places, saving, data) = (Vec::new(), Saving::default(), WordData::default());
        Ok(Self { vocabulary, config, model, places, saving, data, recovery: Recovery::default(), pool })
    }

    /// Trains on `corpus` for the configured epochs, the learning rate falling from its start to its end, from where this
    /// trainer is: at the beginning, where a run was stopped, or where its checkpoint was written.
    ///
    /// `on_progress` is called on a worker thread every 130 thousand words for each worker or so, and may stop the run. It must
    /// not wait for work that it gives to the pool of these threads, which wait for it.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) and [`Error::InvalidFile`](crate::Error::InvalidFile) if a file cannot be read or
    /// was cut; some words of it may then be passed over, or trained on twice, if the run is continued, unless it is resumed
    /// from its last checkpoint. [`Error::NonFinite`](crate::Error::NonFinite) if the loss of a block is not finite, and then the block is
    /// left out; under another policy than [`OnNonFinite::Stop`](crate::config::OnNonFinite::Stop) the run goes on, and
    /// the summary tells of it. [`Error::Differences`](crate::Error::Differences) if the trainer was resumed and `corpus` is not the text
    /// of its checkpoint. Those of saving (see [`WordTrainer::save_to`]).
    pub fn run(
        &mut self,
        corpus: &TextFiles,
        on_progress: impl FnMut(&WordProgress) -> ControlFlow<()> + Send,
    ) -> Result<WordSummary> {
        self.begin_run(corpus)?;
        let mut watch = Watch::new(self.words(), on_progress);
        let (mut skipped, mut rolled_back) = (0, 0);
        loop {
            let error = match self.run_from_places(corpus, &mut watch) {
                Ok(summary) => return Ok(WordSummary { skipped, rolled_back, ..summary }),
                Err(error) => error,
            };
            match self.go_on_after(error, watch.reached)? {
                StepOutcome::RolledBack => rolled_back += 1,
                _ => skipped += 1,
            }
        }
    }

    /// Trains from where the workers are until the run ends or a block fails, which is then left out.
    fn run_from_places(
        &mut self,
        corpus: &TextFiles,
        watch: &mut Watch<impl FnMut(&WordProgress) -> ControlFlow<()> + Send>,
    ) -> Result<WordSummary> {
        let saves = self.saving.is_on() || self.policy().rolls_back();
        let Self { vocabulary, config, model, places, saving, data, recovery, pool } = self;
        let learning_rate_factor = recovery.learning_rate_factor;
        let shared = Shared { learning_rate_factor, ..Shared::new(vocabulary, config, model.subwords(), corpus) };
        let mut workers = (0..config.workers)
            .map(|worker| match places.get(worker).and_then(Option::as_ref) {
                None => Ok(WordWorker::new(&shared, worker)),
                Some(place) => WordWorker::at(&shared, worker, place),
            })
            .collect::<Result<Vec<_>>>()?;
        let save_interval = config.save_interval.filter(|_| saves);
        watch.begin(words_of(&workers), config.workers, save_interval);
        let ended: Result<bool> = pool.install(|| {
            for_each_indexed(&mut workers, &|_, worker| {
                if !worker.is_ready() {
                    worker.prepare();
                }
            });
            loop {
                let (input, output) = model.tables_mut();
                let tables = [input, output].map(|table| Racing { values: as_atomics(table), dim: config.dim });
                let pause = match config.mode {
                    WorkerMode::Deterministic if config.workers > 1 => deterministic(&mut workers, tables, watch),
                    _ => alone_or_racing(&mut workers, tables, watch),
                }?;
                let is_at_end = !workers.iter().any(WordWorker::is_ready);
                let Some(interval) = save_interval.filter(|_| pause == Pause::Save && !is_at_end) else {
                    saving.finish()?;
                    return Ok(pause == Pause::Stop && !is_at_end);
                };
                *places = places_of(&workers);
                saving.save_beside_training(data.state(vocabulary, config, model, places, learning_rate_factor))?;
                watch.saved(words_of(&workers), interval);
            }
        });
        let reached = places_of(&workers);
        if *places != reached {
            // The last blocks of a text are trained on without reading another word, which is what saves are told by.
            saving.forget();
            *places = reached;
        }
        let loss = workers.iter().map(|worker| worker.epoch_loss.loss).sum::<f64>()
            / workers.iter().map(|worker| worker.epoch_loss.pairs).sum::<f64>();
        let (words, stopped) = (words_of(&workers), ended?);
        // Of a run that was rolled back to before its start, none are left.
        let (run_words, training_time) = (words.saturating_sub(watch.first), watch.start.elapsed());
        Ok(WordSummary { words, run_words, loss, training_time, stopped, skipped: 0, rolled_back: 0 })
    }

    /// The tables as trained so far.
    #[must_use]
    pub fn model(&self) -> &SkipGram {
        &self.model
    }

    /// The words, in the order of the tables' rows.
    #[must_use]
    pub fn vocabulary(&self) -> &WordVocabulary {
        &self.vocabulary
    }

    /// A copy of the words and their input vectors, with subwords those that the rows make.
    ///
    /// # Errors
    /// [`Error::InvalidRow`](crate::Error::InvalidRow) for a value that is not finite.
    pub fn word_vectors(&self) -> Result<WordVectors> {
        WordVectors::of_vocabulary(&self.vocabulary, self.model.vectors().into_owned())
    }

    /// The vector of a word; with subwords, also of one outside the vocabulary (see [`SkipGram::vector_of`]).
    #[must_use]
    pub fn vector_of(&self, word: &str) -> Option<ndarray::Array1<f32>> {
        self.model.vector_of(&self.vocabulary, word)
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &WordTrainingConfig {
        &self.config
    }

    /// Ends the training and returns the words and their tables.
    #[must_use]
    pub fn into_parts(self) -> (WordVocabulary, SkipGram) {
        (self.vocabulary, self.model)
    }
}

fn words_of(workers: &[WordWorker<'_>]) -> u64 {
    workers.iter().map(WordWorker::words).sum()
}

fn places_of(workers: &[WordWorker<'_>]) -> Vec<Option<WorkerPlace>> {
    workers.iter().map(WordWorker::place).collect()
}

/// Rounds of a block a worker, until no worker has any left or there is a reason to pause.
fn deterministic(
    workers: &mut [WordWorker<'_>],
    tables: [Racing<'_>; 2],
    watch: &mut Watch<impl FnMut(&WordProgress) -> ControlFlow<()> + Send>,
) -> Result<Pause> {
    let pause = deterministic_rounds(workers, tables, |together| watch.look(together));
    for worker in workers {
        worker.take_error()?;
    }
    Ok(pause.unwrap_or(Pause::End))
}

/// Every worker on its own, until no worker has any words left or there is a reason to pause.
fn alone_or_racing(
    workers: &mut [WordWorker<'_>],
    tables: [Racing<'_>; 2],
    watch: &mut Watch<impl FnMut(&WordProgress) -> ControlFlow<()> + Send>,
) -> Result<Pause> {
    let halt = AtomicBool::new(workers.iter().any(WordWorker::failed));
    let (reached, failed_at_once) = (watch.reached, AtomicBool::new(false));
    let watch = Mutex::new((watch, Pause::End));
    let standings: Vec<_> = workers.iter().map(|worker| Mutex::new(worker.standing())).collect();
    let standing = |index: usize| *standings[index].lock().expect(NO_PANIC);
    for_each_indexed(workers, &|index, worker| {
        let _attendance = Attendance(&halt);
        let (mut told, mut is_first) = (worker.words(), true);
        while !halt.load(Ordering::Relaxed) && worker.is_ready() {
            worker.draw_windows();
            worker.train(None, tables);
            worker.prepare();
            if worker.failed() {
                failed_at_once.fetch_or(is_first, Ordering::Relaxed);
                halt.store(true, Ordering::Relaxed);
                return;
            }
            is_first = false;
            if worker.words() - told >= TOLD_WORDS || !worker.is_ready() {
                *standings[index].lock().expect(NO_PANIC) = worker.standing();
                told = worker.words();
            }
            // The first that has words left watches.
            if (0..index).any(|earlier| standing(earlier).ready > 0) {
                continue;
            }
            let others = (0..standings.len()).filter(|&other| other != index).map(standing);
            let together = others.chain([worker.standing()]).sum();
            let (watch, paused) = &mut *watch.lock().expect(NO_PANIC);
            if let Some(pause) = watch.look(together) {
                *paused = pause;
                halt.store(true, Ordering::Relaxed);
            }
        }
    });
    let (watch, pause) = watch.into_inner().expect(NO_PANIC);
    if failed_at_once.into_inner() {
        // What the others did meanwhile does not break its row of failures.
        watch.reached = reached;
    }
    for worker in workers {
        worker.take_error()?;
    }
    Ok(pause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{TextOptions, WordSplit};

    #[test]
    fn a_callback_that_panics_ends_the_work_of_racing_workers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), (0..20_000).map(|at| format!("w{} ", at * at % 61)).collect::<String>()).unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let (workers, mode, epochs) = (2, WorkerMode::Async, 10_000);
        let config = WordTrainingConfig { workers, mode, epochs, dim: 8, sample: 0.0, ..Default::default() };
        let mut model = SkipGram::new(&vocabulary, &config).unwrap();
        let shared = Shared::new(&vocabulary, &config, None, &corpus);
        let mut workers: Vec<_> = (0..workers).map(|worker| WordWorker::new(&shared, worker)).collect();
        workers.iter_mut().for_each(WordWorker::prepare);
        let (input, output) = model.tables_mut();
        let tables = [input, output].map(|table| Racing { values: as_atomics(table), dim: config.dim });
        let mut watch = Watch::new(0, |_: &WordProgress| panic!("the first report"));
        watch.begin(0, workers.len(), None);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let run = std::panic::AssertUnwindSafe(|| pool.install(|| alone_or_racing(&mut workers, tables, &mut watch)));
        let panic = std::panic::catch_unwind(run).map(|_| ()).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the first report"));
        // Both have most of their epochs before them.
        assert!(
            workers.iter().all(WordWorker::is_ready),
            "{:?}",
            workers.iter().map(WordWorker::words).collect::<Vec<_>>()
        );
    }
}
