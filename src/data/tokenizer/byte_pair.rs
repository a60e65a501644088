//! Byte-pair encoding through the `tokenizers` crate.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    ModelWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Trainer,
};

use super::words::{WordCache, words};
use crate::data::text::pieces;
use crate::{Error, Result};

/// More tokens than any vocabulary in use has; a file that claims more is not believed.
const MAXIMUM_VOCABULARY: usize = 1 << 24;

/// The trainer counts pairs in 31 bits.
const MAXIMUM_SAMPLE_BYTES: usize = i32::MAX as usize;

/// GPT-2's pre-tokens, without a space before the text.
const BYTE_LEVEL: fn() -> ByteLevel = || ByteLevel::new(false, true, true);

/// A tokenizer of the `tokenizers` crate, trained here or loaded from a Hugging Face `tokenizer.json`.
///
/// Special tokens that stand in a text are recognised as the file says; none are added. Padding, truncation and
/// dropout, which a file may ask for, are switched off. A loaded tokenizer that has neither bytes nor an unknown token
/// leaves out what it cannot encode.
///
/// With GPT-2's pre-tokens, as trained here, text is encoded word by word and words are remembered, which is many
/// times faster than the crate's own way. Other loaded tokenizers take that way. Clones share the memory.
#[derive(Clone, Debug)]
pub struct BytePairTokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    vocabulary_size: usize,
    /// Where words can be encoded one by one, as long as none of `added` stands in the text.
    cache: Option<Arc<WordCache>>,
    added: Vec<String>,
}

impl BytePairTokenizer {
    pub(super) fn train<S: AsRef<str> + Sync>(texts: &[S], vocabulary_size: usize) -> Result<Self> {
        if !(256..=MAXIMUM_VOCABULARY).contains(&vocabulary_size) {
            return Err(Error::config("vocabulary_size", vocabulary_size, "256 to 2^24 for byte-pair encoding"));
        }
        let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        if !(1..=MAXIMUM_SAMPLE_BYTES).contains(&bytes) {
            return Err(Error::Tokenizer(format!("byte pairs cannot be learnt from {bytes} bytes of text")));
        }
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocabulary_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut model = BPE::default();
        trainer
            .feed(texts.iter().flat_map(|text| pieces(text.as_ref())), pre_tokens)
            .and_then(|()| trainer.train(&mut model))
            .map_err(tokenizer_error)?;
        let mut trained = tokenizers::Tokenizer::new(model);
        trained.with_pre_tokenizer(Some(BYTE_LEVEL())).with_decoder(Some(BYTE_LEVEL()));
        // What was trained is taken through its saved form, so that it is the tokenizer that a later load gives.
        Self::from_json(trained.to_string(false).map_err(tokenizer_error)?.as_bytes()).map_err(Error::Tokenizer)
    }

    /// Reads a `tokenizer.json`, or says what is wrong with it.
    pub(super) fn from_json(json: &[u8]) -> std::result::Result<Self, String> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        let ids = inner.get_vocab(true);
        let (token, &last) = ids.iter().max_by_key(|(_, id)| **id).ok_or("the vocabulary is empty")?;
        let vocabulary_size = last as usize + 1;
        if vocabulary_size > MAXIMUM_VOCABULARY {
            return Err(format!("token {token:?} has the id {last}, but ids end at {MAXIMUM_VOCABULARY}"));
        }
        let added: Vec<String> = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let by_words = matches!(inner.get_model(), ModelWrapper::BPE(_) | ModelWrapper::WordLevel(_))
            && inner.get_normalizer().is_none()
            && matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(byte_level))
                if byte_level.use_regex && !byte_level.add_prefix_space)
            // Each is searched for in every text.
            && added.len() <= 16;
        let cache = by_words.then(Arc::default);
        Ok(Self { inner: Arc::new(inner), vocabulary_size, cache, added })
    }

    /// The Hugging Face `tokenizer.json`.
    pub(super) fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(tokenizer_error)
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        let before = tokens.len();
        match &self.cache {
            Some(cache) if !self.added.iter().any(|added| text.contains(added)) => {
                cache.encode(text, tokens, |word, tokens| self.encode_directly(word, tokens))
            }
            _ => self.encode_directly(text, tokens),
        }
        .inspect_err(|_| tokens.truncate(before))
    }

    fn encode_directly(&self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(Error::Tokenizer)?;
        tokens.extend(encoding.get_ids());
        Ok(())
    }

    /// The text of ids below the vocabulary's size; a decoder that fails gives U+FFFD.
    pub(super) fn decode(&self, tokens: &[u32]) -> String {
        // An empty list is not for every decoder; ids in gaps of the vocabulary are no part of the list.
        if tokens.iter().all(|&token| self.inner.id_to_token(token).is_none()) {
            return String::new();
        }
        guarded(|| self.inner.decode(tokens, false)).unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string())
    }
}

/// GPT-2's pre-tokens of `text`, each byte as the character that stands for it.
pub(super) fn pre_tokens(text: &str) -> tokenizers::Result<Vec<String>> {
    let mut pre_tokens = Vec::new();
    let mut seen = HashMap::new();
    for word in words(text) {
        if !seen.contains_key(word) {
            let mut pre_tokenized = PreTokenizedString::from(word);
            BYTE_LEVEL().pre_tokenize(&mut pre_tokenized)?;
            let splits = pre_tokenized.get_splits(OffsetReferential::Original, OffsetType::Byte);
            seen.insert(word, splits.into_iter().map(|(pre_token, ..)| pre_token.to_owned()).collect::<Vec<_>>());
        }
        pre_tokens.extend_from_slice(&seen[word]);
    }
    Ok(pre_tokens)
}

/// Runs a function of the `tokenizers` crate, which panics on some contradictions in a file, such as a prefix longer
/// than the tokens that should have it. (Where panics abort, such a file still does.)
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer contradicts itself".to_owned()),
    }
}

fn tokenizer_error(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trained() -> BytePairTokenizer {
        BytePairTokenizer::train(&["it's the 1st, 'the' 2nd'll\n\n  it isn't: né né, the rest is the same"], 300)
            .unwrap()
    }

    fn both_ways(tokenizer: &BytePairTokenizer, text: &str) -> [Vec<u32>; 2] {
        let (mut by_words, mut directly) = (Vec::new(), Vec::new());
        tokenizer.encode(text, &mut by_words).unwrap();
        tokenizer.encode_directly(text, &mut directly).unwrap();
        [by_words, directly]
    }

    #[test]
    fn an_added_token_is_recognised_among_words() {
        let mut json: serde_json::Value = serde_json::from_str(&trained().to_json().unwrap()).unwrap();
        json["added_tokens"] = serde_json::json!([{"id": 300, "content": "the|re st", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
        let last = trained().vocabulary_size() as u32;
        json["added_tokens"][0]["id"] = last.into();
        let tokenizer = BytePairTokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert!(tokenizer.cache.is_some());
        let [by_words, directly] = both_ways(&tokenizer, "it's the|re st");
        assert_eq!(by_words, directly);
        assert_eq!(by_words.last(), Some(&last));
    }

    #[test]
    fn other_pre_tokenizers_are_not_cut_into_words() {
        let json: serde_json::Value = serde_json::from_str(&trained().to_json().unwrap()).unwrap();
        for (key, value) in [
            ("pre_tokenizer", serde_json::json!({"type": "Whitespace"})),
            ("pre_tokenizer", serde_json::Value::Null),
            ("normalizer", serde_json::json!({"type": "Lowercase"})),
        ] {
            let mut json = json.clone();
            json[key] = value;
            assert!(BytePairTokenizer::from_json(json.to_string().as_bytes()).unwrap().cache.is_none());
        }
    }

    proptest! {
        #[test]
        fn word_by_word_gives_the_same_tokens(text in "([a-z'é ]|[ \n\tA'2!é²\u{301}\u{a0}]|the|'s| 'll){0,40}") {
            static TOKENIZER: std::sync::LazyLock<BytePairTokenizer> = std::sync::LazyLock::new(trained);
            // Twice, so that the second time all words are remembered.
            for _ in 0..2 {
                let [by_words, directly] = both_ways(&TOKENIZER, &text);
                prop_assert_eq!(by_words, directly);
            }
        }
    }
}
