//! Text files: which ones, in which order, how much of them.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::chunks::{self, split_before};
use crate::checkpoint::{Checksum, Hasher};
use crate::{Error, Result};

/// Endings of the files that are taken from a folder unless others are asked for.
pub const TEXT_ENDINGS: [&str; 14] =
    ["txt", "text", "md", "rst", "tex", "rs", "py", "c", "h", "cpp", "hpp", "js", "go", "java"];

/// Which files of a folder are read, how much in all, and what happens to bytes that are not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// Endings of the files taken from folders, without the dot, in any case; [`TEXT_ENDINGS`] by default.
    pub endings: Vec<String>,
    /// Bytes read in all: the file that reaches the limit is cut there, or before the character that does not fit, and those
    /// after it are left out. No limit by default.
    pub max_bytes: Option<u64>,
    /// What happens to bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
}

impl Default for TextOptions {
    fn default() -> Self {
        let endings = TEXT_ENDINGS.map(str::to_owned).to_vec();
        Self { endings, max_bytes: None, invalid_utf8: InvalidUtf8::Refuse }
    }
}

/// What happens to bytes that are not UTF-8. The byte tokenizer takes any bytes as they are, and is not concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InvalidUtf8 {
    /// They are an [`Error::InvalidUtf8`] with their file, offset and value.
    #[default]
    Refuse,
    /// Each maximal invalid part is read as U+FFFD.
    Replace,
}

/// A file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TextFile {
    pub(super) path: PathBuf,
    /// Bytes to read from its start.
    pub(super) bytes: u64,
}

/// The text files of a corpus, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFiles {
    pub(super) files: Vec<TextFile>,
    pub(super) invalid_utf8: InvalidUtf8,
}

impl TextFiles {
    /// Collects a corpus: files as they are given, and for a folder all files below it that have one of the endings
    /// and are not empty, sorted by name on each level. Links to files are followed, links to folders within a folder
    /// are not.
    ///
    /// The corpus is these files' text, one after the other with nothing in between; a byte order mark is a character of it.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing or unreadable file or folder, [`Error::EmptyFile`] for an empty file that was given
    /// itself, [`Error::NoFiles`] for a folder without a file to take, [`Error::InvalidConfig`] for no path at all or
    /// a limit below the first character's bytes.
    pub fn collect<P: AsRef<Path>>(paths: &[P], options: &TextOptions) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::config("paths", "none", "at least one file or folder"));
        }
        if options.max_bytes == Some(0) {
            return Err(Error::config("max_bytes", 0, "at least 1"));
        }
        let mut files = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let metadata = fs::metadata(path).map_err(Error::io(path))?;
            if metadata.is_dir() {
                let before = files.len();
                walk(path, &options.endings, &mut files)?;
                if files.len() == before {
                    return Err(Error::NoFiles { path: path.to_path_buf(), endings: options.endings.clone() });
                }
            } else if metadata.len() == 0 {
                return Err(Error::EmptyFile { path: path.to_path_buf() });
            } else {
                files.push(TextFile { path: path.to_path_buf(), bytes: metadata.len() });
            }
        }
        if let Some(limit) = options.max_bytes {
            let mut rest = limit;
            for file in &mut files {
                let is_cut = file.bytes > rest;
                file.bytes = file.bytes.min(rest);
                rest -= file.bytes;
                if is_cut {
                    file.bytes = chunks::whole_characters_of(file)?;
                }
            }
            files.retain(|file| file.bytes > 0);
            if files.is_empty() {
                return Err(Error::config("max_bytes", limit, "as many as the first character has"));
            }
        }
        Ok(Self { files, invalid_utf8: options.invalid_utf8 })
    }

    /// The paths, in order.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Bytes of text in all.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What the corpus is called in errors: its file, or the first of them and how many more there are.
    #[must_use]
    pub fn name(&self) -> String {
        let first = self.files.first().map_or(String::new(), |file| file.path.display().to_string());
        match self.files.len() {
            0 | 1 => first,
            count => format!("{first} and {} more", count - 1),
        }
    }

    /// A sum over the bytes of all files and where they end: the same text has the same sum wherever it lies. Reads all of
    /// it.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn fingerprint(&self) -> Result<Checksum> {
        let mut hasher = Hasher::default();
        for file in &self.files {
            let mut length = 0;
            chunks::for_each_bytes(file, |_, bytes| {
                length += bytes.len() as u64;
                hasher.update(bytes);
                Ok(())
            })?;
            hasher.update(&length.to_le_bytes());
        }
        Ok(hasher.finish())
    }

    /// Hands the corpus over in pieces of some megabytes.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::InvalidUtf8`] as the policy says.
    pub fn for_each_text(&self, mut each: impl FnMut(&str)) -> Result<()> {
        for file in &self.files {
            chunks::for_each_text(file, self.invalid_utf8, |_, text| {
                each(text);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// At most `max_bytes` of text: everything if that is enough, else pieces spread evenly over the corpus, which
    /// begin and end between words where there are any.
    ///
    /// # Errors
    /// As for [`for_each_text`](Self::for_each_text).
    pub fn sample(&self, max_bytes: u64) -> Result<Vec<String>> {
        // Of each block either all or nothing is taken: `taken` of `blocks`, at equal distances.
        let block_bytes = max_bytes.clamp(1, 1 << 16);
        let blocks = self.total_bytes().div_ceil(block_bytes);
        let taken = if max_bytes >= self.total_bytes() { blocks } else { max_bytes / block_bytes };
        let share = |block: u64| u128::from(block) * u128::from(taken) / u128::from(blocks);
        let mut samples = Vec::new();
        // Where the file begins in the whole corpus.
        let mut begin = 0;
        for file in &self.files {
            let end = begin + file.bytes;
            let mut ranges: Vec<Range<u64>> = Vec::new();
            for block in begin / block_bytes..end.div_ceil(block_bytes) {
                if share(block) == share(block + 1) {
                    continue;
                }
                let range = (block * block_bytes).max(begin) - begin..((block + 1) * block_bytes).min(end) - begin;
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
            for range in ranges {
                samples.push(chunks::read_words(file, range, self.invalid_utf8)?);
            }
            begin = end;
        }
        Ok(samples)
    }
}

/// Appends the files below `folder`, entries in the order of their names.
fn walk(folder: &Path, endings: &[String], files: &mut Vec<TextFile>) -> Result<()> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut entries = entries.map_err(Error::io(folder))?;
    entries.sort_unstable_by_key(|entry| entry.file_name());
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(Error::io(&path))?.is_dir() {
            walk(&path, endings, files)?;
        } else if has_ending(&path, endings) {
            let metadata = fs::metadata(&path).map_err(Error::io(&path))?;
            if metadata.is_file() && metadata.len() > 0 {
                files.push(TextFile { path, bytes: metadata.len() });
            }
        }
    }
    Ok(())
}

fn has_ending(path: &Path, endings: &[String]) -> bool {
    path.extension()
        .and_then(|found| found.to_str())
        .is_some_and(|found| endings.iter().any(|ending| ending.trim_start_matches('.').eq_ignore_ascii_case(found)))
}

/// Cuts `text` into pieces of at most 64 KiB that are tokenized one by one, each ending where a word does.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> + Send {
    const PIECE: usize = 1 << 16;
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = if rest.len() <= PIECE { rest.len() } else { split_before(&rest.as_bytes()[..PIECE]) };
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}
