//! What the three optimisations are worth, alone and together, and what the engine makes of them:
//! `cargo bench --bench optimizations`.
//!
//! A training step (forward, backward, clip, AdamW) at the preset seed. Criterion measures one variant after the other;
//! at the end all are measured in turn, so that a machine that is slower for a while is slower for all, and their speeds
//! are printed beside the plain reference's. `cargo bench --bench optimizations -- --ratios` prints these alone.
#![allow(missing_docs)]

mod plain;
#[path = "../examples/common/random_batch.rs"]
mod random_batch;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cllm::data::Batch;
use cllm::{Preset, Schedule, Trainer, TrainingConfig, Transformer};
use criterion::{Criterion, Throughput};
use plain::{Optimizations, Plain};
use random_batch::random_batch;

const PRESET: Preset = Preset::Seed;

/// Rounds in which every variant takes its turn, and how long a turn lasts at least. The fastest step of a turn counts:
/// what else the machine does can only slow a step down.
const ROUNDS: usize = 9;
const TURN: Duration = Duration::from_millis(300);
const LEAST_STEPS: usize = 3;

fn training(workers: usize) -> TrainingConfig {
    TrainingConfig {
        batch_size: PRESET.batch_size(),
        sequence_length: PRESET.sequence_length(),
        warmup_steps: 0,
        schedule: Schedule::Constant,
        workers,
        ..Default::default()
    }
}

fn batch() -> Batch {
    random_batch(PRESET.batch_size(), PRESET.sequence_length(), PRESET.model().vocabulary_size, 0)
}

/// A way to train: its name, and one step of it.
type Variant = (String, Box<dyn FnMut(&Batch)>);

fn variants() -> Vec<Variant> {
    let model = Transformer::new(PRESET.model(), 1).expect("a preset is valid");
    let none = Optimizations::default();
    let all = Optimizations {
        persistent_workspaces: true,
        batch_embedding_caches: true,
        vectorised_similarities: true,
        ..none
    };
    let plain = [
        ("plain", none),
        ("plain with persistent workspaces", Optimizations { persistent_workspaces: true, ..none }),
        ("plain with batch embedding caches", Optimizations { batch_embedding_caches: true, ..none }),
        ("plain with vectorised similarities", Optimizations { vectorised_similarities: true, ..none }),
        ("plain with all three", all),
        ("plain with weights walked by rows", Optimizations { weights_by_rows: true, ..none }),
    ];
    let mut variants: Vec<Variant> = Vec::new();
    for (name, optimizations) in plain {
        let mut plain = Plain::new(&model, &training(1), optimizations);
        let step = move |batch: &Batch| {
            black_box(plain.step(batch));
        };
        variants.push((name.into(), Box::new(step)));
    }
    let mut workers = vec![1, std::thread::available_parallelism().map_or(1, usize::from)];
    workers.dedup();
    for workers in workers {
        let mut trainer = Trainer::new(model.clone(), training(workers)).expect("the settings are valid");
        let step = move |batch: &Batch| {
            black_box(trainer.step(batch).expect("the batch is valid"));
        };
        let name = if workers == 1 { "engine, 1 worker".into() } else { format!("engine, {workers} workers") };
        variants.push((name, Box::new(step)));
    }
    variants
}

fn tokens() -> usize {
    PRESET.batch_size() * PRESET.sequence_length()
}

fn criterion(variants: &mut [Variant]) {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("step");
    group.throughput(Throughput::Elements(tokens() as u64)).sample_size(10).warm_up_time(Duration::from_secs(1));
    let batch = batch();
    for (name, step) in variants {
        group.bench_function(name.as_str(), |bencher| bencher.iter(|| step(&batch)));
    }
    group.finish();
    criterion.final_summary();
}

/// Prints each variant's tokens a second, and how many times the plain reference's of the same round they are: medians.
fn ratios(variants: &mut [Variant]) {
    let batch = batch();
    let mut speeds = vec![Vec::new(); variants.len()];
    for round in 0..=ROUNDS {
        for ((_, step), speeds) in variants.iter_mut().zip(&mut speeds) {
            let start = Instant::now();
            let mut steps = 0;
            let mut fastest = f64::INFINITY;
            while steps < LEAST_STEPS || start.elapsed() < TURN {
                let start = Instant::now();
                step(&batch);
                fastest = fastest.min(start.elapsed().as_secs_f64());
                steps += 1;
            }
            // The first round warms up.
            if round > 0 {
                speeds.push(tokens() as f64 / fastest);
            }
        }
    }
    println!("| variant | tokens/s | × plain |\n|---|---|---|");
    for ((name, _), of_variant) in variants.iter().zip(&speeds) {
        let ratios = of_variant.iter().zip(&speeds[0]).map(|(speed, plain)| speed / plain).collect();
        println!("| {name} | {:.0} | {:.2} |", median(of_variant.clone()), median(ratios));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut variants = variants();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let only_ratios = arguments == ["--ratios"];
    if !only_ratios {
        criterion(&mut variants);
    }
    // Not beside a filter of Criterion's, its `--test` or `--list`.
    if only_ratios || arguments.is_empty() {
        ratios(&mut variants);
    }
}
