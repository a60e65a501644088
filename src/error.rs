//! The one error type of the crate.
//!
//! Every variant carries the operands a caller needs to act on it: what was expected, what was found, and where.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checksum, Difference};
use crate::data::RowProblem;

/// `Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong at the crate's boundary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that must hold something is empty.
    #[error("{}: the file is empty", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// A folder holds no file to read.
    #[error("{}: no file below this folder that is not empty and ends in one of {}", path.display(), endings.join(", "))]
    NoFiles {
        /// The folder.
        path: PathBuf,
        /// The endings that were looked for.
        endings: Vec<String>,
    },
    /// Text is not UTF-8.
    #[error("{}: invalid UTF-8: byte 0x{value:02x} at offset {offset}", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte, from the start of the file.
        offset: u64,
        /// That byte.
        value: u8,
    },
    /// A corpus has fewer tokens than one sequence and its shifted target need.
    #[error("{what}: {found} tokens, but one sequence needs {needed}")]
    TooFewTokens {
        /// Which corpus: a path, or the name of a split.
        what: String,
        /// Tokens it has.
        found: u64,
        /// Tokens one sequence and its target need.
        needed: u64,
    },
    /// No word of a corpus is frequent enough to enter the vocabulary.
    #[error("{what}: none of {words} words occurs {minimum_count} times")]
    NoWords {
        /// Which corpus.
        what: String,
        /// Words it has.
        words: u64,
        /// Occurrences that a word needs.
        minimum_count: u64,
    },
    /// A token id is not in the vocabulary.
    #[error("{what}: token {id} at position {position} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// Where the token stands: a path, or the name of an argument.
        what: String,
        /// Index of the token there.
        position: u64,
        /// The token id.
        id: u32,
        /// Number of tokens in the vocabulary.
        vocabulary: usize,
    },
    /// Text holds a character the tokenizer has never seen.
    #[error("{what}: character {character:?} at offset {offset} is not in the vocabulary")]
    UnknownCharacter {
        /// Where the text comes from.
        what: String,
        /// Byte offset of the character.
        offset: u64,
        /// The character.
        character: char,
    },
    /// A file's content is not what its format demands.
    #[error("{}: {problem}", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the offending value.
        problem: String,
    },
    /// A row of a file of text pairs is not what its format demands.
    #[error("{}: row {row}: {problem}", path.display())]
    InvalidPair {
        /// The file.
        path: PathBuf,
        /// The row, counted from 1.
        row: u64,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A tokenizer could not be trained, loaded or applied.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Something needs a feature that the crate was built without.
    #[error("{what} needs the feature `{feature}`")]
    MissingFeature {
        /// What needs it.
        what: String,
        /// Name of the Cargo feature.
        feature: &'static str,
    },
    /// A row of a table with its words cannot be read or written.
    #[error("{what}: row {row}: {problem}")]
    InvalidRow {
        /// The file, or what the table is.
        what: String,
        /// The row, counted from 1 without the header.
        row: u64,
        /// What is wrong, with the offending word or value.
        problem: String,
    },
    /// A word has no vector.
    #[error("{word:?} is not among the {words} words")]
    UnknownWord {
        /// The word.
        word: String,
        /// Number of words that have one.
        words: usize,
    },
    /// A configuration value is outside its domain.
    #[error("{name} = {value}: {expected}")]
    InvalidConfig {
        /// Name of the setting.
        name: &'static str,
        /// The value given.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// Two shapes that must agree do not.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// What has the shape: a tensor name or an argument.
        what: String,
        /// The shape it must have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A batch in which no target counts: the mean loss would be 0/0.
    #[error("the batch of {positions} positions has no target that counts: all are the ignore id")]
    NoTargets {
        /// Positions in the batch.
        positions: usize,
    },
    /// A tensor is missing from a file.
    #[error("{}: tensor {name} is missing", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A folder holds no checkpoint: none was written yet.
    #[error("{}: no checkpoint", path.display())]
    NoCheckpoint {
        /// The run folder.
        path: PathBuf,
    },
    /// A tensor is not what was saved.
    #[error("{}: tensor {tensor} has the checksum {found}, but {} was saved", path.display(),
        expected.map_or("none".into(), |sum| sum.to_string()))]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The sum in the manifest, if there is one.
        expected: Option<Checksum>,
        /// The sum of what is in the file.
        found: Checksum,
    },
    /// A run folder has another writer.
    #[error("{}: held by {}", path.display(), process.map_or("another process".into(), |id| format!("process {id}")))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as it says so.
        process: Option<u32>,
    },
    /// A run cannot be resumed as asked: too much differs.
    #[error("the run differs from its checkpoint in {}", list(differences))]
    Differences {
        /// All differences, those that would be accepted included.
        differences: Vec<Difference>,
    },
    /// BLAS computes wrong products.
    #[error(
        "BLAS core {core}: element {row}, {column} of a product of {rows} × {inner} and {inner} × {columns} \
        ({layout}) is {found} for {expected}"
    )]
    BrokenBlas {
        /// BLAS's name for its kernels.
        core: String,
        /// Rows of the product.
        rows: usize,
        /// Length of its sums.
        inner: usize,
        /// Columns of the product.
        columns: usize,
        /// Which operands are transposed, and what happens to the former content of the output.
        layout: &'static str,
        /// Where the wrong element is.
        row: usize,
        /// Where the wrong element is.
        column: usize,
        /// The right value.
        expected: f64,
        /// The value that BLAS gave.
        found: f32,
    },
    /// The loss, the gradient or a weight is not a finite number; parameters are as before the step.
    #[error("step {step}: {what} is {value}")]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// What is not finite: the loss, or the gradient or a value of a named parameter.
        what: String,
        /// The value.
        value: f64,
    },
    /// There are no tokens to continue.
    #[error("there is nothing to continue: the prompt is empty")]
    EmptyPrompt,
    /// A model's score of a next token is not a finite number, so none can be drawn.
    #[error("the score of token {token} at position {position} is {value}")]
    NonFiniteScore {
        /// Position of the token that was to be drawn.
        position: u64,
        /// The first token whose score is not finite.
        token: u32,
        /// The score.
        value: f32,
    },
    /// LAPACK could not do what was asked.
    #[error("linear algebra: {0}")]
    LinearAlgebra(String),
    /// The worker threads could not be started.
    #[error("worker threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

impl Error {
    /// An [`Error::Io`] for `path`, to use in `map_err`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::InvalidFile`] for `path`.
    pub(crate) fn invalid_file(path: impl AsRef<Path>, problem: impl ToString) -> Error {
        Error::InvalidFile { path: path.as_ref().to_path_buf(), problem: problem.to_string() }
    }

    /// An [`Error::InvalidRow`]; rows count from 1.
    pub(crate) fn row(what: impl AsRef<Path>, row: usize, problem: impl ToString) -> Error {
        let what = what.as_ref().display().to_string();
        Error::InvalidRow { what, row: row as u64, problem: problem.to_string() }
    }

    /// An [`Error::InvalidConfig`].
    pub(crate) fn config(name: &'static str, value: impl ToString, expected: impl ToString) -> Error {
        Error::InvalidConfig { name, value: value.to_string(), expected: expected.to_string() }
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
