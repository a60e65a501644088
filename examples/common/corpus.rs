//! The text that an example reads when it is given none.

use std::path::PathBuf;

use cllm::Result;
use cllm::data::{InvalidUtf8, TextFiles, TextOptions};

/// Bytes of Rust source that make the default corpus.
const DEFAULT_BYTES: u64 = 8 << 20;

/// The corpus of the given files and folders, at most `max_bytes` of it; without any, Rust sources that every machine
/// has which built this crate: those that Cargo unpacked for its dependencies.
pub fn collect(paths: &[PathBuf], max_bytes: Option<u64>) -> Result<TextFiles> {
    if !paths.is_empty() {
        return TextFiles::collect(paths, &TextOptions { max_bytes, ..TextOptions::default() });
    }
    TextFiles::collect(&[cargo_home().join("registry").join("src")], &default_options(max_bytes))
}

/// The corpus that `collect` found in `files`, which it was given or, if `by_default`, was not.
pub fn collect_again(files: &[PathBuf], by_default: bool, max_bytes: Option<u64>) -> Result<TextFiles> {
    let options =
        if by_default { default_options(max_bytes) } else { TextOptions { max_bytes, ..TextOptions::default() } };
    TextFiles::collect(files, &options)
}

fn default_options(max_bytes: Option<u64>) -> TextOptions {
    TextOptions {
        endings: vec!["rs".to_owned()],
        max_bytes: max_bytes.or(Some(DEFAULT_BYTES)),
        // Nobody chose these files, so a stray byte in one of them is no mistake to report.
        invalid_utf8: InvalidUtf8::Replace,
    }
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_else(|| ".cargo".into())
}
