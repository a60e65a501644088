//! The fuzz targets' seed corpora, as ordinary inputs: `good-…` must be accepted, `bad-…` refused, without a panic.
//!
//! `cargo test --test seeds -- --ignored` writes the seeds anew.

#[path = "../fuzz/fuzz_targets/readers.rs"]
mod readers;

use std::fs;
use std::path::{Path, PathBuf};

use cllm::Result;

type Reader = fn(&Path, &[u8]) -> Result<()>;

const READERS: [(&str, Reader); 13] = [
    ("safetensors", readers::safetensors),
    ("manifest", readers::manifest),
    ("sealed_manifest", readers::sealed_manifest),
    ("tokenizer", readers::tokenizer),
    ("token_store", readers::token_store),
    ("word2vec_text", readers::word2vec_text),
    ("word2vec_binary", readers::word2vec_binary),
    ("npy", readers::npy),
    ("vectors_safetensors", readers::vectors_safetensors),
    ("pairs_tsv", readers::pairs_tsv),
    ("pairs_jsonl", readers::pairs_jsonl),
    ("word_pairs", readers::word_pairs),
    ("analogies", readers::analogies),
];

fn corpus(reader: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(reader)
}

#[test]
fn every_seed_is_accepted_or_refused_as_its_name_says() {
    for (name, read) in READERS {
        let (mut good, mut bad) = (0, 0);
        let mut seeds: Vec<_> = fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.sort();
        for seed in seeds {
            let folder = tempfile::tempdir().unwrap();
            let result = read(folder.path(), &fs::read(&seed).unwrap());
            let expected = seed.file_name().unwrap().to_str().unwrap().starts_with("good-");
            // Byte-pair encoding needs a feature.
            if !cfg!(feature = "tokenizers") && seed.ends_with("good-byte-pairs") {
                continue;
            }
            assert_eq!(result.is_ok(), expected, "{}: {result:?}", seed.display());
            *(if expected { &mut good } else { &mut bad }) += 1;
        }
        assert!(good >= 1 && bad >= 5, "{name}: {good} good seeds, {bad} bad ones");
    }
}

#[cfg(feature = "tokenizers")]
mod writing {
    use cllm::config::WordTrainingConfig;
    use cllm::data::{TextFiles, TextOptions, TokenWriter, Tokenizer, WordSplit, WordVocabulary};
    use cllm::export::{self, VectorFormat, npy, word2vec};
    use cllm::train::WordTrainer;
    use cllm::{Trainer, TrainingConfig, Transformer};

    use super::{Path, corpus, fs, readers};

    #[test]
    #[ignore = "writes the seeds"]
    fn write_seeds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let model = Transformer::new(readers::model(), 1).unwrap();
        model.save_parameters(&path).unwrap();
        let tensors = fs::read(&path).unwrap();
        seeds(
            "safetensors",
            &[("weights", tensors.clone())],
            &lies(
                &tensors,
                &[
                    ("[5,2]", "[2,5]"),
                    ("[5,2]", "[18446744073709551615,2]"),
                    ("[0,40]", "[0,18446744073709551615]"),
                    ("[0,40]", "[4,44]"),
                    ("\"F32\"", "\"F16\""),
                    ("\"wte.weight\":", "\"wpe.weight\":"),
                    ("\"wte.weight\":", "\"__metadata__\":"),
                ],
            ),
        );

        let config = TrainingConfig { sequence_length: 3, workers: 1, ..TrainingConfig::default() };
        let checkpoint = Trainer::new(model, config).unwrap().save(folder.path().join("run")).unwrap();
        let manifest = fs::read(checkpoint.join("manifest.json")).unwrap();
        seeds(
            "manifest",
            &[("first-format", manifest.clone())],
            &lies(
                &manifest,
                &[
                    ("\"step\": 0", "\"step\": 1"),
                    ("\"format_version\": 1", "\"format_version\": 2"),
                    ("\"kind\"", "\"sort\""),
                    ("null", "nul"),
                ],
            ),
        );
        let content = content(&manifest);
        seeds(
            "sealed_manifest",
            &[("first-format", content.clone()), ("words", words_manifest(folder.path()))],
            &lies(
                &content,
                &[
                    ("\"format_version\": 1", "\"format_version\": 2"),
                    ("\"kind\"", "\"sort\""),
                    ("\"step\": 0", "\"step\": -1"),
                    ("\"learning_rate_factor\": 1.0", "\"learning_rate_factor\": 0.0"),
                    ("\"seed\": 0", "\"seed\": 18446744073709551616"),
                    ("\"vocabulary_size\": 5", "\"vocabulary_size\": 4294967296"),
                    ("\"heads\": 1", "\"heads\": 0"),
                    ("\"workers\": 1\n    }\n  }", "\"workers\": 0\n    }\n  }"),
                    ("\"settings\": {", "\"settings\": [{"),
                    ("\"training\": {", "\"training\": {\"extra\": 0,"),
                ],
            ),
        );

        let characters = Tokenizer::train_characters("lowest newer").unwrap();
        let byte_pairs = Tokenizer::train_byte_pair(&["low lower lowest newer newest wider"], 270).unwrap();
        let saved = [Tokenizer::byte(), characters, byte_pairs].map(|tokenizer| {
            tokenizer.save(folder.path()).unwrap();
            fs::read(folder.path().join("tokenizer.json")).unwrap()
        });
        let lies_of_pairs =
            lies(&saved[2], &[("\"model\"", "\"madel\""), ("\"BPE\"", "\"BQE\""), ("\"merges\"", "\"surges\"")]);
        let lies_of_characters = lies(&saved[1], &[("elnorst", "lenorst"), ("\"character\"", "\"letter\"")]);
        let [byte, characters, pairs] = saved;
        let good = [("byte", byte), ("characters", characters), ("byte-pairs", pairs)];
        seeds("tokenizer", &good, &[lies_of_pairs, lies_of_characters].concat());

        let mut writer = TokenWriter::create(&path, 5).unwrap();
        writer.write(&[0, 4, 2, 3]).unwrap();
        writer.finish().unwrap();
        let tokens = fs::read(&path).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = tokens.clone();
            bytes[at] = byte;
            bytes
        };
        let bad = [with(0, 0), with(8, 2), with(12, 4), with(16, 0), with(23, 255), with(31, 128), with(32, 9)];
        seeds("token_store", &[("tokens", tokens.clone())], &bad);
        vector_seeds(&path);
        text_seeds();
    }

    /// All of a manifest but its checksum.
    fn content(manifest: &[u8]) -> Vec<u8> {
        let text = std::str::from_utf8(manifest).unwrap();
        text.rsplit_once(",\n  \"checksum\"").unwrap().0.into()
    }

    fn words_manifest(folder: &Path) -> Vec<u8> {
        let text = folder.join("text");
        fs::write(&text, "a b a").unwrap();
        let corpus = TextFiles::collect(&[text], &TextOptions::default()).unwrap();
        let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
        let config = WordTrainingConfig { dim: 2, workers: 1, ..WordTrainingConfig::default() };
        let checkpoint = WordTrainer::new(vocabulary, config).unwrap().save(folder.join("words")).unwrap();
        content(&fs::read(checkpoint.join("manifest.json")).unwrap())
    }

    fn vector_seeds(path: &Path) {
        let text = "3 2\nnorth 0 1.5\neast 1e-3 -0\nstraße -2.5 7\n";
        let vectors = word2vec::parse_text(text.as_bytes()).unwrap();
        let written = |format| {
            export::write(path, format, vectors.words(), vectors.vectors()).unwrap();
            fs::read(path).unwrap()
        };
        let text_lies = [
            ("3 2", "2 2"),
            ("3 2", "3 18446744073709551615"),
            ("3 2", "0 0"),
            ("east", "north"),
            (" -0", ""),
            ("0.001", "nan"),
            ("7", "7 7"),
            ("straße", ""),
        ];
        let text = written(VectorFormat::Word2vecText);
        let tolerated = b"2 1\r\na 1 \r\nb 2\r\n".to_vec();
        seeds("word2vec_text", &[("written", text.clone()), ("blanks", tolerated)], &lies(&text, &text_lies));

        let binary = written(VectorFormat::Word2vecBinary);
        // As gensim writes it, without line ends.
        let dense = [b"2 1\na ", &1f32.to_le_bytes()[..], b"b ", &2f32.to_le_bytes()].concat();
        let mut infinite = dense.clone();
        infinite[6..10].copy_from_slice(&f32::INFINITY.to_le_bytes());
        let mut bad = lies(&binary, &[text_lies[0], text_lies[1], text_lies[2], text_lies[3], text_lies[7]]);
        bad.push(infinite);
        seeds("word2vec_binary", &[("written", binary), ("dense", dense)], &bad);

        let array = [written(VectorFormat::Npy), fs::read(npy::words_path(path)).unwrap()].join(readers::WORDS);
        let array_lies = [
            ("(3, 2)", "(9, 9)"),
            ("(3, 2)", "(2, 3)"),
            ("(3, 2)", "(6,)  "),
            ("<f4", ">f4"),
            ("<f4", "<f8"),
            ("False", "True "),
            ("'descr'", "'shape'"),
            ("NUMPY", "NUMPI"),
            ("east", "north"),
        ];
        seeds("npy", &[("written", array.clone())], &lies(&array, &array_lies));

        let tensors = written(VectorFormat::Safetensors);
        let tensor_lies = [
            ("[3,2]", "[2,3]"),
            ("[3,2]", "[18446744073709551615,2]"),
            ("[0,24]", "[0,18446744073709551615]"),
            ("[0,24]", "[4,28]"),
            ("\"F32\"", "\"F16\""),
            ("\"words\":", "\"vectors\":"),
            ("\"vectors\":", "\"__metadata__\":"),
        ];
        seeds("vectors_safetensors", &[("written", tensors.clone())], &lies(&tensors, &tensor_lies));
    }

    fn text_seeds() {
        let bytes = |texts: &[&[u8]]| texts.iter().map(|text| text.to_vec()).collect::<Vec<_>>();
        let long = format!("q\td\t{}\n", "n".repeat(300));
        let good = "how\tso\tno\r\n\n \t\ngröße\t 日本 \tn\tmore".into();
        let bad: [&[u8]; 6] = [b"q\td\n", b"q\t\tn\n", b"q\td\tn\nq\n", b"q\td\t\xff\n", long.as_bytes(), b"q\td\t \n"];
        seeds("pairs_tsv", &[("rows", good)], &bytes(&bad));

        let long = format!(r#"{{"query":"q","document":"d","negatives":["n"],"x":"{}"}}"#, "x".repeat(300));
        let good = [
            r#"{"query":"a\tb \u00e9\ud83e\udd80","document":"d","id":[{}],"negatives":["n","m"]}"#,
            "\r\n\n",
            r#"{"anchor":"größe","positive":"d","negatives":["n"]}"#,
        ];
        let bad: [&[u8]; 11] = [
            br#"{"query":"q","document":"d"}"#,
            br#"{"query":"q","anchor":"q","document":"d","negatives":["n"]}"#,
            br#"["q","d",["n"]]"#,
            br#"{"query":"q","document":5,"negatives":["n"]}"#,
            br#"{"query":"q","document":"\ud800","negatives":["n"]}"#,
            br#"{"query":"q","document":"\u0020","negatives":["n"]}"#,
            br#"{"query":"q","document":"d","negatives":"n"}"#,
            br#"{"query":"q","document":"d","negatives":["n"]"#,
            b"{\"query\":\"q\",\"document\":\"\xc3\",\"negatives\":[\"n\"]}",
            br#"{"x":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["#,
            long.as_bytes(),
        ];
        seeds("pairs_jsonl", &[("rows", good.concat().into())], &bytes(&bad));

        let not_utf8: [&[u8]; 5] = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe6\x97", b"\xf4\x90\x80\x80"];
        let spoil = |line: &[u8]| not_utf8.map(|bytes| [line, bytes, b"\n"].concat());
        let pairs =
            b"# words\nKing\tqueen\t7.5\r\nman\tking\t-1e3\nno\tpair\nman\tqueen\tnan\nman\tother\t3\nSTRASSE\tman\t2";
        seeds("word_pairs", &[("judged", pairs.to_vec())], &spoil(b"king\tqueen\t7\n"));
        let questions =
            b": family\nman woman king queen\nMan King woman Queen\nman woman king\nman woman king other\n: none\r\n";
        let mut bad = spoil(b": family\n").to_vec();
        bad.push(b"man woman king queen\n: late\n".to_vec());
        seeds("analogies", &[("family", questions.to_vec())], &bad);
    }

    /// `good` with each text replaced once, and some cuts.
    fn lies(good: &[u8], replacements: &[(&str, &str)]) -> Vec<Vec<u8>> {
        let cuts = [0, 7, good.len() / 2, good.len() - 2].map(|length| good[..length].to_vec());
        let replaced = replacements.iter().map(|(old, new)| {
            let at = good.windows(old.len()).position(|window| window == old.as_bytes()).expect(old);
            let mut lie = [&good[..at], new.as_bytes(), &good[at + old.len()..]].concat();
            if good[8..].starts_with(b"{") {
                // The length of a safetensors header is that of the lie.
                let length = u64::from_le_bytes(good[..8].try_into().expect("eight bytes"));
                let length = length + new.len() as u64 - old.len() as u64;
                lie[..8].copy_from_slice(&length.to_le_bytes());
            }
            lie
        });
        cuts.into_iter().chain(replaced).collect()
    }

    fn seeds(reader: &str, good: &[(&str, Vec<u8>)], bad: &[Vec<u8>]) {
        let folder = corpus(reader);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in good {
            fs::write(folder.join(format!("good-{name}")), bytes).unwrap();
        }
        for (number, bytes) in bad.iter().enumerate() {
            fs::write(folder.join(format!("bad-{number:02}")), bytes).unwrap();
        }
    }
}
