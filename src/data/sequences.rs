//! Training and evaluation sequences drawn from a token store.

use serde::{Deserialize, Serialize};

use super::permutation::permuted;
use super::{Batch, TokenStore};
use crate::config::TrainingConfig;
use crate::rng::{Purpose, Stream};
use crate::{Error, Result};

/// The order in which training sequences are drawn.
///
/// Written in configurations as `random`, `sequential` or `shuffled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchOrder {
    /// Every sequence starts at an offset of its own, uniform over the corpus.
    #[default]
    Random,
    /// Consecutive windows that do not overlap, from the first to the last and over again.
    Sequential,
    /// The same windows, each once an epoch, in an order of the epoch's own.
    Shuffled,
}

/// Batches of sequences from a [`TokenStore`]: a pure function of (seed, step), so a run can be resumed anywhere.
///
/// A sequence is `sequence_length` tokens T and the one token after them: inputs are tokens s..s+T, targets
/// s+1..s+T+1. A corpus of n tokens has ⌊(n − 1) / T⌋ *windows*, which start at the multiples of T; the tokens after
/// the last whole window are reached by random offsets only. An *epoch* is as many sequences as there are windows.
///
/// ```
/// use cllm::data::{Batch, BatchOrder, SequenceSource, TokenStore};
/// let tokens = TokenStore::from_tokens(&(0..101).collect::<Vec<u32>>(), 101)?;
/// let source = SequenceSource::new(tokens, BatchOrder::Sequential, 2, 10, 42)?;
/// let mut batch = Batch::zeros(2, 10);
/// source.fill(3, &mut batch)?;
/// assert_eq!(batch.inputs()[[0, 0]], 60);
/// assert_eq!(batch.targets()[[0, 0]], 61);
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SequenceSource {
    tokens: TokenStore,
    order: BatchOrder,
    sequences: usize,
    sequence_length: usize,
    seed: u64,
    windows: u64,
}

impl SequenceSource {
    /// A source of batches of `sequences` × `sequence_length` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a size is 0, [`Error::TooFewTokens`] if the corpus is shorter than one sequence and
    /// its shifted target.
    pub fn new(
        tokens: TokenStore,
        order: BatchOrder,
        sequences: usize,
        sequence_length: usize,
        seed: u64,
    ) -> Result<Self> {
        for (name, value) in [("sequences", sequences), ("sequence_length", sequence_length)] {
            if value == 0 {
                return Err(Error::config(name, value, "at least 1"));
            }
        }
        if tokens.len() <= sequence_length {
            return Err(Error::TooFewTokens {
                what: tokens.name().to_owned(),
                found: tokens.len() as u64,
                needed: sequence_length as u64 + 1,
            });
        }
        let windows = ((tokens.len() - 1) / sequence_length) as u64;
        Ok(Self { tokens, order, sequences, sequence_length, seed, windows })
    }

    /// The source of a run with these settings: their order, their seed, and batches of all that one update accumulates.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and [`Error::InvalidConfig`] if a setting is not valid.
    pub fn for_training(tokens: TokenStore, config: &TrainingConfig) -> Result<Self> {
        config.validate()?;
        let sequences = config.batch_size * config.accumulation_steps;
        Self::new(tokens, config.batch_order, sequences, config.sequence_length, config.seed)
    }

    /// The tokens that the sequences are drawn from.
    #[must_use]
    pub fn tokens(&self) -> &TokenStore {
        &self.tokens
    }

    /// The order in which the sequences are drawn.
    #[must_use]
    pub fn order(&self) -> BatchOrder {
        self.order
    }

    /// The seed of the order.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Sequences in a batch.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Positions in a sequence.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Windows in the corpus, which is also the number of sequences in an epoch.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Batches that hold one epoch, ⌈windows / sequences⌉. The next epoch begins in the rest of the last one.
    #[must_use]
    pub fn batches_per_epoch(&self) -> u64 {
        self.windows.div_ceil(self.sequences as u64)
    }

    /// Overwrites `batch` with the training batch of `step`, counted from 0. Allocates nothing.
    ///
    /// Sequential and shuffled orders number the sequences of all batches through: every run of `windows` sequences
    /// that starts at a multiple of `windows` visits each window once.
    ///
    /// # Errors
    /// Those of [`TokenStore::copy_to`]; the batch is then of no use.
    ///
    /// # Panics
    /// If the batch has another shape than the source.
    #[track_caller]
    pub fn fill(&self, step: u64, batch: &mut Batch) -> Result<()> {
        self.assert_shape(batch);
        let offsets = Stream::new(self.seed, Purpose::BatchOffsets, step);
        let first = u128::from(step) * self.sequences as u128;
        for (row, (inputs, targets)) in batch.rows_mut().enumerate() {
            let start = match self.order {
                BatchOrder::Random => {
                    offsets.below(row as u64, (self.tokens.len() - self.sequence_length) as u64) as usize
                }
                BatchOrder::Sequential => self.window_start(((first + row as u128) % u128::from(self.windows)) as u64),
                BatchOrder::Shuffled => {
                    let number = first + row as u128;
                    let (epoch, index) = (number / u128::from(self.windows), number % u128::from(self.windows));
                    self.window_start(permuted(index as u64, self.windows, self.seed, epoch as u64))
                }
            };
            self.copy_sequence(start, inputs, targets)?;
        }
        Ok(())
    }

    /// Batches that [`fill_evaluation`](Self::fill_evaluation) needs to visit every window.
    #[must_use]
    pub fn evaluation_batches(&self) -> u64 {
        self.batches_per_epoch()
    }

    /// Overwrites `batch` with the `index`-th batch of consecutive windows and returns how many of its sequences are
    /// real: all of them, fewer in the last batch, 0 beyond it. The other sequences are zeroed and must not be
    /// counted. The batch may have any number of sequences. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`TokenStore::copy_to`]; the batch is then of no use.
    ///
    /// # Panics
    /// If the batch has another sequence length than the source.
    #[track_caller]
    pub fn fill_evaluation(&self, index: u64, batch: &mut Batch) -> Result<usize> {
        assert_eq!(batch.sequence_length(), self.sequence_length, "sequence length of the batch and of the source");
        let first = index.saturating_mul(batch.sequences() as u64);
        let real = self.windows.saturating_sub(first).min(batch.sequences() as u64) as usize;
        for (row, (inputs, targets)) in batch.rows_mut().enumerate() {
            if row < real {
                self.copy_sequence(self.window_start(first + row as u64), inputs, targets)?;
            } else {
                inputs.fill(0);
                targets.fill(0);
            }
        }
        Ok(real)
    }

    fn window_start(&self, window: u64) -> usize {
        window as usize * self.sequence_length
    }

    fn copy_sequence(&self, start: usize, inputs: &mut [u32], targets: &mut [u32]) -> Result<()> {
        self.tokens.copy_to(start, inputs)?;
        let last = targets.len() - 1;
        targets[..last].copy_from_slice(&inputs[1..]);
        self.tokens.copy_to(start + inputs.len(), &mut targets[last..])
    }

    #[track_caller]
    fn assert_shape(&self, batch: &Batch) {
        let found = (batch.sequences(), batch.sequence_length());
        assert_eq!(found, (self.sequences, self.sequence_length), "shape of the batch and of the source");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: [BatchOrder; 3] = [BatchOrder::Random, BatchOrder::Sequential, BatchOrder::Shuffled];

    /// A source over the tokens 0..count, in which a token is its own position.
    fn source(count: u32, order: BatchOrder, sequences: usize, length: usize, seed: u64) -> SequenceSource {
        let tokens: Vec<u32> = (0..count).collect();
        let tokens = TokenStore::from_tokens(&tokens, count as usize).unwrap();
        SequenceSource::new(tokens, order, sequences, length, seed).unwrap()
    }

    fn starts(source: &SequenceSource, steps: impl IntoIterator<Item = u64>) -> Vec<u32> {
        let mut batch = Batch::zeros(source.sequences(), source.sequence_length());
        let mut starts = Vec::new();
        for step in steps {
            source.fill(step, &mut batch).unwrap();
            starts.extend(batch.inputs().column(0));
        }
        starts
    }

    #[test]
    fn targets_are_the_inputs_shifted_by_one() {
        for order in ORDERS {
            let source = source(100, order, 3, 7, 1);
            let mut batch = Batch::zeros(3, 7);
            for step in [0, 1, 2, 50, u64::MAX] {
                source.fill(step, &mut batch).unwrap();
                for (inputs, targets) in batch.rows_mut() {
                    assert!(inputs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{order:?} {inputs:?}");
                    assert!(inputs.iter().zip(targets).all(|(input, target)| *target == *input + 1), "{order:?}");
                }
            }
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        for order in ORDERS {
            let forward = starts(&source(1000, order, 4, 8, 5), 0..40);
            let fresh = source(1000, order, 4, 8, 5);
            let backward: Vec<_> = (0..40).rev().flat_map(|step| starts(&fresh, [step])).collect();
            for step in 0..40 {
                let mirrored = 39 - step;
                assert_eq!(forward[4 * step..][..4], backward[4 * mirrored..][..4], "{order:?} step {step}");
            }
            let other_seed = starts(&source(1000, order, 4, 8, 6), 0..40);
            assert_eq!(forward == other_seed, order == BatchOrder::Sequential, "{order:?}");
        }
    }

    #[test]
    fn epochs_visit_every_window_once() {
        for order in [BatchOrder::Sequential, BatchOrder::Shuffled] {
            // 37 windows of 5 and two tokens left over; 4 does not divide 37.
            let source = source(37 * 5 + 3, order, 4, 5, 9);
            assert_eq!((source.windows(), source.batches_per_epoch()), (37, 10));
            let all = starts(&source, 0..37);
            let mut orders = Vec::new();
            for epoch in all.chunks_exact(37) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq((0..37).map(|window| 5 * window)), "{order:?} {epoch:?}");
                orders.push(epoch.to_vec());
            }
            assert_eq!(orders.len(), 4);
            assert_eq!(orders[0] == orders[1], order == BatchOrder::Sequential);
        }
    }

    #[test]
    fn random_offsets_reach_both_ends() {
        let source = source(12, BatchOrder::Random, 64, 4, 3);
        let mut starts = starts(&source, 0..8);
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn evaluation_visits_every_window_once_in_order() {
        let source = source(24, BatchOrder::Random, 4, 3, 0);
        let mut batch = Batch::zeros(3, 3);
        let mut seen: Vec<u32> = Vec::new();
        for (index, expected) in [3, 3, 1, 0, 0].into_iter().enumerate() {
            assert_eq!(source.fill_evaluation(index as u64, &mut batch).unwrap(), expected);
            seen.extend(batch.inputs().column(0).iter().take(expected));
            assert!(batch.targets().rows().into_iter().skip(expected).all(|row| row.iter().all(|&token| token == 0)));
        }
        assert_eq!(seen, [0, 3, 6, 9, 12, 15, 18]);
        assert_eq!(source.fill_evaluation(u64::MAX, &mut batch).unwrap(), 0);
    }

    #[test]
    fn one_sequence_is_enough_and_less_is_not() {
        for order in ORDERS {
            assert_eq!(starts(&source(6, order, 2, 5, 1), 0..3), [0; 6]);
        }
        let tokens = TokenStore::from_tokens(&[1, 2, 3], 4).unwrap();
        let error = SequenceSource::new(tokens.clone(), BatchOrder::Random, 1, 3, 0).unwrap_err();
        assert!(matches!(error, Error::TooFewTokens { found: 3, needed: 4, .. }), "{error}");
        for (sequences, length, name) in [(0, 2, "sequences"), (2, 0, "sequence_length")] {
            let error = SequenceSource::new(tokens.clone(), BatchOrder::Random, sequences, length, 0).unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { name: found, .. } if found == name), "{error}");
        }
    }

    #[test]
    fn a_source_for_training_has_its_settings() {
        let tokens = TokenStore::from_tokens(&(0..100).collect::<Vec<_>>(), 100).unwrap();
        let config = TrainingConfig {
            batch_size: 3,
            accumulation_steps: 2,
            sequence_length: 5,
            batch_order: BatchOrder::Shuffled,
            seed: 8,
            ..Default::default()
        };
        let found = SequenceSource::for_training(tokens.clone(), &config).unwrap();
        assert_eq!(starts(&found, 0..9), starts(&source(100, BatchOrder::Shuffled, 6, 5, 8), 0..9));
        let error = SequenceSource::for_training(tokens, &TrainingConfig { accumulation_steps: 0, ..config });
        assert!(matches!(error, Err(Error::InvalidConfig { name: "accumulation_steps", .. })));
    }

    #[test]
    fn orders_are_written_in_kebab_case() {
        for (order, text) in ORDERS.into_iter().zip(["random", "sequential", "shuffled"]) {
            assert_eq!(serde_json::to_value(order).unwrap(), text);
            assert_eq!(serde_json::from_value::<BatchOrder>(text.into()).unwrap(), order);
        }
    }

    #[test]
    #[should_panic(expected = "shape of the batch")]
    fn a_batch_of_another_shape_panics() {
        source(100, BatchOrder::Random, 2, 4, 0).fill(0, &mut Batch::zeros(2, 5)).unwrap();
    }
}
