//! A safetensors file of two tensors, readable by any safetensors library.
//!
//! `vectors`, f32, words × dim, and `words`, u8: the words in UTF-8, each ended by a line end. In Python:
//!
//! ```text
//! tensors = safetensors.numpy.load_file("vectors.safetensors")
//! words = tensors["words"].tobytes().decode().splitlines()
//! ```

use std::io::BufRead;
use std::path::Path;

use ndarray::{Array2, ArrayView2};

use super::source::{LONGEST_WORD, Source};
use super::{check, write_little_endian};
use crate::checkpoint::{atomic, header};
use crate::vectors::WordList;
use crate::{Result, WordVectors};

/// The longest header that is read, in bytes.
const LONGEST_HEADER: u64 = 1 << 16;

/// Writes row i of `vectors` under the i-th of `words`.
///
/// # Errors
/// [`Shape`](crate::Error::Shape) if there is not one row for each word; [`InvalidRow`](crate::Error::InvalidRow) for a
/// word that is empty, longer than 64 KiB or there twice, or holds a line end, and for a value that is not finite;
/// [`Io`](crate::Error::Io) if the file cannot be written.
pub fn write<'a>(
    path: impl AsRef<Path>,
    words: impl ExactSizeIterator<Item = &'a str> + Clone,
    vectors: ArrayView2<'_, f32>,
) -> Result<()> {
    let path = path.as_ref();
    // All that Python's `splitlines` splits at.
    let separators = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    check(path, words.clone(), vectors, &separators)?;
    let (rows, dim) = vectors.dim();
    let values_end = 4 * rows * dim;
    let bytes: usize = words.clone().map(|word| word.len() + 1).sum();
    let header = format!(
        r#"{{"vectors":{{"dtype":"F32","shape":[{rows},{dim}],"data_offsets":[0,{values_end}]}},"words":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[{values_end},{}]}}}}"#,
        values_end + bytes
    );
    let length = header.len().next_multiple_of(8);
    atomic::write(path, |out| {
        out.write_all(&(length as u64).to_le_bytes())?;
        write!(out, "{header:<length$}")?;
        vectors.rows().into_iter().try_for_each(|row| write_little_endian(out, row))?;
        words.into_iter().try_for_each(|word| writeln!(out, "{word}"))
    })
}

/// Reads the two tensors, which may stand in either order, and nothing else but metadata.
///
/// # Errors
/// [`Io`](crate::Error::Io); [`EmptyFile`](crate::Error::EmptyFile); [`InvalidFile`](crate::Error::InvalidFile) if the
/// header is not that of two such tensors that fill the file; [`InvalidRow`](crate::Error::InvalidRow) for a value that
/// is not finite, and for a word that is missing, empty, not UTF-8, longer than 64 KiB or there twice.
pub fn read(path: impl AsRef<Path>) -> Result<WordVectors> {
    load(Source::open(path.as_ref())?)
}

/// As [`read`], of a file's content.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8]) -> Result<WordVectors> {
    load(Source::of_bytes(bytes, "safetensors")?)
}

/// What the header says.
struct Tensors {
    rows: usize,
    dim: usize,
    words_bytes: u64,
    words_first: bool,
}

fn load(mut source: Source<impl BufRead>) -> Result<WordVectors> {
    let mut length = [0; 8];
    if !source.fill(&mut length)? {
        return Err(source.invalid("too short for a safetensors file"));
    }
    let length = u64::from_le_bytes(length);
    if length > source.left().min(LONGEST_HEADER) {
        return Err(source.invalid(format!("a header of {length} bytes, but {} follow", source.left())));
    }
    let mut json = vec![0; length as usize];
    source.fill(&mut json)?;
    let tensors = parse_header(&json, source.left()).map_err(|problem| source.invalid(problem))?;
    drop(json);

    let (mut words, mut values) = (WordList::default(), Vec::with_capacity(tensors.rows * tensors.dim));
    for words_now in [tensors.words_first, !tensors.words_first] {
        if words_now {
            read_words(&mut source, &tensors, &mut words)?;
        } else if !source.values(tensors.rows * tensors.dim, &mut values)? {
            return Err(source.invalid("the file has become shorter"));
        }
    }
    let vectors = Array2::from_shape_vec((tensors.rows, tensors.dim), values).expect("each row was read");
    WordVectors::from_parts(words, vectors, |row, problem| source.row(row, problem))
}

fn read_words(source: &mut Source<impl BufRead>, tensors: &Tensors, words: &mut WordList) -> Result<()> {
    let behind = source.left() - tensors.words_bytes;
    let mut token = Vec::new();
    for row in 1..=tensors.rows {
        let left = (source.left() - behind) as usize;
        // A line end may not lie behind the tensor.
        if left == 0 || source.token(&mut token, b"\n", LONGEST_WORD.min(left - 1))?.is_none() {
            return Err(source.row(row, "the word does not end"));
        }
        words.push(&token).map_err(|(row, problem)| source.row(row, problem))?;
    }
    match source.left() - behind {
        0 => Ok(()),
        more => Err(source.invalid(format!("{more} bytes follow the last of {} words", tensors.rows))),
    }
}

/// The tensors that fill `bytes` bytes.
fn parse_header(json: &[u8], bytes: u64) -> std::result::Result<Tensors, String> {
    let header::Header(mut entries) = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let mut take = |name: &str, dtype: &str| {
        let entry = entries.remove(name).ok_or_else(|| format!("tensor {name} is missing"))?;
        if entry.dtype != dtype {
            return Err(format!("tensor {name} is {:?}, not {dtype}", entry.dtype));
        }
        Ok(entry)
    };
    let (vectors, words) = (take("vectors", "F32")?, take("words", "U8")?);
    if let Some(name) = entries.keys().next() {
        return Err(format!("tensor {name} is neither vectors nor words"));
    }
    let (&[rows, dim], &[words_bytes]) = (&vectors.shape[..], &words.shape[..]) else {
        return Err(format!(
            "vectors has the shape {:?} and words {:?}, not a matrix and a vector",
            vectors.shape, words.shape
        ));
    };
    let values_bytes = rows.checked_mul(dim).and_then(|values| values.checked_mul(4)).filter(|&bytes| bytes > 0);
    let values_bytes = values_bytes.ok_or_else(|| format!("{rows} words of {dim} values are no table"))?;
    let words_first = words.data_offsets.0 < vectors.data_offsets.0;
    let total = values_bytes.checked_add(words_bytes);
    let expected = if words_first {
        [(0, words_bytes), (words_bytes, total.unwrap_or(u64::MAX))]
    } else {
        [(0, values_bytes), (values_bytes, total.unwrap_or(u64::MAX))]
    };
    let found = if words_first {
        [words.data_offsets, vectors.data_offsets]
    } else {
        [vectors.data_offsets, words.data_offsets]
    };
    if expected != found || total != Some(bytes) {
        return Err(format!(
            "the tensors lie at {found:?}, where {expected:?} in {bytes} bytes follow from their shapes"
        ));
    }
    // All are below the length of something that was stored.
    Ok(Tensors { rows: rows as usize, dim: dim as usize, words_bytes, words_first })
}
