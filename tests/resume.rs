//! A resumed run ends in the bytes of the run that was never interrupted, and says what differs where it cannot.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use cllm::checkpoint::{Accept, Checkpoint, DifferenceKind};
use cllm::data::{Batch, SequenceSource, TokenStore};
use cllm::train::{ResumeOptions, StepOutcome};
use cllm::{
    Error, OnNonFinite, Optimizer, Schedule, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig,
};
use support::{ORDERS, files, model_config, run_to, source, source_of, tokens, trainer, training_config};

fn resume(folder: &Path) -> cllm::Result<Trainer> {
    Trainer::resume(folder, &ResumeOptions::default()).map(|(trainer, differences)| {
        assert_eq!(differences, []);
        trainer
    })
}

/// Compares a run to the end with one that is saved at `step` and resumed, in all files of their last checkpoints.
fn check_exact(model: TransformerConfig, config: &TrainingConfig, step: u64) {
    let folder = tempfile::tempdir().unwrap();
    let source = source(config);
    let [whole, halves] = ["whole", "halves"].map(|name| folder.path().join(name));

    let mut trainer = Trainer::new(Transformer::new(model.clone(), 1).unwrap(), config.clone()).unwrap();
    run_to(&mut trainer, &source, u64::MAX).unwrap();
    let steps = trainer.steps();
    let expected = files(&trainer.save(&whole).unwrap());

    let mut trainer = Trainer::new(Transformer::new(model, 1).unwrap(), config.clone()).unwrap();
    run_to(&mut trainer, &source, step).unwrap();
    trainer.save(&halves).unwrap();
    drop(trainer);
    let mut trainer = resume(&halves).unwrap();
    assert_eq!(trainer.steps(), step);
    run_to(&mut trainer, &source, u64::MAX).unwrap();
    assert_eq!(trainer.steps(), steps);
    let found = files(&trainer.save(&halves).unwrap());

    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, expected) in expected {
        assert!(found[&name] == expected, "{name} differs, resumed at {step}: {config:?}");
    }
}

#[test]
fn every_optimizer_order_and_worker_count_resumes_exactly() {
    let model =
        TransformerConfig { embedding_dropout: 0.1, attention_dropout: 0.2, residual_dropout: 0.3, ..model_config() };
    let mut checked = 0;
    for (optimizer, nesterov) in [(Optimizer::AdamW, false), (Optimizer::Sgd, false), (Optimizer::Sgd, true)] {
        for moving_average_decay in [None, Some(0.9)] {
            for (workers, sharding) in
                [(1, Sharding::Auto), (2, Sharding::Sequences), (2, Sharding::Operations), (3, Sharding::Auto)]
            {
                for batch_order in ORDERS {
                    let accumulation_steps = 1 + checked % 2;
                    let config = TrainingConfig {
                        optimizer,
                        nesterov,
                        moving_average_decay,
                        workers,
                        sharding,
                        batch_order,
                        accumulation_steps,
                        ..training_config()
                    };
                    // Neither at the beginning nor at the end of an epoch of 6 or 3 steps.
                    check_exact(model.clone(), &config, [4, 5, 7, 8][checked % 4]);
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 72);
}

#[test]
fn every_schedule_resumes_exactly() {
    for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::WarmupStableDecay] {
        for (max_steps, epochs) in [(Some(9), None), (None, Some(2)), (Some(100), Some(1))] {
            let config = TrainingConfig { schedule, max_steps, epochs, ..training_config() };
            check_exact(model_config(), &config, 1);
            check_exact(model_config(), &config, 5);
        }
    }
}

/// A caller with a loop of its own, whose schedule is that of `max_steps`.
#[test]
fn steps_of_ones_own_resume_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainingConfig { schedule: Schedule::Linear, ..training_config() };
    let source = source(&config);
    let mut batch = Batch::zeros(3, 8);
    let mut steps = |trainer: &mut Trainer, range: std::ops::Range<u64>| {
        for step in range {
            source.fill(step, &mut batch).unwrap();
            trainer.step(&batch).unwrap();
        }
    };
    let mut whole = trainer(&config);
    steps(&mut whole, 0..10);
    let mut first = trainer(&config);
    steps(&mut first, 0..4);
    first.save(folder.path()).unwrap();
    let mut second = resume(folder.path()).unwrap();
    steps(&mut second, 4..10);
    assert_eq!(whole.model().parameters().values(), second.model().parameters().values());
}

#[test]
fn run_saves_beside_training_and_keeps_the_last_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainingConfig { save_interval: Some(3), keep_checkpoints: Some(2), ..training_config() };
    let source = source(&config);
    let mut whole = trainer(&config);
    whole.save_to(folder.path()).unwrap();
    run_to(&mut whole, &source, u64::MAX).unwrap();
    let checkpoints = folder.path().join("checkpoints");
    let mut names: Vec<_> =
        fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["latest", "step-00000009", "step-00000012"]);
    // A save of the same step is the one that is there.
    let last = whole.save(folder.path()).unwrap();
    assert_eq!(last, checkpoints.join("step-00000014"));
    assert_eq!(whole.save(folder.path()).unwrap(), last);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().folder(), last);

    for step in [12, 14] {
        let mut resumed = resume(&checkpoints.join(format!("step-{step:08}"))).unwrap();
        assert_eq!(resumed.steps(), step);
        run_to(&mut resumed, &source, u64::MAX).unwrap();
        assert_eq!(whole.model().parameters().values(), resumed.model().parameters().values(), "from {step}");
    }
}

#[test]
fn a_folder_without_a_checkpoint_says_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(resume(folder.path()), Err(Error::NoCheckpoint { path }) if path == folder.path()));
    assert!(matches!(resume(&folder.path().join("absent")), Err(Error::Io { .. })));
    trainer(&training_config()).save_to(folder.path()).unwrap();
    assert!(matches!(resume(folder.path()), Err(Error::NoCheckpoint { .. })));
}

#[test]
fn a_run_folder_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (trainer(&training_config()), trainer(&training_config()));
    first.save(folder.path()).unwrap();
    // The same folder under another path.
    first.save(folder.path().join("checkpoints/..")).unwrap();
    assert!(matches!(second.save(folder.path()), Err(Error::Locked { process: Some(_), .. })));
    drop(first);
    second.save(folder.path()).unwrap();
}

/// The names and kinds of all differences when a checkpoint of `training_config` is resumed with `config` and `data`.
fn differences(
    config: Option<TrainingConfig>,
    data: Option<&SequenceSource>,
    accept: Accept,
) -> Result<Vec<(DifferenceKind, String)>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let mut first = trainer(&training_config());
    run_to(&mut first, &source(&training_config()), 3).unwrap();
    first.save(folder.path()).unwrap();
    let (_, differences) = Trainer::resume(folder.path(), &ResumeOptions { config, data, accept })?;
    Ok(differences.into_iter().map(|difference| (difference.kind, difference.name)).collect())
}

#[test]
fn differences_are_listed_and_go_on_only_as_the_caller_chose() {
    let base = training_config();
    let workers = TrainingConfig { workers: 2, ..base.clone() };
    let rate = TrainingConfig { learning_rate: 2e-2, beta1: 0.5, ..base.clone() };
    let longer = TrainingConfig { max_steps: Some(20), save_interval: Some(2), ..base.clone() };
    let shorter = TrainingConfig { max_steps: Some(13), ..base.clone() };
    let other_tokens: Vec<u32> = (0..150).map(|i: u32| (i * i + u32::from(i == 77)) % 11).collect();
    let other = source_of(TokenStore::from_tokens(&other_tokens, 11).unwrap(), &base);
    let other_seed = source_of(tokens(), &TrainingConfig { seed: 6, ..base.clone() });
    let same = source(&base);
    use DifferenceKind::{Data, Interval, Setting, Workers};
    for (config, data, expected, exact, rounding) in [
        (None, Some(&same), vec![], true, true),
        (Some(base), None, vec![], true, true),
        (Some(workers), None, vec![(Workers, "workers")], false, true),
        (Some(rate), None, vec![(Setting, "beta1"), (Setting, "learning_rate")], false, false),
        (Some(longer), None, vec![(Interval, "max_steps"), (Interval, "save_interval")], true, true),
        (Some(shorter), None, vec![(Setting, "max_steps")], false, false),
        (None, Some(&other), vec![(Data, "fingerprint")], false, false),
        (None, Some(&other_seed), vec![(Data, "seed")], false, false),
    ] {
        for (accept, accepted) in [(Accept::Exact, exact), (Accept::Rounding, rounding), (Accept::Anything, true)] {
            match differences(config.clone(), data, accept) {
                Ok(found) => {
                    let found: Vec<_> = found.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
                    assert!(accepted, "{accept:?} accepted {expected:?}");
                    assert_eq!(found, expected);
                }
                Err(Error::Differences { differences }) => {
                    assert!(!accepted, "{accept:?} refused {expected:?}");
                    let found: Vec<_> = differences.iter().map(|found| (found.kind, found.name.as_str())).collect();
                    assert_eq!(found, expected);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn other_data_is_found_when_the_run_begins_if_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let config = training_config();
    let mut first = trainer(&config);
    run_to(&mut first, &source(&config), 3).unwrap();
    first.save(folder.path()).unwrap();
    let other = source_of(TokenStore::from_tokens(&[1; 150], 11).unwrap(), &config);
    let mut second = resume(folder.path()).unwrap();
    let error = run_to(&mut second, &other, 5).unwrap_err();
    assert!(matches!(&error, Error::Differences { differences } if differences[0].name == "fingerprint"), "{error}");
    assert_eq!(second.steps(), 3);
    run_to(&mut second, &source(&config), 5).unwrap();
    let options = ResumeOptions { accept: Accept::Anything, ..ResumeOptions::default() };
    let mut third = Trainer::resume(folder.path(), &options).unwrap().0;
    run_to(&mut third, &other, 5).unwrap();
}

#[test]
fn another_optimizer_starts_from_moments_of_zero() {
    let folder = tempfile::tempdir().unwrap();
    let config = training_config();
    let mut first = trainer(&config);
    run_to(&mut first, &source(&config), 3).unwrap();
    first.save(folder.path()).unwrap();
    for (optimizer, moving_average_decay) in [(Optimizer::Sgd, None), (Optimizer::AdamW, Some(0.5))] {
        let config = TrainingConfig { optimizer, moving_average_decay, ..config.clone() };
        let options = ResumeOptions { config: Some(config.clone()), accept: Accept::Anything, data: None };
        let mut second = Trainer::resume(folder.path(), &options).unwrap().0;
        let weights = first.model().parameters().values();
        assert_eq!(second.model().parameters().values(), weights);
        if let Some(average) = second.averaged_model() {
            assert_eq!(average.parameters().values(), weights);
        }
        run_to(&mut second, &source(&config), u64::MAX).unwrap();
    }
}

/// A learning rate that makes the weights overflow.
fn exploding(on_non_finite: OnNonFinite) -> TrainingConfig {
    TrainingConfig {
        optimizer: Optimizer::AdamW,
        schedule: Schedule::Constant,
        learning_rate: 3e38,
        minimum_learning_rate: 0.0,
        warmup_steps: 0,
        gradient_clip: None,
        max_steps: Some(12),
        save_interval: Some(2),
        on_non_finite,
        roll_back_factor: 1e-43,
        ..training_config()
    }
}

#[test]
fn numbers_that_go_wrong_stop_the_run_and_leave_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let good = TrainingConfig { max_steps: Some(4), save_interval: Some(2), ..training_config() };
    let mut first = trainer(&good);
    first.save_to(folder.path()).unwrap();
    run_to(&mut first, &source(&good), u64::MAX).unwrap();
    let before = files(Checkpoint::open(folder.path()).unwrap().folder());
    drop(first);
    for policy in [OnNonFinite::Stop, OnNonFinite::Skip] {
        let config = exploding(policy);
        let options = ResumeOptions { config: Some(config.clone()), accept: Accept::Anything, data: None };
        let mut trainer = Trainer::resume(folder.path(), &options).unwrap().0;
        trainer.save_to(folder.path()).unwrap();
        let error = run_to(&mut trainer, &source(&config), u64::MAX).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { step: 6, what, .. } if what.contains("in model")), "{error}");
        assert!(matches!(trainer.save(folder.path()), Err(Error::NonFinite { .. })));
        let last = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(last.manifest().step, 4);
        assert_eq!(files(last.folder()), before);
    }
}

#[test]
fn a_roll_back_lowers_the_learning_rate_and_goes_on() {
    for with_folder in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let config = exploding(OnNonFinite::RollBack);
        let mut trainer = trainer(&config);
        if with_folder {
            trainer.save_to(folder.path()).unwrap();
        }
        let mut outcomes = Vec::new();
        let source = source(&config);
        let summary = trainer
            .run(&source, None, |progress| {
                outcomes.push((progress.report.step, progress.report.outcome));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(summary.steps, 12);
        let rolled_back = outcomes.iter().filter(|(_, outcome)| *outcome == StepOutcome::RolledBack).count();
        assert_eq!(rolled_back, 1, "{outcomes:?}");
        assert!(trainer.model().parameters().values().iter().all(|value| value.is_finite()));
        if with_folder {
            let manifest = Checkpoint::open(folder.path()).unwrap().manifest().clone();
            assert_eq!((manifest.step, manifest.learning_rate_factor), (12, 1e-43));
            // The lowered rate is part of what a resumed run goes on with.
            let mut resumed = resume(&folder.path().join("checkpoints/step-00000010")).unwrap();
            resumed
                .run(&source, None, |progress| {
                    assert_eq!(progress.report.outcome, StepOutcome::Updated);
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(resumed.model().parameters().values(), trainer.model().parameters().values());
        }
    }
}

#[test]
fn roll_backs_that_do_not_help_end_in_the_error() {
    let config = TrainingConfig { roll_back_factor: 1.0, non_finite_limit: 3, ..exploding(OnNonFinite::RollBack) };
    let mut trainer = trainer(&config);
    let mut roll_backs = 0;
    let source = source(&config);
    let error = trainer
        .run(&source, None, |progress| {
            roll_backs += u32::from(progress.report.outcome == StepOutcome::RolledBack);
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert_eq!(roll_backs, 3);
}
