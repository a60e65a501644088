//! Every backward pass against central differences of its forward: layers, losses, and whole models.
//!
//! A derivative is taken along random directions d of ±1: (f(x + h·d) − f(x − h·d)) / 2h against Σ g·d, which every
//! element of the gradient g enters with a weight of 1. The forward runs in f32, so its value carries an error of about
//! 1e-7 of its terms, and the quotient one of that over h; the tolerance is stated per check.

use cllm::data::Batch;
use cllm::layers::attention::{self, Attention, AttentionDropout, Scratch};
use cllm::layers::dropout::Masks;
use cllm::layers::layer_norm::Statistics;
use cllm::layers::{embedding, feed_forward, layer_norm, linear};
use cllm::linalg::Write;
use cllm::loss::cross_entropy::CrossEntropy;
use cllm::parallel::Parallelism;
use cllm::rng::{Purpose, Stream};
use cllm::{Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::{Array2, ArrayView2};

const ONE: Parallelism = Parallelism::SEQUENTIAL;

fn random(rows: usize, columns: usize, step: u64) -> Array2<f32> {
    let mut values = vec![0.0; rows * columns];
    Stream::new(11, Purpose::Caller, step).fill_normal(&mut values, 1.0);
    Array2::from_shape_vec((rows, columns), values).unwrap()
}

fn flat(matrix: &Array2<f32>) -> Vec<f32> {
    matrix.iter().copied().collect()
}

fn matrix(values: &[f32], columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((values.len() / columns, columns), values).unwrap()
}

/// Σ weight·value: a scalar whose gradient with respect to `values` is `weights`.
fn weighted(weights: &Array2<f32>, values: &Array2<f32>) -> f64 {
    weights.iter().zip(values).map(|(&w, &v)| f64::from(w) * f64::from(v)).sum()
}

/// Compares `gradient` with central differences of `f` around `x`, along four directions.
fn check(what: &str, x: &[f32], gradient: &[f32], step: f32, tolerance: f64, f: impl Fn(&[f32]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let size = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    assert!(size > 1e-4, "{what}: the gradient is {size}: nothing is tested");
    for direction in 0..4 {
        let stream = Stream::new(13, Purpose::Caller, direction);
        let sign = |index: usize| if stream.u32_at(index as u64) & 1 == 0 { 1.0f32 } else { -1.0 };
        let moved = |h: f32| f(&x.iter().enumerate().map(|(i, &x)| x + h * sign(i)).collect::<Vec<_>>());
        let numeric = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        let analytic: f64 = gradient.iter().enumerate().map(|(i, &g)| f64::from(g) * f64::from(sign(i))).sum();
        let difference = (numeric - analytic).abs();
        assert!(
            difference <= tolerance * size,
            "{what}, direction {direction}: difference quotient {numeric}, gradient {analytic}, norm {size}"
        );
    }
}

#[test]
fn linear_layer() {
    for (rows, inputs, outputs) in [(1, 1, 1), (5, 3, 7), (20, 33, 16)] {
        let (x, w, b) = (random(rows, inputs, 0), random(inputs, outputs, 1), random(1, outputs, 2));
        let dy = random(rows, outputs, 3);
        let forward = |x: ArrayView2<'_, f32>, w: ArrayView2<'_, f32>, b: &[f32]| {
            let mut y = Array2::zeros((rows, outputs));
            linear::forward(x, w, b, y.view_mut(), ONE);
            weighted(&dy, &y)
        };
        let (bias, mut dx) = (flat(&b), Array2::zeros((rows, inputs)));
        let (mut dw, mut db) = (Array2::from_elem((inputs, outputs), f32::NAN), vec![f32::NAN; outputs]);
        linear::backward_input(dy.view(), w.view(), dx.view_mut(), ONE);
        linear::backward_weight(x.view(), dy.view(), dw.view_mut(), Write::Replace, ONE);
        linear::backward_bias(dy.view(), &mut db, Write::Replace);
        check("dx", &flat(&x), &flat(&dx), 1e-2, 1e-3, |x| forward(matrix(x, inputs), w.view(), &bias));
        check("dW", &flat(&w), &flat(&dw), 1e-2, 1e-3, |w| forward(x.view(), matrix(w, outputs), &bias));
        check("db", &bias, &db, 1e-2, 1e-3, |b| forward(x.view(), w.view(), b));

        let residual = random(rows, outputs, 4);
        let mut y = Array2::zeros((rows, outputs));
        linear::forward_residual(x.view(), w.view(), &bias, residual.view(), y.view_mut(), ONE);
        let expected = forward(x.view(), w.view(), &bias) + weighted(&dy, &residual);
        assert!((weighted(&dy, &y) - expected).abs() < 1e-3 * (1.0 + expected.abs()));

        // Added, the gradients are twice what they were.
        let (once, bias_once) = (dw.clone(), db.clone());
        linear::backward_weight(x.view(), dy.view(), dw.view_mut(), Write::Add, ONE);
        linear::backward_bias(dy.view(), &mut db, Write::Add);
        approx::assert_abs_diff_eq!(&dw, &(2.0 * &once), epsilon = 1e-4);
        let norm = linear::backward_weight_and_norm(x.view(), dy.view(), dw.view_mut(), Write::Replace, ONE);
        assert_eq!(dw, once);
        approx::assert_relative_eq!(norm as f32, once.iter().map(|x| x * x).sum::<f32>(), max_relative = 1e-5);
        assert!(db.iter().zip(&bias_once).all(|(twice, once)| (twice - 2.0 * once).abs() < 1e-4));
    }
}

#[test]
fn layer_normalisation() {
    for (rows, columns) in [(1, 2), (5, 7), (3, 64), (9, 33)] {
        let (x, gain, bias, dy) =
            (random(rows, columns, 0), random(1, columns, 1), random(1, columns, 2), random(rows, columns, 3));
        let (gain, bias) = (flat(&gain), flat(&bias));
        let run = |x: ArrayView2<'_, f32>, gain: &[f32], bias: &[f32], statistics: &mut Statistics| {
            let mut y = Array2::zeros((rows, columns));
            layer_norm::forward(x, gain, bias, 1e-2, y.view_mut(), statistics, ONE);
            weighted(&dy, &y)
        };
        let mut statistics = Statistics::new(rows);
        run(x.view(), &gain, &bias, &mut statistics);
        let (mut dx, mut dgain, mut dbias) = (Array2::zeros((rows, columns)), vec![0.0; columns], vec![0.0; columns]);
        layer_norm::backward(x.view(), &statistics, &gain, dy.view(), dx.view_mut(), &mut dgain, &mut dbias);
        let f = |x: ArrayView2<'_, f32>, gain: &[f32], bias: &[f32]| run(x, gain, bias, &mut Statistics::new(rows));
        check("dx", &flat(&x), &flat(&dx), 3e-3, 5e-3, |x| f(matrix(x, columns), &gain, &bias));
        check("dgain", &gain, &dgain, 1e-2, 1e-3, |gain| f(x.view(), gain, &bias));
        check("dbias", &bias, &dbias, 1e-2, 1e-3, |bias| f(x.view(), &gain, bias));
    }
}

#[test]
fn feed_forward_activation() {
    let (u, dy) = (random(7, 19, 0), random(7, 19, 1));
    let forward = |u: ArrayView2<'_, f32>| {
        let (mut u, mut y) = (u.to_owned(), Array2::zeros((7, 19)));
        feed_forward::activate(u.view_mut(), y.view_mut(), ONE);
        (u, y)
    };
    let (derivative, _) = forward(u.view());
    let mut du = dy.clone();
    feed_forward::activate_backward(derivative.view(), du.view_mut(), ONE);
    check("du", &flat(&u), &flat(&du), 1e-2, 1e-3, |u| weighted(&dy, &forward(matrix(u, 19)).1));
}

#[test]
fn embedding_with_repeated_tokens() {
    let ids = [3, 1, 3, 3, 0, 1];
    let (tokens, positions, dx) = (random(5, 4, 0), random(3, 4, 1), random(6, 4, 2));
    let forward = |tokens: ArrayView2<'_, f32>, positions: ArrayView2<'_, f32>| {
        let mut x = Array2::zeros((6, 4));
        embedding::forward(&ids, 3, tokens, positions, x.view_mut());
        weighted(&dx, &x)
    };
    let (mut dtokens, mut dpositions) = (Array2::zeros((5, 4)), Array2::zeros((3, 4)));
    embedding::backward_tokens(&ids, dx.view(), dtokens.view_mut());
    embedding::backward_positions(3, dx.view(), dpositions.view_mut());
    check("tokens", &flat(&tokens), &flat(&dtokens), 1e-2, 1e-3, |t| forward(matrix(t, 4), positions.view()));
    check("positions", &flat(&positions), &flat(&dpositions), 1e-2, 1e-3, |p| forward(tokens.view(), matrix(p, 4)));
    assert_eq!(dtokens.row(2), ndarray::Array1::<f32>::zeros(4), "a token that does not occur");
}

#[test]
fn attention_within_and_across_tiles_with_and_without_dropout() {
    // Sequences of one token, of part of a tile, of exactly one and two tiles, and beyond.
    for (sequences, length, heads, head_dim) in
        [(2, 1, 2, 3), (2, 5, 1, 4), (1, 64, 2, 8), (1, 128, 1, 4), (2, 131, 3, 5), (2, 32, 2, 16), (1, 80, 1, 16)]
    {
        for probability in [0.0, 0.25] {
            let (tokens, width) = (sequences * length, heads * head_dim);
            let dropout = AttentionDropout { masks: Masks::new(1, 2), block: 3, probability, first_sequence: 4 };
            let layer = Attention { sequence_length: length, heads, dropout: (probability > 0.0).then_some(dropout) };
            let (qkv, dy) = (random(tokens, 3 * width, 0), random(tokens, width, 1));
            let forward = |qkv: ArrayView2<'_, f32>, workers: usize| {
                let workers = Parallelism::workers(workers);
                let (mut y, mut lse) = (Array2::zeros((tokens, width)), Array2::zeros((heads, tokens)));
                let mut scratch = Scratch::new(workers.count(), length);
                attention::forward(layer, qkv, y.view_mut(), lse.view_mut(), &mut scratch, workers);
                (y, lse)
            };
            let backward = |lse: &Array2<f32>, workers: usize| {
                let workers = Parallelism::workers(workers);
                let mut dqkv = Array2::from_elem((tokens, 3 * width), f32::NAN);
                let mut scratch = Scratch::new(workers.count(), length);
                attention::backward(layer, qkv.view(), lse.view(), dy.view(), dqkv.view_mut(), &mut scratch, workers);
                dqkv
            };
            let lse = forward(qkv.view(), 1).1;
            let dqkv = backward(&lse, 1);
            let what = format!("{sequences} sequences of {length}, {heads} heads of {head_dim}, dropout {probability}");
            check(&what, &flat(&qkv), &flat(&dqkv), 3e-3, 5e-3, |x| weighted(&dy, &forward(matrix(x, 3 * width), 1).0));
            for workers in [2, 3] {
                let lse = forward(qkv.view(), workers).1;
                approx::assert_abs_diff_eq!(backward(&lse, workers), dqkv, epsilon = 1e-5);
            }
        }
    }
}

#[test]
fn attention_does_not_look_ahead() {
    let (length, width) = (70, 6);
    let layer = Attention { sequence_length: length, heads: 2, dropout: None };
    let run = |qkv: &Array2<f32>| {
        let (mut y, mut lse) = (Array2::zeros((length, width)), Array2::zeros((2, length)));
        attention::forward(layer, qkv.view(), y.view_mut(), lse.view_mut(), &mut Scratch::new(1, length), ONE);
        y
    };
    let qkv = random(length, 3 * width, 0);
    let mut changed = qkv.clone();
    changed.row_mut(66).fill(9.0);
    let (before, after) = (run(&qkv), run(&changed));
    for row in 0..length {
        assert_eq!(before.row(row) == after.row(row), row < 66, "row {row}");
    }
}

#[test]
fn cross_entropy() {
    for (rows, columns) in [(1, 2), (4, 7), (3, 65)] {
        for (label_smoothing, ignore_id) in [(0.0, None), (0.1, Some(1)), (0.0, Some(4_000_000_000))] {
            let scores = random(rows, columns, 0);
            let mut targets: Vec<u32> = (0..rows as u32).map(|row| (row * 5 + 1) % columns as u32).collect();
            if ignore_id == Some(4_000_000_000) && rows > 1 {
                targets[1] = 4_000_000_000;
            }
            let loss = CrossEntropy { ignore_id, label_smoothing };
            if targets.iter().all(|&target| Some(target) == ignore_id) {
                continue;
            }
            let mut gradient = scores.clone();
            let sum = loss.replace_by_gradient(gradient.view_mut(), &targets, 0.5, ONE);
            let value = |scores: &[f32]| loss.evaluate(matrix(scores, columns), &targets, 3, ONE);
            assert!((value(&flat(&scores)).loss - sum.loss).abs() < 1e-5 * sum.loss);
            assert_eq!(value(&flat(&scores)).correct, sum.correct);
            assert_eq!(sum.targets as usize, targets.iter().filter(|&&target| Some(target) != ignore_id).count());
            check("scores", &flat(&scores), &flat(&gradient), 1e-2, 2e-3, |scores| 0.5 * value(scores).loss);
        }
    }
}

/// The loss of `model` and, by name, the gradient of each parameter.
fn model_gradients(model: &Transformer, config: &TrainingConfig, batch: &Batch) -> (f64, Vec<Vec<f32>>) {
    let mut trainer = Trainer::new(model.clone(), config.clone()).unwrap();
    let loss = trainer.compute_gradients(batch).unwrap().loss;
    let gradient = |name: &str| trainer.gradient(name).unwrap().iter().copied().collect();
    (loss, model.parameter_names().map(gradient).collect())
}

#[test]
fn whole_models() {
    let cases = [
        // sequences, length, dropout, smoothing, workers
        (1, 1, 0.0, 0.0, 1),
        (3, 6, 0.0, 0.0, 1),
        (3, 6, 0.2, 0.1, 2),
    ];
    for (sequences, length, dropout, label_smoothing, workers) in cases {
        let shape = TransformerConfig {
            vocabulary_size: 11,
            context: 8,
            dim: 6,
            heads: 2,
            layers: 2,
            feed_forward: 9,
            embedding_dropout: dropout,
            attention_dropout: dropout,
            residual_dropout: dropout,
            initial_deviation: 0.4,
            ..Default::default()
        };
        // Few distinct tokens, so that most of them repeat; one target in four is ignored.
        let token = |row: usize, column: usize| ((row * 3 + column * column) % 4) as u32;
        let inputs = Array2::from_shape_fn((sequences, length), |(row, column)| token(row, column));
        let targets = Array2::from_shape_fn((sequences, length), |(row, column)| token(row, column + 1) + 1);
        let batch = Batch::new(inputs, targets).unwrap();
        for sharding in [Sharding::Sequences, Sharding::Operations] {
            let config = TrainingConfig {
                batch_size: 2,
                sequence_length: 8,
                ignore_id: (sequences > 1).then_some(2),
                label_smoothing,
                workers,
                sharding,
                ..Default::default()
            };
            let model = Transformer::new(shape.clone(), 5).unwrap();
            let (_, gradients) = model_gradients(&model, &config, &batch);
            for (spec, gradient) in model.layout().specs().iter().zip(&gradients) {
                // One token attends to itself alone, so queries and keys have no gradient, and sums of both are noise.
                let size = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
                if length == 1 && size < 1e-3 {
                    continue;
                }
                let what = format!("{}, {sequences} × {length}, {workers} workers by {sharding:?}", spec.name);
                let values = model.parameters().slice(spec.id);
                check(&what, values, gradient, 2e-3, 1e-2, |values| {
                    let mut moved = model.clone();
                    moved.parameters_mut().slice_mut(spec.id).copy_from_slice(values);
                    model_gradients(&moved, &config, &batch).0
                });
            }
        }
    }
}
