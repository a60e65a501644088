//! A resumed run of word embeddings ends in the bytes of the run that was never interrupted.

mod support;

use std::ops::ControlFlow;
use std::path::Path;

use cllm::checkpoint::{Accept, Checkpoint, RunFolder};
use cllm::config::{SubwordConfig, WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};
use cllm::rng::{Purpose, Stream};
use cllm::train::{WordSummary, WordTrainer};
use cllm::{Error, Result};
use support::{checkpoints, files};

/// Two files of lines of different lengths, over 60 words.
fn corpus(folder: &Path, lines: u64) -> TextFiles {
    let stream = Stream::new(3, Purpose::Caller, 0);
    let text = |part: u64| -> String {
        let line = |line: u64| {
            let first = 100 * (line + part * lines);
            let words = 1 + stream.below(first, 12);
            (1..=words).map(|word| format!("w{} ", stream.below(first + word, 60))).collect::<String>() + "\n"
        };
        (0..lines).map(line).collect()
    };
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("a.txt"), text(0)).unwrap();
    std::fs::write(folder.join("b.txt"), text(1)).unwrap();
    TextFiles::collect(&[folder], &TextOptions::default()).unwrap()
}

fn config() -> WordTrainingConfig {
    // Small blocks make many rounds.
    WordTrainingConfig { dim: 12, block: 8, sample: 1e-2, epochs: 3, learning_rate: 0.05, ..Default::default() }
}

fn trainer(corpus: &TextFiles, config: &WordTrainingConfig) -> WordTrainer {
    let vocabulary = WordVocabulary::build(corpus, WordSplit::Blanks, 1).unwrap();
    WordTrainer::new(vocabulary, config.clone()).unwrap()
}

fn to_the_end(trainer: &mut WordTrainer, corpus: &TextFiles) -> Result<WordSummary> {
    trainer.run(corpus, |_| ControlFlow::Continue(()))
}

fn resume(folder: &Path) -> Result<WordTrainer> {
    WordTrainer::resume(folder, None, Accept::Exact).map(|(trainer, differences)| {
        assert_eq!(differences, []);
        trainer
    })
}

/// The words of the first half occur once each, so that nothing of it is trained on, or, of every `share` words, all but one.
fn lopsided(path: &Path, words: u64, share: u64) -> TextFiles {
    let word = |at: u64| {
        let is_rare = at < words / 2 && !(share > 0 && at.is_multiple_of(share));
        // Of about the same length.
        let name = if is_rare { format!("r{at:05}") } else { format!("common{}", at * at % 61) };
        name + if at.is_multiple_of(9) { "\n" } else { " " }
    };
    std::fs::write(path, (0..words).map(word).collect::<String>()).unwrap();
    TextFiles::collect(&[path], &TextOptions::default()).unwrap()
}

/// Rounds take as many words that are known from each half, and so many more words of the corpus from the first.
#[test]
fn checkpoints_come_at_their_interval_where_workers_read_at_different_speeds() {
    let folder = tempfile::tempdir().unwrap();
    for share in [0, 4] {
        let text = lopsided(&folder.path().join(format!("text-{share}")), 60_000, share);
        let vocabulary = WordVocabulary::build(&text, WordSplit::Blanks, 2).unwrap();
        for mode in [WorkerMode::Deterministic, WorkerMode::Async] {
            let run = folder.path().join(format!("{mode:?}-{share}"));
            let (workers, save_interval, keep_checkpoints) = (2, Some(6_000), None);
            let config = WordTrainingConfig { mode, workers, save_interval, keep_checkpoints, epochs: 2, ..config() };
            let mut trainer = WordTrainer::new(vocabulary.clone(), config).unwrap();
            trainer.save_to(&run).unwrap();
            to_the_end(&mut trainer, &text).unwrap();
            trainer.finish_saving().unwrap();
            let places: Vec<u64> = checkpoints(&run).iter().map(|at| resume(at).unwrap().words()).collect();
            assert!((4..=20).contains(&places.len()), "{mode:?}, {share}: {places:?}");
            // Its first worker may read all words of its part before it comes to rest; in asynchronous mode nobody waits.
            let longest = places.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            assert!(longest < 38_000 || mode == WorkerMode::Async, "{share}: {places:?}");
        }
    }
}

#[test]
fn every_objective_and_worker_count_resumes_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 300);
    let mut resumed = 0;
    let plain = |objective| [1, 2, 3].map(|workers| (objective, workers, None));
    let subwords = Some(SubwordConfig { buckets: 400, ..Default::default() });
    let with_subwords = [(WordObjective::SkipGram, 2, subwords), (WordObjective::Cbow, 1, subwords)];
    let cases = [&plain(WordObjective::SkipGram)[..], &plain(WordObjective::Cbow), &with_subwords].concat();
    for (objective, workers, subwords) in cases {
        let run = folder.path().join(format!("{objective:?}-{workers}-{}", subwords.is_some()));
        let config = WordTrainingConfig {
            objective,
            workers,
            subwords,
            save_interval: Some(1500),
            keep_checkpoints: None,
            ..config()
        };
        let mut whole = trainer(&text, &config);
        whole.save_to(&run).unwrap();
        let summary = to_the_end(&mut whole, &text).unwrap();
        let expected = files(&whole.save(&run).unwrap());
        assert_eq!((summary.words, summary.run_words), (whole.words(), whole.words()));
        drop(whole);
        let all = checkpoints(&run);
        assert!(all.len() > 5, "{all:?}");
        for from in all {
            let mut trainer = resume(&from).unwrap();
            let before = trainer.words();
            let found = to_the_end(&mut trainer, &text).unwrap();
            assert_eq!((found.words, found.run_words), (summary.words, summary.words - before));
            assert_eq!(found.loss.to_bits(), summary.loss.to_bits(), "{objective:?}, {workers} workers");
            let end = tempfile::tempdir().unwrap();
            assert!(
                files(&trainer.save(end.path()).unwrap()) == expected,
                "{objective:?}, {workers}, {subwords:?}: {from:?}"
            );
            resumed += 1;
        }
    }
    println!("{resumed} checkpoints resumed");
    assert!(resumed > 40, "{resumed}");
}

/// A run that the callback stops and another call continues, in one process and in two.
#[test]
fn a_stopped_run_is_continued_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 25_000);
    let config = WordTrainingConfig { epochs: 2, workers: 2, ..config() };
    let mut whole = trainer(&text, &config);
    to_the_end(&mut whole, &text).unwrap();
    let mut parts = trainer(&text, &config);
    let summary = parts.run(&text, |_| ControlFlow::Break(())).unwrap();
    assert!(summary.stopped && parts.words() < whole.words());
    parts.save(folder.path().join("run")).unwrap();
    let mut other = resume(&folder.path().join("run")).unwrap();
    for parts in [&mut parts, &mut other] {
        to_the_end(parts, &text).unwrap();
        assert_eq!(parts.model().parameters().values(), whole.model().parameters().values());
        // Nothing is left to do.
        assert_eq!(to_the_end(parts, &text).unwrap().run_words, 0);
        assert_eq!(parts.model().parameters().values(), whole.model().parameters().values());
    }
}

#[test]
fn an_asynchronous_run_goes_on_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 300);
    let config = WordTrainingConfig { mode: WorkerMode::Async, workers: 2, save_interval: Some(1000), ..config() };
    let mut whole = trainer(&text, &config);
    whole.save_to(folder.path()).unwrap();
    let summary = to_the_end(&mut whole, &text).unwrap();
    drop(whole);
    for from in checkpoints(folder.path()) {
        let mut trainer = resume(&from).unwrap();
        let before = trainer.words();
        assert!(before > 0 && before < summary.words);
        let rest = to_the_end(&mut trainer, &text).unwrap();
        assert_eq!((rest.words, rest.run_words), (summary.words, summary.words - before));
    }
}

#[test]
fn what_differs_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 300);
    let config = WordTrainingConfig { save_interval: Some(2000), keep_checkpoints: None, ..config() };
    let run = folder.path().join("run");
    let mut first = trainer(&text, &config);
    first.save_to(&run).unwrap();
    to_the_end(&mut first, &text).unwrap();
    drop(first);
    let from = &checkpoints(&run)[0];
    let with = |config: WordTrainingConfig, accept| WordTrainer::resume(from, Some(config), accept);
    for (changed, name) in [
        (WordTrainingConfig { seed: 2, ..config.clone() }, "seed"),
        (WordTrainingConfig { epochs: 2, ..config.clone() }, "epochs"),
        (WordTrainingConfig { subwords: Some(SubwordConfig::default()), ..config.clone() }, "subwords"),
    ] {
        let error = with(changed, Accept::Exact).unwrap_err();
        assert!(matches!(&error, Error::Differences { differences } if differences[0].name == name), "{error}");
    }
    let error = with(WordTrainingConfig { workers: 2, ..config.clone() }, Accept::Anything).unwrap_err();
    assert!(matches!(&error, Error::InvalidConfig { name: "workers", .. }), "{error}");
    let longer = WordTrainingConfig { epochs: 5, keep_checkpoints: Some(1), ..config.clone() };
    let (mut trainer, differences) = with(longer, Accept::Exact).unwrap();
    assert_eq!(differences.len(), 2);
    assert_eq!(to_the_end(&mut trainer, &text).unwrap().words, text_words(&text) * 5);

    // A run that was at its end goes on too.
    let last = checkpoints(&run).pop().unwrap();
    let longer = WordTrainingConfig { epochs: 4, ..config.clone() };
    let mut trainer = WordTrainer::resume(&last, Some(longer), Accept::Exact).unwrap().0;
    assert_eq!(to_the_end(&mut trainer, &text).unwrap().words, text_words(&text) * 4);

    let other = folder.path().join("other");
    let changed = corpus(&other, 300);
    std::fs::write(
        other.join("b.txt"),
        std::fs::read_to_string(other.join("b.txt")).unwrap().replacen("w1 ", "w2 ", 1),
    )
    .unwrap();
    let error = to_the_end(&mut resume(from).unwrap(), &changed).unwrap_err();
    assert!(matches!(&error, Error::Differences { differences } if differences[0].name == "fingerprint"), "{error}");
    to_the_end(&mut WordTrainer::resume(from, None, Accept::Anything).unwrap().0, &changed).unwrap();
}

#[test]
fn other_blocks_are_refused_by_the_name_of_what_makes_them() {
    let folder = tempfile::tempdir().unwrap();
    // Every second word is the same: without subsampling, blocks of such a text are small.
    let path = folder.path().join("skewed");
    std::fs::write(&path, (0..6000).map(|at| format!("same w{} ", at * at % 61)).collect::<String>()).unwrap();
    let skewed = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
    let sampled = WordTrainingConfig { block: 48, ..config() };
    let saved = trainer(&skewed, &sampled).save(folder.path().join("skewed_run")).unwrap();
    let with =
        |sample| WordTrainer::resume(&saved, Some(WordTrainingConfig { sample, ..sampled.clone() }), Accept::Anything);
    let error = with(0.0).unwrap_err();
    assert!(matches!(&error, Error::InvalidConfig { name: "sample", .. }), "{error}");
    to_the_end(&mut with(1e-2).unwrap().0, &skewed).unwrap();
}

fn text_words(text: &TextFiles) -> u64 {
    WordVocabulary::build(text, WordSplit::Blanks, 1).unwrap().corpus_words()
}

#[test]
fn numbers_that_go_wrong_leave_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 300);
    let run = folder.path().join("run");
    for mode in [WorkerMode::Deterministic, WorkerMode::Async] {
        let config = WordTrainingConfig { mode, workers: 2, ..config() };
        let mut good = trainer(&text, &config);
        let saved = good.save(&run).unwrap();
        let before = files(&saved);
        drop(good);
        let exploding = WordTrainingConfig { learning_rate: 1e38, save_interval: Some(50), ..config };
        let mut trainer = WordTrainer::resume(&saved, Some(exploding), Accept::Anything).unwrap().0;
        trainer.save_to(&run).unwrap();
        let error = to_the_end(&mut trainer, &text).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. }), "{mode:?}: {error}");
        assert!(matches!(trainer.save(&run), Err(Error::NonFinite { .. })), "{mode:?}");
        drop(trainer);
        let last = Checkpoint::open(&run).unwrap();
        assert!(last.manifest().step < 1000, "{mode:?}: {}", last.manifest().step);
        assert!(files(&saved) == before);
        resume(&run).unwrap();
        std::fs::remove_dir_all(&run).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_is_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 20);
    let saved = trainer(&text, &config()).save(folder.path().join("run")).unwrap();
    resume(&saved).unwrap();
    let mut checked = 0;
    for name in ["vocabulary.txt", "model.safetensors", "manifest.json"] {
        let path = saved.join(name);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(1 + good.len() / 150) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            for bad in [&bad[..], &good[..at]] {
                std::fs::write(&path, bad).unwrap();
                let error = resume(&saved).unwrap_err();
                let typed = matches!(
                    error,
                    Error::InvalidFile { .. }
                        | Error::Checksum { .. }
                        | Error::EmptyFile { .. }
                        | Error::MissingTensor { .. }
                        | Error::Shape { .. }
                );
                assert!(typed, "{name} at {at}: {error}");
                checked += 1;
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(resume(&saved).is_err());
        std::fs::write(&path, good).unwrap();
    }
    assert!(checked > 600, "{checked}");
    resume(&saved).unwrap();
}

/// Places that no worker was at, under the right checksum.
#[test]
fn a_lying_place_is_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(&folder.path().join("text"), 20);
    let config = WordTrainingConfig { save_interval: Some(50), keep_checkpoints: None, ..config() };
    let run = folder.path().join("run");
    let mut first = trainer(&text, &config);
    first.save_to(&run).unwrap();
    to_the_end(&mut first, &text).unwrap();
    drop(first);
    let saved = Checkpoint::open(&checkpoints(&run)[0]).unwrap();
    let mut good = resume(saved.folder()).unwrap();
    let (layout, vocabulary) = (good.model().layout().clone(), saved.file("vocabulary.txt").unwrap());
    let store = saved.load("model", &layout).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = saved.manifest().clone();
        change(&mut manifest.state["workers"][0]);
        let files = [("vocabulary.txt", vocabulary.clone().into())];
        let stores = [("model", &store)];
        let run = RunFolder::open(folder.path()).unwrap();
        run.write(manifest, &layout, &stores, &files, None).unwrap();
        resume(folder.path()).and_then(|mut trainer| to_the_end(&mut trainer, &text))
    };
    let words = to_the_end(&mut good, &text).unwrap().words;
    assert_eq!(with(&|_| ()).unwrap().words, words);
    for (path, value) in [
        ("/next_block", u64::MAX),
        ("/text/words", u64::MAX),
        ("/text/line", u64::from(u32::MAX)),
        ("/text/epoch", u64::MAX),
        ("/text/epoch", 3),
        ("/text/file", u64::MAX),
        ("/text/file", 7),
        ("/text/offset", u64::MAX),
        ("/words/3", 60_000),
    ] {
        let lie = |place: &mut serde_json::Value| *place.pointer_mut(path).unwrap() = value.into();
        let error = with(&lie).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. } | Error::Shape { .. }), "{path} = {value}: {error}");
    }
    for list in ["/words", "/lines"] {
        let error = with(&|place| *place.pointer_mut(list).unwrap() = serde_json::json!([1, 2])).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{list}: {error}");
    }
}
