//! Where a tokenizer comes from, in one word.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{CharacterSet, Tokenizer};
use crate::data::TextFiles;
use crate::{Error, Result};

/// Where a tokenizer comes from, as a flag or a configuration says it: `byte`, `char`, `bpe:N`, `words:N`, or the path of a
/// `tokenizer.json` or of the folder that holds it.
///
/// ```
/// use cllm::data::TokenizerSource;
/// assert_eq!("bpe:4096".parse::<TokenizerSource>()?, TokenizerSource::BytePair { vocabulary_size: 4096 });
/// assert_eq!("runs/first".parse::<TokenizerSource>()?, TokenizerSource::File("runs/first".into()));
/// # Ok::<(), cllm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The byte tokenizer.
    Byte,
    /// A tokenizer of all characters of the corpus.
    Character,
    /// Byte-pair encoding, trained on a sample of the corpus of at most [`SAMPLE_BYTES`](Self::SAMPLE_BYTES).
    BytePair {
        /// Tokens that the vocabulary shall have.
        vocabulary_size: usize,
    },
    /// Whole words, the most frequent of such a sample.
    Words {
        /// Tokens that the vocabulary shall have.
        vocabulary_size: usize,
    },
    /// A saved tokenizer.
    File(PathBuf),
}

impl TokenizerSource {
    /// Bytes of the corpus that byte-pair encoding is trained on: pieces spread evenly over it.
    pub const SAMPLE_BYTES: u64 = 16 << 20;

    /// Trains the tokenizer on the corpus, or loads it.
    ///
    /// # Errors
    /// Those of reading the corpus, of training and of [`Tokenizer::load`]; [`Error::MissingFeature`] for byte-pair
    /// encoding without the feature `tokenizers`.
    pub fn build(&self, corpus: &TextFiles) -> Result<Tokenizer> {
        match self {
            Self::Character => {
                let mut characters = CharacterSet::new();
                corpus.for_each_text(|text| characters.insert(text))?;
                characters.into_tokenizer().map(Tokenizer::Character)
            }
            #[cfg(feature = "tokenizers")]
            Self::BytePair { .. } | Self::Words { .. } => self.train(&corpus.sample(Self::SAMPLE_BYTES)?),
            _ => self.train::<&str>(&[]),
        }
    }

    /// Trains the tokenizer on texts, or loads it.
    ///
    /// # Errors
    /// As for [`build`](Self::build).
    pub fn train<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Tokenizer> {
        match self {
            Self::Byte => Ok(Tokenizer::byte()),
            Self::Character => {
                let mut characters = CharacterSet::new();
                texts.iter().for_each(|text| characters.insert(text.as_ref()));
                characters.into_tokenizer().map(Tokenizer::Character)
            }
            #[cfg(feature = "tokenizers")]
            Self::BytePair { vocabulary_size } => Tokenizer::train_byte_pair(texts, *vocabulary_size),
            #[cfg(feature = "tokenizers")]
            Self::Words { vocabulary_size } => Tokenizer::train_words(texts, *vocabulary_size),
            #[cfg(not(feature = "tokenizers"))]
            Self::BytePair { .. } | Self::Words { .. } => {
                Err(Error::MissingFeature { what: format!("the tokenizer {self}"), feature: "tokenizers" })
            }
            Self::File(path) => Tokenizer::load(path),
        }
    }
}

impl FromStr for TokenizerSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "byte" => Ok(Self::Byte),
            "char" => Ok(Self::Character),
            "" => Err(Error::config("tokenizer", "", "byte, char, bpe:N, words:N or a file")),
            _ => match text.split_once(':') {
                Some((kind @ ("bpe" | "words"), size)) => {
                    let vocabulary_size = size.parse().map_err(|_| {
                        Error::config("tokenizer", text, format!("{kind}: and the size of the vocabulary"))
                    })?;
                    Ok(if kind == "bpe" { Self::BytePair { vocabulary_size } } else { Self::Words { vocabulary_size } })
                }
                _ => Ok(Self::File(text.into())),
            },
        }
    }
}

impl fmt::Display for TokenizerSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte => formatter.write_str("byte"),
            Self::Character => formatter.write_str("char"),
            Self::BytePair { vocabulary_size } => write!(formatter, "bpe:{vocabulary_size}"),
            Self::Words { vocabulary_size } => write!(formatter, "words:{vocabulary_size}"),
            Self::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}
