//! Trains a language model on text, from files to a saved model: `cargo run --release --example train_lm`.
//!
//! The run leaves a folder with `model.safetensors`, `config.json`, `tokenizer.json`, `metrics.jsonl` and `loss.svg`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Parser;
use cllm::data::{self, BatchOrder, SequenceSource, TokenStore, Tokenizer};
use cllm::generate::{Generator, Sampling};
use cllm::train::{Progress, RunSummary};
use cllm::{Trainer, TrainingConfig, Transformer, TransformerConfig};
use serde::Serialize;

#[path = "common/chart.rs"]
mod chart;
#[path = "common/corpus.rs"]
mod corpus;
#[path = "train_lm/flags.rs"]
mod flags;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/progress.rs"]
mod progress;
#[path = "train_lm/record.rs"]
mod record;
#[path = "common/run_folder.rs"]
mod run_folder;

use flags::Flags;
use progress::ProgressDisplay;
use record::Record;
use run_folder::RunFolder;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match train(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(flags: &Flags) -> Result<()> {
    let start = Instant::now();
    let config = flags.training();
    // Before the corpus is read, which may take a while; the vocabulary is not known yet, and any will do.
    config.validate()?;
    flags.model(1).validate()?;
    let tokenizer = flags.tokenizer_source()?;
    let corpus = corpus::collect(&flags.data, flags.max_bytes)?;
    let folder = match &flags.out {
        Some(path) => RunFolder::create(path.clone())?,
        None => RunFolder::create_numbered("lm")?,
    };

    let tokenizer = tokenizer.build(&corpus)?;
    let tokens = data::tokenize(&corpus, &tokenizer, folder.file("tokens.bin"))?;
    let (training, validation) = split(flags, tokens, &tokenizer, &folder.file("validation.bin"))?;
    let model = Transformer::new(flags.model(tokenizer.vocabulary_size()), config.seed)?;
    let parameters = model.layout().parameter_count();
    println!(
        "{} MB of text in {} files, {} training tokens, vocabulary {}, {parameters} parameters, {} workers → {}",
        corpus.total_bytes() / 1_000_000,
        corpus.paths().len(),
        training.len(),
        tokenizer.vocabulary_size(),
        config.workers,
        folder.path().display()
    );
    let prompt = prompt(validation.as_ref().unwrap_or(&training));
    let (training, validation) = sources(training, validation, &config)?;
    let mut trainer = Trainer::new(model, config.clone())?;

    tokenizer.save(folder.path())?;
    let description = Description {
        model: trainer.model().config(),
        training: &config,
        data: DataDescription {
            files: corpus.paths().collect(),
            training_tokens: training.tokens().len(),
            validation_tokens: validation.as_ref().map_or(0, |source| source.tokens().len()),
        },
    };
    folder.write_json("config.json", &description)?;
    let mut record = Record::new(folder.metrics()?, flags.log_every);
    let summary = run(&mut trainer, &training, validation.as_ref(), &folder, &mut record)?;

    let model = trainer.averaged_model().unwrap_or_else(|| trainer.model().clone());
    model.save_parameters(&folder.file("model.safetensors"))?;
    let evaluation = validation.map(|validation| trainer.evaluate(&validation)).transpose()?;
    if let Some(evaluation) = &evaluation {
        record.evaluation(summary.steps, evaluation)?;
        println!("validation loss {:.4}, perplexity {:.2}", evaluation.loss, evaluation.perplexity());
    }
    record.draw(&folder.file("loss.svg"))?;
    if flags.sample > 0 {
        let sampling = Sampling { temperature: 0.8, seed: config.seed, ..Sampling::default() };
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
            workers: config.workers,
            peak_rss_mb: memory::peak_rss_mb(),
        };
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

/// What `config.json` holds.
#[derive(Serialize)]
struct Description<'a> {
    model: &'a TransformerConfig,
    training: &'a TrainingConfig,
    data: DataDescription<'a>,
}

#[derive(Serialize)]
struct DataDescription<'a> {
    files: Vec<&'a Path>,
    training_tokens: usize,
    validation_tokens: usize,
}

/// The last line, if it is asked for.
#[derive(Serialize)]
struct Outcome {
    steps: u64,
    /// Mean over the last steps.
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

/// Training and validation tokens.
fn split(
    flags: &Flags,
    tokens: TokenStore,
    tokenizer: &Tokenizer,
    token_file: &Path,
) -> Result<(TokenStore, Option<TokenStore>)> {
    if !flags.validation.is_empty() {
        let corpus = corpus::collect(&flags.validation, None)?;
        return Ok((tokens, Some(data::tokenize(&corpus, tokenizer, token_file)?)));
    }
    if flags.validation_fraction == 0.0 {
        return Ok((tokens, None));
    }
    let (training, validation) = tokens.split_validation(flags.validation_fraction)?;
    Ok((training, Some(validation)))
}

fn sources(
    training: TokenStore,
    validation: Option<TokenStore>,
    config: &TrainingConfig,
) -> Result<(SequenceSource, Option<SequenceSource>)> {
    let &TrainingConfig { batch_size, sequence_length, accumulation_steps, batch_order, seed, .. } = config;
    let sequences = batch_size * accumulation_steps;
    let training = SequenceSource::new(training, batch_order, sequences, sequence_length, seed)?;
    let validation = validation
        .map(|tokens| SequenceSource::new(tokens, BatchOrder::Sequential, batch_size, sequence_length, seed))
        .transpose()?;
    Ok((training, validation))
}

/// Trains to the end, or until the user interrupts.
fn run(
    trainer: &mut Trainer,
    training: &SequenceSource,
    validation: Option<&SequenceSource>,
    folder: &RunFolder,
    record: &mut Record,
) -> Result<RunSummary> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    // The second interrupt is for those who do not want to wait for the end.
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    let mut display = ProgressDisplay::new();
    let mut failure = None;
    let summary = trainer.run(training, validation, |progress| {
        if let Err(error) = report(progress, folder, record, &mut display) {
            failure = Some(error.to_string());
        }
        let stop = failure.is_some() || interrupted.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.finish();
    failure.map_or(Ok(summary?), |failure| Err(failure.into()))
}

fn report(
    progress: &Progress<'_>,
    folder: &RunFolder,
    record: &mut Record,
    display: &mut ProgressDisplay,
) -> Result<()> {
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
    if progress.save_due {
        progress.model.save_parameters(&folder.file("model.safetensors"))?;
    }
    Ok(())
}

/// The first tokens of `tokens`.
fn prompt(tokens: &TokenStore) -> Vec<u32> {
    let mut prompt = vec![0; tokens.len().min(16)];
    tokens.copy_to(0, &mut prompt);
    prompt
}
