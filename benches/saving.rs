//! How long a save beside training holds up the step that starts it, against a copy of the state.
//!
//! `cargo bench --bench saving`. A model of the preset `small`, 60 steps, a save every tenth; medians.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cllm::data::{BatchOrder, SequenceSource, TokenStore};
use cllm::{Preset, Trainer, TrainingConfig, Transformer};

const STEPS: u64 = 60;
const INTERVAL: u64 = 10;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() {
    let model = Preset::Small.model();
    let tokens: Vec<u32> = (0..100_000).map(|i: u32| i.wrapping_mul(i) % 4096).collect();
    let tokens = TokenStore::from_tokens(&tokens, 4096).expect("ids of the vocabulary");
    let config = TrainingConfig {
        batch_size: 2,
        sequence_length: 64,
        max_steps: Some(STEPS),
        save_interval: Some(INTERVAL),
        ..TrainingConfig::default()
    };
    let source = SequenceSource::new(tokens, BatchOrder::Random, 2, 64, 1).expect("enough tokens");
    let model = Transformer::new(model, 1).expect("a valid model");
    let (state, mut copy) = (model.parameters().values().to_vec(), model.parameters().values().to_vec());
    let folder = tempfile::tempdir().expect("a folder");
    let mut trainer = Trainer::new(model, config).expect("a valid configuration");
    trainer.save_to(folder.path()).expect("a folder to write to");

    let (mut saving, mut others, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Instant::now();
    trainer
        .run(&source, None, |progress| {
            let step = progress.report.step;
            // The first save makes the memory for the copy; it and the first steps are left out.
            match step {
                _ if step <= INTERVAL => {}
                _ if progress.save_due => saving.push(last.elapsed()),
                _ => others.push(last.elapsed()),
            }
            let start = Instant::now();
            // Weights and two moments.
            (0..3).for_each(|_| black_box(&mut copy).copy_from_slice(black_box(&state)));
            copies.push(start.elapsed());
            last = Instant::now();
            ControlFlow::Continue(())
        })
        .expect("training and saving succeed");
    let (saving, others, copy) = (median(saving), median(others), median(copies));
    println!(
        "a step {others:.1?}, a step that saves {saving:.1?}: {:.1?} more; a copy of the state {copy:.1?}",
        saving.saturating_sub(others)
    );
}
