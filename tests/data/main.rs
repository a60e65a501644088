//! The data room from the outside: round trips, and the way from files to batches.

mod bad_input;
#[cfg(feature = "tokenizers")]
mod byte_pair;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cllm::Error;
use cllm::data::{
    self, Batch, BatchOrder, SequenceSource, TextFiles, TextOptions, TokenStore, TokenWriter, Tokenizer,
    TokenizerSource, WordSplit, WordVocabulary,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// A folder with the given files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn collect(path: impl AsRef<Path>) -> cllm::Result<TextFiles> {
    TextFiles::collect(&[path], &TextOptions::default())
}

fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    names
}

fn all(tokens: &TokenStore) -> Vec<u32> {
    let mut ids = vec![0; tokens.len()];
    tokens.copy_to(0, &mut ids).unwrap();
    ids
}

fn encoded(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    tokenizer.encode(text, &mut tokens).unwrap();
    tokens
}

/// Asserts that `result` is an error that matches the pattern, and shows it if not.
macro_rules! assert_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            Err(other) => panic!("another error: {other} ({other:?})"),
            Ok(value) => panic!("no error but {value:?}"),
        }
    };
}
use assert_error;

#[test]
fn folders_are_walked_in_order_filtered_and_capped() {
    let folder = folder(&[
        ("b.rs", b"2222"),
        ("a/z.rs", b"0000"),
        ("a.rs", b"1111"),
        ("c/d/e.RS", b"3333"),
        ("c/d/f.txt", b"no"),
        ("empty.rs", b""),
    ]);
    let read = |max_bytes| {
        let options = TextOptions { endings: vec![".rs".into()], max_bytes, ..TextOptions::default() };
        TextFiles::collect(&[folder.path()], &options).map(|corpus| {
            let tokens = corpus.tokenize(&Tokenizer::byte()).unwrap();
            assert_eq!(tokens.len() as u64, corpus.total_bytes());
            (corpus.paths().len(), Tokenizer::byte().decode(&all(&tokens)))
        })
    };
    assert_eq!(read(None).unwrap(), (4, "0000111122223333".to_owned()));
    assert_eq!(read(Some(100)).unwrap(), (4, "0000111122223333".to_owned()));
    assert_eq!(read(Some(8)).unwrap(), (2, "00001111".to_owned()));
    assert_eq!(read(Some(9)).unwrap(), (3, "000011112".to_owned()));
    assert_error!(read(Some(0)), Error::InvalidConfig { name: "max_bytes", .. });
    // Files that are given come as they are given, whatever their ending.
    let given = [folder.path().join("c/d/f.txt"), folder.path().join("a.rs")];
    let corpus = TextFiles::collect(&given, &TextOptions::default()).unwrap();
    assert!(corpus.paths().eq(given.iter()));
}

/// Whoever reads it finds valid text.
#[test]
fn a_limit_within_a_character_ends_the_text_before_it() {
    let folder = folder(&[("a.rs", "aé b".as_bytes()), ("b.rs", "cd".as_bytes())]);
    let collect = |max_bytes| {
        let options = TextOptions { max_bytes: Some(max_bytes), ..TextOptions::default() };
        TextFiles::collect(&[folder.path()], &options)
    };
    // A word ends with its file.
    let cases = [(1, "a", 1), (2, "a", 1), (3, "aé", 1), (5, "aé b", 2), (6, "aé bc", 3), (100, "aé bcd", 3)];
    for (max_bytes, text, words) in cases {
        let corpus = collect(max_bytes).unwrap();
        assert_eq!(corpus.total_bytes(), text.len() as u64, "{max_bytes}");
        let tokenizer = Tokenizer::train_characters("aé bcd").unwrap();
        let tokens = corpus.tokenize(&tokenizer).unwrap();
        assert_eq!(tokenizer.decode(&all(&tokens)), text, "{max_bytes}");
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        assert_eq!(vocabulary.corpus_words(), words, "{max_bytes}");
    }
    fs::write(folder.path().join("a.rs"), "é").unwrap();
    assert_error!(collect(1), Error::InvalidConfig { name: "max_bytes", .. });
}

#[cfg(unix)]
#[test]
fn links_to_files_are_followed_and_loops_of_folders_are_not() {
    let folder = folder(&[("a/b.txt", b"text")]);
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop.txt")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("a/b.txt"), folder.path().join("c.txt")).unwrap();
    let corpus = collect(folder.path()).unwrap();
    assert!(corpus.paths().eq([folder.path().join("a/b.txt"), folder.path().join("c.txt")]));
}

#[test]
fn memory_and_file_hold_the_same_tokens() {
    let folder = folder(&[("a.txt", "one é two\n".repeat(1000).as_bytes()), ("b.txt", b"three")]);
    let corpus = collect(folder.path()).unwrap();
    let tokenizer = TokenizerSource::Character.build(&corpus).unwrap();
    let path = folder.path().join("tokens");
    let in_file = corpus.tokenize_to(&path, &tokenizer).unwrap();
    let in_memory = data::tokenize(&corpus, &tokenizer, folder.path().join("unused")).unwrap();
    assert_eq!(names(folder.path()), ["a.txt", "b.txt", "tokens"]);
    assert_eq!(all(&in_file), all(&in_memory));
    assert_eq!(all(&in_file), all(&TokenStore::open(&path).unwrap()));
    assert_eq!(tokenizer.decode(&all(&in_file)), "one é two\n".repeat(1000) + "three");
    let fill = |tokens: TokenStore| {
        let source = SequenceSource::new(tokens, BatchOrder::Shuffled, 4, 16, 7).unwrap();
        let mut batch = Batch::zeros(4, 16);
        source.fill(1234, &mut batch).unwrap();
        batch
    };
    assert_eq!(fill(in_file), fill(in_memory));
}

#[test]
fn tokenizer_names_are_parsed() {
    for (text, source) in [
        ("byte", TokenizerSource::Byte),
        ("char", TokenizerSource::Character),
        ("bpe:512", TokenizerSource::BytePair { vocabulary_size: 512 }),
        ("words:512", TokenizerSource::Words { vocabulary_size: 512 }),
        ("some/tokenizer.json", TokenizerSource::File(PathBuf::from("some/tokenizer.json"))),
    ] {
        assert_eq!(text.parse::<TokenizerSource>().unwrap(), source);
        assert_eq!(source.to_string(), text);
    }
    for bad in ["", "bpe:", "bpe:many", "bpe:-1", "words:x"] {
        assert_error!(bad.parse::<TokenizerSource>(), Error::InvalidConfig { name: "tokenizer", value, .. } if value == bad);
    }
}

#[test]
fn samples_are_bounded_and_spread_over_the_corpus() {
    // 40 files of 16 KiB; each consists of a word of its own.
    let files: Vec<_> =
        (0..40).map(|index| (format!("{index:02}.txt"), format!("w{index:02} ").repeat(4096))).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect();
    let folder = folder(&files);
    let corpus = collect(folder.path()).unwrap();
    assert_eq!(corpus.sample(u64::MAX).unwrap().concat().len() as u64, corpus.total_bytes());
    for max_bytes in [1, 100, 5_000, 100_000, 300_000, 600_000] {
        let sample = corpus.sample(max_bytes).unwrap();
        let bytes: usize = sample.iter().map(String::len).sum();
        assert!(bytes as u64 <= max_bytes, "{bytes} of {max_bytes}");
        assert!(max_bytes < 100_000 || bytes as u64 > max_bytes / 2, "{bytes} of {max_bytes}");
    }
    let sample = corpus.sample(corpus.total_bytes() / 2).unwrap().concat();
    let words = |range: std::ops::Range<u32>| range.filter(|index| sample.contains(&format!("w{index:02}"))).count();
    assert!(words(0..20) >= 8 && words(20..40) >= 8, "{} and {}", words(0..20), words(20..40));
}

/// Every kind of tokenizer after it was saved and loaded.
fn reloaded(tokenizer: &Tokenizer) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("new/run");
    tokenizer.save(&run).unwrap();
    assert_eq!(names(&run), ["tokenizer.json"]);
    let from_folder = Tokenizer::load(&run).unwrap();
    let from_file = Tokenizer::load(run.join("tokenizer.json")).unwrap();
    for (name, tokenizer) in [("folder", &from_folder), ("file", &from_file)] {
        tokenizer.save(folder.path().join(name)).unwrap();
        let saved = fs::read(folder.path().join(name).join("tokenizer.json")).unwrap();
        assert_eq!(saved, fs::read(run.join("tokenizer.json")).unwrap());
    }
    from_folder
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_come_back_as_the_same_text(text in "(?s).{0,60}") {
        let tokenizer = reloaded(&Tokenizer::byte());
        prop_assert_eq!(tokenizer.vocabulary_size(), 256);
        let tokens = encoded(&tokenizer, &text);
        prop_assert_eq!(tokens.len(), text.len());
        prop_assert_eq!(tokenizer.decode(&tokens), text);
    }

    #[test]
    fn characters_come_back_as_the_same_text(text in "(?s).{1,60}") {
        let tokenizer = Tokenizer::train_characters(&text).unwrap();
        let tokens = encoded(&tokenizer, &text);
        prop_assert_eq!(tokens.len(), text.chars().count());
        prop_assert!(tokens.iter().all(|&token| (token as usize) < tokenizer.vocabulary_size()));
        prop_assert_eq!(tokenizer.decode(&tokens), text.clone());
        prop_assert_eq!(encoded(&reloaded(&tokenizer), &text), tokens);
    }

    #[test]
    fn any_bytes_are_tokens_of_the_byte_tokenizer(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
        let folder = folder(&[("a.txt", &bytes)]);
        let tokens = collect(folder.path()).unwrap().tokenize(&Tokenizer::byte()).unwrap();
        prop_assert!(all(&tokens).into_iter().eq(bytes.into_iter().map(u32::from)));
    }

    #[test]
    fn stored_tokens_come_back(
        wide in any::<bool>(),
        parts in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 0..50), 0..5),
    ) {
        let vocabulary = if wide { 100_000 } else { 60_000 };
        let parts: Vec<Vec<u32>> =
            parts.into_iter().map(|part| part.into_iter().map(|token| token % vocabulary).collect()).collect();
        let folder = folder(&[]);
        let path = folder.path().join("tokens");
        let mut writer = TokenWriter::create(&path, vocabulary as usize).unwrap();
        for part in &parts {
            writer.write(part).unwrap();
        }
        let written = writer.finish().unwrap();
        let expected = parts.concat();
        let opened = TokenStore::open(&path).unwrap();
        prop_assert_eq!(opened.vocabulary_size(), vocabulary as usize);
        prop_assert_eq!(fs::metadata(&path).unwrap().len(), 32 + expected.len() as u64 * if wide { 4 } else { 2 });
        for store in [written, opened, TokenStore::from_tokens(&expected, vocabulary as usize).unwrap()] {
            prop_assert_eq!(all(&store), expected.clone());
            let (first, rest) = store.split_at(expected.len() / 3);
            prop_assert_eq!([all(&first), all(&rest)].concat(), expected.clone());
        }
    }

    /// Any bytes behind a good header, or any change to a good file, are a typed error or a store that can be read.
    #[test]
    fn hostile_token_files_are_errors_or_can_be_read(
        position in 0usize..60,
        value in any::<u8>(),
        length in 0usize..60,
    ) {
        let folder = folder(&[]);
        let path = folder.path().join("tokens");
        let mut writer = TokenWriter::create(&path, 200).unwrap();
        writer.write(&[1, 2, 3, 199, 5, 6, 7, 8, 9, 10]).unwrap();
        writer.finish().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.resize(length.max(1), value);
        if position < bytes.len() {
            bytes[position] = value;
        }
        fs::write(&path, bytes).unwrap();
        match TokenStore::open(&path) {
            Ok(store) => prop_assert!(all(&store).iter().all(|&token| (token as usize) < store.vocabulary_size())),
            Err(Error::InvalidFile { path: found, .. }) => prop_assert_eq!(found, path),
            Err(Error::TokenOutOfRange { id, vocabulary, .. }) => prop_assert!(id as usize >= vocabulary),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

#[test]
fn tiny_shakespeare_has_its_known_figures() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tinyshakespeare.txt");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let corpus = collect(&path).unwrap();
    let tokenizer = TokenizerSource::Character.build(&corpus).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), 65);
    let (training, validation) = corpus.tokenize(&tokenizer).unwrap().split_validation(0.1).unwrap();
    assert_eq!((training.len(), validation.len()), (1_003_854, 111_540));
    let mut first = [0; 13];
    training.copy_to(0, &mut first).unwrap();
    assert_eq!(tokenizer.decode(&first), "First Citizen");
}
