//! What the three optimisations are worth, alone and together, and what the engine makes of them:
//! `cargo bench --bench optimizations`.
//!
//! A training step (forward, backward, clip, AdamW) at the preset seed; at the end, every variant's tokens a second
//! beside the plain reference's in the same run.
#![allow(missing_docs)]

mod plain;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cllm::data::Batch;
use cllm::rng::{Purpose, Stream};
use cllm::{Preset, Schedule, Trainer, TrainingConfig, Transformer};
use criterion::{Criterion, Throughput};
use ndarray::Array2;
use plain::{Optimizations, Plain};

const PRESET: Preset = Preset::Seed;

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
    let shape = (PRESET.batch_size(), PRESET.sequence_length());
    let vocabulary = PRESET.model().vocabulary_size as u64;
    let ids = |step| {
        let stream = Stream::new(7, Purpose::Caller, step);
        Array2::from_shape_fn(shape, |(row, column)| stream.below((row * shape.1 + column) as u64, vocabulary) as u32)
    };
    Batch::new(ids(0), ids(1)).expect("the shapes agree")
}

/// The benches of one run, and the median seconds a step of each.
struct Run {
    criterion: Criterion,
    medians: Vec<(String, f64)>,
}

impl Run {
    fn measure(&mut self, name: &str, samples: usize, mut step: impl FnMut()) {
        let mut times = Vec::new();
        let mut group = self.criterion.benchmark_group("step");
        group.throughput(Throughput::Elements((PRESET.batch_size() * PRESET.sequence_length()) as u64));
        group.sample_size(samples).warm_up_time(Duration::from_secs(1));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|steps| {
                let start = Instant::now();
                (0..steps).for_each(|_| step());
                let elapsed = start.elapsed();
                times.push(elapsed.as_secs_f64() / steps as f64);
                elapsed
            });
        });
        group.finish();
        // Not measured, where the command line filters it out.
        if !times.is_empty() {
            times.sort_by(f64::total_cmp);
            self.medians.push((name.into(), times[times.len() / 2]));
        }
    }

    fn print(&self) {
        let Some(&(_, plain)) = self.medians.iter().find(|(name, _)| name == "plain") else { return };
        let tokens = (PRESET.batch_size() * PRESET.sequence_length()) as f64;
        println!("| variant | tokens/s | × plain |\n|---|---|---|");
        for (name, seconds) in &self.medians {
            println!("| {name} | {:.0} | {:.2} |", tokens / seconds, plain / seconds);
        }
    }
}

fn main() {
    let mut run = Run { criterion: Criterion::default().configure_from_args(), medians: Vec::new() };
    let model = Transformer::new(PRESET.model(), 1).expect("a preset is valid");
    let batch = batch();

    let none = Optimizations::default();
    let all =
        Optimizations { persistent_workspaces: true, batch_embedding_caches: true, vectorised_similarities: true };
    for (name, optimizations) in [
        ("plain", none),
        ("plain with persistent workspaces", Optimizations { persistent_workspaces: true, ..none }),
        ("plain with batch embedding caches", Optimizations { batch_embedding_caches: true, ..none }),
        ("plain with vectorised similarities", Optimizations { vectorised_similarities: true, ..none }),
        ("plain with all three", all),
    ] {
        let mut plain = Plain::new(&model, &training(1), optimizations);
        run.measure(name, 10, || {
            black_box(plain.step(&batch));
        });
    }

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut workers = vec![1, cores];
    workers.dedup();
    for workers in workers {
        let mut trainer = Trainer::new(model.clone(), training(workers)).expect("the settings are valid");
        let name = if workers == 1 { "engine, 1 worker".into() } else { format!("engine, {workers} workers") };
        run.measure(&name, 50, || {
            black_box(trainer.step(&batch).expect("the batch is valid"));
        });
    }
    run.print();
    run.criterion.final_summary();
}
