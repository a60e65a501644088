//! The text and binary formats of word2vec, which gensim and most other tools read.
//!
//! Both begin with a line of two numbers, rows and width. In the text format a row is a line: the word and its values,
//! separated by single spaces. In the binary format it is the word, a space, its values as little-endian f32, and, in
//! files of word2vec.c and of this crate but not of gensim, a line end.
//!
//! As in gensim, spaces and line ends separate, so no word has one; every other character may stand in a word. Tools that
//! also separate at tabs and carriage returns, such as fastText, do not read such words. A text file that was cut is always
//! noticed, a binary file unless only its last line end is missing.

use std::io::{BufRead, Write};
use std::path::Path;

use ndarray::{Array2, ArrayView1, ArrayView2};

use super::source::{LONGEST_WORD, Source};
use super::{check, write_little_endian};
use crate::checkpoint::atomic;
use crate::vectors::WordList;
use crate::{Result, WordVectors};

/// Characters that words cannot hold.
const SEPARATORS: [char; 2] = [' ', '\n'];

/// The longest number that is read, in bytes.
const LONGEST_NUMBER: usize = 128;

/// Writes row i of `vectors` under the i-th of `words`, with as many digits as distinguish the values.
///
/// # Errors
/// [`Shape`](crate::Error::Shape) if there is not one row for each word; [`InvalidRow`](crate::Error::InvalidRow) for a
/// word that is empty, longer than 64 KiB or there twice, or holds a space or line end, and for a value that is not finite;
/// [`Io`](crate::Error::Io) if the file cannot be written.
pub fn write_text<'a>(
    path: impl AsRef<Path>,
    words: impl ExactSizeIterator<Item = &'a str> + Clone,
    vectors: ArrayView2<'_, f32>,
) -> Result<()> {
    write(path.as_ref(), words, vectors, |out, row| row.iter().try_for_each(|value| write!(out, " {value}")))
}

/// As [`write_text`], in the binary format.
///
/// # Errors
/// As [`write_text`].
pub fn write_binary<'a>(
    path: impl AsRef<Path>,
    words: impl ExactSizeIterator<Item = &'a str> + Clone,
    vectors: ArrayView2<'_, f32>,
) -> Result<()> {
    write(path.as_ref(), words, vectors, |out, row| {
        out.write_all(b" ")?;
        write_little_endian(out, row)
    })
}

fn write<'a>(
    path: &Path,
    words: impl ExactSizeIterator<Item = &'a str> + Clone,
    vectors: ArrayView2<'_, f32>,
    values: impl Fn(&mut dyn Write, ArrayView1<'_, f32>) -> std::io::Result<()>,
) -> Result<()> {
    check(path, words.clone(), vectors, &SEPARATORS)?;
    atomic::write(path, |out| {
        writeln!(out, "{} {}", vectors.nrows(), vectors.ncols())?;
        for (word, row) in words.zip(vectors.rows()) {
            out.write_all(word.as_bytes())?;
            values(out, row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Reads the text format. Lines may end in a blank or a carriage return before their line end.
///
/// # Errors
/// [`Io`](crate::Error::Io); [`EmptyFile`](crate::Error::EmptyFile); [`InvalidFile`](crate::Error::InvalidFile) if the first line does not have the numbers of a table
/// that fits the file, or something follows the last row; [`InvalidRow`](crate::Error::InvalidRow) for a row with another number of values,
/// a value that is not a finite number, a word that is empty, not UTF-8, longer than 64 KiB or there twice.
pub fn read_text(path: impl AsRef<Path>) -> Result<WordVectors> {
    text(Source::open(path.as_ref())?)
}

/// As [`read_text`], of a file's content.
///
/// # Errors
/// As [`read_text`].
pub fn parse_text(bytes: &[u8]) -> Result<WordVectors> {
    text(Source::of_bytes(bytes, "word2vec text")?)
}

/// Reads the binary format.
///
/// # Errors
/// As [`read_text`].
pub fn read_binary(path: impl AsRef<Path>) -> Result<WordVectors> {
    binary(Source::open(path.as_ref())?)
}

/// As [`read_binary`], of a file's content.
///
/// # Errors
/// As [`read_text`].
pub fn parse_binary(bytes: &[u8]) -> Result<WordVectors> {
    binary(Source::of_bytes(bytes, "word2vec binary")?)
}

/// The first line's numbers, of a table whose rows have at least `least(dim)` bytes.
fn dimensions(source: &mut Source<impl BufRead>, least: impl Fn(u64) -> Option<u64>) -> Result<(usize, usize)> {
    let mut line = Vec::new();
    let line = match source.token(&mut line, b"\n", LONGEST_NUMBER)? {
        Some(_) => std::str::from_utf8(&line).unwrap_or_default(),
        None => "",
    };
    let numbers: Option<Vec<u64>> = line.split_ascii_whitespace().map(|number| number.parse().ok()).collect();
    let Some(&[rows, dim]) = numbers.as_deref() else {
        return Err(source.invalid("the first line must have two numbers, words and values of each"));
    };
    if rows == 0 || dim == 0 {
        return Err(source.invalid(format!("{rows} words of {dim} values are no table")));
    }
    let fits = least(dim).and_then(|bytes| bytes.checked_mul(rows)).is_some_and(|bytes| bytes <= source.left());
    if !fits {
        let left = source.left();
        return Err(source.invalid(format!("{left} bytes are too few for {rows} words of {dim} values")));
    }
    // Both are below the length of something that was stored.
    Ok((rows as usize, dim as usize))
}

fn text(mut source: Source<impl BufRead>) -> Result<WordVectors> {
    // A letter, a blank and a digit for each value, a line end.
    let (rows, dim) = dimensions(&mut source, |dim| dim.checked_mul(2)?.checked_add(2))?;
    let (mut words, mut values, mut token) = (WordList::default(), Vec::with_capacity(rows * dim), Vec::new());
    for row in 1..=rows {
        match source.token(&mut token, b" \n", LONGEST_WORD)? {
            Some(b' ') => words.push(&token).map_err(|(row, problem)| source.row(row, problem))?,
            Some(_) => return Err(source.row(row, format!("0 values where {dim} are announced"))),
            None => return Err(source.row(row, "the word does not end")),
        }
        let mut end = b' ';
        for value in 1..=dim {
            if end == b'\n' {
                return Err(source.row(row, format!("{} values where {dim} are announced", value - 1)));
            }
            end = source
                .token(&mut token, b" \n", LONGEST_NUMBER)?
                .ok_or_else(|| source.row(row, format!("value {value} does not end")))?;
            values.push(number(&token).map_err(|problem| source.row(row, format!("value {value} {problem}")))?);
        }
        // Some tools write a blank after the last value.
        if end == b' ' && (source.token(&mut token, b"\n", 1)?.is_none() || !matches!(&token[..], b"" | b"\r")) {
            let problem = format!("more than the {dim} values that are announced; a word cannot hold a space");
            return Err(source.row(row, problem));
        }
    }
    finish(source, words, values, (rows, dim))
}

fn number(token: &[u8]) -> std::result::Result<f32, String> {
    let text = String::from_utf8_lossy(token.trim_ascii_end());
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) => Err(format!("is {value}")),
        Err(_) => Err(format!("is not a number: {text:?}; a word cannot hold a space")),
    }
}

fn binary(mut source: Source<impl BufRead>) -> Result<WordVectors> {
    // A letter, a blank, the values.
    let (rows, dim) = dimensions(&mut source, |dim| dim.checked_mul(4)?.checked_add(2))?;
    let (mut words, mut values, mut token) = (WordList::default(), Vec::with_capacity(rows * dim), Vec::new());
    for row in 1..=rows {
        if row > 1 && source.peek()? == Some(b'\n') {
            source.skip();
        }
        if source.token(&mut token, b" ", LONGEST_WORD)?.is_none() {
            return Err(source.row(row, "the word does not end"));
        }
        if let Some(byte) = token.iter().find(|byte| SEPARATORS.contains(&char::from(**byte))) {
            let problem = format!("the word {:?} holds the byte 0x{byte:02x}", String::from_utf8_lossy(&token));
            return Err(source.row(row, problem));
        }
        words.push(&token).map_err(|(row, problem)| source.row(row, problem))?;
        if !source.values(dim, &mut values)? {
            return Err(source.row(row, format!("the file ends before the {dim} values")));
        }
    }
    finish(source, words, values, (rows, dim))
}

fn finish(
    mut source: Source<impl BufRead>,
    words: WordList,
    values: Vec<f32>,
    (rows, dim): (usize, usize),
) -> Result<WordVectors> {
    while source.peek()?.is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        source.skip();
    }
    if source.left() > 0 {
        return Err(source.invalid(format!("{} bytes follow the last of {rows} rows", source.left())));
    }
    let vectors = Array2::from_shape_vec((rows, dim), values).expect("each row was read");
    WordVectors::from_parts(words, vectors, |row, problem| source.row(row, problem))
}
