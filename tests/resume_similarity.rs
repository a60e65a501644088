//! A resumed similarity model ends in the bytes of the one that was never interrupted.

mod support;

use std::path::Path;

use cllm::checkpoint::{Accept, Checkpoint};
use cllm::config::SimilarityConfig;
use cllm::models::similarity::SimilarityModel;
use cllm::rng::{Purpose, Stream};
use cllm::{Error, Result};
use ndarray::Array2;
use support::files;

fn config() -> SimilarityConfig {
    SimilarityConfig {
        vocabulary_size: 20,
        dim: 8,
        batch_size: 3,
        sequence_length: 5,
        heads: 2,
        feed_forward: 12,
        learning_rate: 0.01,
        keep_checkpoints: None,
        ..SimilarityConfig::default()
    }
}

/// The batch of a step, sometimes of fewer and shorter sequences.
fn batch(step: u64) -> [Array2<u32>; 2] {
    let shape = (1 + step as usize % 3, 3 + step as usize % 3);
    [0, 1].map(|side| {
        let stream = Stream::new(side, Purpose::Caller, step);
        let mut index = 0..;
        Array2::from_shape_simple_fn(shape, || stream.below(index.next().unwrap(), 20) as u32)
    })
}

/// Goes on to `step`, the batch being that of the model's own count; returns the last loss.
fn train(model: &mut SimilarityModel, step: u64) -> Result<f64> {
    let mut loss = f64::NAN;
    while model.steps() < step {
        let [inputs, targets] = batch(model.steps());
        loss = model.step(inputs.view(), targets.view())?;
    }
    Ok(loss)
}

fn resume(folder: &Path) -> Result<SimilarityModel> {
    SimilarityModel::resume(folder, None, Accept::Exact).map(|(model, differences)| {
        assert_eq!(differences, []);
        model
    })
}

#[test]
fn every_encoder_and_worker_count_resumes_exactly() {
    for layers in [0, 2] {
        for unit_norm in [false, true] {
            for workers in [1, 2, 3] {
                let config = SimilarityConfig { layers, unit_norm, workers, ..config() };
                let run = tempfile::tempdir().unwrap();
                let mut whole = SimilarityModel::new(config.clone()).unwrap();
                let mut saved = Vec::new();
                for step in [0, 1, 5, 9] {
                    train(&mut whole, step).unwrap();
                    saved.push(whole.save(run.path()).unwrap());
                }
                let loss = train(&mut whole, 12).unwrap();
                let expected = files(&whole.save(run.path()).unwrap());
                for (saved, step) in saved.iter().zip([0, 1, 5, 9]) {
                    let mut model = resume(saved).unwrap();
                    assert_eq!((model.steps(), model.config()), (step, &config));
                    assert_eq!(train(&mut model, 12).unwrap().to_bits(), loss.to_bits(), "{step}: {config:?}");
                    let end = tempfile::tempdir().unwrap();
                    assert!(files(&model.save(end.path()).unwrap()) == expected, "{step}: {config:?}");
                }
            }
        }
    }
}

#[test]
fn what_differs_is_refused_by_name() {
    let run = tempfile::tempdir().unwrap();
    let mut model = SimilarityModel::new(config()).unwrap();
    train(&mut model, 3).unwrap();
    let saved = model.save(run.path()).unwrap();
    let with = |config, accept| SimilarityModel::resume(&saved, Some(config), accept);
    for (changed, name, accept) in [
        (SimilarityConfig { learning_rate: 0.02, ..config() }, "learning_rate", Accept::Anything),
        (SimilarityConfig { workers: 2, ..config() }, "workers", Accept::Rounding),
        (SimilarityConfig { keep_checkpoints: Some(1), ..config() }, "keep_checkpoints", Accept::Exact),
    ] {
        let (model, differences) = with(changed.clone(), accept).unwrap();
        assert_eq!((differences.len(), &*differences[0].name, model.config()), (1, name, &changed));
        if accept != Accept::Exact {
            assert!(matches!(with(changed, Accept::Exact), Err(Error::Differences { .. })), "{name}");
        }
    }
    // Tables of another shape are no matter of taste.
    let wider = SimilarityConfig { dim: 10, ..config() };
    assert!(matches!(with(wider, Accept::Anything), Err(Error::Shape { .. })));
    let error = cllm::train::PairTrainer::resume(&saved, None, Accept::Anything).unwrap_err();
    assert!(matches!(&error, Error::InvalidFile { problem, .. } if problem.contains("similarity")), "{error}");
}

#[test]
fn what_was_changed_is_saved_again_and_what_is_not_finite_never() {
    let run = tempfile::tempdir().unwrap();
    let mut model = SimilarityModel::new(SimilarityConfig { keep_checkpoints: Some(2), ..config() }).unwrap();
    train(&mut model, 2).unwrap();
    let first = model.save(run.path()).unwrap();
    assert_eq!(model.save(run.path()).unwrap(), first);
    assert!(matches!(SimilarityModel::new(config()).unwrap().save(run.path()), Err(Error::Locked { .. })));
    model.parameters_mut().values_mut()[0] = 3.0;
    let second = model.save(run.path()).unwrap();
    assert_ne!(second, first);
    assert_eq!(resume(run.path()).unwrap().vectors()[[0, 0]], 3.0);

    model.parameters_mut().values_mut()[0] = f32::NAN;
    let before = files(&second);
    assert!(matches!(model.save(run.path()), Err(Error::NonFinite { step: 2, .. })));
    assert_eq!(Checkpoint::open(run.path()).unwrap().folder(), second);
    assert!(files(&second) == before);
    model.parameters_mut().values_mut()[0] = 3.0;
    train(&mut model, 3).unwrap();
    let third = model.save(run.path()).unwrap();
    assert!(third.exists() && second.exists() && !first.exists());
}
