//! Text out of tokens that come one at a time.

use crate::data::Tokenizer;

/// A character that is still incomplete has at most this many bytes, so at most this many tokens.
const MOST_INCOMPLETE: usize = 3;

/// Turns tokens into text as they come, in whole characters: a token that ends within a character is held back until the
/// rest of the character comes.
///
/// The pieces together are what [`Tokenizer::decode`] makes of all tokens.
///
/// ```
/// use cllm::data::Tokenizer;
/// use cllm::generate::TextStream;
/// let tokenizer = Tokenizer::byte();
/// let mut stream = TextStream::new(&tokenizer);
/// assert_eq!(stream.push(0x61), "a");
/// assert_eq!(stream.push(0xc3), "");
/// assert_eq!(stream.push(0xa9), "é");
/// assert_eq!(stream.finish(), "");
/// ```
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens given out last, and those held back.
    tokens: Vec<u32>,
    /// How many were given out. A decoder may treat the first token it sees in its own way, so the last ones are
    /// decoded once more, before those that follow.
    given: usize,
}

impl<'a> TextStream<'a> {
    /// A stream of `tokenizer`'s text.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), given: 0 }
    }

    /// The text that is complete with this token, perhaps none.
    #[must_use]
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        if !self.tokenizer.decode(&self.tokens).ends_with(char::REPLACEMENT_CHARACTER) {
            self.give(self.tokens.len())
        } else if self.tokens.len() - self.given > MOST_INCOMPLETE {
            // The first of them is no part of a character that can still be completed.
            self.give(self.given + 1)
        } else {
            String::new()
        }
    }

    /// The text of what is held back; half a character becomes U+FFFD.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.give(self.tokens.len())
    }

    /// The text of the held tokens before `end`.
    fn give(&mut self, end: usize) -> String {
        let before = self.tokenizer.decode(&self.tokens[..self.given]).len();
        let text = self.tokenizer.decode(&self.tokens[..end]).get(before..).unwrap_or_default().to_owned();
        self.tokens.drain(..self.given);
        self.given = end - self.given;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(tokenizer);
        let mut pieces: Vec<String> = tokens.iter().map(|&token| stream.push(token)).collect();
        pieces.push(stream.finish());
        assert_eq!(pieces.concat(), tokenizer.decode(tokens));
        pieces
    }

    #[test]
    fn characters_come_whole() {
        let tokens: Vec<u32> = "aß€😀b\u{fffd}c".bytes().map(u32::from).collect();
        let expected = ["a", "", "ß", "", "", "€", "", "", "", "😀", "b", "", "", "", "\u{fffd}c", ""];
        assert_eq!(pieces(&Tokenizer::byte(), &tokens), expected);
    }

    #[test]
    fn bytes_that_are_no_text_are_not_held_back_for_ever() {
        let garbage = pieces(&Tokenizer::byte(), &[0xff; 9]);
        assert_eq!(garbage.iter().filter(|piece| piece.is_empty()).count(), 3);
        // The last three bytes before the end could still begin a character, and here they do.
        let broken = pieces(&Tokenizer::byte(), &[0xff, 0xf0, 0x9f, 0x98, 0x80, 0x61]);
        assert_eq!(broken, ["", "", "", "\u{fffd}", "😀", "a", ""]);
        assert_eq!(pieces(&Tokenizer::byte(), &[0x61, 0xe2, 0x82]), ["a", "", "", "\u{fffd}"]);
    }

    #[cfg(feature = "tokenizers")]
    #[test]
    fn characters_split_over_byte_pairs_come_whole() {
        let tokenizer = Tokenizer::train_byte_pair(&["the cat sat on the mat"], 270).unwrap();
        let mut tokens = Vec::new();
        tokenizer.encode("the naïve 😀 mat", &mut tokens).unwrap();
        let pieces = pieces(&tokenizer, &tokens);
        assert!(pieces.iter().any(String::is_empty), "{pieces:?}");
        assert!(!pieces.concat().contains(char::REPLACEMENT_CHARACTER));
        assert!(pieces.iter().any(|piece| piece == "😀"), "{pieces:?}");
    }
}
