//! An application that trains while it does something else: the trainer on a thread of its own, progress over a
//! channel, cancellation by a flag, and the model handed back when the thread is joined.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use cllm::data::{SequenceSource, TextFiles, TextOptions, Tokenizer};
use cllm::train::StepReport;
use cllm::{Preset, Trainer, TrainingConfig, Transformer, TransformerConfig};
use interrupt::Interrupt;
use ndarray::Array2;

#[path = "common/interrupt.rs"]
#[allow(dead_code)] // nothing is saved here, so no exit code says so
mod interrupt;

#[derive(Parser)]
struct Flags {
    /// Text files or folders [default: this crate's sources]
    #[arg(long, num_args = 1.., value_name = "PATH", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/src"))]
    data: Vec<PathBuf>,
    /// Updates at most
    #[arg(long, default_value_t = 2000)]
    steps: u64,
    /// Seconds at most
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<(), Box<dyn Error>> {
    let corpus = TextFiles::collect(&flags.data, &TextOptions::default())?;
    let tokenizer = Tokenizer::byte();
    let tokens = corpus.tokenize(&tokenizer)?;
    let preset = Preset::Seed;
    let model = TransformerConfig { vocabulary_size: tokenizer.vocabulary_size(), ..preset.model() };
    let config = TrainingConfig {
        batch_size: preset.batch_size(),
        sequence_length: preset.sequence_length(),
        max_steps: Some(flags.steps),
        ..TrainingConfig::default()
    };
    let batches = SequenceSource::for_training(tokens, &config)?;
    let mut trainer = Trainer::new(Transformer::new(model, config.seed)?, config)?;

    let cancelled = Arc::new(AtomicBool::new(false));
    let (sender, reports) = mpsc::channel::<StepReport>();
    let training = thread::spawn({
        let cancelled = Arc::clone(&cancelled);
        move || {
            trainer.run(&batches, None, |progress| {
                // If the application has dropped its end of the channel, nobody waits for the model.
                let listening = sender.send(progress.report).is_ok();
                let stop = !listening || cancelled.load(Ordering::Relaxed);
                if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            Ok::<_, cllm::Error>(trainer.into_model())
        }
    });

    let interrupt = Interrupt::watch()?;
    let deadline = Instant::now() + Duration::from_secs(flags.seconds);
    let mut steps = 0;
    loop {
        // Wakes up often enough to do the application's own work.
        match reports.recv_timeout(Duration::from_millis(50)) {
            Ok(report) => {
                steps = report.step;
                if steps % 100 == 0 {
                    println!("step {steps}: loss {:.3}", report.loss);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The training has ended, by itself or because it was told to.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if interrupt.is_set() || Instant::now() >= deadline {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    let model = training.join().expect("training does not panic")?;
    let scores = model.logits(Array2::from_shape_fn((1, 3), |(_, position)| u32::from(b"let"[position])).view())?;
    let next = (0..=u8::MAX).max_by(|&a, &b| scores[[0, 2, a.into()]].total_cmp(&scores[[0, 2, b.into()]]));
    println!("after {steps} steps, {:?} follows \"let\"", next.map(char::from).unwrap_or_default());
    Ok(())
}
