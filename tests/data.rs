//! The data room from the outside: every bad input, round trips, and the way from files to batches.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cllm::Error;
use cllm::data::{
    self, Batch, BatchOrder, InvalidUtf8, SequenceSource, TextFiles, TextOptions, TokenStore, TokenWriter, Tokenizer,
    TokenizerSource,
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
    tokens.copy_to(0, &mut ids);
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
        source.fill(1234, &mut batch);
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
        ("some/tokenizer.json", TokenizerSource::File(PathBuf::from("some/tokenizer.json"))),
    ] {
        assert_eq!(text.parse::<TokenizerSource>().unwrap(), source);
        assert_eq!(source.to_string(), text);
    }
    for bad in ["", "bpe:", "bpe:many", "bpe:-1"] {
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

#[cfg(feature = "tokenizers")]
mod byte_pair {
    use super::*;

    const TEXT: &str = "The quick brown fox jumps over the lazy dog. The quicker fox doesn't jump; it's 1234 \
                        foxes over 56 dogs!\n\n    let quick = fox.jumps(over);\r\n\tthé naïve 狐 \u{1f98a} fox\n";

    fn trained() -> Tokenizer {
        Tokenizer::train_byte_pair(&[TEXT.repeat(3)], 300).unwrap()
    }

    fn saved(tokenizer: &Tokenizer) -> String {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        fs::read_to_string(folder.path().join("tokenizer.json")).unwrap()
    }

    fn load(json: &str) -> cllm::Result<Tokenizer> {
        let folder = folder(&[("tokenizer.json", json.as_bytes())]);
        Tokenizer::load(folder.path())
    }

    #[test]
    fn training_finds_the_frequent_pairs_and_is_repeatable() {
        let tokenizer = trained();
        assert_eq!(tokenizer.vocabulary_size(), 300);
        let text = TEXT.repeat(3);
        let tokens = encoded(&tokenizer, &text);
        assert!(tokens.len() * 2 < text.len(), "{} tokens for {} bytes", tokens.len(), text.len());
        assert_eq!(encoded(&tokenizer, " fox").len(), 1);
        // Hashing in the trainer is seeded anew every time; the order of the texts must not matter either.
        let (first, second) = (TEXT.repeat(2), TEXT.to_owned());
        for texts in [[&first, &second], [&second, &first]] {
            for _ in 0..4 {
                assert_eq!(saved(&Tokenizer::train_byte_pair(&texts, 300).unwrap()), saved(&tokenizer));
            }
        }
    }

    #[test]
    fn a_vocabulary_that_cannot_be_is_refused() {
        for size in [0, 255, (1 << 24) + 1] {
            let value_of = size.to_string();
            assert_error!(Tokenizer::train_byte_pair(&["text"], size),
                Error::InvalidConfig { name: "vocabulary_size", value, .. } if value == value_of);
        }
        assert_error!(Tokenizer::train_byte_pair(&[""], 300), Error::Tokenizer(_));
        assert_error!(Tokenizer::train_byte_pair::<&str>(&[], 300), Error::Tokenizer(_));
        // No merge at all, and fewer than asked for.
        assert_eq!(Tokenizer::train_byte_pair(&["text"], 256).unwrap().vocabulary_size(), 256);
        assert_eq!(Tokenizer::train_byte_pair(&["abab"], 1000).unwrap().vocabulary_size(), 258);
    }

    #[test]
    fn the_file_is_hugging_faces() {
        let json: serde_json::Value = serde_json::from_str(&saved(&trained())).unwrap();
        assert_eq!(json["version"], "1.0");
        assert_eq!(json["model"]["type"], "BPE");
        assert_eq!(json["model"]["vocab"].as_object().unwrap().len(), 300);
        assert_eq!(json["model"]["merges"].as_array().unwrap().len(), 300 - 256);
        assert_eq!(json["pre_tokenizer"]["type"], "ByteLevel");
        assert_eq!(json["pre_tokenizer"]["add_prefix_space"], false);
        assert_eq!(json["decoder"]["type"], "ByteLevel");
    }

    #[test]
    fn what_makes_training_text_short_or_random_is_switched_off() {
        let mut json: serde_json::Value = serde_json::from_str(&saved(&trained())).unwrap();
        json["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
        json["model"]["dropout"] = serde_json::json!(0.9);
        let loaded = load(&json.to_string()).unwrap();
        assert_eq!(encoded(&loaded, TEXT), encoded(&trained(), TEXT));
    }

    #[test]
    fn ids_with_gaps_count_up_to_the_last() {
        let json = saved(&trained());
        let mut gap: serde_json::Value = serde_json::from_str(&json).unwrap();
        gap["added_tokens"] = serde_json::json!([{"id": 1000, "content": "<|end|>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
        let mut changed = gap.clone();
        changed["model"]["vocab"]["<|end|>"] = 1000.into();
        let tokenizer = load(&changed.to_string()).unwrap();
        assert_eq!(tokenizer.vocabulary_size(), 1001);
        assert_eq!(encoded(&tokenizer, "<|end|>"), [1000]);
        assert_eq!(tokenizer.decode(&[1000]), "<|end|>");
        changed["model"]["vocab"]["<|end|>"] = u32::MAX.into();
        changed["added_tokens"][0]["id"] = u32::MAX.into();
        assert_error!(load(&changed.to_string()), Error::InvalidFile { problem, .. } if problem.contains("4294967295"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = open.repeat(50_000) + "0" + &close.repeat(50_000);
            for json in [format!("{{\"model\":{deep}}}"), format!("{{\"type\":{deep}}}")] {
                assert_error!(load(&json), Error::InvalidFile { .. });
            }
        }
    }

    /// Every value of a good file in turn is replaced by others of every type; loading may work, but nothing panics.
    #[test]
    fn mutilated_files_give_errors_or_tokenizers_but_no_panic() {
        let good: serde_json::Value =
            serde_json::from_str(&saved(&Tokenizer::train_byte_pair(&["abab"], 258).unwrap())).unwrap();
        let mut paths = Vec::new();
        fn walk(value: &serde_json::Value, at: String, paths: &mut Vec<String>) {
            paths.push(at.clone());
            match value {
                serde_json::Value::Object(map) => map
                    .iter()
                    .filter(|(key, _)| key.chars().count() > 1 || key.as_str() == "a")
                    .for_each(|(key, value)| walk(value, format!("{at}/{key}"), paths)),
                serde_json::Value::Array(items) => {
                    items.iter().enumerate().for_each(|(index, value)| walk(value, format!("{at}/{index}"), paths));
                }
                _ => {}
            }
        }
        walk(&good, String::new(), &mut paths);
        let values = serde_json::json!([null, true, -1, 0, 1, 257, 4294967295u32, 1e300, "", "a", "ab", "Ġ", [], ["a"], ["a", "zz"], {}, {"type": "ByteLevel"}, {"type":"BPE"}, {"a": 0}]);
        let (mut loaded, mut refused) = (0, 0);
        for path in &paths {
            for value in values.as_array().unwrap() {
                let mut json = good.clone();
                *json.pointer_mut(path).unwrap() = value.clone();
                match load(&json.to_string()) {
                    Err(Error::InvalidFile { .. }) => refused += 1,
                    Err(other) => panic!("{path} = {value}: {other}"),
                    Ok(tokenizer) => {
                        loaded += 1;
                        let mut tokens = Vec::new();
                        if tokenizer.encode("abab zz é", &mut tokens).is_ok() {
                            assert!(tokens.iter().all(|&token| (token as usize) < tokenizer.vocabulary_size()));
                        }
                        let _ = tokenizer.decode(&[0, 1, 97, 257, 300]);
                    }
                }
            }
        }
        assert!(refused > 100 && loaded > 10, "{refused} refused, {loaded} loaded");
    }

    #[test]
    fn pieces_give_the_tokens_of_the_whole() {
        // More than one chunk of text, cut into many pieces, whose ends fall on all parts of the sample.
        let text: String = TEXT.repeat((5 << 20) / TEXT.len());
        let folder = folder(&[("a.txt", text.as_bytes())]);
        let tokens = collect(folder.path()).unwrap().tokenize(&trained()).unwrap();
        assert_eq!(all(&tokens), encoded(&trained(), &text));
    }

    #[test]
    fn saved_and_loaded_it_encodes_the_same() {
        let tokenizer = reloaded(&trained());
        assert_eq!(encoded(&tokenizer, TEXT), encoded(&trained(), TEXT));
        assert_eq!(tokenizer.vocabulary_size(), 300);
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC*|[ \\n\\ta-c']{0,40}|(?s).{0,40}") {
            static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(trained);
            let tokens = encoded(&TOKENIZER, &text);
            prop_assert_eq!(TOKENIZER.decode(&tokens), text);
        }
    }
}

proptest! {
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
    training.copy_to(0, &mut first);
    assert_eq!(tokenizer.decode(&first), "First Citizen");
}
