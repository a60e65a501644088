//! Numbers that go wrong while word embeddings are trained, under every policy, as in `recovery.rs`.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cllm::checkpoint::{Accept, Checkpoint, RunFolder};
use cllm::config::{WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{TextFiles, TextOptions, WordSplit, WordVocabulary};
use cllm::train::{WordSummary, WordTrainer};
use cllm::{Error, OnNonFinite, Result};
use support::{checkpoints, files};

fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// 150 lines over 20 words, with one word on a line of its own, three times.
fn corpus(folder: &Path) -> TextFiles {
    let line = |line: usize| match line {
        70 => "thrice thrice thrice\n".to_owned(),
        _ => {
            (0..7).map(|word| format!("w{} ", (line * line + word * word * 3 + line * word) % 20)).collect::<String>()
                + "\n"
        }
    };
    std::fs::write(folder.join("text.txt"), (0..150).map(line).collect::<String>()).unwrap();
    TextFiles::collect(&[folder.join("text.txt")], &TextOptions::default()).unwrap()
}

fn word_config(on_non_finite: OnNonFinite) -> WordTrainingConfig {
    WordTrainingConfig {
        objective: WordObjective::Cbow,
        dim: 8,
        sample: 0.0,
        epochs: 3,
        save_interval: Some(300),
        keep_checkpoints: None,
        block: 24,
        workers: 1,
        on_non_finite,
        ..Default::default()
    }
}

fn word_trainer(text: &TextFiles, config: &WordTrainingConfig) -> WordTrainer {
    WordTrainer::new(WordVocabulary::build(text, WordSplit::Blanks, 1).unwrap(), config.clone()).unwrap()
}

fn run_words(trainer: &mut WordTrainer, text: &TextFiles) -> Result<WordSummary> {
    trainer.run(text, |_| ControlFlow::Continue(()))
}

/// A checkpoint of a new trainer of `config` in `run`, with `value` in the row of the word `thrice`.
fn planted(run: &Path, text: &TextFiles, config: &WordTrainingConfig, table: &str, value: f32) -> PathBuf {
    planted_where(|word| word == "thrice", run, text, config, (table, value))
}

/// A checkpoint of a new trainer of `config` in `run`, with a value in some words' rows of a table.
fn planted_where(
    has_value: impl Fn(&str) -> bool,
    run: &Path,
    text: &TextFiles,
    config: &WordTrainingConfig,
    (table, value): (&str, f32),
) -> PathBuf {
    let source = tempfile::tempdir().unwrap();
    let mut trainer = word_trainer(text, config);
    let saved = Checkpoint::open(trainer.save(source.path()).unwrap()).unwrap();
    let layout = trainer.model().layout();
    let mut store = saved.load("model", layout).unwrap();
    for (row, _) in trainer.vocabulary().words().enumerate().filter(|(_, word)| has_value(word)) {
        store.slice_mut(layout.find(table).unwrap().id)[8 * row..][..8].fill(value);
    }
    let vocabulary = ("vocabulary.txt", saved.file("vocabulary.txt").unwrap().into());
    let folder = RunFolder::open(run).unwrap();
    folder.write(saved.manifest().clone(), layout, &[("model", &store)], &[vocabulary], None).unwrap()
}

/// The mean of two vectors whose sum cannot be represented: every weight is finite, and the blocks with it fail.
#[test]
fn word_embeddings_skip_the_blocks_that_fail_and_are_resumed_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(folder.path());
    for (workers, mode) in [(1, WorkerMode::Deterministic), (2, WorkerMode::Deterministic), (2, WorkerMode::Async)] {
        let case = format!("{workers} workers, {mode:?}");
        let config = WordTrainingConfig { workers, mode, ..word_config(OnNonFinite::Skip) };
        let run = tempfile::tempdir().unwrap();
        let from = planted(run.path(), &text, &config, "input", f32::MAX);
        let resume = |from: &Path| WordTrainer::resume(from, None, Accept::Exact).unwrap().0;

        let mut trainer = resume(&from);
        trainer.save_to(run.path()).unwrap();
        let summary = run_words(&mut trainer, &text).unwrap();
        // The three words may fall into two blocks, and do so in every epoch.
        assert!([3, 6].contains(&summary.skipped) && summary.rolled_back == 0, "{case}: {summary:?}");
        assert!(summary.loss.is_finite() && finite(trainer.model().parameters().values()), "{case}");
        let expected = files(&trainer.save(run.path()).unwrap());
        drop(trainer);
        if mode == WorkerMode::Async {
            continue;
        }
        let all = checkpoints(run.path());
        assert!(all.len() > 8, "{all:?}");
        for from in all {
            let mut resumed = resume(&from);
            run_words(&mut resumed, &text).unwrap();
            let end = tempfile::tempdir().unwrap();
            assert!(files(&resumed.save(end.path()).unwrap()) == expected, "{case}: {from:?}");
        }

        // Whoever stops, and goes on, does the same.
        let stop = WordTrainingConfig { on_non_finite: OnNonFinite::Stop, ..config.clone() };
        let mut stopping = WordTrainer::resume(&from, Some(stop), Accept::Anything).unwrap().0;
        let mut stops = 0;
        while let Err(error) = run_words(&mut stopping, &text) {
            assert!(matches!(&error, Error::NonFinite { what, .. } if what == "the loss"), "{error}");
            stops += 1;
        }
        assert_eq!(stops, summary.skipped);
        let skipping = resume(checkpoints(run.path()).last().unwrap());
        assert_eq!(stopping.model().parameters().values(), skipping.model().parameters().values(), "{case}");

        let strict = WordTrainingConfig { non_finite_limit: 0, ..config };
        let mut strict = WordTrainer::resume(&from, Some(strict), Accept::Anything).unwrap().0;
        assert!(matches!(run_words(&mut strict, &text), Err(Error::NonFinite { .. })), "{case}");
    }
}

/// The second run fails, returns to where the first began, and is stopped before it is where it began itself.
#[test]
fn a_run_that_was_rolled_back_to_before_its_start_counts_no_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    let text: String = (0..300_000_usize)
        .map(|at| format!("w{}{}", at * at % 61, if at.is_multiple_of(9) { "\n" } else { " " }))
        .collect();
    std::fs::write(&path, text + "\nthrice thrice thrice\n").unwrap();
    let text = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
    let run = tempfile::tempdir().unwrap();
    let config = WordTrainingConfig { epochs: 1, save_interval: None, ..word_config(OnNonFinite::RollBack) };
    let from = planted(run.path(), &text, &config, "input", f32::MAX);
    let mut trainer = WordTrainer::resume(&from, None, Accept::Exact).unwrap().0;
    let mut stop_after = |reports| {
        let mut seen = 0;
        let run = trainer.run(&text, |_| {
            seen += 1;
            if seen == reports { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        run.unwrap()
    };
    let (first, second) = (stop_after(2), stop_after(1));
    assert!(first.stopped && first.run_words == first.words && first.rolled_back == 0, "{first:?}");
    assert!(second.stopped && second.words < first.words && second.rolled_back == 1, "{second:?}");
    assert_eq!(second.run_words, 0);
}

/// All words have such means, and every block fails.
#[test]
fn word_embeddings_give_up_after_as_many_failures_in_a_row_as_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(folder.path());
    for (workers, mode) in [(1, WorkerMode::Deterministic), (2, WorkerMode::Deterministic), (1, WorkerMode::Async)] {
        let config = WordTrainingConfig { workers, mode, non_finite_limit: 3, ..word_config(OnNonFinite::Skip) };
        let run = tempfile::tempdir().unwrap();
        let from = planted_where(|_| true, run.path(), &text, &config, ("input", f32::MAX));
        let mut trainer = WordTrainer::resume(&from, None, Accept::Exact).unwrap().0;
        let result = run_words(&mut trainer, &text);
        // Of 1000 words in each epoch, the fourth block of at most 24 fails.
        let soon = |step: u64| step < 200;
        assert!(matches!(result, Err(Error::NonFinite { step, .. }) if soon(step)), "{workers}, {mode:?}: {result:?}");
        let found = WordTrainer::resume(&from, None, Accept::Exact).unwrap().0;
        assert_eq!(trainer.model().parameters().values(), found.model().parameters().values(), "{workers} workers");
    }
}

/// That the first worker goes on meanwhile does not make another row of failures of it.
#[test]
fn failures_of_another_worker_than_the_first_count_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    let word = |at: usize| {
        format!(
            "{}{}{}",
            if at < 200_000 { "a" } else { "b" },
            at * at % 20,
            if at.is_multiple_of(9) { "\n" } else { " " }
        )
    };
    std::fs::write(&path, (0..400_000).map(word).collect::<String>()).unwrap();
    let text = TextFiles::collect(&[path], &TextOptions::default()).unwrap();
    for mode in [WorkerMode::Deterministic, WorkerMode::Async] {
        let config = WordTrainingConfig { workers: 2, mode, non_finite_limit: 3, ..word_config(OnNonFinite::Skip) };
        let run = tempfile::tempdir().unwrap();
        let from = planted_where(|word| word.starts_with('b'), run.path(), &text, &config, ("input", f32::MAX));
        let result = run_words(&mut WordTrainer::resume(&from, None, Accept::Exact).unwrap().0, &text);
        // Of its blocks the fourth ends the run, of at most 24 words.
        assert!(matches!(result, Err(Error::NonFinite { step, .. }) if step < 200), "{mode:?}: {result:?}");
    }
}

#[test]
fn a_weight_of_a_word_that_is_not_finite_is_named_and_not_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(folder.path());
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for mode in [WorkerMode::Deterministic, WorkerMode::Async] {
            for policy in [OnNonFinite::Stop, OnNonFinite::Skip] {
                for (table, value) in [("input", f32::NAN), ("output", f32::NAN), ("input", f32::INFINITY)] {
                    let config = WordTrainingConfig { objective, mode, workers: 2, ..word_config(policy) };
                    let run = tempfile::tempdir().unwrap();
                    let from = planted(run.path(), &text, &config, table, value);
                    let mut trainer = WordTrainer::resume(&from, None, Accept::Exact).unwrap().0;
                    let error = run_words(&mut trainer, &text).unwrap_err();
                    let case = format!("{objective:?}, {mode:?}, {policy:?}, {value} in {table}");
                    let named = matches!(&error, Error::NonFinite { what, .. }
                        if what.starts_with("a value of ") && what.ends_with(" in model"));
                    assert!(named, "{case}: {error}");
                }
            }
        }
    }
}

/// A learning rate that makes the vectors overflow, and one after a roll-back that does not.
fn exploding_words() -> WordTrainingConfig {
    WordTrainingConfig { learning_rate: 1e38, roll_back_factor: 1e-40, ..word_config(OnNonFinite::RollBack) }
}

#[test]
fn word_embeddings_are_rolled_back_to_their_last_save_and_go_on_with_a_lower_rate() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(folder.path());
    for objective in [WordObjective::SkipGram, WordObjective::Cbow] {
        for (workers, mode) in [(1, WorkerMode::Deterministic), (2, WorkerMode::Deterministic), (2, WorkerMode::Async)]
        {
            for with_folder in [true, false] {
                let case = format!("{objective:?}, {workers} workers, {mode:?}, {with_folder}");
                let config = WordTrainingConfig { objective, workers, mode, ..exploding_words() };
                let run = tempfile::tempdir().unwrap();
                let mut trainer = word_trainer(&text, &config);
                if with_folder {
                    trainer.save_to(run.path()).unwrap();
                }
                let summary = run_words(&mut trainer, &text).unwrap();
                assert_eq!((summary.skipped, summary.rolled_back), (0, 1), "{case}");
                assert_eq!(summary.words, 3 * trainer.vocabulary().corpus_words(), "{case}");
                assert!(finite(trainer.model().parameters().values()), "{case}");
                if !with_folder {
                    // Nothing was saved before it failed: it is the run that begins at the lower rate, with every word.
                    let low = WordTrainingConfig {
                        learning_rate: 1e-2,
                        minimum_learning_rate: 0.0,
                        save_interval: None,
                        ..config.clone()
                    };
                    let mut other = word_trainer(&text, &low);
                    run_words(&mut other, &text).unwrap();
                    let mut pairs =
                        trainer.model().parameters().values().iter().zip(other.model().parameters().values());
                    let same = pairs.all(|(found, expected)| (found - expected).abs() <= 1e-5);
                    assert!(same || mode == WorkerMode::Async, "{case}");
                    continue;
                }
                let saved = trainer.save(run.path()).unwrap();
                let factor = Checkpoint::open(&saved).unwrap().manifest().learning_rate_factor;
                assert_eq!(factor, 1e-40, "{case}");
                let expected = files(&saved);
                let all = checkpoints(run.path());
                // How often the first worker finds that a save is due depends on its share of the processors.
                assert!(all.len() > 5 || mode == WorkerMode::Async, "{case}: {all:?}");
                for from in all {
                    let mut resumed = WordTrainer::resume(&from, None, Accept::Exact).unwrap().0;
                    assert_eq!(run_words(&mut resumed, &text).unwrap().rolled_back, 0, "{case}");
                    let end = tempfile::tempdir().unwrap();
                    let same = files(&resumed.save(end.path()).unwrap()) == expected;
                    assert!(same || mode == WorkerMode::Async, "{case}: {from:?}");
                }
            }
        }
    }
}

#[test]
fn roll_backs_that_do_not_help_end_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let text = corpus(folder.path());
    for (workers, mode) in [(1, WorkerMode::Deterministic), (2, WorkerMode::Deterministic), (2, WorkerMode::Async)] {
        let config = WordTrainingConfig {
            workers,
            mode,
            roll_back_factor: 1.0,
            non_finite_limit: 3,
            // In asynchronous mode the others may get beyond a failure before they notice the next.
            save_interval: None,
            ..exploding_words()
        };
        let mut trainer = word_trainer(&text, &config);
        let error = run_words(&mut trainer, &text).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { .. }), "{workers}, {mode:?}: {error}");
    }
}
