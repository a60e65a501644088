//! What a training run promises: the same bits twice, agreement between numbers of workers, the options' meaning.

use std::ops::ControlFlow;

use cllm::data::{Batch, BatchOrder, SequenceSource, TokenStore};
use cllm::{Error, Optimizer, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::Array2;

fn shape() -> TransformerConfig {
    TransformerConfig {
        vocabulary_size: 40,
        context: 24,
        dim: 32,
        heads: 4,
        layers: 2,
        feed_forward: 64,
        initial_deviation: 0.1,
        ..Default::default()
    }
}

fn training() -> TrainingConfig {
    TrainingConfig {
        batch_size: 4,
        sequence_length: 24,
        max_steps: Some(20),
        learning_rate: 3e-3,
        minimum_learning_rate: 1e-3,
        warmup_steps: 5,
        workers: 1,
        ..Default::default()
    }
}

fn tokens(count: u32) -> TokenStore {
    let tokens: Vec<u32> = (0..count).map(|i| (i * i + i / 7) % 37).collect();
    TokenStore::from_tokens(&tokens, 40).unwrap()
}

fn source(config: &TrainingConfig) -> SequenceSource {
    let sequences = config.batch_size * config.accumulation_steps;
    SequenceSource::new(tokens(3000), config.batch_order, sequences, config.sequence_length, config.seed).unwrap()
}

/// Losses of all steps and the parameters at the end.
fn run(model: TransformerConfig, config: TrainingConfig) -> (Vec<f64>, Vec<f32>) {
    let source = source(&config);
    let mut trainer = Trainer::new(Transformer::new(model, 1).unwrap(), config).unwrap();
    let mut losses = Vec::new();
    trainer
        .run(&source, None, |progress| {
            losses.push(progress.report.loss);
            ControlFlow::Continue(())
        })
        .unwrap();
    (losses, trainer.model().parameters().values().to_vec())
}

/// The largest difference relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn the_same_seed_and_workers_give_the_same_bits() {
    for workers in [1, 2, 3] {
        for sharding in [Sharding::Sequences, Sharding::Operations] {
            let dropped = TransformerConfig { residual_dropout: 0.1, attention_dropout: 0.1, ..shape() };
            let config = TrainingConfig { workers, sharding, ..training() };
            let first = run(dropped.clone(), config.clone());
            assert!(first == run(dropped.clone(), config.clone()), "{workers} workers by {sharding:?}");
            let other = TrainingConfig { seed: 1, ..config };
            assert!(first != run(dropped, other), "another seed changes nothing");
        }
    }
}

#[test]
fn every_step_and_seed_has_dropout_masks_of_its_own_and_evaluation_has_none() {
    // A rate too small to move a parameter: only the masks can change the loss of a batch.
    let config = TrainingConfig { learning_rate: 1e-30, minimum_learning_rate: 0.0, weight_decay: 0.0, ..training() };
    let batch = batch(|row, column| ((row + 3) * column % 37) as u32);
    let losses = |dropout: f32, seed: u64| {
        let model = TransformerConfig { residual_dropout: dropout, ..shape() };
        let config = TrainingConfig { seed, ..config.clone() };
        let mut trainer = Trainer::new(Transformer::new(model, 1).unwrap(), config).unwrap();
        let steps = [trainer.step(&batch).unwrap().loss, trainer.step(&batch).unwrap().loss];
        (steps, trainer.evaluate(&source(&training())).unwrap().loss)
    };
    let (whole, evaluated) = losses(0.0, 0);
    assert_eq!(whole[0], whole[1]);
    let (dropped, evaluated_with_dropout) = losses(0.3, 0);
    assert!(dropped[0] != dropped[1] && dropped[0] != whole[0], "{dropped:?} and {whole:?}");
    assert!(losses(0.3, 1).0[0] != dropped[0], "another seed has the same masks");
    assert_eq!(evaluated, evaluated_with_dropout);
}

#[test]
fn numbers_of_workers_agree_after_twenty_steps() {
    let dropped =
        TransformerConfig { residual_dropout: 0.1, attention_dropout: 0.1, embedding_dropout: 0.1, ..shape() };
    // The keys' bias has a true gradient of zero (softmax ignores a shift), which rounding makes noise and AdamW with its
    // usual ε of 1e-8 makes steps; with 1e-5 every parameter can be compared.
    let training = || TrainingConfig { epsilon: 1e-5, ..training() };
    for model in [shape(), dropped] {
        let (losses, parameters) = run(model.clone(), training());
        for (workers, sharding) in [(2, Sharding::Sequences), (2, Sharding::Operations), (3, Sharding::Sequences)] {
            let (others, other) = run(model.clone(), TrainingConfig { workers, sharding, ..training() });
            assert_eq!(losses.len(), 20);
            assert!(losses[19] < losses[0] - 0.3, "nothing was learned: {losses:?}");
            for (step, (a, b)) in losses.iter().zip(&others).enumerate() {
                assert!((a - b).abs() < 1e-4, "step {step}, {workers} workers by {sharding:?}: {a} and {b}");
            }
            let distance = distance(&parameters, &other);
            assert!(distance < 1e-4, "{workers} workers by {sharding:?}: parameters differ by {distance}");
        }
    }
}

#[test]
fn accumulated_batches_update_as_one_large_batch() {
    for optimizer in [Optimizer::AdamW, Optimizer::Sgd] {
        let config = TrainingConfig { optimizer, max_steps: Some(5), epsilon: 1e-5, ..training() };
        let (_, large) = run(shape(), TrainingConfig { batch_size: 12, ..config.clone() });
        let accumulated = TrainingConfig { accumulation_steps: 3, ..config };
        let (_, accumulated) = run(shape(), accumulated);
        let distance = distance(&large, &accumulated);
        assert!(distance < 1e-5, "{optimizer:?}: parameters differ by {distance}");
    }
}

#[test]
fn scores_in_chunks_give_the_same_gradients_as_whole_scores() {
    let config = TrainingConfig { batch_size: 16, max_steps: Some(3), ..training() };
    let (whole, _) = run(shape(), config.clone());
    // 384 tokens, of which at least 256 are scored at a time.
    let (chunked, _) = run(shape(), TrainingConfig { scores_budget: 1, ..config });
    for (a, b) in whole.iter().zip(&chunked) {
        assert!((a - b).abs() < 1e-5, "{whole:?} and {chunked:?}");
    }
}

#[test]
fn a_run_learns_stops_and_goes_on() {
    let config =
        TrainingConfig { max_steps: Some(300), learning_rate: 1e-2, moving_average_decay: Some(0.9), ..training() };
    let source = source(&config);
    let validation = SequenceSource::new(tokens(500), BatchOrder::Sequential, 1, 24, 0).unwrap();
    let config = TrainingConfig { evaluation_interval: Some(50), save_interval: Some(100), ..config };
    let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap();
    let (mut evaluations, mut saves) = (Vec::new(), Vec::new());
    let mut watch = |progress: &cllm::train::Progress<'_>| {
        evaluations.extend(progress.evaluation.map(|evaluation| evaluation.loss));
        if progress.save_due {
            saves.push(progress.report.step);
        }
        if progress.report.step == 120 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let summary = trainer.run(&source, Some(&validation), &mut watch).unwrap();
    assert!(summary.stopped);
    assert_eq!((summary.steps, summary.tokens), (120, 120 * 4 * 24));
    let summary = trainer.run(&source, Some(&validation), &mut watch).unwrap();
    assert!(!summary.stopped);
    assert_eq!((summary.steps, summary.tokens), (300, 180 * 4 * 24));
    assert_eq!((evaluations.len(), saves), (6, vec![100, 200, 300]));
    assert!(evaluations[5] < 0.5 * evaluations[0], "{evaluations:?}");

    let evaluation = trainer.evaluate(&validation).unwrap();
    assert!((evaluation.perplexity() - evaluation.loss.exp()).abs() < 1e-9);
    assert!(evaluation.accuracy > 0.5 && evaluation.top_k_accuracy >= evaluation.accuracy, "{evaluation:?}");
    assert_eq!(evaluation.targets, 20 * 24, "every window once");
    let average = trainer.averaged_model().unwrap();
    assert!(average.parameters().values() != trainer.model().parameters().values());
}

#[test]
fn stopped_and_continued_is_as_if_never_stopped() {
    let straight = run(shape(), training());
    let config = training();
    let source = source(&config);
    let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap();
    while trainer.steps() < 20 {
        trainer.run(&source, None, |_| ControlFlow::Break(())).unwrap();
    }
    assert!(straight.1 == trainer.model().parameters().values());
}

#[test]
fn epochs_end_a_run() {
    let config = TrainingConfig { max_steps: None, epochs: Some(2), batch_order: BatchOrder::Shuffled, ..training() };
    let steps = source(&config).batches_per_epoch();
    let (losses, _) = run(shape(), config.clone());
    assert_eq!(losses.len() as u64, 2 * steps);
    // More epochs than there are numbers for their steps are no end.
    for epochs in [2, u64::MAX / steps + 1] {
        let config = TrainingConfig { max_steps: Some(20), epochs: Some(epochs), ..config.clone() };
        assert_eq!(run(shape(), config).0.len(), 20, "{epochs} epochs");
    }
}

fn batch(ids: impl Fn(usize, usize) -> u32) -> Batch {
    let inputs = Array2::from_shape_fn((2, 24), |(row, column)| ids(row, column));
    Batch::new(inputs.clone(), inputs).unwrap()
}

#[test]
fn a_bad_batch_is_refused_and_changes_nothing() {
    let config = TrainingConfig { ignore_id: Some(9), ..training() };
    let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap();
    let before = trainer.model().parameters().values().to_vec();

    let error = trainer.step(&batch(|row, column| if (row, column) == (1, 3) { 40 } else { 0 })).unwrap_err();
    assert!(matches!(&error, Error::TokenOutOfRange { position: 27, id: 40, vocabulary: 40, .. }), "{error}");
    let error = trainer.step(&batch(|_, _| 9)).unwrap_err();
    assert!(matches!(error, Error::NoTargets { positions: 48 }), "{error}");
    let long = Array2::zeros((1, 25));
    let error = trainer.step(&Batch::new(long.clone(), long).unwrap()).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { expected, found, .. } if expected == &[1, 24] && found == &[1, 25]),
        "{error}"
    );

    assert_eq!(trainer.steps(), 0);
    assert!(before == trainer.model().parameters().values());
    trainer.step(&batch(|row, column| (row + column) as u32 % 8)).unwrap();
    assert!(before != trainer.model().parameters().values());
}

#[test]
fn a_loss_that_is_not_finite_is_an_error_and_changes_nothing() {
    let mut model = Transformer::new(shape(), 1).unwrap();
    let gain = model.layout().find("ln_f.weight").unwrap().id;
    model.parameters_mut().slice_mut(gain)[3] = f32::INFINITY;
    let before = model.parameters().values().to_vec();
    let mut trainer = Trainer::new(model, training()).unwrap();
    let error = trainer.step(&batch(|row, column| (row + column) as u32)).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { step: 1, .. }), "{error}");
    assert!(before == trainer.model().parameters().values());
    assert_eq!(trainer.steps(), 0);
}

#[test]
fn settings_outside_their_domain_are_named() {
    let model = |change: fn(&mut TransformerConfig)| {
        let mut config = shape();
        change(&mut config);
        Transformer::new(config, 1).unwrap_err().to_string()
    };
    assert_eq!(model(|c| c.heads = 5), "heads = 5: must divide dim = 32");
    assert_eq!(model(|c| c.vocabulary_size = 0), "vocabulary_size = 0: must be at least 1");
    assert_eq!(model(|c| c.layers = 0), "layers = 0: must be at least 1");
    assert_eq!(model(|c| c.residual_dropout = 1.0), "residual_dropout = 1: must be at least 0 and below 1");
    assert_eq!(
        model(|c| c.layer_norm_epsilon = f32::NAN),
        "layer_norm_epsilon = NaN: must be finite and greater than 0"
    );

    let trainer = |change: fn(&mut TrainingConfig)| {
        let mut config = training();
        change(&mut config);
        Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap_err().to_string()
    };
    assert_eq!(trainer(|c| c.sequence_length = 25), "sequence_length = 25: must be at most the model's context of 24");
    assert_eq!(trainer(|c| c.batch_size = 0), "batch_size = 0: must be at least 1");
    assert_eq!(trainer(|c| c.workers = 0), "workers = 0: must be at least 1");
    assert_eq!(
        trainer(|c| c.accumulation_steps = usize::MAX),
        format!("accumulation_steps = {}: times batch_size and sequence_length must be at most 2^40", usize::MAX)
    );
    assert_eq!(trainer(|c| c.max_steps = Some(0)), "max_steps = 0: must be at least 1, or left out");
    assert_eq!(
        trainer(|c| c.learning_rate = f64::INFINITY),
        "learning_rate = inf: must be greater than 0 and at most 3.4028235e38"
    );
    assert_eq!(trainer(|c| c.gradient_clip = Some(0.0)), "gradient_clip = 0: must be finite and greater than 0");
    assert_eq!(trainer(|c| c.beta2 = 1.0), "beta2 = 1: must be at least 0 and below 1");
    assert_eq!(trainer(|c| c.minimum_learning_rate = 1.0), "minimum_learning_rate = 1: must lie between 0 and 0.003");
}

#[test]
fn a_trainer_can_move_to_another_thread() {
    let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), training()).unwrap();
    let moved = std::thread::spawn(move || trainer.step(&batch(|_, column| column as u32)).map(|report| report.step));
    assert_eq!(moved.join().unwrap().unwrap(), 1);
}

#[test]
fn saved_parameters_load_as_they_were_and_the_same_run_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str| {
        let config = training();
        let source = source(&config);
        let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap();
        trainer.run(&source, None, |_| ControlFlow::Continue(())).unwrap();
        let path = folder.path().join(name);
        trainer.model().save_parameters(&path).unwrap();
        (std::fs::read(&path).unwrap(), Transformer::load_parameters(shape(), &path).unwrap(), trainer.into_model())
    };
    let (bytes, loaded, trained) = save("a.safetensors");
    assert!(loaded.parameters().values() == trained.parameters().values());
    assert!(bytes == save("b.safetensors").0);

    let path = folder.path().join("a.safetensors");
    let wider = TransformerConfig { vocabulary_size: 41, ..shape() };
    let error = Transformer::load_parameters(wider, &path).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { expected, found, .. } if expected == &[41, 32] && found == &[40, 32]),
        "{error}"
    );
    let deeper = TransformerConfig { layers: 3, ..shape() };
    let error = Transformer::load_parameters(deeper, &path).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "h.2.ln_1.weight"), "{error}");
    let shallower = TransformerConfig { layers: 1, ..shape() };
    let error = Transformer::load_parameters(shallower, &path).unwrap_err();
    assert!(matches!(&error, Error::InvalidFile { problem, .. } if problem.contains("h.1.")), "{error}");
}
