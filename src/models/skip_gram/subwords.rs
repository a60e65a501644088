//! Words as the means of their own row and the rows of their character n-grams (Bojanowski, Grave, Joulin and Mikolov,
//! "Enriching word vectors with subword information", 2017).
//!
//! The input table has a row for each word, then a row for each bucket of n-grams. With R(w) the rows of word w, a row as
//! often as the word has n-grams in it, the word's vector is x_w = 1/|R(w)| · Σ of the rows in R(w). As in fastText, each
//! of them takes the whole gradient of x_w, not its share of it: x_w then moves as far as a word's own row would.
//!
//! N-grams and their hash are fastText's, so that they fall into the same buckets.

use super::row_set::TableName;
use super::rows::{Rows, Table};
use crate::config::SubwordConfig;
use crate::data::WordVocabulary;
use crate::kernels::elementwise::scale;

/// Calls `each` with the hash of every n-gram of `<word>`, by their starts, the shorter first.
///
/// Lengths are in characters. The marks `<` and `>` on their own are no n-grams; with the word between them they are one,
/// if it is short enough.
fn for_each_ngram(word: &str, config: SubwordConfig, mut each: impl FnMut(u32)) {
    let marked = format!("<{word}>");
    for (start, _) in marked.char_indices() {
        // FNV-1a, a byte at a time, in which fastText extends the sign of a byte.
        let mut hash = 2_166_136_261_u32;
        for (index, character) in marked[start..].chars().take(config.max_length).enumerate() {
            let mut bytes = [0; 4];
            for &byte in character.encode_utf8(&mut bytes).as_bytes() {
                hash = (hash ^ i32::from(byte.cast_signed()).cast_unsigned()).wrapping_mul(16_777_619);
            }
            let mark = index == 0 && (start == 0 || start + 1 == marked.len());
            if index + 1 >= config.min_length && !mark {
                each(hash);
            }
        }
    }
}

/// Which rows of the input table the words of a vocabulary are made of.
#[derive(Debug)]
pub(crate) struct Subwords {
    config: SubwordConfig,
    /// The rows of all words, one after the other, and where those of each end.
    rows: Vec<u32>,
    ends: Vec<usize>,
}

impl Subwords {
    pub fn new(vocabulary: &WordVocabulary, config: SubwordConfig) -> Self {
        let mut subwords = Self { config, rows: Vec::new(), ends: Vec::with_capacity(vocabulary.len()) };
        for (id, word) in vocabulary.words().enumerate() {
            subwords.rows.push(id as u32);
            let first = vocabulary.len() as u32;
            for_each_ngram(word, config, |hash| subwords.rows.push(first + hash % config.buckets));
            subwords.ends.push(subwords.rows.len());
        }
        subwords.rows.shrink_to_fit();
        subwords
    }

    /// Rows of the input table: of the words, then of the buckets.
    pub fn row_count(&self) -> usize {
        self.ends.len() + self.config.buckets as usize
    }

    /// The rows of a word, its own first.
    #[inline]
    pub fn of_word(&self, word: u32) -> &[u32] {
        let word = word as usize;
        &self.rows[if word == 0 { 0 } else { self.ends[word - 1] }..self.ends[word]]
    }

    /// The rows of the n-grams of any word; none if it is too short to have any.
    pub fn of_ngrams(&self, word: &str) -> Vec<u32> {
        let (first, mut rows) = (self.ends.len() as u32, Vec::new());
        for_each_ngram(word, self.config, |hash| rows.push(first + hash % self.config.buckets));
        rows
    }

    /// For each row, the sum over the words of `weight(word)`, as often as the row is one of its rows.
    pub fn row_weights(&self, weight: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut weights = vec![0.0; self.row_count()];
        for word in 0..self.ends.len() {
            let weight = weight(word);
            self.of_word(word as u32).iter().for_each(|&row| weights[row as usize] += weight);
        }
        weights
    }
}

/// The rows of `table` that the vector of `word` is made of, which are those that its gradient is added to.
pub(crate) fn rows_of<'w>(subwords: Option<&'w Subwords>, table: TableName, word: &'w u32) -> &'w [u32] {
    match (table, subwords) {
        (TableName::Input, Some(subwords)) => subwords.of_word(*word),
        _ => std::slice::from_ref(word),
    }
}

/// The mean of `rows`, of which there is at least one.
#[inline]
pub(crate) fn mean(table: impl Table, rows: &[u32], into: &mut [f32]) {
    table.read(rows[0], into);
    rows[1..].iter().for_each(|&row| table.add_to(row, into));
    scale(into, 1.0 / rows.len() as f32);
}

/// The vectors of words, out of a table with the rows they are made of.
#[derive(Clone, Copy)]
pub(crate) struct Composed<'a, T> {
    pub table: T,
    pub subwords: &'a Subwords,
}

impl<T: Table> Rows for Composed<'_, T> {
    #[inline]
    fn read(self, row: u32, into: &mut [f32]) {
        mean(self.table, self.subwords.of_word(row), into);
    }

    #[inline]
    fn prefetch(self, row: u32) {
        self.subwords.of_word(row).iter().for_each(|&row| self.table.prefetch(row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{TextFiles, TextOptions, WordSplit};

    fn vocabulary(text: &str) -> WordVocabulary {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let corpus = TextFiles::collect(&[file.path()], &TextOptions::default()).unwrap();
        WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap()
    }

    /// The buckets that gensim's port of fastText, `ft_ngram_hashes(word, min, max, 2000000)`, gives.
    #[test]
    fn ngrams_fall_into_the_buckets_of_fasttext() {
        let cases: [(&str, usize, usize, &[u32]); 7] = [
            ("the", 3, 6, &[1_151_151, 409_726, 1_648_960, 861_980, 60_934, 816_280]),
            ("größe", 3, 4, &[606_866, 525_807, 1_605_985, 925_915, 114_038, 1_900_137, 1_147_321, 342_149, 679_512]),
            ("banana", 3, 3, &[1_058_126, 1_963_270, 283_141, 1_905_850, 283_141, 1_231_562]),
            ("a", 3, 6, &[1_087_600]),
            ("a", 1, 2, &[1_008_750, 2220, 1_614_806]),
            ("日本語", 2, 3, &[1_752_687, 758_587, 387_409, 35_559, 460_575, 1_674_355, 1_432_255]),
            ("a", 4, 6, &[]),
        ];
        for (word, min_length, max_length, expected) in cases {
            let config = SubwordConfig { min_length, max_length, buckets: 2_000_000 };
            let mut found = Vec::new();
            for_each_ngram(word, config, |hash| found.push(hash % config.buckets));
            // gensim has the shorter n-grams of a start first too.
            assert_eq!(found, expected, "{word} {min_length} {max_length}");
        }
    }

    #[test]
    fn a_word_has_its_own_row_and_those_of_its_ngrams() {
        let vocabulary = vocabulary("the the the banana banana a");
        let config = SubwordConfig { min_length: 3, max_length: 6, buckets: 2_000_000 };
        let subwords = Subwords::new(&vocabulary, config);
        assert_eq!(subwords.row_count(), 2_000_003);
        for (id, word) in vocabulary.words().enumerate() {
            assert_eq!(subwords.of_word(id as u32)[0], id as u32);
            assert_eq!(subwords.of_word(id as u32)[1..], subwords.of_ngrams(word));
        }
        assert_eq!(subwords.of_word(0), [0, 1_151_154, 409_729, 1_648_963, 861_983, 60_937, 816_283]);
        let weights = subwords.row_weights(|word| [1.0, 10.0, 100.0][word]);
        // "ana" is in "banana" twice, and "<a>" in "a" alone.
        assert_eq!([0, 1, 283_144, 1_151_154, 1_087_603].map(|row: usize| weights[row]), [1.0, 10.0, 20.0, 1.0, 100.0]);
        assert_eq!(
            weights.iter().sum::<f64>(),
            (0..3).map(|id| { [1.0, 10.0, 100.0][id as usize] * subwords.of_word(id).len() as f64 }).sum::<f64>()
        );
    }

    #[test]
    fn long_words_are_cut_in_time_linear_in_their_length() {
        let word = "ü".repeat(60_000);
        let mut count = 0;
        for_each_ngram(&word, SubwordConfig::default(), |_| count += 1);
        // Of 60,002 characters there are 60,000 n-grams of 3, 59,999 of 4 and so on.
        assert_eq!(count, 4 * 60_000 - 6);
    }
}
