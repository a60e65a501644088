//! The text and binary formats of word2vec, which gensim and most other tools read.
//!
//! Both begin with a line of two numbers, rows and width. In the text format a row is a line: the word and its values,
//! separated by single spaces. In the binary format it is the word, a space, its values as little-endian f32, and a line
//! end.

use std::io::Write;
use std::path::Path;

use ndarray::ArrayView2;

use crate::checkpoint::atomic::AtomicFile;
use crate::data::WordVocabulary;
use crate::{Error, Result};

/// Writes row i of `vectors` under the i-th word, with as many digits as distinguish the values.
///
/// # Errors
/// [`Error::Shape`] if there is not one row for each word; [`Error::Io`] if the file cannot be written.
pub fn write_text(path: impl AsRef<Path>, vocabulary: &WordVocabulary, vectors: ArrayView2<'_, f32>) -> Result<()> {
    write(path.as_ref(), vocabulary, vectors, |out, row| row.iter().try_for_each(|value| write!(out, " {value}")))
}

/// As [`write_text`], in the binary format.
///
/// # Errors
/// As [`write_text`].
pub fn write_binary(path: impl AsRef<Path>, vocabulary: &WordVocabulary, vectors: ArrayView2<'_, f32>) -> Result<()> {
    write(path.as_ref(), vocabulary, vectors, |out, row| {
        out.write_all(b" ")?;
        row.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    })
}

fn write(
    path: &Path,
    vocabulary: &WordVocabulary,
    vectors: ArrayView2<'_, f32>,
    values: impl Fn(&mut dyn Write, ndarray::ArrayView1<'_, f32>) -> std::io::Result<()>,
) -> Result<()> {
    if vectors.nrows() != vocabulary.len() {
        let (expected, found) = (vec![vocabulary.len(), vectors.ncols()], vec![vectors.nrows(), vectors.ncols()]);
        return Err(Error::Shape { what: "vectors, a row for each word".into(), expected, found });
    }
    let mut file = AtomicFile::create(path)?;
    let out = file.writer();
    let mut all = || {
        writeln!(out, "{} {}", vectors.nrows(), vectors.ncols())?;
        for (id, row) in vectors.rows().into_iter().enumerate() {
            out.write_all(vocabulary.word(id as u32).as_bytes())?;
            values(out, row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    };
    all().map_err(Error::io(path))?;
    file.commit()
}
