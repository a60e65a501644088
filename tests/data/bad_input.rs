//! Every bad input: the error names the file, the position and the value, and nothing half-written is left.

use std::fs;
use std::path::Path;

use cllm::Error;
use cllm::data::{
    BatchOrder, InvalidUtf8, SequenceSource, TextFiles, TextOptions, TokenStore, TokenWriter, Tokenizer,
    TokenizerSource,
};

use crate::{all, assert_error, collect, folder, names};

#[test]
fn a_missing_file_or_folder_is_named() {
    let folder = folder(&[]);
    let missing = folder.path().join("absent.txt");
    assert_error!(collect(&missing), Error::Io { path, source }
        if path == missing && source.kind() == std::io::ErrorKind::NotFound);
    assert_error!(Tokenizer::load(&missing), Error::Io { path, .. } if path == missing);
    assert_error!(Tokenizer::load(folder.path()), Error::Io { path, .. } if path.ends_with("tokenizer.json"));
    assert_error!(TokenStore::open(&missing), Error::Io { path, .. } if path == missing);
    assert_error!(
        TextFiles::collect::<&Path>(&[], &TextOptions::default()),
        Error::InvalidConfig { name: "paths", .. }
    );
}

#[test]
fn a_file_that_goes_away_after_it_was_collected_is_named_and_leaves_no_token_file() {
    let folder = folder(&[("a.txt", b"text")]);
    let corpus = collect(folder.path()).unwrap();
    fs::remove_file(folder.path().join("a.txt")).unwrap();
    let result = corpus.tokenize_to(folder.path().join("tokens"), &Tokenizer::byte());
    assert_error!(result, Error::Io { path, .. } if path.ends_with("a.txt"));
    assert!(names(folder.path()).is_empty());
}

#[test]
fn an_empty_file_is_named() {
    let folder = folder(&[("empty.txt", b""), ("tokenizer.json", b"")]);
    let empty = folder.path().join("empty.txt");
    assert_error!(collect(&empty), Error::EmptyFile { path } if path == empty);
    assert_error!(TokenStore::open(&empty), Error::EmptyFile { path } if path == empty);
    assert_error!(Tokenizer::load(folder.path()), Error::EmptyFile { path } if path.ends_with("tokenizer.json"));
}

#[test]
fn a_folder_without_text_is_named_with_the_endings() {
    let folder = folder(&[("a.bin", b"x"), ("b/c.jpg", b"x"), ("empty.txt", b""), ("txt", b"x")]);
    assert_error!(collect(folder.path()), Error::NoFiles { path, endings }
        if path == folder.path() && endings.contains(&"txt".to_owned()));
    let error = collect(folder.path()).unwrap_err().to_string();
    assert!(error.starts_with(&folder.path().display().to_string()) && error.contains("txt, text, md"), "{error}");
}

#[test]
fn invalid_utf8_is_named_and_leaves_no_token_file() {
    let folder = folder(&[("a.txt", b"fine"), ("b.txt", b"ab\xffcd")]);
    let corpus = collect(folder.path()).unwrap();
    let characters = Tokenizer::train_characters("abcdefin").unwrap();
    let bad = folder.path().join("b.txt");
    let token_file = folder.path().join("tokens");
    assert_error!(corpus.tokenize_to(&token_file, &characters), Error::InvalidUtf8 { path, offset: 2, value: 0xff }
        if path == bad);
    assert_error!(corpus.tokenize(&characters), Error::InvalidUtf8 { offset: 2, .. });
    assert_error!(TokenizerSource::Character.build(&corpus), Error::InvalidUtf8 { offset: 2, .. });
    assert_error!(corpus.sample(100), Error::InvalidUtf8 { offset: 2, .. });
    assert_eq!(names(folder.path()), ["a.txt", "b.txt"]);

    // The byte tokenizer takes the byte, and replacing makes it U+FFFD.
    assert_eq!(all(&corpus.tokenize(&Tokenizer::byte()).unwrap())[6], 0xff);
    let options = TextOptions { invalid_utf8: InvalidUtf8::Replace, ..TextOptions::default() };
    let corpus = TextFiles::collect(&[folder.path()], &options).unwrap();
    let tokenizer = TokenizerSource::Character.build(&corpus).unwrap();
    assert_eq!(tokenizer.decode(&all(&corpus.tokenize(&tokenizer).unwrap())), "fineab\u{fffd}cd");
}

#[test]
fn an_unknown_character_is_named_with_its_place_in_the_file() {
    // Far enough into the file that it is in a later piece of a later chunk.
    let mut text = "word ".repeat(1 << 20);
    let offset = text.len() as u64;
    text.push_str("é word");
    let folder = folder(&[("a.txt", b"word word"), ("b.txt", text.as_bytes())]);
    let bad = folder.path().join("b.txt").display().to_string();
    let characters = Tokenizer::train_characters("drow ").unwrap();
    let corpus = collect(folder.path()).unwrap();
    let result = corpus.tokenize_to(folder.path().join("tokens"), &characters);
    assert_error!(result, Error::UnknownCharacter { what, offset: found, character: 'é' }
        if what == bad && found == offset);
    assert_eq!(names(folder.path()), ["a.txt", "b.txt"]);
}

#[test]
fn fewer_tokens_than_a_sequence_are_counted() {
    let folder = folder(&[("short.txt", b"four")]);
    let tokens = collect(folder.path()).unwrap().tokenize(&Tokenizer::byte()).unwrap();
    for (store, found) in [(tokens.clone(), 4), (tokens.split_validation(0.5).unwrap().1, 2)] {
        let name = store.name().to_owned();
        assert!(name.contains("short.txt"));
        let result = SequenceSource::new(store, BatchOrder::Random, 1, 4, 0);
        assert_error!(result, Error::TooFewTokens { what, found: count, needed: 5 } if what == name && count == found);
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_named_and_leaves_the_old_file() {
    let folder = folder(&[]);
    let path = folder.path().join("tokens");
    let mut writer = TokenWriter::create(&path, 100).unwrap();
    writer.write(&[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    let before = fs::read(&path).unwrap();

    let mut writer = TokenWriter::create(&path, 100).unwrap();
    writer.write(&[7; 10]).unwrap();
    assert_error!(writer.write(&[99, 100]), Error::TokenOutOfRange { what, position: 11, id: 100, vocabulary: 100 }
        if what == path.display().to_string());
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names(folder.path()), ["tokens"]);

    assert_error!(
        TokenStore::from_tokens(&[0, 5, 9], 5),
        Error::TokenOutOfRange { position: 1, id: 5, vocabulary: 5, .. }
    );

    // A file whose vocabulary was made smaller afterwards.
    let mut bytes = before;
    bytes[16] = 3;
    fs::write(&path, bytes).unwrap();
    assert_error!(TokenStore::open(&path), Error::TokenOutOfRange { what, position: 2, id: 3, vocabulary: 3 }
        if what == path.display().to_string());
}

#[test]
fn a_file_that_is_no_token_file_is_refused() {
    let folder = folder(&[("text", b"It was the best of times, it was the worst of times"), ("short", b"cllmtok\n")]);
    assert_error!(TokenStore::open(folder.path().join("text")), Error::InvalidFile { path, problem }
        if path.ends_with("text") && problem.contains("not a token file"));
    assert_error!(TokenStore::open(folder.path().join("short")), Error::InvalidFile { problem, .. }
        if problem.contains("8 bytes"));
    assert_error!(TokenStore::open(folder.path()), Error::InvalidFile { path, .. } | Error::Io { path, .. }
        if path == folder.path());
}

#[test]
fn hostile_tokenizer_files_are_refused() {
    let deep = "[".repeat(100_000);
    let cases: &[(&[u8], &str)] = &[
        (b"not json", "expected"),
        (b"\xff\xfe", "expected"),
        (b"[]", "neither"),
        (b"{}", "neither"),
        (b"null", "expected"),
        (deep.as_bytes(), "EOF"),
        (br#"{"type":"word"}"#, "unknown variant `word`"),
        (br#"{"type":7}"#, "type"),
        (br#"{"type":"byte","characters":"a"}"#, "unknown field"),
        (br#"{"type":"character"}"#, "missing field `characters`"),
        (br#"{"type":"character","characters":""}"#, "empty"),
        (br#"{"type":"character","characters":"ba"}"#, "'b' does not come before 'a'"),
        (br#"{"type":"character","characters":"aa"}"#, "'a' does not come before 'a'"),
        (br#"{"type":"character","characters":["a"]}"#, "invalid type"),
    ];
    let folder = folder(&[]);
    let path = folder.path().join("tokenizer.json");
    for (content, needle) in cases {
        fs::write(&path, content).unwrap();
        assert_error!(Tokenizer::load(&path), Error::InvalidFile { path: found, problem }
            if found == path && (problem.contains(needle) || *needle == "neither" && problem.contains("expected")));
    }
}

#[cfg(not(feature = "tokenizers"))]
#[test]
fn without_the_feature_byte_pair_encoding_names_it() {
    let folder = folder(&[("tokenizer.json", br#"{"model":{"type":"BPE"}}"#), ("a.txt", b"text")]);
    assert_error!(Tokenizer::load(folder.path()), Error::MissingFeature { what, feature: "tokenizers" }
        if what.contains("tokenizer.json"));
    let source = TokenizerSource::BytePair { vocabulary_size: 300 };
    assert_error!(source.build(&collect(folder.path()).unwrap()), Error::MissingFeature { feature: "tokenizers", .. });
}
