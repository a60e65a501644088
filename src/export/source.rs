//! A file of known length that is read as a stream.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Take};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 16;

/// The longest word that is read, in bytes.
pub const LONGEST_WORD: usize = 1 << 16;

/// What is left of a file, or of bytes in memory.
pub struct Source<R> {
    reader: Take<R>,
    path: PathBuf,
}

impl Source<BufReader<File>> {
    /// Opens a regular file that is not empty.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before the file is opened, since opening a pipe would wait for its other end.
        if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
            return Err(Error::invalid_file(path, "not a file"));
        }
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        Self::new(BufReader::with_capacity(BUFFER_BYTES, file), length, path)
    }
}

impl<'a> Source<&'a [u8]> {
    /// The bytes of a file, under a name for errors.
    pub fn of_bytes(bytes: &'a [u8], name: &str) -> Result<Self> {
        Self::new(bytes, bytes.len() as u64, Path::new(name))
    }
}

impl<R: BufRead> Source<R> {
    fn new(reader: R, length: u64, path: &Path) -> Result<Self> {
        if length == 0 {
            return Err(Error::EmptyFile { path: path.to_path_buf() });
        }
        Ok(Self { reader: reader.take(length), path: path.to_path_buf() })
    }

    /// Bytes not yet read.
    pub fn left(&self) -> u64 {
        self.reader.limit()
    }

    /// An error about the whole file.
    pub fn invalid(&self, problem: impl ToString) -> Error {
        Error::invalid_file(&self.path, problem)
    }

    /// An error about a row, counted from 1.
    pub fn row(&self, row: usize, problem: impl ToString) -> Error {
        Error::row(&self.path, row, problem)
    }

    /// Fills `bytes`, or returns `false` if fewer are left.
    pub fn fill(&mut self, bytes: &mut [u8]) -> Result<bool> {
        if (bytes.len() as u64) > self.left() {
            return Ok(false);
        }
        self.reader.read_exact(bytes).map(|()| true).map_err(Error::io(&self.path))
    }

    /// The next byte, which is not read yet.
    pub fn peek(&mut self) -> Result<Option<u8>> {
        self.reader.fill_buf().map(|bytes| bytes.first().copied()).map_err(Error::io(&self.path))
    }

    /// Passes over the next byte.
    pub fn skip(&mut self) {
        self.reader.consume(1);
    }

    /// Replaces `token` by the bytes before the next of `ends`, which is passed over and returned; `None` if there is none
    /// among the next `longest` + 1 bytes, of which some are lost then.
    pub fn token(&mut self, token: &mut Vec<u8>, ends: &[u8], longest: usize) -> Result<Option<u8>> {
        token.clear();
        loop {
            let bytes = self.reader.fill_buf().map_err(Error::io(&self.path))?;
            let length = bytes.iter().position(|byte| ends.contains(byte));
            let taken = length.unwrap_or(bytes.len());
            if bytes.is_empty() || token.len() + taken > longest {
                return Ok(None);
            }
            token.extend_from_slice(&bytes[..taken]);
            let end = length.map(|at| bytes[at]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(end);
            }
        }
    }

    /// Appends the next values, little-endian f32, to `values`; returns `false` if fewer bytes are left.
    pub fn values(&mut self, count: usize, values: &mut Vec<f32>) -> Result<bool> {
        let mut bytes = [0; 4096];
        let mut left = count;
        while left > 0 {
            let part = left.min(bytes.len() / 4);
            let bytes = &mut bytes[..4 * part];
            if !self.fill(bytes)? {
                return Ok(false);
            }
            values.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            left -= part;
        }
        Ok(true)
    }
}
