//! The fuzz targets' seed corpora, as ordinary inputs: `good-…` must be accepted, `bad-…` refused, without a panic.
//!
//! `cargo test --test seeds -- --ignored` writes the seeds anew.

#[path = "../fuzz/fuzz_targets/readers.rs"]
mod readers;

use std::fs;
use std::path::{Path, PathBuf};

use cllm::Result;

type Reader = fn(&Path, &[u8]) -> Result<()>;

const READERS: [(&str, Reader); 4] = [
    ("safetensors", readers::safetensors),
    ("manifest", readers::manifest),
    ("tokenizer", readers::tokenizer),
    ("token_store", readers::token_store),
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
    use cllm::data::{TokenWriter, Tokenizer};
    use cllm::{Trainer, TrainingConfig, Transformer};

    use super::{corpus, fs, readers};

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
