//! A resumed run on pairs ends in the bytes of the run that was never interrupted.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cllm::checkpoint::{Accept, Checkpoint, RunFolder};
use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{PairSource, PairStore, PairStoreBuilder};
use cllm::models::pair_encoder::PairEncoder;
use cllm::params::ParameterStore;
use cllm::rng::{Purpose, Stream};
use cllm::train::{PairSummary, PairTrainer};
use cllm::{Error, Result};
use support::{files, trainer as language_model, training_config};

const VOCABULARY: usize = 60;

/// 100 pairs of up to five tokens a text, some ids rare.
fn pairs(hard_negatives: usize) -> PairStore {
    let stream = Stream::new(7, Purpose::Caller, 0);
    let mut builder = PairStoreBuilder::new(VOCABULARY, hard_negatives).unwrap();
    for pair in 0..100 {
        let text = |text: u64| {
            let first = 100 * pair + 10 * text;
            let id = |token| stream.below(first + token, 1 + stream.below(first + token + 5, VOCABULARY as u64)) as u32;
            (1..=1 + stream.below(first, 4)).map(id).collect::<Vec<u32>>()
        };
        builder.push(&(0..2 + hard_negatives as u64).map(text).collect::<Vec<_>>()).unwrap();
    }
    builder.finish()
}

fn encoder(token_weights: bool) -> PairEncoderConfig {
    PairEncoderConfig { vocabulary_size: VOCABULARY, dim: 12, token_weights }
}

/// 6 steps an epoch, 15 in all.
fn config() -> PairTrainingConfig {
    PairTrainingConfig {
        batch_size: 16,
        max_tokens: 5,
        max_steps: Some(15),
        epochs: None,
        warmup_steps: 3,
        weight_decay: 0.01,
        workers: 1,
        seed: 4,
        save_interval: Some(4),
        keep_checkpoints: None,
        ..Default::default()
    }
}

fn source(config: &PairTrainingConfig) -> PairSource {
    PairSource::new(pairs(config.hard_negatives), config.batch_size, config.seed).unwrap()
}

fn to_the_end(trainer: &mut PairTrainer, source: &PairSource) -> Result<PairSummary> {
    trainer.run(source, |_| ControlFlow::Continue(()))
}

fn resume(folder: &Path) -> Result<PairTrainer> {
    PairTrainer::resume(folder, None, Accept::Exact).map(|(trainer, differences)| {
        assert_eq!(differences, []);
        trainer
    })
}

/// The checkpoint of `step` in the run folder `run`.
fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}

#[test]
fn every_option_and_worker_count_resumes_exactly() {
    let mut resumed = 0;
    for workers in [1, 2, 3] {
        for (token_weights, hard_negatives, matryoshka, symmetric) in [
            (false, 0, vec![], false),
            (true, 0, vec![], false),
            (false, 2, vec![], false),
            (false, 0, vec![3, 8], true),
            (true, 1, vec![4], true),
        ] {
            let config = PairTrainingConfig { workers, hard_negatives, matryoshka, symmetric, ..config() };
            let source = source(&config);
            let mut unsaved = PairTrainer::new(encoder(token_weights), config.clone()).unwrap();
            let summary = to_the_end(&mut unsaved, &source).unwrap();
            let run = tempfile::tempdir().unwrap();
            let mut whole = PairTrainer::new(encoder(token_weights), config.clone()).unwrap();
            whole.save_to(run.path()).unwrap();
            to_the_end(&mut whole, &source).unwrap();
            let expected = files(&whole.save(run.path()).unwrap());
            assert_eq!(whole.encoder().parameters().values(), unsaved.encoder().parameters().values());
            for step in [4, 8, 12] {
                let mut trainer = resume(&checkpoint(run.path(), step)).unwrap();
                assert_eq!(trainer.steps(), step);
                let found = to_the_end(&mut trainer, &source).unwrap();
                assert_eq!((found.last, found.pairs), (summary.last, (15 - step) * 16));
                let end = tempfile::tempdir().unwrap();
                assert!(files(&trainer.save(end.path()).unwrap()) == expected, "{step}: {config:?}");
                resumed += 1;
            }
        }
    }
    assert_eq!(resumed, 45);
}

/// Steps that the caller makes need the learning rate of a schedule that only the run knew.
#[test]
fn a_stopped_run_is_continued_exactly_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = PairTrainingConfig { max_steps: None, epochs: Some(3), workers: 2, ..config() };
    let source = source(&config);
    let mut whole = PairTrainer::new(encoder(true), config.clone()).unwrap();
    to_the_end(&mut whole, &source).unwrap();
    let mut parts = PairTrainer::new(encoder(true), config).unwrap();
    let summary = parts.run(&source, |progress| match progress.report.step {
        7 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(summary.unwrap().stopped);
    let saved = parts.save(folder.path()).unwrap();
    assert_eq!(saved, parts.save(folder.path()).unwrap());
    let mut other = resume(folder.path()).unwrap();
    let mut batch = source.batch();
    for step in 7..18 {
        source.fill(step, &mut batch).unwrap();
        assert_eq!(parts.step(&batch).unwrap(), other.step(&batch).unwrap());
    }
    for trainer in [&parts, &other] {
        assert_eq!(trainer.encoder().parameters().values(), whole.encoder().parameters().values());
    }
    // Nothing is left to do.
    assert_eq!(to_the_end(&mut other, &source).unwrap().pairs, 0);
}

#[test]
fn the_last_checkpoints_are_kept() {
    let run = tempfile::tempdir().unwrap();
    let config = PairTrainingConfig { save_interval: Some(2), keep_checkpoints: Some(2), ..config() };
    let mut trainer = PairTrainer::new(encoder(false), config.clone()).unwrap();
    trainer.save_to(run.path()).unwrap();
    to_the_end(&mut trainer, &source(&config)).unwrap();
    trainer.save(run.path()).unwrap();
    let found: Vec<u64> = (1..=15).filter(|&step| checkpoint(run.path(), step).exists()).collect();
    assert_eq!(found, [14, 15]);
}

#[test]
fn what_differs_is_refused_by_name() {
    let run = tempfile::tempdir().unwrap();
    let config = config();
    let mut first = PairTrainer::new(encoder(false), config.clone()).unwrap();
    first.save_to(run.path()).unwrap();
    to_the_end(&mut first, &source(&config)).unwrap();
    drop(first);
    let from = checkpoint(run.path(), 8);
    let with = |config: &PairTrainingConfig, accept| PairTrainer::resume(&from, Some(config.clone()), accept);
    for (changed, name, accept) in [
        (PairTrainingConfig { temperature: 0.1, ..config.clone() }, "temperature", Accept::Anything),
        (PairTrainingConfig { max_steps: Some(9), ..config.clone() }, "max_steps", Accept::Anything),
        (PairTrainingConfig { workers: 2, ..config.clone() }, "workers", Accept::Rounding),
    ] {
        let error = with(&changed, Accept::Exact).unwrap_err();
        assert!(
            matches!(&error, Error::Differences { differences } if differences.len() == 1 && differences[0].name == name),
            "{error}"
        );
        assert_eq!(with(&changed, accept).unwrap().1.len(), 1);
    }
    let longer = PairTrainingConfig { max_steps: Some(20), save_interval: None, ..config.clone() };
    let (mut trainer, differences) = with(&longer, Accept::Exact).unwrap();
    assert_eq!(differences.len(), 2);
    assert_eq!(to_the_end(&mut trainer, &source(&longer)).unwrap().steps, 20);

    let fewer = PairSource::new(pairs(0).split_at(99).0, config.batch_size, config.seed).unwrap();
    let shuffled = PairSource::new(pairs(0), config.batch_size, config.seed + 1).unwrap();
    for (other, names) in [(fewer, &["fingerprint", "pairs"][..]), (shuffled, &["seed"])] {
        let mut trainer = resume(&from).unwrap();
        let Error::Differences { differences } = to_the_end(&mut trainer, &other).unwrap_err() else { panic!() };
        let mut found: Vec<&str> = differences.iter().map(|difference| difference.name.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, names);
        // What was refused leaves no trace, and the right data is still taken.
        let end = tempfile::tempdir().unwrap();
        let saved = Checkpoint::open(trainer.save(end.path()).unwrap()).unwrap();
        assert_eq!(saved.manifest().data, Checkpoint::open(&from).unwrap().manifest().data);
        to_the_end(&mut trainer, &source(&config)).unwrap();
        to_the_end(&mut PairTrainer::resume(&from, None, Accept::Anything).unwrap().0, &other).unwrap();
    }

    let end = tempfile::tempdir().unwrap();
    let other = language_model(&training_config()).save(end.path()).unwrap();
    assert!(matches!(resume(&other), Err(Error::InvalidFile { .. })));
}

#[test]
fn numbers_that_go_wrong_leave_the_last_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let config = PairTrainingConfig { save_interval: Some(1), ..config() };
    let source = source(&config);
    let mut good = PairTrainer::new(encoder(false), config.clone()).unwrap();
    let saved = good.save(run.path()).unwrap();
    let before = files(&saved);
    drop(good);
    let mut broken = PairEncoder::new(encoder(false), 1).unwrap();
    // In a row that batches touch, so that the loss is met; then in one that none does, so that only a save can see it.
    broken.parameters_mut().values_mut()[..12].fill(f32::INFINITY);
    let mut trainer = PairTrainer::with_encoder(broken, config.clone()).unwrap();
    trainer.save_to(run.path()).unwrap();
    let error = to_the_end(&mut trainer, &source).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { step: 1, what, .. } if what.contains("in model")), "{error}");
    assert!(matches!(trainer.save(run.path()), Err(Error::NonFinite { step: 0, .. })));
    drop(trainer);

    let mut broken =
        PairEncoder::new(PairEncoderConfig { vocabulary_size: VOCABULARY + 1, ..encoder(false) }, 1).unwrap();
    let last = VOCABULARY * 12;
    broken.parameters_mut().values_mut()[last] = f32::NAN;
    let mut trainer = PairTrainer::with_encoder(broken, config).unwrap();
    trainer.save_to(run.path()).unwrap();
    let error = to_the_end(&mut trainer, &source).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { step: 1, what, .. } if what.contains("in model")), "{error}");
    assert_eq!(trainer.steps(), 1);
    drop(trainer);
    assert_eq!(Checkpoint::open(run.path()).unwrap().folder(), saved);
    assert!(files(&saved) == before);
    resume(run.path()).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_a_typed_error() {
    let run = tempfile::tempdir().unwrap();
    let config = PairTrainingConfig { max_steps: Some(3), ..config() };
    let mut trainer = PairTrainer::new(encoder(true), config.clone()).unwrap();
    to_the_end(&mut trainer, &source(&config)).unwrap();
    let saved = trainer.save(run.path()).unwrap();
    resume(&saved).unwrap();
    let names: Vec<String> = files(&saved).into_keys().collect();
    assert_eq!(
        names,
        [
            "first_moments.safetensors",
            "manifest.json",
            "model.safetensors",
            "row_updates.u32",
            "second_moments.safetensors"
        ]
    );
    for name in names {
        let path = saved.join(&name);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(1 + good.len() / 100) {
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
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(resume(&saved).is_err());
        std::fs::write(&path, good).unwrap();
    }
    resume(&saved).unwrap();

    // Numbers of updates for more rows or fewer, under the right checksum.
    let layout = trainer.encoder().layout();
    let store = ParameterStore::zeros(layout);
    let stores = ["model", "first_moments", "second_moments"].map(|name| (name, &store));
    let manifest = Checkpoint::open(&saved).unwrap().manifest().clone();
    for (length, fits) in [(0, false), (4 * VOCABULARY - 4, false), (4 * VOCABULARY, true), (4 * VOCABULARY + 1, false)]
    {
        let other = tempfile::tempdir().unwrap();
        let updates = ("row_updates.u32", vec![0; length].into());
        let folder = RunFolder::open(other.path()).unwrap();
        let written = folder.write(manifest.clone(), layout, &stores, &[updates], None).unwrap();
        match resume(&written) {
            Ok(_) => assert!(fits, "{length}"),
            Err(error) => assert!(!fits && matches!(error, Error::InvalidFile { .. }), "{length}: {error}"),
        }
    }
}
