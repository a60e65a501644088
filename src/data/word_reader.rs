//! Text files as a stream of words and line ends, in bounded memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::text::TextFiles;
use crate::{Error, Result};

/// Bytes read at a time. A word that is not shorter than this is never in a vocabulary.
const BUFFER_BYTES: usize = 1 << 16;

/// What a word is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordSplit {
    /// A run of bytes above the space (0x20): blanks, tabs, carriage returns, NULs and the other control characters of
    /// ASCII separate words, other spaces of Unicode do not.
    #[default]
    Blanks,
    /// A run of ASCII letters, digits and underscores, and of all that is not ASCII, as identifiers in sources are.
    Identifiers,
}

/// The class of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Word,
    Separator,
    LineEnd,
}

impl WordSplit {
    fn classes(self) -> [Class; 256] {
        std::array::from_fn(|byte| match (self, byte as u8) {
            (_, b'\n') => Class::LineEnd,
            (Self::Blanks, 0x21..) | (Self::Identifiers, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80..) => {
                Class::Word
            }
            _ => Class::Separator,
        })
    }
}

/// What comes next in the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A word, with its offset in the corpus; empty if it is not shorter than the buffer.
    Word(&'a [u8], u64),
    /// The end of a line, or of a file.
    LineEnd,
}

/// Reads the words that begin in a range of the corpus, whose files are counted as one text.
#[derive(Debug)]
pub(super) struct WordReader<'a> {
    corpus: &'a TextFiles,
    classes: Box<[Class; 256]>,
    range: Range<u64>,
    /// The file being read, its index, and the offset in the corpus of its end.
    file: Option<File>,
    index: usize,
    file_end: u64,
    buffer: Box<[u8]>,
    /// What is left of the buffer, and the offset in the corpus of the whole buffer's end.
    left: Range<usize>,
    filled_to: u64,
}

impl std::fmt::Debug for Class {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Word => "w",
            Self::Separator => "s",
            Self::LineEnd => "n",
        })
    }
}

impl<'a> WordReader<'a> {
    pub fn new(corpus: &'a TextFiles, split: WordSplit, range: Range<u64>) -> Self {
        Self {
            corpus,
            classes: Box::new(split.classes()),
            range,
            file: None,
            index: 0,
            file_end: 0,
            buffer: vec![0; BUFFER_BYTES].into(),
            left: 0..0,
            filled_to: 0,
        }
    }

    /// The file being read, and where in the corpus it begins.
    pub fn file(&self) -> (&'a std::path::Path, u64) {
        let file = &self.corpus.files[self.index];
        (&file.path, self.file_end - file.bytes)
    }

    /// How far the corpus is read, in bytes from its start.
    pub fn position(&self) -> u64 {
        self.filled_to - self.left.len() as u64
    }

    /// Goes back to the start of the range.
    pub fn restart(&mut self) -> Result<()> {
        (self.index, self.file_end, self.left) = (0, 0, 0..0);
        for (index, file) in self.corpus.files.iter().enumerate() {
            let begin = self.file_end;
            (self.index, self.file_end) = (index, begin + file.bytes);
            if self.file_end <= self.range.start {
                continue;
            }
            // A word that began before the range belongs to the range before.
            let start = self.range.start.max(begin);
            let before = start.saturating_sub(1).max(begin);
            self.open(before)?;
            if before < start {
                self.skip_word()?;
            }
            return Ok(());
        }
        self.file = None;
        self.range.end = self.range.start;
        Ok(())
    }

    /// The index of the file being read, and how far the corpus is read.
    pub fn place(&self) -> (usize, u64) {
        (self.index, self.position())
    }

    /// Goes to a place where a reader of the same text and range was after a piece.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the place is not in the text.
    pub fn seek(&mut self, (index, position): (usize, u64)) -> Result<()> {
        self.restart()?;
        // Before the range is where a reader was that could not begin.
        if (index, position) == self.place() || position < self.range.start || self.file.is_none() {
            return Ok(());
        }
        while self.index < index && self.index + 1 < self.corpus.files.len() {
            self.index += 1;
            self.file_end += self.corpus.files[self.index].bytes;
        }
        let (path, begin) = self.file();
        if self.index != index || !(begin..=self.file_end).contains(&position) {
            return Err(Error::invalid_file(path, format!("byte {position} of the text is not in file {index}")));
        }
        self.open(position)
    }

    fn open(&mut self, at: u64) -> Result<()> {
        // That is where the reader is, too, if the file cannot be opened.
        (self.left, self.filled_to) = (0..0, at);
        let (path, begin) = self.file();
        let mut file = File::open(path).map_err(|error| Error::io(path)(error))?;
        if at > begin {
            file.seek(SeekFrom::Start(at - begin)).map_err(|error| Error::io(path)(error))?;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Reads on behind what is left of the buffer, which moves to its front; returns whether there was anything.
    #[cold]
    fn refill(&mut self) -> Result<bool> {
        self.buffer.copy_within(self.left.clone(), 0);
        self.left = 0..self.left.len();
        let wanted = ((BUFFER_BYTES - self.left.end) as u64).min(self.file_end - self.filled_to) as usize;
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut read = 0;
        while read < wanted {
            match file.read(&mut self.buffer[self.left.end..][..wanted - read]) {
                Ok(0) => {
                    let path = &self.corpus.files[self.index].path;
                    let missing = self.file_end - self.filled_to;
                    return Err(Error::invalid_file(path, format!("the file was cut: {missing} bytes are missing")));
                }
                Ok(count) => {
                    read += count;
                    self.left.end += count;
                    self.filled_to += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let path = &self.corpus.files[self.index].path;
                    return Err(Error::io(path)(error));
                }
            }
        }
        Ok(read > 0)
    }

    /// Passes over the rest of a word.
    fn skip_word(&mut self) -> Result<()> {
        loop {
            while let Some(&byte) = self.buffer[self.left.clone()].first() {
                if self.classes[usize::from(byte)] != Class::Word {
                    return Ok(());
                }
                self.left.start += 1;
            }
            if !self.refill()? {
                return Ok(());
            }
        }
    }

    /// The next word or line end, or `None` at the end of the range.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Piece<'_>>> {
        loop {
            let bytes = &self.buffer[self.left.clone()];
            let begin = bytes.iter().position(|&byte| self.classes[usize::from(byte)] != Class::Separator);
            let Some(begin) = begin else {
                self.left.start = self.left.end;
                if self.filled_to >= self.range.end {
                    return Ok(None);
                }
                if self.refill()? {
                    continue;
                }
                return self.next_file();
            };
            let offset = self.filled_to - (bytes.len() - begin) as u64;
            if offset >= self.range.end {
                return Ok(None);
            }
            let bytes = &bytes[begin..];
            if bytes[0] == b'\n' {
                self.left.start += begin + 1;
                return Ok(Some(Piece::LineEnd));
            }
            self.left.start += begin;
            let mut length = bytes.iter().position(|&byte| self.classes[usize::from(byte)] != Class::Word);
            if length.is_none() {
                if self.left.len() == BUFFER_BYTES {
                    self.left.start = self.left.end;
                    self.skip_word()?;
                    return Ok(Some(Piece::Word(&[], offset)));
                }
                if self.refill()? {
                    continue;
                }
                length = Some(self.left.len());
            }
            let word = self.left.start..self.left.start + length.unwrap_or(0);
            self.left.start = word.end;
            return Ok(Some(Piece::Word(&self.buffer[word], offset)));
        }
    }

    /// At the end of a file: opens the one after it, and ends the line.
    #[cold]
    fn next_file(&mut self) -> Result<Option<Piece<'_>>> {
        if self.index + 1 == self.corpus.files.len() || self.file_end >= self.range.end {
            return Ok(None);
        }
        let begin = self.file_end;
        self.index += 1;
        self.file_end += self.corpus.files[self.index].bytes;
        self.open(begin)?;
        Ok(Some(Piece::LineEnd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TextOptions;

    fn corpus(texts: &[&[u8]]) -> (tempfile::TempDir, TextFiles) {
        let folder = tempfile::tempdir().unwrap();
        for (index, text) in texts.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.txt")), text).unwrap();
        }
        let files = TextFiles::collect(&[folder.path()], &TextOptions::default()).unwrap();
        (folder, files)
    }

    fn words(corpus: &TextFiles, split: WordSplit, range: Range<u64>) -> Vec<String> {
        let mut reader = WordReader::new(corpus, split, range);
        reader.restart().unwrap();
        let mut words = Vec::new();
        while let Some(piece) = reader.next().unwrap() {
            words.push(match piece {
                Piece::Word(word, offset) => format!("{}@{offset}", String::from_utf8_lossy(word)),
                Piece::LineEnd => "\n".into(),
            });
        }
        words
    }

    #[test]
    fn words_end_at_control_characters_and_files_end_lines() {
        let (_folder, corpus) = corpus(&[b"one\r\ntwo\0three\n\n\n", b"f\xc3\xbcr x_1(y)"]);
        let found = words(&corpus, WordSplit::Blanks, 0..u64::MAX);
        assert_eq!(found, ["one@0", "\n", "two@5", "three@9", "\n", "\n", "\n", "\n", "für@17", "x_1(y)@22"]);
        let found = words(&corpus, WordSplit::Identifiers, 17..u64::MAX);
        assert_eq!(found, ["für@17", "x_1@22", "y@26"]);
    }

    #[test]
    fn every_word_belongs_to_one_part() {
        let (_folder, corpus) = corpus(&[b"a bb ccc\ndddd ", b"ee\n\nf gg", b"h"]);
        let whole: Vec<String> = words(&corpus, WordSplit::Blanks, 0..u64::MAX);
        let whole: Vec<&String> = whole.iter().filter(|word| *word != "\n").collect();
        for first in 0..=corpus.total_bytes() {
            for second in first..=corpus.total_bytes() {
                let parts = [0..first, first..second, second..u64::MAX];
                let found: Vec<String> =
                    parts.into_iter().flat_map(|part| words(&corpus, WordSplit::Blanks, part)).collect();
                let found: Vec<&String> = found.iter().filter(|word| *word != "\n").collect();
                assert_eq!(found, whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_reader_goes_on_where_another_stopped() {
        let (_folder, corpus) = corpus(&[b" a bb ccc\ndddd ", b"ee\n\nf gg", b"h", b"  \n i"]);
        let mut reader = WordReader::new(&corpus, WordSplit::Blanks, 0..u64::MAX);
        for place in [(0, 17), (1, 3), (4, 16), (9, 0), (3, u64::MAX)] {
            assert!(matches!(reader.seek(place), Err(Error::InvalidFile { .. })), "{place:?}");
        }
        let end = corpus.total_bytes();
        let show = |piece: Option<Piece<'_>>| format!("{piece:?}");
        for range in [0..u64::MAX, 0..end, 3..17, 5..6, 15..16, 7..7, end..end, end - 3..end] {
            let mut whole = WordReader::new(&corpus, WordSplit::Blanks, range.clone());
            whole.restart().unwrap();
            for pieces in 0.. {
                let mut other = WordReader::new(&corpus, WordSplit::Blanks, range.clone());
                other.seek(whole.place()).unwrap();
                assert_eq!(other.position(), whole.position(), "{range:?} after {pieces} pieces");
                let mut rest = WordReader::new(&corpus, WordSplit::Blanks, range.clone());
                rest.restart().unwrap();
                (0..pieces).for_each(|_| assert!(rest.next().is_ok()));
                loop {
                    let expected = show(rest.next().unwrap());
                    assert_eq!(show(other.next().unwrap()), expected, "{range:?} after {pieces} pieces");
                    if expected == "None" {
                        break;
                    }
                }
                if whole.next().unwrap().is_none() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let (folder, corpus) = corpus(&[b"one two", b"three"]);
        std::fs::write(folder.path().join("0.txt"), "one").unwrap();
        let mut reader = WordReader::new(&corpus, WordSplit::Blanks, 0..u64::MAX);
        reader.restart().unwrap();
        let error = std::iter::repeat_with(|| reader.next().map(|_| ())).find_map(std::result::Result::err).unwrap();
        assert!(matches!(&error, Error::InvalidFile { problem, .. } if problem.contains("4 bytes")), "{error}");
    }

    #[test]
    fn words_across_buffers_are_whole_and_endless_ones_are_empty() {
        let mut text = b"x ".repeat(BUFFER_BYTES / 2 - 2);
        text.extend(b"crossing ");
        text.extend([b'l'; BUFFER_BYTES - 1]);
        text.push(b' ');
        text.extend([b'e'; 3 * BUFFER_BYTES]);
        text.extend(b" last");
        let (_folder, corpus) = corpus(&[&text]);
        let mut reader = WordReader::new(&corpus, WordSplit::Blanks, BUFFER_BYTES as u64 - 5..u64::MAX);
        reader.restart().unwrap();
        let mut lengths = Vec::new();
        while let Some(piece) = reader.next().unwrap() {
            let Piece::Word(word, _) = piece else { panic!("no line ends here") };
            lengths.push(word.len());
        }
        assert_eq!(lengths, [8, BUFFER_BYTES - 1, 0, 4]);
    }
}
