//! Throughput of training steps on the four workloads, with one worker and with two: `cargo bench --bench lm_step`.
//!
//! A step, of a run, is forward, backward, clip and AdamW on random tokens. W4 is GPT-2's smallest published shape, whose steps
//! take seconds and gigabytes: it is measured only when asked for, by `cargo bench --bench lm_step -- W4`.
#![allow(missing_docs)]

#[path = "../examples/common/random_tokens.rs"]
mod random_tokens;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cllm::data::{SequenceSource, TokenStore};
use cllm::{Preset, Trainer, TrainingConfig, Transformer, TransformerConfig};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use random_tokens::random_tokens;

fn steps(criterion: &mut Criterion) {
    for (name, preset, vocabulary, samples) in [
        ("W1", Preset::Seed, 1000, 50),
        ("W2", Preset::Nano, 65, 30),
        ("W3", Preset::Small, 4096, 10),
        ("W4", Preset::Gpt2, 50257, 10),
    ] {
        if name == "W4" && !std::env::args().any(|argument| argument.contains("W4")) {
            continue;
        }
        let mut group = criterion.benchmark_group(name);
        let config = TrainingConfig {
            batch_size: preset.batch_size(),
            sequence_length: preset.sequence_length(),
            weight_decay: 0.01,
            max_steps: Some(u64::MAX),
            ..Default::default()
        };
        group.throughput(Throughput::Elements((config.batch_size * config.sequence_length) as u64));
        group.sample_size(samples).warm_up_time(Duration::from_secs(1));
        let tokens = random_tokens(100_000, vocabulary);
        let tokens = TokenStore::from_tokens(&tokens, vocabulary).expect("the tokens are below the vocabulary");
        let source = SequenceSource::for_training(tokens, &config).expect("there are tokens enough");
        for workers in [1, 2] {
            let name = if workers == 1 { "1 worker" } else { "2 workers" };
            // The trainer is made when its bench runs, and gone before the next: a filter leaves the others out.
            group.bench_function(name, |bencher| {
                let model = TransformerConfig { vocabulary_size: vocabulary, ..preset.model() };
                let model = Transformer::new(model, 1).expect("a preset is valid");
                let config = TrainingConfig { workers, ..config.clone() };
                let mut trainer = Trainer::new(model, config).expect("the settings are valid");
                // From the end of one step more: in each that follows the update that was left is made.
                bencher.iter_custom(|steps| {
                    let (mut start, mut made) = (Instant::now(), 0);
                    let mut time = Duration::ZERO;
                    let run = trainer.run(&source, None, |_| {
                        if made == 0 {
                            start = Instant::now();
                        }
                        time = start.elapsed();
                        made += 1;
                        if made <= steps { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    });
                    run.expect("the tokens are valid");
                    time
                });
            });
        }
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
