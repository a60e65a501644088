//! Memory stays where it is once a run is under way, saves included: what is held on the heap, to which no step and no save
//! adds even one small allocation, and the resident memory of the whole process, within a hundredth.
//!
//! 3000 steps; `CLLM_MEMORY_STEPS` asks for more. A binary of its own, since it counts the allocations of the process: one
//! test function, no other threads.
#![cfg(target_os = "linux")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;
use std::{env, fs, thread};

use cllm::{Trainer, TrainingConfig, Transformer, TransformerConfig};
use support::{model_config, source, training_config};

struct Counting;

/// Allocations that were not given back yet, and their bytes.
static HELD: AtomicI64 = AtomicI64::new(0);
static HELD_BYTES: AtomicI64 = AtomicI64::new(0);

#[allow(unsafe_code)]
// SAFETY: every call is passed on to the system's allocator unchanged; a reallocation is the two of them.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(1, Relaxed);
        HELD_BYTES.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(1, Relaxed);
        HELD_BYTES.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the process takes at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    held: i64,
    held_bytes: i64,
    resident: i64,
}

impl Sample {
    fn take() -> Self {
        // Counted first: reading the rest allocates.
        let (held, held_bytes) = (HELD.load(Relaxed), HELD_BYTES.load(Relaxed));
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let resident = line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024;
        Self { held, held_bytes, resident }
    }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn memory_is_flat() {
    let steps = env::var("CLLM_MEMORY_STEPS").map_or(3000, |steps| steps.parse().unwrap());
    let config = TrainingConfig {
        max_steps: Some(steps),
        save_interval: Some(steps / 50),
        keep_checkpoints: Some(2),
        moving_average_decay: Some(0.9),
        workers: 2,
        ..training_config()
    };
    // Large by its table of positions, most of which no step looks at: a hundredth of the process is many pages, and a
    // step takes little time.
    let model = TransformerConfig { context: 1 << 16, dim: 16, ..model_config() };
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Transformer::new(model, 1).unwrap(), config.clone()).unwrap();
    trainer.save_to(folder.path()).unwrap();
    let mut samples = Vec::with_capacity(100);
    let source = source(&config);
    let without_saving = threads();
    trainer
        .run(&source, None, |progress| {
            if progress.report.step.is_multiple_of(steps / 20) {
                // Until the thread that saves beside training is gone, and with it what it held.
                while threads() > without_saving {
                    thread::sleep(Duration::from_millis(1));
                }
                samples.push(Sample::take());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    // The first tenth warms up: pages of code, buffers of the first saves.
    let (first, rest) = (samples[1], &samples[2..]);
    let most = |of: fn(&Sample) -> i64| rest.iter().map(of).max().unwrap();
    let (held, bytes, resident) =
        (most(|sample| sample.held), most(|sample| sample.held_bytes), most(|sample| sample.resident));
    let mib = |bytes: i64| bytes as f64 / 1048576.0;
    println!(
        "{steps} steps: after a tenth {} allocations held, {} bytes, {:.2} MiB resident; at most {held}, {bytes}, {:.2} MiB",
        first.held,
        first.held_bytes,
        mib(first.resident),
        mib(resident)
    );
    // Room for what differs from one save to the next, such as a number with a further digit. The samples span 45 saves.
    assert!(held <= first.held + 10 && bytes <= first.held_bytes + 256, "memory that is held grows: {samples:#?}");
    assert!(resident as f64 <= first.resident as f64 * 1.01, "resident memory grows: {samples:#?}");
}
