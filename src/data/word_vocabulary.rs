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

    /// The words and their counts as text, a word and its count a line: the form of word2vec's `-save-vocab`.
    pub(crate) fn to_text(&self) -> String {
        let line = |(id, count): (usize, &u64)| format!("{} {count}\n", self.word(id as u32));
        self.counts.iter().enumerate().map(line).collect()
    }

    /// Reads what [`to_text`](Self::to_text) wrote, or says what is wrong with it.
    pub(crate) fn parse(text: &[u8], split: WordSplit, corpus_words: u64) -> std::result::Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|error| format!("not a vocabulary: {error}"))?;
        let (mut index, mut counts) = (WordIndex::default(), Vec::<u64>::new());
        for (number, line) in text.lines().enumerate() {
            let parsed = line.split_once(' ').and_then(|(word, count)| Some((word, count.parse::<u64>().ok()?)));
            let Some((word, count)) = parsed.filter(|(word, count)| !word.is_empty() && *count > 0) else {
                return Err(format!("line {}: not a word and its count", number + 1));
            };
            if index.insert(word.as_bytes()) != Some(number as u32) {
                return Err(format!("line {}: {word:?} is there twice", number + 1));
            }
            counts.push(count);
        }
        let sum = counts.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
        if counts.is_empty() || sum.is_none_or(|sum| sum > corpus_words) {
            return Err(format!("{} words cannot be those of a text of {corpus_words}", counts.len()));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TextOptions;

    #[test]
    fn a_vocabulary_comes_back_and_a_damaged_one_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "für x x x_1 für x ").unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        let built = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let text = built.to_text();
        assert_eq!(text, "x 3\nfür 2\nx_1 1\n");
        let read = WordVocabulary::parse(text.as_bytes(), WordSplit::Blanks, 6).unwrap();
        assert_eq!((read.counts(), read.id("für"), read.word(2)), (built.counts(), Some(1), "x_1"));
        for (wrong, words) in
            [("", 9), ("x 3\nx 2\n", 9), ("x\n", 9), (" 3\n", 9), ("x 0\n", 9), ("x -1\n", 9), ("x 3\n", 2)]
        {
            assert!(WordVocabulary::parse(wrong.as_bytes(), WordSplit::Blanks, words).is_err(), "{wrong:?}");
        }
        assert!(WordVocabulary::parse(b"\xff 1\n", WordSplit::Blanks, 9).is_err());
        let twice = format!("a {0}\nb {0}\n", u64::MAX);
        assert!(WordVocabulary::parse(twice.as_bytes(), WordSplit::Blanks, u64::MAX).is_err());
    }
}
