//! One token a character.

use crate::{Error, Result};

/// Marks a code point without a token.
const UNKNOWN: u32 = u32::MAX;

/// A tokenizer of a fixed list of characters, numbered in the order of their code points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharacterTokenizer {
    characters: Vec<char>,
    /// The token of each code point up to the last known one.
    tokens: Vec<u32>,
}

impl CharacterTokenizer {
    /// A tokenizer of characters that are in strictly ascending order.
    fn from_sorted(characters: Vec<char>) -> Self {
        let mut tokens = vec![UNKNOWN; characters.last().map_or(0, |&last| last as usize + 1)];
        for (token, &character) in characters.iter().enumerate() {
            tokens[character as usize] = token as u32;
        }
        Self { characters, tokens }
    }

    /// The characters, token 0 first.
    #[must_use]
    pub fn characters(&self) -> &[char] {
        &self.characters
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.characters.len()
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        let before = tokens.len();
        for (offset, character) in text.char_indices() {
            match self.tokens.get(character as usize) {
                Some(&token) if token != UNKNOWN => tokens.push(token),
                _ => {
                    tokens.truncate(before);
                    let (what, offset) = ("text".to_owned(), offset as u64);
                    return Err(Error::UnknownCharacter { what, offset, character });
                }
            }
        }
        Ok(())
    }

    /// The characters of known tokens.
    pub(super) fn decode(&self, tokens: &[u32]) -> impl Iterator<Item = char> {
        tokens.iter().map(|&token| self.characters[token as usize])
    }

    /// The tokenizer of saved characters, or what is wrong with them.
    pub(super) fn parse(characters: &str) -> std::result::Result<Self, String> {
        let characters: Vec<char> = characters.chars().collect();
        if characters.is_empty() {
            return Err("the list of characters is empty".to_owned());
        }
        if let Some(pair) = characters.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(format!(
                "character {:?} does not come before {:?} in the order of code points",
                pair[0], pair[1]
            ));
        }
        Ok(Self::from_sorted(characters))
    }
}

/// The characters seen so far: one flag a code point.
pub(in crate::data) struct CharacterSet(Vec<bool>);

impl CharacterSet {
    pub(in crate::data) fn new() -> Self {
        Self(vec![false; char::MAX as usize + 1])
    }

    pub(in crate::data) fn insert(&mut self, text: &str) {
        for character in text.chars() {
            self.0[character as usize] = true;
        }
    }

    pub(in crate::data) fn into_tokenizer(self) -> Result<CharacterTokenizer> {
        let seen: Vec<char> =
            (0..).zip(&self.0).filter(|(_, seen)| **seen).filter_map(|(point, _)| char::from_u32(point)).collect();
        if seen.is_empty() {
            return Err(Error::Tokenizer("there is no text to take characters from".to_owned()));
        }
        Ok(CharacterTokenizer::from_sorted(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(text: &str) -> Result<CharacterTokenizer> {
        let mut characters = CharacterSet::new();
        characters.insert(text);
        characters.into_tokenizer()
    }

    #[test]
    fn characters_are_sorted_by_code_point() {
        let tokenizer = trained("bé\na\u{10ffff}b").unwrap();
        assert_eq!(tokenizer.characters(), ['\n', 'a', 'b', 'é', '\u{10ffff}']);
        let mut tokens = Vec::new();
        tokenizer.encode("é\u{10ffff}\n", &mut tokens).unwrap();
        assert_eq!(tokens, [3, 4, 0]);
    }

    #[test]
    fn an_unknown_character_is_named_with_its_offset_and_leaves_no_tokens() {
        let tokenizer = trained("aé").unwrap();
        for unknown in ['b', '\u{1f600}'] {
            let mut tokens = vec![9];
            let error = tokenizer.encode(&format!("aéa{unknown}"), &mut tokens).unwrap_err();
            let expected =
                matches!(error, Error::UnknownCharacter { offset: 4, character, .. } if character == unknown);
            assert!(expected, "{error}");
            assert_eq!(tokens, [9]);
        }
    }

    #[test]
    fn no_text_gives_no_tokenizer() {
        assert!(matches!(trained("").unwrap_err(), Error::Tokenizer(_)));
    }

    #[test]
    fn saved_characters_must_ascend() {
        assert_eq!(CharacterTokenizer::parse("abz").unwrap(), trained("zab").unwrap());
        assert!(CharacterTokenizer::parse("").unwrap_err().contains("empty"));
        assert!(CharacterTokenizer::parse("ba").unwrap_err().contains("'b' does not come before 'a'"));
        assert!(CharacterTokenizer::parse("aa").unwrap_err().contains("'a' does not come before 'a'"));
    }
}
