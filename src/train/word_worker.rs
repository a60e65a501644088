//! A worker of word embedding training: its part of the text, and the gradients of its blocks.

use std::ops::Range;
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};

use super::word_shared::Shared;
use super::word_watch::Standing;
use crate::config::WordTrainingConfig;
use crate::data::{StreamPlace, WordStream};
use crate::models::skip_gram::block::{Block, BlockLoss};
use crate::models::skip_gram::row_set::RowSet;
use crate::models::skip_gram::rows::{NO_ROW, Racing};
use crate::models::skip_gram::subwords::rows_of;
use crate::models::skip_gram::update::Updates;
use crate::models::skip_gram::windows::BlockNumber;
use crate::parallel::part_of;
use crate::{Error, Result};

/// Where a worker is between two blocks: all it needs to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerPlace {
    text: StreamPlace,
    /// The number in this epoch of the block to come.
    next_block: u64,
    /// The words in sight of it, and their lines.
    words: Vec<u32>,
    lines: Vec<u32>,
    /// Sums of the epoch of the block before.
    loss: f64,
    pairs: f64,
    finished: bool,
}

/// Why a lock is never poisoned where it is taken.
pub(super) const NO_PANIC: &str = "a worker that panics ends the run";

impl WorkerPlace {
    pub fn words_read(&self) -> u64 {
        self.text.words
    }

    /// Whether the numbers of a file can be counted on from.
    pub fn counts(&self) -> bool {
        self.text.counts() && self.next_block < 1 << 40
    }
}

/// One worker.
#[derive(Debug)]
pub(super) struct WordWorker<'a> {
    shared: &'a Shared<'a>,
    index: usize,
    stream: WordStream<'a>,
    /// The block to come, if there is one.
    block: Block<'a>,
    is_ready: bool,
    /// What the last block is to add to the tables.
    pub updates: Arc<RwLock<Updates<'a>>>,
    /// The epoch to begin when the text is at its end; the number of epochs once all are done.
    next_epoch: u64,
    bytes: Range<u64>,
    state: State,
    /// Since the worker was made, and of the epoch of the last block that was trained on.
    loss: BlockLoss,
    pub epoch_loss: BlockLoss,
    /// Whether the block to come is the first of its epoch.
    begins_epoch: bool,
    error: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first block.
    AtStart,
    /// Within the text.
    Reading,
    /// All epochs are done.
    Finished,
    /// Reading failed.
    Failed,
}

impl<'a> WordWorker<'a> {
    pub fn new(shared: &'a Shared<'a>, index: usize) -> Self {
        let Shared { corpus, vocabulary, subwords, config, keep, .. } = shared;
        let bytes = part_of(corpus.total_bytes() as usize, 1, index, config.workers);
        let bytes = bytes.start as u64..bytes.end as u64;
        let block = Block::new(config, subwords.as_deref());
        Self {
            shared,
            index,
            stream: WordStream::new(corpus, vocabulary, keep, bytes.clone(), config.seed),
            updates: Arc::new(RwLock::new(Updates::new(&block))),
            block,
            is_ready: false,
            next_epoch: 0,
            bytes,
            state: State::AtStart,
            loss: BlockLoss::default(),
            epoch_loss: BlockLoss::default(),
            begins_epoch: false,
            error: None,
        }
    }

    /// A worker that goes on where another stopped.
    ///
    /// # Errors
    /// What is wrong with the place.
    pub fn at(shared: &'a Shared<'a>, index: usize, place: &WorkerPlace) -> Result<Self> {
        let mut worker = Self::new(shared, index);
        let Shared { config, vocabulary, negatives, .. } = shared;
        let length = 2 * (config.block + config.window);
        let wrong = |what: &str| {
            Err(Error::Shape {
                what: format!("{what} of worker {index} in the checkpoint"),
                expected: vec![length],
                found: vec![place.words.len(), place.lines.len()],
            })
        };
        if place.words.len() != place.lines.len() || place.words.len() != length {
            return wrong("the words in sight");
        }
        let known = |&word: &u32| word == NO_ROW || (word as usize) < vocabulary.len();
        if !place.words.iter().all(known) || place.text.epoch >= config.epochs {
            return wrong("the place");
        }
        worker.stream.seek(&place.text)?;
        let number = BlockNumber { seed: config.seed, worker: index, epoch: place.text.epoch, block: place.next_block };
        worker.block.windows.restore((&place.words, &place.lines, number), negatives);
        worker.next_epoch = place.text.epoch + 1;
        worker.epoch_loss = BlockLoss { loss: place.loss, pairs: place.pairs };
        worker.begins_epoch = place.next_block == 0;
        // A run that was made longer goes on.
        worker.state =
            if place.finished && worker.next_epoch == config.epochs { State::Finished } else { State::Reading };
        worker.is_ready = worker.block.windows.has_words();
        Ok(worker)
    }

    /// Where the worker is, between two blocks; nowhere before its first.
    pub fn place(&self) -> Option<WorkerPlace> {
        if self.state == State::AtStart {
            return None;
        }
        let (words, lines, number) = self.block.windows.place();
        Some(WorkerPlace {
            text: self.stream.place(),
            next_block: number.block,
            words: words.to_vec(),
            lines: lines.to_vec(),
            loss: self.epoch_loss.loss,
            pairs: self.epoch_loss.pairs,
            finished: self.state == State::Finished,
        })
    }

    /// Reads the next block, in the next epoch if need be.
    pub fn prepare(&mut self) {
        self.is_ready = false;
        if matches!(self.state, State::Finished | State::Failed) {
            return;
        }
        match self.next_block() {
            Ok(is_ready) => self.is_ready = is_ready,
            Err(error) => {
                // Before the first block nothing was read that a further run would have to go on from.
                if self.state != State::AtStart {
                    self.state = State::Failed;
                }
                self.error = Some(error);
            }
        }
    }

    /// Goes on to the next block; returns whether there is one.
    fn next_block(&mut self) -> Result<bool> {
        let (config, negatives) = (&self.shared.config, &self.shared.negatives);
        loop {
            // After an error the words of the block to come may be those that the block before it did not find.
            while self.state == State::Reading {
                self.block.windows.advance(&mut self.stream, negatives)?;
                if self.block.windows.has_words() {
                    return Ok(true);
                }
                if !self.block.windows.sees_words() {
                    break;
                }
            }
            if self.next_epoch == config.epochs {
                self.state = State::Finished;
                return Ok(false);
            }
            let epoch = self.next_epoch;
            self.next_epoch += 1;
            self.begins_epoch = true;
            self.stream.restart(epoch)?;
            let number = BlockNumber { seed: config.seed, worker: self.index, epoch, block: 0 };
            self.block.windows.start(&mut self.stream, negatives, number)?;
            self.state = State::Reading;
        }
    }

    /// Whether there is a block to train on.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Draws the windows of the next block: the last of what can be done before it is trained on.
    pub fn draw_windows(&mut self) {
        if self.is_ready {
            self.block.draw_windows();
        }
    }

    /// Overwrites `rows` with the rows that the next block reads and updates.
    pub fn show_rows(&self, rows: &mut RowSet) {
        rows.clear();
        if self.is_ready {
            self.block.for_each_word(|table, word, _| {
                rows_of(self.block.subwords, table, &word).iter().for_each(|&row| rows.insert(table, row));
            });
        }
    }

    /// Trains on the next block. Other workers may do so at the same time: what this one has to add to rows that are in
    /// `contested` it leaves pending; the other rows are its own if `contested` has what the blocks of several workers
    /// read and update. Without `contested`, what another worker writes meanwhile may be lost.
    pub fn train(&mut self, contested: Option<&RowSet>, tables: [Racing<'_>; 2]) {
        let factor = -self.learning_rate() as f32;
        let mut updates = self.updates.write().expect(NO_PANIC);
        if !self.is_ready {
            return updates.clear();
        }
        if std::mem::take(&mut self.begins_epoch) {
            self.epoch_loss = BlockLoss::default();
        }
        let BlockLoss { loss, pairs } = updates.make(&mut self.block, factor, contested, tables);
        if !loss.is_finite() {
            let step = self.stream.words();
            self.error.get_or_insert(Error::NonFinite { step, what: "the loss".into(), value: loss });
            return;
        }
        for sum in [&mut self.loss, &mut self.epoch_loss] {
            sum.loss += loss;
            sum.pairs += pairs;
        }
    }

    /// Words of the corpus read so far.
    pub fn words(&self) -> u64 {
        self.stream.words()
    }

    /// The share of all epochs that this worker has read of its part.
    pub fn done(&self) -> f64 {
        let length = (self.bytes.end - self.bytes.start).max(1) as f64;
        let read = self.stream.position().clamp(self.bytes.start, self.bytes.end) - self.bytes.start;
        (self.next_epoch.saturating_sub(1) as f64 + read as f64 / length) / self.shared.config.epochs as f64
    }

    /// The learning rate at this moment.
    pub fn learning_rate(&self) -> f64 {
        let WordTrainingConfig { learning_rate, minimum_learning_rate, .. } = self.shared.config;
        (learning_rate * (1.0 - self.done())).max(minimum_learning_rate) * self.shared.learning_rate_factor
    }

    /// How far the worker is.
    pub fn standing(&self) -> Standing {
        let (words, done, learning_rate, loss) = (self.words(), self.done(), self.learning_rate(), self.loss);
        Standing { words, done, learning_rate, loss, workers: 1, ready: self.is_ready.into() }
    }

    pub fn failed(&self) -> bool {
        self.error.is_some()
    }

    pub fn take_error(&mut self) -> Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }
}
