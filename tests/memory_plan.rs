//! The memory plan against what a trainer then takes: the bytes that it asks the allocator for, and the growth of the
//! process's resident memory.
//!
//! Each case runs in a process of its own, this program started anew with only the test `child`, so that no case finds
//! memory that another has left. `CLLM_MEMORY_GPT2` adds the workload W4, with its gigabytes.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::{env, fs};

use cllm::data::Batch;
use cllm::{MemoryPlan, Optimizer, Preset, Sharding, Trainer, TrainingConfig, Transformer, TransformerConfig};
use ndarray::Array2;

struct Counting;

static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size as isize - layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a trainer allocates besides its buffers, at most.
const BESIDES: f64 = 65536.0;

const CASE: &str = "CLLM_MEMORY_PLAN_CASE";

/// Bytes in memory.
fn resident() -> isize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<isize>().unwrap() * 1024
}

/// Every case: its name and its settings.
fn cases() -> Vec<(String, TransformerConfig, TrainingConfig)> {
    let shape = |preset: Preset, vocabulary_size| {
        let training = TrainingConfig {
            batch_size: preset.batch_size(),
            sequence_length: preset.sequence_length(),
            ..Default::default()
        };
        (TransformerConfig { vocabulary_size, ..preset.model() }, training)
    };
    let (w1, w2, w3) = (shape(Preset::Seed, 1000), shape(Preset::Nano, 65), shape(Preset::Small, 4096));
    let long = (
        TransformerConfig { vocabulary_size: 300, context: 2048, dim: 64, heads: 4, layers: 3, ..Default::default() },
        TrainingConfig { batch_size: 3, sequence_length: 2048, ..Default::default() },
    );
    let wide = (
        TransformerConfig { vocabulary_size: 20_000, context: 32, dim: 96, heads: 2, layers: 1, ..Default::default() },
        TrainingConfig { batch_size: 5, sequence_length: 32, scores_budget: 1 << 20, ..Default::default() },
    );
    let mut shapes = vec![("W1", w1), ("W2", w2), ("W3", w3), ("long sequences", long), ("large vocabulary", wide)];
    if env::var_os("CLLM_MEMORY_GPT2").is_some() {
        shapes.push(("W4", shape(Preset::Gpt2, 50257)));
    }
    let mut cases = Vec::new();
    for (name, (model, training)) in shapes {
        for (workers, sharding) in [(1, Sharding::Auto), (2, Sharding::Sequences), (2, Sharding::Operations)] {
            let training = TrainingConfig { workers, sharding, ..training.clone() };
            cases.push((format!("{name}, {workers} workers by {sharding:?}"), model.clone(), training));
        }
        let everything = TrainingConfig {
            workers: 2,
            optimizer: Optimizer::Sgd,
            moving_average_decay: Some(0.9),
            accumulation_steps: 2,
            ..training.clone()
        };
        let model = TransformerConfig { residual_dropout: 0.1, ..model };
        cases.push((format!("{name}, SGD, moving average, dropout"), model, everything));
    }
    cases
}

fn batch(config: &TrainingConfig, vocabulary: usize) -> Batch {
    let shape = (config.batch_size * config.accumulation_steps, config.sequence_length);
    let ids = |factor: usize| Array2::from_shape_fn(shape, |(i, j)| ((i * shape.1 + j) * factor % vocabulary) as u32);
    Batch::new(ids(7), ids(11)).unwrap()
}

/// Makes the trainer of one case and prints what it took; does nothing unless it is told by [`CASE`].
#[test]
fn child() {
    let Ok(wanted) = env::var(CASE) else { return };
    let (_, model, training) = cases().into_iter().find(|(name, ..)| *name == wanted).unwrap();
    let batch = batch(&training, model.vocabulary_size);
    let (allocated, before) = (ALLOCATED.load(Relaxed), resident());
    let mut trainer = Trainer::new(Transformer::new(model, 1).unwrap(), training).unwrap();
    let allocated = ALLOCATED.load(Relaxed) - allocated;
    for _ in 0..3 {
        trainer.step(&batch).unwrap();
    }
    println!("took {allocated} {}", resident() - before);
    println!("plan {:?}", trainer.memory_plan());
}

#[test]
fn a_trainer_takes_what_was_planned() {
    let mut failures = Vec::new();
    for (name, model, training) in cases() {
        let planned = MemoryPlan::of(&model, &training).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(CASE, &name)
            .output()
            .unwrap();
        let output = String::from_utf8(child.stdout).unwrap();
        let took = output.lines().find_map(|line| line.strip_prefix("took ")).expect(&output);
        let took: Vec<f64> = took.split(' ').map(|bytes| bytes.parse().unwrap()).collect();
        assert!(output.contains(&format!("plan {planned:?}")), "{name}: the trainer's own plan is another: {output}");
        let total = planned.total() as f64;
        let mib = |bytes: f64| bytes / 1048576.0;
        let figures = format!(
            "{name}: planned {:.2} MiB, allocated {:.2}, resident {:.2}",
            mib(total),
            mib(took[0]),
            mib(took[1])
        );
        println!("{figures}");
        // What else is allocated: names and shapes of the parameters, the thread pool.
        let buffers = total - planned.runtime as f64;
        if !(0.0..BESIDES).contains(&(took[0] - buffers)) {
            failures.push(format!("{figures}: buffers should take {:.3} MiB", mib(buffers)));
        }
        if (total - took[1]).abs() > 0.1 * took[1] {
            failures.push(format!("{figures}: more than a tenth apart"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
