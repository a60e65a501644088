//! From text to batches: files → tokens → sequences.
//!
//! ```no_run
//! use cllm::data::{self, Batch, BatchOrder, SequenceSource, TextFiles, TextOptions, TokenizerSource};
//!
//! let corpus = TextFiles::collect(&["books/", "notes.txt"], &TextOptions::default())?;
//! let tokenizer = "bpe:4096".parse::<TokenizerSource>()?.build(&corpus)?;
//! let tokens = data::tokenize(&corpus, &tokenizer, "books.tokens")?;
//! let (training, validation) = tokens.split_validation(0.1)?;
//! let training = SequenceSource::new(training, BatchOrder::Random, 8, 128, 42)?;
//! let mut batch = Batch::zeros(8, 128);
//! training.fill(0, &mut batch)?;
//! # let _ = validation;
//! # Ok::<(), cllm::Error>(())
//! ```
//!
//! **Encoding.** Text files are UTF-8. A byte that is not is an error that names the file, the offset and the byte,
//! unless [`InvalidUtf8::Replace`] is asked for; the byte tokenizer takes any bytes as they are. Nothing is
//! normalised: line ends, byte-order marks and case reach the tokenizer as they stand in the file.
//!
//! **Memory.** A corpus is read in chunks and never held. Its tokens are held in memory if the text has at most
//! [`IN_MEMORY_BYTES`], and otherwise written to a token file from which every sequence is read when it is needed.
//!
//! **Order.** Every batch is a pure function of the seed and the step.

use std::path::Path;

use rayon::prelude::*;

use crate::{Error, Result};

mod batch;
mod chunks;
mod negatives;
mod pairs;
mod permutation;
mod sequences;
mod text;
mod token_file;
mod token_store;
mod tokenizer;
mod word_index;
mod word_reader;
mod word_stream;
mod word_vocabulary;

pub use batch::Batch;
pub use negatives::AliasTable;
pub use pairs::{
    MAXIMUM_HARD_NEGATIVES, MAXIMUM_LINE_BYTES, PairBatch, PairFormat, PairReader, PairSource, PairStore,
    PairStoreBuilder, RowProblem, TokenRows,
};
pub use sequences::{BatchOrder, SequenceSource};
pub use text::{InvalidUtf8, TEXT_ENDINGS, TextFiles, TextOptions};
pub use token_file::TokenWriter;
pub use token_store::TokenStore;
#[cfg(feature = "tokenizers")]
pub use tokenizer::BytePairTokenizer;
pub use tokenizer::{CharacterTokenizer, Tokenizer, TokenizerSource};
pub(crate) use word_index::WordIndex;
pub use word_reader::WordSplit;
pub(crate) use word_stream::{StreamPlace, WordStream};
pub use word_vocabulary::WordVocabulary;

use text::{TextFile, pieces};
use token_store::TokenBuffer;

/// The largest corpus, in bytes of text, whose tokens [`tokenize`] holds in memory.
pub const IN_MEMORY_BYTES: u64 = 256 << 20;

/// The tokens of a corpus: in memory if its text has at most [`IN_MEMORY_BYTES`], else in the file `token_file`, which
/// is written and then read from.
///
/// # Errors
/// Those of [`TextFiles::tokenize`] and [`TextFiles::tokenize_to`].
pub fn tokenize(corpus: &TextFiles, tokenizer: &Tokenizer, token_file: impl AsRef<Path>) -> Result<TokenStore> {
    if corpus.total_bytes() <= IN_MEMORY_BYTES {
        corpus.tokenize(tokenizer)
    } else {
        corpus.tokenize_to(token_file, tokenizer)
    }
}

impl TextFiles {
    /// The corpus as tokens in memory.
    ///
    /// The text is encoded in pieces, in parallel on the rayon pool this is called in; the tokens do not depend on
    /// the number of threads. Pieces end where a word does, so for the built-in tokenizers, and for byte-pair encoding
    /// with GPT-2's pre-tokens or its successors', the tokens are those of the files encoded whole. A loaded tokenizer
    /// that treats the beginning of a text in a special way meets a beginning every 64 KiB.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::InvalidUtf8`] as the policy says, [`Error::UnknownCharacter`]
    /// with the file and the offset of a character that the tokenizer does not know (where invalid bytes were replaced
    /// before it, the offset counts the replacements).
    pub fn tokenize(&self, tokenizer: &Tokenizer) -> Result<TokenStore> {
        let mut buffer = TokenBuffer::new(&self.name(), tokenizer.vocabulary_size())?;
        self.for_each_tokens(tokenizer, |tokens| buffer.push(tokens))?;
        Ok(buffer.finish())
    }

    /// As [`tokenize`](Self::tokenize), through a token file at `path`; the tokens are never in memory as a whole.
    ///
    /// # Errors
    /// Those of [`tokenize`](Self::tokenize) and of [`TokenWriter`]. No file is left then, and one that was at `path`
    /// before stays.
    pub fn tokenize_to(&self, path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<TokenStore> {
        let mut writer = TokenWriter::create(path, tokenizer.vocabulary_size())?;
        self.for_each_tokens(tokenizer, |tokens| writer.write(tokens))?;
        writer.finish()
    }

    fn for_each_tokens(&self, tokenizer: &Tokenizer, mut each: impl FnMut(&[u32]) -> Result<()>) -> Result<()> {
        let mut tokens = Vec::new();
        for file in &self.files {
            match tokenizer {
                Tokenizer::Byte => chunks::for_each_bytes(file, |_, bytes| {
                    tokens.clear();
                    tokens.extend(bytes.iter().map(|&byte| u32::from(byte)));
                    each(&tokens)
                })?,
                _ => chunks::for_each_text(file, self.invalid_utf8, |offset, text| {
                    encode_pieces(file, offset, text, tokenizer)?.iter().try_for_each(|tokens| each(tokens))
                })?,
            }
        }
        Ok(())
    }
}

/// The tokens of each piece of `text`, which begins at `offset` in the file.
fn encode_pieces(file: &TextFile, offset: u64, text: &str, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let pieces: Vec<&str> = pieces(text).collect();
    let encode = |piece: &&str| {
        let mut tokens = Vec::with_capacity(piece.len() / 2);
        tokenizer.encode(piece, &mut tokens).map_err(|error| match error {
            Error::UnknownCharacter { offset: in_piece, character, .. } => Error::UnknownCharacter {
                what: file.path.display().to_string(),
                offset: offset + (piece.as_ptr() as usize - text.as_ptr() as usize) as u64 + in_piece,
                character,
            },
            other => other,
        })?;
        Ok(tokens)
    };
    // Collected before the first error is looked for, so that it is the first in the text whatever thread was faster.
    pieces.par_iter().map(encode).collect::<Vec<_>>().into_iter().collect()
}
