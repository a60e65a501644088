//! Text to token ids and back.

#[cfg(feature = "tokenizers")]
mod byte_pair;
mod character;
mod saved;
mod source;
#[cfg(feature = "tokenizers")]
mod word_level;
#[cfg(feature = "tokenizers")]
mod words;

#[cfg(feature = "tokenizers")]
pub use byte_pair::BytePairTokenizer;
pub(super) use character::CharacterSet;
pub use character::CharacterTokenizer;
pub use source::TokenizerSource;

use crate::Result;

/// Turns text into token ids below [`vocabulary_size`](Self::vocabulary_size), and back.
///
/// No tokenizer changes the text first: line ends, case and byte-order marks stay as they are, unless a loaded
/// Hugging Face tokenizer says otherwise.
///
/// ```
/// use cllm::data::Tokenizer;
/// let tokenizer = Tokenizer::train_characters("hello")?;
/// let mut tokens = Vec::new();
/// tokenizer.encode("hole", &mut tokens)?;
/// assert_eq!(tokens, [1, 3, 2, 0]);
/// assert_eq!(tokenizer.decode(&tokens), "hole");
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Tokenizer {
    /// A token is a byte of the UTF-8 text: 256 tokens, which encode any bytes at all.
    Byte,
    /// A token is a character out of a fixed list.
    Character(CharacterTokenizer),
    /// Byte-pair encoding, or whatever else a Hugging Face `tokenizer.json` holds.
    #[cfg(feature = "tokenizers")]
    BytePair(Box<BytePairTokenizer>),
}

impl Tokenizer {
    /// The byte tokenizer.
    #[must_use]
    pub fn byte() -> Self {
        Self::Byte
    }

    /// A tokenizer of the characters in `text`, numbered from 0 in the order of their code points.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the text is empty.
    pub fn train_characters(text: &str) -> Result<Self> {
        let mut characters = CharacterSet::new();
        characters.insert(text);
        Ok(Self::Character(characters.into_tokenizer()?))
    }

    /// Trains byte-level byte-pair encoding (Sennrich, Haddow and Birch 2016, in GPT-2's form) on sample texts.
    ///
    /// The vocabulary is the 256 bytes, so that any text can be encoded, and then the pairs that were most frequent
    /// within GPT-2's pre-tokens, merged one at a time, ties going to the pair of the lowest ids. It ends up smaller
    /// than asked where the texts have no more pairs to merge. The same texts, in any order, give the same tokenizer.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for a `vocabulary_size` below 256 or above 2²⁴,
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if there is no text, or more of it than pairs can be counted in
    /// (2 GiB).
    #[cfg(feature = "tokenizers")]
    pub fn train_byte_pair<S: AsRef<str> + Sync>(texts: &[S], vocabulary_size: usize) -> Result<Self> {
        Ok(Self::BytePair(Box::new(BytePairTokenizer::train(texts, vocabulary_size)?)))
    }

    /// A tokenizer whose tokens are whole words: GPT-2's pre-tokens, a word with the blank before it, the most frequent of
    /// them in the texts (equally frequent ones in the order of their characters). Token 0 stands for all other words.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for a `vocabulary_size` below 2 or above 2²⁴,
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if there is no text.
    #[cfg(feature = "tokenizers")]
    pub fn train_words<S: AsRef<str>>(texts: &[S], vocabulary_size: usize) -> Result<Self> {
        Ok(Self::BytePair(Box::new(BytePairTokenizer::train_words(texts, vocabulary_size)?)))
    }

    /// Number of tokens: every id is below it.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        match self {
            Self::Byte => 256,
            Self::Character(characters) => characters.vocabulary_size(),
            #[cfg(feature = "tokenizers")]
            Self::BytePair(byte_pair) => byte_pair.vocabulary_size(),
        }
    }

    /// Appends the tokens of `text` to `tokens`.
    ///
    /// # Errors
    /// [`Error::UnknownCharacter`](crate::Error::UnknownCharacter) for a character that a character tokenizer does not
    /// know, [`Error::Tokenizer`](crate::Error::Tokenizer) if a loaded tokenizer fails. `tokens` is then as before.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::Byte => {
                tokens.extend(text.bytes().map(u32::from));
                Ok(())
            }
            Self::Character(characters) => characters.encode(text, tokens),
            #[cfg(feature = "tokenizers")]
            Self::BytePair(byte_pair) => byte_pair.encode(text, tokens),
        }
    }

    /// The text of `tokens`.
    ///
    /// The way back from bytes is lossy: what is not UTF-8, such as half a character at either end, becomes U+FFFD,
    /// as does every id outside the vocabulary.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut text = String::new();
        for (part, known) in tokens.split(|&token| token as usize >= self.vocabulary_size()).enumerate() {
            if part > 0 {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            match self {
                Self::Byte => {
                    let bytes: Vec<u8> = known.iter().map(|&token| token as u8).collect();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                Self::Character(characters) => text.extend(characters.decode(known)),
                #[cfg(feature = "tokenizers")]
                Self::BytePair(byte_pair) => text.push_str(&byte_pair.decode(known)),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_their_own_ids_and_half_a_character_is_replaced() {
        let mut tokens = vec![7];
        Tokenizer::byte().encode("aé", &mut tokens).unwrap();
        assert_eq!(tokens, [7, 97, 0xc3, 0xa9]);
        assert_eq!(Tokenizer::byte().decode(&tokens[1..3]), "a\u{fffd}");
    }

    #[test]
    fn ids_outside_the_vocabulary_are_replaced() {
        let characters = Tokenizer::train_characters("ab").unwrap();
        assert_eq!(characters.decode(&[0, 2, 1, u32::MAX]), "a\u{fffd}b\u{fffd}");
        assert_eq!(Tokenizer::byte().decode(&[97, 256, 98]), "a\u{fffd}b");
    }
}
