//! How good word vectors are, on the usual sets of questions: the figures of gensim's `evaluate_word_pairs` and
//! `evaluate_word_analogies` (`KeyedVectors`, 4.4).
//!
//! As there, with its defaults: words are compared in upper case, the first (most frequent) of several that become the
//! same being taken; a question with a word that has no vector is left out, and counted; lines that are no questions are
//! passed over, and counted. Other than there, a byte order mark at the beginning of a file is no part of its first word,
//! and blank lines and comments (`#`) may stand before the first section of analogies.

mod analogies;
mod correlation;
mod pairs;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

pub use analogies::{AnalogyReport, AnalogySection, word_analogies};
pub use correlation::spearman;
pub use pairs::{PairReport, word_pairs};

use crate::{Error, Result, WordVectors};

/// The longest line of a file of questions that is read, in bytes.
const LONGEST_LINE: u64 = 1 << 16;

/// The first `first` words in upper case, and their rows. Only ever asked for single words: its order is never seen.
fn upper_case(vectors: &WordVectors, first: Option<usize>) -> HashMap<String, u32> {
    let count = first.unwrap_or(usize::MAX).min(vectors.len());
    let mut rows = HashMap::with_capacity(count);
    for (id, word) in vectors.words().take(count).enumerate() {
        rows.entry(word.to_uppercase()).or_insert(id as u32);
    }
    rows
}

/// Whether a file holds analogies, for [`word_analogies`], or else judged pairs, for [`word_pairs`]: whether its first line
/// that is neither blank nor a comment (`#`) is the head of a section, `: name`.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidRow`] for a line that is not UTF-8 or has 64 KiB.
pub fn holds_analogies(path: impl AsRef<Path>) -> Result<bool> {
    let mut holds = None;
    for_each_line(path.as_ref(), |_, line| {
        if !is_blank_or_comment(line) {
            holds.get_or_insert_with(|| section_name(line).is_some());
        }
        Ok(())
    })?;
    Ok(holds.unwrap_or(false))
}

/// The name in the head of a section of analogies.
fn section_name(line: &str) -> Option<&str> {
    line.strip_prefix(": ").map(str::trim)
}

fn is_blank_or_comment(line: &str) -> bool {
    line.starts_with('#') || line.trim().is_empty()
}

/// Calls `take` with every line of a text file, without its end or a leading byte order mark, and its number, counted from
/// 1.
fn for_each_line(path: &Path, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut file).take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(Error::io(path))?;
        if read == 0 {
            break;
        }
        if read as u64 == LONGEST_LINE {
            return Err(Error::row(path, number, format!("the line has {LONGEST_LINE} bytes or more")));
        }
        let text = std::str::from_utf8(&line).map_err(|error| {
            let at = error.valid_up_to();
            Error::row(path, number, format!("not UTF-8: byte 0x{:02x} at {at}", line[at]))
        })?;
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        let text = text.strip_suffix('\n').unwrap_or(text);
        take(number, text.strip_suffix('\r').unwrap_or(text))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_mark_nor_blank_lines_nor_comments_hide_what_a_file_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let holds = |text: &str| {
            std::fs::write(&path, text).unwrap();
            holds_analogies(&path).unwrap()
        };
        for before in ["", "\u{feff}", "\n", " \r\n\n", "# of\tfour\twords\n", "\u{feff}# a comment\n\n#: 2\n"] {
            assert!(holds(&format!("{before}: family\nman woman king queen\n")), "{before:?}");
            assert!(!holds(&format!("{before}tiger\tcat\t7.35\n: family\n")), "{before:?}");
            assert!(!holds(&format!("{before}:\t;\t3\n")), "{before:?}");
            assert!(!holds(before), "{before:?}");
        }
        assert!(matches!(holds_analogies(folder.path().join("absent")), Err(Error::Io { .. })));
    }
}
