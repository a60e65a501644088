//! Updates that a run makes beside the next step are those of single steps, bit by bit, whoever looks.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cllm::checkpoint::Accept;
use cllm::data::{Batch, BatchOrder, SequenceSource, TokenStore};
use cllm::train::{ResumeOptions, StepOutcome, StepReport};
use cllm::{Error, OnNonFinite, Optimizer, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};

const STEPS: u64 = 7;

/// Tables of more than one part of an update, and rows that are no multiple of a vector.
fn model(layers: usize, dropout: f32) -> Transformer {
    let config = TransformerConfig {
        vocabulary_size: 900,
        context: 12,
        dim: 42,
        heads: 3,
        layers,
        feed_forward: 150,
        embedding_dropout: dropout,
        residual_dropout: dropout,
        attention_dropout: dropout,
        ..Default::default()
    };
    Transformer::new(config, 1).unwrap()
}

fn training() -> TrainingConfig {
    TrainingConfig {
        batch_size: 4,
        sequence_length: 12,
        max_steps: Some(STEPS),
        learning_rate: 1e-2,
        warmup_steps: 2,
        workers: 2,
        sharding: Sharding::Operations,
        ..Default::default()
    }
}

fn tokens(vocabulary: u32) -> TokenStore {
    let tokens: Vec<u32> = (0..2000).map(|i| (i * i + i / 7) % 899).chain([vocabulary - 1; 30]).collect();
    TokenStore::from_tokens(&tokens, vocabulary as usize).unwrap()
}

fn source(config: &TrainingConfig) -> SequenceSource {
    SequenceSource::for_training(tokens(900), config).unwrap()
}

fn values(trainer: &Trainer) -> Vec<f32> {
    trainer.model().parameters().values().to_vec()
}

/// The parameters at the start and after each step, and what the steps report.
fn steps(trainer: &mut Trainer, source: &SequenceSource) -> (Vec<Vec<f32>>, Vec<StepReport>) {
    let mut batch = Batch::zeros(source.sequences(), source.sequence_length());
    let (mut states, mut reports) = (vec![values(trainer)], Vec::new());
    for step in 0..STEPS {
        source.fill(step, &mut batch).unwrap();
        reports.push(trainer.step(&batch).unwrap());
        states.push(values(trainer));
    }
    (states, reports)
}

#[test]
fn a_run_gives_the_bits_of_single_steps() {
    let base = training();
    for (layers, dropout, config) in [
        (1, 0.0, base.clone()),
        (2, 0.1, base.clone()),
        (5, 0.0, TrainingConfig { moving_average_decay: Some(0.7), gradient_clip: Some(0.1), ..base.clone() }),
        (3, 0.0, TrainingConfig { optimizer: Optimizer::Sgd, learning_rate: 0.3, workers: 3, ..base.clone() }),
        (4, 0.2, TrainingConfig { accumulation_steps: 2, batch_size: 2, gradient_clip: None, ..base }),
    ] {
        let case = format!("{layers} layers, {:?}, {} sequences at once", config.optimizer, config.batch_size);
        let source = source(&config);
        let mut stepped = Trainer::new(model(layers, dropout), config.clone()).unwrap();
        let (states, reports) = steps(&mut stepped, &source);
        assert!(states.windows(2).all(|states| states[0] != states[1]), "{case}");

        let mut found = Vec::new();
        let mut blind = Trainer::new(model(layers, dropout), config.clone()).unwrap();
        blind
            .run(&source, None, |progress| {
                found.push(progress.report);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(found, reports, "{case}");
        assert_eq!(values(&blind), states[STEPS as usize], "{case}");
        let average = |trainer: &Trainer| trainer.averaged_model().map(|model| model.parameters().values().to_vec());
        assert_eq!(average(&blind), average(&stepped), "{case}");

        let mut looking = Trainer::new(model(layers, dropout), config).unwrap();
        looking
            .run(&source, None, |progress| {
                let step = progress.report.step;
                if step % 3 != 0 {
                    let twice = [progress.model(), progress.model()];
                    assert!(twice.iter().all(|model| model.parameters().values() == states[step as usize]), "{case}");
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(values(&looking), states[STEPS as usize], "{case}");
    }
}

#[test]
fn saves_and_evaluations_are_of_the_state_after_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainingConfig {
        save_interval: Some(3),
        evaluation_interval: Some(2),
        moving_average_decay: Some(0.9),
        ..training()
    };
    let source = source(&config);
    let mut stepped = Trainer::new(model(2, 0.0), config.clone()).unwrap();
    let (states, _) = steps(&mut stepped, &source);

    let mut batch = Batch::zeros(source.sequences(), source.sequence_length());
    let mut evaluated = Trainer::new(model(2, 0.0), config.clone()).unwrap();
    let mut saving = Trainer::new(model(2, 0.0), config).unwrap();
    saving.save_to(folder.path()).unwrap();
    saving
        .run(&source, Some(&source), |progress| {
            let step = progress.report.step;
            source.fill(step - 1, &mut batch).unwrap();
            evaluated.step(&batch).unwrap();
            assert_eq!(progress.evaluation, (step % 2 == 0).then(|| evaluated.evaluate(&source).unwrap()));
            if step == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(values(&saving), states[6]);
    drop(saving);

    let accept = Accept::default();
    let (mut resumed, _) = Trainer::resume(folder.path(), &ResumeOptions { accept, ..Default::default() }).unwrap();
    assert_eq!((resumed.steps(), values(&resumed)), (6, states[6].clone()));
    resumed.run(&source, None, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(values(&resumed), states[STEPS as usize]);
}

#[test]
fn a_run_that_fails_or_panics_leaves_no_update_behind() {
    let config = TrainingConfig { batch_order: BatchOrder::Sequential, max_steps: Some(100), ..training() };
    // The last tokens are beyond the model's vocabulary.
    let bad = SequenceSource::for_training(tokens(901), &config).unwrap();
    let mut failed = Trainer::new(model(2, 0.0), config.clone()).unwrap();
    let error = failed.run(&bad, None, |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { id: 900, .. }), "{error}");

    let mut stepped = Trainer::new(model(2, 0.0), config.clone()).unwrap();
    let mut batch = Batch::zeros(bad.sequences(), bad.sequence_length());
    for step in 0..failed.steps() {
        bad.fill(step, &mut batch).unwrap();
        stepped.step(&batch).unwrap();
    }
    assert!(failed.steps() > 10);
    assert_eq!(values(&failed), values(&stepped));

    let mut panicked = Trainer::new(model(2, 0.0), config).unwrap();
    let run = || {
        panicked.run(&bad, None, |progress| {
            assert!(progress.report.step < 5, "the callback panics");
            ControlFlow::Continue(())
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    assert_eq!(panicked.steps(), 5);
    let after_panic = values(&panicked);
    // Nothing is left that the next step would make.
    bad.fill(5, &mut batch).unwrap();
    panicked.step(&batch).unwrap();
    let mut stepped = Trainer::new(model(2, 0.0), panicked.config().clone()).unwrap();
    for step in 0..6 {
        if step == 5 {
            assert_eq!(after_panic, values(&stepped));
        }
        bad.fill(step, &mut batch).unwrap();
        stepped.step(&batch).unwrap();
    }
    assert_eq!(values(&panicked), values(&stepped));
}

/// Runs end in the same way whether callbacks ask for the model, which makes updates at once, or not.
#[test]
fn steps_that_fail_are_skipped_or_rolled_back_all_the_same() {
    for on_non_finite in [OnNonFinite::Skip, OnNonFinite::RollBack] {
        for save_interval in [None, Some(3)] {
            let config = TrainingConfig {
                optimizer: Optimizer::Sgd,
                learning_rate: 1e4,
                warmup_steps: 0,
                gradient_clip: None,
                max_steps: Some(30),
                non_finite_limit: 6,
                on_non_finite,
                save_interval,
                ..training()
            };
            let source = source(&config);
            let run = |looks: bool| {
                let mut trainer = Trainer::new(model(3, 0.0), config.clone()).unwrap();
                let mut outcomes = Vec::new();
                let run = trainer.run(&source, None, |progress| {
                    if looks {
                        progress.model();
                    }
                    let StepReport { step, loss, learning_rate, outcome, .. } = progress.report;
                    outcomes.push((step, loss.to_bits(), learning_rate.to_bits(), outcome));
                    ControlFlow::Continue(())
                });
                let end = run.map(|summary| summary.steps).map_err(|error| error.to_string());
                let bits: Vec<u32> = values(&trainer).into_iter().map(f32::to_bits).collect();
                (end, outcomes, bits)
            };
            let (blind, looking) = (run(false), run(true));
            assert!(blind == looking, "{on_non_finite:?}, saves {save_interval:?}");
            assert!(
                blind.1.iter().any(|(.., outcome)| *outcome != StepOutcome::Updated),
                "{on_non_finite:?}: {blind:?}"
            );
        }
    }
}

/// Many jobs of the pool ask for the model at once: the one that makes the update must not take another of them.
#[test]
fn jobs_of_the_callback_may_ask_for_the_model() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Of many parts, so that others take some of them.
        let shape = TransformerConfig { vocabulary_size: 9000, ..model(2, 0.0).config().clone() };
        for workers in [2, 4, 5] {
            let config = TrainingConfig { max_steps: Some(600), workers, ..training() };
            let source = source(&config);
            let mut trainer = Trainer::new(Transformer::new(shape.clone(), 1).unwrap(), config).unwrap();
            let run = trainer.run(&source, None, |progress| {
                rayon::scope(|scope| {
                    for place in 0..28 {
                        scope.spawn(move |_| assert!(progress.model().parameters().values()[place].is_finite()));
                    }
                });
                ControlFlow::Continue(())
            });
            assert_eq!(run.unwrap().steps, 600);
        }
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(120)).expect("the run ends");
}
