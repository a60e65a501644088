//! Settings of word embedding training.

use serde::{Deserialize, Serialize};

use super::{NonFinitePolicy, OnNonFinite, learning_rate, positive, within};
use crate::{Error, Result};

/// What a word embedding is trained to predict (Mikolov et al., "Distributed representations of words and phrases and
/// their compositionality", 2013).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WordObjective {
    /// Each word of a window from the word in its centre.
    SkipGram,
    /// The word in the centre of a window from the mean of the others.
    Cbow,
}

/// How workers share the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerMode {
    /// In rounds of a block a worker: a row that one worker's block alone has is updated by it at once, one that several
    /// have when all have read it, by one of them in the workers' order. The same bits for a given number of workers,
    /// build and machine. Workers wait for each other twice a round, so one that is held up holds up all; they keep their
    /// processors meanwhile, of which there should be one for each. The default.
    Deterministic,
    /// Every worker reads and updates the tables as it goes, element by element through relaxed atomics (Recht et al.,
    /// "Hogwild!", 2011). An update of an element that another worker updates at that moment may be lost, and with several
    /// workers runs need not have the same bits. No worker waits for another, which is usually faster than rounds.
    Async,
}

/// Character n-grams as parts of words (Bojanowski et al., "Enriching word vectors with subword information", 2017).
///
/// A word's input vector is the mean of a row of its own and of the rows of its n-grams, those of the word between `<`
/// and `>`: `<th`, `the`, `he>`, `<the`, … for `the`. Words that share parts share rows, and words outside the vocabulary
/// get a vector. N-grams are hashed, as fastText does, into `buckets` rows, which those that meet there share.
///
/// Costs `buckets`·dim·4 bytes of memory and of a checkpoint, and some 20 rows to read and update for each word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubwordConfig {
    /// Characters of the shortest n-grams, `<` and `>` included.
    pub min_length: usize,
    /// Characters of the longest.
    pub max_length: usize,
    /// Rows of n-grams.
    pub buckets: u32,
}

impl Default for SubwordConfig {
    /// N-grams of 3 to 6 characters, as in fastText, in 500 thousand buckets, a quarter of fastText's.
    fn default() -> Self {
        Self { min_length: 3, max_length: 6, buckets: 500_000 }
    }
}

impl SubwordConfig {
    fn validate(self) -> Result<()> {
        positive("subwords.min_length", self.min_length)?;
        if self.max_length < self.min_length || self.max_length > 64 {
            let expected = format!("must lie between min_length, {}, and 64", self.min_length);
            return Err(Error::config("subwords.max_length", self.max_length, expected));
        }
        if self.buckets == 0 || self.buckets > 1 << 30 {
            return Err(Error::config("subwords.buckets", self.buckets, "must lie between 1 and 2³⁰"));
        }
        Ok(())
    }
}

/// Everything that training of word embeddings is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WordTrainingConfig {
    /// What is predicted.
    pub objective: WordObjective,
    /// Width of a vector (C).
    pub dim: usize,
    /// Largest distance of a pair: each centre word draws its own from 1 to this one, evenly.
    pub window: usize,
    /// Weight of the negative words against a positive one: the number that would be drawn for each pair, up to a million. One
    /// that is a pair's own context counts too, where word2vec leaves it out.
    pub negatives: f64,
    /// Threshold of the subsampling of frequent words, at least 10⁻³⁰; 0 keeps all.
    pub sample: f64,
    /// Power of a word's count with which it is drawn as a negative.
    pub negative_power: f64,
    /// Passes over the corpus.
    pub epochs: u64,
    /// Learning rate at the start; it falls linearly with the words read.
    pub learning_rate: f64,
    /// Learning rate at the end.
    pub minimum_learning_rate: f64,
    /// Centre words in a block: they share their negatives, and are updated together. Fewer are taken where few words
    /// make up the text, since updates made together overshoot there.
    pub block: usize,
    /// Negatives that a block shares, a multiple of 16.
    pub shared_negatives: usize,
    /// Character n-grams as parts of the input vectors; none without.
    pub subwords: Option<SubwordConfig>,
    /// Words of the corpus between two checkpoints; none without.
    pub save_interval: Option<u64>,
    /// Checkpoints that are kept in the run folder, the last ones; all without.
    pub keep_checkpoints: Option<usize>,
    /// What to do when the loss of a block is not finite.
    pub on_non_finite: OnNonFinite,
    /// What the learning rate is multiplied by at every [`OnNonFinite::RollBack`].
    pub roll_back_factor: f64,
    /// How many blocks may be skipped in a row, or how often the run may be rolled back before it gets beyond the block
    /// that failed; then the error is returned.
    pub non_finite_limit: u64,
    /// Worker threads.
    pub workers: usize,
    /// How they share the tables.
    pub mode: WorkerMode,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for WordTrainingConfig {
    /// Word2vec's settings for skip-gram, one worker, and [`WorkerMode::Deterministic`] for more.
    fn default() -> Self {
        let NonFinitePolicy { on_non_finite, roll_back_factor, non_finite_limit } = NonFinitePolicy::default();
        Self {
            objective: WordObjective::SkipGram,
            dim: 100,
            window: 5,
            negatives: 5.0,
            sample: 1e-3,
            negative_power: 0.75,
            epochs: 5,
            learning_rate: 0.025,
            minimum_learning_rate: 1e-4,
            block: 48,
            shared_negatives: 32,
            subwords: None,
            save_interval: None,
            keep_checkpoints: Some(3),
            on_non_finite,
            roll_back_factor,
            non_finite_limit,
            workers: 1,
            mode: WorkerMode::Deterministic,
            seed: 1,
        }
    }
}

impl WordTrainingConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first value outside its domain.
    pub fn validate(&self) -> Result<()> {
        positive("dim", self.dim)?;
        positive("window", self.window)?;
        positive("block", self.block)?;
        positive("shared_negatives", self.shared_negatives)?;
        positive("workers", self.workers)?;
        if self.dim > 1 << 16 {
            return Err(Error::config("dim", self.dim, "must be at most 65536"));
        }
        if self.window > 1000 {
            return Err(Error::config("window", self.window, "must be at most 1000"));
        }
        if self.block > 1 << 16 {
            return Err(Error::config("block", self.block, "must be at most 65536"));
        }
        if !self.shared_negatives.is_multiple_of(16) || self.shared_negatives > 1 << 16 {
            return Err(Error::config(
                "shared_negatives",
                self.shared_negatives,
                "must be a multiple of 16 up to 65536",
            ));
        }
        if self.workers > 1 << 16 {
            return Err(Error::config("workers", self.workers, "must be at most 65536"));
        }
        if self.epochs == 0 || self.epochs > 1 << 20 {
            return Err(Error::config("epochs", self.epochs, "must lie between 1 and 1048576"));
        }
        if self.save_interval == Some(0) {
            return Err(Error::config("save_interval", 0, "must be at least 1, or left out"));
        }
        if self.keep_checkpoints == Some(0) {
            return Err(Error::config("keep_checkpoints", 0, "must be at least 1, or left out"));
        }
        self.subwords.map_or(Ok(()), SubwordConfig::validate)?;
        within("negatives", self.negatives, 0.0, 1e6)?;
        if self.sample != 0.0 {
            // Smaller ones would keep no word at all, in f32.
            within("sample", self.sample, 1e-30, 1e30)?;
        }
        within("negative_power", self.negative_power, 0.0, 4.0)?;
        learning_rate(self.learning_rate)?;
        within("minimum_learning_rate", self.minimum_learning_rate, 0.0, self.learning_rate)?;
        self.non_finite_policy().validate()
    }

    pub(crate) fn non_finite_policy(&self) -> NonFinitePolicy {
        let Self { on_non_finite, roll_back_factor, non_finite_limit, .. } = *self;
        NonFinitePolicy { on_non_finite, roll_back_factor, non_finite_limit }
    }
}
