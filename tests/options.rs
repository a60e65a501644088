//! What the settings of a training run mean: every update replayed in f64 from the gradient it was made with, and every
//! metric of an evaluation counted by hand.

use std::f64::consts::PI;
use std::ops::ControlFlow;

use cllm::config::{PairEncoderConfig, PairTrainingConfig};
use cllm::data::{BatchOrder, PairBatch, SequenceSource, TokenStore};
use cllm::models::pair_encoder::PairEncoder;
use cllm::train::{PairTrainer, StepReport};
use cllm::{Optimizer, Schedule, Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::{Array2, s};

fn shape() -> TransformerConfig {
    TransformerConfig {
        vocabulary_size: 19,
        context: 6,
        dim: 8,
        heads: 2,
        layers: 1,
        feed_forward: 12,
        initial_deviation: 0.3,
        ..Default::default()
    }
}

fn training() -> TrainingConfig {
    TrainingConfig {
        batch_size: 4,
        sequence_length: 6,
        max_steps: Some(STEPS),
        learning_rate: 2e-2,
        minimum_learning_rate: 5e-3,
        warmup_steps: WARMUP,
        weight_decay: 0.3,
        beta1: 0.7,
        beta2: 0.95,
        epsilon: 1e-4,
        momentum: 0.8,
        moving_average_decay: Some(0.6),
        workers: 2,
        ..Default::default()
    }
}

const STEPS: u64 = 10;
const WARMUP: u64 = 3;

fn source(tokens: u32, order: BatchOrder) -> SequenceSource {
    let tokens: Vec<u32> = (0..tokens).map(|i| (i * i + i / 5) % 17).collect();
    SequenceSource::new(TokenStore::from_tokens(&tokens, 19).unwrap(), order, 4, 6, 1).unwrap()
}

/// The learning rate of a step, counted from 0.
fn learning_rate(config: &TrainingConfig, step: u64) -> f64 {
    let (peak, minimum) = (config.learning_rate, config.minimum_learning_rate);
    if step < WARMUP {
        return peak * (step + 1) as f64 / WARMUP as f64;
    }
    let fallen = (step - WARMUP) as f64 / (STEPS - WARMUP) as f64;
    match config.schedule {
        Schedule::Constant => peak,
        Schedule::Linear => peak - (peak - minimum) * fallen,
        Schedule::Cosine => minimum + (peak - minimum) * (1.0 + (PI * fallen).cos()) / 2.0,
        // The last two of ten steps.
        Schedule::WarmupStableDecay => peak - (peak - minimum) * (step.saturating_sub(8) as f64 / 2.0),
    }
}

/// Parameters, moments and moving average, in the order of the table.
struct Replay {
    parameters: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    average: Vec<f64>,
}

impl Replay {
    fn of(trainer: &Trainer) -> Self {
        let parameters = wide(trainer.model());
        let zeros = vec![0.0; parameters.len()];
        Self { average: parameters.clone(), first: zeros.clone(), second: zeros, parameters }
    }

    /// Makes the update that `report` is about, from the gradient that the trainer still has.
    fn step(&mut self, trainer: &Trainer, report: &StepReport) {
        let config = trainer.config();
        let (mut gradients, mut decays) = (Vec::new(), Vec::new());
        for spec in trainer.model().layout().specs() {
            gradients.extend(trainer.gradient(&spec.name).unwrap().iter().map(|&g| f64::from(g)));
            let decay = if spec.shape.len() == 2 { config.weight_decay } else { 0.0 };
            decays.resize(gradients.len(), decay);
        }
        let norm = gradients.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((report.gradient_norm / norm - 1.0).abs() < 1e-5, "the norm is {norm}, not {}", report.gradient_norm);
        let rate = learning_rate(config, report.step - 1);
        assert!((report.learning_rate / rate - 1.0).abs() < 1e-12, "the rate is {rate}, not {}", report.learning_rate);
        let clip = config.gradient_clip.map_or(1.0, |largest| (largest / norm).min(1.0));
        let corrections = [config.beta1, config.beta2].map(|beta| 1.0 - beta.powi(report.step as i32));
        for (i, (g, decay)) in gradients.into_iter().zip(decays).enumerate() {
            let (p, m, v) = (&mut self.parameters[i], &mut self.first[i], &mut self.second[i]);
            let g = clip * g;
            match config.optimizer {
                Optimizer::AdamW => {
                    *m = config.beta1 * *m + (1.0 - config.beta1) * g;
                    *v = config.beta2 * *v + (1.0 - config.beta2) * g * g;
                    let root = (*v / corrections[1]).sqrt() + config.epsilon;
                    *p -= rate * (decay * *p + *m / corrections[0] / root);
                }
                Optimizer::Sgd => {
                    let g = g + decay * *p;
                    *m = config.momentum * *m + g;
                    *p -= rate * if config.nesterov { g + config.momentum * *m } else { *m };
                }
            }
            let kept = config.moving_average_decay.unwrap();
            self.average[i] = kept * self.average[i] + (1.0 - kept) * *p;
        }
    }
}

/// All parameters, without the room between them.
fn wide(model: &Transformer) -> Vec<f64> {
    let specs = model.layout().specs().iter();
    specs.flat_map(|spec| model.parameters().slice(spec.id)).map(|&p| f64::from(p)).collect()
}

#[track_caller]
fn check(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-5, "{what} {i}: {found}, replayed {expected}");
    }
}

#[test]
fn every_update_is_the_documented_one() {
    use Schedule::{Constant, Cosine, Linear, WarmupStableDecay};
    let source = source(500, BatchOrder::Random);
    for schedule in [Constant, Linear, Cosine, WarmupStableDecay] {
        for (optimizer, nesterov) in [(Optimizer::AdamW, false), (Optimizer::Sgd, false), (Optimizer::Sgd, true)] {
            for gradient_clip in [None, Some(0.5)] {
                let config = TrainingConfig { schedule, optimizer, nesterov, gradient_clip, ..training() };
                let what = format!("{schedule:?}, {optimizer:?}, {nesterov}, {gradient_clip:?}");
                let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap();
                let mut replay = Replay::of(&trainer);
                let mut batch = cllm::data::Batch::zeros(4, 6);
                for step in 0..STEPS {
                    source.fill(step, &mut batch).unwrap();
                    let report = trainer.step(&batch).unwrap();
                    assert!(report.gradient_norm > 0.6, "{what}: nothing is clipped");
                    replay.step(&trainer, &report);
                    check(&format!("{what}: step {step}, parameter"), &wide(trainer.model()), &replay.parameters);
                    let average = trainer.averaged_model().unwrap();
                    check(&format!("{what}: step {step}, average"), &wide(&average), &replay.average);
                }
            }
        }
    }
}

#[test]
fn an_evaluation_is_what_the_averaged_model_scores() {
    // 10 windows in batches of 4; one target in some windows is ignored.
    let validation = source(63, BatchOrder::Sequential);
    let config = TrainingConfig {
        label_smoothing: 0.2,
        ignore_id: Some(4),
        top_k: 3,
        evaluation_interval: Some(STEPS),
        ..training()
    };
    let mut trainer = Trainer::new(Transformer::new(shape(), 1).unwrap(), config).unwrap();
    let mut in_the_run = None;
    trainer
        .run(&source(500, BatchOrder::Random), Some(&validation), |progress| {
            in_the_run = progress.evaluation;
            ControlFlow::Continue(())
        })
        .unwrap();

    let mut ids = vec![0; validation.tokens().len()];
    validation.tokens().copy_to(0, &mut ids).unwrap();
    let inputs = Array2::from_shape_fn((10, 6), |(window, column)| ids[window * 6 + column]);
    let scores = trainer.averaged_model().unwrap().logits(inputs.view()).unwrap();
    let (mut loss, mut counted) = (0.0, 0u64);
    // Targets that have the highest score, or one of the three highest: those that surely have, and those that may, as
    // the scores of an evaluation are rounded in another order.
    let (mut correct, mut in_top) = ([0u64; 2], [0u64; 2]);
    for window in 0..10 {
        for column in 0..6 {
            let target = ids[window * 6 + column + 1] as usize;
            if target == 4 {
                continue;
            }
            let row = scores.slice(s![window, column, ..]).mapv(f64::from);
            loss += row.mapv(f64::exp).sum().ln() - row[target];
            counted += 1;
            for (place, margin) in [-1e-5, 1e-5].into_iter().enumerate() {
                let ahead = |(token, &score): (usize, &f64)| token != target && score > row[target] + margin;
                let rank = row.iter().enumerate().filter(|&other| ahead(other)).count();
                correct[place] += u64::from(rank < 1);
                in_top[place] += u64::from(rank < 3);
            }
        }
    }
    assert!(counted < 60 && correct[1] < in_top[0] && in_top[1] < counted, "{correct:?}, {in_top:?} of {counted}");

    let evaluation = trainer.evaluate(&validation).unwrap();
    assert_eq!(in_the_run, Some(evaluation));
    assert_eq!(evaluation.targets, counted);
    assert!((evaluation.loss - loss / counted as f64).abs() < 1e-5, "{evaluation:?}");
    for (share, [least, most]) in [(evaluation.accuracy, correct), (evaluation.top_k_accuracy, in_top)] {
        let count = share * counted as f64;
        assert!(count > least as f64 - 0.1 && count < most as f64 + 0.1, "{evaluation:?}: {count}, {least} to {most}");
    }
}

const TOKENS: usize = 9;
const DIM: usize = 4;

/// The loss of a batch of text pairs by the plain formula; of all tokens the vectors, then the weights.
fn pair_loss(parameters: &[f64], batch: &PairBatch, temperature: f64) -> f64 {
    let (vectors, weights) = parameters.split_at(TOKENS * DIM);
    let unit = |text: usize| -> [f64; DIM] {
        let mut sum = [0.0; DIM];
        for &id in batch.rows().row(text) {
            let vector = &vectors[id as usize * DIM..][..DIM];
            sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += weights[id as usize] * value);
        }
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        sum.map(|x| x / length)
    };
    let units: Vec<_> = (0..batch.rows().len()).map(unit).collect();
    let (queries, documents) = units.split_at(batch.pairs());
    let of_query = |(pair, query): (usize, &[f64; DIM])| {
        let cosine = |document: &[f64; DIM]| query.iter().zip(document).map(|(x, y)| x * y).sum::<f64>();
        let scores: Vec<f64> = documents.iter().map(|document| cosine(document) / temperature).collect();
        scores.iter().map(|score| score.exp()).sum::<f64>().ln() - scores[pair]
    };
    queries.iter().enumerate().map(of_query).sum::<f64>() / queries.len() as f64
}

/// Row-sparse AdamW: a row has moments, bias corrections and weight decay of the steps that touch it alone.
#[test]
fn every_update_of_a_text_encoder_is_the_documented_one() {
    // Queries, documents, hard negatives. Token 3 is in every batch, token 8 in none, the others in one or two.
    let batches: [&[&[u32]]; 3] = [
        &[&[0, 3], &[1, 1, 2], &[3], &[2, 4], &[5], &[0, 0, 1]],
        &[&[3, 3, 6], &[1], &[7, 2], &[6], &[0, 7], &[1, 3]],
        &[&[5, 6, 3], &[4, 0, 4], &[3]],
    ];
    for workers in [1, 2] {
        let config = PairTrainingConfig {
            batch_size: 2,
            hard_negatives: 1,
            max_tokens: 4,
            temperature: 0.4,
            learning_rate: 0.06,
            minimum_learning_rate: 0.01,
            warmup_steps: 2,
            schedule: Schedule::Constant,
            weight_decay: 0.7,
            beta1: 0.6,
            beta2: 0.85,
            epsilon: 0.03,
            workers,
            ..Default::default()
        };
        let shape = PairEncoderConfig { vocabulary_size: TOKENS, dim: DIM, token_weights: true };
        let mut encoder = PairEncoder::new(shape, 4).unwrap();
        let weights = encoder.layout().specs().iter().find(|spec| spec.name == "token_weights").unwrap().id;
        let drawn = encoder.parameters_mut().slice_mut(weights).iter_mut().enumerate();
        drawn.for_each(|(id, weight)| *weight = 0.4 + 0.25 * id as f32);
        let of = |encoder: &PairEncoder| -> Vec<f64> {
            let vectors = encoder.vectors();
            vectors.iter().chain(encoder.token_weights().unwrap()).map(|&value| f64::from(value)).collect()
        };
        let mut parameters = of(&encoder);
        let mut moments = vec![[0.0; 2]; parameters.len()];
        let mut updates = [0; TOKENS];
        let mut trainer = PairTrainer::with_encoder(encoder, config.clone()).unwrap();
        for (step, texts) in batches.iter().enumerate() {
            let batch = PairBatch::new(texts.iter().collect(), 1).unwrap();
            let report = trainer.step(&batch).unwrap();
            let loss = |parameters: &[f64]| pair_loss(parameters, &batch, config.temperature);
            assert!((report.loss - loss(&parameters)).abs() < 1e-5, "step {step}: {report:?}");
            let gradient: Vec<f64> = (0..parameters.len())
                .map(|place| {
                    let at = |moved: f64| {
                        let mut parameters = parameters.clone();
                        parameters[place] += moved;
                        loss(&parameters)
                    };
                    (at(1e-5) - at(-1e-5)) / 2e-5
                })
                .collect();
            let touched = |id: usize| texts.iter().any(|text| text.contains(&(id as u32)));
            (0..TOKENS).filter(|&id| touched(id)).for_each(|id| updates[id] += 1);
            let rate = config.learning_rate * [0.5, 1.0, 1.0][step];
            for (place, g) in gradient.into_iter().enumerate() {
                let vector = place < TOKENS * DIM;
                let id = if vector { place / DIM } else { place - TOKENS * DIM };
                if !touched(id) {
                    continue;
                }
                let (p, [m, v]) = (&mut parameters[place], &mut moments[place]);
                *m = config.beta1 * *m + (1.0 - config.beta1) * g;
                *v = config.beta2 * *v + (1.0 - config.beta2) * g * g;
                let [first, second] = [config.beta1, config.beta2].map(|beta| 1.0 - beta.powi(updates[id]));
                let decay = if vector { config.weight_decay } else { 0.0 };
                *p -= rate * (decay * *p + *m / first / ((*v / second).sqrt() + config.epsilon));
            }
            check(&format!("{workers} workers, step {step}: parameter"), &of(trainer.encoder()), &parameters);
        }
        assert_eq!(updates, [3, 2, 2, 3, 2, 2, 2, 1, 0]);
    }
}
