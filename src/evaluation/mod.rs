//! How good word vectors are, on the usual sets of questions: the figures of gensim's `evaluate_word_pairs` and
//! `evaluate_word_analogies` (`KeyedVectors`, 4.4).
//!
//! As there, with its defaults: words are compared in upper case, the first (most frequent) of several that become the
//! same being taken; a question with a word that has no vector is left out, and counted; lines that are no questions are
//! passed over, and counted.

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

/// Calls `take` with every line of a text file, without its end, and its number, counted from 1.
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
        let text = text.strip_suffix('\n').unwrap_or(text);
        take(number, text.strip_suffix('\r').unwrap_or(text))?;
    }
    Ok(())
}
