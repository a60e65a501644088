//! The similarity objective, against the plain formula.

use cllm::config::SimilarityConfig;
use cllm::models::similarity::SimilarityModel;
use cllm::rng::{Purpose, Stream};
use cllm::{Error, Transformer, TransformerConfig};
use ndarray::{Array2, ArrayView2, array};

const IGNORED: u32 = u32::MAX;

fn config(layers: usize, unit_norm: bool) -> SimilarityConfig {
    SimilarityConfig {
        vocabulary_size: 7,
        dim: 6,
        batch_size: 3,
        sequence_length: 4,
        layers,
        heads: 2,
        feed_forward: 10,
        unit_norm,
        ignore_id: Some(IGNORED),
        initial_deviation: 0.5,
        ..SimilarityConfig::default()
    }
}

/// Repeated ids, the same id on both sides, and three places that do not count.
fn batch() -> (Array2<u32>, Array2<u32>) {
    let inputs = array![[0, 3, 3, 1], [6, 3, 2, IGNORED]];
    let targets = array![[1, 3, 0, IGNORED], [5, 5, 2, 4]];
    (inputs, targets)
}

/// The mean loss and its similarities, by the plain formula in f64.
fn plain(
    (input, target): (&[f64], &[f64]),
    (inputs, targets): &(Array2<u32>, Array2<u32>),
    dim: usize,
    unit_norm: bool,
) -> (f64, Vec<f64>) {
    let row = |table: &[f64], id: u32| table[id as usize * dim..][..dim].to_vec();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let mut similarities = Vec::new();
    for (&i, &j) in inputs.iter().zip(targets) {
        if i != IGNORED && j != IGNORED {
            let (x, y) = (row(input, i), row(target, j));
            let scale = if unit_norm { (dot(&x, &x) * dot(&y, &y)).sqrt() } else { 1.0 };
            similarities.push(dot(&x, &y) / scale);
        }
    }
    let losses: f64 = similarities.iter().map(|&s| -s.max(1e-10).ln()).sum();
    (losses / similarities.len() as f64, similarities)
}

#[test]
fn loss_and_gradient_are_those_of_the_plain_formula() {
    let batch = batch();
    for unit_norm in [false, true] {
        let (mut clamped, mut open) = (0, 0);
        for seed in 1..=6 {
            let mut model = SimilarityModel::new(SimilarityConfig { seed, ..config(0, unit_norm) }).unwrap();
            let wide = |table: ArrayView2<'_, f32>| table.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
            let tables = [wide(model.vectors()), wide(model.target_vectors())];
            model.cache_batch_embeddings(batch.0.view(), batch.1.view()).unwrap();
            let similarities = model.similarities().to_vec();
            let (loss, expected) = plain((&tables[0], &tables[1]), &batch, 6, unit_norm);
            let counted = [0, 1, 2, 4, 5, 6].map(|place| similarities[place]);
            for (found, expected) in counted.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{similarities:?} for {expected:?}");
            }
            clamped += expected.iter().filter(|&&s| s < 1e-10).count();
            open += expected.iter().filter(|&&s| s > 1e-10).count();
            // Neither so near to 0 that f32 decides on which side.
            assert!(expected.iter().all(|s| s.abs() > 1e-4), "{expected:?}");

            let found = model.compute_loss();
            assert!((found - loss).abs() < 1e-4 * loss.abs().max(1.0), "{found} for {loss}");
            model.backward();
            for (side, name) in ["input", "target"].into_iter().enumerate() {
                let gradient = model.gradients().slice(model.layout().find(name).unwrap().id);
                let size = gradient.iter().fold(0.0, |size: f32, value| size.max(value.abs()));
                for (at, &found) in gradient.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut tables = tables.clone();
                        tables[side][at] += by;
                        plain((&tables[0], &tables[1]), &batch, 6, unit_norm).0
                    };
                    let slope = (moved(1e-7) - moved(-1e-7)) / 2e-7;
                    let difference = (f64::from(found) - slope).abs();
                    assert!(difference < 1e-4 * f64::from(size.max(1.0)), "{name}, {at}: {found} for {slope}");
                }
            }
        }
        assert!(clamped > 3 && open > 3, "{clamped} clamped, {open} not");
    }
}

/// Central differences of the model's own loss along directions of ±1, as in `tests/gradients.rs`.
#[test]
fn gradients_through_the_encoder_are_difference_quotients() {
    const STEP: f32 = 3e-4;
    let batch = batch();
    for layers in [1, 2] {
        for unit_norm in [false, true] {
            let mut checked = 0;
            for seed in 1..40 {
                let config = SimilarityConfig { seed, initial_deviation: 0.3, ..config(layers, unit_norm) };
                let mut model = SimilarityModel::new(config).unwrap();
                let loss = |model: &mut SimilarityModel| {
                    model.cache_batch_embeddings(batch.0.view(), batch.1.view()).unwrap();
                    model.compute_loss()
                };
                loss(&mut model);
                let similarities = model.similarities();
                // The logarithm is no straight line near 0.
                if [0, 1, 2, 4, 5, 6].iter().any(|&place| similarities[place].abs() < 0.15) {
                    continue;
                }
                let above = [0, 1, 2, 4, 5, 6].iter().filter(|&&place| similarities[place] > 0.0).count();
                if above < 2 {
                    continue;
                }
                model.backward();
                let before = model.parameters().values().to_vec();
                for spec in model.layout().specs().to_vec() {
                    let gradient = model.gradients().slice(spec.id).to_vec();
                    let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                    for direction in 0..2 {
                        let stream = Stream::new(13, Purpose::Caller, direction);
                        let sign = |at: usize| if stream.u32_at(at as u64) & 1 == 0 { 1.0f32 } else { -1.0 };
                        let mut moved = |step: f32| {
                            let values = model.parameters_mut().slice_mut(spec.id);
                            values.iter_mut().enumerate().for_each(|(at, value)| *value += step * sign(at));
                            let found = loss(&mut model);
                            model.parameters_mut().values_mut().copy_from_slice(&before);
                            found
                        };
                        let numeric = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                        let analytic: f64 =
                            gradient.iter().enumerate().map(|(at, &g)| f64::from(g) * f64::from(sign(at))).sum();
                        assert!(
                            (numeric - analytic).abs() < 2e-2 * norm + 1e-2,
                            "{layers} layers, {}, seed {seed}: {numeric} for {analytic}, norm {norm}",
                            spec.name
                        );
                        checked += usize::from(norm > 0.1);
                    }
                }
            }
            assert!(checked > 40, "{layers} layers, unit norm {unit_norm}: {checked} directions were checked");
        }
    }
}

#[test]
fn the_encoder_is_that_of_the_transformer() {
    let config = SimilarityConfig { ignore_id: None, ..config(2, false) };
    let mut model = SimilarityModel::new(config).unwrap();
    let shape = TransformerConfig {
        vocabulary_size: 7,
        context: 4,
        dim: 6,
        heads: 2,
        layers: 2,
        feed_forward: 10,
        ..Default::default()
    };
    let mut transformer = Transformer::new(shape, 9).unwrap();
    for spec in transformer.layout().specs().to_vec() {
        let name = if spec.name == "wte.weight" { "input" } else { &spec.name };
        let from = model.parameters().slice(model.layout().find(name).unwrap().id).to_vec();
        transformer.parameters_mut().slice_mut(spec.id).copy_from_slice(&from);
    }
    let ids = array![[0, 3, 3], [6, 2, 5]];
    model.cache_batch_embeddings(ids.view(), ids.view()).unwrap();
    let found = model.encoded_inputs().dot(&model.vectors().t());
    let expected = transformer.logits(ids.view()).unwrap().into_shape_with_order((6, 7)).unwrap();
    approx::assert_abs_diff_eq!(found, expected, epsilon = 1e-4);
}

#[test]
fn the_caches_hold_the_rows_of_the_batch() {
    let mut model = SimilarityModel::new(config(0, true)).unwrap();
    let (inputs, targets) = batch();
    model.cache_batch_embeddings(inputs.view(), targets.view()).unwrap();
    for (place, (&input, &target)) in inputs.iter().zip(&targets).enumerate() {
        if input != IGNORED {
            assert_eq!(model.cached_input(place), model.vectors().row(input as usize));
        }
        if target != IGNORED {
            assert_eq!(model.cached_target(place), model.target_vectors().row(target as usize));
        }
    }
    assert_eq!(model.similarities().len(), 8);
    // A smaller batch replaces it.
    model.cache_batch_embeddings(array![[5]].view(), array![[6]].view()).unwrap();
    assert_eq!(model.similarities().len(), 1);
    assert_eq!(model.cached_target(0), model.target_vectors().row(6));
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let mut model = SimilarityModel::new(config(0, true)).unwrap();
    let ids = |rows, columns| Array2::<u32>::zeros((rows, columns));
    let mut cache = |inputs: Array2<u32>, targets: Array2<u32>| {
        model.cache_batch_embeddings(inputs.view(), targets.view()).unwrap_err()
    };
    assert!(matches!(cache(ids(4, 4), ids(4, 4)), Error::Shape { .. }));
    assert!(matches!(cache(ids(3, 5), ids(3, 5)), Error::Shape { .. }));
    assert!(matches!(cache(ids(0, 4), ids(0, 4)), Error::Shape { .. }));
    assert!(matches!(cache(ids(2, 3), ids(3, 2)), Error::Shape { .. }));
    assert!(matches!(cache(array![[7]], array![[0]]), Error::TokenOutOfRange { id: 7, .. }));
    assert!(matches!(cache(array![[0]], array![[7]]), Error::TokenOutOfRange { id: 7, .. }));
    assert!(matches!(cache(array![[0, IGNORED]], array![[IGNORED, 0]]), Error::NoTargets { positions: 2 }));
    for wrong in [
        SimilarityConfig { batch_size: 0, ..config(0, true) },
        SimilarityConfig { vocabulary_size: 0, ..config(0, true) },
        SimilarityConfig { heads: 4, ..config(1, true) },
        SimilarityConfig { learning_rate: f64::NAN, ..config(0, true) },
        SimilarityConfig { beta1: 1.0, ..config(0, true) },
        SimilarityConfig { batch_size: usize::MAX, ..config(0, true) },
    ] {
        assert!(matches!(SimilarityModel::new(wrong), Err(Error::InvalidConfig { .. })));
    }
}

#[test]
fn what_is_not_finite_changes_nothing() {
    let mut model = SimilarityModel::new(config(0, true)).unwrap();
    let (inputs, targets) = batch();
    model.parameters_mut().values_mut()[0] = f32::NAN;
    let before: Vec<u32> = model.parameters().values().iter().map(|value| value.to_bits()).collect();
    let error = model.step(inputs.view(), targets.view()).unwrap_err();
    assert!(matches!(error, Error::NonFinite { step: 1, .. }), "{error}");
    assert!(model.parameters().values().iter().map(|value| value.to_bits()).eq(before));
}

/// Finite weights whose product is not: −ln ∞ has a gradient of 0, and only the loss tells.
#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    let mut model = SimilarityModel::new(SimilarityConfig { unit_norm: false, ..config(0, false) }).unwrap();
    let (inputs, targets) = batch();
    model.parameters_mut().values_mut().fill(1e30);
    let error = model.step(inputs.view(), targets.view()).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { step: 1, what, .. } if what == "the loss"), "{error}");
    assert!(model.parameters().values().iter().all(|&value| value == 1e30));
    assert_eq!(model.steps(), 0);
}

/// Batches of pairs within groups of ten tokens.
fn groups(step: u64) -> (Array2<u32>, Array2<u32>) {
    let stream = Stream::new(4, Purpose::Caller, step);
    let id = |place: u64, side: u64| (10 * stream.below(3 * place, 4) + stream.below(3 * place + 1 + side, 10)) as u32;
    let side = |side| Array2::from_shape_fn((8, 8), |(row, column)| id((8 * row + column) as u64, side));
    (side(0), side(1))
}

/// The model after so many steps, and the mean loss of the last twenty: that of one step alone says little.
fn trained(config: SimilarityConfig, steps: u64) -> (SimilarityModel, f64) {
    let config = SimilarityConfig { vocabulary_size: 40, batch_size: 8, sequence_length: 8, ..config };
    let mut model = SimilarityModel::new(config).unwrap();
    let mut losses = Vec::new();
    for step in 0..steps {
        let (inputs, targets) = groups(step);
        losses.push(model.step(inputs.view(), targets.view()).unwrap());
    }
    let last = &losses[losses.len().saturating_sub(20)..];
    (model, last.iter().sum::<f64>() / last.len() as f64)
}

/// The share of tokens whose nearest other one, by cosine, is of their group.
fn purity(vectors: ArrayView2<'_, f32>) -> f64 {
    let search = cllm::similarity::UnitVectors::new(vectors, cllm::parallel::Parallelism::SEQUENTIAL);
    let nearest = |id| search.similar(id, 1, None, cllm::parallel::Parallelism::SEQUENTIAL)[0].id;
    (0..40).filter(|&id| nearest(id) / 10 == id / 10).count() as f64 / 40.0
}

#[test]
fn planted_groups_are_recovered_with_unit_norm() {
    let config = SimilarityConfig { dim: 16, learning_rate: 0.01, ..config(0, true) };
    let (untrained, _) = trained(config.clone(), 0);
    assert!(purity(untrained.vectors()) < 0.6);
    for workers in [1, 2] {
        let (model, loss) = trained(SimilarityConfig { workers, ..config.clone() }, 400);
        assert!(purity(model.vectors()) > 0.95, "{}", purity(model.vectors()));
        assert!((0.0..5.0).contains(&loss), "{loss}: cosines are at most 1");
    }
    let (model, loss) = trained(SimilarityConfig { dim: 16, learning_rate: 0.003, ..self::config(1, true) }, 400);
    assert!(loss < 3.0, "{loss}");
    assert_eq!(model.encoded_inputs().dim(), (64, 16));
}

#[test]
fn dot_products_have_no_bound_and_cosines_do() {
    let config = |unit_norm| SimilarityConfig { dim: 16, learning_rate: 0.05, ..config(0, unit_norm) };
    let (model, loss) = trained(config(false), 400);
    assert!(loss < -3.0, "{loss}: the loss has no lower bound");
    let norm = |model: &SimilarityModel| model.vectors().row(0).dot(&model.vectors().row(0)).sqrt();
    let (untrained, _) = trained(config(false), 0);
    assert!(norm(&model) > 3.0 * norm(&untrained), "norms grow");
    assert!(trained(config(true), 400).1 >= -1e-5);
}

#[test]
fn a_run_has_the_same_bits_twice() {
    for layers in [0, 2] {
        for workers in [1, 2, 3] {
            let config = SimilarityConfig { workers, ..config(layers, true) };
            let bits = |seed| {
                let (model, loss) = trained(SimilarityConfig { seed, ..config.clone() }, 12);
                (loss.to_bits(), model.parameters().values().iter().map(|value| value.to_bits()).collect::<Vec<_>>())
            };
            assert_eq!(bits(1), bits(1), "{layers} layers, {workers} workers");
            assert_ne!(bits(1), bits(2), "{layers} layers, {workers} workers");
        }
    }
}
