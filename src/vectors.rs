//! A table of vectors with the words they belong to.

#[cfg(feature = "lapack")]
mod spectral;

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::data::{WordIndex, WordVocabulary};
use crate::kernels::reduce::all_finite;
use crate::{Error, Result};

/// Words and their vectors: row i of the table belongs to the i-th word. The words are distinct and not empty, the values
/// finite; tables that come from training have the most frequent words first.
///
/// ```
/// use cllm::WordVectors;
/// use ndarray::array;
/// # fn main() -> cllm::Result<()> {
/// let vectors = WordVectors::new(["north", "east"], array![[0.0, 1.0], [1.0, 0.0]])?;
/// assert_eq!(vectors.id("east"), Some(1));
/// assert_eq!(vectors.vector("north"), Some(array![0.0, 1.0].view()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct WordVectors {
    words: WordIndex,
    vectors: Array2<f32>,
}

impl WordVectors {
    /// A table with a row for each of `words`, in their order.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one row for each word, or the rows have no values; [`Error::InvalidRow`] for the
    /// first word that is empty or stands there twice, or the first row with a value that is not finite.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>, vectors: Array2<f32>) -> Result<Self> {
        let mut list = WordList::default();
        words
            .into_iter()
            .try_for_each(|word| list.push(word.as_bytes()))
            .map_err(|(row, problem)| row_error(row, problem))?;
        Self::from_parts(list, vectors, row_error)
    }

    /// The vectors that were trained for a vocabulary.
    pub(crate) fn of_vocabulary(vocabulary: &WordVocabulary, vectors: Array2<f32>) -> Result<Self> {
        Self::new(vocabulary.words(), vectors)
    }

    /// What the readers end with; `error` makes an error of a row, counted from 1, and what is wrong with it.
    pub(crate) fn from_parts(
        words: WordList,
        vectors: Array2<f32>,
        error: impl Fn(usize, String) -> Error,
    ) -> Result<Self> {
        let words = words.index;
        if vectors.nrows() != words.len() || vectors.ncols() == 0 {
            return Err(Error::Shape {
                what: "vectors, a row of at least one value for each word".into(),
                expected: vec![words.len(), vectors.ncols().max(1)],
                found: vectors.shape().to_vec(),
            });
        }
        let vectors = if vectors.is_standard_layout() { vectors } else { vectors.as_standard_layout().into_owned() };
        let values = vectors.as_slice().expect("the layout is standard");
        if !all_finite(values) {
            let at = values.iter().position(|value| !value.is_finite()).expect("there is one");
            let (row, column) = (at / vectors.ncols(), at % vectors.ncols());
            return Err(error(row + 1, format!("value {} is {}", column + 1, values[at])));
        }
        Ok(Self { words, vectors })
    }

    /// The same words with other vectors, such as projections; the number of values in a row may differ.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one row for each word, or the rows have no values; [`Error::InvalidRow`] for the
    /// first row with a value that is not finite.
    pub fn with_vectors(&self, vectors: Array2<f32>) -> Result<Self> {
        Self::from_parts(WordList { index: self.words.clone() }, vectors, row_error)
    }

    /// Number of words.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is no word.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values in a vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.vectors.ncols()
    }

    /// The table, words × dim, rows contiguous.
    #[must_use]
    pub fn vectors(&self) -> ArrayView2<'_, f32> {
        self.vectors.view()
    }

    /// The words, in the order of their rows.
    pub fn words(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len() as u32).map(|id| self.word(id))
    }

    /// The word of a row.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn word(&self, id: u32) -> &str {
        std::str::from_utf8(self.words.word(id)).expect("checked when the word was added")
    }

    /// The row of a word.
    #[must_use]
    pub fn id(&self, word: &str) -> Option<u32> {
        self.words.get(word.as_bytes())
    }

    /// The vector of a word.
    #[must_use]
    pub fn vector(&self, word: &str) -> Option<ArrayView1<'_, f32>> {
        self.id(word).map(|id| self.vectors.row(id as usize))
    }

    /// The row of a word that must be there.
    ///
    /// # Errors
    /// [`Error::UnknownWord`].
    pub fn require(&self, word: &str) -> Result<u32> {
        self.id(word).ok_or_else(|| Error::UnknownWord { word: word.into(), words: self.len() })
    }
}

fn row_error(row: usize, problem: String) -> Error {
    Error::row("word vectors", row, problem)
}

/// Words that are being collected.
#[derive(Debug, Default)]
pub(crate) struct WordList {
    index: WordIndex,
}

impl WordList {
    /// Adds the next word, or tells its row, counted from 1, and what is wrong with it.
    pub fn push(&mut self, word: &[u8]) -> std::result::Result<(), (usize, String)> {
        let row = self.index.len() + 1;
        let word = match std::str::from_utf8(word) {
            Ok("") => return Err((row, "the word is empty".into())),
            Ok(word) => word,
            Err(error) => {
                let at = error.valid_up_to();
                return Err((row, format!("the word is not UTF-8: byte 0x{:02x} at {at}", word[at])));
            }
        };
        match self.index.insert(word.as_bytes()) {
            Some(id) if id as usize + 1 == row => Ok(()),
            Some(id) => Err((row, format!("the word {word:?} stands in row {} too", id + 1))),
            None => Err((row, "there are more than 2³² − 1 words".into())),
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn problem(words: &[&str], vectors: Array2<f32>) -> String {
        WordVectors::new(words.iter().copied(), vectors).unwrap_err().to_string()
    }

    #[test]
    fn words_and_rows_belong_together() {
        let vectors = WordVectors::new(["b", "a"], array![[1.0, 2.0], [3.0, 4.0]].reversed_axes()).unwrap();
        assert_eq!((vectors.len(), vectors.dim(), vectors.word(1)), (2, 2, "a"));
        assert_eq!(vectors.words().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(vectors.vector("a"), Some(array![2.0, 4.0].view()));
        assert!(vectors.vectors().is_standard_layout());
        assert_eq!(vectors.id("c"), None);
        assert!(matches!(vectors.require("c"), Err(Error::UnknownWord { words: 2, .. })));
        let narrow = vectors.with_vectors(array![[5.0], [6.0]]).unwrap();
        assert_eq!(narrow.vector("a"), Some(array![6.0].view()));
        assert!(matches!(vectors.with_vectors(array![[5.0]]), Err(Error::Shape { .. })));
        assert!(matches!(vectors.with_vectors(array![[5.0], [f32::NAN]]), Err(Error::InvalidRow { row: 2, .. })));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_row() {
        let good = array![[1.0], [2.0]];
        assert!(problem(&["a", ""], good.clone()).contains("row 2: the word is empty"));
        assert!(problem(&["a", "a"], good.clone()).contains("row 2: the word \"a\" stands in row 1 too"));
        assert!(problem(&["a", "b"], array![[1.0], [f32::NAN]]).contains("row 2: value 1 is NaN"));
        assert!(matches!(WordVectors::new(["a"], good), Err(Error::Shape { .. })));
        assert!(matches!(WordVectors::new(["a"], Array2::zeros((1, 0))), Err(Error::Shape { .. })));
    }
}
