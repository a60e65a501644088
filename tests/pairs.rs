//! Training of text encoders on pairs, from texts to vectors.

use std::ops::ControlFlow;

use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{PairBatch, PairSource, PairStore, PairStoreBuilder, TokenRows};
use cllm::models::pair_encoder::PairEncoder;
use cllm::rng::{Purpose, Stream};
use cllm::train::{PairSummary, PairTrainer};
use cllm::{Error, Result};
use ndarray::Array2;

const TOPICS: u32 = 40;
const WORDS: u32 = 12;

/// Pairs about one topic each, of three to six of its words on each side; queries and documents have different words.
fn pairs(count: u64, hard_negatives: usize, seed: u64) -> PairStore {
    let stream = Stream::new(seed, Purpose::Caller, 0);
    let mut builder = PairStoreBuilder::new((2 * TOPICS * WORDS) as usize, hard_negatives).unwrap();
    for pair in 0..count {
        let draw = |index: u64, bound: u32| stream.below(1000 * pair + index, bound.into()) as u32;
        let topic = draw(0, TOPICS);
        let text = |number: u64, topic: u32, side: u32| -> Vec<u32> {
            let length = 3 + u64::from(draw(10 * number + 1, 4));
            (0..length).map(|word| (2 * topic + side) * WORDS + draw(10 * number + 2 + word, WORDS)).collect()
        };
        let mut texts = vec![text(0, topic, 0), text(1, topic, 1)];
        texts.extend((0..hard_negatives).map(|number| text(2 + number as u64, (topic + 1) % TOPICS, 1)));
        builder.push(&texts).unwrap();
    }
    builder.finish()
}

fn encoder(token_weights: bool) -> PairEncoderConfig {
    PairEncoderConfig { vocabulary_size: (2 * TOPICS * WORDS) as usize, dim: 24, token_weights }
}

fn config() -> PairTrainingConfig {
    PairTrainingConfig {
        batch_size: 32,
        max_tokens: 6,
        epochs: Some(4),
        workers: 1,
        warmup_steps: 5,
        ..Default::default()
    }
}

fn train(token_weights: bool, config: PairTrainingConfig) -> (PairTrainer, PairSummary) {
    let source = PairSource::new(pairs(2000, config.hard_negatives, 1), config.batch_size, config.seed).unwrap();
    let mut trainer = PairTrainer::new(encoder(token_weights), config).unwrap();
    let summary = trainer.run(&source, |_| ControlFlow::Continue(())).unwrap();
    (trainer, summary)
}

#[test]
fn unseen_pairs_of_known_topics_are_found() {
    // One pair of each topic, so that there is one right answer.
    let all = pairs(3000, 0, 77);
    let mut test = PairStoreBuilder::new(encoder(false).vocabulary_size, 0).unwrap();
    let mut seen = [false; TOPICS as usize];
    for pair in 0..all.len() {
        let texts = [0, 1].map(|text| all.text(pair, text).unwrap());
        let topic = texts[0][0] / (2 * WORDS);
        if !std::mem::replace(&mut seen[topic as usize], true) {
            test.push(&texts).unwrap();
        }
    }
    let test = test.finish();
    assert_eq!(test.len(), TOPICS as usize);
    let base = config();
    for (token_weights, config) in [
        (false, base.clone()),
        (true, PairTrainingConfig { workers: 2, symmetric: true, ..base.clone() }),
        (false, PairTrainingConfig { workers: 3, hard_negatives: 2, matryoshka: vec![8, 16], ..base }),
    ] {
        let untrained = PairTrainer::new(encoder(token_weights), config.clone()).unwrap();
        let before = untrained.recall(&test, &[1, 10]).unwrap();
        let (trainer, summary) = train(token_weights, config);
        let after = trainer.recall(&test, &[1, 10]).unwrap();
        assert!(before[0] < 0.2 && after[0] > 0.9 && after[1] > 0.98, "{before:?}, {after:?}, {summary:?}");
        assert_eq!((summary.steps, summary.pairs, summary.stopped), (4 * 62, 4 * 62 * 32, false));
        let weights = trainer.encoder().token_weights();
        assert_eq!(weights.is_some_and(|weights| weights.iter().any(|&weight| weight != 1.0)), token_weights);
    }
}

#[test]
fn a_prefix_is_better_when_it_was_trained() {
    let first_eight = |encoder: &PairEncoder| {
        let config = PairEncoderConfig { dim: 8, ..encoder.config().clone() };
        let mut cut = PairEncoder::new(config, 0).unwrap();
        let vectors = encoder.vectors();
        for (into, row) in cut.parameters_mut().values_mut().chunks_exact_mut(8).zip(vectors.rows()) {
            into.copy_from_slice(&row.to_slice().unwrap()[..8]);
        }
        cut
    };
    let recall = |matryoshka| {
        let (trainer, _) = train(false, PairTrainingConfig { matryoshka, epochs: Some(2), ..config() });
        let pairs = pairs(200, 0, 5);
        first_eight(trainer.encoder()).recall(&pairs, &[10], cllm::parallel::Parallelism::SEQUENTIAL).unwrap()[0]
    };
    let (without, with) = (recall(vec![]), recall(vec![8]));
    assert!(with > without, "recall@10 of 8 of 24 values: {with} trained, {without} not");
}

#[test]
fn a_run_has_the_same_bits_twice_and_other_workers_agree() {
    let vectors = |workers, seed| {
        let config = PairTrainingConfig { workers, seed, symmetric: true, epochs: Some(1), ..config() };
        train(true, config).0.into_encoder().weighted_vectors()
    };
    let close = |a: &Array2<f32>, b: &Array2<f32>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-2);
    let one = vectors(1, 3);
    for workers in [1, 2, 3] {
        let first = vectors(workers, 3);
        assert_eq!(first, vectors(workers, 3), "{workers} workers");
        assert!(close(&one, &first), "{workers} workers");
    }
    assert_ne!(one, vectors(1, 4));
}

#[test]
fn only_rows_of_the_batch_are_touched() {
    let rows: TokenRows = [vec![3, 5, 3], vec![7], vec![9, 3], vec![]].into_iter().collect();
    let batch = PairBatch::new(rows, 0).unwrap();
    for workers in [1, 2] {
        let config = PairTrainingConfig { weight_decay: 0.1, warmup_steps: 0, workers, ..config() };
        let mut trainer = PairTrainer::new(encoder(true), config).unwrap();
        let before = trainer.encoder().clone();
        for _ in 0..2 {
            trainer.step(&batch).unwrap();
        }
        for id in 0..before.config().vocabulary_size {
            let touched = [3, 5, 7, 9].contains(&id);
            let after = trainer.encoder();
            assert_eq!(before.vectors().row(id) != after.vectors().row(id), touched, "row {id}");
            let (weight, former) = (after.token_weights().unwrap()[id], before.token_weights().unwrap()[id]);
            assert_eq!(weight != former, touched, "weight {id}");
        }
    }
}

#[test]
fn the_callback_stops_a_run_and_it_goes_on() {
    let source = PairSource::new(pairs(500, 0, 1), 32, 0).unwrap();
    let mut trainer = PairTrainer::new(encoder(false), PairTrainingConfig { workers: 2, ..config() }).unwrap();
    let summary = trainer.run(&source, |progress| {
        assert_eq!(progress.last_step, 60);
        if progress.report.step == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let summary = summary.unwrap();
    assert!(summary.stopped && summary.steps == 7 && trainer.steps() == 7);
    let rest = trainer.run(&source, |_| ControlFlow::Continue(())).unwrap();
    let whole = {
        let mut trainer = PairTrainer::new(encoder(false), PairTrainingConfig { workers: 2, ..config() }).unwrap();
        trainer.run(&source, |_| ControlFlow::Continue(())).unwrap();
        trainer.into_encoder()
    };
    assert_eq!((rest.steps, rest.pairs), (60, 53 * 32));
    assert_eq!(whole.vectors(), trainer.encoder().vectors());
}

fn refused(batch: Result<PairBatch>, config: PairTrainingConfig) -> Error {
    let mut trainer = PairTrainer::new(encoder(false), config).unwrap();
    let before = trainer.encoder().vectors().to_owned();
    let error = trainer.step(&batch.unwrap()).unwrap_err();
    assert_eq!((before, trainer.steps()), (trainer.encoder().vectors().to_owned(), 0));
    error
}

#[test]
fn batches_that_do_not_fit_are_refused_and_leave_no_trace() {
    let batch = |texts: usize, length: usize, id: u32, hard_negatives| {
        PairBatch::new(vec![vec![id; length]; texts].into_iter().collect(), hard_negatives)
    };
    assert!(matches!(refused(batch(66, 1, 0, 0), config()), Error::Shape { .. }));
    assert!(matches!(refused(batch(6, 1, 0, 1), config()), Error::Shape { .. }));
    assert!(matches!(refused(batch(64, 7, 0, 0), config()), Error::Shape { .. }));
    assert!(matches!(refused(batch(4, 1, 960, 0), config()), Error::TokenOutOfRange { id: 960, position: 0, .. }));
    let wide = PairTrainingConfig { matryoshka: vec![8, 25], ..config() };
    assert!(matches!(PairTrainer::new(encoder(false), wide), Err(Error::InvalidConfig { name: "matryoshka", .. })));
    for config in [
        PairTrainingConfig { matryoshka: vec![8, 8], ..config() },
        PairTrainingConfig { temperature: 0.0, ..config() },
        PairTrainingConfig { temperature: 0.99e-9, ..config() },
        PairTrainingConfig { temperature: 1.01e9, ..config() },
        PairTrainingConfig { temperature: f64::NAN, ..config() },
        PairTrainingConfig { batch_size: 0, ..config() },
        PairTrainingConfig { epochs: Some(0), ..config() },
        PairTrainingConfig { batch_size: 1 << 16, max_tokens: 1 << 15, ..config() },
    ] {
        assert!(matches!(PairTrainer::new(encoder(false), config), Err(Error::InvalidConfig { .. })));
    }
    let mut trainer = PairTrainer::new(encoder(false), PairTrainingConfig { epochs: None, ..config() }).unwrap();
    let source = PairSource::new(pairs(100, 0, 1), 32, 0).unwrap();
    let error = trainer.run(&source, |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { name: "max_steps", .. }), "{error}");
    let source = PairSource::new(pairs(100, 0, 1), 31, 0).unwrap();
    assert!(matches!(trainer.run(&source, |_| ControlFlow::Continue(())), Err(Error::Shape { .. })));
    // Before the first step, and before the run folder has anything of this run.
    let folder = tempfile::tempdir().unwrap();
    let config = PairTrainingConfig { hard_negatives: 1, save_interval: Some(1), ..config() };
    let mut trainer = PairTrainer::new(encoder(false), config).unwrap();
    trainer.save_to(folder.path()).unwrap();
    for hard_negatives in [0, 2] {
        let source = PairSource::new(pairs(100, hard_negatives, 1), 32, 0).unwrap();
        let error = trainer.run(&source, |_| ControlFlow::Continue(())).unwrap_err();
        let Error::Shape { what, expected, found } = &error else { panic!("{error}") };
        assert!(what.contains("training source"), "{error}");
        assert_eq!((expected, found), (&vec![32, 1], &vec![32, hard_negatives]));
    }
}

#[test]
fn a_vector_that_is_not_finite_is_an_error_and_no_update() {
    let mut poisoned = PairEncoder::new(encoder(false), 0).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        poisoned.parameters_mut().values_mut()[24 * 5] = value;
        let mut trainer = PairTrainer::with_encoder(poisoned.clone(), config()).unwrap();
        let rows: TokenRows = [vec![3], vec![5], vec![9], vec![4]].into_iter().collect();
        let error = trainer.step(&PairBatch::new(rows, 0).unwrap()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { step: 1, .. }), "{error}");
        let bits = |encoder: &PairEncoder| encoder.vectors().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(trainer.encoder()), bits(&poisoned));
    }
}

#[cfg(feature = "tokenizers")]
mod exported {
    use std::path::Path;

    use cllm::config::{PairEncoderConfig, PairTrainingConfig};
    use cllm::data::{PairSource, PairStoreBuilder, TokenRows, Tokenizer};
    use cllm::export::sentence_transformers;
    use cllm::train::PairTrainer;
    use safetensors::SafeTensors;

    fn texts() -> Vec<String> {
        let subjects = ["a cat", "The dog", "my naïve bird", "number 42"];
        let verbs = ["sees", "hears it's", "doesn't (really) like", "…eats"];
        let lines = subjects.iter().flat_map(|subject| verbs.map(|verb| format!("{subject} {verb} something, twice")));
        lines.chain(["\n\ttabs   and blanks ", "日本語 and zebra", ""].map(str::to_owned)).collect()
    }

    /// Leaves a folder for `tests/pairs/check_sentence_transformers.py`.
    #[test]
    fn what_is_exported_has_the_same_vectors() {
        let texts = texts();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sentence_transformers");
        for (name, tokenizer, token_weights) in [
            ("byte-pairs", Tokenizer::train_byte_pair(&texts, 300).unwrap(), false),
            ("words", Tokenizer::train_words(&texts, 20).unwrap(), true),
        ] {
            let pairs: Vec<Vec<String>> = texts[..16].chunks(2).map(<[String]>::to_vec).collect();
            let mut store = PairStoreBuilder::new(tokenizer.vocabulary_size(), 0).unwrap();
            store.push_texts(&pairs, &tokenizer, 64).unwrap();
            let source = PairSource::new(store.finish(), 4, 0).unwrap();
            let config = PairTrainingConfig { batch_size: 4, epochs: Some(3), workers: 2, ..Default::default() };
            let encoder = PairEncoderConfig { vocabulary_size: tokenizer.vocabulary_size(), dim: 12, token_weights };
            let mut trainer = PairTrainer::new(encoder, config).unwrap();
            trainer.run(&source, |_| std::ops::ControlFlow::Continue(())).unwrap();
            let encoder = trainer.into_encoder();

            let case = folder.join(name);
            sentence_transformers::write(case.join("model"), &encoder, &tokenizer).unwrap();
            let encode = |text: &String| {
                let mut tokens = Vec::new();
                tokenizer.encode(text, &mut tokens).unwrap();
                tokens
            };
            let rows: TokenRows = texts.iter().map(encode).collect();
            let vectors: Vec<Vec<f32>> =
                encoder.encode(&rows).unwrap().rows().into_iter().map(|row| row.to_vec()).collect();
            let expected = serde_json::json!({"texts": texts, "vectors": vectors});
            std::fs::write(case.join("expected.json"), expected.to_string()).unwrap();

            // What a reader of the folder computes: the direction of the mean of the rows.
            let read = |name: &str| std::fs::read(case.join("model").join(name)).unwrap();
            let bytes = read("0_StaticEmbedding/model.safetensors");
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let table = tensors.tensor("embedding.weight").unwrap();
            assert_eq!((table.shape(), tensors.len()), (&[tokenizer.vocabulary_size(), 12][..], 1));
            let value = |id: u32, column: usize| {
                let at = (id as usize * 12 + column) * 4;
                f32::from_le_bytes(table.data()[at..at + 4].try_into().unwrap())
            };
            let saved = Tokenizer::load(case.join("model/0_StaticEmbedding")).unwrap();
            for (text, vector) in texts.iter().zip(&vectors) {
                let mut tokens = Vec::new();
                saved.encode(text, &mut tokens).unwrap();
                let sum: Vec<f32> = (0..12).map(|column| tokens.iter().map(|&id| value(id, column)).sum()).collect();
                let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                assert!(sum.iter().zip(vector).all(|(x, y)| (x / length - y).abs() < 1e-5), "{text:?}");
            }
            let modules: serde_json::Value = serde_json::from_slice(&read("modules.json")).unwrap();
            assert_eq!(modules[0]["path"], "0_StaticEmbedding");
            assert_eq!(modules[1]["type"], "sentence_transformers.models.Normalize");
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_and_a_former_encoder_stays() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::train_words(&["a b c"], 9).unwrap();
        let vocabulary_size = tokenizer.vocabulary_size();
        let path = folder.path().join("encoder");
        for (token_weights, values) in
            [(false, [f32::NAN, 1.0]), (false, [f32::NEG_INFINITY, 1.0]), (true, [1.0, f32::NAN]), (true, [1e20, 1e20])]
        {
            let config = PairEncoderConfig { vocabulary_size, dim: 4, token_weights };
            let good = cllm::models::pair_encoder::PairEncoder::new(config, 0).unwrap();
            let mut bad = good.clone();
            bad.parameters_mut().values_mut()[4 * 2 + 1] = values[0];
            if let Some(weights) = bad.layout().specs().get(1).map(|spec| spec.id) {
                bad.parameters_mut().slice_mut(weights)[2] = values[1];
            }
            let refused = || {
                let error = sentence_transformers::write(&path, &bad, &tokenizer).unwrap_err();
                assert!(matches!(error, cllm::Error::InvalidRow { row: 3, .. }), "{values:?}: {error}");
            };
            refused();
            assert!(!path.exists());
            sentence_transformers::write(&path, &good, &tokenizer).unwrap();
            let content = || {
                ["modules.json", "0_StaticEmbedding/model.safetensors"]
                    .map(|name| std::fs::read(path.join(name)).unwrap())
            };
            let former = content();
            refused();
            assert_eq!(content(), former);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_written_over_is_no_encoder_until_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::train_words(&["a b c"], 9).unwrap();
        let config = PairEncoderConfig { vocabulary_size: tokenizer.vocabulary_size(), dim: 4, token_weights: false };
        let encoder = |seed| cllm::models::pair_encoder::PairEncoder::new(config.clone(), seed).unwrap();
        let write = |seed| sentence_transformers::write(folder.path(), &encoder(seed), &tokenizer);
        write(0).unwrap();
        let modules = folder.path().join("modules.json");
        let former = std::fs::read(&modules).unwrap();
        // Each of the files that come between cannot be replaced.
        for name in [
            "0_StaticEmbedding/tokenizer.json",
            "0_StaticEmbedding/model.safetensors",
            "1_Normalize/config.json",
            "config_sentence_transformers.json",
        ] {
            let file = folder.path().join(name);
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir_all(file.join("occupied")).unwrap();
            assert!(matches!(write(1), Err(cllm::Error::Io { .. })), "{name}");
            assert!(!modules.exists(), "{name}");
            std::fs::remove_dir_all(&file).unwrap();
            write(1).unwrap();
            assert_eq!(std::fs::read(&modules).unwrap(), former, "{name}");
        }
    }

    #[test]
    fn a_tokenizer_that_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = |vocabulary_size| PairEncoderConfig { vocabulary_size, dim: 4, token_weights: false };
        let encoder = |size| cllm::models::pair_encoder::PairEncoder::new(config(size), 0).unwrap();
        let error = sentence_transformers::write(folder.path(), &encoder(256), &Tokenizer::byte()).unwrap_err();
        assert!(matches!(error, cllm::Error::Tokenizer(_)), "{error}");
        let words = Tokenizer::train_words(&["a b c"], 9).unwrap();
        let error = sentence_transformers::write(folder.path(), &encoder(256), &words).unwrap_err();
        assert!(matches!(error, cllm::Error::Shape { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
