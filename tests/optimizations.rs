//! The plain reference of `benches/optimizations.rs`, with and without each optimisation, computes what the engine
//! computes: its times can be compared because its results are the same.

#[path = "../benches/plain/mod.rs"]
mod plain;

use cllm::data::Batch;
use cllm::{Schedule, Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::Array2;
use plain::parameters::Parameters;
use plain::{Optimizations, Plain};

fn config() -> TransformerConfig {
    TransformerConfig {
        vocabulary_size: 61,
        context: 9,
        dim: 24,
        heads: 3,
        layers: 2,
        feed_forward: 40,
        ..Default::default()
    }
}

/// A model far enough from its initialisation that every parameter matters: deviations 10 times GPT-2's.
fn model() -> Transformer {
    Transformer::new(TransformerConfig { initial_deviation: 0.2, ..config() }, 3).unwrap()
}

fn training() -> TrainingConfig {
    TrainingConfig {
        batch_size: 3,
        sequence_length: 9,
        learning_rate: 1e-2,
        warmup_steps: 0,
        schedule: Schedule::Constant,
        // The bias of the keys has no true gradient, since softmax ignores it: ε must be well above the rounding errors.
        epsilon: 1e-5,
        gradient_clip: Some(0.5),
        workers: 1,
        ..Default::default()
    }
}

/// Tokens occur several times, as inputs and as targets.
fn batch() -> Batch {
    let ids = |factor| Array2::from_shape_fn((3, 9), |(row, column)| ((row * 9 + column) * factor % 17) as u32);
    Batch::new(ids(5), ids(7)).unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// Every value must be within `tolerance` of the largest of its parameter; `floor` stands in for a smaller largest.
#[track_caller]
fn assert_close(what: &str, found: &mut Parameters, expected: &mut Parameters, tolerance: f32, floor: f32) {
    let names = model().parameter_names().map(String::from).collect::<Vec<_>>();
    let pairs = found.all_mut().into_iter().zip(expected.all_mut());
    for (name, ((found, _), (expected, _))) in names.iter().zip(pairs) {
        assert_eq!(found.len(), expected.len(), "{what}: {name}");
        let allowed = tolerance * largest(expected).max(floor);
        for (index, (found, expected)) in found.iter().zip(&*expected).enumerate() {
            let error = (found - expected).abs();
            assert!(error <= allowed, "{what}: {name}[{index}] is {found}, {expected} in the engine");
        }
    }
}

#[test]
fn every_plain_variant_computes_the_engines_steps() {
    let batch = batch();
    for variant in 0..16 {
        let optimizations = Optimizations {
            persistent_workspaces: variant & 1 != 0,
            batch_embedding_caches: variant & 2 != 0,
            vectorised_similarities: variant & 4 != 0,
            weights_by_rows: variant & 8 != 0,
        };
        let mut plain = Plain::new(&model(), &training(), optimizations);
        let mut trainer = Trainer::new(model(), training()).unwrap();

        let found = plain.compute_gradients(&batch);
        let expected = trainer.compute_gradients(&batch).unwrap();
        assert!((found - expected.loss).abs() < 1e-5, "{optimizations:?}: loss {found} for {}", expected.loss);
        assert!(expected.gradient_norm > 0.5, "the gradient is clipped: {}", expected.gradient_norm);
        let gradient = |name: &str| trainer.gradient(name).expect(name).iter().copied().collect();
        let mut gradients = Parameters::of(&config(), gradient);
        let all = gradients.all_mut().iter().map(|(values, _)| largest(values)).fold(0.0, f32::max);
        // A value whose terms cancel keeps their rounding error: the floor is a thousandth of the largest gradient.
        let what = format!("gradients, {optimizations:?}");
        assert_close(&what, &mut plain.gradients, &mut gradients, 1e-5, all / 1000.0);

        for step in 0..5 {
            let (found, expected) = (plain.step(&batch), trainer.step(&batch).unwrap().loss);
            assert!((found - expected).abs() < 1e-4, "{optimizations:?}, step {step}: loss {found} for {expected}");
        }
        let what = format!("parameters, {optimizations:?}");
        // 5 steps of 1e-2 move every parameter by about 0.05, which is the scale of what was zero.
        assert_close(&what, &mut plain.parameters, &mut Parameters::of_model(trainer.model()), 1e-3, 0.05);
    }
}
