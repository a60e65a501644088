//! NumPy's array files, with the words in a text file beside them.
//!
//! `vectors.npy` is an array of shape (words, dim), little-endian f32 in C order, in version 1 of the format (versions 1
//! and 2 are read); `vectors.words` has the words, one a line, in UTF-8. The format is described at
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};

use super::source::{LONGEST_WORD, Source};
use super::{check, write_little_endian};
use crate::checkpoint::atomic;
use crate::vectors::WordList;
use crate::{Result, WordVectors};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The array begins at a multiple of this many bytes.
const ALIGNMENT: usize = 64;

/// The longest header that is read, in bytes: version 1 cannot have a longer one.
const LONGEST_HEADER: usize = 1 << 16;

/// Where the words of an array file are: beside it, with the ending `words`.
#[must_use]
pub fn words_path(path: &Path) -> PathBuf {
    path.with_extension("words")
}

/// Writes row i of `vectors` to `path`, and the i-th word to [`words_path`], first. Each file is written whole or not at
/// all, but not both together: an interruption between them can leave new words beside an old array.
///
/// # Errors
/// [`Shape`](crate::Error::Shape) if there is not one row for each word; [`InvalidRow`](crate::Error::InvalidRow) for a
/// word that is empty, longer than 64 KiB or there twice, or holds a line end, and for a value that is not finite;
/// [`InvalidFile`](crate::Error::InvalidFile) if `path` has the ending of the words; [`Io`](crate::Error::Io) if a file
/// cannot be written.
pub fn write<'a>(
    path: impl AsRef<Path>,
    words: impl ExactSizeIterator<Item = &'a str> + Clone,
    vectors: ArrayView2<'_, f32>,
) -> Result<()> {
    let path = path.as_ref();
    check(path, words.clone(), vectors, &['\n', '\r'])?;
    let words_path = words_path(path);
    if words_path == path {
        return Err(crate::Error::invalid_file(path, "the array would have the name of its words"));
    }
    atomic::write(&words_path, |out| words.into_iter().try_for_each(|word| writeln!(out, "{word}")))?;
    atomic::write(path, |out| {
        let (rows, dim) = vectors.dim();
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
        let begin = MAGIC.len() + 4;
        let padded = (begin + header.len() + 1).next_multiple_of(ALIGNMENT) - begin;
        header = format!("{header:<width$}\n", width = padded - 1);
        out.write_all(MAGIC)?;
        out.write_all(&[1, 0])?;
        out.write_all(&u16::try_from(header.len()).expect("a short header").to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        vectors.rows().into_iter().try_for_each(|row| write_little_endian(out, row))
    })
}

/// Reads an array and the words beside it.
///
/// # Errors
/// [`Io`](crate::Error::Io); [`EmptyFile`](crate::Error::EmptyFile); [`InvalidFile`](crate::Error::InvalidFile) if a file
/// is not what it should be, such as an array of other numbers or shape, or one that does not fit its file;
/// [`InvalidRow`](crate::Error::InvalidRow) for a value that is not finite, and for a word that is missing, empty, not
/// UTF-8, longer than 64 KiB or there twice.
pub fn read(path: impl AsRef<Path>) -> Result<WordVectors> {
    let path = path.as_ref();
    load(Source::open(path)?, Source::open(&words_path(path))?)
}

/// As [`read`], of the contents of the two files.
///
/// # Errors
/// As [`read`].
pub fn parse(array: &[u8], words: &[u8]) -> Result<WordVectors> {
    load(Source::of_bytes(array, "npy array")?, Source::of_bytes(words, "npy words")?)
}

fn load(mut source: Source<impl BufRead>, mut lines: Source<impl BufRead>) -> Result<WordVectors> {
    let (rows, dim) = shape(&mut source)?;
    let (mut words, mut token) = (WordList::default(), Vec::new());
    while lines.left() > 0 {
        let row = words.len() + 1;
        if row > rows {
            return Err(lines.invalid(format!("more words than the {rows} rows of the array")));
        }
        if lines.token(&mut token, b"\n", LONGEST_WORD)?.is_none() {
            return Err(lines.row(row, "the line does not end"));
        }
        words.push(token.strip_suffix(b"\r").unwrap_or(&token)).map_err(|(row, problem)| lines.row(row, problem))?;
    }
    if words.len() < rows {
        return Err(lines.row(words.len() + 1, format!("no word for this row of {rows}")));
    }
    let mut values = Vec::with_capacity(rows * dim);
    if !source.values(rows * dim, &mut values)? {
        return Err(source.invalid("the file has become shorter"));
    }
    let vectors = Array2::from_shape_vec((rows, dim), values).expect("each row was read");
    WordVectors::from_parts(words, vectors, |row, problem| source.row(row, problem))
}

/// Reads the header of an array that fills the rest of the file.
fn shape(source: &mut Source<impl BufRead>) -> Result<(usize, usize)> {
    let mut start = [0; 8];
    if !source.fill(&mut start)? || !start.starts_with(MAGIC) {
        return Err(source.invalid("not a NumPy array"));
    }
    let mut length = [0; 4];
    let length_bytes = match start[6] {
        1 => 2,
        2 => 4,
        version => return Err(source.invalid(format!("version {version} of the format, where 1 or 2 is read"))),
    };
    if !source.fill(&mut length[..length_bytes])? {
        return Err(source.invalid("the file ends before the header"));
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_HEADER || length as u64 > source.left() {
        return Err(source.invalid(format!("a header of {length} bytes, but {} follow", source.left())));
    }
    let mut header = vec![0; length];
    source.fill(&mut header)?;
    let (rows, dim) = parse_header(&header).map_err(|problem| source.invalid(problem))?;
    let bytes = rows.checked_mul(dim).and_then(|values| values.checked_mul(4));
    if bytes != Some(source.left()) || rows == 0 || dim == 0 {
        let left = source.left();
        return Err(source.invalid(format!("an array of {rows} × {dim} values, but {left} bytes follow")));
    }
    // Both are below the length of something that was stored.
    Ok((rows as usize, dim as usize))
}

/// The shape in a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`: a literal of Python, of
/// which only what NumPy writes is understood, with the keys in any order.
fn parse_header(header: &[u8]) -> std::result::Result<(u64, u64), String> {
    let text = std::str::from_utf8(header).map_err(|_| "the header is not UTF-8")?;
    let fields =
        text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or("the header has no braces")?;
    let (mut descriptor, mut order, mut shape) = (None, None, None);
    let mut rest = fields.trim_start();
    while let Some(field) = rest.strip_prefix('\'') {
        let (key, value) = field.split_once("':").ok_or("a key of the header does not end")?;
        let value = value.trim_start();
        // The value ends at a comma, but for that of the shape.
        let end = if value.starts_with('(') { value.find(')').map(|at| at + 1) } else { value.find(',') };
        let (value, after) = value.split_at(end.unwrap_or(value.len()));
        let former = match key {
            "descr" => descriptor.replace(value),
            "fortran_order" => order.replace(value),
            "shape" => shape.replace(value),
            _ => return Err(format!("the header has the key {key:?}")),
        };
        if former.is_some() {
            return Err(format!("the header has the key {key:?} twice"));
        }
        let after = after.trim_start();
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
    }
    if !rest.is_empty() {
        return Err(format!("the header goes on with {:?}", rest.chars().take(20).collect::<String>()));
    }
    let (descriptor, order, shape) = (
        descriptor.ok_or("the header has no descr")?.trim_end(),
        order.ok_or("the header has no fortran_order")?.trim_end(),
        shape.ok_or("the header has no shape")?,
    );
    if descriptor != "'<f4'" {
        return Err(format!("the numbers are {descriptor}, not '<f4', little-endian f32"));
    }
    if order != "False" {
        return Err(format!("fortran_order is {order}: only arrays in C order are read"));
    }
    let lengths = shape.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or_default();
    let lengths: Option<Vec<u64>> = lengths.split(',').map(|length| length.trim().parse().ok()).collect();
    match lengths.as_deref() {
        Some(&[rows, dim]) => Ok((rows, dim)),
        _ => Err(format!("the shape is {shape}, not (words, dim)")),
    }
}
