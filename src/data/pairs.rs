//! Text pairs: from files to batches of token ids.
//!
//! [`PairReader`] streams pairs out of a file, [`PairStore`] holds them as token ids, [`PairSource`] makes batches of them.

mod reader;
mod store;

pub use reader::{MAXIMUM_LINE_BYTES, PairFormat, PairReader, RowProblem};
pub use store::{PairStore, PairStoreBuilder};

use super::Tokenizer;
use super::permutation::permuted;
use crate::{Error, Result};

/// The most hard negatives that a pair can have.
pub const MAXIMUM_HARD_NEGATIVES: usize = 1 << 8;

/// Fails at more hard negatives than a pair can have.
fn check_hard_negatives(hard_negatives: usize) -> Result<()> {
    if hard_negatives <= MAXIMUM_HARD_NEGATIVES {
        return Ok(());
    }
    Err(Error::config("hard_negatives", hard_negatives, format!("must be at most {MAXIMUM_HARD_NEGATIVES}")))
}

/// Texts as rows of token ids of any length, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRows {
    ids: Vec<u32>,
    ends: Vec<usize>,
}

impl TokenRows {
    /// No rows, and room for some.
    #[must_use]
    pub fn with_capacity(rows: usize, ids: usize) -> Self {
        Self { ids: Vec::with_capacity(ids), ends: Vec::with_capacity(rows) }
    }

    /// Appends a row.
    pub fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.ends.push(self.ids.len());
    }

    /// Removes all rows and keeps their memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.ends.clear();
    }

    /// The number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The ids of all rows.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each row ends among the ids of all.
    #[must_use]
    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    /// A row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &[u32] {
        &self.ids[index.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[index]]
    }

    /// Appends the first `max_tokens` tokens of `text` as a row.
    fn push_text(&mut self, text: &str, tokenizer: &Tokenizer, max_tokens: usize) -> Result<()> {
        let start = self.ids.len();
        tokenizer.encode(text, &mut self.ids)?;
        self.ids.truncate(start.saturating_add(max_tokens));
        self.ends.push(self.ids.len());
        Ok(())
    }

    /// Appends a row of `length` ids, to be written.
    fn push_with(&mut self, length: usize, write: impl FnOnce(&mut [u32]) -> Result<()>) -> Result<()> {
        let start = self.ids.len();
        self.ids.resize(start + length, 0);
        self.ends.push(self.ids.len());
        write(&mut self.ids[start..])
    }
}

impl<R: AsRef<[u32]>> FromIterator<R> for TokenRows {
    fn from_iter<I: IntoIterator<Item = R>>(rows: I) -> Self {
        let mut all = Self::default();
        rows.into_iter().for_each(|row| all.push(row.as_ref()));
        all
    }
}

/// A batch of B pairs with K hard negatives each.
///
/// Its rows are the B queries, the B documents in the same order, then the B first hard negatives, the B second ones, and
/// so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairBatch {
    rows: TokenRows,
    pairs: usize,
    hard_negatives: usize,
    /// Which pairs of its source they are.
    picked: Vec<u64>,
}

impl PairBatch {
    /// A batch of the given rows, in the order that is described above.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for more than [`MAXIMUM_HARD_NEGATIVES`]; [`Error::Shape`] if there is no pair, or the rows
    /// are not 2 + `hard_negatives` of each.
    pub fn new(rows: TokenRows, hard_negatives: usize) -> Result<Self> {
        check_hard_negatives(hard_negatives)?;
        let pairs = rows.len() / (2 + hard_negatives);
        let expected = pairs.max(1) * (2 + hard_negatives);
        if rows.len() != expected {
            let found = vec![rows.len()];
            return Err(Error::Shape { what: "rows of a batch of pairs".into(), expected: vec![expected], found });
        }
        Ok(Self { rows, pairs, hard_negatives, picked: Vec::new() })
    }

    /// A batch of `pairs`, each a query, its document, its hard negatives; of each text the first `max_tokens` tokens.
    ///
    /// They are tokenized in parallel on the rayon pool this is called in; the result does not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no pair, or one has fewer than two texts or another number than the first;
    /// [`Error::InvalidConfig`] for more than [`MAXIMUM_HARD_NEGATIVES`]; those of [`Tokenizer::encode`].
    pub fn from_texts(pairs: &[Vec<String>], tokenizer: &Tokenizer, max_tokens: usize) -> Result<Self> {
        let count = pairs.first().map_or(2, Vec::len).max(2);
        if let Some(other) = pairs.iter().find(|pair| pair.len() != count) {
            let (expected, found) = (vec![count], vec![other.len()]);
            return Err(Error::Shape { what: "texts of a pair".into(), expected, found });
        }
        check_hard_negatives(count - 2)?;
        let parts = store::tokenize(pairs, tokenizer, max_tokens).into_iter().collect::<Result<Vec<_>>>()?;
        let ids = parts.iter().map(|part| part.ids.len()).sum();
        let mut rows = TokenRows::with_capacity(count * pairs.len(), ids);
        for text in 0..count {
            for part in &parts {
                (text..part.len()).step_by(count).for_each(|index| rows.push(part.row(index)));
            }
        }
        Self::new(rows, count - 2)
    }

    /// The texts.
    #[must_use]
    pub fn rows(&self) -> &TokenRows {
        &self.rows
    }

    /// The number of pairs (B).
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Hard negatives of each pair (K).
    #[must_use]
    pub fn hard_negatives(&self) -> usize {
        self.hard_negatives
    }
}

/// Batches of pairs, shuffled anew in every epoch.
///
/// A batch is a pure function of the seed and the step. An epoch has as many whole batches as its pairs make; which pairs
/// are left over is another matter of chance in every epoch. So no batch has a pair twice.
#[derive(Clone, Debug)]
pub struct PairSource {
    store: PairStore,
    batch_size: usize,
    seed: u64,
}

impl PairSource {
    /// Batches of `batch_size` pairs of `store`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a batch size of 0 or of more than there are pairs.
    pub fn new(store: PairStore, batch_size: usize, seed: u64) -> Result<Self> {
        if batch_size == 0 || batch_size > store.len() {
            let expected = format!("must lie between 1 and the number of pairs, {}", store.len());
            return Err(Error::config("batch_size", batch_size, expected));
        }
        Ok(Self { store, batch_size, seed })
    }

    /// The pairs.
    #[must_use]
    pub fn store(&self) -> &PairStore {
        &self.store
    }

    /// Pairs in a batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The seed of the order.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whole batches in an epoch.
    #[must_use]
    pub fn batches_per_epoch(&self) -> u64 {
        (self.store.len() / self.batch_size) as u64
    }

    /// An empty batch with room for the longest texts, to be filled.
    #[must_use]
    pub fn batch(&self) -> PairBatch {
        let texts = self.batch_size * self.store.texts_per_pair();
        PairBatch {
            rows: TokenRows::with_capacity(texts, texts * self.store.longest()),
            pairs: 0,
            hard_negatives: self.store.hard_negatives(),
            picked: Vec::with_capacity(self.batch_size),
        }
    }

    /// Overwrites `batch`, made by [`batch`](Self::batch), with that of `step`, counted from 0. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`TokenStore::copy_to`](crate::data::TokenStore::copy_to); the batch is then of no use.
    pub fn fill(&self, step: u64, batch: &mut PairBatch) -> Result<()> {
        let (epoch, number) = (step / self.batches_per_epoch(), step % self.batches_per_epoch());
        let first = number * self.batch_size as u64;
        batch.picked.clear();
        let pick = |row: u64| permuted(first + row, self.store.len() as u64, self.seed, epoch);
        batch.picked.extend((0..self.batch_size as u64).map(pick));
        (batch.pairs, batch.hard_negatives) = (self.batch_size, self.store.hard_negatives());
        batch.rows.clear();
        for text in 0..self.store.texts_per_pair() {
            for &pair in &batch.picked {
                let tokens = self.store.range(pair as usize, text);
                batch.rows.push_with(tokens.len(), |ids| self.store.tokens().copy_to(tokens.start, ids))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PairTrainingConfig;

    /// Pairs whose texts are told apart by their ids: text t of pair p has 1 + (p + t) % 3 ids 10·p + t.
    fn store(pairs: u32, hard_negatives: usize) -> PairStore {
        let mut builder = PairStoreBuilder::new(10 * pairs as usize, hard_negatives).unwrap();
        for pair in 0..pairs {
            let texts: Vec<Vec<u32>> = (0..2 + hard_negatives as u32)
                .map(|text| vec![10 * pair + text; 1 + ((pair + text) % 3) as usize])
                .collect();
            builder.push(&texts).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn every_epoch_has_each_pair_at_most_once_with_its_own_texts() {
        for hard_negatives in [0, 2] {
            let source = PairSource::new(store(23, hard_negatives), 5, 3).unwrap();
            assert_eq!(source.batches_per_epoch(), 4);
            let mut batch = source.batch();
            let mut epochs = Vec::new();
            for epoch in 0..3 {
                let mut seen = Vec::new();
                for step in 4 * epoch..4 * epoch + 4 {
                    source.fill(step, &mut batch).unwrap();
                    assert_eq!((batch.pairs(), batch.rows().len()), (5, 5 * (2 + hard_negatives)));
                    for pair in 0..5 {
                        let number = batch.rows().row(pair)[0] / 10;
                        for text in 0..2 + hard_negatives as u32 {
                            let expected = vec![10 * number + text; 1 + ((number + text) % 3) as usize];
                            assert_eq!(batch.rows().row(pair + 5 * text as usize), expected);
                        }
                        seen.push(number);
                    }
                }
                let mut sorted = seen.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), 20);
                epochs.push(seen);
            }
            assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        let (first, second) =
            (PairSource::new(store(40, 1), 8, 3).unwrap(), PairSource::new(store(40, 1), 8, 3).unwrap());
        let other = PairSource::new(store(40, 1), 8, 4).unwrap();
        let at = |source: &PairSource, step| {
            let mut batch = source.batch();
            source.fill(step, &mut batch).unwrap();
            batch
        };
        let mut batch = second.batch();
        for step in [7, 3, 100, 0] {
            second.fill(step, &mut batch).unwrap();
            assert_eq!(at(&first, step), batch);
            assert_ne!(at(&other, step), batch);
        }
    }

    /// More pairs than are tokenized together.
    #[test]
    fn texts_make_the_batch_of_their_tokens() {
        let tokenizer = Tokenizer::byte();
        for count in [2, 4] {
            for max_tokens in [0, 3, usize::MAX] {
                let text = |pair: usize, text: usize| "abcde"[..(pair + text) % 6].to_owned() + &pair.to_string();
                let pairs: Vec<Vec<String>> =
                    (0..150).map(|pair| (0..count).map(|number| text(pair, number)).collect()).collect();
                let batch = PairBatch::from_texts(&pairs, &tokenizer, max_tokens).unwrap();
                let rows = (0..count).flat_map(|number| (0..150).map(move |pair| text(pair, number)));
                let rows = rows.map(|text| text.bytes().map(u32::from).take(max_tokens).collect::<Vec<_>>()).collect();
                assert_eq!(batch, PairBatch::new(rows, count - 2).unwrap());
            }
        }
    }

    #[test]
    fn texts_that_are_no_pairs_are_refused() {
        let tokenizer = Tokenizer::train_characters("ab").unwrap();
        let batch = |pairs: &[&[&str]]| {
            let pairs: Vec<Vec<String>> =
                pairs.iter().map(|texts| texts.iter().map(ToString::to_string).collect()).collect();
            PairBatch::from_texts(&pairs, &tokenizer, 5)
        };
        assert!(batch(&[&["a", "b"], &["b", ""]]).is_ok());
        let others: [&[&[&str]]; 6] = [
            &[],
            &[&["a"]],
            &[&["a", "b"], &["a"]],
            &[&["a", "b", "a"], &["a", "b"]],
            &[&["a", "b"], &["a"], &["a", "b", "a"]],
            &[&["a", "b"], &["a", "b", "a"]],
        ];
        for other in others {
            assert!(matches!(batch(other), Err(Error::Shape { .. })), "{other:?}");
        }
        assert!(matches!(batch(&[&["a", "b"], &["c", "a"]]), Err(Error::UnknownCharacter { .. })));
    }

    #[test]
    fn batches_that_cannot_be_are_refused() {
        for size in [0, 24] {
            let error = PairSource::new(store(23, 0), size, 0).unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { name: "batch_size", .. }), "{error}");
        }
        for (rows, hard_negatives) in [(0, 0), (3, 0), (4, 1)] {
            let rows: TokenRows = vec![[1]; rows].into_iter().collect();
            assert!(matches!(PairBatch::new(rows, hard_negatives), Err(Error::Shape { .. })));
        }
    }

    #[test]
    fn more_hard_negatives_than_the_most_are_refused_everywhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = |hard_negatives| PairTrainingConfig { hard_negatives, ..Default::default() };
        let everywhere = |hard_negatives: usize| {
            let rows: TokenRows = vec![[1]; 2 + MAXIMUM_HARD_NEGATIVES].into_iter().collect();
            let texts = vec![String::new(); hard_negatives.min(1000) + 2];
            [
                PairBatch::new(rows, hard_negatives).map(drop),
                PairBatch::from_texts(&[texts], &Tokenizer::byte(), 1).map(drop),
                PairStoreBuilder::new(9, hard_negatives).map(drop),
                PairReader::open(file.path(), PairFormat::Tsv, hard_negatives).map(drop),
                config(hard_negatives).validate(),
            ]
        };
        assert!(everywhere(MAXIMUM_HARD_NEGATIVES).iter().all(Result::is_ok));
        for hard_negatives in [MAXIMUM_HARD_NEGATIVES + 1, 1 << 40, usize::MAX - 2, usize::MAX - 1, usize::MAX] {
            for (place, refused) in everywhere(hard_negatives).into_iter().enumerate() {
                let named = matches!(refused, Err(Error::InvalidConfig { name: "hard_negatives", .. }));
                assert!(named, "{hard_negatives}, {place}: {refused:?}");
            }
        }
    }
}
