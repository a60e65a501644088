//! What a run of words tells the outside while its workers are at work: progress, and when a checkpoint is due.

use std::iter::Sum;
use std::ops::{Add, ControlFlow};
use std::time::Instant;

use super::word_trainer::WordProgress;
use crate::models::skip_gram::block::BlockLoss;

/// Words of the corpus, for each worker, between two reports.
const REPORT_WORDS: u64 = 1 << 17;

/// How far a worker is, or several are together, as the one knows that watches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Words of the corpus read so far.
    pub words: u64,
    /// Shares of their parts that are done.
    pub done: f64,
    /// Their learning rates.
    pub learning_rate: f64,
    /// Since they began to run.
    pub loss: BlockLoss,
    /// How many they are, and how many of them have a block to come.
    pub workers: u64,
    pub ready: u64,
}

impl Add for Standing {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            words: self.words + other.words,
            done: self.done + other.done,
            learning_rate: self.learning_rate + other.learning_rate,
            loss: BlockLoss { loss: self.loss.loss + other.loss.loss, pairs: self.loss.pairs + other.loss.pairs },
            workers: self.workers + other.workers,
            ready: self.ready + other.ready,
        }
    }
}

impl Sum for Standing {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// Why the workers came to rest between two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The text is at its end.
    End,
    /// The callback stopped the run.
    Stop,
    /// A checkpoint is due.
    Save,
}

/// Calls the callback when it is due, and tells when a checkpoint is.
pub(super) struct Watch<F> {
    pub start: Instant,
    /// Words that had been read before this run.
    pub first: u64,
    /// The words at which the next report and the next checkpoint are due.
    next_report: u64,
    next_save: u64,
    /// What had been reported of the loss.
    reported: BlockLoss,
    /// Words read at the last look: the blocks before these went well.
    pub reached: u64,
    /// Whether the callback has stopped the run, even if a block fails before it comes to rest.
    is_stopped: bool,
    on_progress: F,
}

impl<F: FnMut(&WordProgress) -> ControlFlow<()>> Watch<F> {
    pub fn new(first: u64, on_progress: F) -> Self {
        Self {
            start: Instant::now(),
            first,
            next_report: u64::MAX,
            next_save: u64::MAX,
            reported: BlockLoss::default(),
            reached: 0,
            is_stopped: false,
            on_progress,
        }
    }

    /// Workers that have read `words` begin to run, and shall save after as many as `save_interval`.
    pub fn begin(&mut self, words: u64, workers: usize, save_interval: Option<u64>) {
        self.reported = BlockLoss::default();
        self.next_report = self.next_report.min(words + REPORT_WORDS * workers as u64);
        if let Some(interval) = save_interval {
            self.next_save = self.next_save.min(words.saturating_add(interval));
        }
    }

    /// A checkpoint was written when `words` were read.
    pub fn saved(&mut self, words: u64, interval: u64) {
        self.next_save = words.saturating_add(interval);
    }

    /// Looks at how far all workers are `together`; returns why they shall come to rest, if they shall.
    pub fn look(&mut self, together: Standing) -> Option<Pause> {
        if self.is_stopped {
            return Some(Pause::Stop);
        }
        let Standing { words, workers, loss, .. } = together;
        self.reached = words;
        if words >= self.next_report {
            self.next_report = words + REPORT_WORDS * workers;
            let seconds = self.start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
            let progress = WordProgress {
                words,
                done: together.done / workers as f64,
                learning_rate: together.learning_rate / workers as f64,
                loss: (loss.loss - self.reported.loss) / (loss.pairs - self.reported.pairs),
                words_per_second: words.saturating_sub(self.first) as f64 / seconds,
            };
            self.reported = loss;
            if (self.on_progress)(&progress).is_break() {
                self.is_stopped = true;
                return Some(Pause::Stop);
            }
        }
        (words >= self.next_save).then_some(Pause::Save)
    }
}
