//! Word embeddings with the rows of character n-grams, from text to vectors.

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use cllm::config::{SubwordConfig, WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};
use cllm::parallel::Parallelism;
use cllm::rng::{Purpose, Stream};
use cllm::similarity::UnitVectors;
use cllm::train::{WordSummary, WordTrainer};
use cllm::{Error, WordVectors};
use ndarray::Axis;

const BUCKETS: u32 = 5000;

fn config() -> WordTrainingConfig {
    let subwords = Some(SubwordConfig { buckets: BUCKETS, ..Default::default() });
    WordTrainingConfig { dim: 20, sample: 0.0, epochs: 4, learning_rate: 0.05, subwords, ..Default::default() }
}

fn train(text: &str, config: WordTrainingConfig) -> (WordTrainer, WordSummary) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, text).unwrap();
    let corpus = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 1).unwrap();
    let mut trainer = WordTrainer::new(vocabulary, config).unwrap();
    let summary = trainer.run(&corpus, |_| ControlFlow::Continue(())).unwrap();
    (trainer, summary)
}

/// Five letters that look like a word's.
fn stem(number: u64) -> String {
    let letters = Stream::new(5, Purpose::Caller, number);
    (0..5)
        .map(|at| ["bdgklmnprstvz", "aeiou"][at as usize % 2].chars().nth(letters.below(at, 5) as usize).unwrap())
        .collect()
}

const ENDINGS: [&str; 4] = ["s", "ed", "ing", "ation"];

/// Lines from one of four topics, of words that are one of 30 stems with one of four endings. `has(topic, stem)` tells
/// whether its forms stand in such lines.
fn forms(lines: u64, has: impl Fn(u64, u64) -> bool) -> String {
    let stream = Stream::new(7, Purpose::Caller, 0);
    let mut text = String::new();
    for line in 0..lines {
        let words: Vec<(u64, u64)> = (0..30)
            .flat_map(|stem| (0..4).map(move |ending| (stem, ending)))
            .filter(|&(stem, _)| has(line % 4, stem))
            .collect();
        for word in 0..15 {
            let (number, ending) = words[stream.below(15 * line + word, words.len() as u64) as usize];
            text += &stem(number);
            text += ENDINGS[ending as usize];
            text += " ";
        }
        text += "\n";
    }
    text
}

/// All words stand everywhere, so that nothing but their letters makes some of them alike.
fn mixed(lines: u64) -> String {
    forms(lines, |_, _| true)
}

/// Mean cosine of two forms of a stem, less that of all pairs, where the mean of all vectors is 0.
fn attraction_of_forms(trainer: &WordTrainer) -> f64 {
    let vectors = trainer.model().vectors();
    let vectors = &vectors - &vectors.mean_axis(Axis(0)).unwrap();
    let unit = UnitVectors::new(vectors.view(), Parallelism::SEQUENTIAL);
    let stem_of = |id: u32| trainer.vocabulary().word(id)[..5].to_owned();
    let (mut of_forms, mut of_all) = ((0.0, 0.0), (0.0, 0.0));
    for first in 0..vectors.nrows() as u32 {
        for second in 0..first {
            let cosine = f64::from(unit.cosine(first, second));
            of_all = (of_all.0 + cosine, of_all.1 + 1.0);
            if stem_of(first) == stem_of(second) {
                of_forms = (of_forms.0 + cosine, of_forms.1 + 1.0);
            }
        }
    }
    assert!(of_forms.1 >= 100.0, "{of_forms:?}");
    of_forms.0 / of_forms.1 - of_all.0 / of_all.1
}

#[test]
fn forms_of_a_word_are_closer_than_without_subwords() {
    let text = mixed(600);
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for (mode, workers) in [(WorkerMode::Deterministic, 1), (WorkerMode::Deterministic, 3), (WorkerMode::Async, 2)]
        {
            let config = WordTrainingConfig { objective, mode, workers, ..config() };
            let without = train(&text, WordTrainingConfig { subwords: None, ..config.clone() }).0;
            let (with, summary) = train(&text, config);
            assert!(summary.loss < 0.95 * 6.0 * std::f64::consts::LN_2, "{summary:?}");
            let [without, with] = [&without, &with].map(attraction_of_forms);
            println!("{objective:?}, {mode:?}, {workers} workers: {without:.3} {with:.3}, loss {:.3}", summary.loss);
            // How far asynchronous workers get on so small a text depends on which updates are lost.
            let least = match (mode, objective) {
                (WorkerMode::Async, _) => continue,
                (_, WordObjective::SkipGram) => 0.1,
                (_, WordObjective::Cbow) => 0.02,
            };
            assert!(with > without + least, "{objective:?}, {mode:?}: {with} after {without}");
        }
    }
}

/// A word nobody has seen is near those of the topic that its stem is of.
#[test]
fn a_new_form_finds_its_topic() {
    let (trainer, _) = train(&forms(600, |topic, stem| stem % 4 == topic), config());
    let vectors = trainer.model().vectors();
    let unit = UnitVectors::new(vectors.view(), Parallelism::SEQUENTIAL);
    let topic = |id: u32| (0..30).find(|&number| trainer.vocabulary().word(id).starts_with(&stem(number))).unwrap() % 4;
    let mut found = 0;
    for number in 0..30 {
        let word = stem(number) + "able";
        assert_eq!(trainer.vocabulary().id(&word), None);
        let query = trainer.vector_of(&word).unwrap().insert_axis(Axis(0));
        let nearest = unit.nearest(query.view(), 1, None, Parallelism::SEQUENTIAL)[0][0].id;
        found += u32::from(topic(nearest) == number % 4);
    }
    // By chance it would be 7 or 8.
    assert!(found >= 25, "{found} of 30");
}

/// The buckets of a word's n-grams, by fastText's definition.
fn buckets(word: &str) -> Vec<usize> {
    let characters: Vec<char> = format!("<{word}>").chars().collect();
    let mut buckets = Vec::new();
    for first in 0..characters.len() {
        for length in 3..=6.min(characters.len() - first) {
            let ngram: String = characters[first..first + length].iter().collect();
            let step = |hash: u32, byte: u8| (hash ^ byte as i8 as u32).wrapping_mul(16_777_619);
            buckets.push((ngram.bytes().fold(2_166_136_261, step) % BUCKETS) as usize);
        }
    }
    buckets
}

#[test]
fn vectors_are_means_of_rows() {
    let (trainer, _) = train(&(mixed(100) + "größe größte é\n"), config());
    let (vocabulary, model) = (trainer.vocabulary(), trainer.model());
    let rows = model.input_rows();
    assert_eq!(rows.dim(), (vocabulary.len() + BUCKETS as usize, 20));
    let mean = |own: Option<usize>, word: &str| {
        let numbers = own.into_iter().chain(buckets(word).into_iter().map(|bucket| vocabulary.len() + bucket));
        let numbers: Vec<usize> = numbers.collect();
        rows.select(Axis(0), &numbers).mean_axis(Axis(0)).unwrap()
    };
    let close = |found: ndarray::ArrayView1<'_, f32>, expected: ndarray::Array1<f32>, word: &str| {
        let error = (&found - &expected).iter().fold(0.0f32, |error, value| error.max(value.abs()));
        assert!(error < 1e-6, "{word}: {found} for {expected}");
    };
    let (vectors, exported) = (model.vectors(), trainer.word_vectors().unwrap());
    assert_eq!(vectors, exported.vectors());
    for (id, word) in vocabulary.words().enumerate() {
        close(vectors.row(id), mean(Some(id), word), word);
        assert_eq!(trainer.vector_of(word).unwrap(), vectors.row(id));
    }
    for word in ["groß", "unseen", "x", "日本語"] {
        close(trainer.vector_of(word).unwrap().view(), mean(None, word), word);
    }
    // No n-gram of three characters.
    assert_eq!(trainer.vector_of(""), None);

    let (trainer, _) = train("a b a b a\n", WordTrainingConfig { subwords: None, ..config() });
    assert_eq!(trainer.vector_of("a").unwrap(), trainer.model().vectors().row(0));
    assert_eq!(trainer.vector_of("c"), None);
    assert_eq!(trainer.model().vectors(), trainer.model().input_rows());
}

#[test]
fn a_deterministic_run_has_the_same_bits_twice() {
    let text = mixed(100);
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for workers in [1, 2, 3] {
            let values = |seed| {
                let config = WordTrainingConfig { objective, workers, seed, sample: 1e-2, ..config() };
                train(&text, config).0.model().parameters().values().to_vec()
            };
            assert!(values(1) == values(1), "{objective:?}, {workers} workers");
            assert!(values(1) != values(2), "{objective:?}, {workers} workers");
        }
    }
}

/// Words that share nearly all their rows, and words that have one row many times, must not overshoot as one.
#[test]
fn words_with_the_same_subwords_do_not_diverge() {
    let stream = Stream::new(8, Purpose::Caller, 0);
    let mut text = mixed(300);
    for line in 0..60 {
        for word in 0..40 {
            text += &format!("a_very_long_common_stem_{} ", stream.below(40 * line + word, 300));
        }
        text += &"a".repeat(20 + line as usize);
        text += "\n";
    }
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for workers in [1, 2] {
            // Without the smaller weight of such places, skip-gram diverges at this rate and not at that of the other tests.
            let config = WordTrainingConfig { objective, workers, learning_rate: 0.1, ..config() };
            let (trainer, summary) = train(&text, config);
            let largest = trainer.model().vectors().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            println!("{objective:?}, {workers} workers: loss {:.3}, largest {largest:.3}", summary.loss);
            assert!(summary.loss < 6.0 * std::f64::consts::LN_2, "{objective:?}, {workers} workers: {summary:?}");
            assert!(largest < 10.0, "{objective:?}, {workers} workers: {largest}");
        }
    }
}

#[test]
fn wikipedia_is_learnt() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/wiki-2m.txt");
    let Ok(file) = std::fs::File::open(&path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let lines: Vec<String> = BufReader::new(file).lines().take(4000).map(Result::unwrap).collect();
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("text");
    std::fs::write(&part, lines.join("\n")).unwrap();
    let corpus = TextFiles::collect(&[part], &TextOptions::default()).unwrap();
    let vocabulary = WordVocabulary::build(&corpus, WordSplit::Blanks, 5).unwrap();
    for (objective, mode) in
        [(WordObjective::SkipGram, WorkerMode::Deterministic), (WordObjective::Cbow, WorkerMode::Async)]
    {
        let subwords = Some(SubwordConfig { buckets: 100_000, ..Default::default() });
        let config = WordTrainingConfig { objective, mode, workers: 2, dim: 50, subwords, ..Default::default() };
        let mut trainer = WordTrainer::new(vocabulary.clone(), config).unwrap();
        let mut losses = Vec::new();
        let summary = trainer.run(&corpus, |progress| {
            losses.push(progress.loss);
            ControlFlow::Continue(())
        });
        let summary = summary.unwrap();
        println!("{objective:?}: {losses:?}, {summary:?}, {} words", vocabulary.len());
        assert!(losses.len() >= 2 && summary.loss < 0.98 * losses[0], "{objective:?}: {losses:?}, {summary:?}");
        assert!(summary.loss < 0.8 * 6.0 * std::f64::consts::LN_2, "{objective:?}: {summary:?}");
        // A value that is not finite would be an error.
        let vectors: WordVectors = trainer.word_vectors().unwrap();
        assert!(vectors.vectors().iter().all(|value| value.abs() < 10.0));
        let unit = UnitVectors::new(vectors.vectors(), Parallelism::SEQUENTIAL);
        let cosine = |a: &str, b: &str| unit.cosine(vectors.require(a).unwrap(), vectors.require(b).unwrap());
        let (near, far) = (cosine("political", "politics"), cosine("political", "water"));
        println!("{near} {far}");
        assert!(near > far + 0.01, "{objective:?}: {near} {far}");
    }
}

#[test]
fn settings_outside_their_domain_are_refused() {
    let valid = SubwordConfig::default();
    let validated = |subwords| WordTrainingConfig { subwords: Some(subwords), ..config() }.validate();
    validated(valid).unwrap();
    validated(SubwordConfig { min_length: 6, ..valid }).unwrap();
    for (wrong, named) in [
        (SubwordConfig { min_length: 0, ..valid }, "subwords.min_length"),
        (SubwordConfig { min_length: 7, ..valid }, "subwords.max_length"),
        (SubwordConfig { max_length: 65, ..valid }, "subwords.max_length"),
        (SubwordConfig { buckets: 0, ..valid }, "subwords.buckets"),
        (SubwordConfig { buckets: u32::MAX, ..valid }, "subwords.buckets"),
    ] {
        let error = validated(wrong).unwrap_err();
        assert!(matches!(&error, Error::InvalidConfig { name, .. } if *name == named), "{wrong:?}: {error}");
    }
}
