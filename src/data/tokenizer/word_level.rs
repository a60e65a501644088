//! A vocabulary of whole words.

use std::collections::HashMap;

use serde_json::{Map, json};

use super::BytePairTokenizer;
use super::byte_pair::pre_tokens;
use super::words::words;
use crate::data::text::pieces;
use crate::{Error, Result};

/// The token of all words outside the vocabulary.
const UNKNOWN: &str = "[UNK]";

impl BytePairTokenizer {
    /// A tokenizer of the most frequent of GPT-2's pre-tokens, in Hugging Face's form `WordLevel`; equally frequent ones
    /// in the order of their characters. Token 0 stands for all others.
    pub(super) fn train_words<S: AsRef<str>>(texts: &[S], vocabulary_size: usize) -> Result<Self> {
        if !(2..=1 << 24).contains(&vocabulary_size) {
            return Err(Error::config("vocabulary_size", vocabulary_size, "2 to 2^24 for words"));
        }
        // Words are cut into pre-tokens once each: that takes longer than to count them.
        let mut occurrences = HashMap::<&str, u64>::new();
        for word in texts.iter().flat_map(|text| pieces(text.as_ref())).flat_map(words) {
            *occurrences.entry(word).or_default() += 1;
        }
        let mut counts = HashMap::<String, u64>::new();
        for (word, count) in occurrences {
            for pre_token in pre_tokens(word).map_err(|error| Error::Tokenizer(error.to_string()))? {
                *counts.entry(pre_token).or_default() += count;
            }
        }
        if counts.is_empty() {
            return Err(Error::Tokenizer("words cannot be learnt from no text".to_owned()));
        }
        let mut words: Vec<(String, u64)> = counts.into_iter().filter(|(word, _)| word != UNKNOWN).collect();
        words.sort_unstable_by(|(word, count), (other, others)| others.cmp(count).then_with(|| word.cmp(other)));
        let kept = words.into_iter().take(vocabulary_size - 1).map(|(word, _)| word);
        let vocabulary: Map<_, _> =
            std::iter::once(UNKNOWN.to_owned()).chain(kept).enumerate().map(|(id, word)| (word, id.into())).collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": null,
            "decoder": byte_level,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
        });
        Self::from_json(tokenizer.to_string().as_bytes()).map_err(Error::Tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use crate::data::Tokenizer;

    #[test]
    fn frequent_words_are_tokens_and_others_are_unknown() {
        let texts = ["the cat and the dog", " the cat", " zebra"];
        let tokenizer = Tokenizer::train_words(&texts, 5).unwrap();
        assert_eq!(tokenizer.vocabulary_size(), 5);
        let encode = |text: &str| {
            let mut tokens = Vec::new();
            tokenizer.encode(text, &mut tokens).unwrap();
            tokens
        };
        // " cat" and " the" stand twice; of the others the first is "the", since the sign for a blank comes after letters.
        assert_eq!(encode("the cat the and"), [3, 1, 2, 4]);
        assert_eq!(encode(" cat zebra dog horse"), [1, 0, 0, 0]);
        assert_eq!(tokenizer.decode(&[2, 1]), " the cat");
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let mut again = Vec::new();
        Tokenizer::load(folder.path()).unwrap().encode(" cat zebra the", &mut again).unwrap();
        assert_eq!(again, [1, 0, 2]);
    }

    #[test]
    fn words_of_nothing_are_refused() {
        assert!(Tokenizer::train_words(&[""], 5).is_err());
        assert!(Tokenizer::train_words(&["a"], 1).is_err());
    }
}
