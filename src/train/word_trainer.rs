//! Training of word embeddings.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::word_worker::{Shared, WordWorker, deterministic_round};
use crate::config::{WordTrainingConfig, WorkerMode};
use crate::data::{TextFiles, WordVocabulary};
use crate::models::skip_gram::SkipGram;
use crate::parallel::for_each_indexed;
use crate::params::as_atomics;
use crate::{Error, Result, WordVectors};

/// Words of the corpus between two reports.
const REPORT_WORDS: u64 = 1 << 17;

/// What a run's callback is told now and then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordProgress {
    /// Words of the corpus read so far, in all epochs, those that were passed over included.
    pub words: u64,
    /// The share of the run that is done.
    pub done: f64,
    /// The learning rate at the moment.
    pub learning_rate: f64,
    /// Mean loss of a positive pair and its negatives since the last report, in nats. In asynchronous mode, of those of
    /// the reporting worker.
    pub loss: f64,
    /// Words of the corpus a second since the run began.
    pub words_per_second: f64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordSummary {
    /// Words of the corpus read, in all epochs.
    pub words: u64,
    /// Mean loss of a positive pair and its negatives in the last epoch, in nats; not a number if there was no pair.
    pub loss: f64,
    /// Time spent training.
    pub training_time: Duration,
    /// Whether the callback stopped the run.
    pub stopped: bool,
}

impl WordSummary {
    /// Words of the corpus a second.
    #[must_use]
    pub fn words_per_second(&self) -> f64 {
        self.words as f64 / self.training_time.as_secs_f64().max(f64::MIN_POSITIVE)
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
    vocabulary: WordVocabulary,
    config: WordTrainingConfig,
    model: SkipGram,
    pool: rayon::ThreadPool,
}

impl WordTrainer {
    /// A trainer with new tables for `vocabulary`, and its worker threads.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a value is not valid; [`Error::Threads`] if the threads cannot be started.
    pub fn new(vocabulary: WordVocabulary, config: WordTrainingConfig) -> Result<Self> {
        let model = SkipGram::new(vocabulary.len(), &config)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.workers)
            .thread_name(|worker| format!("cllm worker {worker}"))
            .build()?;
        Ok(Self { vocabulary, config, model, pool })
    }

    /// Trains on `corpus` for the configured epochs, the learning rate falling from its start to its end.
    ///
    /// `on_progress` is called on a worker thread every 130 thousand words of a worker or so, and may stop the run.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::NonFinite`] if the loss is not finite.
    pub fn run(
        &mut self,
        corpus: &TextFiles,
        on_progress: impl FnMut(&WordProgress) -> ControlFlow<()> + Send,
    ) -> Result<WordSummary> {
        let start = Instant::now();
        let shared = Shared::new(&self.vocabulary, &self.config, corpus);
        let mut workers: Vec<WordWorker<'_>> =
            (0..self.config.workers).map(|worker| WordWorker::new(&shared, worker)).collect();
        let mut reporter = Reporter { start, next: REPORT_WORDS, on_progress };
        let (model, config) = (&mut self.model, &self.config);
        let stopped = self.pool.install(|| match config.mode {
            WorkerMode::Deterministic => deterministic(&shared, &mut workers, model, &mut reporter),
            WorkerMode::Async => asynchronous(&mut workers, model, config.dim, &mut reporter),
        })?;
        let loss = workers.iter().map(|worker| worker.epoch_loss.loss).sum::<f64>()
            / workers.iter().map(|worker| worker.epoch_loss.pairs).sum::<f64>();
        let words = workers.iter().map(WordWorker::words).sum();
        if loss.is_infinite() || workers.iter().any(|worker| worker.epoch_loss.loss.is_nan()) {
            return Err(Error::NonFinite { step: words, what: "the loss".into(), value: loss });
        }
        Ok(WordSummary { words, loss, training_time: start.elapsed(), stopped })
    }

    /// The tables as trained so far.
    #[must_use]
    pub fn model(&self) -> &SkipGram {
        &self.model
    }

    /// The words whose vectors the rows of the tables are.
    #[must_use]
    pub fn vocabulary(&self) -> &WordVocabulary {
        &self.vocabulary
    }

    /// A copy of the words and their input vectors.
    ///
    /// # Errors
    /// [`Error::InvalidRow`] for a value that is not finite.
    pub fn word_vectors(&self) -> Result<WordVectors> {
        WordVectors::of_vocabulary(&self.vocabulary, self.model.vectors())
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

/// Calls the callback when it is due.
struct Reporter<F> {
    start: Instant,
    next: u64,
    on_progress: F,
}

impl<F: FnMut(&WordProgress) -> ControlFlow<()>> Reporter<F> {
    /// Reports what `worker` has done, as if all `workers` had done the same; returns whether the run shall stop.
    fn report(&mut self, worker: &mut WordWorker<'_>, workers: usize) -> bool {
        if worker.words() < self.next {
            return false;
        }
        self.next = worker.words() + REPORT_WORDS;
        let words = worker.words() * workers as u64;
        let loss = worker.take_loss();
        let progress = WordProgress {
            words,
            done: worker.done(),
            learning_rate: worker.learning_rate(),
            loss: loss.loss / loss.pairs,
            words_per_second: words as f64 / self.start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE),
        };
        (self.on_progress)(&progress).is_break()
    }
}

/// Rounds of one block a worker, until no worker has any left; returns whether the run was stopped.
fn deterministic(
    shared: &Shared<'_>,
    workers: &mut [WordWorker<'_>],
    model: &mut SkipGram,
    reporter: &mut Reporter<impl FnMut(&WordProgress) -> ControlFlow<()>>,
) -> Result<bool> {
    let (input, output) = model.tables_mut();
    loop {
        deterministic_round(shared, workers, input, output);
        for worker in &mut *workers {
            worker.take_error()?;
        }
        if workers.iter().all(WordWorker::finished) {
            return Ok(false);
        }
        let count = workers.len();
        if reporter.report(&mut workers[0], count) {
            return Ok(true);
        }
    }
}

/// Every worker on its own; returns whether the run was stopped.
fn asynchronous(
    workers: &mut [WordWorker<'_>],
    model: &mut SkipGram,
    dim: usize,
    reporter: &mut Reporter<impl FnMut(&WordProgress) -> ControlFlow<()> + Send>,
) -> Result<bool> {
    let (input, output) = model.tables_mut();
    let (input, output) = (as_atomics(input), as_atomics(output));
    let stop = AtomicBool::new(false);
    let reporter = std::sync::Mutex::new(reporter);
    let count = workers.len();
    for_each_indexed(workers, &|index, worker| {
        while !stop.load(Ordering::Relaxed) && worker.race(input, output, dim) {
            if index == 0 && reporter.lock().is_ok_and(|mut reporter| reporter.report(worker, count)) {
                stop.store(true, Ordering::Relaxed);
            }
        }
        if worker.failed() {
            stop.store(true, Ordering::Relaxed);
        }
    });
    for worker in workers {
        worker.take_error()?;
    }
    Ok(stop.into_inner())
}
