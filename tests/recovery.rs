//! Numbers that go wrong, under every policy and for every trainer: planted in tables where some batches meet them, or
//! made by a learning rate that lets the weights overflow. What stops or rolls back a language model is in `resume.rs`.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cllm::checkpoint::{Accept, Checkpoint, RunFolder};
use cllm::config::{PairEncoderConfig, PairTrainingConfig, WordObjective, WordTrainingConfig, WorkerMode};
use cllm::data::{
    Batch, PairBatch, PairSource, PairStore, PairStoreBuilder, TextFiles, TextOptions, TokenRows, WordSplit,
    WordVocabulary,
};
use cllm::models::pair_encoder::PairEncoder;
use cllm::train::{PairTrainer, StepOutcome, WordSummary, WordTrainer};
use cllm::{Error, OnNonFinite, Result, Trainer, TrainingConfig, Transformer};
use ndarray::Array2;
use support::{files, model_config, training_config};

fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// The vector of the last position overflows wherever it is normalised, and only sequences of full length have it.
#[test]
fn a_language_model_skips_what_fails_and_gives_up_at_the_limit() {
    let config = TrainingConfig { on_non_finite: OnNonFinite::Skip, non_finite_limit: 2, ..training_config() };
    let mut model = Transformer::new(model_config(), 1).unwrap();
    let positions = model.layout().find("wpe.weight").unwrap().id;
    model.parameters_mut().slice_mut(positions)[7 * 8..].fill(f32::MAX);
    let mut trainer = Trainer::new(model, config).unwrap();
    let batch = |length| {
        let ids = Array2::from_shape_fn((3, length), |(row, column)| (row + column) as u32);
        Batch::new(ids.clone(), ids).unwrap()
    };
    let (good, bad) = (batch(7), batch(8));
    // A success in between begins a new row of failures.
    let course = [(&good, 1), (&bad, 2), (&bad, 3), (&good, 4), (&bad, 5), (&bad, 6)];
    for (batch, step) in course {
        let before = trainer.model().parameters().values().to_vec();
        let report = trainer.step(batch).unwrap();
        let skipped = std::ptr::eq(batch, &bad);
        let expected = if skipped { StepOutcome::Skipped } else { StepOutcome::Updated };
        assert_eq!((report.step, report.outcome, report.loss.is_nan()), (step, expected, skipped));
        assert_eq!(trainer.model().parameters().values() == before, skipped);
    }
    assert!(matches!(trainer.step(&bad), Err(Error::NonFinite { step: 7, .. })));
    assert_eq!(trainer.steps(), 6);
    assert_eq!(trainer.step(&good).unwrap().step, 7);
}

const TOKENS: usize = 30;

/// 60 pairs; the documents of every tenth repeat the last token, the others do not have it.
fn pairs() -> PairStore {
    let mut builder = PairStoreBuilder::new(TOKENS, 0).unwrap();
    let last = TOKENS as u32 - 1;
    for pair in 0..60 {
        let query = vec![pair % last, (pair * pair + 3) % last];
        let document = if pair % 10 == 0 { vec![last, last] } else { vec![(pair + 1) % last] };
        builder.push(&[query, document]).unwrap();
    }
    builder.finish()
}

fn pair_config(on_non_finite: OnNonFinite) -> PairTrainingConfig {
    PairTrainingConfig {
        batch_size: 4,
        max_tokens: 3,
        max_steps: Some(40),
        epochs: None,
        warmup_steps: 2,
        workers: 2,
        seed: 4,
        save_interval: Some(3),
        keep_checkpoints: None,
        on_non_finite,
        ..Default::default()
    }
}

fn pair_encoder() -> PairEncoder {
    PairEncoder::new(PairEncoderConfig { vocabulary_size: TOKENS, dim: 8, token_weights: false }, 3).unwrap()
}

/// Outcomes and steps of a run to the end.
fn run_pairs(trainer: &mut PairTrainer, source: &PairSource) -> Result<Vec<(u64, StepOutcome)>> {
    let mut outcomes = Vec::new();
    trainer.run(source, |progress| {
        let report = progress.report;
        assert_eq!(report.loss.is_nan(), report.outcome != StepOutcome::Updated && report.learning_rate > 0.0);
        outcomes.push((report.step, report.outcome));
        ControlFlow::Continue(())
    })?;
    Ok(outcomes)
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// A sum of two vectors that cannot be represented: every weight is finite, and the batches with it fail.
#[test]
fn a_text_encoder_skips_the_batches_that_fail_and_is_resumed_exactly() {
    let run = tempfile::tempdir().unwrap();
    let config = pair_config(OnNonFinite::Skip);
    let source = PairSource::new(pairs(), config.batch_size, config.seed).unwrap();
    let mut encoder = pair_encoder();
    encoder.parameters_mut().values_mut()[(TOKENS - 1) * 8..][..8].fill(f32::MAX);

    let stop = PairTrainingConfig { on_non_finite: OnNonFinite::Stop, ..config.clone() };
    let error = run_pairs(&mut PairTrainer::with_encoder(encoder.clone(), stop).unwrap(), &source).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { what, .. } if what.starts_with("the ")), "{error}");

    let mut trainer = PairTrainer::with_encoder(encoder, config).unwrap();
    trainer.save_to(run.path()).unwrap();
    let outcomes = run_pairs(&mut trainer, &source).unwrap();
    let steps: Vec<u64> = outcomes.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
    let updated = outcomes.iter().filter(|(_, outcome)| *outcome == StepOutcome::Updated).count();
    assert!((5..=35).contains(&updated), "{updated} of 40");
    assert!(outcomes.iter().all(|(_, outcome)| *outcome != StepOutcome::RolledBack));
    let expected = files(&trainer.save(run.path()).unwrap());
    for from in checkpoints(run.path()) {
        let mut resumed = PairTrainer::resume(&from, None, Accept::Exact).unwrap().0;
        let at = resumed.steps() as usize;
        assert_eq!(run_pairs(&mut resumed, &source).unwrap(), outcomes[at..]);
        let end = tempfile::tempdir().unwrap();
        assert!(files(&resumed.save(end.path()).unwrap()) == expected, "{from:?}");
    }
}

#[test]
fn a_weight_of_a_text_encoder_that_is_not_finite_is_named_and_not_skipped() {
    for policy in [OnNonFinite::Stop, OnNonFinite::Skip] {
        let config = pair_config(policy);
        let source = PairSource::new(pairs(), config.batch_size, config.seed).unwrap();
        let mut encoder = pair_encoder();
        encoder.parameters_mut().values_mut()[8] = f32::NAN;
        let mut trainer = PairTrainer::with_encoder(encoder, config).unwrap();
        let error = run_pairs(&mut trainer, &source).unwrap_err();
        let named = matches!(&error, Error::NonFinite { step, what, .. }
            if *step == trainer.steps() + 1 && what == "a value of embedding.weight in model");
        assert!(named, "{error}");
    }
}

#[test]
fn a_skip_of_the_callers_batches_counts_and_gives_up_at_the_limit() {
    let mut encoder = pair_encoder();
    encoder.parameters_mut().values_mut()[(TOKENS - 1) * 8..][..8].fill(f32::MAX);
    let config = PairTrainingConfig { non_finite_limit: 2, ..pair_config(OnNonFinite::Skip) };
    let mut trainer = PairTrainer::with_encoder(encoder, config).unwrap();
    let batch = |texts: [Vec<u32>; 4]| PairBatch::new(texts.into_iter().collect::<TokenRows>(), 0).unwrap();
    let last = TOKENS as u32 - 1;
    let (good, bad) =
        (batch([vec![3], vec![5], vec![9], vec![4]]), batch([vec![3], vec![last, last], vec![9], vec![4]]));
    for (batch, step) in [(&bad, 1), (&good, 2), (&bad, 3), (&bad, 4)] {
        let before = trainer.encoder().parameters().values().to_vec();
        let report = trainer.step(batch).unwrap();
        let skipped = std::ptr::eq(batch, &bad);
        let expected = if skipped { StepOutcome::Skipped } else { StepOutcome::Updated };
        assert_eq!((report.step, report.outcome), (step, expected));
        assert_eq!(trainer.encoder().parameters().values() == before, skipped);
    }
    assert!(matches!(trainer.step(&bad), Err(Error::NonFinite { step: 5, .. })));
    assert_eq!(trainer.step(&good).unwrap().step, 5);
}

/// A learning rate that makes the vectors overflow, and one after a roll-back that does not.
fn exploding_pairs() -> PairTrainingConfig {
    PairTrainingConfig {
        learning_rate: 1e38,
        minimum_learning_rate: 1e38,
        warmup_steps: 0,
        roll_back_factor: 1e-40,
        ..pair_config(OnNonFinite::RollBack)
    }
}

#[test]
fn a_text_encoder_is_rolled_back_to_its_last_save_and_goes_on_with_a_lower_rate() {
    for with_folder in [true, false] {
        let run = tempfile::tempdir().unwrap();
        let config = exploding_pairs();
        let source = PairSource::new(pairs(), config.batch_size, config.seed).unwrap();
        let mut trainer = PairTrainer::with_encoder(pair_encoder(), config).unwrap();
        if with_folder {
            trainer.save_to(run.path()).unwrap();
        }
        let outcomes = run_pairs(&mut trainer, &source).unwrap();
        let rolled_back: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome == StepOutcome::RolledBack).collect();
        assert_eq!(rolled_back.len(), 1, "{outcomes:?}");
        assert!(rolled_back[0].0.is_multiple_of(3), "{rolled_back:?}");
        assert_eq!(outcomes.last(), Some(&(40, StepOutcome::Updated)));
        assert!(finite(trainer.encoder().parameters().values()));
        // It is the run that begins there at the lower rate: moments and counts of updates were rolled back too.
        let low = PairTrainingConfig { learning_rate: 1e-2, minimum_learning_rate: 1e-2, ..exploding_pairs() };
        let saved = run.path().join("checkpoints").join(format!("step-{:08}", rolled_back[0].0));
        let mut other = match saved.exists() {
            true => PairTrainer::resume(&saved, Some(low), Accept::Anything).unwrap().0,
            false => PairTrainer::with_encoder(pair_encoder(), low).unwrap(),
        };
        if rolled_back[0].0 == 0 || saved.exists() {
            run_pairs(&mut other, &source).unwrap();
            let (found, expected) = (trainer.encoder().parameters(), other.encoder().parameters());
            for (found, expected) in found.values().iter().zip(expected.values()) {
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} for {expected}");
            }
        }
        if !with_folder {
            continue;
        }
        let expected = files(&trainer.save(run.path()).unwrap());
        let all = checkpoints(run.path());
        assert!(all.len() > 10, "{all:?}");
        for from in all {
            let manifest = Checkpoint::open(&from).unwrap().manifest().clone();
            // Those before the roll-back would meet it again.
            if manifest.learning_rate_factor == 1e-40 {
                let mut resumed = PairTrainer::resume(&from, None, Accept::Exact).unwrap().0;
                run_pairs(&mut resumed, &source).unwrap();
                let end = tempfile::tempdir().unwrap();
                assert!(files(&resumed.save(end.path()).unwrap()) == expected, "{from:?}");
            } else {
                assert_eq!(manifest.step, rolled_back[0].0);
            }
        }
    }
}

#[test]
fn roll_backs_that_do_not_help_end_in_the_error() {
    let config = PairTrainingConfig { roll_back_factor: 1.0, non_finite_limit: 3, ..exploding_pairs() };
    let source = PairSource::new(pairs(), config.batch_size, config.seed).unwrap();
    let mut trainer = PairTrainer::with_encoder(pair_encoder(), config).unwrap();
    let mut rolled_back = 0;
    let ended = trainer.run(&source, |progress| {
        rolled_back += u32::from(progress.report.outcome == StepOutcome::RolledBack);
        ControlFlow::Continue(())
    });
    assert!(matches!(ended, Err(Error::NonFinite { .. })));
    assert_eq!(rolled_back, 3);

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
