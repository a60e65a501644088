//! Numbers that go wrong, under every policy: planted in tables where some batches meet them, or made by a learning rate
//! that lets the weights overflow. What stops or rolls back a language model is in `resume.rs`, word embeddings are in
//! `recovery_words.rs`.

mod support;

use std::ops::ControlFlow;

use cllm::checkpoint::{Accept, Checkpoint};
use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{Batch, PairBatch, PairSource, PairStore, PairStoreBuilder, TokenRows};
use cllm::models::pair_encoder::PairEncoder;
use cllm::train::{PairTrainer, StepOutcome};
use cllm::{Error, OnNonFinite, Result, Trainer, TrainingConfig, Transformer};
use ndarray::Array2;
use support::{checkpoints, files, model_config, training_config};

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
}
