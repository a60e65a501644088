//! The pairs of texts: from files, or from Rust sources that every machine has which built this crate.

use std::path::{Path, PathBuf};

use cllm::Result;
use cllm::data::{PairFormat, PairReader, PairStore, PairStoreBuilder, TextFiles, Tokenizer, TokenizerSource};

use crate::corpus;
use crate::flags::Flags;

/// Bytes of Rust source that pairs are looked for in.
const SOURCE_BYTES: u64 = 64 << 20;

/// Where pairs come from.
pub enum Pairs {
    Files { paths: Vec<PathBuf>, format: Option<PairFormat>, hard_negatives: usize },
    Texts(Vec<Vec<String>>),
}

impl Pairs {
    /// The pairs that the flags ask for, and the files that they are in.
    pub fn collect(flags: &Flags) -> Result<(Self, Vec<PathBuf>)> {
        if !flags.data.is_empty() {
            return Ok((Self::of_files(flags), flags.data.clone()));
        }
        let sources = corpus::collect(&[], Some(SOURCE_BYTES))?;
        Ok((Self::of_rust_sources(&sources)?, sources.paths().map(Path::to_path_buf).collect()))
    }

    /// Those that `collect` found in `files`.
    pub fn collect_again(flags: &Flags, files: &[PathBuf]) -> Result<Self> {
        if !flags.data.is_empty() {
            return Ok(Self::of_files(flags));
        }
        Self::of_rust_sources(&corpus::collect_again(files, true, Some(SOURCE_BYTES))?)
    }

    fn of_files(flags: &Flags) -> Self {
        let (format, hard_negatives) = (flags.format.map(PairFormat::from), flags.hard_negatives);
        Self::Files { paths: flags.data.clone(), format, hard_negatives }
    }

    /// What the documentation of functions says, and their signatures.
    fn of_rust_sources(sources: &TextFiles) -> Result<Self> {
        let mut pairs = Vec::new();
        let mut comment = String::new();
        sources.for_each_text(|text| {
            for line in text.lines().map(str::trim) {
                if let Some(words) = line.strip_prefix("///") {
                    // Lists, headings and code say little about what a function does.
                    let words = words.trim();
                    if words.starts_with(|first: char| first.is_alphabetic()) && comment.len() < 400 {
                        comment.push_str(words);
                        comment.push(' ');
                    }
                } else if !line.starts_with("#[") {
                    let signature = line.strip_prefix("pub ").unwrap_or(line);
                    if signature.starts_with("fn ") && comment.len() > 20 {
                        pairs.push(vec![comment.trim().to_owned(), signature.trim_end_matches(['{', ' ']).to_owned()]);
                    }
                    comment.clear();
                }
            }
        })?;
        // Copies of a crate, or of a macro's text, would be negatives of themselves; files that lie side by side are alike.
        pairs.sort_unstable();
        pairs.dedup_by(|a, b| a[0] == b[0] || a[1] == b[1]);
        pairs.sort_by_key(|pair| pair.iter().flat_map(|text| text.bytes()).fold(7u32, hash));
        Ok(Self::Texts(pairs))
    }

    fn readers(&self) -> impl Iterator<Item = Result<PairReader>> {
        let (paths, format, hard_negatives) = match self {
            Self::Files { paths, format, hard_negatives } => (&paths[..], *format, *hard_negatives),
            Self::Texts(_) => (&[][..], None, 0),
        };
        paths
            .iter()
            .map(move |path| PairReader::open(path, format.map_or_else(|| PairFormat::of(path), Ok)?, hard_negatives))
    }

    /// Trains the tokenizer on the first texts, or loads it.
    pub fn tokenizer(&self, source: &TokenizerSource) -> Result<Tokenizer> {
        let mut sample = Sample::default();
        let mut texts = Vec::new();
        for reader in self.readers() {
            let mut reader = reader?;
            while sample.bytes < TokenizerSource::SAMPLE_BYTES && reader.read(&mut texts)? {
                texts.iter().for_each(|text| sample.push(text));
            }
        }
        if let Self::Texts(pairs) = self {
            pairs.iter().flatten().for_each(|text| sample.push(text));
        }
        source.train(&sample.pieces)
    }

    /// All pairs as tokens.
    pub fn tokenize(&self, tokenizer: &Tokenizer, max_tokens: usize) -> Result<PairStore> {
        let hard_negatives = if let Self::Files { hard_negatives, .. } = self { *hard_negatives } else { 0 };
        let mut builder = PairStoreBuilder::new(tokenizer.vocabulary_size(), hard_negatives)?;
        if let Self::Texts(pairs) = self {
            builder.push_texts(pairs, tokenizer, max_tokens)?;
        }
        for reader in self.readers() {
            builder.read(&mut reader?, tokenizer, max_tokens)?;
        }
        Ok(builder.finish())
    }
}

/// Texts in pieces of some kilobytes, a text a line: words are counted faster in a few long texts than in many short ones.
#[derive(Default)]
struct Sample {
    pieces: Vec<String>,
    bytes: u64,
}

impl Sample {
    fn push(&mut self, text: &str) {
        if self.pieces.last().is_none_or(|piece| piece.len() > 1 << 15) {
            self.pieces.push(String::new());
        }
        let piece = self.pieces.last_mut().expect("there is a piece");
        piece.push_str(text);
        piece.push('\n');
        self.bytes += text.len() as u64;
    }
}

/// FNV-1a: an order that has nothing to do with where the texts come from.
fn hash(state: u32, byte: u8) -> u32 {
    (state ^ u32::from(byte)).wrapping_mul(16_777_619)
}
