//! A worker of word embedding training: its part of the text, its block, and its share of the updates.

use std::ops::Range;
use std::sync::atomic::AtomicU32;

use serde::{Deserialize, Serialize};

use super::word_shared::Shared;
use crate::config::WordTrainingConfig;
use crate::data::{StreamPlace, WordStream};
use crate::kernels::elementwise::axpy;
use crate::models::skip_gram::block::{Block, BlockLoss};
use crate::models::skip_gram::rows::{Frozen, NO_ROW, Racing};
use crate::models::skip_gram::windows::BlockNumber;
use crate::parallel::{for_each_indexed, part_of};
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
    /// The epoch to begin when the text is at its end; the number of epochs once all are done.
    next_epoch: u64,
    bytes: Range<u64>,
    state: State,
    learning_rate: f32,
    /// Since the last report, and of this epoch.
    loss: BlockLoss,
    pub epoch_loss: BlockLoss,
    error: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two epochs.
    AtEnd,
    /// The block has a gradient.
    Computed,
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
        Self {
            shared,
            index,
            stream: WordStream::new(corpus, vocabulary, keep, bytes.clone(), config.seed),
            block: Block::new(config, subwords.as_deref()),
            next_epoch: 0,
            bytes,
            state: State::AtEnd,
            learning_rate: 0.0,
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
            if place.finished && worker.next_epoch == config.epochs { State::Finished } else { State::Computed };
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
                self.learning_rate = self.learning_rate() as f32;
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
            self.state = State::Computed;
        }
    }

    /// Computes the next block's gradient at the tables, if there is a next block.
    fn compute(&mut self, input: &[f32], output: &[f32]) {
        let dim = self.shared.config.dim;
        self.step(|block, number| block.compute(number, Frozen { values: input, dim }, Frozen { values: output, dim }));
    }

    /// Computes the next block's gradient, and updates the tables while other workers do so too; returns whether there
    /// was a block.
    pub fn race(&mut self, input: &[AtomicU32], output: &[AtomicU32], dim: usize) -> bool {
        let (input, output) = (Racing { values: input, dim }, Racing { values: output, dim });
        self.step(|block, number| block.compute(number, input, output));
        if self.state != State::Computed {
            return false;
        }
        let factor = -self.learning_rate;
        self.block.input_update().for_each(0..u32::MAX, |row, gradient| input.add(row, factor, gradient));
        for update in self.block.output_updates() {
            update.for_each(0..u32::MAX, |row, gradient| output.add(row, factor, gradient));
        }
        true
    }

    fn step(&mut self, compute: impl FnOnce(&mut Block<'_>, BlockNumber) -> BlockLoss) {
        if matches!(self.state, State::Finished | State::Failed) {
            return;
        }
        match self.next_block() {
            Ok(Some(number)) => {
                let BlockLoss { loss, pairs } = compute(&mut self.block, number);
                if !loss.is_finite() {
                    self.state = State::Failed;
                    self.error = Some(Error::NonFinite { step: self.words(), what: "the loss".into(), value: loss });
                    return;
                }
                for sum in [&mut self.loss, &mut self.epoch_loss] {
                    sum.loss += loss;
                    sum.pairs += pairs;
                }
            }
            Ok(None) => self.state = State::Finished,
            Err(error) => {
                self.state = State::Failed;
                self.error = Some(error);
            }
        }
    }

    /// Makes the updates of this worker's last block that fall on the given rows.
    fn update(&self, share: &mut Share<'_>) {
        if self.state != State::Computed {
            return;
        }
        let (dim, factor) = (self.shared.config.dim, -self.learning_rate);
        let add = |table: &mut [f32], first: u32, row: u32, gradient: &[f32]| {
            axpy(&mut table[(row - first) as usize * dim..][..dim], factor, gradient);
        };
        let Share { input, output, input_rows, output_rows } = share;
        self.block
            .input_update()
            .for_each(input_rows.clone(), |row, gradient| add(input, input_rows.start, row, gradient));
        for update in self.block.output_updates() {
            update.for_each(output_rows.clone(), |row, gradient| add(output, output_rows.start, row, gradient));
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

/// Rows of both tables that one worker updates.
struct Share<'t> {
    input: &'t mut [f32],
    output: &'t mut [f32],
    input_rows: Range<u32>,
    output_rows: Range<u32>,
}

/// Computes one block on every worker, then makes all their updates.
pub(super) fn deterministic_round(
    shared: &Shared<'_>,
    workers: &mut [WordWorker<'_>],
    input: &mut [f32],
    output: &mut [f32],
) {
    for_each_indexed(workers, &|_, worker| worker.compute(input, output));
    let rows = |table: &[f32]| 0..(table.len() / shared.config.dim) as u32;
    let (input_rows, output_rows) = (rows(input), rows(output));
    let share = Share { input, output, input_rows, output_rows };
    update_shares(shared, workers, share, 0..workers.len());
}

/// Splits `share` into those of the workers in `part`, which make the updates of `workers` in their order.
fn update_shares(shared: &Shared<'_>, workers: &[WordWorker<'_>], mut share: Share<'_>, part: Range<usize>) {
    if part.len() == 1 {
        workers.iter().for_each(|worker| worker.update(&mut share));
        return;
    }
    let middle = part.start + part.len() / 2;
    let (input_middle, output_middle) = (shared.input_ends[middle - 1], shared.output_ends[middle - 1]);
    let dim = shared.config.dim;
    let Share { input, output, input_rows, output_rows } = share;
    let (input_left, input_right) = input.split_at_mut((input_middle - input_rows.start) as usize * dim);
    let (output_left, output_right) = output.split_at_mut((output_middle - output_rows.start) as usize * dim);
    let left = Share {
        input: input_left,
        output: output_left,
        input_rows: input_rows.start..input_middle,
        output_rows: output_rows.start..output_middle,
    };
    let right = Share {
        input: input_right,
        output: output_right,
        input_rows: input_middle..input_rows.end,
        output_rows: output_middle..output_rows.end,
    };
    rayon::join(
        || update_shares(shared, workers, left, part.start..middle),
        || update_shares(shared, workers, right, middle..part.end),
    );
}
