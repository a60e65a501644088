//! Cutting text where GPT-2's pre-tokenizer is sure to cut it, and remembering the tokens of the parts.

use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use crate::Result;
use crate::data::word_index::WordIndex;

/// What a byte can be to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Digit,
    Space,
    Apostrophe,
    /// Any other ASCII character.
    Mark,
    /// Part of a character outside ASCII, of which nothing is known.
    Other,
}

const fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Digit,
        b' ' | 9..=13 => Class::Space,
        b'\'' => Class::Apostrophe,
        0..=127 => Class::Mark,
        _ => Class::Other,
    }
}

/// Whether GPT-2's pre-tokens always end between neighbours of these classes.
///
/// They are the matches, from left to right, of
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`. No alternative goes on from a letter
/// to anything but letters, nor from a digit to anything but digits; from a mark only to what is neither letter, digit
/// nor space, except that an apostrophe may take letters along. A space may belong to what follows it.
const fn ends_between(before: Class, after: Class) -> bool {
    use Class::{Apostrophe, Digit, Letter, Mark, Other, Space};
    match (before, after) {
        (Space | Other, _) | (_, Other) | (Letter, Letter) | (Digit, Digit) | (Apostrophe, Letter) => false,
        (Letter | Digit, _) => true,
        (Mark | Apostrophe, _) => matches!(after, Letter | Digit | Space),
    }
}

/// Of each byte, the bit of its class, and the bits of those before which a word ends with it.
static CUTS: [(u8, u8); 256] = {
    let (mut cuts, mut byte) = ([(0, 0); 256], 0);
    while byte < 256 {
        let mut after = 0;
        while after < 256 {
            if ends_between(class(byte as u8), class(after as u8)) {
                cuts[byte].1 |= 1 << class(after as u8) as u8;
            }
            after += 1;
        }
        cuts[byte].0 = 1 << class(byte as u8) as u8;
        byte += 1;
    }
    cuts
};

/// The parts of `text` between sure cuts: a word with the white space before it, a number, a run of marks.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let bytes = rest.as_bytes();
        let end = bytes.windows(2).position(|pair| CUTS[pair[0] as usize].1 & CUTS[pair[1] as usize].0 != 0);
        let (word, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// The tokens of words seen before. It changes how fast words are encoded, never how.
#[derive(Default)]
pub(super) struct WordCache(RwLock<Seen>);

/// Words by number, and the tokens of all of them one after the other.
#[derive(Default)]
struct Seen {
    words: WordIndex,
    tokens: Vec<u32>,
    /// Where the tokens of each word end.
    ends: Vec<u32>,
}

impl Seen {
    #[inline]
    fn get(&self, word: &str) -> Option<&[u32]> {
        let number = self.words.get(word.as_bytes())? as usize;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.tokens[start as usize..self.ends[number] as usize])
    }

    /// Another thread may have met the word meanwhile.
    fn insert(&mut self, word: &str, tokens: &[u32]) {
        let number = self.words.insert(word.as_bytes());
        if number == u32::try_from(self.ends.len()).ok() {
            self.tokens.extend_from_slice(tokens);
            self.ends.push(self.tokens.len() as u32);
        }
    }
}

impl WordCache {
    /// Words remembered in all, some tens of megabytes.
    const MAXIMUM_WORDS: usize = 1 << 18;
    /// Longer words hardly come again.
    const MAXIMUM_WORD_BYTES: usize = 32;

    /// Appends the tokens of `text`, word by word; `encode` is asked for words not seen before.
    pub(super) fn encode(
        &self,
        text: &str,
        tokens: &mut Vec<u32>,
        encode: impl Fn(&str, &mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = HashMap::<&str, Box<[u32]>>::new();
        for word in words(text) {
            if let Some(seen) = known.get(word).or_else(|| fresh.get(word).map(AsRef::as_ref)) {
                tokens.extend_from_slice(seen);
                continue;
            }
            let before = tokens.len();
            encode(word, tokens)?;
            if word.len() <= Self::MAXIMUM_WORD_BYTES {
                fresh.insert(word, tokens[before..].into());
            }
        }
        drop(known);
        if !fresh.is_empty() {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            let room = Self::MAXIMUM_WORDS.saturating_sub(known.words.len());
            fresh.into_iter().take(room).for_each(|(word, tokens)| known.insert(word, &tokens));
        }
        Ok(())
    }
}

impl fmt::Debug for WordCache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("WordCache")
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn words_are_cut_where_they_end() {
        let text = "let x1 = foo_bar(\"don't\");\n\n    né 12é\t!";
        let found: Vec<_> = words(text).collect();
        let expected = ["let", " x", "1", " =", " foo", "_", "bar", "(\"", "don", "'t", "\");", "\n\n    né 12é\t!"];
        assert_eq!(found, expected);
        assert_eq!(words("").count(), 0);
    }

    /// Every text of up to five characters, two or more of each class: cuts are a subset of the pre-tokenizer's.
    #[test]
    fn every_cut_is_one_of_the_pre_tokenizer() {
        let alphabet = ['s', 'é', '7', '²', ' ', '\n', '\u{a0}', '\'', '!', '\u{301}', '\u{1}'];
        let byte_level = ByteLevel::new(false, false, true);
        let (mut texts, mut cuts) = (vec![String::new()], 0);
        for _ in 0..5 {
            texts = texts.iter().flat_map(|text| alphabet.map(|character| format!("{text}{character}"))).collect();
            for text in &texts {
                let mut pre_tokenized = PreTokenizedString::from(text.as_str());
                byte_level.pre_tokenize(&mut pre_tokenized).unwrap();
                let splits = pre_tokenized.get_splits(OffsetReferential::Original, OffsetType::Byte);
                let starts: Vec<usize> = splits.into_iter().map(|(_, (start, _), _)| start).collect();
                let mut at = 0;
                for word in words(text) {
                    assert!(starts.contains(&at), "{text:?} is cut at {at}, not only at {starts:?}");
                    at += word.len();
                    cuts += 1;
                }
            }
        }
        assert!(cuts > texts.len());
    }
}
