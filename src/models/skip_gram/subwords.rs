//! Words as the means of their own row and the rows of their character n-grams (Bojanowski, Grave, Joulin and Mikolov,
//! "Enriching word vectors with subword information", 2017).
//!
//! The input table has a row for each word, then a row for each bucket of n-grams. With R(w) the rows of word w, a row as
//! often as the word has n-grams in it, the word's vector is x_w = 1/|R(w)| · Σ of the rows in R(w). As in fastText, each
//! of them takes the whole gradient of x_w, not its share of it: x_w then moves as far as a word's own row would.
//!
//! N-grams and their hash are fastText's, so that they fall into the same buckets.

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
