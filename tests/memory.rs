//! Resident memory stays where it is once a run is under way, saves included.
//!
//! 3000 steps; `CLLM_MEMORY_STEPS` asks for more.
#![cfg(target_os = "linux")]

mod support;

use std::ops::ControlFlow;
use std::{env, fs};

use cllm::TrainingConfig;
use support::{source, trainer, training_config};

/// Bytes in memory.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

#[test]
fn resident_memory_is_flat_within_a_hundredth() {
    let steps = env::var("CLLM_MEMORY_STEPS").map_or(3000, |steps| steps.parse().unwrap());
    let config = TrainingConfig {
        max_steps: Some(steps),
        save_interval: Some(steps / 50),
        moving_average_decay: Some(0.9),
        workers: 2,
        ..training_config()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&config);
    trainer.save_to(folder.path()).unwrap();
    let mut samples = Vec::with_capacity(100);
    let source = source(&config);
    trainer
        .run(&source, None, |progress| {
            if progress.report.step.is_multiple_of(steps / 20) {
                samples.push(resident());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    // The first tenth warms up: pages of code, buffers of the first saves.
    let (first, rest) = (samples[1], &samples[2..]);
    let largest = rest.iter().copied().fold(0.0, f64::max);
    println!("{steps} steps: {:.2} MiB after a tenth, {:.2} MiB at most", first / 1048576.0, largest / 1048576.0);
    assert!(largest <= first * 1.01, "{samples:?}");
}
