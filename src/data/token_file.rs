//! The token file: a header and the ids, little endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `cllmtok\n` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | bytes a token, 2 if the vocabulary has at most 65,536 tokens, else 4 |
//! | 16 | 8 | tokens in the vocabulary |
//! | 24 | 8 | tokens in the file |
//! | 32 | | the tokens |

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;

use super::token_store::{TokenStore, TokenWidth, check_tokens};
use crate::checkpoint::atomic::AtomicFile;
use crate::{Error, Result};

pub(super) const HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"cllmtok\n";
const VERSION: u32 = 1;

/// What a checked header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) width: TokenWidth,
    pub(super) vocabulary_size: usize,
    pub(super) len: usize,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.width.bytes() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.vocabulary_size as u64).to_le_bytes());
        bytes[24..].copy_from_slice(&(self.len as u64).to_le_bytes());
        bytes
    }

    /// Checks a header against itself and the length of the whole file.
    fn parse(header: &[u8; HEADER_BYTES], file_bytes: u64) -> std::result::Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if &header[..8] != MAGIC {
            return Err("not a token file: it does not start with `cllmtok`".to_owned());
        }
        if word(8) != VERSION {
            return Err(format!("version {} of the token file is not {VERSION}", word(8)));
        }
        let (bytes_a_token, vocabulary, len) = (word(12), long(16), long(24));
        let vocabulary_size = usize::try_from(vocabulary).unwrap_or(usize::MAX);
        let width = TokenWidth::of(vocabulary_size)
            .map_err(|_| format!("a vocabulary of {vocabulary} tokens is not in 1..=2^32"))?;
        if bytes_a_token as usize != width.bytes() {
            return Err(format!("{bytes_a_token} bytes a token do not belong to a vocabulary of {vocabulary}"));
        }
        let found = file_bytes - HEADER_BYTES as u64;
        if len.checked_mul(width.bytes() as u64) != Some(found) {
            return Err(format!("{len} tokens of {bytes_a_token} bytes are announced, but {found} bytes follow"));
        }
        Ok(Self { width, vocabulary_size, len: len as usize })
    }
}

/// Opens the token file at `path` and checks its header, but not the tokens.
pub(super) fn open(path: &Path) -> Result<(File, Header)> {
    // Asked before the file is opened, since opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::invalid_file(path, "not a file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if metadata.len() == 0 {
        return Err(Error::EmptyFile { path: path.to_path_buf() });
    }
    if metadata.len() < HEADER_BYTES as u64 {
        let problem = format!("{} bytes are too few for the header of a token file", metadata.len());
        return Err(Error::invalid_file(path, problem));
    }
    let mut header = [0; HEADER_BYTES];
    read_exact_at(&file, &mut header, 0).map_err(Error::io(path))?;
    let header = Header::parse(&header, metadata.len()).map_err(|problem| Error::invalid_file(path, problem))?;
    Ok((file, header))
}

/// Fills `bytes` from the file's byte `offset` on, wherever the file was read last and whoever else reads it.
#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Fills `bytes` from the file's byte `offset` on, wherever the file was read last and whoever else reads it.
#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => (bytes, offset) = (&mut bytes[read..], offset + read as u64),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a token file piece by piece; the corpus is never in memory.
///
/// The tokens go to a temporary file in the same folder, which gets its name only in [`finish`](Self::finish). A
/// writer that is dropped before removes it, and what was there under that name stays.
///
/// ```
/// use cllm::data::TokenWriter;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("corpus.tokens");
/// let mut writer = TokenWriter::create(&path, 50_257)?;
/// writer.write(&[464, 3290])?;
/// writer.write(&[318])?;
/// assert_eq!(writer.finish()?.len(), 3);
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Debug)]
pub struct TokenWriter {
    file: AtomicFile,
    header: Header,
    scratch: Vec<u8>,
}

impl TokenWriter {
    /// Starts a token file that will be at `path`, in a folder that exists.
    ///
    /// # Errors
    /// [`Error::Io`] if no file can be made there, [`Error::InvalidConfig`] for a vocabulary that is empty or has more
    /// than 2³² tokens.
    pub fn create(path: impl AsRef<Path>, vocabulary_size: usize) -> Result<Self> {
        let header = Header { width: TokenWidth::of(vocabulary_size)?, vocabulary_size, len: 0 };
        let mut file = AtomicFile::create(path.as_ref())?;
        file.write_all(&header.to_bytes())?;
        Ok(Self { file, header, scratch: Vec::new() })
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] if an id is not in the vocabulary, and then none of `tokens` is written;
    /// [`Error::Io`] if the disk refuses them.
    pub fn write(&mut self, tokens: &[u32]) -> Result<()> {
        let Header { width, vocabulary_size, len } = self.header;
        check_tokens(&self.file.target().display().to_string(), len as u64, tokens, vocabulary_size)?;
        self.scratch.clear();
        width.encode(tokens, &mut self.scratch);
        self.file.write_all(&self.scratch)?;
        self.header.len += tokens.len();
        Ok(())
    }

    /// Completes the file, moves it to its path and opens it.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses it; nothing half-written is left then.
    pub fn finish(mut self) -> Result<TokenStore> {
        let path = self.file.target().to_path_buf();
        self.file.writer().seek(SeekFrom::Start(0)).map_err(Error::io(&path))?;
        self.file.write_all(&self.header.to_bytes())?;
        self.file.commit()?;
        TokenStore::open(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(tokens: &[u32], vocabulary_size: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let mut writer = TokenWriter::create(&path, vocabulary_size).unwrap();
        writer.write(tokens).unwrap();
        writer.finish().unwrap();
        (folder, path)
    }

    /// The problem that opening finds after `change` was made to a good file of the tokens 1 2 3.
    fn problem_after(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let (_folder, path) = written(&[1, 2, 3], 10);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        match TokenStore::open(&path).unwrap_err() {
            Error::InvalidFile { path: found, problem } if found == path => problem,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let (_folder, path) = written(&[1, 2, 65_535], 65_536);
        let mut expected = b"cllmtok\n\x01\0\0\0\x02\0\0\0\0\0\x01\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
        expected.extend([1, 0, 2, 0, 255, 255]);
        assert_eq!(fs::read(path).unwrap(), expected);
    }

    #[test]
    fn every_cut_and_every_lie_in_the_header_is_found() {
        for length in 1..HEADER_BYTES + 6 {
            problem_after(|bytes| bytes.truncate(length));
        }
        assert!(problem_after(|bytes| bytes.push(0)).contains("but 7 bytes follow"));
        assert!(problem_after(|bytes| bytes[0] = b'C').contains("not a token file"));
        assert!(problem_after(|bytes| bytes[8] = 2).contains("version 2"));
        assert!(problem_after(|bytes| bytes[12] = 4).contains("4 bytes a token"));
        assert!(problem_after(|bytes| bytes[18] = 1).contains("vocabulary of 65546"));
        assert!(problem_after(|bytes| bytes[16..24].fill(0)).contains("vocabulary of 0"));
        assert!(problem_after(|bytes| bytes[16..24].fill(255)).contains("vocabulary of 18446744073709551615"));
        assert!(problem_after(|bytes| bytes[24..32].fill(255)).contains("18446744073709551615 tokens"));
        // 2⁶³ + 3 tokens of 2 bytes wrap around to the bytes that are there.
        assert!(problem_after(|bytes| bytes[31] = 128).contains("9223372036854775811 tokens"));
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_found_when_opened_and_when_written() {
        let (_folder, path) = written(&[9; 5000], 10);
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER_BYTES + 2 * 4999] = 10;
        fs::write(&path, bytes).unwrap();
        let error = TokenStore::open(&path).unwrap_err();
        let expected = matches!(error, Error::TokenOutOfRange { position: 4999, id: 10, vocabulary: 10, .. });
        assert!(expected, "{error}");

        let mut writer = TokenWriter::create(&path, 10).unwrap();
        writer.write(&[0, 1]).unwrap();
        let error = writer.write(&[2, 11]).unwrap_err();
        let expected = matches!(error, Error::TokenOutOfRange { position: 3, id: 11, vocabulary: 10, .. });
        assert!(expected, "{error}");
    }

    #[test]
    fn a_store_outlives_the_replacement_of_its_file() {
        let (_folder, path) = written(&[1, 2, 3], 10);
        let old = TokenStore::open(&path).unwrap();
        let mut writer = TokenWriter::create(&path, 10).unwrap();
        writer.write(&[7]).unwrap();
        assert_eq!(writer.finish().unwrap().len(), 1);
        let mut tokens = [0; 3];
        old.copy_to(0, &mut tokens).unwrap();
        assert_eq!(tokens, [1, 2, 3]);
    }

    #[test]
    fn a_file_that_is_cut_or_overwritten_while_it_is_open_is_an_error() {
        let tokens: Vec<u32> = (0..9000).map(|token| token % 10).collect();
        let (_folder, path) = written(&tokens, 10);
        let store = TokenStore::open(&path).unwrap();
        let mut found = vec![0; tokens.len()];
        store.copy_to(0, &mut found).unwrap();
        assert_eq!(found, tokens);
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER_BYTES + 2 * 8000] = 200;
        fs::write(&path, &bytes).unwrap();
        let error = store.copy_to(7000, &mut found[..2000]).unwrap_err();
        let expected = matches!(error, Error::TokenOutOfRange { position: 8000, id: 200, vocabulary: 10, .. });
        assert!(expected, "{error}");
        store.copy_to(8001, &mut found[..900]).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(HEADER_BYTES as u64 + 100).unwrap();
        for wrong in [store.copy_to(49, &mut found[..2]).unwrap_err(), store.fingerprint().unwrap_err()] {
            assert!(matches!(&wrong, Error::InvalidFile { path: cut, .. } if *cut == path), "{wrong}");
        }
        store.copy_to(48, &mut found[..2]).unwrap();
    }
}
