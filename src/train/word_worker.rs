//! A worker of word embedding training: its part of the text, and the gradients of its blocks.

use std::ops::Range;
use std::sync::atomic::AtomicU32;

use serde::{Deserialize, Serialize};

use super::word_shared::Shared;
use crate::config::WordTrainingConfig;
use crate::data::{StreamPlace, WordStream};
use crate::models::skip_gram::block::{Block, BlockLoss};
use crate::models::skip_gram::row_set::{RowSet, TableName};
use crate::models::skip_gram::rows::{Frozen, NO_ROW, Racing, Rows, Table};
use crate::models::skip_gram::update::BlockGradient;
use crate::models::skip_gram::windows::BlockNumber;
use crate::parallel::part_of;
use crate::{Error, Result};

/// Where a worker is between two blocks: all it needs to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerPlace {
    text: StreamPlace,
    /// The next block of this epoch.
    block: u64,
    /// The words in sight, and their lines.
    words: Vec<u32>,
    lines: Vec<u32>,
    /// Sums of this epoch.
    loss: f64,
    pairs: f64,
    finished: bool,
}

impl WorkerPlace {
    pub fn words_read(&self) -> u64 {
        self.text.words
    }

    /// Whether the numbers of a file can be counted on from.
    pub fn counts(&self) -> bool {
        self.text.counts() && self.block < 1 << 40
    }
}

/// One worker.
#[derive(Debug)]
pub(super) struct WordWorker<'a> {
    shared: &'a Shared<'a>,
    index: usize,
    stream: WordStream<'a>,
    block: Block<'a>,
    /// Of the blocks of this round, and what they are to be multiplied by.
    gradients: Vec<(BlockGradient<'a>, f32)>,
    /// Blocks of this round that have a gradient.
    computed: usize,
    /// With several workers, the rows that these blocks update.
    pub rows: RowSet,
    /// The epoch to begin when the text is at its end; the number of epochs once all are done.
    next_epoch: u64,
    bytes: Range<u64>,
    state: State,
    /// Since the last report, and of this epoch.
    loss: BlockLoss,
    pub epoch_loss: BlockLoss,
    error: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two epochs.
    AtEnd,
    /// Within the text.
    Reading,
    /// All epochs are done.
    Finished,
    /// Reading failed, or the last block's loss is not finite.
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
            gradients: (0..shared.blocks).map(|_| (block.new_gradient(), 0.0)).collect(),
            computed: 0,
            rows: RowSet::EMPTY,
            block,
            next_epoch: 0,
            bytes,
            state: State::AtEnd,
            loss: BlockLoss::default(),
            epoch_loss: BlockLoss::default(),
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
        let wrong = |what: &str| {
            Err(Error::Shape {
                what: format!("{what} of worker {index} in the checkpoint"),
                expected: vec![2 * (config.block + config.window)],
                found: vec![place.words.len(), place.lines.len()],
            })
        };
        if place.words.len() != place.lines.len() || place.words.len() != 2 * (config.block + config.window) {
            return wrong("the words in sight");
        }
        let known = |&word: &u32| word == NO_ROW || (word as usize) < vocabulary.len();
        if !place.words.iter().all(known) || place.text.epoch >= config.epochs {
            return wrong("the place");
        }
        worker.stream.seek(&place.text)?;
        let number = BlockNumber { seed: config.seed, worker: index, epoch: place.text.epoch, block: place.block };
        worker.block.windows.restore((&place.words, &place.lines, number), negatives);
        worker.next_epoch = place.text.epoch + 1;
        worker.epoch_loss = BlockLoss { loss: place.loss, pairs: place.pairs };
        // A run that was made longer goes on.
        worker.state =
            if place.finished && worker.next_epoch == config.epochs { State::Finished } else { State::Reading };
        Ok(worker)
    }

    /// Where the worker is, between two blocks; nowhere before its first.
    pub fn place(&self) -> Option<WorkerPlace> {
        if self.state == State::AtEnd {
            return None;
        }
        let (words, lines, number) = self.block.windows.place();
        Some(WorkerPlace {
            text: self.stream.place(),
            block: number.block,
            words: words.to_vec(),
            lines: lines.to_vec(),
            loss: self.epoch_loss.loss,
            pairs: self.epoch_loss.pairs,
            finished: self.state == State::Finished,
        })
    }

    /// Goes on to the next block, in the next epoch if need be; returns its number if there is any.
    fn next_block(&mut self) -> Result<Option<BlockNumber>> {
        let (config, negatives) = (&self.shared.config, &self.shared.negatives);
        loop {
            if self.state != State::AtEnd
                && let Some(number) = self.block.windows.advance(&mut self.stream, negatives)?
            {
                return Ok(Some(number));
            }
            if self.next_epoch == config.epochs {
                return Ok(None);
            }
            let epoch = self.next_epoch;
            self.next_epoch += 1;
            self.epoch_loss = BlockLoss::default();
            self.stream.restart(epoch)?;
            let number = BlockNumber { seed: config.seed, worker: self.index, epoch, block: 0 };
            self.block.windows.start(&mut self.stream, negatives, number)?;
            self.state = State::Reading;
        }
    }

    /// Computes the gradients of the next blocks at the tables, as many as a round has if there are so many.
    pub fn compute(&mut self, input: &[f32], output: &[f32]) {
        let dim = self.shared.config.dim;
        let (input, output) = (Frozen { values: input, dim }, Frozen { values: output, dim });
        self.computed = 0;
        while self.computed < self.gradients.len() && self.step(input, output) {
            self.computed += 1;
        }
        if self.shared.config.workers > 1 {
            self.rows.clear();
            for (gradient, _) in &self.gradients[..self.computed] {
                gradient.for_each(|table, row, _| self.rows.insert(table, row));
            }
        }
    }

    /// Calls `each(table, row, factor, gradient)` for every update of the blocks of this round, in their order.
    pub fn for_each_update(&self, mut each: impl FnMut(TableName, u32, f32, &[f32])) {
        for (gradient, factor) in &self.gradients[..self.computed] {
            gradient.for_each(|table, row, gradient| each(table, row, *factor, gradient));
        }
    }

    /// Computes the next block's gradient, and updates the tables while other workers do so too; returns whether there
    /// was a block.
    pub fn race(&mut self, input: &[AtomicU32], output: &[AtomicU32], dim: usize) -> bool {
        let (input, output) = (Racing { values: input, dim }, Racing { values: output, dim });
        self.computed = 0;
        if !self.step(input, output) {
            return false;
        }
        self.computed = 1;
        self.for_each_update(|table, row, factor, gradient| match table {
            TableName::Input => input.add(row, factor, gradient),
            TableName::Output => output.add(row, factor, gradient),
        });
        true
    }

    /// Computes the gradient of the next block of this round; returns whether there is one.
    fn step(&mut self, input: impl Table, output: impl Rows) -> bool {
        if matches!(self.state, State::Finished | State::Failed) {
            return false;
        }
        let number = match self.next_block() {
            Ok(Some(number)) => number,
            Ok(None) => {
                self.state = State::Finished;
                return false;
            }
            Err(error) => {
                self.state = State::Failed;
                self.error = Some(error);
                return false;
            }
        };
        let learning_rate = self.learning_rate() as f32;
        let (gradient, factor) = &mut self.gradients[self.computed];
        *factor = -learning_rate;
        let BlockLoss { loss, pairs } = self.block.compute(number, input, output, gradient);
        if !loss.is_finite() {
            self.state = State::Failed;
            self.error = Some(Error::NonFinite { step: self.words(), what: "the loss".into(), value: loss });
            return false;
        }
        for sum in [&mut self.loss, &mut self.epoch_loss] {
            sum.loss += loss;
            sum.pairs += pairs;
        }
        true
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

    /// The loss since this was last called.
    pub fn take_loss(&mut self) -> BlockLoss {
        std::mem::take(&mut self.loss)
    }

    pub fn finished(&self) -> bool {
        self.state == State::Finished
    }

    pub fn failed(&self) -> bool {
        self.error.is_some()
    }

    pub fn take_error(&mut self) -> Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }
}
