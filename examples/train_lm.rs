//! Trains a language model on text, from files to a saved model: `cargo run --release --example train_lm`.
//!
//! The run leaves a folder with `model.safetensors`, `config.json`, `tokenizer.json`, `metrics.jsonl`, `loss.svg` and
//! checkpoints, from which `--resume` goes on.

use std::error::Error;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use cllm::Trainer;
use cllm::data::TokenStore;
use cllm::generate::{Generator, Sampling};
use cllm::train::{Progress, RunSummary};
use serde::Serialize;

#[path = "common/chart.rs"]
mod chart;
#[path = "common/corpus.rs"]
mod corpus;
#[path = "train_lm/flags.rs"]
mod flags;
#[path = "common/interrupt.rs"]
mod interrupt;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/progress.rs"]
mod progress;
#[path = "train_lm/record.rs"]
mod record;
#[path = "common/recorded.rs"]
mod recorded;
#[path = "common/run_folder.rs"]
mod run_folder;
#[path = "train_lm/setup.rs"]
mod setup;

use interrupt::Interrupt;
use progress::ProgressDisplay;
use record::Record;
use setup::{CommandLine, Setup};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    train(CommandLine::read()).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn train(command: CommandLine) -> Result<ExitCode> {
    let start = Instant::now();
    let setup = Setup::of(command)?;
    let Setup { flags, folder, corpus, tokenizer, training, validation } = &setup;
    let mut trainer = setup.trainer()?;
    let (parameters, workers) = (trainer.model().layout().parameter_count(), trainer.config().workers);
    println!(
        "{} MB of text in {} files, {} training tokens, vocabulary {}, {parameters} parameters, {workers} workers → {}",
        corpus.total_bytes() / 1_000_000,
        corpus.paths().len(),
        training.tokens().len(),
        tokenizer.vocabulary_size(),
        folder.path().display()
    );
    let first = trainer.steps();
    if flags.resume.is_some() {
        println!("resumed at step {first}");
    }
    let interrupt = Interrupt::watch()?;
    let mut record = Record::new(folder.metrics(first)?, flags.log_every);
    let summary = run(&mut trainer, &setup, &interrupt, &mut record)?;

    if summary.last.is_some() {
        trainer.save(folder.path())?;
    }
    let model = trainer.averaged_model().unwrap_or_else(|| trainer.model().clone());
    model.save_parameters(&folder.file("model.safetensors"))?;
    if summary.stopped {
        record.draw(&folder.file("loss.svg"))?;
        let path = folder.path().display();
        eprintln!("interrupted at step {}, which is saved; --resume {path} goes on", summary.steps);
        return Ok(ExitCode::from(interrupt::SAVED));
    }
    let evaluation = validation.as_ref().map(|validation| trainer.evaluate(validation)).transpose()?;
    if let Some(evaluation) = &evaluation {
        record.evaluation(summary.steps, evaluation)?;
        println!("validation loss {:.4}, perplexity {:.2}", evaluation.loss, evaluation.perplexity());
    }
    record.draw(&folder.file("loss.svg"))?;
    if flags.sample > 0 {
        let prompt = prompt(validation.as_ref().unwrap_or(training).tokens())?;
        let sampling = Sampling { temperature: 0.8, seed: flags.seed, ..Sampling::default() };
        let sample = Generator::new(&model).generate(&prompt, flags.sample, &sampling)?;
        println!("\n{}\n", tokenizer.decode(&[prompt, sample].concat()));
    }
    if flags.json {
        let outcome = Outcome {
            steps: summary.steps,
            train_loss: record.recent_loss(),
            val_loss: evaluation.map(|evaluation| evaluation.loss),
            tokens_per_s: summary.tokens_per_second(),
            seconds: start.elapsed().as_secs_f64(),
            parameters,
            workers,
            peak_rss_mb: memory::peak_rss_mb(),
        };
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The last line, if it is asked for.
#[derive(Serialize)]
struct Outcome {
    steps: u64,
    /// Mean over the last steps, if there were any left to make.
    train_loss: f64,
    /// Over the whole validation data.
    val_loss: Option<f64>,
    /// In training steps, evaluation left out.
    tokens_per_s: f64,
    /// Of the whole program.
    seconds: f64,
    parameters: usize,
    workers: usize,
    peak_rss_mb: Option<f64>,
}

/// Trains to the end, or until the user interrupts.
fn run(trainer: &mut Trainer, setup: &Setup, interrupt: &Interrupt, record: &mut Record) -> Result<RunSummary> {
    let mut display = ProgressDisplay::new();
    let mut failure = None;
    let summary = trainer.run(&setup.training, setup.validation.as_ref(), |progress| {
        if let Err(error) = report(progress, record, &mut display) {
            failure = Some(error.to_string());
        }
        let stop = failure.is_some() || interrupt.is_set();
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.finish();
    failure.map_or(Ok(summary?), |failure| Err(failure.into()))
}

fn report(progress: &Progress<'_>, record: &mut Record, display: &mut ProgressDisplay) -> Result<()> {
    record.step(progress)?;
    let report = &progress.report;
    display.update(
        report.step,
        progress.last_step,
        format_args!(
            "loss {:.4} | learning rate {:.2e} | {:.0} tokens/s",
            report.loss, report.learning_rate, progress.tokens_per_second
        ),
    );
    if let Some(evaluation) = &progress.evaluation {
        record.evaluation(report.step, evaluation)?;
        display.line(&format!("step {}: validation loss {:.4}", report.step, evaluation.loss));
    }
    Ok(())
}

/// The first tokens of `tokens`.
fn prompt(tokens: &TokenStore) -> cllm::Result<Vec<u32>> {
    let mut prompt = vec![0; tokens.len().min(16)];
    tokens.copy_to(0, &mut prompt)?;
    Ok(prompt)
}
