//! Byte-pair encoding through the `tokenizers` crate.
#![cfg(feature = "tokenizers")]

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

use crate::data::text::pieces;
use crate::{Error, Result};

/// More tokens than any vocabulary in use has; a file that claims more is not believed.
const MAXIMUM_VOCABULARY: usize = 1 << 24;

/// The trainer counts pairs in 31 bits.
const MAXIMUM_SAMPLE_BYTES: usize = i32::MAX as usize;

/// A tokenizer of the `tokenizers` crate, trained here or loaded from a Hugging Face `tokenizer.json`.
///
/// Special tokens that stand in a text are recognised as the file says; none are added. Padding, truncation and
/// dropout, which a file may ask for, are switched off. A loaded tokenizer that has neither bytes nor an unknown token
/// leaves out what it cannot encode.
#[derive(Clone, Debug)]
pub struct BytePairTokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary_size: usize,
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
        let byte_level = ByteLevel::new(false, false, true);
        let mut untrained =
            TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, DecoderWrapper>::new()
                .with_model(BPE::default())
                .with_pre_tokenizer(Some(byte_level))
                .with_decoder(Some(byte_level.into()))
                .build()
                .map_err(tokenizer_error)?;
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocabulary_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        // Small pieces, since a text under pre-tokenization takes many times its size.
        untrained.train(&mut trainer, texts.iter().flat_map(|text| pieces(text.as_ref()))).map_err(tokenizer_error)?;
        // What was trained is taken through its saved form, so that it is the tokenizer that a later load gives.
        Self::from_json(untrained.to_string(false).map_err(tokenizer_error)?.as_bytes()).map_err(Error::Tokenizer)
    }

    /// Reads a `tokenizer.json`, or says what is wrong with it.
    pub(super) fn from_json(json: &[u8]) -> std::result::Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
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
        Ok(Self { inner, vocabulary_size })
    }

    /// The Hugging Face `tokenizer.json`.
    pub(super) fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(tokenizer_error)
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        let encoding = self.inner.encode_fast(text, false).map_err(tokenizer_error)?;
        tokens.extend(encoding.get_ids());
        Ok(())
    }

    /// The text of ids below the vocabulary's size; a decoder that fails gives U+FFFD.
    pub(super) fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, false).unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string())
    }
}

fn tokenizer_error(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}
