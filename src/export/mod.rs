//! Tables of words and vectors in the formats of others.
//!
//! | format | what it is | who reads it |
//! |---|---|---|
//! | [`word2vec`] text | a line of words and dim, then a line a word | gensim, fastText, most others |
//! | [`word2vec`] binary | the same line, then each word and its values as little-endian f32 | gensim, most others |
//! | [`npy`] | NumPy's array, f32; the words in a text file beside it | NumPy |
//! | [`safetensors`] | the tensors `vectors` (f32, words × dim) and `words` (bytes) | the safetensors libraries |
//!
//! Readers trust nothing: a damaged or lying file is an error that names the row, and nothing is half-loaded. They read
//! as a stream, and take memory for values only when the file is long enough to hold them: 4 bytes for each value of the
//! file, and for each word that is really there twice its bytes and at most 64 more, beside buffers of less than 1 MiB.
//! Writers refuse what could not be read again, and write whole files or none.

pub mod npy;
pub mod safetensors;
pub mod sentence_transformers;
mod source;
pub mod word2vec;

use std::path::Path;

use ndarray::{ArrayView1, ArrayView2};

use crate::vectors::WordList;
use crate::{Error, Result, WordVectors};

/// A file format for words and their vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorFormat {
    /// word2vec's text format.
    Word2vecText,
    /// word2vec's binary format.
    Word2vecBinary,
    /// NumPy's array, and the words beside it.
    Npy,
    /// Tensors `vectors` and `words`.
    Safetensors,
}

impl VectorFormat {
    /// The format that a file's ending stands for: `npy`, `safetensors`, `bin` for word2vec's binary format; any other
    /// for its text format.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("npy") => Self::Npy,
            Some("safetensors") => Self::Safetensors,
            Some("bin") => Self::Word2vecBinary,
            _ => Self::Word2vecText,
        }
    }
}

/// Reads words and vectors, in the format that the ending of `path` stands for unless one is given.
///
/// # Errors
/// Those of the format's own function.
pub fn read(path: impl AsRef<Path>, format: Option<VectorFormat>) -> Result<WordVectors> {
    let path = path.as_ref();
    match format.unwrap_or_else(|| VectorFormat::of_path(path)) {
        VectorFormat::Word2vecText => word2vec::read_text(path),
        VectorFormat::Word2vecBinary => word2vec::read_binary(path),
        VectorFormat::Npy => npy::read(path),
        VectorFormat::Safetensors => safetensors::read(path),
    }
}

/// Writes row i of `vectors` under the i-th of `words`.
///
/// # Errors
/// Those of the format's own function.
pub fn write<'a>(
    path: impl AsRef<Path>,
    format: VectorFormat,
    words: impl ExactSizeIterator<Item = &'a str> + Clone,
    vectors: ArrayView2<'_, f32>,
) -> Result<()> {
    match format {
        VectorFormat::Word2vecText => word2vec::write_text(path, words, vectors),
        VectorFormat::Word2vecBinary => word2vec::write_binary(path, words, vectors),
        VectorFormat::Npy => npy::write(path, words, vectors),
        VectorFormat::Safetensors => safetensors::write(path, words, vectors),
    }
}

/// Refuses a table that could not be read again: words and rows that do not match, words that are empty, longer than
/// [`source::LONGEST_WORD`] or there twice or hold a character that separates words, values that are not finite.
fn check<'a>(
    path: &Path,
    words: impl ExactSizeIterator<Item = &'a str>,
    vectors: ArrayView2<'_, f32>,
    separators: &[char],
) -> Result<()> {
    if vectors.nrows() != words.len() || vectors.is_empty() {
        return Err(Error::Shape {
            what: "vectors, a row of at least one value for each word".into(),
            expected: vec![words.len().max(1), vectors.ncols().max(1)],
            found: vectors.shape().to_vec(),
        });
    }
    let mut list = WordList::default();
    for (row, (word, values)) in words.zip(vectors.rows()).enumerate() {
        let problem = if word.len() > source::LONGEST_WORD {
            format!("the word has {} bytes, more than {}", word.len(), source::LONGEST_WORD)
        } else if let Err((_, problem)) = list.push(word.as_bytes()) {
            problem
        } else if let Some(separator) = word.chars().find(|character| separators.contains(character)) {
            format!("the word {word:?} holds {separator:?}, which this format cannot tell from its own")
        } else if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            format!("a value of the word {word:?} is {value}")
        } else {
            continue;
        };
        return Err(Error::row(path, row + 1, problem));
    }
    Ok(())
}

fn write_little_endian(out: &mut dyn std::io::Write, row: ArrayView1<'_, f32>) -> std::io::Result<()> {
    row.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}
