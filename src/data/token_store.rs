//! Tokens at rest: two or four bytes each, in memory or in a token file.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::token_file;
use crate::checkpoint::{Checksum, Hasher};
use crate::{Error, Result};

/// How many bytes a token takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenWidth {
    Two,
    Four,
}

impl TokenWidth {
    /// The narrowest width for ids below `vocabulary_size`, which must lie in 1..=2³².
    pub(super) fn of(vocabulary_size: usize) -> Result<Self> {
        match vocabulary_size as u64 {
            0 => Err(Error::config("vocabulary_size", vocabulary_size, "at least 1")),
            1..=0x1_0000 => Ok(Self::Two),
            0x1_0001..=0x1_0000_0000 => Ok(Self::Four),
            _ => Err(Error::config("vocabulary_size", vocabulary_size, "at most 2^32, as ids have 32 bits")),
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Appends `tokens` to `out`, little endian. The tokens must fit.
    pub(super) fn encode(self, tokens: &[u32], out: &mut Vec<u8>) {
        match self {
            Self::Two => out.extend(tokens.iter().flat_map(|&token| (token as u16).to_le_bytes())),
            Self::Four => out.extend(tokens.iter().flat_map(|token| token.to_le_bytes())),
        }
    }

    fn decode(self, bytes: &[u8], out: &mut [u32]) {
        match self {
            Self::Two => {
                for (token, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *token = u16::from_le_bytes(*bytes).into();
                }
            }
            Self::Four => {
                for (token, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *token = u32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// Fails at the first token that is not below `vocabulary`; `position` is that of the first of `tokens`.
pub(super) fn check_tokens(what: &str, position: u64, tokens: &[u32], vocabulary: usize) -> Result<()> {
    let outside = |&token: &u32| token as usize >= vocabulary;
    // The maximum is found with vector instructions; a search for the offender is needed only once.
    if tokens.iter().copied().max().as_ref().is_some_and(outside) {
        let index = tokens.iter().position(outside).expect("the maximum is outside");
        let position = position + index as u64;
        return Err(Error::TokenOutOfRange { what: what.to_owned(), position, id: tokens[index], vocabulary });
    }
    Ok(())
}

/// Bytes of a file that are read at a time, to the stack.
const BLOCK_BYTES: usize = 1 << 13;

/// What holds the bytes; the tokens are behind `offset`.
enum Bytes {
    Memory(Vec<u8>),
    /// An open file, read where it is asked to.
    File(File, PathBuf),
}

impl Bytes {
    /// Hands over the bytes of `range`, in blocks of a whole number of tokens.
    fn for_each(&self, range: Range<usize>, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (file, path) = match self {
            Self::Memory(bytes) => return each(&bytes[range]),
            Self::File(file, path) => (file, path),
        };
        let mut block = [0; BLOCK_BYTES];
        let mut start = range.start;
        while start < range.end {
            let block = &mut block[..(range.end - start).min(BLOCK_BYTES)];
            token_file::read_exact_at(file, block, start as u64).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => {
                    Error::invalid_file(path, format!("the file was cut: it has no byte {}", range.end - 1))
                }
                _ => Error::io(path)(error),
            })?;
            each(block)?;
            start += block.len();
        }
        Ok(())
    }
}

/// A corpus as token ids, immutable and cheap to clone.
///
/// A token takes two bytes if the vocabulary has at most 65,536 tokens, and four otherwise. The ids lie in memory, or in
/// a token file from which each sequence is read when it is needed, so that a corpus larger than memory can be trained on:
/// the operating system keeps in memory what of the file it has room for. Clones and parts share them.
///
/// The file stays open: one that is replaced, as [`TokenWriter`](super::TokenWriter) does, or removed is read to the end
/// as it was. One that another program cuts or overwrites in place makes an error of a read, or gives other ids, all of
/// the vocabulary. It is read by position and not memory-mapped: a file that is cut while it is mapped ends the process.
///
/// ```
/// use cllm::data::TokenStore;
/// let tokens = TokenStore::from_tokens(&[3, 1, 4, 1, 5], 10)?;
/// let (training, validation) = tokens.split_at(3);
/// let mut ids = [0; 2];
/// validation.copy_to(0, &mut ids)?;
/// assert_eq!((training.len(), ids), (3, [1, 5]));
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Clone)]
pub struct TokenStore {
    bytes: Arc<Bytes>,
    width: TokenWidth,
    vocabulary_size: usize,
    /// Where the first token lies in the bytes.
    offset: usize,
    len: usize,
    name: Arc<str>,
}

impl TokenStore {
    /// A store in memory.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] for an id that is not below `vocabulary_size`, [`Error::InvalidConfig`] for a
    /// vocabulary that is empty or has more than 2³² tokens.
    pub fn from_tokens(tokens: &[u32], vocabulary_size: usize) -> Result<Self> {
        let mut buffer = TokenBuffer::new("tokens", vocabulary_size)?;
        buffer.push(tokens)?;
        Ok(buffer.finish())
    }

    /// Opens a token file that [`TokenWriter`](super::TokenWriter) wrote. Every id is checked against the vocabulary,
    /// which reads the file once.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::EmptyFile`] if it is empty, [`Error::InvalidFile`] if it is
    /// no token file, was cut, or its header contradicts itself or the file's length, [`Error::TokenOutOfRange`] for
    /// an id outside the vocabulary.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (file, header) = token_file::open(path)?;
        let store = Self {
            bytes: Arc::new(Bytes::File(file, path.to_path_buf())),
            width: header.width,
            vocabulary_size: header.vocabulary_size,
            offset: token_file::HEADER_BYTES,
            len: header.len,
            name: path.display().to_string().into(),
        };
        store.check()?;
        Ok(store)
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tokens in the vocabulary; every id is below it.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// What the tokens are called in errors: the path of their file, or a name of their own.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same tokens under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Copies the tokens from position `start` on to `out`, as many as it has room for. Allocates nothing.
    ///
    /// # Errors
    /// For a token file only: [`Error::Io`] if it cannot be read, [`Error::InvalidFile`] if it was cut,
    /// [`Error::TokenOutOfRange`] if it was overwritten with ids outside the vocabulary.
    ///
    /// # Panics
    /// If the store ends before `out` does.
    #[track_caller]
    pub fn copy_to(&self, start: usize, out: &mut [u32]) -> Result<()> {
        let (end, len) = (start.checked_add(out.len()), self.len);
        assert!(end.is_some_and(|end| end <= len), "{} tokens from {start} on, of {len}", out.len());
        let width = self.width.bytes();
        let first = self.offset + start * width;
        let mut rest = &mut *out;
        self.bytes.for_each(first..first + rest.len() * width, |bytes| {
            let (tokens, after) = std::mem::take(&mut rest).split_at_mut(bytes.len() / width);
            self.width.decode(bytes, tokens);
            rest = after;
            Ok(())
        })?;
        match &*self.bytes {
            Bytes::Memory(_) => Ok(()),
            Bytes::File(..) => check_tokens(&self.name, start as u64, out, self.vocabulary_size),
        }
    }

    /// The tokens at the given positions, as a store of their own that shares the memory.
    ///
    /// # Panics
    /// If the range is not within the store.
    #[must_use]
    #[track_caller]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "tokens {range:?} of {}", self.len);
        let offset = self.offset + range.start * self.width.bytes();
        Self { offset, len: range.len(), ..self.clone() }
    }

    /// The first `position` tokens, and the rest.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    #[track_caller]
    pub fn split_at(&self, position: usize) -> (Self, Self) {
        (self.slice(0..position), self.slice(position..self.len))
    }

    /// Holds out the last `fraction` of the tokens: (training, validation), cut at ⌊n · (1 − fraction)⌋.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] unless 0 < `fraction` < 1.
    pub fn split_validation(&self, fraction: f64) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::config("validation fraction", fraction, "above 0 and below 1"));
        }
        let (training, validation) = self.split_at((self.len as f64 * (1.0 - fraction)) as usize);
        let names = [format!("{} (training part)", self.name), format!("{} (validation part)", self.name)];
        Ok((training.named(&names[0]), validation.named(&names[1])))
    }

    /// A sum over all tokens and the size of the vocabulary: the same tokens have the same sum wherever they lie. Reads
    /// all of them.
    ///
    /// # Errors
    /// As for [`copy_to`](Self::copy_to).
    pub fn fingerprint(&self) -> Result<Checksum> {
        let mut hasher = Hasher::default();
        hasher.update(&(self.vocabulary_size as u64).to_le_bytes());
        self.bytes.for_each(self.offset..self.offset + self.len * self.width.bytes(), |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    fn check(&self) -> Result<()> {
        let mut buffer = [0; 4096];
        for start in (0..self.len).step_by(buffer.len()) {
            let tokens = &mut buffer[..(self.len - start).min(4096)];
            self.copy_to(start, tokens)?;
        }
        Ok(())
    }
}

impl fmt::Debug for TokenStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TokenStore")
            .field("name", &self.name)
            .field("len", &self.len)
            .field("vocabulary_size", &self.vocabulary_size)
            .field("in_file", &matches!(&*self.bytes, Bytes::File(..)))
            .finish_non_exhaustive()
    }
}

/// A store in memory that grows.
#[derive(Debug)]
pub(super) struct TokenBuffer {
    bytes: Vec<u8>,
    width: TokenWidth,
    vocabulary_size: usize,
    name: String,
}

impl TokenBuffer {
    pub(super) fn new(name: &str, vocabulary_size: usize) -> Result<Self> {
        let width = TokenWidth::of(vocabulary_size)?;
        Ok(Self { bytes: Vec::new(), width, vocabulary_size, name: name.to_owned() })
    }

    pub(super) fn push(&mut self, tokens: &[u32]) -> Result<()> {
        check_tokens(&self.name, (self.bytes.len() / self.width.bytes()) as u64, tokens, self.vocabulary_size)?;
        self.width.encode(tokens, &mut self.bytes);
        Ok(())
    }

    pub(super) fn finish(mut self) -> TokenStore {
        self.bytes.shrink_to_fit();
        TokenStore {
            width: self.width,
            vocabulary_size: self.vocabulary_size,
            offset: 0,
            len: self.bytes.len() / self.width.bytes(),
            bytes: Arc::new(Bytes::Memory(self.bytes)),
            name: self.name.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(store: &TokenStore) -> Vec<u32> {
        let mut tokens = vec![0; store.len()];
        store.copy_to(0, &mut tokens).unwrap();
        tokens
    }

    #[test]
    fn the_width_follows_the_vocabulary() {
        for (vocabulary, width) in [(1, 2), (65_536, 2), (65_537, 4), (1 << 32, 4)] {
            assert_eq!(TokenWidth::of(vocabulary).unwrap().bytes(), width);
        }
        for vocabulary in [0, (1 << 32) + 1] {
            let error = TokenStore::from_tokens(&[], vocabulary).unwrap_err();
            assert!(matches!(&error, Error::InvalidConfig { value, .. } if *value == vocabulary.to_string()));
        }
    }

    #[test]
    fn the_largest_ids_of_both_widths_come_back() {
        for (tokens, vocabulary) in [([0, 65_535, 7], 65_536), ([0, 65_536, 7], 65_537), ([u32::MAX, 0, 1], 1 << 32)] {
            assert_eq!(all(&TokenStore::from_tokens(&tokens, vocabulary).unwrap()), tokens);
        }
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_named_with_its_position() {
        let mut tokens = vec![1; 10_000];
        tokens[9_000] = 65_537;
        let error = TokenStore::from_tokens(&tokens, 5).unwrap_err();
        let expected = matches!(error, Error::TokenOutOfRange { position: 9_000, id: 65_537, vocabulary: 5, .. });
        assert!(expected, "{error}");
    }

    #[test]
    fn parts_share_the_tokens_and_nest() {
        let store = TokenStore::from_tokens(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 70_000).unwrap();
        let (first, rest) = store.split_at(4);
        assert_eq!((all(&first), all(&rest)), (vec![0, 1, 2, 3], vec![4, 5, 6, 7, 8, 9]));
        assert_eq!(all(&rest.slice(1..3)), [5, 6]);
        assert!(Arc::ptr_eq(&store.bytes, &rest.slice(6..6).bytes) && rest.slice(6..6).is_empty());
    }

    #[test]
    fn the_validation_part_is_the_last_fraction() {
        let store = TokenStore::from_tokens(&vec![0; 1_115_394], 65).unwrap().named("corpus");
        let (training, validation) = store.split_validation(0.1).unwrap();
        assert_eq!((training.len(), validation.len()), (1_003_854, 111_540));
        assert_eq!(validation.name(), "corpus (validation part)");
        for fraction in [0.0, 1.0, -0.5, f64::NAN, f64::INFINITY] {
            let error = store.split_validation(fraction).unwrap_err();
            assert!(matches!(&error, Error::InvalidConfig { value, .. } if *value == fraction.to_string()));
        }
    }

    #[test]
    #[should_panic(expected = "2 tokens from 4 on, of 5")]
    fn reading_past_the_end_panics() {
        let (store, _) = TokenStore::from_tokens(&[0; 10], 1).unwrap().split_at(5);
        let _ = store.copy_to(4, &mut [0; 2]);
    }
}
