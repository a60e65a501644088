//! A part of a corpus as a stream of word ids.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::text::TextFiles;
use super::word_reader::{Piece, WordReader};
use super::word_vocabulary::WordVocabulary;
use crate::Result;
use crate::rng::{Purpose, Stream};

/// The ids of the words that begin in a range of the corpus, without words outside the vocabulary, and without the
/// occurrences of frequent words that subsampling drops.
///
/// Whether an occurrence is dropped is a function of the seed, the epoch and its offset in the corpus: it does not
/// depend on how the corpus is cut into parts.
#[derive(Debug)]
pub(crate) struct WordStream<'a> {
    vocabulary: &'a WordVocabulary,
    /// The probability of keeping an occurrence, by id.
    keep: &'a [f32],
    reader: WordReader<'a>,
    seed: u64,
    epoch: u64,
    line: u32,
    words: u64,
}

/// Where a stream is between two words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamPlace {
    /// Index of the file, and how far the corpus is read, in bytes from its start.
    file: usize,
    offset: u64,
    pub epoch: u64,
    line: u32,
    /// Words read in all epochs.
    pub words: u64,
}

impl StreamPlace {
    /// Whether the numbers can be counted on from, as those of all workers together.
    pub fn counts(&self) -> bool {
        self.line <= u32::MAX >> 1 && self.words < 1 << 47
    }
}

/// A word, and the line it stands in: a number that changes with every line and is never `u32::MAX`.
pub(crate) type WordInLine = (u32, u32);

impl<'a> WordStream<'a> {
    pub fn new(
        corpus: &'a TextFiles,
        vocabulary: &'a WordVocabulary,
        keep: &'a [f32],
        range: Range<u64>,
        seed: u64,
    ) -> Self {
        let reader = WordReader::new(corpus, vocabulary.split(), range);
        Self { vocabulary, keep, reader, seed, epoch: 0, line: 0, words: 0 }
    }

    /// Goes to the start of the part, for another pass over it.
    pub fn restart(&mut self, epoch: u64) -> Result<()> {
        self.epoch = epoch;
        self.reader.restart()
    }

    /// Where the stream is.
    pub fn place(&self) -> StreamPlace {
        let (file, offset) = self.reader.place();
        StreamPlace { file, offset, epoch: self.epoch, line: self.line, words: self.words }
    }

    /// Goes to a place where a stream of the same part of the same text was.
    pub fn seek(&mut self, place: &StreamPlace) -> Result<()> {
        (self.epoch, self.line, self.words) = (place.epoch, place.line, place.words);
        self.reader.seek((place.file, place.offset))
    }

    /// Words of the corpus read so far, in all epochs, those that were passed over included.
    pub fn words(&self) -> u64 {
        self.words
    }

    /// How far the corpus is read, in bytes from its start.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// The next word, or `None` at the end of the part.
    #[inline]
    pub fn next(&mut self) -> Result<Option<WordInLine>> {
        while let Some(piece) = self.reader.next()? {
            let Piece::Word(word, offset) = piece else {
                self.line = (self.line + 1) & (u32::MAX >> 1);
                continue;
            };
            self.words += 1;
            let Some(id) = self.vocabulary.find(word) else { continue };
            let keep = self.keep[id as usize];
            if keep < 1.0 {
                // A stream's indices end at 2³⁴.
                let step = self.epoch | (offset >> 34) << 32;
                if Stream::new(self.seed, Purpose::Subsampling, step).uniform(offset & ((1 << 34) - 1)) >= keep {
                    continue;
                }
            }
            return Ok(Some((id, self.line)));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{TextOptions, WordSplit};

    const SAMPLE: f64 = 0.01;

    /// 20,000 times `often`, each fifth followed by one of 400 other words.
    fn corpus() -> (tempfile::TempDir, TextFiles) {
        let folder = tempfile::tempdir().unwrap();
        let word = |i: usize| if i.is_multiple_of(5) { format!("often w{}\n", i / 5 % 400) } else { "often ".into() };
        std::fs::write(folder.path().join("text.txt"), (0..20_000).map(word).collect::<String>()).unwrap();
        let corpus = TextFiles::collect(&[folder.path()], &TextOptions::default()).unwrap();
        (folder, corpus)
    }

    fn kept(corpus: &TextFiles, range: Range<u64>, seed: u64, epoch: u64) -> Vec<u32> {
        let vocabulary = WordVocabulary::build(corpus, WordSplit::Blanks, 1).unwrap();
        let keep = vocabulary.keep_probabilities(SAMPLE);
        let mut stream = WordStream::new(corpus, &vocabulary, &keep, range, seed);
        stream.restart(epoch).unwrap();
        std::iter::from_fn(|| stream.next().unwrap()).map(|(id, _)| id).collect()
    }

    #[test]
    fn frequent_words_are_kept_with_the_probability_of_the_formula() {
        let (_folder, corpus) = corpus();
        let ids = kept(&corpus, 0..u64::MAX, 1, 0);
        // t/f = 0.01/(20/24) = 0.012, and √0.012 + 0.012 = 0.12154; the others, below t, are all kept.
        let (often, others) =
            (ids.iter().filter(|&&id| id == 0).count() as f64, ids.iter().filter(|&&id| id > 0).count());
        let expected = 20_000.0 * (0.012f64.sqrt() + 0.012);
        assert!((often - expected).abs() < 5.0 * expected.sqrt(), "{often} of 20000 for {expected}");
        assert_eq!(others, 4000);
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        assert_eq!(vocabulary.keep_probabilities(0.0), vec![1.0; 401]);
    }

    #[test]
    fn what_is_kept_depends_on_seed_and_epoch_and_not_on_the_parts() {
        let (_folder, corpus) = corpus();
        let whole = kept(&corpus, 0..u64::MAX, 1, 0);
        for cut in [1, 12_345, corpus.total_bytes() - 1] {
            let parts = [kept(&corpus, 0..cut, 1, 0), kept(&corpus, cut..u64::MAX, 1, 0)].concat();
            assert!(parts == whole, "cut at {cut}");
        }
        assert!(kept(&corpus, 0..u64::MAX, 2, 0) != whole && kept(&corpus, 0..u64::MAX, 1, 1) != whole);
    }
}
