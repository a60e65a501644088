//! The words of a corpus and how often they occur.

use super::text::{InvalidUtf8, TextFiles};
use super::word_index::WordIndex;
use super::word_reader::{Piece, WordReader, WordSplit};
use crate::{Error, Result};

/// The words that occur at least `minimum_count` times, the most frequent first, equally frequent ones in the order of
/// their bytes; a word's id is its place in this order.
#[derive(Clone, Debug)]
pub struct WordVocabulary {
    index: WordIndex,
    counts: Vec<u64>,
    split: WordSplit,
    corpus_words: u64,
}

impl WordVocabulary {
    /// Counts the words of `corpus`. Distinct words are held in memory, the text is not.
    ///
    /// Words of 64 KiB or more are counted as words of the corpus, and never enter the vocabulary. Neither do words
    /// that are not UTF-8, if the corpus was collected with [`InvalidUtf8::Replace`].
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::InvalidUtf8`] for a word that is not UTF-8, unless such are
    /// left out; [`Error::NoWords`] if no word is frequent enough.
    pub fn build(corpus: &TextFiles, split: WordSplit, minimum_count: u64) -> Result<Self> {
        let (mut all, mut counts, mut corpus_words) = (WordIndex::default(), Vec::<u64>::new(), 0);
        let mut reader = WordReader::new(corpus, split, 0..u64::MAX);
        reader.restart()?;
        loop {
            let (path, begin) = reader.file();
            let Some(piece) = reader.next()? else { break };
            let Piece::Word(word, offset) = piece else { continue };
            corpus_words += 1;
            if word.is_empty() {
                continue;
            }
            if let Some(id) = all.get(word) {
                counts[id as usize] += 1;
                continue;
            }
            match (std::str::from_utf8(word), corpus.invalid_utf8) {
                (Ok(_), _) => {}
                (Err(_), InvalidUtf8::Replace) => continue,
                (Err(error), InvalidUtf8::Refuse) => {
                    let at = error.valid_up_to();
                    let offset = offset - begin + at as u64;
                    return Err(Error::InvalidUtf8 { path: path.to_path_buf(), offset, value: word[at] });
                }
            }
            if all.insert(word).is_some() {
                counts.push(1);
            }
        }
        let mut order: Vec<u32> = (0..all.len() as u32).filter(|&id| counts[id as usize] >= minimum_count).collect();
        let key = |id: u32| (std::cmp::Reverse(counts[id as usize]), all.word(id));
        order.sort_unstable_by(|&a, &b| key(a).cmp(&key(b)));
        if order.is_empty() {
            return Err(Error::NoWords { what: corpus.name(), words: corpus_words, minimum_count });
        }
        let mut index = WordIndex::default();
        for &id in &order {
            index.insert(all.word(id));
        }
        let counts = order.into_iter().map(|id| counts[id as usize]).collect();
        Ok(Self { index, counts, split, corpus_words })
    }

    /// Number of words.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// The word with this id.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn word(&self, id: u32) -> &str {
        std::str::from_utf8(self.index.word(id)).expect("checked when the vocabulary was built")
    }

    /// The words, by id.
    pub fn words(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len() as u32).map(|id| self.word(id))
    }

    /// The id of a word.
    #[must_use]
    pub fn id(&self, word: &str) -> Option<u32> {
        self.find(word.as_bytes())
    }

    #[inline]
    pub(super) fn find(&self, word: &[u8]) -> Option<u32> {
        self.index.get(word)
    }

    /// How often each word occurs in the corpus, by id.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Words of the corpus, those outside the vocabulary included.
    #[must_use]
    pub fn corpus_words(&self) -> u64 {
        self.corpus_words
    }

    /// What was taken for a word.
    #[must_use]
    pub fn split(&self) -> WordSplit {
        self.split
    }

    /// The probability of keeping an occurrence of each word: min(1, √(t/f) + t/f), with f its share of the occurrences
    /// of all words in the vocabulary and t = `sample`, as word2vec.c has it; 1 throughout if `sample` is 0.
    #[must_use]
    pub fn keep_probabilities(&self, sample: f64) -> Vec<f32> {
        let total: u64 = self.counts.iter().sum();
        let keep = |&count: &u64| {
            let ratio = sample * total as f64 / count as f64;
            if sample == 0.0 { 1.0 } else { (ratio.sqrt() + ratio).min(1.0) as f32 }
        };
        self.counts.iter().map(keep).collect()
    }
}
