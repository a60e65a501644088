//! Byte-pair encoding: training, Hugging Face files, hostile files.

use std::fs;

use cllm::Error;
use cllm::data::Tokenizer;
use proptest::prelude::*;

use crate::{all, assert_error, collect, encoded, folder, reloaded};

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
